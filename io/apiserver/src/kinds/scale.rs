//! The `/scale` subresource: an autoscaling/v1 Scale out of an object, and its replicas back into one.
use serde_json::{Map, Value, json};

use super::Kind;
use crate::schema::FieldError;

/// The Scale of an object; None when its kind has none.
pub fn read(kind: &Kind, object: &Value) -> Option<Value> {
    let paths = kind.scale.as_ref()?;
    let replicas = at(object, &paths.spec).and_then(Value::as_i64).unwrap_or(0);
    let current = at(object, &paths.status).and_then(Value::as_i64).unwrap_or(0);
    let mut status = json!({ "replicas": current });
    let selector = match &paths.selector {
        Some(path) => at(object, path).and_then(Value::as_str).map(str::to_owned),
        None if kind.is_custom() => None,
        None => Some(selector_text(&object["spec"]["selector"])),
    };
    if let Some(selector) = selector.filter(|s| !s.is_empty()) {
        status["selector"] = Value::String(selector);
    }
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    Some(json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": replicas},
        "status": status,
    }))
}

/// Sets an object's replicas to those of a Scale.
pub fn write(kind: &Kind, object: &mut Value, scale: &Value) -> Result<(), Vec<FieldError>> {
    let Some(paths) = &kind.scale else {
        return Err(vec![FieldError::forbidden("", format!("{} has no scale", kind.group_resource()))]);
    };
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        value => match value.as_i64() {
            Some(count) if (0..=i64::from(i32::MAX)).contains(&count) => count,
            Some(_) => {
                let detail = "must be greater than or equal to 0";
                return Err(vec![FieldError::invalid("spec.replicas", value, detail)]);
            }
            None => return Err(vec![FieldError::type_invalid("spec.replicas", value, "must be an integer")]),
        },
    };
    let mut position = object;
    for step in steps(&paths.spec) {
        if !position.is_object() {
            *position = json!({});
        }
        let Some(fields) = position.as_object_mut() else { return Ok(()) };
        position = fields.entry(step).or_insert(Value::Null);
    }
    *position = Value::from(replicas);
    Ok(())
}

fn steps(path: &str) -> impl Iterator<Item = &str> {
    path.split('.').filter(|step| !step.is_empty())
}

fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    steps(path).try_fold(object, |value, step| value.get(step))
}

/// A label selector in the form query parameters take: `a=b,c in (d,e),!f`.
pub fn selector_text(selector: &Value) -> String {
    let Some(fields) = selector.as_object() else { return String::new() };
    let structured = fields.contains_key("matchLabels") || fields.contains_key("matchExpressions");
    let labels = if structured { fields.get("matchLabels").and_then(Value::as_object) } else { Some(fields) };
    let mut parts: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    parts.sort();
    for expression in fields.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let values = values.join(",");
        parts.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({values})"),
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}
