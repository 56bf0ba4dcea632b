//! Whether one node can take a pod, and how well: resources, ports, taints, labels. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::controllers::{meta, pods};
use crate::quantity::Amount;

const PODS: &str = "pods";
const DEFAULT_PODS: Amount = Amount::whole(110);

type Amounts = BTreeMap<String, Amount>;

/// A node with what runs on it.
pub struct NodeView<'a> {
    pub node: &'a Node,
    pub pods: Vec<&'a Pod>,
    room: Amounts,
    used: Amounts,
}

impl<'a> NodeView<'a> {
    pub fn new(node: &'a Node) -> Self {
        let status = node.status.as_ref();
        let given = status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        let mut room = amounts(given);
        room.entry(PODS.to_owned()).or_insert(DEFAULT_PODS);
        Self { node, pods: Vec::new(), room, used: Amounts::new() }
    }

    pub fn name(&self) -> &'a str {
        meta::name(&self.node.metadata)
    }

    pub fn add(&mut self, pod: &'a Pod) {
        for (resource, amount) in requests(pod) {
            let used = self.used.entry(resource).or_default();
            *used = *used + amount;
        }
        self.pods.push(pod);
    }

    fn taints(&self) -> impl Iterator<Item = &'a Taint> {
        self.node.spec.iter().flat_map(|spec| spec.taints.iter().flatten())
    }

    fn fullness(&self) -> f64 {
        let share = |resource: &str| {
            let used = self.used.get(resource).copied().unwrap_or_default();
            self.room.get(resource).map_or(0.0, |room| used.fraction_of(*room))
        };
        ["cpu", "memory", PODS].into_iter().map(share).fold(0.0, f64::max)
    }
}

/// Why a node cannot take a pod; empty when it can. The first kind of reason found is the one told.
pub fn refusals(pod: &Pod, view: &NodeView<'_>) -> Vec<String> {
    let Some(spec) = &pod.spec else { return vec!["node(s) got a pod without a specification".to_owned()] };
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if let Some(taint) =
        view.taints().find(|taint| taint.effect != "PreferNoSchedule" && !is_tolerated(taint, tolerations))
    {
        let value = taint.value.as_deref().unwrap_or_default();
        return vec![format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)];
    }
    let cordoned = view.node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
    if cordoned && !tolerations.iter().any(|t| tolerates(t, &cordon())) {
        return vec!["node(s) were unschedulable".to_owned()];
    }
    if !matches_node(spec, view.node) {
        return vec!["node(s) didn't match Pod's node affinity/selector".to_owned()];
    }
    if let Some(taken) = taken_port(spec, view) {
        return vec![format!("node(s) didn't have free ports for the requested pod ports ({taken})")];
    }
    let lacking = requests(pod).into_iter().filter(|(resource, amount)| {
        let used = view.used.get(resource).copied().unwrap_or_default();
        let room = view.room.get(resource).copied().unwrap_or_default();
        *amount > Amount::ZERO && used + *amount > room
    });
    lacking
        .map(
            |(resource, _)| {
                if resource == PODS { "Too many pods".to_owned() } else { format!("Insufficient {resource}") }
            },
        )
        .collect()
}

/// Whether a node's labels and name satisfy a pod's selector and required node affinity.
pub fn matches_node(spec: &PodSpec, node: &Node) -> bool {
    let labels = meta::labels(&node.metadata);
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected
        && required
            .is_none_or(|required| required.node_selector_terms.iter().any(|term| matches_term(term, node)))
}

fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let (labels, name) = (meta::labels(&node.metadata), node.metadata.name.as_ref());
    let empty = term.match_expressions.as_ref().is_none_or(Vec::is_empty)
        && term.match_fields.as_ref().is_none_or(Vec::is_empty);
    let holds = |requirement: &NodeSelectorRequirement, value: Option<&String>| {
        meta::in_set(&requirement.operator, value, requirement.values.as_deref().unwrap_or_default())
    };
    !empty
        && term.match_expressions.iter().flatten().all(|r| holds(r, labels.get(&r.key)))
        && term.match_fields.iter().flatten().all(|r| r.key == "metadata.name" && holds(r, name))
}

