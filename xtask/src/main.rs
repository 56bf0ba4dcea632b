//! Chores of the workspace: which checks there are, and how their findings are printed. Each check lives in its module.

mod abi;
mod dependencies;
mod files;
mod layers;
mod names;
mod proofs;
mod purity;
mod services;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

/// A name and a function from the workspace's root to what is wrong, one line each.
type Check = (&'static str, fn(&Path) -> Result<Vec<String>>);

const CHECKS: &[Check] = &[
    ("layers", layers::check),
    ("purity", purity::check),
    ("files", files::check),
    ("dependencies", dependencies::check),
    ("abi", abi::check),
    ("tables", proofs::check),
];

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: Vec<String>) -> Result<ExitCode> {
    let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    let usage = || format!("usage: cargo run -p xtask -- check [{}] | write-tables", names.join("|"));
    if args == ["write-tables"] {
        proofs::write(&root()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let chosen = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["check"] => names.clone(),
        ["check", name] if names.contains(&name) => vec![name],
        _ => bail!(usage()),
    };
    let root = root()?;
    let mut failed = false;
    for (name, check) in CHECKS.iter().filter(|(name, _)| chosen.contains(name)) {
        let findings = check(&root).with_context(|| format!("check {name}"))?;
        for finding in &findings {
            eprintln!("{name}: {finding}");
        }
        failed |= !findings.is_empty();
        println!("check {name}: {}", if findings.is_empty() { "ok" } else { "FAILED" });
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?;
    Ok(root.to_owned())
}
