//! Rows of nodes, namespaces, events and volumes.
use jiff::Timestamp;
use serde_json::Value;

use super::cells::{age, condition, items, join, name, or_none, plain, text};
use super::{Column, Layout, age as ages, column, wide};

pub(super) fn layout(kind: &str) -> Option<Layout> {
    Some(match kind {
        "Node" => NODE,
        "Namespace" => NAMESPACE,
        "Event" => EVENT,
        "PersistentVolume" => VOLUME,
        "PersistentVolumeClaim" => CLAIM,
        _ => return None,
    })
}

const NODE: Layout = Layout {
    columns: &[
        column("Name"),
        column("Status"),
        column("Roles"),
        column("Age"),
        column("Version"),
        wide("Internal-IP"),
        wide("External-IP"),
        wide("OS-Image"),
        wide("Kernel-Version"),
        wide("Container-Runtime"),
    ],
    row: |o, now| {
        let info = &o["status"]["nodeInfo"];
        let unknown = |field: &str| {
            Value::from(match text(info, field) {
                "" => "<unknown>",
                known => known,
            })
        };
        vec![
            name(o),
            Value::from(node_status(o)),
            or_none(&roles(o)),
            age(o, now),
            Value::from(text(info, "kubeletVersion")),
            or_none(node_address(o, "InternalIP")),
            or_none(node_address(o, "ExternalIP")),
            unknown("osImage"),
            unknown("kernelVersion"),
            unknown("containerRuntimeVersion"),
        ]
    },
};

fn node_status(node: &Value) -> String {
    let ready = match condition(node, "Ready").map(|c| text(c, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let cordoned = if node["spec"]["unschedulable"] == true { ",SchedulingDisabled" } else { "" };
    format!("{ready}{cordoned}")
}

fn roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.join(",")
}

fn node_address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let found = items(&node["status"]["addresses"]).find(|address| address["type"] == kind);
    found.map_or("", |address| text(address, "address"))
}

const NAMESPACE: Layout = Layout {
    columns: &[column("Name"), column("Status"), column("Age")],
    row: |o, now| vec![name(o), Value::from(text(&o["status"], "phase")), age(o, now)],
};

const EVENT_COLUMNS: &[Column] = &[
    column("Last Seen"),
    column("Type"),
    column("Reason"),
    column("Object"),
    wide("Subobject"),
    wide("Source"),
    column("Message"),
    wide("First Seen"),
    Column { name: "Count", kind: "integer", priority: 1 },
    Column { name: "Name", kind: "string", priority: 1 },
];

const EVENT: Layout = Layout {
    columns: EVENT_COLUMNS,
    row: |o, now| {
        event(
            o,
            now,
            &o["involvedObject"],
            &o["source"],
            text(o, "message"),
            ["firstTimestamp", "lastTimestamp", "count"],
        )
    },
};

/// The same events in the events.k8s.io group, where fields have other names.
pub(super) const EVENTS_GROUP: Layout = Layout {
    columns: EVENT_COLUMNS,
    row: |o, now| {
        let times = ["deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount"];
        event(o, now, &o["regarding"], &o["deprecatedSource"], text(o, "note"), times)
    },
};

fn event(
    event: &Value,
    now: Timestamp,
    object: &Value,
    source: &Value,
    message: &str,
    [first, last, count]: [&str; 3],
) -> Vec<Value> {
    let when = |candidates: &[&Value]| {
        let time = candidates.iter().find(|time| time.is_string());
        Value::from(time.map_or_else(|| "<unknown>".to_owned(), |time| ages::since(time, now)))
    };
    let target = format!("{}/{}", text(object, "kind").to_lowercase(), text(object, "name"));
    let seen = event["series"]["count"].as_i64().or(event[count].as_i64()).unwrap_or(1);
    vec![
        when(&[&event["series"]["lastObservedTime"], &event[last], &event["eventTime"], &event[first]]),
        Value::from(text(event, "type")),
        Value::from(text(event, "reason")),
        Value::from(target),
        Value::from(text(object, "fieldPath")),
        Value::from(event_source(event, source)),
        Value::from(message.trim()),
        when(&[&event[first], &event["eventTime"]]),
        Value::from(seen),
        name(event),
    ]
}

fn event_source(event: &Value, source: &Value) -> String {
    let component =
        [text(source, "component"), text(event, "reportingComponent"), text(event, "reportingController")]
            .into_iter()
            .find(|c| !c.is_empty())
            .unwrap_or_default();
    let host = [text(source, "host"), text(event, "reportingInstance")].into_iter().find(|h| !h.is_empty());
    match host {
        Some(host) => format!("{component}, {host}"),
        None => component.to_owned(),
    }
}

fn access_modes(modes: &Value) -> String {
    join(items(modes).map(|mode| match mode.as_str() {
        Some("ReadWriteOnce") => "RWO",
        Some("ReadOnlyMany") => "ROX",
        Some("ReadWriteMany") => "RWX",
        Some("ReadWriteOncePod") => "RWOP",
        _ => "",
    }))
}

fn state(object: &Value) -> Value {
    let deleted = object["metadata"].get("deletionTimestamp").is_some();
    Value::from(if deleted { "Terminating" } else { text(&object["status"], "phase") })
}

fn unset(text: &str) -> Value {
    Value::from(if text.is_empty() { "<unset>" } else { text })
}

const VOLUME: Layout = Layout {
    columns: &[
        column("Name"),
        column("Capacity"),
        column("Access Modes"),
        column("Reclaim Policy"),
        column("Status"),
        column("Claim"),
        column("StorageClass"),
        column("VolumeAttributesClass"),
        column("Reason"),
        column("Age"),
        wide("VolumeMode"),
    ],
    row: |o, now| {
        let (spec, claim) = (&o["spec"], &o["spec"]["claimRef"]);
        let claim = if claim.is_null() {
            String::new()
        } else {
            format!("{}/{}", text(claim, "namespace"), text(claim, "name"))
        };
        vec![
            name(o),
            Value::from(text(&spec["capacity"], "storage")),
            Value::from(access_modes(&spec["accessModes"])),
            Value::from(text(spec, "persistentVolumeReclaimPolicy")),
            state(o),
            Value::from(claim),
            Value::from(text(spec, "storageClassName")),
            unset(text(spec, "volumeAttributesClassName")),
            Value::from(text(&o["status"], "reason")),
            age(o, now),
            unset(text(spec, "volumeMode")),
        ]
    },
};

const CLAIM: Layout = Layout {
    columns: &[
        column("Name"),
        column("Status"),
        column("Volume"),
        column("Capacity"),
        column("Access Modes"),
        column("StorageClass"),
        column("VolumeAttributesClass"),
        column("Age"),
        wide("VolumeMode"),
    ],
    row: |o, now| {
        let (spec, status) = (&o["spec"], &o["status"]);
        let bound = !text(spec, "volumeName").is_empty();
        let capacity = if bound { plain(&status["capacity"]["storage"]) } else { String::new() };
        vec![
            name(o),
            state(o),
            Value::from(text(spec, "volumeName")),
            Value::from(if capacity == "null" { String::new() } else { capacity }),
            Value::from(if bound { access_modes(&status["accessModes"]) } else { String::new() }),
            Value::from(text(spec, "storageClassName")),
            unset(text(spec, "volumeAttributesClassName")),
            age(o, now),
            unset(text(spec, "volumeMode")),
        ]
    },
};
