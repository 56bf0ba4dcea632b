//! Defaults that a custom kind's schema declares. Built-in kinds have theirs in `defaults`.
use serde_json::{Map, Value};

use super::model::{Additional, Schema};

/// Fills in declared defaults and drops nulls where the schema allows none.
pub fn fill_defaults(schema: &Schema, value: &mut Value) {
    match value {
        Value::Object(fields) => fill_object(schema, fields),
        Value::Array(items) => {
            let schema = schema.items();
            items.iter_mut().for_each(|item| fill_defaults(&schema, item));
        }
        _ => {}
    }
}

fn fill_object(schema: &Schema, fields: &mut Map<String, Value>) {
    let node = schema.node();
    for (name, property) in &node.properties {
        let missing = fields.get(name).is_none_or(|value| value.is_null() && !property.0.nullable);
        match property.default_value() {
            Some(default) if missing => drop(fields.insert(name.clone(), default)),
            None if missing => drop(fields.shift_remove(name)),
            _ => {}
        }
        if let Some(value) = fields.get_mut(name) {
            fill_defaults(property, value);
        }
    }
    if let Additional::Each(each) = &node.additional {
        let others = fields.iter_mut().filter(|(name, _)| !node.properties.contains_key(*name));
        others.for_each(|(_, value)| fill_defaults(each, value));
    }
}
