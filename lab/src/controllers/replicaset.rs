//! ReplicaSets: as many pods of a template as asked for. Pure.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::effect::{Effect, Kind, Outcome, Target};
use super::meta;
use super::pods::{self, Naming};

/// Decides about one set from the pods of its namespace.
pub fn reconcile(set: &ReplicaSet, namespace_pods: &[Arc<Pod>], now: Timestamp) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(spec) = &set.spec else { return outcome };
    let mut mine = Vec::new();
    for pod in namespace_pods {
        match belonging(set, pod) {
            Belonging::Mine => mine.push(pod.clone()),
            Belonging::ToAdopt => {
                outcome.effects.push(adopt(set, pod));
                mine.push(pod.clone());
            }
            Belonging::ToRelease => outcome.effects.push(release(set, pod)),
            Belonging::Foreign => {}
        }
    }
    let active: Vec<Arc<Pod>> = mine.into_iter().filter(|pod| pods::is_active(pod)).collect();
    if !meta::is_terminating(&set.metadata) {
        outcome.effects.extend(scale(set, active.clone(), spec.replicas.unwrap_or(1), now));
    }
    let counts = pods::count(&active, spec.min_ready_seconds.unwrap_or(0), now);
    let status = status(set, &active, counts);
    if set.status.as_ref() != Some(&status) {
        let (namespace, name) = (meta::namespace(&set.metadata), meta::name(&set.metadata));
        outcome.effects.push(Effect::status(Kind::ReplicaSet, namespace, name, &status));
    }
    if let Some(next) = counts.next {
        outcome.again_in(next);
    }
    outcome
}

enum Belonging {
    Mine,
    ToAdopt,
    ToRelease,
    Foreign,
}

fn belonging(set: &ReplicaSet, pod: &Pod) -> Belonging {
    let selected =
        set.spec.as_ref().is_some_and(|spec| meta::selects(&spec.selector, meta::labels(&pod.metadata)));
    let controlled = meta::is_controlled_by(&pod.metadata, &set.metadata);
    let orphan = meta::controller(&pod.metadata).is_none();
    let set_stays = !meta::is_terminating(&set.metadata);
    match (controlled, selected) {
        (true, true) => Belonging::Mine,
        (true, false) if set_stays => Belonging::ToRelease,
        (false, true) if orphan && set_stays && pods::is_active(pod) => Belonging::ToAdopt,
        _ => Belonging::Foreign,
    }
}

fn adopt(set: &ReplicaSet, pod: &Pod) -> Effect {
    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
    owners.push(meta::owner_reference(Kind::ReplicaSet, &set.metadata));
    change_owners(pod, &json!(owners))
}

fn release(set: &ReplicaSet, pod: &Pod) -> Effect {
    let owners = pod.metadata.owner_references.iter().flatten();
    let others: Vec<_> = owners.filter(|owner| Some(&owner.uid) != set.metadata.uid.as_ref()).collect();
    change_owners(pod, &json!(others))
}

fn change_owners(pod: &Pod, owners: &serde_json::Value) -> Effect {
    Effect::Merge {
        target: Target::new(Kind::Pod, meta::namespace(&pod.metadata), meta::name(&pod.metadata)),
        body: json!({"metadata": {
            "uid": meta::uid(&pod.metadata),
            "resourceVersion": pod.metadata.resource_version,
            "ownerReferences": owners,
        }}),
    }
}

fn scale(set: &ReplicaSet, mut active: Vec<Arc<Pod>>, wanted: i32, now: Timestamp) -> Vec<Effect> {
    let (namespace, name) = (meta::namespace(&set.metadata), meta::name(&set.metadata));
    let wanted = usize::try_from(wanted).unwrap_or(0);
    if active.len() < wanted {
        let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
        let owner = meta::owner_reference(Kind::ReplicaSet, &set.metadata);
        let pod = pods::from_template(&template, namespace, &Naming::Prefix(name), owner);
        return vec![Effect::create(Kind::Pod, namespace, "", &pod); wanted - active.len()];
    }
    let surplus = active.len() - wanted;
    if surplus > 0 {
        pods::least_useful_first(&mut active, now);
    }
    let delete = |pod: &Arc<Pod>| {
        Effect::delete(Kind::Pod, namespace, meta::name(&pod.metadata), meta::uid(&pod.metadata))
    };
    active.iter().take(surplus).map(delete).collect()
}

