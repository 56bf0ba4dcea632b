//! Pods that want to be, or must not be, where other pods are. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm, TopologySpreadConstraint};

use super::fit::{NodeView, matches_node};
use crate::controllers::meta;

/// Why a pod cannot be on a node because of the pods there or elsewhere.
pub fn refusal(pod: &Pod, at: usize, views: &[NodeView<'_>]) -> Option<String> {
    let away = required_away(pod);
    if away.iter().any(|term| domain(term, at, views).any(|other| fits(term, pod, other))) {
        return Some("node(s) didn't match pod anti-affinity rules".to_owned());
    }
    // The others' wish to be alone counts as much.
    let shunned =
        views.iter().enumerate().flat_map(|(index, view)| view.pods.iter().map(move |other| (index, *other)));
    for (index, other) in shunned {
        let unwanted =
            |term: &&PodAffinityTerm| same_domain(term, index, at, views) && fits(term, other, pod);
        if required_away(other).iter().any(|term| unwanted(&term)) {
            return Some("node(s) didn't satisfy existing pods anti-affinity rules".to_owned());
        }
    }
    if !required_near(pod).iter().all(|term| is_near(term, pod, at, views)) {
        return Some("node(s) didn't match pod affinity rules".to_owned());
    }
    spread(pod, at, views).then(|| "node(s) didn't match pod topology spread constraints".to_owned())
}

/// How much a pod would like a node for the pods that are near it.
pub fn liking(pod: &Pod, at: usize, views: &[NodeView<'_>]) -> i64 {
    let Some(affinity) = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()) else { return 0 };
    let near = affinity
        .pod_affinity
        .as_ref()
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let away = affinity
        .pod_anti_affinity
        .as_ref()
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let count = |term: &PodAffinityTerm| {
        i64::try_from(domain(term, at, views).filter(|other| fits(term, pod, other)).count())
            .unwrap_or(i64::MAX)
    };
    let likes: i64 =
        near.into_iter().flatten().map(|t| i64::from(t.weight) * count(&t.pod_affinity_term).min(1)).sum();
    let dislikes: i64 =
        away.into_iter().flatten().map(|t| i64::from(t.weight) * count(&t.pod_affinity_term)).sum();
    likes - dislikes
}

fn required_away(pod: &Pod) -> &[PodAffinityTerm] {
    let affinity =
        pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()).and_then(|a| a.pod_anti_affinity.as_ref());
    affinity
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default()
}

fn required_near(pod: &Pod) -> &[PodAffinityTerm] {
    let affinity =
        pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()).and_then(|a| a.pod_affinity.as_ref());
    affinity
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default()
}

/// Some pod of the term is near, or this is the first of a group that wants to be together.
fn is_near(term: &PodAffinityTerm, pod: &Pod, at: usize, views: &[NodeView<'_>]) -> bool {
    if !has_domain(term, at, views) {
        return false;
    }
    let nobody_anywhere = !views.iter().flat_map(|view| &view.pods).any(|other| fits(term, pod, other));
    domain(term, at, views).any(|other| fits(term, pod, other)) || (nobody_anywhere && fits(term, pod, pod))
}

/// Whether another pod is one the term of `pod` speaks of.
fn fits(term: &PodAffinityTerm, pod: &Pod, other: &Pod) -> bool {
    let (own, theirs) = (meta::namespace(&pod.metadata), meta::namespace(&other.metadata));
    let named = term.namespaces.as_deref().unwrap_or_default();
    // A selector over namespaces' labels needs those; an empty one means all of them.
    let everywhere = term
        .namespace_selector
        .as_ref()
        .is_some_and(|s| s.match_labels.is_none() && s.match_expressions.is_none());
    let here = everywhere || named.iter().any(|name| name == theirs) || (named.is_empty() && own == theirs);
    here && term
        .label_selector
        .as_ref()
        .is_some_and(|selector| meta::selects(selector, meta::labels(&other.metadata)))
}

/// The pods on nodes in the same part of the topology.
fn domain<'a>(term: &PodAffinityTerm, at: usize, views: &'a [NodeView<'_>]) -> impl Iterator<Item = &'a Pod> {
    let key = term.topology_key.clone();
    let value = meta::labels(&views[at].node.metadata).get(&key);
    let near = views
        .iter()
        .filter(move |view| value.is_some() && meta::labels(&view.node.metadata).get(&key) == value);
    near.flat_map(|view| view.pods.iter().copied())
}

fn has_domain(term: &PodAffinityTerm, at: usize, views: &[NodeView<'_>]) -> bool {
    meta::labels(&views[at].node.metadata).contains_key(&term.topology_key)
}

fn same_domain(term: &PodAffinityTerm, a: usize, b: usize, views: &[NodeView<'_>]) -> bool {
    let value = |index: usize| meta::labels(&views[index].node.metadata).get(&term.topology_key);
    value(a).is_some() && value(a) == value(b)
}

/// Whether the pod here would make some part of the topology too crowded.
fn spread(pod: &Pod, at: usize, views: &[NodeView<'_>]) -> bool {
    let constraints =
        pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_deref()).unwrap_or_default();
    let hard = constraints.iter().filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule");
    hard.into_iter().any(|constraint| is_crowded(constraint, pod, at, views))
}

fn is_crowded(constraint: &TopologySpreadConstraint, pod: &Pod, at: usize, views: &[NodeView<'_>]) -> bool {
    let place =
        |view: &NodeView<'_>| meta::labels(&view.node.metadata).get(&constraint.topology_key).cloned();
    let Some(here) = place(&views[at]) else { return true };
    let counted = |other: &&&Pod| {
        let selected = constraint
            .label_selector
            .as_ref()
            .is_some_and(|s| meta::selects(s, meta::labels(&other.metadata)));
        selected
            && other.metadata.namespace == pod.metadata.namespace
            && !meta::is_terminating(&other.metadata)
    };
    let mut crowds = BTreeMap::<String, i32>::new();
    for view in
        views.iter().filter(|view| pod.spec.as_ref().is_some_and(|spec| matches_node(spec, view.node)))
    {
        let Some(place) = place(view) else { continue };
        *crowds.entry(place).or_default() +=
            i32::try_from(view.pods.iter().filter(counted).count()).unwrap_or(i32::MAX);
    }
    let own =
        constraint.label_selector.as_ref().is_some_and(|s| meta::selects(s, meta::labels(&pod.metadata)));
    let least = crowds.values().min().copied().unwrap_or(0);
    crowds.get(&here).copied().unwrap_or(0) + i32::from(own) - least > constraint.max_skew
}
