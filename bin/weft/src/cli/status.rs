//! `weft status`: what each node's kernel holds, and whether that is what was planned.

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::Value;
use weft_model::{Reason, Verdict};

use crate::agent::AgentStatus;
use crate::fabrics::{Fabric, unix_request};
use crate::output::{Colour, Format, Table, mark, paint};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: crate::Target,
    /// Also each pod's addresses and the policies that isolate it
    #[arg(long, short)]
    pods: bool,
    /// Also the servers asked for names outside the cluster, and what is kept of their answers
    #[arg(long)]
    names: bool,
    /// The kernel's tables of this node, row by row
    #[arg(long, value_name = "NODE")]
    tables: Option<String>,
    /// The plan of this node, row by row
    #[arg(long, value_name = "NODE")]
    plan: Option<String>,
}

/// Fails when a node does not answer or its kernel is not at its plan.
pub async fn run(args: Args) -> Result<ExitCode> {
    let fabric = Fabric::find(&args.target.name)?;
    for (node, path) in [(&args.tables, "/tables"), (&args.plan, "/plan")] {
        if let Some(node) = node {
            let known = fabric.nodes()?;
            if !known.contains(node) {
                bail!("there is no node {node:?}; the cluster's nodes are {}", known.join(", "));
            }
            let answer = unix_request(&fabric.agent_socket(node), "GET", path, Vec::new()).await?;
            print!("{}", String::from_utf8_lossy(&answer.body));
            return Ok(if answer.status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    let mut nodes = Vec::new();
    for node in fabric.nodes()? {
        let agent = agent_status(&fabric, &node).await;
        let names = proxy_status(&fabric, &node).await;
        nodes.push((node, agent, names));
    }
    let good = nodes.iter().all(|(_, agent, names)| agent.as_ref().is_ok_and(is_good) && names.is_ok());
    match args.target.output {
        Format::Json => print_json(&nodes)?,
        Format::Text => {
            print_text(&nodes, args.pods);
            if args.names {
                println!();
                print!("{}", super::names::server_table(&nodes_names(&nodes)));
                print!("{}", super::names::cache_table(&nodes_names(&nodes)));
            }
            match super::addresses::read(&fabric).await {
                Ok(addresses) => super::addresses::print(&addresses),
                Err(error) => println!("load balancer addresses: {} {error:#}", mark(false)),
            }
        }
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn nodes_names(nodes: &[NodeRow]) -> Vec<(&str, &Value)> {
    nodes.iter().filter_map(|(node, _, names)| Some((node.as_str(), names.as_ref().ok()?))).collect()
}

type NodeRow = (String, Result<AgentStatus>, Result<Value>);

async fn agent_status(fabric: &Fabric, node: &str) -> Result<AgentStatus> {
    let answer = unix_request(&fabric.agent_socket(node), "GET", "/status", Vec::new()).await?;
    Ok(serde_json::from_slice(&answer.body)?)
}

async fn proxy_status(fabric: &Fabric, node: &str) -> Result<Value> {
    let answer = unix_request(&fabric.proxy_socket(node), "GET", "/status", Vec::new()).await?;
    Ok(serde_json::from_slice(&answer.body)?)
}

fn is_good(status: &AgentStatus) -> bool {
    status.synced && status.apply_error.is_none() && status.differences.is_empty()
}

fn print_json(nodes: &[NodeRow]) -> Result<()> {
    let rows: Vec<Value> = nodes
        .iter()
        .map(|(node, agent, names)| {
            let agent = match agent {
                Ok(agent) => serde_json::to_value(agent).unwrap_or_default(),
                Err(error) => serde_json::json!({ "error": format!("{error:#}") }),
            };
            let names = match names {
                Ok(names) => names.clone(),
                Err(error) => serde_json::json!({ "error": format!("{error:#}") }),
            };
            serde_json::json!({ "node": node, "agent": agent, "names": names })
        })
        .collect();
    println!("{}", serde_json::to_string_pretty(&rows)?);
    Ok(())
}

fn print_text(nodes: &[NodeRow], with_pods: bool) {
    let mut table =
        Table::new(&["NODE", "KERNEL", "API", "NAMES", "PODS", "SERVICES", "POLICY", "DENIED", "LOST"]);
    for (node, agent, names) in nodes {
        match agent {
            Ok(status) => table.row(node_row(node, status, names)),
            Err(error) => table.row([node.clone(), format!("{} {error:#}", mark(false))]),
        }
    }
    print!("{table}");
    for (node, agent, names) in nodes {
        if let Ok(status) = agent {
            print_trouble(node, status);
        }
        match names {
            Ok(names) => super::names::print_trouble(node, names),
            Err(error) => println!("{node}: {} the name server does not answer: {error:#}", mark(false)),
        }
    }
    if with_pods {
        println!();
        print!("{}", pod_table(nodes));
    }
}

fn node_row(node: &str, status: &AgentStatus, names: &Result<Value>) -> Vec<String> {
    let kernel = match (&status.apply_error, status.differences.len()) {
        (Some(_), _) => format!("{} behind", mark(false)),
        (None, 0) => format!("{} as planned", mark(true)),
        (None, count) => format!("{} {count} differences", mark(false)),
    };
    let count = |table: &str| status.kernel.get(table).map_or("?".to_owned(), usize::to_string);
    let denied: u64 = Reason::ALL
        .iter()
        .filter(|reason| reason.verdict() == Verdict::Denied)
        // What every new link sends by itself is no denial anybody asks about.
        .filter(|reason| !matches!(reason, Reason::LinkLocal | Reason::NotIp))
        .filter_map(|reason| status.packets.get(reason.slug()))
        .sum();
    let names = match names {
        Ok(names) if names.get("ready").and_then(Value::as_bool) == Some(true) => mark(true),
        _ => mark(false),
    };
    vec![
        node.to_owned(),
        kernel,
        status.api.clone(),
        names,
        status.pods.len().to_string(),
        count("services"),
        count("policies"),
        denied.to_string(),
        (status.events_lost + status.events_suppressed).to_string(),
    ]
}

fn print_trouble(node: &str, status: &AgentStatus) {
    if let Some(error) = &status.apply_error {
        println!("{node}: {} the newest plan is not in force: {error}", mark(false));
    }
    for refused in &status.refused {
        println!("{node}: {} {refused}", mark(false));
    }
    for (table, (used, capacity)) in &status.tables {
        let usage = weft_datapath::Usage { used: *used, capacity: *capacity };
        if usage.is_high() {
            println!("{node}: {} kernel table {table} is filling up: {usage}", mark(false));
        }
    }
    for difference in &status.differences {
        println!("{node}: {} {difference}", mark(false));
    }
    // Warnings are for `weft check`; an error is something that is not in force.
    for finding in status.findings.iter().filter(|finding| finding.starts_with("error")) {
        println!("{node}: {}", paint(Colour::Red, finding));
    }
}

fn pod_table(nodes: &[NodeRow]) -> Table {
    let mut table =
        Table::new(&["NODE", "POD", "ADDRESSES", "DEVICE", "INGRESS ISOLATED BY", "EGRESS ISOLATED BY"]);
    for (node, agent, _) in nodes {
        for pod in agent.iter().flat_map(|status| &status.pods) {
            let cells = [node, &pod.pod, &pod.addresses.join(","), &pod.device, &pod.ingress, &pod.egress];
            table.row(cells.map(String::clone));
        }
    }
    table
}
