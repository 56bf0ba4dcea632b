//! Rows of pods: how many containers are ready and the one word that says how the pod is.
use jiff::Timestamp;
use serde_json::{Value, json};

use super::cells::{NONE, age, is_true, items, name, or_none, text};
use super::{Column, Layout, column, wide};

pub(super) fn layout(kind: &str) -> Option<Layout> {
    (kind == "Pod").then_some(Layout { columns: COLUMNS, row })
}

const COLUMNS: &[Column] = &[
    column("Name"),
    column("Ready"),
    column("Status"),
    column("Restarts"),
    column("Age"),
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let first_ip = text(&pod["status"]["podIPs"][0], "ip");
    let ip = if first_ip.is_empty() { text(&pod["status"], "podIP") } else { first_ip };
    vec![
        name(pod),
        Value::from(format!("{}/{}", summary.ready, summary.total)),
        Value::from(summary.status),
        restarts(summary.restarts, summary.last_restart, now),
        age(pod, now),
        or_none(ip),
        or_none(text(&pod["spec"], "nodeName")),
        or_none(text(&pod["status"], "nominatedNodeName")),
        readiness_gates(pod),
    ]
}

fn restarts(count: i64, last: Option<Timestamp>, now: Timestamp) -> Value {
    match last.filter(|_| count > 0) {
        Some(last) => {
            let ago = super::age::seconds(now.as_second() - last.as_second());
            Value::from(format!("{count} ({ago} ago)"))
        }
        None => Value::from(count.to_string()),
    }
}

fn readiness_gates(pod: &Value) -> Value {
    let gates: Vec<&str> = items(&pod["spec"]["readinessGates"]).map(|g| text(g, "conditionType")).collect();
    if gates.is_empty() {
        return json!(NONE);
    }
    let passed = gates.iter().filter(|gate| is_true(pod, gate)).count();
    Value::from(format!("{passed}/{}", gates.len()))
}

#[derive(Default)]
struct Summary {
    status: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn count_restarts(&mut self, container: &Value) {
        self.restarts += container["restartCount"].as_i64().unwrap_or(0);
        let finished = super::age::parse(&container["lastState"]["terminated"]["finishedAt"]);
        self.last_restart = self.last_restart.max(finished);
    }
}

fn summarize(pod: &Value) -> Summary {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let reason = [text(status, "reason"), text(status, "phase")].into_iter().find(|t| !t.is_empty());
    let mut summary = Summary {
        status: reason.unwrap_or("Unknown").to_owned(),
        total: items(&spec["containers"]).count()
            + items(&spec["initContainers"]).filter(|c| is_sidecar(c)).count(),
        ..Summary::default()
    };
    let gated =
        super::cells::condition(pod, "PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated");
    if gated {
        summary.status = "SchedulingGated".to_owned();
    }
    let initializing = init_containers(pod, &mut summary);
    if !initializing || is_true(pod, "Initialized") {
        containers(pod, &mut summary);
    }
    let deleted = pod["metadata"].get("deletionTimestamp").is_some_and(|t| !t.is_null());
    if deleted && text(status, "reason") == "NodeLost" {
        summary.status = "Unknown".to_owned();
    } else if deleted && !matches!(text(status, "phase"), "Succeeded" | "Failed") {
        summary.status = "Terminating".to_owned();
    }
    summary
}

fn is_sidecar(container: &Value) -> bool {
    text(container, "restartPolicy") == "Always"
}

/// Whether the pod still initializes; its status then says how far it is.
fn init_containers(pod: &Value, summary: &mut Summary) -> bool {
    let specs: Vec<&Value> = items(&pod["spec"]["initContainers"]).collect();
    let sidecar = |status: &Value| specs.iter().any(|c| is_sidecar(c) && c["name"] == status["name"]);
    for (index, container) in items(&pod["status"]["initContainerStatuses"]).enumerate() {
        summary.count_restarts(container);
        let (terminated, waiting) = (&container["state"]["terminated"], &container["state"]["waiting"]);
        if terminated["exitCode"] == 0 {
            continue;
        }
        if sidecar(container) && container["started"] == true {
            summary.ready += usize::from(container["ready"] == true);
            continue;
        }
        summary.status = if !terminated.is_null() {
            format!("Init:{}", ended(terminated))
        } else if !matches!(text(waiting, "reason"), "" | "PodInitializing") {
            format!("Init:{}", text(waiting, "reason"))
        } else {
            format!("Init:{index}/{}", specs.len())
        };
        return true;
    }
    false
}

fn ended(terminated: &Value) -> String {
    match (text(terminated, "reason"), terminated["signal"].as_i64().unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"]),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn containers(pod: &Value, summary: &mut Summary) {
    let sidecars: Vec<&str> =
        items(&pod["spec"]["initContainers"]).filter(|c| is_sidecar(c)).map(|c| text(c, "name")).collect();
    summary.restarts = 0;
    summary.last_restart = None;
    for status in items(&pod["status"]["initContainerStatuses"]) {
        if sidecars.contains(&text(status, "name")) {
            summary.count_restarts(status);
        }
    }
    let mut any_running = false;
    for container in items(&pod["status"]["containerStatuses"]).rev() {
        summary.count_restarts(container);
        let state = &container["state"];
        if !text(&state["waiting"], "reason").is_empty() {
            summary.status = text(&state["waiting"], "reason").to_owned();
        } else if !state["terminated"].is_null() {
            summary.status = ended(&state["terminated"]);
        } else if container["ready"] == true && !state["running"].is_null() {
            any_running = true;
            summary.ready += 1;
        }
    }
    if summary.status == "Completed" && any_running {
        summary.status = if is_true(pod, "Ready") { "Running" } else { "NotReady" }.to_owned();
    }
}
