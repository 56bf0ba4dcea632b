//! `weft policy matrix`: who may reach whom, as computed and, on request, as measured from inside every pod.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result};
use futures::StreamExt;
use serde::Serialize;
use weft_decide::{Cell, Reach, Target};
use weft_model::{Addr, PodKey, Port, Protocol, Snapshot};

use super::exec::exec;
use super::probe::{self, Outcome};
use crate::fabrics::Fabric;
use crate::output::{Colour, Format, mark, paint};

/// How long a silent target is given: the first SYN and two of its repetitions.
const PATIENCE_MS: u64 = 3_500;
/// Pods that probe at the same time.
const PODS_AT_ONCE: usize = 6;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    target: crate::Target,
    /// Also try every cell from inside its pod, through the kernel, and compare
    #[arg(long)]
    probe: bool,
    /// Only from pods of this namespace
    #[arg(long, short)]
    namespace: Option<String>,
}

#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    cell: &'a Cell,
    computed: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<Outcome>,
    /// Why nothing was measured though it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_measured: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agrees: Option<bool>,
    /// What is no difference, and probably not meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    finding: Option<String>,
}

/// What became of the attempt to measure a cell.
type Measured = Result<Outcome, String>;

/// Fails when what was measured is not what was computed, or something could not be measured.
pub async fn run(args: Args) -> Result<ExitCode> {
    let fabric = Fabric::find(&args.target.name)?;
    let (snapshot, _) = fabric.snapshot().await?;
    let mut cells = weft_decide::matrix(&snapshot);
    if let Some(namespace) = &args.namespace {
        cells.retain(|cell| cell.from.namespace.as_str() == namespace);
    }
    let measured = if args.probe { Some(measure(&fabric, &cells).await?) } else { None };
    let rows = rows(&snapshot, &cells, measured.as_deref());
    match args.target.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "cells": rows }))?),
        Format::Text => {
            print!("{}", render(&cells));
            if args.probe {
                print_comparison(&rows);
            }
        }
    }
    let good = rows.iter().all(|row| row.agrees != Some(false) && row.not_measured.is_none());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The computed matrix as text, for the summary of `weft up`.
pub fn compact(snapshot: &Snapshot) -> String {
    render(&weft_decide::matrix(snapshot))
}

fn rows<'a>(snapshot: &Snapshot, cells: &'a [Cell], measured: Option<&[Measured]>) -> Vec<Row<'a>> {
    let silent = Unopened::of(cells, measured.unwrap_or_default());
    let row = |(index, cell): (usize, &'a Cell)| {
        let tried = measured.map(|measured| &measured[index]);
        let outcome = tried.and_then(|tried| tried.as_ref().ok()).copied();
        let finding = outcome.and_then(|outcome| silent.explains(snapshot, cell, outcome));
        Row {
            cell,
            computed: cell.reach.to_string(),
            measured: outcome,
            not_measured: tried.and_then(|tried| tried.as_ref().err()).cloned(),
            agrees: outcome.map(|outcome| agrees(&cell.reach, outcome) || finding.is_some()),
            finding,
        }
    };
    cells.iter().enumerate().map(row).collect()
}

/// Declared ports of pods that nobody listens on: a pod that a packet reaches refuses it by itself, so neither the model
/// nor the kernel is wrong.
struct Unopened(BTreeSet<(Addr, Protocol, Port)>);

impl Unopened {
    fn of(cells: &[Cell], measured: &[Measured]) -> Self {
        let measured_as = |outcome: Outcome| {
            let tried = cells.iter().zip(measured);
            let these = tried.filter(move |(cell, measured)| {
                matches!(cell.to, Target::Pod(_))
                    && cell.reach == Reach::Connected
                    && **measured == Ok(outcome)
            });
            these.map(|(cell, _)| (cell.address, cell.protocol, cell.port))
        };
        let mut closed: BTreeSet<_> = measured_as(Outcome::Refused).collect();
        // What one client reaches is open: another's refusal is a difference.
        measured_as(Outcome::Connected).for_each(|open| _ = closed.remove(&open));
        Self(closed)
    }

