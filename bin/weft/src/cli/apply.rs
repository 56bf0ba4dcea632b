//! `weft apply`: manifests into a cluster.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::fabrics::Fabric;
use crate::manifests;
use crate::output::{Colour, paint};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: crate::Target,
    /// Files or folders with Kubernetes manifests
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Namespace of objects that name none
    #[arg(long, short, default_value = "default")]
    namespace: String,
}

pub async fn run(args: Args) -> Result<ExitCode> {
    let client = Fabric::find(&args.target.name)?.client().await?;
    let mut objects = Vec::new();
    let mut problems = Vec::new();
    for path in &args.paths {
        let read = manifests::read(path)?;
        objects.extend(read.objects);
        problems.extend(read.problems);
    }
    let applied = manifests::apply(&client, &objects, &args.namespace).await?;
    for title in &applied.done {
        println!("{title} applied");
    }
    problems.extend(applied.problems);
    for problem in &problems {
        eprintln!("{}: {problem}", paint(Colour::Red, "not applied"));
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
