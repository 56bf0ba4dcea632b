//! Defaults of the controllers of pods: deployments, sets, jobs, autoscalers.
use serde_json::{Value, json};

use super::fields::{child, each, existing, fill, fill_text, is_set, is_true, set, text};
use super::pod;

pub(super) fn deployment(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
    let strategy = child(spec, "strategy");
    fill_text(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        fill(rolling, "maxUnavailable", "25%");
        fill(rolling, "maxSurge", "25%");
    }
    pod::template(spec);
}

pub(super) fn replica_set(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    fill(spec, "replicas", 1);
    pod::template(spec);
    fill(child(object, "status"), "replicas", 0);
}

pub(super) fn replication_controller(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    fill(spec, "replicas", 1);
    let labels = spec["template"]["metadata"].get("labels").filter(|l| l.is_object()).cloned();
    if let Some(labels) = labels {
        fill(spec, "selector", labels.clone());
        pod::template(spec);
        fill(child(object, "metadata"), "labels", labels);
    } else {
        pod::template(spec);
    }
    fill(child(object, "status"), "replicas", 0);
}

pub(super) fn stateful_set(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    fill_text(spec, "podManagementPolicy", "OrderedReady");
    let strategy = child(spec, "updateStrategy");
    fill_text(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        fill(child(strategy, "rollingUpdate"), "partition", 0);
    }
    let retention = child(spec, "persistentVolumeClaimRetentionPolicy");
    fill_text(retention, "whenDeleted", "Retain");
    fill_text(retention, "whenScaled", "Retain");
    for claim in each(spec, "volumeClaimTemplates") {
        fill_text(claim, "apiVersion", "v1");
        fill_text(claim, "kind", "PersistentVolumeClaim");
        fill_text(child(claim, "spec"), "volumeMode", "Filesystem");
        fill_text(child(claim, "status"), "phase", "Pending");
    }
    pod::template(spec);
    fill(child(object, "status"), "replicas", 0);
}

pub(super) fn daemon_set(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    fill(spec, "revisionHistoryLimit", 10);
    let strategy = child(spec, "updateStrategy");
    fill_text(strategy, "type", "RollingUpdate");
    if text(strategy, "type") == "RollingUpdate" {
        let rolling = child(strategy, "rollingUpdate");
        fill(rolling, "maxUnavailable", 1);
        fill(rolling, "maxSurge", 0);
    }
    pod::template(spec);
    let status = child(object, "status");
    for count in ["currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"] {
        fill(status, count, 0);
    }
}

pub(super) fn job(object: &mut Value) {
    let (name, uid) =
        (text(&object["metadata"], "name").to_owned(), text(&object["metadata"], "uid").to_owned());
    let Some(spec) = spec(object) else { return };
    if !is_set(spec, "completions") && !is_set(spec, "parallelism") {
        fill(spec, "completions", 1);
    }
    fill(spec, "parallelism", 1);
    fill_text(spec, "completionMode", "NonIndexed");
    fill(spec, "backoffLimit", 6);
    fill(spec, "suspend", false);
    let replacement = if is_set(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    fill_text(spec, "podReplacementPolicy", replacement);
    if !is_true(spec, "manualSelector") && !uid.is_empty() && spec["template"].is_object() {
        own_selector(spec, &name, &uid);
    }
    pod::template(spec);
}

/// A job's pods carry its own identity, so that jobs never adopt each other's pods.
fn own_selector(spec: &mut Value, name: &str, uid: &str) {
    let labels = child(child(&mut spec["template"], "metadata"), "labels");
    for prefix in ["batch.kubernetes.io/", ""] {
        fill(labels, &format!("{prefix}controller-uid"), uid);
        fill(labels, &format!("{prefix}job-name"), name);
    }
    fill(spec, "selector", json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
}

pub(super) fn cron_job(object: &mut Value) {
    let Some(spec) = spec(object) else { return };
    fill_text(spec, "concurrencyPolicy", "Allow");
    fill(spec, "suspend", false);
    fill(spec, "successfulJobsHistoryLimit", 3);
    fill(spec, "failedJobsHistoryLimit", 1);
    let template = existing(spec, "jobTemplate").and_then(|job| existing(job, "spec"));
    if let Some(job) = template {
        pod::template(job);
    }
}

pub(super) fn autoscaler(object: &mut Value, version: &str) {
    let Some(spec) = spec(object) else { return };
    fill(spec, "minReplicas", 1);
    let measured = spec.get("metrics").and_then(Value::as_array).is_some_and(|m| !m.is_empty());
    if version == "v2" && !measured {
        let target = json!({"type": "Utilization", "averageUtilization": 80});
        let metric = json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]);
        set(spec, "metrics", metric);
    }
}

fn spec(object: &mut Value) -> Option<&mut Value> {
    existing(object, "spec")
}