    /// A service's port is as closed as the ones it leads to.
    fn explains(&self, snapshot: &Snapshot, cell: &Cell, outcome: Outcome) -> Option<String> {
        if outcome != Outcome::Refused
            || agrees(&cell.reach, outcome)
            || !agrees(&cell.reach, Outcome::Connected)
        {
            return None;
        }
        match &cell.to {
            Target::Pod(pod) => {
                let closed = self.0.contains(&(cell.address, cell.protocol, cell.port));
                closed.then(|| format!("pod {pod} declares {}/{}, nobody listens", cell.port, cell.protocol))
            }
            Target::Service(service) => {
                let mut ports = snapshot.services.get(service)?.ports.iter();
                let asked = ports.find(|port| port.port == cell.port && port.protocol == cell.protocol)?;
                let slices = snapshot.slices.values().filter(|slice| slice.service == *service);
                let mut backends = slices.flat_map(|slice| {
                    let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
                    let ports = slice
                        .ports
                        .iter()
                        .filter(|(name, protocol, _)| *name == asked.name && *protocol == asked.protocol);
                    addresses.flat_map(move |addr| {
                        ports.clone().map(|(_, protocol, port)| (*addr, *protocol, *port))
                    })
                });
                let (addr, protocol, port) = backends.find(|backend| self.0.contains(backend))?;
                Some(format!("service {service} leads to {addr}:{port}/{protocol}, where nobody listens"))
            }
        }
    }
}

/// A denied packet is dropped, so from inside it looks like silence.
fn agrees(computed: &Reach, measured: Outcome) -> bool {
    match computed {
        Reach::Connected => measured == Outcome::Connected,
        Reach::Refused { .. } => measured == Outcome::Refused,
        Reach::Denied { .. } => measured == Outcome::Silent,
        // Which backend answers is chance: any of the outcomes of its backends is right.
        Reach::Mixed(each) => each.iter().any(|reach| agrees(reach, measured)),
        Reach::Unknown => true,
    }
}

fn print_comparison(rows: &[Row]) {
    let findings: BTreeSet<&str> = rows.iter().filter_map(|row| row.finding.as_deref()).collect();
    for finding in findings {
        println!("\n{} {finding}", paint(Colour::Yellow, "!"));
    }
    let mut missing: BTreeMap<(&PodKey, &str), usize> = BTreeMap::new();
    for row in rows {
        if let Some(why) = &row.not_measured {
            *missing.entry((&row.cell.from, why)).or_default() += 1;
        }
    }
    for ((pod, why), count) in &missing {
        println!("\n{} {count} cells from {pod} not measured: {why}", mark(false));
    }
    let measured = rows.iter().filter(|row| row.measured.is_some()).count();
    let differing: Vec<&Row> = rows.iter().filter(|row| row.agrees == Some(false)).collect();
    if differing.is_empty() {
        let all = if missing.is_empty() { "all " } else { "" };
        println!(
            "\n{} measured through the kernel: {all}{measured} cells as computed",
            mark(missing.is_empty())
        );
        return;
    }
    println!("\n{} {} of {measured} cells are not as computed:", mark(false), differing.len());
    for row in differing {
        let cell = row.cell;
        let measured = row.measured.map_or("?".to_owned(), |measured| format!("{measured:?}").to_lowercase());
        println!(
            "  {} -> {} {}:{}/{}: computed {}, measured {}",
            cell.from,
            cell.to,
            cell.address,
            cell.port,
            cell.protocol,
            row.computed,
            paint(Colour::Red, measured)
        );
    }
}

/// Probes all cells, grouped by the pod they start from; outcomes in the order of the cells.
async fn measure(fabric: &Fabric, cells: &[Cell]) -> Result<Vec<Measured>> {
    let client = fabric.client().await?;
    // By this process, not by path: a pod's volume may lie over the place where the program is.
    let exe = format!("/proc/{}/exe", std::process::id());
    let command = [exe, "lab".to_owned(), "probe".to_owned()];
    let mut by_pod: BTreeMap<&PodKey, Vec<usize>> = BTreeMap::new();
    for (index, cell) in cells.iter().enumerate() {
        by_pod.entry(&cell.from).or_default().push(index);
    }
    let probes = by_pod.into_iter().map(|(pod, indexes)| {
        let targets: Vec<probe::Target> = indexes.iter().map(|index| target(&cells[*index])).collect();
        let (client, command) = (client.clone(), &command);
        async move {
            let outcomes = probe_from(&client, pod, command, &targets).await;
            (indexes, outcomes.map_err(|error| format!("{error:#}")))
        }
    });
    let mut probes = futures::stream::iter(probes).buffer_unordered(PODS_AT_ONCE);
    let mut measured = vec![Err("not tried".to_owned()); cells.len()];
    while let Some((indexes, outcomes)) = probes.next().await {
        for (position, index) in indexes.into_iter().enumerate() {
            measured[index] = outcomes.as_ref().map(|outcomes| outcomes[position]).map_err(String::clone);
        }
    }
    Ok(measured)
}

