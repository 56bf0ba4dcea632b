//! Nodes that stop answering: what is said about them, about their pods, and who has to leave. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition, Taint};
use serde_json::json;

use super::effect::{Effect, Kind, Outcome, Target, Tone};
use super::{meta, pods, scheduler};

/// Where kubelets say that they live.
pub const LEASES: &str = "kube-node-lease";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const LEASE_SECONDS: i32 = 40;
/// How long pods that say nothing about it stay on a node that is not ready.
const STAY_SECONDS: i64 = 300;

/// While nobody can hear the kubelets, nodes are looked at this often.
const DEAF: Duration = Duration::from_secs(1);

/// What is known of a kubelet's life.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a> {
    pub lease: Option<&'a Lease>,
    /// Since when every renewal would have been heard of; `None` while the API server does not answer.
    pub listening: Option<Timestamp>,
}

/// Decides about one node from its kubelet's word and the pods on it.
pub fn reconcile(node: &Node, word: Word<'_>, all_pods: &[Arc<Pod>], now: Timestamp) -> Outcome {
    let mut outcome = Outcome::default();
    if meta::is_terminating(&node.metadata) {
        return outcome;
    }
    let Some(listening) = word.listening else {
        // An API server that was away says nothing about the nodes.
        outcome.again_in(DEAF);
        return outcome;
    };
    let expiry = expiry(node, word.lease, listening);
    let health = health(node, meta::time_until(expiry, now).is_some());
    if health == Health::Unknown {
        outcome.effects.extend(declare_unknown(node, now));
    } else if let Some(left) = meta::time_until(expiry, now) {
        outcome.again_in(left);
    }
    let taints = taints(node, health, now);
    let before = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    if taints != before {
        outcome.effects.push(Effect::Merge {
            target: target(node),
            body: json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "spec": {"taints": taints},
            }),
        });
    }
    let name = meta::name(&node.metadata);
    for pod in all_pods.iter().filter(|pod| pods::node_name(pod) == Some(name) && !pods::is_finished(pod)) {
        if health == Health::Unknown {
            outcome.effects.extend(declare_unready(pod, declared_at(node, now), now));
        }
        evict(pod, &taints, now, &mut outcome);
    }
    outcome
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Ready,
    /// Its kubelet says so.
    NotReady,
    /// Its kubelet says nothing any more.
    Unknown,
}

fn health(node: &Node, lives: bool) -> Health {
    match (lives, ready(node).map(|condition| condition.status.as_str())) {
        (false, _) => Health::Unknown,
        (true, Some("True")) => Health::Ready,
        (true, _) => Health::NotReady,
    }
}

fn ready(node: &Node) -> Option<&NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == "Ready")
}

/// When the node counts as lost unless its kubelet is heard of. A new node has as long to say its first word, and
/// every node that was not known to be lost has as long after a time when nobody could have heard of it.
fn expiry(node: &Node, lease: Option<&Lease>, listening: Timestamp) -> Timestamp {
    let spec = lease.and_then(|lease| lease.spec.as_ref());
    let renewed = spec.and_then(|spec| spec.renew_time.as_ref()).map(|time| time.0);
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or(LEASE_SECONDS);
    let last = renewed.unwrap_or_else(|| meta::created(&node.metadata));
    let lost = ready(node).is_some_and(|condition| condition.status == "Unknown");
    (if lost { last } else { last.max(listening) }) + meta::seconds(seconds)
}

fn declare_unknown(node: &Node, now: Timestamp) -> Vec<Effect> {
    if ready(node).is_some_and(|condition| condition.status == "Unknown") {
        return Vec::new();
    }
    let mut conditions =
        node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.retain(|condition| condition.type_ != "Ready");
    conditions.push(NodeCondition {
        type_: "Ready".to_owned(),
        status: "Unknown".to_owned(),
        reason: Some("NodeStatusUnknown".to_owned()),
        message: Some("Kubelet stopped posting node status.".to_owned()),
        last_heartbeat_time: ready(node).and_then(|condition| condition.last_heartbeat_time.clone()),
        last_transition_time: Some(meta::stamp(now)),
    });
    let body = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "status": {"conditions": conditions},
    });
    let message = format!("Node {} status is now: NodeNotReady", meta::name(&node.metadata));
    let about = meta::reference(Kind::Node, &node.metadata);
    vec![
        Effect::MergeStatus { target: target(node), body },
        Effect::Tell { about, tone: Tone::Warning, reason: "NodeNotReady", message },
    ]
}