pub fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let same_effect =
        toleration.effect.as_ref().is_none_or(|effect| effect.is_empty() || *effect == taint.effect);
    let key = toleration.key.as_deref().unwrap_or_default();
    let exists = toleration.operator.as_deref() == Some("Exists");
    let same_key = key == taint.key || (key.is_empty() && exists);
    let value = toleration.value.as_deref().unwrap_or_default();
    same_effect && same_key && (exists || value == taint.value.as_deref().unwrap_or_default())
}

fn cordon() -> Taint {
    Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        value: None,
        time_added: None,
    }
}

/// A host port another pod on the node holds.
fn taken_port(spec: &PodSpec, view: &NodeView<'_>) -> Option<String> {
    let held: Vec<(i32, String)> =
        view.pods.iter().filter_map(|pod| pod.spec.as_ref()).flat_map(host_ports).collect();
    host_ports(spec)
        .into_iter()
        .find(|port| held.contains(port))
        .map(|(port, protocol)| format!("{port}/{protocol}"))
}

fn host_ports(spec: &PodSpec) -> Vec<(i32, String)> {
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let protocol = |given: &Option<String>| given.clone().unwrap_or_else(|| "TCP".to_owned());
    ports
        .filter_map(|port| Some((port.host_port.filter(|port| *port > 0)?, protocol(&port.protocol))))
        .collect()
}

/// What a pod asks for: its containers together, or its largest init container, and one place among the pods.
fn requests(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::new() };
    let of = |container: &Container| amounts(container.resources.as_ref().and_then(|r| r.requests.as_ref()));
    let mut total = spec.containers.iter().map(of).fold(Amounts::new(), sum);
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let init: Vec<&Container> = spec.init_containers.iter().flatten().collect();
    total = init.iter().copied().filter(sidecar).map(of).fold(total, sum);
    for container in init.into_iter().filter(|container| !sidecar(container)) {
        for (resource, amount) in of(container) {
            let known = total.entry(resource).or_default();
            *known = (*known).max(amount);
        }
    }
    total = sum(total, amounts(spec.overhead.as_ref()));
    total.insert(PODS.to_owned(), Amount::ONE);
    total
}

/// What is no quantity counts as nothing: the API server refused it before.
fn amounts(given: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    given
        .into_iter()
        .flatten()
        .map(|(resource, quantity)| (resource.clone(), Amount::parse(&quantity.0).unwrap_or_default()))
        .collect()
}

fn sum(mut total: Amounts, more: Amounts) -> Amounts {
    for (resource, amount) in more {
        let known = total.entry(resource).or_default();
        *known = *known + amount;
    }
    total
}

/// How well a node suits; compared in the order of the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Rank {
    disliked_taints: usize,
    liking: i64,
    siblings: usize,
    fullness: f64,
    pods: usize,
    name: String,
}

impl Rank {
    pub fn is_better_than(&self, other: &Self) -> bool {
        let key = |rank: &Self| (rank.disliked_taints, -rank.liking, rank.siblings);
        key(self)
            .cmp(&key(other))
            .then(self.fullness.total_cmp(&other.fullness))
            .then(self.pods.cmp(&other.pods))
            .then(self.name.len().cmp(&other.name.len()))
            .then(self.name.cmp(&other.name))
            .is_lt()
    }
}

pub fn rank(pod: &Pod, view: &NodeView<'_>, pod_liking: i64) -> Rank {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let disliked = |taint: &&Taint| taint.effect == "PreferNoSchedule" && !is_tolerated(taint, tolerations);
    let owner = meta::controller(&pod.metadata).map(|owner| &owner.uid);
    let sibling =
        |other: &&&Pod| owner.is_some() && meta::controller(&other.metadata).map(|o| &o.uid) == owner;
    Rank {
        disliked_taints: view.taints().filter(disliked).count(),
        liking: pod_liking + node_liking(pod, view.node),
        siblings: view.pods.iter().filter(sibling).filter(|pod| !pods::is_finished(pod)).count(),
        fullness: view.fullness(),
        pods: view.pods.len(),
        name: view.name().to_owned(),
    }
}

fn node_liking(pod: &Pod, node: &Node) -> i64 {
    let affinity =
        pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let terms = preferred.into_iter().flatten();
    terms.filter(|term| matches_term(&term.preference, node)).map(|term| i64::from(term.weight)).sum()
}
