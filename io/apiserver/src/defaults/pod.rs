//! Defaults of pods and of the pod templates inside workloads.
use serde_json::{Map, Value, json};

use super::fields::{child, each, existing, fill, fill_text, is_set, is_true, set, text};
use crate::schema::quantity::Quantity;

pub(super) fn pod(object: &mut Value) {
    let spec = child(object, "spec");
    if !spec.is_object() {
        return;
    }
    fill(spec, "enableServiceLinks", true);
    request_what_is_limited(spec);
    pod_spec(spec);
    // What admission adds to pods, but not to templates.
    fill_text(spec, "serviceAccountName", "default");
    let account = text(spec, "serviceAccountName").to_owned();
    fill_text(spec, "serviceAccount", &account);
    fill(spec, "priority", 0);
    fill_text(spec, "preemptionPolicy", "PreemptLowerPriority");
    tolerate_node_trouble(spec);
    let class = quality_of_service(spec);
    let status = child(object, "status");
    fill_text(status, "phase", "Pending");
    fill_text(status, "qosClass", class);
    first_of_list(status, "podIP", "podIPs");
    first_of_list(status, "hostIP", "hostIPs");
}

/// The singular field and the first item of the plural one say the same.
fn first_of_list(status: &mut Value, singular: &str, plural: &str) {
    let first = status[plural].get(0).map(|item| item["ip"].clone()).filter(Value::is_string);
    match (text(status, singular).to_owned(), first) {
        (one, None) if !one.is_empty() => fill(status, plural, json!([{ "ip": one }])),
        (one, Some(first)) if one.is_empty() => fill(status, singular, first),
        _ => {}
    }
}

/// Defaults of the `template` of a workload's spec.
pub(super) fn template(owner: &mut Value) {
    let Some(template) = existing(owner, "template") else { return };
    child(template, "metadata");
    let spec = child(template, "spec");
    if spec.is_object() {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Value) {
    fill_text(spec, "dnsPolicy", "ClusterFirst");
    fill_text(spec, "restartPolicy", "Always");
    fill_text(spec, "schedulerName", "default-scheduler");
    fill(spec, "terminationGracePeriodSeconds", 30);
    child(spec, "securityContext");
    let account = [text(spec, "serviceAccountName"), text(spec, "serviceAccount")].concat();
    if !is_set(spec, "serviceAccount") || !is_set(spec, "serviceAccountName") {
        for name in ["serviceAccountName", "serviceAccount"] {
            if !account.is_empty() {
                fill_text(spec, name, &account);
            }
        }
    }
    let host_network = is_true(spec, "hostNetwork");
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for item in each(spec, list) {
            container(item);
            if host_network {
                each(item, "ports").for_each(publish_on_host);
            }
        }
    }
    each(spec, "volumes").for_each(volume);
}

fn publish_on_host(port: &mut Value) {
    let number = port["containerPort"].clone();
    if port.get("hostPort").is_none_or(|p| p.is_null() || *p == 0) {
        set(port, "hostPort", number);
    }
}

fn container(container: &mut Value) {
    fill_text(container, "terminationMessagePath", "/dev/termination-log");
    fill_text(container, "terminationMessagePolicy", "File");
    let policy = pull_policy(text(container, "image"));
    fill_text(container, "imagePullPolicy", policy);
    child(container, "resources");
    each(container, "ports").for_each(|port| fill_text(port, "protocol", "TCP"));
    for variable in each(container, "env") {
        if let Some(source) = existing(variable, "valueFrom") {
            field_reference(source);
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(found) = existing(container, name) {
            probe(found);
        }
    }
    if let Some(lifecycle) = existing(container, "lifecycle") {
        for name in ["postStart", "preStop"] {
            if let Some(handler) = existing(lifecycle, name) {
                http_get(handler);
            }
        }
    }
}

/// `Always` for images that may change under their name: no tag, or the tag `latest`.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    match (tag, digest) {
        (None, Some(_)) => "IfNotPresent",
        (None | Some("latest"), _) => "Always",
        _ => "IfNotPresent",
    }
}

