//! `weft why`: what a pod gets when it reaches for something, step by step, and which rule decides each step; how a name resolves
//! for it, where only a name is given.

use std::process::ExitCode;

use anyhow::{Result, bail};
use weft_decide::Reach;
use weft_decide::explain::{self, Destination, Explanation, NameStory, Question};
use weft_model::Snapshot;

use crate::fabrics::Fabric;
use crate::output::Format;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: crate::Target,
    /// The pod it starts from: NAMESPACE/NAME, or NAME in the default namespace
    source: String,
    /// What it reaches for: a name as the pod would write it (without a port: how it resolves), an address, svc/NAMESPACE/NAME
    /// or pod/NAMESPACE/NAME
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
    if let Question { destination: Destination::Name(name), port: None, protocol: None, .. } = &question {
        return resolve(&snapshot, &question, name, args.target.output);
    }
    let explanation = explain::why(&snapshot, &question)?;
    match args.target.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&explanation)?),
        Format::Text => print!("{explanation}"),
    }
    let reaches = explanation.reach == Reach::Connected;
    Ok(if reaches { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How the name resolves, and, where it leads to one port of a service, how a connection to it goes.
fn resolve(snapshot: &Snapshot, question: &Question, name: &str, format: Format) -> Result<ExitCode> {
    let story = explain::why_name(snapshot, &question.source, name)?;
    // Without a port that follows from the name there is no connection to tell of.
    let connection = explain::why(snapshot, question).ok().filter(|_| story.end.may_resolve());
    let told = Told { name: &story, connection: connection.as_ref() };
    match format {
        Format::Json => println!("{}", serde_json::to_string_pretty(&told)?),
        Format::Text => {
            print!("{story}");
            if let Some(connection) = &connection {
                print!("{connection}");
            }
        }
    }
    let connects = connection.is_none_or(|connection| connection.reach == Reach::Connected);
    Ok(if story.end.may_resolve() && connects { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(serde::Serialize)]
struct Told<'a> {
    name: &'a NameStory,
    connection: Option<&'a Explanation>,
}
