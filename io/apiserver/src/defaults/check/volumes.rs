//! Checks of a pod's volumes and where its containers mount them.
use std::collections::HashSet;

use serde_json::{Value, json};

use super::list::*;
use crate::schema::FieldError;

/// Checks volumes and gives their names.
pub(super) fn check(volumes: &Value, at: &At, errors: &mut Errors) -> HashSet<String> {
    let mut names = HashSet::new();
    for (index, volume) in items(volumes) {
        let at = at.index(index);
        let name = text(volume, "name");
        if !name.is_empty() {
            label_1123(name, &at.field("name"), errors);
            if !names.insert(name.to_owned()) {
                errors.push(FieldError::duplicate(at.field("name"), &name.into()));
            }
        }
        let fields = volume.as_object().into_iter().flatten();
        let sources: Vec<&String> =
            fields.filter(|(k, v)| *k != "name" && !v.is_null()).map(|(k, _)| k).collect();
        if sources.is_empty() {
            errors.push(FieldError::required(&at, "must specify a volume type"));
        }
        for extra in sources.iter().skip(1) {
            errors.push(FieldError::forbidden(at.field(extra), "may not specify more than 1 volume type"));
        }
        source(volume, &at, errors);
    }
    names
}

fn source(volume: &Value, at: &At, errors: &mut Errors) {
    let needed = [
        ("configMap", "name"),
        ("secret", "secretName"),
        ("hostPath", "path"),
        ("persistentVolumeClaim", "claimName"),
    ];
    for (kind, field) in needed {
        if is_set(volume, kind) && text(&volume[kind], field).is_empty() {
            errors.push(FieldError::required(at.field(kind).field(field), ""));
        }
        let mode = &volume[kind]["defaultMode"];
        if mode.as_i64().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
            let detail = "must be a number between 0 and 0777 (octal), both inclusive";
            errors.push(FieldError::invalid(at.field(kind).field("defaultMode"), mode, detail));
        }
        for (index, item) in items(&volume[kind]["items"]) {
            relative_path(
                text(item, "path"),
                &at.field(kind).field("items").index(index).field("path"),
                errors,
            );
        }
    }
    let path = text(&volume["hostPath"], "path");
    if path.split('/').any(|step| step == "..") {
        let at = at.field("hostPath").field("path");
        errors.push(FieldError::invalid(at, &path.into(), "must not contain '..'"));
    }
}

fn relative_path(path: &str, at: &At, errors: &mut Errors) {
    if path.starts_with('/') {
        errors.push(FieldError::invalid(at, &path.into(), "must be a relative path"));
    }
    if path.split('/').any(|step| step == "..") {
        errors.push(FieldError::invalid(at, &path.into(), "must not contain '..'"));
    }
}

pub(super) fn mounts(mounts: &Value, at: &At, volumes: &HashSet<String>, errors: &mut Errors) {
    let mut paths = HashSet::new();
    for (index, mount) in items(mounts) {
        let at = at.index(index);
        let (name, path) = (text(mount, "name"), text(mount, "mountPath"));
        if !name.is_empty() && !volumes.contains(name) {
            errors.push(FieldError::not_found(at.field("name"), &name.into()));
        }
        if !path.is_empty() && !paths.insert(path) {
            errors.push(FieldError::invalid(at.field("mountPath"), &path.into(), "must be unique"));
        }
        for field in ["subPath", "subPathExpr"] {
            if !text(mount, field).is_empty() {
                relative_path(text(mount, field), &at.field(field), errors);
            }
        }
        if is_set(mount, "subPath") && is_set(mount, "subPathExpr") {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(
                at.field("subPathExpr"),
                &json!(text(mount, "subPathExpr")),
                detail,
            ));
        }
    }
}
