//! The same object in another version or group: events, autoscalers and versions of custom kinds.
use serde_json::{Map, Value, json};

use super::Kind;

/// Rewrites an object of one kind as another kind of the same resource.
pub fn convert(from: &Kind, to: &Kind, object: Value) -> Value {
    let mut object =
        match (from.group.as_str(), from.version.as_str(), to.group.as_str(), to.version.as_str()) {
            ("", "v1", "events.k8s.io", "v1") => rename(object, &EVENT_FIELDS),
            ("events.k8s.io", "v1", "", "v1") => rename(object, &EVENT_FIELDS.map(|(a, b)| (b, a))),
            ("autoscaling", "v2", "autoscaling", "v1") => autoscaler_to_v1(object),
            ("autoscaling", "v1", "autoscaling", "v2") => autoscaler_to_v2(object),
            _ => object,
        };
    if let Value::Object(fields) = &mut object {
        fields.insert("apiVersion".into(), Value::String(to.api_version()));
        fields.insert("kind".into(), Value::String(to.kind.clone()));
        let unknown: Vec<String> = match to.is_custom() && from.version != to.version {
            true => {
                let schema = crate::schema::root(to);
                fields.keys().filter(|name| schema.find_field(name).is_none()).cloned().collect()
            }
            false => Vec::new(),
        };
        fields.retain(|name, _| !unknown.contains(name));
    }
    object
}

/// Core field and its name in events.k8s.io.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(object: Value, fields: &[(&str, &str)]) -> Value {
    let Value::Object(object) = object else { return object };
    let new_name = |name: String| match fields.iter().find(|(old, _)| *old == name) {
        Some((_, new)) => (*new).to_owned(),
        None => name,
    };
    Value::Object(object.into_iter().map(|(name, value)| (new_name(name), value)).collect())
}

const OTHER_METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";

fn autoscaler_to_v1(mut object: Value) -> Value {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return object };
    spec.shift_remove("behavior");
    let metrics = match spec.shift_remove("metrics") {
        Some(Value::Array(metrics)) => metrics,
        _ => return object,
    };
    let (cpu, other): (Vec<Value>, Vec<Value>) = metrics.into_iter().partition(is_cpu_utilization);
    if let Some(target) = cpu.first().map(|m| m["resource"]["target"]["averageUtilization"].clone()) {
        spec.insert("targetCPUUtilizationPercentage".into(), target);
    }
    if !other.is_empty() {
        annotate(&mut object, OTHER_METRICS, Value::Array(other).to_string());
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.shift_remove("conditions");
        status.shift_remove("currentMetrics");
        status.entry("currentReplicas").or_insert(json!(0));
        status.entry("desiredReplicas").or_insert(json!(0));
    }
    object
}

fn is_cpu_utilization(metric: &Value) -> bool {
    metric["type"] == "Resource"
        && metric["resource"]["name"] == "cpu"
        && metric["resource"]["target"]["type"] == "Utilization"
}

fn autoscaler_to_v2(mut object: Value) -> Value {
    let annotations = object.get_mut("metadata").and_then(|m| m.get_mut("annotations"));
    let other = annotations.and_then(Value::as_object_mut).and_then(|a| a.shift_remove(OTHER_METRICS));
    let mut metrics: Vec<Value> = other
        .as_ref()
        .and_then(Value::as_str)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        if let Some(target) = spec.shift_remove("targetCPUUtilizationPercentage") {
            let target = json!({"type": "Utilization", "averageUtilization": target});
            metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        if metrics.is_empty() {
            // What version 2 means by no metrics at all.
            let target = json!({"type": "Utilization", "averageUtilization": 80});
            metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
        }
        spec.insert("metrics".into(), Value::Array(metrics));
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.shift_remove("currentCPUUtilizationPercentage");
        status.entry("currentMetrics").or_insert(Value::Null);
    }
    object
}

fn annotate(object: &mut Value, key: &str, value: String) {
    let metadata = object.as_object_mut().map(|o| o.entry("metadata").or_insert_with(|| json!({})));
    let annotations = metadata
        .and_then(Value::as_object_mut)
        .map(|m| m.entry("annotations").or_insert_with(|| Value::Object(Map::new())));
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        annotations.insert(key.into(), Value::String(value));
    }
}
