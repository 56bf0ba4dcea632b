//! Objects for the controllers' tests, written as the JSON they differ by.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub fn now() -> Timestamp {
    "2026-02-03T04:05:06Z".parse().expect("a literal time")
}

pub fn parse<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a literal object")
}

/// A pod in namespace `shop`, with labels `a=b,c=d` and an owner as (kind, name, uid); `more` is merged in.
pub fn pod(name: &str, labels: &str, owner: Option<(&str, &str, &str)>, more: Value) -> Arc<Pod> {
    let labels: serde_json::Map<String, Value> = labels
        .split(',')
        .filter_map(|label| label.split_once('='))
        .map(|(key, value)| (key.to_owned(), json!(value)))
        .collect();
    let owners: Vec<Value> = owner
        .into_iter()
        .map(|(kind, name, uid)| {
            json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": uid, "controller": true})
        })
        .collect();
    let mut object = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": labels,
            "ownerReferences": owners, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": []},
    });
    merge(&mut object, more);
    Arc::new(parse(object))
}

/// A merge patch as RFC 7386 has it.
pub fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(json!({})), value);
                }
            }
        }
        (into, patch) => *into = patch,
    }
}
