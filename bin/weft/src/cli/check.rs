//! `weft check`: what is legal and probably not what was meant.

use std::process::ExitCode;

use anyhow::Result;
use weft_model::Severity;

use crate::fabrics::Fabric;
use crate::output::{Colour, Format, mark, paint};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: crate::Target,
    /// Only objects of this namespace
    #[arg(long, short)]
    namespace: Option<String>,
}

/// Fails only on errors: a warning is for people to judge.
pub async fn run(args: Args) -> Result<ExitCode> {
    let (snapshot, mut findings) = Fabric::find(&args.target.name)?.snapshot().await?;
    findings.extend(weft_compile::check(&snapshot));
    if let Some(namespace) = &args.namespace {
        let prefix = format!(" {namespace}/");
        findings.retain(|finding| finding.object.contains(&prefix));
    }
    findings.sort();
    findings.dedup();
    findings.reverse();
    if args.target.output == Format::Json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else if findings.is_empty() {
        println!("{} nothing to say about {} objects", mark(true), count(&snapshot));
    }
    if args.target.output == Format::Text {
        for finding in &findings {
            println!("{}", coloured(finding));
        }
    }
    let failed = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

pub fn coloured(finding: &weft_model::Finding) -> String {
    let text = finding.to_string();
    let (severity, rest) = text.split_once(": ").unwrap_or(("", &text));
    let colour = if finding.severity == Severity::Error { Colour::Red } else { Colour::Yellow };
    format!("{}: {rest}", paint(colour, severity))
}

fn count(snapshot: &weft_model::Snapshot) -> usize {
    snapshot.policies.len() + snapshot.services.len() + snapshot.pods.len() + snapshot.nodes.len()
}
