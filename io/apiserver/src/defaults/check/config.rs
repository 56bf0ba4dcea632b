//! Checks of the remaining kinds: nodes, configuration, storage, access control, autoscalers, leases, definitions.
use serde_json::Value;

use super::list::*;
use super::metadata::is_config_key;
use super::workload::amount;
use crate::kinds::Kind;
use crate::schema::FieldError;
use crate::schema::quantity::Quantity;

const DATA_LIMIT: usize = 1024 * 1024;

pub(super) fn node(spec: &Value, at: &At, errors: &mut Errors) {
    let mut families = [0, 0];
    for (index, range) in items(&spec["podCIDRs"]) {
        if cidr(range, &at.field("podCIDRs").index(index), errors) {
            families[usize::from(range.as_str().is_some_and(|r| r.contains(':')))] += 1;
        }
    }
    if families.iter().any(|count| *count > 1) {
        let detail = "may specify no more than one CIDR for each IP family";
        errors.push(FieldError::invalid(at.field("podCIDRs"), &spec["podCIDRs"], detail));
    }
    for (index, taint) in items(&spec["taints"]) {
        let at = at.field("taints").index(index);
        label_key(text(taint, "key"), &at.field("key"), errors);
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        one_of(&taint["effect"], &effects, &at.field("effect"), errors);
    }
}

pub(super) fn node_update(old: &Value, new: &Value, errors: &mut Errors) {
    let given = old["podCIDRs"].as_array().is_some_and(|list| !list.is_empty());
    if given && old["podCIDRs"] != new["podCIDRs"] {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.podCIDRs", detail));
    }
    let provider = text(old, "providerID");
    if !provider.is_empty() && provider != text(new, "providerID") {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden("spec.providerID", detail));
    }
}

pub(super) fn config_map(object: &Value, errors: &mut Errors) {
    let mut total = 0;
    for field in ["data", "binaryData"] {
        total += config_keys(&object[field], field, errors);
    }
    for key in object["binaryData"].as_object().into_iter().flatten().map(|(key, _)| key) {
        if object["data"].get(key).is_some() {
            let detail = "duplicate of key present in data";
            errors.push(FieldError::invalid(format!("binaryData[{key}]"), &key.as_str().into(), detail));
        }
    }
    if total > DATA_LIMIT {
        errors.push(FieldError::too_long("", DATA_LIMIT));
    }
}

/// Checks the keys and gives the size of the values.
fn config_keys(data: &Value, field: &str, errors: &mut Errors) -> usize {
    let mut total = 0;
    for (key, value) in data.as_object().into_iter().flatten() {
        total += value.as_str().map_or(0, str::len);
        if !is_config_key(key) {
            let detail = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
                          'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
                          '[-._a-zA-Z0-9]+')";
            errors.push(FieldError::invalid(format!("{field}[{key}]"), &key.as_str().into(), detail));
        }
    }
    total
}

pub(super) fn secret(object: &Value, errors: &mut Errors) {
    if config_keys(&object["data"], "data", errors) > DATA_LIMIT {
        errors.push(FieldError::too_long("data", DATA_LIMIT));
    }
    let needed: &[&str] = match text(object, "type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed.iter().filter(|key| object["data"].get(**key).is_none()) {
        errors.push(FieldError::required(format!("data[{key}]"), ""));
    }
    let account = &object["metadata"]["annotations"]["kubernetes.io/service-account.name"];
    if text(object, "type") == "kubernetes.io/service-account-token" && account.is_null() {
        let at = "metadata.annotations[kubernetes.io/service-account.name]";
        errors.push(FieldError::required(at, ""));
    }
}

pub(super) fn storage(kind: &Kind, object: &Value, errors: &mut Errors) {
    let (spec, at) = (&object["spec"], At::root().field("spec"));
    if spec["accessModes"].as_array().is_none_or(Vec::is_empty) {
        errors.push(FieldError::required(at.field("accessModes"), "at least 1 access mode is required"));
    }
    let modes = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
    for (index, mode) in items(&spec["accessModes"]) {
        one_of(mode, &modes, &at.field("accessModes").index(index), errors);
    }
    let (amount, at) = match kind.kind.as_str() {
        "PersistentVolume" => (&spec["capacity"]["storage"], at.field("capacity")),
        _ => (&spec["resources"]["requests"]["storage"], at.field("resources").key("storage")),
    };
    match Quantity::from_value(amount) {
        None => errors.push(FieldError::required(at, "")),
        Some(quantity) if quantity.nanos() <= 0 => {
            errors.push(FieldError::invalid(at, amount, "must be greater than zero"));
        }
        Some(_) => {}
    }
}

pub(super) fn disruption_budget(spec: &Value, at: &At, errors: &mut Errors) {
    if is_set(spec, "minAvailable") && is_set(spec, "maxUnavailable") {
        let detail = "minAvailable and maxUnavailable cannot be both set";
        errors.push(FieldError::invalid(at, &"object".into(), detail));
    }
    for field in ["minAvailable", "maxUnavailable"] {
        amount(&spec[field], &at.field(field), errors);
    }
    label_selector(&spec["selector"], &at.field("selector"), errors);
}

