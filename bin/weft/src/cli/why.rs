//! `weft why`: what a pod gets when it reaches for something, step by step, and which rule decides each step.

use std::process::ExitCode;

use anyhow::{Result, bail};
use weft_decide::Reach;
use weft_decide::explain::{self, Question};

use crate::fabrics::Fabric;
use crate::output::Format;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: crate::Target,
    /// The pod it starts from: NAMESPACE/NAME, or NAME in the default namespace
    source: String,
    /// What it reaches for: a name as the pod would write it, an address, svc/NAMESPACE/NAME or pod/NAMESPACE/NAME
    #[arg(value_name = "DST[:PORT][/PROTO]")]
    destination: String,
}

/// Fails when the answer is no, so that scripts can ask.
pub async fn run(args: Args) -> Result<ExitCode> {
    let (snapshot, _) = Fabric::find(&args.target.name)?.snapshot().await?;
    let source =
        if args.source.contains('/') { args.source.clone() } else { format!("default/{}", args.source) };
    let question = match Question::parse(&snapshot, &source, &args.destination) {
        Ok(question) => question,
        Err(error) => bail!("{error}"),
    };
    let explanation = explain::why(&snapshot, &question)?;
    match args.target.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&explanation)?),
        Format::Text => print!("{explanation}"),
    }
    let reaches = explanation.reach == Reach::Connected;
    Ok(if reaches { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