fn status(set: &ReplicaSet, active: &[Arc<Pod>], counts: pods::Counts) -> ReplicaSetStatus {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let wanted =
        template.and_then(|template| template.metadata.as_ref()).and_then(|meta| meta.labels.as_ref());
    let labelled = active.iter().filter(|pod| {
        let labels = meta::labels(&pod.metadata);
        wanted.into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
    });
    ReplicaSetStatus {
        replicas: counts.total,
        fully_labeled_replicas: i32::try_from(labelled.count()).ok(),
        ready_replicas: Some(counts.ready),
        available_replicas: Some(counts.available),
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
        terminating_replicas: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::{now, parse, pod};

    fn set(replicas: i32) -> ReplicaSet {
        parse(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "set-uid", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}}},
        }))
    }

    fn mine(name: &str, more: serde_json::Value) -> Arc<Pod> {
        pod(name, "app=web", Some(("ReplicaSet", "web-1", "set-uid")), more)
    }

    fn deleted(outcome: &Outcome) -> Vec<&str> {
        let name = |effect: &'_ Effect| match effect {
            Effect::Delete { target, .. } => Some(target.name.clone()),
            _ => None,
        };
        outcome.effects.iter().filter_map(name).map(|name| &*name.leak()).collect()
    }

    fn created(outcome: &Outcome) -> usize {
        outcome.effects.iter().filter(|effect| matches!(effect, Effect::Create { .. })).count()
    }

    #[test]
    fn makes_the_missing_pods_with_labels_and_owner() {
        let outcome = reconcile(&set(3), &[mine("a", json!({}))], now());
        assert_eq!(created(&outcome), 2);
        let Effect::Create { body, target } = &outcome.effects[0] else { panic!("{outcome:?}") };
        assert_eq!(target.kind, Kind::Pod);
        assert_eq!(body["metadata"]["generateName"], "web-1-");
        assert_eq!(body["metadata"]["labels"]["app"], "web");
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "set-uid");
    }

    #[test]
    fn finished_and_terminating_pods_are_replaced() {
        let pods = [
            mine("failed", json!({"status": {"phase": "Failed"}})),
            mine("going", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
        ];
        let outcome = reconcile(&set(1), &pods, now());
        assert_eq!(created(&outcome), 1);
        assert!(deleted(&outcome).is_empty());
    }

    #[test]
    fn gives_up_the_least_useful_pods_first() {
        let ready = json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        let running = json!({"spec": {"nodeName": "n2"}, "status": {"phase": "Running"}});
        let pods = [mine("ready", ready), mine("running", running), mine("unbound", json!({}))];
        assert_eq!(deleted(&reconcile(&set(1), &pods, now())), ["unbound", "running"]);
    }

    #[test]
    fn adopts_orphans_and_releases_pods_whose_labels_left() {
        let orphan = pod("orphan", "app=web", None, json!({}));
        let left = pod("left", "app=other", Some(("ReplicaSet", "web-1", "set-uid")), json!({}));
        let foreign = pod("foreign", "app=web", Some(("ReplicaSet", "x", "other-uid")), json!({}));
        let outcome = reconcile(&set(1), &[orphan, left, foreign], now());
        let merges: Vec<(String, usize)> = outcome
            .effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Merge { target, body } => {
                    Some((target.name.clone(), body["metadata"]["ownerReferences"].as_array().unwrap().len()))
                }
                _ => None,
            })
            .collect();
        assert_eq!(merges, [("orphan".to_owned(), 1), ("left".to_owned(), 0)]);
        assert_eq!(created(&outcome), 0, "the adopted pod counts");
    }

    #[test]
    fn counts_what_is_there_and_says_nothing_when_nothing_changed() {
        let ready =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        let pods = [mine("a", ready), mine("b", json!({}))];
        let outcome = reconcile(&set(2), &pods, now());
        let [Effect::MergeStatus { body, .. }] = &outcome.effects[..] else { panic!("{outcome:?}") };
        assert_eq!(body["status"]["replicas"], 2);
        assert_eq!(body["status"]["readyReplicas"], 1);
        let mut settled = set(2);
        settled.status = Some(serde_json::from_value(body["status"].clone()).unwrap());
        assert_eq!(reconcile(&settled, &pods, now()), Outcome::default());
    }

    #[test]
    fn a_set_on_its_way_out_makes_no_pods() {
        let mut going = set(3);
        going.metadata.deletion_timestamp = Some(meta::stamp(now()));
        assert_eq!(created(&reconcile(&going, &[], now())), 0);
    }

    #[test]
    fn looks_again_when_a_ready_pod_becomes_available() {
        let mut set = set(1);
        set.spec.as_mut().unwrap().min_ready_seconds = Some(10);
        let since = (now() - jiff::SignedDuration::from_secs(4)).to_string();
        let ready = json!({"status": {"phase": "Running",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}]}});
        let outcome = reconcile(&set, &[mine("a", ready)], now());
        assert_eq!(outcome.recheck, Some(std::time::Duration::from_secs(6)));
    }
}