pub(super) fn autoscaler(spec: &Value, at: &At, errors: &mut Errors) {
    let (least, most) = (spec["minReplicas"].as_i64().unwrap_or(1), &spec["maxReplicas"]);
    at_least(&spec["minReplicas"], 1, &at.field("minReplicas"), errors);
    match most.as_i64() {
        Some(count) if count < 1 => {
            errors.push(FieldError::invalid(at.field("maxReplicas"), most, "must be greater than 0"));
        }
        Some(count) if count < least => {
            let detail = "must be greater than or equal to `minReplicas`";
            errors.push(FieldError::invalid(at.field("maxReplicas"), most, detail));
        }
        _ => {}
    }
}

pub(super) fn access(kind: &Kind, object: &Value, errors: &mut Errors) {
    let namespaced = kind.namespaced;
    for (index, rule) in items(&object["rules"]) {
        let at = At::root().field("rules").index(index);
        let count = |field: &str| rule[field].as_array().map_or(0, Vec::len);
        if count("verbs") == 0 {
            errors.push(FieldError::required(at.field("verbs"), "verbs must contain at least one value"));
        }
        if count("nonResourceURLs") > 0 {
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.push(FieldError::invalid(
                    at.field("nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    detail,
                ));
            }
            if count("apiGroups") + count("resources") + count("resourceNames") > 0 {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.push(FieldError::invalid(
                    at.field("nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    detail,
                ));
            }
            continue;
        }
        if count("apiGroups") == 0 {
            let detail = "resource rules must supply at least one api group";
            errors.push(FieldError::required(at.field("apiGroups"), detail));
        }
        if count("resources") == 0 {
            let detail = "resource rules must supply at least one resource";
            errors.push(FieldError::required(at.field("resources"), detail));
        }
    }
    if object.get("roleRef").is_some() {
        binding(kind, object, errors);
    }
}

fn binding(kind: &Kind, object: &Value, errors: &mut Errors) {
    let at = At::root().field("roleRef");
    let kinds: &[&str] = if kind.kind == "RoleBinding" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    one_of(&object["roleRef"]["kind"], kinds, &at.field("kind"), errors);
    one_of(&object["roleRef"]["apiGroup"], &["rbac.authorization.k8s.io"], &at.field("apiGroup"), errors);
    for (index, subject) in items(&object["subjects"]) {
        let at = At::root().field("subjects").index(index);
        one_of(&subject["kind"], &["Group", "ServiceAccount", "User"], &at.field("kind"), errors);
        if text(subject, "kind") == "ServiceAccount" && text(subject, "namespace").is_empty() {
            errors.push(FieldError::required(at.field("namespace"), ""));
        }
    }
}

pub(super) fn lease(spec: &Value, at: &At, errors: &mut Errors) {
    for (field, least) in [("leaseDurationSeconds", 1), ("leaseTransitions", 0)] {
        if spec[field].as_i64().is_some_and(|n| n < least) {
            let detail =
                if least == 1 { "must be greater than 0" } else { "must be greater than or equal to 0" };
            errors.push(FieldError::invalid(at.field(field), &spec[field], detail));
        }
    }
}

pub(super) fn definition_update(old: &Value, new: &Value, errors: &mut Errors) {
    unchanged(old, new, &["spec.group", "spec.names.plural"], errors);
    let established =
        items(&old["status"]["conditions"]).any(|(_, c)| c["type"] == "Established" && c["status"] == "True");
    if established {
        unchanged(old, new, &["spec.scope", "spec.names.kind"], errors);
    }
    let versions: Vec<&str> = items(&new["spec"]["versions"]).map(|(_, v)| text(v, "name")).collect();
    for (index, stored) in items(&old["status"]["storedVersions"]) {
        if stored.as_str().is_some_and(|stored| !versions.contains(&stored)) {
            let at = format!("status.storedVersions[{index}]");
            errors.push(FieldError::invalid(
                at,
                stored,
                "missing from spec.versions; stored versions must stay",
            ));
        }
    }
}

/// Fields of the remaining kinds that never change.
pub(super) fn check_update(kind: &Kind, old: &Value, new: &Value, errors: &mut Errors) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "ConfigMap" | "Secret") => {
            if kind.kind == "Secret" {
                unchanged(old, new, &["type"], errors);
            }
            if old["immutable"] == true {
                let frozen = "field is immutable when `immutable` is set";
                let kept = if kind.kind == "Secret" {
                    ["immutable", "data", "data"]
                } else {
                    ["immutable", "data", "binaryData"]
                };
                for field in kept.into_iter().filter(|field| old[field] != new[field]) {
                    errors.push(FieldError::forbidden(field, frozen));
                }
            }
        }
        ("", "PersistentVolumeClaim") => {
            unchanged(
                old,
                new,
                &["spec.accessModes", "spec.storageClassName", "spec.volumeMode", "spec.selector"],
                errors,
            );
        }
        ("storage.k8s.io", "StorageClass") => {
            unchanged(old, new, &["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"], errors);
        }
        ("scheduling.k8s.io", "PriorityClass") => unchanged(old, new, &["value", "preemptionPolicy"], errors),
        ("networking.k8s.io", "IngressClass") => unchanged(old, new, &["spec.controller"], errors),
        ("networking.k8s.io", "IPAddress") => unchanged(old, new, &["spec.parentRef"], errors),
        ("node.k8s.io", "RuntimeClass") => unchanged(old, new, &["handler"], errors),
        _ => {}
    }
}
