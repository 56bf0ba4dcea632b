//! `weft names`: the settings of names, checked, put in force, and made from a CoreDNS Corefile.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weft_dns::Settings;
use weft_dns::corefile::{self, Fate, NamedText};

use crate::fabrics::Fabric;
use crate::output::{Table, mark};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Says whether a file with settings could be put in force
    Check {
        /// YAML or JSON
        file: PathBuf,
    },
    /// Puts a file's settings in force on all nodes of a cluster of this machine
    Set {
        #[command(flatten)]
        target: crate::Target,
        /// YAML or JSON
        file: PathBuf,
    },
    /// Prints the settings a cluster of this machine has been given
    Show {
        #[command(flatten)]
        target: crate::Target,
    },
    /// Prints the settings a CoreDNS Corefile stands for, and on standard error what cannot be carried over;
    /// fails when clients may see a difference
    ImportCorefile {
        file: PathBuf,
        /// The domain of the cluster's names
        #[arg(long, default_value = "cluster.local")]
        cluster_domain: String,
    },
}

pub fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Check { file } => {
            read_settings(&file)?;
            println!("{}: these settings can be put in force", file.display());
        }
        Verb::Set { target, file } => {
            let settings = read_settings(&file)?;
            replace(&settings_file(&target)?, &settings)?;
            println!("{} is given to all nodes; `weft status` says if one cannot take it up", file.display());
        }
        Verb::Show { target } => {
            let path = settings_file(&target)?;
            print!("{}", std::fs::read_to_string(&path).with_context(|| path.display().to_string())?);
        }
        Verb::ImportCorefile { file, cluster_domain } => return import(&file, &cluster_domain),
    }
    Ok(ExitCode::SUCCESS)
}

/// The text of a file with settings, which hold.
pub fn read_settings(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Settings::parse(&text).with_context(|| path.display().to_string())?;
    Ok(text)
}

fn settings_file(target: &crate::Target) -> Result<PathBuf> {
    Ok(Fabric::find(&target.name)?.names_settings())
}

/// In one step, so that nobody reads half of it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("yaml.new");
    std::fs::write(&beside, text).with_context(|| beside.display().to_string())?;
    std::fs::rename(&beside, path).with_context(|| path.display().to_string())
}

fn import(file: &Path, cluster_domain: &str) -> Result<ExitCode> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut load = |name: &str| imported(folder, name).map_err(|error| format!("{error:#}"));
    let read = corefile::read(&file.display().to_string(), &text, cluster_domain, &mut load)?;
    for finding in &read.findings {
        eprintln!("{finding}");
    }
    let lost = read.findings.iter().filter(|finding| finding.fate == Fate::Lost).count();
    print!("{}", read.settings.to_yaml());
    if lost > 0 {
        eprintln!("{lost} lines are not carried over: see above");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The files an `import` stands for; a `*` in the last part of the name is any text.
fn imported(folder: &Path, name: &str) -> Result<Vec<NamedText>> {
    let path = folder.join(name);
    let Some(last) = path.file_name().and_then(|last| last.to_str()) else { bail!("names no file") };
    let read = |path: &Path| -> Result<NamedText> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| shown.clone())?;
        Ok((shown, text))
    };
    let Some((start, end)) = last.split_once('*') else { return Ok(vec![read(&path)?]) };
    let Ok(entries) = std::fs::read_dir(path.parent().unwrap_or(folder)) else { return Ok(Vec::new()) };
    let fits = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.len() >= start.len() + end.len()
            && name.starts_with(start)
            && name.ends_with(end)
            && path.is_file()
    };
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(fits).collect();
    found.sort();
    found.iter().map(|path| read(path)).collect()
}

/// What of a name server's status the operator should look at.
pub fn print_trouble(node: &str, status: &Value) {
    let text = |value: &Value, field: &str| value[field].as_str().map(str::to_owned);
    if let Some(problem) = text(&status["settings"], "problem") {
        println!("{node}: {} {problem}", mark(false));
    }
    for problem in status["forwardProblems"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        println!("{node}: {} names: {problem}", mark(false));
    }
    for upstream in status["upstreams"].as_array().into_iter().flatten() {
        if let Some(problem) = text(upstream, "problem") {
            let [zone, address, health] =
                ["zone", "address", "health"].map(|field| text(upstream, field).unwrap_or_default());
            println!("{node}: {} names in {zone}: {address} ({health}): {problem}", mark(false));
        }
    }
}

/// The servers each node asks for names outside the cluster.
pub fn server_table(nodes: &[(&str, &Value)]) -> Table {
    let mut table = Table::new(&[
        "NODE",
        "ZONE",
        "SERVER",
        "HEALTH",
        "QUESTIONS",
        "FAILED",
        "OVER TCP",
        "MISMATCHED",
        "RTT",
    ]);
    for (node, status) in nodes {
        for upstream in status["upstreams"].as_array().into_iter().flatten() {
            let rtt = upstream["rttMicroseconds"].as_u64();
            let rtt = rtt.map_or("-".to_owned(), |rtt| format!("{}.{:03} ms", rtt / 1000, rtt % 1000));
            let [zone, address, health, queries, failures, tcp, mismatches] =
                ["zone", "address", "health", "queries", "failures", "tcp", "mismatches"]
                    .map(|field| cell(&upstream[field]));
            table.row([(*node).to_owned(), zone, address, health, queries, failures, tcp, mismatches, rtt]);
        }
    }
    table
}

/// What each node keeps of their answers.
pub fn cache_table(nodes: &[(&str, &Value)]) -> Table {
    let mut table = Table::new(&["NODE", "CACHED", "BYTES", "HITS", "STALE", "MISSES", "EVICTED"]);
    for (node, status) in nodes {
        let fields = ["entries", "bytes", "hits", "staleHits", "misses", "evictions"];
        let cells = fields.map(|field| cell(&status["cache"][field]));
        table.row(std::iter::once((*node).to_owned()).chain(cells));
    }
    table
}

fn cell(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
