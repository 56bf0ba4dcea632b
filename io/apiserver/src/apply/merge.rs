//! Merging an applied configuration into an object, and removing what its manager gave up.

use serde_json::{Map, Value};

use super::fields::{Element, FieldSet};
use crate::schema::{ListType, Schema};

/// `config` wins wherever it says anything; lists merge by their keys.
pub(crate) fn merge(schema: &Schema, live: &Value, config: &Value) -> Value {
    match (live, config) {
        (Value::Object(live), Value::Object(config)) if !schema.is_atomic_map() => {
            let mut merged = live.clone();
            for (name, value) in config {
                let value = match live.get(name) {
                    Some(before) => merge(&schema.field(name), before, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(config)) => Value::Array(merge_lists(schema, live, config)),
        (_, config) => config.clone(),
    }
}

fn merge_lists(schema: &Schema, live: &[Value], config: &[Value]) -> Vec<Value> {
    let mut merged = live.to_vec();
    match schema.list_type() {
        ListType::Atomic => return config.to_vec(),
        ListType::Set => {
            for value in config {
                if !merged.contains(value) {
                    merged.push(value.clone());
                }
            }
        }
        ListType::Map(keys) => {
            let key = |item: &Value| Element::key(schema, &keys, item);
            for value in config {
                let wanted = key(value);
                match merged.iter_mut().find(|item| key(item) == wanted) {
                    Some(item) => *item = merge(&schema.items(), item, value),
                    None => merged.push(value.clone()),
                }
            }
        }
    }
    merged
}

/// Removes the fields in `given_up` unless something at or below them is in `kept`.
pub(crate) fn prune(schema: &Schema, value: &mut Value, given_up: &FieldSet, kept: &FieldSet) {
    match value {
        Value::Object(map) => prune_map(schema, map, given_up, kept),
        Value::Array(items) => prune_list(schema, items, given_up, kept),
        _ => {}
    }
}

fn prune_map(schema: &Schema, map: &mut Map<String, Value>, given_up: &FieldSet, kept: &FieldSet) {
    let nothing = FieldSet::default();
    for (element, doomed) in &given_up.children {
        let Some(name) = element.field_name() else { continue };
        let kept = kept.children.get(element).unwrap_or(&nothing);
        let Some(value) = map.get_mut(name) else { continue };
        let was_empty = is_empty_container(value);
        if !(doomed.owned && kept.is_empty()) {
            prune(&schema.field(name), value, doomed, kept);
            let emptied = !was_empty && is_empty_container(value) && kept.is_empty();
            if !emptied {
                continue;
            }
        }
        map.remove(name);
    }
}

fn prune_list(schema: &Schema, items: &mut Vec<Value>, given_up: &FieldSet, kept: &FieldSet) {
    let nothing = FieldSet::default();
    let element: Box<dyn Fn(&Value) -> Element> = match schema.list_type() {
        ListType::Atomic => return,
        ListType::Set => Box::new(Element::value),
        ListType::Map(keys) => {
            let schema = schema.clone();
            Box::new(move |item: &Value| Element::key(&schema, &keys, item))
        }
    };
    items.retain_mut(|item| {
        let element = element(item);
        let Some(doomed) = given_up.children.get(&element) else { return true };
        let kept = kept.children.get(&element).unwrap_or(&nothing);
        if doomed.owned && kept.is_empty() {
            return false;
        }
        prune(&schema.items(), item, doomed, kept);
        true
    });
}

fn is_empty_container(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
