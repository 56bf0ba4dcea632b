//! Runs tests/scripts/*.txt: objects in, tables out, in one file, whatever the order in which the objects come.
//!
//! A script is a list of sections, each begun by a line `-- NAME --`:
//!   include FILE    the objects of another file of the directory
//!   apply           objects to create or replace (YAML)
//!   delete          objects to delete: KIND NAMESPACE/NAME, one in a line
//!   plan NODE [TABLE...], matrix [FROM], why SOURCE DESTINATION, name POD NAME, check    expected text
//! `WEFT_UPDATE=1` writes what was found in place of what was expected.

mod apps;
#[path = "../support/manifests.rs"]
mod manifests;
#[path = "../../../../tests/skip.rs"]
mod skip;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use weft_decide::explain::{Question, why, why_name};
use weft_decide::matrix;
use weft_model::testing::Cluster;
use weft_model::{ClusterSettings, Finding, NodeName, PodKey, Snapshot};

struct Section {
    title: String,
    body: String,
}

impl Section {
    fn verb(&self) -> &str {
        self.title.split(' ').next().unwrap_or_default()
    }

    fn words(&self) -> Vec<&str> {
        self.title.split(' ').skip(1).collect()
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scripts")
}

fn sections(text: &str) -> (String, Vec<Section>) {
    let mut head = String::new();
    let mut sections: Vec<Section> = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --")) {
            Some(title) => sections.push(Section { title: title.to_owned(), body: String::new() }),
            None => {
                let part = sections.last_mut().map_or(&mut head, |section| &mut section.body);
                part.push_str(line);
                part.push('\n');
            }
        }
    }
    (head, sections)
}

/// One change to the cluster.
#[derive(Clone)]
enum Event {
    Apply(Value),
    Delete { kind: String, namespace: String, name: String },
}

fn events(sections: &[Section]) -> Vec<Event> {
    let mut events = Vec::new();
    for section in sections {
        match section.verb() {
            "include" => {
                let path = directory().join(section.words()[0]);
                let text =
                    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                events.extend(manifests::documents(&text).into_iter().map(Event::Apply));
            }
            "apply" => events.extend(manifests::documents(&section.body).into_iter().map(Event::Apply)),
            "delete" => events.extend(section.body.lines().filter(|line| !line.is_empty()).map(|line| {
                let (kind, rest) = line.split_once(' ').expect("KIND NAMESPACE/NAME");
                let (namespace, name) = rest.split_once('/').expect("NAMESPACE/NAME");
                Event::Delete { kind: kind.into(), namespace: namespace.into(), name: name.into() }
            })),
            _ => {}
        }
    }
    events
}

/// The objects that are there in the end, in the order of their last change.
fn outcome(events: &[Event]) -> Vec<Value> {
    let mut objects: Vec<Value> = Vec::new();
    for event in events {
        let gone = match event {
            Event::Apply(object) => manifests::identity(object),
            Event::Delete { kind, namespace, name } => (kind.clone(), namespace.clone(), name.clone()),
        };
        objects.retain(|object| manifests::identity(object) != gone);
        if let Event::Apply(object) = event {
            objects.push(object.clone());
        }
    }
    objects
}

fn cluster(objects: &[Value]) -> Cluster {
    let list = |text: &str| vec![text.parse().expect("a prefix")];
    let settings = ClusterSettings {
        pod_cidrs: list("10.244.0.0/16"),
        service_cidrs: list("10.96.0.0/16"),
        node_cidrs: list("172.30.0.0/24"),
        dns_addresses: vec!["10.96.0.10".parse().expect("an address")],
        ..ClusterSettings::default()
    };
    Cluster { settings, ..manifests::cluster(objects) }
}

