//! Which node a pod runs on: those that fit, and of them the one least used. Pure.

mod affinity;
mod fit;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use serde_json::json;

use super::effect::{Effect, Kind, Target, Tone};
use super::{meta, pods};
use fit::NodeView;

pub use fit::{is_tolerated, matches_node, tolerates};

pub const NAME: &str = "default-scheduler";

/// Where pods were sent before the caches show it: node names by pod uid.
pub type Assumed = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub pod: Arc<Pod>,
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Node(String),
    /// No node will do, and why not.
    Nowhere(String),
}

/// Decides about every pod that waits for a node, the most important and oldest first.
pub fn schedule(nodes: &[Arc<Node>], all_pods: &[Arc<Pod>], assumed: &Assumed) -> Vec<Decision> {
    let mut views = place_known(nodes, all_pods, assumed);
    let mut waiting: Vec<&Arc<Pod>> = all_pods.iter().filter(|pod| is_waiting(pod, assumed)).collect();
    waiting.sort_by_key(|pod| {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        (
            -priority,
            meta::created(&pod.metadata),
            meta::namespace(&pod.metadata).to_owned(),
            meta::name(&pod.metadata).to_owned(),
        )
    });
    waiting.into_iter().map(|pod| Decision { pod: pod.clone(), verdict: decide(pod, &mut views) }).collect()
}

/// What to do about the decisions: bind, or say why not.
pub fn effects(decisions: &[Decision], now: Timestamp) -> Vec<Effect> {
    decisions.iter().flat_map(|decision| effects_of(decision, now)).collect()
}

fn effects_of(decision: &Decision, now: Timestamp) -> Vec<Effect> {
    let pod = &decision.pod;
    let (namespace, name) = (meta::namespace(&pod.metadata), meta::name(&pod.metadata));
    let target = Target::new(Kind::Pod, namespace, name);
    let about = meta::reference(Kind::Pod, &pod.metadata);
    match &decision.verdict {
        Verdict::Node(node) => {
            let message = format!("Successfully assigned {namespace}/{name} to {node}");
            let bind = Effect::Bind { target, uid: meta::uid(&pod.metadata).to_owned(), node: node.clone() };
            vec![bind, Effect::Tell { about, tone: Tone::Normal, reason: "Scheduled", message }]
        }
        Verdict::Nowhere(why) => {
            let known = pods::condition(pod, "PodScheduled");
            if known.is_some_and(|known| known.status == "False" && known.message.as_ref() == Some(why)) {
                return Vec::new();
            }
            let body = json!({
                "metadata": {"resourceVersion": pod.metadata.resource_version},
                "status": {"conditions": unschedulable(pod, why, now)},
            });
            let tell =
                Effect::Tell { about, tone: Tone::Warning, reason: "FailedScheduling", message: why.clone() };
            vec![Effect::MergeStatus { target, body }, tell]
        }
    }
}

fn unschedulable(pod: &Pod, why: &str, now: Timestamp) -> Vec<PodCondition> {
    let mut conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.retain(|condition| condition.type_ != "PodScheduled");
    conditions.push(PodCondition {
        type_: "PodScheduled".to_owned(),
        status: "False".to_owned(),
        reason: Some("Unschedulable".to_owned()),
        message: Some(why.to_owned()),
        last_transition_time: Some(meta::stamp(now)),
        last_probe_time: None,
        observed_generation: None,
    });
    conditions
}

fn place_known<'a>(nodes: &'a [Arc<Node>], pods: &'a [Arc<Pod>], assumed: &Assumed) -> Vec<NodeView<'a>> {
    let mut views: Vec<NodeView<'a>> = nodes.iter().map(|node| NodeView::new(node)).collect();
    for pod in pods.iter().filter(|pod| !pods::is_finished(pod)) {
        let node = pods::node_name(pod).or_else(|| assumed.get(meta::uid(&pod.metadata)).map(String::as_str));
        if let Some(view) = node.and_then(|node| views.iter_mut().find(|view| view.name() == node)) {
            view.add(pod);
        }
    }
    views
}

fn is_waiting(pod: &Pod, assumed: &Assumed) -> bool {
    let Some(spec) = &pod.spec else { return false };
    pods::node_name(pod).is_none()
        && !assumed.contains_key(meta::uid(&pod.metadata))
        && pods::is_active(pod)
        && spec.scheduler_name.as_deref().is_none_or(|name| name == NAME)
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

fn decide<'a>(pod: &'a Pod, views: &mut [NodeView<'a>]) -> Verdict {
    let mut refusals = BTreeMap::<String, usize>::new();
    let mut best: Option<(usize, fit::Rank)> = None;
    for index in 0..views.len() {
        let refused = match fit::refusals(pod, &views[index]) {
            none if none.is_empty() => affinity::refusal(pod, index, views).into_iter().collect(),
            some => some,
        };
        if refused.is_empty() {
            let rank = fit::rank(pod, &views[index], affinity::liking(pod, index, views));
            if best.as_ref().is_none_or(|(_, known)| rank.is_better_than(known)) {
                best = Some((index, rank));
            }
        }
        for reason in refused {
            *refusals.entry(reason).or_default() += 1;
        }
    }
    match best {
        Some((index, _)) => {
            views[index].add(pod);
            Verdict::Node(views[index].name().to_owned())
        }
        None => Verdict::Nowhere(explain(views.len(), &refusals)),
    }
}

fn explain(nodes: usize, refusals: &BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let reasons: Vec<String> = refusals.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
}
