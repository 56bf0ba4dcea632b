//! Pods as controllers see them: active, ready, available; and pods made from templates. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::meta;

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Whether all of the pod's containers ended for good.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod counts towards what a controller wants.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !meta::is_terminating(&pod.metadata)
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// Whether a pod has been ready long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    Available,
    In(Duration),
    NotReady,
}

pub fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Availability {
    let Some(ready) = condition(pod, "Ready").filter(|condition| condition.status == "True") else {
        return Availability::NotReady;
    };
    let Some(since) = ready.last_transition_time.as_ref().filter(|_| min_ready_seconds > 0) else {
        return Availability::Available;
    };
    match meta::time_until(since.0 + meta::seconds(min_ready_seconds), now) {
        Some(left) => Availability::In(left),
        None => Availability::Available,
    }
}

/// How many of some pods are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub total: i32,
    pub ready: i32,
    pub available: i32,
    /// When the next ready pod becomes available.
    pub next: Option<Duration>,
}

pub fn count<'a>(
    pods: impl IntoIterator<Item = &'a Arc<Pod>>,
    min_ready_seconds: i32,
    now: Timestamp,
) -> Counts {
    let mut counts = Counts::default();
    for pod in pods {
        counts.total += 1;
        match availability(pod, min_ready_seconds, now) {
            Availability::Available => {
                counts.ready += 1;
                counts.available += 1;
            }
            Availability::In(left) => {
                counts.ready += 1;
                counts.next = Some(counts.next.map_or(left, |sooner| sooner.min(left)));
            }
            Availability::NotReady => {}
        }
    }
    counts
}

/// What a new pod is called.
pub enum Naming<'a> {
    /// This prefix and an end the API server makes up.
    Prefix(&'a str),
    Exactly(&'a str),
}

pub fn from_template(
    template: &PodTemplateSpec,
    namespace: &str,
    naming: &Naming<'_>,
    owner: OwnerReference,
) -> Pod {
    let given = template.metadata.clone().unwrap_or_default();
    let mut metadata = ObjectMeta {
        namespace: Some(namespace.to_owned()),
        labels: given.labels,
        annotations: given.annotations,
        finalizers: given.finalizers,
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    match naming {
        // Names end up as host names, which hold 63 characters.
        Naming::Prefix(prefix) => {
            metadata.generate_name = Some(format!("{}-", &prefix[..prefix.len().min(57)]))
        }
        Naming::Exactly(name) => metadata.name = Some((*name).to_owned()),
    }
    Pod { metadata, spec: template.spec.clone(), status: None }
}

/// The order in which pods are given up: those that serve least go first.
pub fn least_useful_first(pods: &mut [Arc<Pod>], now: Timestamp) {
    let mut per_node = std::collections::BTreeMap::<String, i32>::new();
    for node in pods.iter().filter_map(|pod| node_name(pod)) {
        *per_node.entry(node.to_owned()).or_default() += 1;
    }
    pods.sort_by_cached_key(|pod| {
        let node = node_name(pod);
        let crowd = node.and_then(|node| per_node.get(node)).copied().unwrap_or_default();
        let ready_since =
            condition(pod, "Ready").and_then(|c| c.last_transition_time.as_ref()).map_or(now, |t| t.0);
        (
            node.is_some(),
            matches!(phase(pod), "Running"),
            is_ready(pod),
            deletion_cost(pod),
            -crowd,
            std::cmp::Reverse(ready_since.as_second()),
            -restarts(pod),
            std::cmp::Reverse(meta::created(&pod.metadata)),
            meta::name(&pod.metadata).to_owned(),
        )
    });
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = meta::annotation(&pod.metadata, "controller.kubernetes.io/pod-deletion-cost");
    cost.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

pub fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).sum()
}
