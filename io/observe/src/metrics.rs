//! Flows as Prometheus metrics. Every label has a fixed set of values: no pod, address or port is one.

use std::collections::BTreeMap;
use std::fmt::Write;

use weft_model::{Direction, Protocol, Verdict};

use crate::flows::{Flow, FlowKind};

#[derive(Default)]
pub struct FlowMetrics {
    flows: BTreeMap<Series, Totals>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    event: &'static str,
    verdict: &'static str,
    reason: &'static str,
    direction: Direction,
    protocol: &'static str,
}

#[derive(Default)]
struct Totals {
    flows: u64,
    bytes: u64,
}

impl FlowMetrics {
    pub fn record(&mut self, flow: &Flow) {
        let series = Series {
            event: event(flow.kind),
            verdict: match flow.verdict {
                Verdict::Forwarded => "forwarded",
                Verdict::Denied => "denied",
            },
            reason: flow.reason_slug(),
            direction: flow.direction,
            protocol: protocol(flow.protocol),
        };
        let totals = self.flows.entry(series).or_default();
        totals.flows += 1;
        if flow.kind == FlowKind::Ended {
            totals.bytes = totals.bytes.saturating_add(flow.bytes);
        }
    }

    /// Text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = String::from(
            "# HELP weft_flows_total Flow events by what happened and why.\n# TYPE weft_flows_total counter\n",
        );
        for (series, totals) in &self.flows {
            let _ = writeln!(text, "weft_flows_total{} {}", labels(series), totals.flows);
        }
        text.push_str(
            "# HELP weft_flow_bytes_total Bytes of flows that ended, both ways.\n# TYPE weft_flow_bytes_total counter\n",
        );
        for (series, totals) in self.flows.iter().filter(|(series, _)| series.event == event(FlowKind::Ended))
        {
            let _ = writeln!(text, "weft_flow_bytes_total{} {}", labels(series), totals.bytes);
        }
        text
    }
}

fn labels(series: &Series) -> String {
    format!(
        "{{event=\"{}\",verdict=\"{}\",reason=\"{}\",direction=\"{}\",protocol=\"{}\"}}",
        series.event, series.verdict, series.reason, series.direction, series.protocol
    )
}

fn event(kind: FlowKind) -> &'static str {
    match kind {
        FlowKind::New => "new",
        FlowKind::Denied => "denied",
        FlowKind::Translated => "translated",
        FlowKind::Refused => "refused",
        FlowKind::Ended => "ended",
    }
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::TCP => "tcp",
        Protocol::UDP => "udp",
        Protocol::SCTP => "sctp",
        Protocol::ICMP | Protocol::ICMPV6 => "icmp",
        _ => "other",
    }
}
