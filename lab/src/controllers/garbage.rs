//! Pods nobody will ever end: their node is gone, or they never had one. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};

use super::effect::{Effect, Grace, Kind, Outcome, Target};
use super::{meta, pods};

/// A node that was deleted by mistake has this long to come back.
const QUARANTINE_SECONDS: i64 = 40;

pub fn reconcile(nodes: &[Arc<Node>], all_pods: &[Arc<Pod>], now: Timestamp) -> Outcome {
    let known: BTreeSet<&str> = nodes.iter().map(|node| meta::name(&node.metadata)).collect();
    let mut outcome = Outcome::default();
    for pod in all_pods {
        match pods::node_name(pod) {
            None if meta::is_terminating(&pod.metadata) => outcome.effects.push(end(pod)),
            Some(node) if !known.contains(node) => {
                match meta::time_until(bound(pod) + meta::seconds(QUARANTINE_SECONDS), now) {
                    Some(left) => outcome.again_in(left),
                    None => outcome.effects.push(end(pod)),
                }
            }
            _ => {}
        }
    }
    outcome
}

fn end(pod: &Pod) -> Effect {
    let target = Target::new(Kind::Pod, meta::namespace(&pod.metadata), meta::name(&pod.metadata));
    Effect::Delete { target, uid: meta::uid(&pod.metadata).to_owned(), grace: Grace::None }
}

fn bound(pod: &Pod) -> Timestamp {
    let scheduled =
        pods::condition(pod, "PodScheduled").and_then(|condition| condition.last_transition_time.as_ref());
    scheduled.map_or_else(|| meta::created(&pod.metadata), |time| time.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::{now, parse, pod};
    use serde_json::json;

    #[test]
    fn pods_without_a_future_are_ended() {
        let node: Arc<Node> = Arc::new(parse(json!({"metadata": {"name": "here"}})));
        let recent = (now() - meta::seconds(10)).to_string();
        let pods = [
            pod("fine", "", None, json!({"spec": {"nodeName": "here"}})),
            pod("lost", "", None, json!({"spec": {"nodeName": "gone"}})),
            pod(
                "young",
                "",
                None,
                json!({"spec": {"nodeName": "gone"}, "metadata": {"creationTimestamp": recent}}),
            ),
            pod("waiting", "", None, json!({})),
            pod("never", "", None, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
        ];
        let outcome = reconcile(&[node], &pods, now());
        let names: Vec<&str> = outcome
            .effects
            .iter()
            .map(|effect| match effect {
                Effect::Delete { target, grace: Grace::None, .. } => target.name.as_str(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names, ["lost", "never"]);
        assert_eq!(outcome.recheck.map(|recheck| recheck.as_secs()), Some(30));
    }
}