/// The taints the node should have: those of others as they are, ours as its state is.
fn taints(node: &Node, health: Health, now: Timestamp) -> Vec<Taint> {
    let before = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let cordoned = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
    let mut wanted: Vec<(&str, &str)> = match health {
        Health::Ready => Vec::new(),
        Health::NotReady => vec![(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")],
        Health::Unknown => vec![(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")],
    };
    if cordoned {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |taint: &Taint| [NOT_READY, UNREACHABLE, UNSCHEDULABLE].contains(&taint.key.as_str());
    let is_wanted = |taint: &Taint| wanted.contains(&(taint.key.as_str(), taint.effect.as_str()));
    let mut taints: Vec<Taint> =
        before.iter().filter(|taint| !ours(taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            let time_added = Some(meta::stamp(now));
            taints.push(Taint { key: key.to_owned(), effect: effect.to_owned(), value: None, time_added });
        }
    }
    taints
}

/// Since when the node is known to be lost: from now on, if it was not.
fn declared_at(node: &Node, now: Timestamp) -> Timestamp {
    let unknown = ready(node).filter(|condition| condition.status == "Unknown");
    unknown.and_then(|condition| condition.last_transition_time.as_ref()).map_or(now, |time| time.0)
}

/// Nobody vouches for pods on a node whose kubelet is silent, except for what was said since: then it is not silent any
/// more. A kubelet that says that its node is not ready still knows how its pods fare.
fn declare_unready(pod: &Pod, silent_since: Timestamp, now: Timestamp) -> Option<Effect> {
    let ready = pods::condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    if ready.last_transition_time.as_ref().is_some_and(|time| time.0 > silent_since) {
        return None;
    }
    let mut conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.retain(|condition| condition.type_ != "Ready");
    conditions.push(PodCondition {
        type_: "Ready".to_owned(),
        status: "False".to_owned(),
        reason: Some("NodeNotReady".to_owned()),
        message: None,
        last_transition_time: Some(meta::stamp(now)),
        last_probe_time: None,
        observed_generation: None,
    });
    let target = Target::new(Kind::Pod, meta::namespace(&pod.metadata), meta::name(&pod.metadata));
    let body = json!({
        "metadata": {"resourceVersion": pod.metadata.resource_version},
        "status": {"conditions": conditions},
    });
    Some(Effect::MergeStatus { target, body })
}

/// Pods leave a node with `NoExecute` taints when their patience with one of them ends.
fn evict(pod: &Pod, taints: &[Taint], now: Timestamp, outcome: &mut Outcome) {
    if meta::is_terminating(&pod.metadata) {
        return;
    }
    let executing = taints.iter().filter(|taint| taint.effect == "NoExecute");
    let Some(leaves) = executing.filter_map(|taint| leaves_at(pod, taint, now)).min() else { return };
    match meta::time_until(leaves, now) {
        Some(left) => outcome.again_in(left),
        None => {
            let meta = &pod.metadata;
            let message = format!("Marking for deletion Pod {}/{}", meta::namespace(meta), meta::name(meta));
            let about = meta::reference(Kind::Pod, meta);
            outcome.effects.push(Effect::Tell {
                about,
                tone: Tone::Normal,
                reason: "TaintManagerEviction",
                message,
            });
            outcome.effects.push(Effect::delete(
                Kind::Pod,
                meta::namespace(meta),
                meta::name(meta),
                meta::uid(meta),
            ));
        }
    }
}

/// When a pod's patience with a taint ends; `None` is never.
fn leaves_at(pod: &Pod, taint: &Taint, now: Timestamp) -> Option<Timestamp> {
    let since = taint.time_added.as_ref().map_or(now, |time| time.0);
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut patience = None;
    for toleration in tolerations.iter().filter(|toleration| scheduler::tolerates(toleration, taint)) {
        let seconds = toleration.toleration_seconds?;
        patience = Some(patience.map_or(seconds, |least: i64| least.min(seconds)));
    }
    let well_known = [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
    let patience = patience.unwrap_or(if well_known { STAY_SECONDS } else { 0 });
    Some(since + meta::seconds(patience.max(0)))
}

fn target(node: &Node) -> Target {
    Target::new(Kind::Node, "", meta::name(&node.metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::{merge, now, parse, pod};
    use serde_json::Value;

    fn node(ready: &str, more: Value) -> Node {
        let mut object = json!({"metadata": {"name": "node1", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {},
            "status": {"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]}});
        merge(&mut object, more);
        parse(object)
    }

    fn lease(age: i64) -> Lease {
        let renewed = format!("{:.6}", now() - meta::seconds(age));
        parse(
            json!({"metadata": {"name": "node1"}, "spec": {"leaseDurationSeconds": 40, "renewTime": renewed}}),
        )
    }

    /// Nothing was missed.
    fn word(lease: Option<&Lease>) -> Word<'_> {
        Word { lease, listening: Some(now() - meta::seconds(1000)) }
    }

    fn resident(more: Value) -> Arc<Pod> {
        let mut object = json!({"spec": {"nodeName": "node1"}, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        merge(&mut object, more);
        pod("p", "app=web", None, object)
    }

    fn taint_keys(outcome: &Outcome) -> Option<Vec<String>> {
        outcome.effects.iter().find_map(|effect| match effect {
            Effect::Merge { body, .. } => Some(
                body["spec"]["taints"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|t| format!("{}:{}", t["key"].as_str().unwrap(), t["effect"].as_str().unwrap()))
                    .collect(),
            ),
            _ => None,
        })
    }

    #[test]
    fn a_healthy_node_is_left_alone_until_its_lease_would_end() {
        let outcome =
            reconcile(&node("True", json!({})), word(Some(&lease(15))), &[resident(json!({}))], now());
        assert_eq!(outcome, Outcome { effects: vec![], recheck: Some(Duration::from_secs(25)) });
    }

    #[test]
    fn a_silent_node_is_unknown_tainted_and_its_pods_unready() {
        let outcome =
            reconcile(&node("True", json!({})), word(Some(&lease(40))), &[resident(json!({}))], now());
        let statuses: Vec<(Kind, &Value)> = outcome
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::MergeStatus { target, body } => Some((target.kind, &body["status"]["conditions"])),
                _ => None,
            })
            .collect();
        assert_eq!(statuses[0].1[1]["status"], "Unknown");
        assert_eq!(statuses[0].1[0]["type"], "MemoryPressure", "other conditions stay");
        assert_eq!((statuses[1].0, &statuses[1].1[0]["status"]), (Kind::Pod, &json!("False")));
        assert_eq!(
            taint_keys(&outcome).unwrap(),
            [format!("{UNREACHABLE}:NoSchedule"), format!("{UNREACHABLE}:NoExecute")]
        );
        assert_eq!(outcome.recheck, Some(Duration::from_secs(300)), "then its pods leave");
    }

    #[test]
    fn pods_count_by_what_their_kubelet_said_last() {
        let ready_since = |ago: i64| {
            let since = (now() - meta::seconds(ago)).to_string();
            resident(
                json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}]}}),
            )
        };
        let declared = |node: Node, lease: &Lease, pod: Arc<Pod>| {
            let outcome = reconcile(&node, word(Some(lease)), &[pod], now());
            outcome.effects.iter().any(
                |effect| matches!(effect, Effect::MergeStatus { target, .. } if target.kind == Kind::Pod),
            )
        };
        let lost = || {
            let since = (now() - meta::seconds(30)).to_string();
            node(
                "Unknown",
                json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown", "lastTransitionTime": since}]}}),
            )
        };
        assert!(declared(lost(), &lease(70), ready_since(30)), "ready before its node was lost");
        assert!(!declared(lost(), &lease(70), ready_since(29)), "its kubelet spoke after that");
        assert!(!declared(lost(), &lease(0), ready_since(90)), "its kubelet lives again");
        assert!(!declared(node("False", json!({})), &lease(0), ready_since(90)), "its kubelet lives");
    }

    #[test]
    fn taints_go_when_the_node_is_back_and_those_of_others_stay() {
        let tainted = json!({"spec": {"taints": [{"key": UNREACHABLE, "effect": "NoExecute"}, {"key": "gpu", "effect": "NoSchedule"}]}});
        let outcome = reconcile(&node("True", tainted), word(Some(&lease(0))), &[], now());
        assert_eq!(taint_keys(&outcome).unwrap(), ["gpu:NoSchedule"]);
        let cordoned = reconcile(
            &node("True", json!({"spec": {"unschedulable": true}})),
            word(Some(&lease(0))),
            &[],
            now(),
        );
        assert_eq!(taint_keys(&cordoned).unwrap(), [format!("{UNSCHEDULABLE}:NoSchedule")]);
        assert_eq!(
            taint_keys(&reconcile(&node("False", json!({})), word(Some(&lease(0))), &[], now()))
                .unwrap()
                .len(),
            2
        );
    }

    #[test]
    fn pods_leave_when_their_patience_ends() {
        let since = (now() - meta::seconds(100)).to_string();
        let tainted = node(
            "False",
            json!({"spec": {"taints": [
            {"key": NOT_READY, "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute", "timeAdded": since}]}}),
        );
        let with = |toleration: Value| {
            let pod = resident(json!({"spec": {"tolerations": [toleration]}, "status": {"conditions": []}}));
            let outcome = reconcile(&tainted, word(Some(&lease(0))), &[pod], now());
            let leaves = outcome.effects.iter().any(|effect| matches!(effect, Effect::Delete { .. }));
            (leaves, outcome.recheck.map(|recheck| recheck.as_secs()))
        };
        let key = |seconds: Value| json!({"key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        assert_eq!(with(key(json!(60))), (true, Some(40)));
        assert_eq!(with(key(json!(120))), (false, Some(20)));
        assert_eq!(with(key(Value::Null)), (false, Some(40)), "it stays for ever");
        assert_eq!(
            with(json!({"key": "other", "operator": "Exists"})),
            (false, Some(40)),
            "by default 300 s"
        );
    }

    #[test]
    fn an_api_server_that_was_away_is_no_reason_to_give_up_its_nodes() {
        let old = lease(600);
        let deaf = Word { lease: Some(&old), listening: None };
        let outcome = reconcile(&node("True", json!({})), deaf, &[resident(json!({}))], now());
        assert_eq!(outcome, Outcome { effects: vec![], recheck: Some(DEAF) });
        let back = Word { lease: Some(&old), listening: Some(now() - meta::seconds(10)) };
        let outcome = reconcile(&node("True", json!({})), back, &[resident(json!({}))], now());
        assert_eq!(outcome, Outcome { effects: vec![], recheck: Some(Duration::from_secs(30)) });
        let tainted = json!({"spec": {"taints": [
            {"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute"}]}});
        let lost = reconcile(&node("Unknown", tainted), back, &[], now());
        assert_eq!(lost.effects, vec![], "a node known to be lost stays so until it is heard of");
    }

    #[test]
    fn a_new_node_has_time_to_say_its_first_word() {
        let created = (now() - meta::seconds(10)).to_string();
        let fresh = node("True", json!({"metadata": {"creationTimestamp": created}}));
        assert_eq!(reconcile(&fresh, word(None), &[], now()).recheck, Some(Duration::from_secs(30)));
    }
}
