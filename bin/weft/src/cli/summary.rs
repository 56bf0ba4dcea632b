//! What a cluster holds, at a glance: nodes, pods, services, who may reach whom, and what to try next.

use anyhow::Result;
use weft_decide::{Reach, Target};
use weft_model::{PodPhase, Protocol, Service, ServiceKind, Snapshot};

use super::{check, matrix};
use crate::fabrics::{DEFAULT_NAME, Fabric};
use crate::output::{Colour, Table, paint};

/// More pods than this make a matrix nobody reads; `weft policy matrix` still prints it.
const READABLE: usize = 40;

pub async fn print(name: &str) -> Result<()> {
    let fabric = Fabric::find(name)?;
    let (snapshot, mut findings) = fabric.snapshot().await?;
    section("Nodes", &nodes(&snapshot));
    section("Pods", &pods(&snapshot));
    section("Services", &services(&snapshot));
    if (1..=READABLE).contains(&snapshot.pods.len()) {
        println!("\n{}", paint(Colour::Bold, "Who may reach whom"));
        print!("{}", matrix::compact(&snapshot));
    }
    findings.extend(weft_compile::check(&snapshot));
    findings.sort();
    findings.dedup();
    if !findings.is_empty() {
        println!("\n{}", paint(Colour::Bold, "Worth a look (weft check)"));
        findings.iter().for_each(|finding| println!("{}", check::coloured(finding)));
    }
    println!("\n{}", paint(Colour::Bold, "Try next, in another terminal"));
    next_steps(&snapshot, name).iter().for_each(|step| println!("  {step}"));
    println!(
        "  {}",
        paint(
            Colour::Dim,
            format!("kubectl --kubeconfig {} get pods -A -o wide", fabric.kubeconfig().display())
        )
    );
    Ok(())
}

fn section(title: &str, table: &Table) {
    if !table.is_empty() {
        println!("\n{}", paint(Colour::Bold, title));
        print!("{table}");
    }
}

fn nodes(snapshot: &Snapshot) -> Table {
    let mut table = Table::new(&["NAME", "ADDRESSES", "POD RANGES"]);
    for node in snapshot.nodes.values() {
        table.row([node.name.to_string(), list(&node.addresses), list(&node.pod_cidrs)]);
    }
    table
}

fn pods(snapshot: &Snapshot) -> Table {
    let mut table = Table::new(&["POD", "NODE", "ADDRESSES", "PORTS"]);
    for pod in snapshot.pods.values() {
        let ports: Vec<String> =
            pod.declared_ports.iter().map(|(protocol, port)| port_text(*protocol, port)).collect();
        let addresses = match pod.phase {
            PodPhase::Finished => "finished".to_owned(),
            PodPhase::Pending | PodPhase::Running => list(&pod.addresses),
        };
        let node = pod.node.as_ref().map_or("not scheduled".to_owned(), ToString::to_string);
        table.row([pod.key.to_string(), node, addresses, ports.join(" ")]);
    }
    table
}

fn services(snapshot: &Snapshot) -> Table {
    let mut table = Table::new(&["SERVICE", "TYPE", "ADDRESSES", "PORTS"]);
    for service in snapshot.services.values() {
        let ports: Vec<String> =
            service.ports.iter().map(|port| port_text(port.protocol, port.port)).collect();
        table.row([service.key.to_string(), kind(service), list(&service.cluster_ips), ports.join(" ")]);
    }
    table
}

fn kind(service: &Service) -> String {
    match &service.kind {
        ServiceKind::ClusterIp => "ClusterIP".to_owned(),
        ServiceKind::Headless => "headless".to_owned(),
        ServiceKind::NodePort => "NodePort".to_owned(),
        ServiceKind::LoadBalancer => "LoadBalancer".to_owned(),
        ServiceKind::ExternalName(name) => format!("ExternalName {name}"),
    }
}

/// TCP goes without saying.
fn port_text(protocol: Protocol, port: impl ToString) -> String {
    match protocol {
        Protocol::TCP => port.to_string(),
        other => format!("{}/{other}", port.to_string()),
    }
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let text: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if text.is_empty() { "-".to_owned() } else { text.join(" ") }
}

/// Commands about this cluster's own objects, so that they can be pasted.
fn next_steps(snapshot: &Snapshot, name: &str) -> Vec<String> {
    let which = if name == DEFAULT_NAME { String::new() } else { format!(" --name {name}") };
    let exe = std::env::current_exe().ok();
    let weft = exe.as_ref().map_or("weft".into(), |exe| exe.display().to_string());
    let second = match telling_question(snapshot) {
        Some(question) => format!("{weft} why{which} {question}"),
        None => format!("{weft} apply{which} YOUR.yaml"),
    };
    vec![format!("{weft} observe{which}"), second, format!("{weft} policy matrix --probe{which}")]
}

/// A pod and a service to ask about: a denial if there is one, since it tells most.
fn telling_question(snapshot: &Snapshot) -> Option<String> {
    let cells = weft_decide::matrix(snapshot);
    let services = || cells.iter().filter(|cell| matches!(cell.to, Target::Service(_)));
    let cell =
        services().find(|cell| matches!(cell.reach, Reach::Denied { .. })).or_else(|| services().next())?;
    let Target::Service(service) = &cell.to else { return None };
    let name = if service.namespace == cell.from.namespace {
        service.name.to_string()
    } else {
        format!("{}.{}", service.name, service.namespace)
    };
    Some(format!("{} {name}:{}", cell.from, port_text(cell.protocol, cell.port)))
}