/// Outcomes in the order of the targets.
async fn probe_from(
    client: &kube::Client,
    pod: &PodKey,
    command: &[String],
    targets: &[probe::Target],
) -> Result<Vec<Outcome>> {
    let answer = exec(client, pod, command, serde_json::to_vec(targets)?).await?;
    let outcomes: Vec<Outcome> =
        serde_json::from_slice(&answer).with_context(|| format!("pod {pod}: the probe's answer"))?;
    let (answers, asked) = (outcomes.len(), targets.len());
    anyhow::ensure!(answers == asked, "pod {pod}: {answers} answers for {asked} targets");
    Ok(outcomes)
}

fn target(cell: &Cell) -> probe::Target {
    probe::Target {
        address: SocketAddr::new(cell.address.to_ip(), cell.port.0),
        udp: cell.protocol == Protocol::UDP,
        patience_ms: PATIENCE_MS,
    }
}

/// Rows are pods, columns the targets; replicas that agree in everything share a row.
fn render(cells: &[Cell]) -> String {
    let columns: BTreeSet<Column> = cells.iter().filter(|cell| is_service(cell)).map(Column::of).collect();
    let columns = if columns.is_empty() { cells.iter().map(Column::of).collect() } else { columns };
    let mut rows: BTreeMap<&PodKey, BTreeMap<Column, Mark>> = BTreeMap::new();
    for cell in cells {
        let column = Column::of(cell);
        if columns.contains(&column) {
            let seen = rows.entry(&cell.from).or_default().entry(column).or_insert(Mark::of(&cell.reach));
            *seen = seen.and(Mark::of(&cell.reach));
        }
    }
    let mut text = String::new();
    if rows.is_empty() {
        return "no pods, or nothing to reach\n".to_owned();
    }
    legend(&mut text, &columns);
    table(&mut text, &columns, &alike(rows));
    text
}

fn is_service(cell: &Cell) -> bool {
    matches!(cell.to, Target::Service(_))
}

#[derive(PartialEq, Eq, PartialOrd, Ord, Clone)]
struct Column {
    to: String,
    port: String,
}

impl Column {
    fn of(cell: &Cell) -> Self {
        let port = match cell.protocol {
            Protocol::TCP => cell.port.to_string(),
            other => format!("{}/{other}", cell.port),
        };
        Self { to: cell.to.to_string(), port }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Reaches,
    Refused,
    Denied,
    Mixed,
}

impl Mark {
    fn of(reach: &Reach) -> Self {
        match reach {
            Reach::Connected => Self::Reaches,
            Reach::Refused { .. } => Self::Refused,
            Reach::Denied { .. } => Self::Denied,
            Reach::Mixed(_) | Reach::Unknown => Self::Mixed,
        }
    }

    fn and(self, other: Self) -> Self {
        if self == other { self } else { Self::Mixed }
    }