/// The answer to a section, or nothing if it is no question.
fn answer(section: &Section, cluster: &Cluster) -> Option<String> {
    let snapshot = cluster.snapshot();
    let words = section.words();
    match section.verb() {
        "plan" => Some(plan(cluster, words[0], &words[1..])),
        "matrix" => Some(cells(&snapshot, words.first().copied())),
        "check" => {
            let mut findings = cluster.parse().1;
            findings.extend(weft_compile::check(&snapshot));
            Some(lines(findings.iter().map(Finding::to_string)))
        }
        "why" => {
            Some(match Question::parse(&snapshot, words[0], words[1]).and_then(|q| why(&snapshot, &q)) {
                Ok(explanation) => explanation.to_string(),
                Err(error) => format!("error: {error}\n"),
            })
        }
        "name" => Some(match why_name(&snapshot, &pod_key(words[0]), words[1]) {
            Ok(story) => story.to_string(),
            Err(error) => format!("error: {error}\n"),
        }),
        "include" | "apply" | "delete" => None,
        other => panic!("{other} is no section"),
    }
}

fn pod_key(text: &str) -> PodKey {
    let (namespace, name) = text.split_once('/').expect("NAMESPACE/NAME");
    PodKey::new(namespace, name)
}

fn plan(cluster: &Cluster, node: &str, wanted: &[&str]) -> String {
    let node = NodeName::new(node);
    let plan = weft_compile::compile(&cluster.snapshot_on(&node), &node).plan;
    let mut text = String::new();
    for (title, table) in plan.tables() {
        if wanted.is_empty() || wanted.contains(&title) {
            writeln!(text, "{title}\n{table}").expect("writing to a string");
        }
    }
    text
}

fn cells(snapshot: &Snapshot, from: Option<&str>) -> String {
    let cells = matrix(snapshot);
    let wanted = cells.iter().filter(|cell| from.is_none_or(|from| cell.from.to_string() == from));
    lines(wanted.map(ToString::to_string))
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.map(|line| line + "\n").collect()
}

/// Every way to come to the same objects.
fn variants(events: &[Event]) -> Vec<(&'static str, Cluster)> {
    let last = outcome(events);
    let reversed: Vec<Value> = last.iter().rev().cloned().collect();
    let repeated: Vec<Value> = last.iter().chain(&last).cloned().collect();
    let mut split = Vec::new();
    for end in 1..=events.len() {
        split = outcome(&events[..end]);
        let partial = cluster(&split);
        for node in partial.node_names() {
            weft_compile::compile(&partial.snapshot_on(&node), &node);
        }
    }
    vec![
        ("in order", cluster(&last)),
        ("reversed", cluster(&reversed)),
        ("repeated", cluster(&repeated)),
        ("one by one", cluster(&split)),
    ]
}

fn run(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let (head, mut sections) = sections(&text);
    let update = std::env::var_os("WEFT_UPDATE").is_some();
    let mut differences = String::new();
    for place in 0..sections.len() {
        let events = events(&sections[..place]);
        for (how, cluster) in variants(&events) {
            let Some(found) = answer(&sections[place], &cluster) else { break };
            let found = found.trim_end().to_owned() + "\n";
            if update && how == "in order" {
                sections[place].body = found.clone() + "\n";
            }
            let expected = sections[place].body.trim_end().to_owned() + "\n";
            if found != expected {
                let title = &sections[place].title;
                let _ =
                    writeln!(differences, "[{title}], {how}:\n--- expected\n{expected}--- found\n{found}");
            }
        }
    }
    if update {
        let body = sections.iter().map(|section| format!("-- {} --\n{}", section.title, section.body));
        let text = head + &body.collect::<String>();
        std::fs::write(path, text.trim_end().to_owned() + "\n").map_err(|error| error.to_string())?;
    }
    if differences.is_empty() { Ok(()) } else { Err(differences) }
}

#[test]
fn scripts_give_their_tables() {
    let entries = std::fs::read_dir(directory()).expect("tests/scripts is there");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("a directory entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.sort();
    assert!(!paths.is_empty(), "no scripts");
    let failures: Vec<String> = paths
        .iter()
        .filter_map(|path| run(path).err().map(|error| format!("{}: {error}", path.display())))
        .collect();
    assert!(failures.is_empty(), "{}\nWEFT_UPDATE=1 accepts what was found", failures.join("\n"));
}