fn probe(probe: &mut Value) {
    for (name, default) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if probe.get(name).is_none_or(|v| v.is_null() || *v == 0) {
            set(probe, name, default);
        }
    }
    http_get(probe);
    if let Some(grpc) = existing(probe, "grpc") {
        fill(grpc, "service", "");
    }
}

fn http_get(handler: &mut Value) {
    if let Some(http) = existing(handler, "httpGet") {
        fill_text(http, "path", "/");
        fill_text(http, "scheme", "HTTP");
    }
}

fn field_reference(source: &mut Value) {
    if let Some(reference) = existing(source, "fieldRef") {
        fill_text(reference, "apiVersion", "v1");
    }
}

fn volume(volume: &mut Value) {
    let has_source = volume.as_object().is_some_and(|v| v.iter().any(|(k, v)| k != "name" && !v.is_null()));
    if !has_source {
        set(volume, "emptyDir", json!({}));
    }
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = existing(volume, name) {
            fill(source, "defaultMode", 0o644);
            each(source, "items").for_each(field_reference);
            each(source, "sources").for_each(projection);
        }
    }
    if let Some(path) = existing(volume, "hostPath") {
        fill(path, "type", "");
    }
    if let Some(template) = existing(volume, "ephemeral").and_then(|e| existing(e, "volumeClaimTemplate")) {
        fill_text(child(template, "spec"), "volumeMode", "Filesystem");
    }
}

fn projection(source: &mut Value) {
    if let Some(token) = existing(source, "serviceAccountToken") {
        fill(token, "expirationSeconds", 3600);
    }
    if let Some(fields) = existing(source, "downwardAPI") {
        each(fields, "items").for_each(field_reference);
    }
}

fn request_what_is_limited(spec: &mut Value) {
    for list in ["initContainers", "containers"] {
        for container in each(spec, list) {
            let Some(resources) = existing(container, "resources") else { continue };
            let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { continue };
            let requests = child(resources, "requests");
            limits.into_iter().for_each(|(name, amount)| fill(requests, &name, amount));
        }
    }
}

fn tolerate_node_trouble(spec: &mut Value) {
    let list = spec.get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    let tolerated = |key: &str| {
        list.iter().any(|t| {
            let keys = [text(t, "key"), text(t, "effect")];
            (keys[0] == key || keys[0].is_empty()) && (keys[1].is_empty() || keys[1] == "NoExecute")
        })
    };
    let missing = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
    let missing = missing.into_iter().filter(|key| !tolerated(key)).map(
        |key| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
    );
    let all: Vec<Value> = list.iter().cloned().chain(missing).collect();
    set(spec, "tolerations", all);
}

/// Guaranteed when every container's cpu and memory are limited to what is requested.
fn quality_of_service(spec: &Value) -> &'static str {
    let lists = ["containers", "initContainers"].into_iter().filter_map(|list| spec.get(list)?.as_array());
    let containers: Vec<&Value> = lists.flatten().collect();
    let amounts = |c: &Value, kind: &str| -> Map<String, Value> {
        let all = c["resources"].get(kind).and_then(Value::as_object).cloned().unwrap_or_default();
        let counts = |name: &str, v: &Value| {
            ["cpu", "memory"].contains(&name) && Quantity::from_value(v).is_some_and(|q| q.nanos() != 0)
        };
        all.into_iter().filter(|(name, amount)| counts(name, amount)).collect()
    };
    let any = containers.iter().any(|c| ["requests", "limits"].iter().any(|k| !amounts(c, k).is_empty()));
    let guaranteed = |c: &&Value| {
        let (limits, requests) = (amounts(c, "limits"), amounts(c, "requests"));
        limits.len() == 2
            && limits.iter().all(|(name, amount)| requests.get(name).is_none_or(|r| r == amount))
    };
    if !any {
        "BestEffort"
    } else if containers.iter().all(guaranteed) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}
