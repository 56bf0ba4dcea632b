//! `weft observe`: flows of all nodes as they happen.

use std::io::Write;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use http_body_util::BodyExt;
use serde_json::Value;
use weft_model::Verdict;
use weft_observe::Flow;

use crate::fabrics::{Fabric, unix_open};
use crate::output::{Colour, Format, paint};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: crate::Target,
    /// Only flows from or to this pod: NAMESPACE/NAME, or the start of a name
    #[arg(long)]
    pod: Option<String>,
    /// Only flows from or to this namespace
    #[arg(long, short)]
    namespace: Option<String>,
    /// Only flows from this pod
    #[arg(long)]
    from: Option<String>,
    /// Only flows to this pod
    #[arg(long)]
    to: Option<String>,
    /// Only flows to this port
    #[arg(long)]
    port: Option<u16>,
    /// tcp, udp, icmp, ...
    #[arg(long)]
    protocol: Option<String>,
    /// forwarded or denied
    #[arg(long)]
    verdict: Option<String>,
    /// Only flows with this reason, for example default-deny
    #[arg(long)]
    reason: Option<String>,
    /// Only flows through this service: NAMESPACE/NAME
    #[arg(long)]
    service: Option<String>,
    /// Print the flows that are kept and stop
    #[arg(long)]
    no_follow: bool,
    /// Begin with this many kept flows of each node
    #[arg(long, default_value_t = 20)]
    last: usize,
}

impl Args {
    fn filter(&self) -> String {
        let port = self.port.map(|port| port.to_string());
        let parts = [
            ("pod", &self.pod),
            ("namespace", &self.namespace),
            ("from", &self.from),
            ("to", &self.to),
            ("port", &port),
            ("protocol", &self.protocol),
            ("verdict", &self.verdict),
            ("reason", &self.reason),
            ("service", &self.service),
        ];
        let given =
            parts.iter().filter_map(|(key, value)| value.as_ref().map(|value| format!("{key}={value}")));
        given.collect::<Vec<_>>().join(" ")
    }
}

pub async fn run(args: Args) -> Result<()> {
    let fabric = Fabric::find(&args.target.name)?;
    let follow = if args.no_follow { "" } else { "&follow" };
    let path = format!("/flows?filter={}&last={}{follow}", encode(&args.filter()), args.last);
    let mut streams = Vec::new();
    for node in fabric.nodes()? {
        streams.push(lines(&fabric, node, &path).await?);
    }
    let mut rows = futures::stream::select_all(streams).boxed();
    if args.no_follow {
        // Nodes answer one after the other; a person reads in the order of time.
        let mut kept: Vec<_> = rows.collect().await;
        kept.sort_by_key(|(_, row)| row.as_ref().ok().and_then(|row| row.get("time").map(Value::to_string)));
        rows = futures::stream::iter(kept).boxed();
    }
    while let Some((node, row)) = rows.next().await {
        if print(&node, &row?, args.target.output).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

type Rows = futures::stream::BoxStream<'static, (String, Result<Value>)>;

async fn lines(fabric: &Fabric, node: String, path: &str) -> Result<Rows> {
    let socket = fabric.agent_socket(&node);
    let response =
        unix_open(&socket, "GET", path, Vec::new()).await.with_context(|| format!("agent of {node}"))?;
    if !response.status().is_success() {
        let body = response.into_body().collect().await?.to_bytes();
        bail!("{}", String::from_utf8_lossy(&body).trim());
    }
    let state = (response.into_body(), Vec::new(), node);
    Ok(futures::stream::unfold(state, |(mut body, mut buffer, node)| async move {
        loop {
            if let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let row: Vec<u8> = buffer.drain(..=end).collect();
                let value = serde_json::from_slice(&row).context("a flow cannot be read");
                return Some(((node.clone(), value), (body, buffer, node)));
            }
            match body.frame().await? {
                Ok(frame) => buffer.extend(frame.data_ref().into_iter().flatten()),
                Err(error) => {
                    tracing::debug!(%error, node, "the agent went away");
                    return None;
                }
            }
        }
    })
    .boxed())
}

fn print(node: &str, row: &Value, format: Format) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if format == Format::Json {
        writeln!(out, "{row}")?;
    } else if let Some(lost) = row.get("lost").and_then(Value::as_u64) {
        writeln!(
            out,
            "{}",
            paint(Colour::Yellow, format!("{node}: {lost} events were lost: the kernel's ring was full"))
        )?;
    } else {
        let flow: Flow = serde_json::from_value(row.clone()).context("a flow cannot be read")?;
        let colour = if flow.verdict == Verdict::Denied { Colour::Red } else { Colour::Green };
        let text = flow.to_string();
        let verdict = if flow.verdict == Verdict::Denied { "DENIED" } else { "FORWARDED" };
        writeln!(out, "{}", text.replacen(verdict, &paint(colour, verdict), 1))?;
    }
    out.flush()?;
    Ok(())
}

/// Percent-encodes what a query may not hold (RFC 3986, 3.4).
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            other => encoded.push_str(&format!("%{other:02X}")),
        }
    }
    encoded
}
