//! What may change in the spec of a running pod: images, deadlines, added tolerations, nothing else.
use serde_json::{Value, json};

use super::list::{Errors, items};
use crate::schema::FieldError;

const FORBIDDEN: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
    `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
    tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn check(old: &Value, new: &Value, errors: &mut Errors) {
    let count = |spec: &Value, list: &str| spec[list].as_array().map_or(0, Vec::len);
    for list in ["containers", "initContainers"] {
        if count(old, list) != count(new, list) {
            let detail = format!(
                "pod updates may not add or remove {}",
                if list == "containers" { "containers" } else { "initContainers" }
            );
            return errors.push(FieldError::forbidden(format!("spec.{list}"), detail));
        }
    }
    deadline(old, new, errors);
    tolerations(old, new, errors);
    let changed = fixed_part(old, new);
    if !changed.is_empty() {
        let detail = format!("{FORBIDDEN}\nchanged: {}", changed.join(", "));
        errors.push(FieldError::forbidden("spec", detail));
    }
}

fn deadline(old: &Value, new: &Value, errors: &mut Errors) {
    let at = "spec.activeDeadlineSeconds";
    let (before, now) = (&old["activeDeadlineSeconds"], &new["activeDeadlineSeconds"]);
    match (before.as_i64(), now.as_i64()) {
        (Some(before), Some(after)) if after > before => {
            let detail = format!("must be less than or equal to previous value {before}");
            errors.push(FieldError::invalid(at, now, detail));
        }
        (Some(_), None) => {
            errors.push(FieldError::invalid(at, now, "must not update from a positive integer to nil value"));
        }
        _ => {}
    }
}

fn tolerations(old: &Value, new: &Value, errors: &mut Errors) {
    let now: Vec<Value> = items(&new["tolerations"]).map(|(_, t)| without_seconds(t)).collect();
    let kept = items(&old["tolerations"]).all(|(_, t)| now.contains(&without_seconds(t)));
    if !kept {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(FieldError::forbidden("spec.tolerations", detail));
    }
}

fn without_seconds(toleration: &Value) -> Value {
    let mut copy = toleration.clone();
    copy.as_object_mut().map(|fields| fields.shift_remove("tolerationSeconds"));
    copy
}

/// Fields that differ and must not. Containers' images are taken out of the comparison.
fn fixed_part(old: &Value, new: &Value) -> Vec<String> {
    let (old, new) = (comparable(old), comparable(new));
    let empty = serde_json::Map::new();
    let (before, now) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let mut names: Vec<&String> = before.keys().chain(now.keys()).collect();
    names.sort();
    names.dedup();
    let unbound = before.get("nodeName").is_none_or(|n| n.is_null() || *n == "");
    names.retain(|name| before.get(*name) != now.get(*name) && !(*name == "nodeName" && unbound));
    names.into_iter().map(|name| format!("spec.{name}")).collect()
}

fn comparable(spec: &Value) -> Value {
    let mut copy = spec.clone();
    let Some(fields) = copy.as_object_mut() else { return copy };
    for name in [
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
        "ephemeralContainers",
        "schedulingGates",
    ] {
        fields.shift_remove(name);
    }
    for list in ["containers", "initContainers"] {
        for container in fields.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.insert("image".into(), json!(""));
                // The resize subresource changes these in place.
                container.shift_remove("resources");
            }
        }
    }
    copy
}