    fn glyph(self) -> String {
        match self {
            Self::Reaches => paint(Colour::Green, "✓"),
            Self::Refused => paint(Colour::Yellow, "r"),
            Self::Denied => paint(Colour::Red, "·"),
            Self::Mixed => paint(Colour::Yellow, "?"),
        }
    }
}

fn legend(text: &mut String, columns: &BTreeSet<Column>) {
    for (number, column) in columns.iter().enumerate() {
        writeln!(text, "  {:>2}  {}:{}", number + 1, column.to, column.port).expect("writing to a String");
    }
    writeln!(
        text,
        "  {} reaches   {} denied   {} refused: no endpoints, or nobody listens   {} depends on backend or family",
        Mark::Reaches.glyph(),
        Mark::Denied.glyph(),
        Mark::Refused.glyph(),
        Mark::Mixed.glyph()
    )
    .expect("writing to a String");
}

type Marks = BTreeMap<Column, Mark>;

/// Pods of one workload that reach the same are one row.
fn alike(rows: BTreeMap<&PodKey, Marks>) -> Vec<(String, Marks)> {
    let mut merged: BTreeMap<(String, Vec<(Column, Mark)>), usize> = BTreeMap::new();
    for (pod, marks) in rows {
        let key = (format!("{}/{}", pod.namespace, workload(&pod.name)), marks.into_iter().collect());
        *merged.entry(key).or_default() += 1;
    }
    let name = |name: String, count: usize| if count > 1 { format!("{name} ×{count}") } else { name };
    merged.into_iter().map(|((pod, marks), count)| (name(pod, count), marks.into_iter().collect())).collect()
}

/// `web-6d4cf56db6-x7k2p` is one of the pods of `web`.
fn workload(pod: &str) -> &str {
    let hash = |part: &str, length: std::ops::RangeInclusive<usize>| {
        length.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    let Some((rest, suffix)) = pod.rsplit_once('-') else { return pod };
    match rest.rsplit_once('-') {
        Some((name, template)) if hash(suffix, 5..=5) && hash(template, 6..=10) => name,
        _ => pod,
    }
}

fn table(text: &mut String, columns: &BTreeSet<Column>, rows: &[(String, Marks)]) {
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let heads: String = (1..=columns.len()).map(|number| format!("{number:>3}")).collect();
    writeln!(text, "  {:width$} {heads}", "").expect("writing to a String");
    for (name, marks) in rows {
        let pad = " ".repeat(width - name.chars().count());
        let cells: String = columns
            .iter()
            .map(|column| format!("  {}", marks.get(column).map_or(" ".to_owned(), |mark| mark.glyph())))
            .collect();
        writeln!(text, "  {name}{pad} {cells}").expect("writing to a String");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(from: &str, to: Target, address: &str, port: u16, reach: Reach) -> Cell {
        let from = PodKey::new("shop", from);
        let address = address.parse().unwrap();
        Cell { from, to, address, protocol: Protocol::TCP, port: Port(port), reach }
    }

    #[test]
    fn what_was_not_measured_and_what_nobody_opens_are_told_apart_from_differences() {
        let web = || Target::Pod(PodKey::new("shop", "web"));
        let refused = Reach::Refused { reason: None };
        let cells = [
            cell("a", web(), "10.244.1.1", 8080, Reach::Connected),
            cell("a", web(), "10.244.1.1", 9090, Reach::Connected),
            cell("b", web(), "10.244.1.1", 8080, Reach::Connected),
            cell("c", web(), "10.244.1.1", 8080, Reach::Connected),
            cell("a", web(), "10.244.1.2", 1, refused),
        ];
        let measured = [
            Ok(Outcome::Connected),
            Ok(Outcome::Refused),
            Err("container c is not running".to_owned()),
            Ok(Outcome::Silent),
            Ok(Outcome::Refused),
        ];
        let rows = rows(&Snapshot::default(), &cells, Some(&measured));
        let told: Vec<_> = rows.iter().map(|row| (row.agrees, row.finding.as_deref())).collect();
        let nobody = "pod shop/web declares 9090/TCP, nobody listens";
        assert_eq!(
            told,
            [
                (Some(true), None),
                (Some(true), Some(nobody)),
                (None, None),
                (Some(false), None),
                (Some(true), None)
            ]
        );
        assert_eq!(rows[2].not_measured.as_deref(), Some("container c is not running"));
    }

    #[test]
    fn a_service_that_refuses_is_a_difference_unless_its_backends_are_closed() {
        let service = Target::Service(weft_model::ServiceKey::new("shop", "web"));
        let cells = [cell("a", service, "10.96.0.7", 80, Reach::Connected)];
        let rows = rows(&Snapshot::default(), &cells, Some(&[Ok(Outcome::Refused)]));
        assert_eq!((rows[0].agrees, rows[0].finding.as_deref()), (Some(false), None));
    }

    #[test]
    fn replicas_share_their_workloads_name() {
        assert_eq!(workload("web-6d4cf56db6-x7k2p"), "web");
        assert_eq!(workload("db-0"), "db-0");
        assert_eq!(workload("client"), "client");
    }
}
