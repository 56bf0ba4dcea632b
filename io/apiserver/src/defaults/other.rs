//! Defaults of the remaining kinds: configuration, storage, access control, extensions.
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::fields::{child, each, existing, fill, fill_text, is_set, text};
use crate::kinds::Kind;

pub(super) fn apply(kind: &Kind, object: &mut Value) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Secret") => secret(object),
        ("", "Namespace") => namespace(object),
        ("", "Node") => node(object),
        ("", "PersistentVolume") => volume(object),
        ("", "PersistentVolumeClaim") => claim(object),
        ("", "LimitRange") => limit_range(object),
        ("storage.k8s.io", "StorageClass") => {
            fill_text(object, "reclaimPolicy", "Delete");
            fill_text(object, "volumeBindingMode", "Immediate");
        }
        ("storage.k8s.io", "CSIDriver") => driver(object),
        ("scheduling.k8s.io", "PriorityClass") => {
            fill_text(object, "preemptionPolicy", "PreemptLowerPriority")
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition(object),
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => webhooks(object, Some("Never")),
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => webhooks(object, None),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy") => admission_policy(object),
        _ => {}
    }
}

fn secret(object: &mut Value) {
    fill_text(object, "type", "Opaque");
    let plain = object.as_object_mut().and_then(|fields| fields.shift_remove("stringData"));
    let Some(Value::Object(plain)) = plain else { return };
    let data = child(object, "data");
    for (key, value) in plain {
        if let (Value::Object(data), Value::String(text)) = (&mut *data, value) {
            data.insert(key, Value::String(STANDARD.encode(text)));
        }
    }
}

fn namespace(object: &mut Value) {
    let name = text(&object["metadata"], "name").to_owned();
    if !name.is_empty() {
        let labels = child(child(object, "metadata"), "labels");
        fill_text(labels, "kubernetes.io/metadata.name", &name);
    }
    fill_text(child(object, "status"), "phase", "Active");
}

fn node(object: &mut Value) {
    let spec = child(object, "spec");
    let first = spec.get("podCIDRs").and_then(|list| list.get(0)).cloned();
    match (text(spec, "podCIDR").to_owned(), first) {
        (one, None) if !one.is_empty() => fill(spec, "podCIDRs", json!([one])),
        (one, Some(first)) if one.is_empty() => fill(spec, "podCIDR", first),
        _ => {}
    }
    if let Some(status) = existing(object, "status")
        && let Some(capacity) = status.get("capacity").filter(|c| c.is_object()).cloned()
    {
        fill(status, "allocatable", capacity);
    }
}

fn volume(object: &mut Value) {
    let spec = child(object, "spec");
    fill_text(spec, "persistentVolumeReclaimPolicy", "Retain");
    fill_text(spec, "volumeMode", "Filesystem");
    if let Some(path) = existing(spec, "hostPath") {
        fill(path, "type", "");
    }
    fill_text(child(object, "status"), "phase", "Pending");
}

fn claim(object: &mut Value) {
    fill_text(child(object, "spec"), "volumeMode", "Filesystem");
    fill_text(child(object, "status"), "phase", "Pending");
}

fn limit_range(object: &mut Value) {
    let Some(spec) = existing(object, "spec") else { return };
    for limit in each(spec, "limits").filter(|limit| limit["type"] == "Container") {
        for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
            let Some(amounts) = limit.get(from).and_then(Value::as_object).cloned() else { continue };
            let target = child(limit, to);
            amounts.into_iter().for_each(|(name, amount)| fill(target, &name, amount));
        }
    }
}

fn driver(object: &mut Value) {
    let spec = child(object, "spec");
    fill(spec, "attachRequired", true);
    for name in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        fill(spec, name, false);
    }
    fill_text(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    fill(spec, "volumeLifecycleModes", json!(["Persistent"]));
}

pub(super) fn role_binding(object: &mut Value) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    if let Some(role) = existing(object, "roleRef") {
        fill_text(role, "apiGroup", GROUP);
    }
    for subject in each(object, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            fill_text(subject, "apiGroup", GROUP);
        }
    }
}

fn definition(object: &mut Value) {
    let Some(spec) = existing(object, "spec") else { return };
    if let Some(names) = existing(spec, "names") {
        let kind = text(names, "kind").to_owned();
        if !kind.is_empty() {
            fill_text(names, "singular", &kind.to_lowercase());
            fill_text(names, "listKind", &format!("{kind}List"));
        }
    }
    fill_text(child(spec, "conversion"), "strategy", "None");
}

fn webhooks(object: &mut Value, reinvocation: Option<&str>) {
    for hook in each(object, "webhooks") {
        fill_text(hook, "failurePolicy", "Fail");
        fill_text(hook, "matchPolicy", "Equivalent");
        selectors(hook);
        fill(hook, "timeoutSeconds", 10);
        if let Some(policy) = reinvocation {
            fill_text(hook, "reinvocationPolicy", policy);
        }
        each(hook, "rules").for_each(|rule| fill_text(rule, "scope", "*"));
        if let Some(service) = existing(hook, "clientConfig").and_then(|c| existing(c, "service")) {
            fill(service, "port", 443);
        }
    }
}

fn admission_policy(object: &mut Value) {
    let Some(spec) = existing(object, "spec") else { return };
    fill_text(spec, "failurePolicy", "Fail");
    if is_set(spec, "matchConstraints") {
        let constraints = child(spec, "matchConstraints");
        fill_text(constraints, "matchPolicy", "Equivalent");
        selectors(constraints);
    }
}

fn selectors(object: &mut Value) {
    child(object, "namespaceSelector");
    child(object, "objectSelector");
}
