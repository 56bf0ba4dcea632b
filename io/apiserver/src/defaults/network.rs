//! Defaults of network policies and ingress classes.
use serde_json::{Value, json};

use super::fields::{child, each, existing, fill_text, set};

pub(super) fn policy(object: &mut Value) {
    let spec = child(object, "spec");
    if !spec.is_object() {
        return;
    }
    child(spec, "podSelector");
    for direction in ["ingress", "egress"] {
        for rule in each(spec, direction) {
            each(rule, "ports").for_each(|port| fill_text(port, "protocol", "TCP"));
        }
    }
    let filled = |list: Option<&Value>| list.and_then(Value::as_array).is_some_and(|l| !l.is_empty());
    if !filled(spec.get("policyTypes")) {
        let egress = filled(spec.get("egress"));
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        set(spec, "policyTypes", types);
    }
}

pub(super) fn ingress_class(object: &mut Value) {
    if let Some(parameters) = existing(object, "spec").and_then(|spec| existing(spec, "parameters")) {
        fill_text(parameters, "scope", "Cluster");
    }
}
