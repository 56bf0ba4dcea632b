//! Checks of the metadata every object has: names as its kind wants them, labels, annotations, owners, finalizers.
use serde_json::Value;

use super::list::{At, Errors, items, label_1035, label_1123, label_key, labels, subdomain, text};
use crate::kinds::Kind;
use crate::schema::{FieldError, formats};

const ANNOTATIONS_LIMIT: usize = 256 * 1024;

pub(super) fn check(kind: &Kind, object: &Value, errors: &mut Errors) {
    let metadata = &object["metadata"];
    let at = At::root().field("metadata");
    let name = text(metadata, "name");
    if name.is_empty() {
        errors.push(FieldError::required(at.field("name"), "name or generateName is required"));
    } else {
        check_name(kind, name, &at.field("name"), errors);
    }
    let namespace = text(metadata, "namespace");
    match (kind.namespaced, namespace.is_empty()) {
        (true, true) => errors.push(FieldError::required(at.field("namespace"), "")),
        (true, false) => label_1123(namespace, &at.field("namespace"), errors),
        (false, false) => {
            errors.push(FieldError::forbidden(at.field("namespace"), "not allowed on this type"));
        }
        (false, true) => {}
    }
    labels(&metadata["labels"], &at.field("labels"), errors);
    annotations(&metadata["annotations"], &at.field("annotations"), errors);
    owners(&metadata["ownerReferences"], &at.field("ownerReferences"), errors);
    for (index, finalizer) in items(&metadata["finalizers"]) {
        label_key(finalizer.as_str().unwrap_or_default(), &at.field("finalizers").index(index), errors);
    }
}

fn check_name(kind: &Kind, name: &str, at: &At, errors: &mut Errors) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Namespace") => label_1123(name, at, errors),
        ("", "Service") => label_1035(name, at, errors),
        ("rbac.authorization.k8s.io", _) => path_segment(name, at, errors),
        ("networking.k8s.io", "IPAddress") => super::list::ip(&name.into(), at, errors),
        ("batch", "CronJob") if name.len() > 52 => {
            errors.push(FieldError::invalid(at, &name.into(), "must be no more than 52 characters"));
        }
        _ => subdomain(name, at, errors),
    }
}

fn path_segment(name: &str, at: &At, errors: &mut Errors) {
    let mut wrong = |detail: String| errors.push(FieldError::invalid(at, &name.into(), detail));
    if name == "." || name == ".." {
        wrong(format!("may not be '{name}'"));
    }
    for forbidden in ['/', '%'].into_iter().filter(|c| name.contains(*c)) {
        wrong(format!("may not contain '{forbidden}'"));
    }
}

fn annotations(annotations: &Value, at: &At, errors: &mut Errors) {
    let mut total = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        label_key(&key.to_lowercase(), at, errors);
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_LIMIT {
        errors.push(FieldError::too_long(at, ANNOTATIONS_LIMIT));
    }
}

fn owners(references: &Value, at: &At, errors: &mut Errors) {
    let mut controllers = Vec::new();
    for (index, owner) in items(references) {
        let at = at.index(index);
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, field).is_empty() {
                errors.push(FieldError::invalid(
                    at.field(field),
                    &"".into(),
                    format!("{field} must not be empty"),
                ));
            }
        }
        if owner["controller"] == true {
            controllers.push(text(owner, "kind"));
        }
    }
    if let [first, second, ..] = controllers.as_slice() {
        let detail = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        errors.push(FieldError::invalid(at, references, detail));
    }
}

/// Name, namespace and identity stay; a deletion that began is not taken back.
pub(super) fn check_update(old: &Value, new: &Value, errors: &mut Errors) {
    let (old, new) = (&old["metadata"], &new["metadata"]);
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp"] {
        let given = new.get(field).filter(|value| !value.is_null());
        if let (Some(before), Some(now)) = (old.get(field), given)
            && before != now
        {
            errors.push(FieldError::invalid(format!("metadata.{field}"), now, "field is immutable"));
        }
    }
    if old.get("deletionTimestamp").is_some_and(|t| !t.is_null()) {
        let before: Vec<&Value> = items(&old["finalizers"]).map(|(_, f)| f).collect();
        let added: Vec<&str> = items(&new["finalizers"])
            .filter(|(_, f)| !before.contains(f))
            .filter_map(|(_, f)| f.as_str())
            .collect();
        if !added.is_empty() {
            let list = added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ");
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
}

/// Whether text may name a key of a ConfigMap or Secret.
pub(super) fn is_config_key(key: &str) -> bool {
    let inner = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    !key.is_empty() && key.len() <= 253 && key.bytes().all(inner) && key != "." && !key.starts_with("..")
}

/// Whether text is a host name with an optional `*.` in front.
pub(super) fn is_wildcard_host(host: &str) -> bool {
    formats::is_dns1123_subdomain(host.strip_prefix("*.").unwrap_or(host))
}
