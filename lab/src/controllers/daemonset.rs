//! DaemonSets: one pod on every node that will have it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, DaemonSetSpec, DaemonSetStatus, RollingUpdateDaemonSet,
};
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::effect::{Effect, Kind, Outcome};
use super::history::{History, LABEL};
use super::meta::{self, Round};
use super::pods::{self, Naming};
use super::scheduler;

/// What every daemon puts up with: it is there for the node, whatever state the node is in.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// Decides about one set from the nodes, and the pods and versions of its namespace.
pub fn reconcile(
    set: &DaemonSet,
    nodes: &[Arc<Node>],
    pods: &[Arc<Pod>],
    revisions: &[Arc<ControllerRevision>],
    now: Timestamp,
) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(spec) = set.spec.as_ref().filter(|_| !meta::is_terminating(&set.metadata)) else {
        return outcome;
    };
    let history = History::new(Kind::DaemonSet, &set.metadata, &spec.template, revisions);
    let view = View::new(set, spec, nodes, pods, &history, now);
    outcome.effects.extend(history.effects(spec.revision_history_limit, &view.versions_in_use()));
    outcome.effects.extend(view.steps());
    let status = view.status();
    if set.status.as_ref() != Some(&status) {
        outcome.effects.push(Effect::status(
            Kind::DaemonSet,
            view.namespace(),
            meta::name(&set.metadata),
            &status,
        ));
    }
    outcome.recheck = pods::count(view.pods.values().flatten(), view.min_ready(), now).next;
    outcome
}

struct View<'a> {
    set: &'a DaemonSet,
    spec: &'a DaemonSetSpec,
    history: &'a History<'a>,
    /// The nodes that should run a pod.
    wanted: BTreeSet<String>,
    /// Pods by the node they are on or meant for.
    pods: BTreeMap<String, Vec<Arc<Pod>>>,
    now: Timestamp,
}

impl<'a> View<'a> {
    fn new(
        set: &'a DaemonSet,
        spec: &'a DaemonSetSpec,
        nodes: &[Arc<Node>],
        pods: &[Arc<Pod>],
        history: &'a History<'a>,
        now: Timestamp,
    ) -> Self {
        let template = daemon_spec(spec.template.spec.clone().unwrap_or_default());
        let names = nodes
            .iter()
            .filter(|node| belongs(&template, node))
            .map(|node| meta::name(&node.metadata).to_owned());
        let mut by_node = BTreeMap::<String, Vec<Arc<Pod>>>::new();
        for pod in pods.iter().filter(|pod| meta::is_controlled_by(&pod.metadata, &set.metadata)) {
            by_node.entry(home(pod).unwrap_or_default().to_owned()).or_default().push(pod.clone());
        }
        Self { set, spec, history, wanted: names.collect(), pods: by_node, now }
    }

    fn namespace(&self) -> &str {
        meta::namespace(&self.set.metadata)
    }

    fn min_ready(&self) -> i32 {
        self.spec.min_ready_seconds.unwrap_or(0)
    }

    fn versions_in_use(&self) -> BTreeSet<String> {
        let hashes = self.pods.values().flatten().filter_map(|pod| meta::labels(&pod.metadata).get(LABEL));
        hashes.map(|hash| format!("{}-{hash}", meta::name(&self.set.metadata))).collect()
    }

    fn steps(&self) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (node, pods) in &self.pods {
            let stays = self.wanted.contains(node);
            let mut kept = BTreeSet::new();
            for pod in pods.iter().filter(|pod| !meta::is_terminating(&pod.metadata)) {
                // One that ended is made anew; of two, one is too many, unless it is there to take the other's place.
                let takes_over = self.surge() > 0 && self.is_updated(pod);
                if !stays || pods::is_finished(pod) || !kept.insert(takes_over) {
                    effects.push(self.delete(pod));
                }
            }
        }
        let missing = self.wanted.iter().filter(|node| self.pods.get(*node).is_none_or(Vec::is_empty));
        effects.extend(missing.map(|node| self.create(node)));
        effects.extend(self.replace_old());
        effects
    }

    fn rolling(&self) -> Option<&RollingUpdateDaemonSet> {
        self.spec.update_strategy.as_ref()?.rolling_update.as_ref()
    }

    fn total(&self) -> i32 {
        count(self.wanted.iter())
    }

    /// How many nodes may have a pod of each version at once.
    fn surge(&self) -> i32 {
        let given = self.rolling().and_then(|rolling| rolling.max_surge.as_ref());
        meta::share(given, self.total(), Round::Up, &IntOrString::Int(0))
    }

    fn replace_old(&self) -> Vec<Effect> {
        let strategy = self.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
        match self.surge() {
            _ if strategy == Some("OnDelete") => Vec::new(),
            0 => self.replace_in_place(),
            surge => self.replace_by_surge(surge),
        }
    }

    /// The old pod stays until the new one serves; one that does not serve anyway costs nothing to replace.
    fn replace_by_surge(&self, surge: i32) -> Vec<Effect> {
        let (mut effects, mut candidates, mut surging) = (Vec::new(), Vec::new(), 0);
        for node in &self.wanted {
            let active = || self.pods.get(node).into_iter().flatten().filter(|pod| pods::is_active(pod));
            let Some(old) = active().find(|pod| !self.is_updated(pod)) else { continue };
            match active().find(|pod| self.is_updated(pod)) {
                Some(new) if self.serves(new) => effects.push(self.delete(old)),
                Some(_) => surging += 1,
                None if self.serves(old) => candidates.push(node),
                None => effects.push(self.create(node)),
            }
        }
        let more = usize::try_from(surge - surging).unwrap_or_default();
        effects.extend(candidates.into_iter().take(more).map(|node| self.create(node)));
        effects
    }

    /// Pods of an older version, as many at once as nodes may be without one.
    fn replace_in_place(&self) -> Vec<Effect> {
        let one = IntOrString::Int(1);
        let given = self.rolling().and_then(|rolling| rolling.max_unavailable.as_ref());
        let may_miss = meta::share(given, self.total(), Round::Up, &one).max(1);
        let mut missing = self.total() - self.serving();
        let mut old: Vec<&Arc<Pod>> =
            self.on_wanted().filter(|pod| pods::is_active(pod) && !self.is_updated(pod)).collect();
        // Those that do not serve anyway go first and cost nothing.
        old.sort_by_key(|pod| self.serves(pod));
        let mut effects = Vec::new();
        for pod in old {
            let costs = i32::from(self.serves(pod));
            if costs > 0 && missing + costs > may_miss {
                break;
            }
            missing += costs;
            effects.push(self.delete(pod));
        }
        effects
    }

    /// The pod that counts on each node: of two, the one that serves, and the newer of equals.
    fn on_wanted(&self) -> impl Iterator<Item = &Arc<Pod>> {
        let best = |pods: &'_ Vec<Arc<Pod>>| {
            let active = pods.iter().enumerate().filter(|(_, pod)| pods::is_active(pod));
            let best = active.max_by_key(|(_, pod)| (self.serves(pod), self.is_updated(pod)));
            best.map_or(0, |(index, _)| index)
        };
        self.pods
            .iter()
            .filter(|(node, _)| self.wanted.contains(*node))
            .filter_map(move |(_, pods)| pods.get(best(pods)))
    }

    fn serves(&self, pod: &Pod) -> bool {
        pods::is_active(pod)
            && pods::availability(pod, self.min_ready(), self.now) == pods::Availability::Available
    }

    fn serving(&self) -> i32 {
        count(self.on_wanted().filter(|pod| self.serves(pod)))
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        meta::labels(&pod.metadata).get(LABEL).map(String::as_str) == Some(self.history.update_hash())
    }

    fn create(&self, node: &str) -> Effect {
        let owner = meta::owner_reference(Kind::DaemonSet, &self.set.metadata);
        let name = meta::name(&self.set.metadata);
        let mut pod =
            pods::from_template(&self.spec.template, self.namespace(), &Naming::Prefix(name), owner);
        pod.metadata
            .labels
            .get_or_insert_default()
            .insert(LABEL.to_owned(), self.history.update_hash().to_owned());
        pod.spec = pod.spec.map(|spec| meant_for(daemon_spec(spec), node));
        Effect::create(Kind::Pod, self.namespace(), "", &pod)
    }

    fn delete(&self, pod: &Pod) -> Effect {
        Effect::delete(Kind::Pod, self.namespace(), meta::name(&pod.metadata), meta::uid(&pod.metadata))
    }

    fn status(&self) -> DaemonSetStatus {
        let wanted = count(self.wanted.iter());
        let running = count(self.on_wanted());
        let misplaced = self.pods.iter().filter(|(node, pods)| {
            !self.wanted.contains(*node) && pods.iter().any(|pod| !pods::is_finished(pod))
        });
        let available = self.serving();
        DaemonSetStatus {
            desired_number_scheduled: wanted,
            current_number_scheduled: running,
            number_misscheduled: count(misplaced),
            number_ready: count(self.on_wanted().filter(|pod| pods::is_ready(pod))),
            updated_number_scheduled: Some(count(self.on_wanted().filter(|pod| self.is_updated(pod)))),
            number_available: Some(available),
            number_unavailable: Some(wanted - available),
            observed_generation: self.set.metadata.generation,
            collision_count: None,
            conditions: self.set.status.as_ref().and_then(|status| status.conditions.clone()),
        }
    }
}

fn count<T>(items: impl Iterator<Item = T>) -> i32 {
    i32::try_from(items.count()).unwrap_or(i32::MAX)
}

/// A daemon's specification: what its author wrote, and what every daemon puts up with.
fn daemon_spec(mut spec: PodSpec) -> PodSpec {
    let on_host = spec.host_network == Some(true);
    let tolerated = TOLERATED.into_iter().chain(on_host.then_some(NETWORK_UNAVAILABLE));
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in tolerated {
        let known =
            tolerations.iter().any(|t| t.key.as_deref() == Some(key) && t.effect.as_deref() == Some(effect));
        if !known {
            tolerations.push(Toleration {
                key: Some(key.to_owned()),
                operator: Some("Exists".to_owned()),
                effect: Some(effect.to_owned()),
                ..Toleration::default()
            });
        }
    }
    spec
}

/// Whether a node should run the daemon: its labels fit and nothing on it says no.
fn belongs(spec: &PodSpec, node: &Node) -> bool {
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let refuses =
        |taint: &Taint| taint.effect != "PreferNoSchedule" && !scheduler::is_tolerated(taint, tolerations);
    scheduler::matches_node(spec, node) && !taints.into_iter().any(refuses)
}

/// Ties a pod to a node by name; the scheduler then checks that it fits.
fn meant_for(mut spec: PodSpec, node: &str) -> PodSpec {
    let field = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector { node_selector_terms: vec![NodeSelectorTerm::default()] });
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![field.clone()]);
    }
    spec
}

/// The node a pod is on, or the one it was made for.
fn home(pod: &Pod) -> Option<&str> {
    pods::node_name(pod).or_else(|| {
        let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        let terms =
            &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
        let field =
            terms.first()?.match_fields.as_ref()?.iter().find(|field| field.key == "metadata.name")?;
        field.values.as_ref()?.first().map(String::as_str)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::{merge, now, parse};
    use serde_json::{Value, json};

    fn node(name: &str, more: Value) -> Arc<Node> {
        let mut object = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        merge(&mut object, more);
        Arc::new(parse(object))
    }

    /// A set and its pods, to which effects are applied.
    struct Model {
        set: Value,
        nodes: Vec<Arc<Node>>,
        pods: Vec<Value>,
        revisions: Vec<Value>,
    }

    impl Model {
        fn new(nodes: Vec<Arc<Node>>, more: Value) -> Self {
            let mut set = json!({
                "metadata": {"name": "log", "namespace": "shop", "uid": "ds-uid", "generation": 1},
                "spec": {"selector": {"matchLabels": {"app": "log"}},
                    "template": {"metadata": {"labels": {"app": "log"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
            });
            merge(&mut set, more);
            Self { set, nodes, pods: Vec::new(), revisions: Vec::new() }
        }

        /// One look; how many pods were made and deleted.
        fn look(&mut self) -> (usize, usize) {
            let pods: Vec<Arc<Pod>> = self.pods.iter().map(|pod| Arc::new(parse(pod.clone()))).collect();
            let revisions: Vec<Arc<ControllerRevision>> =
                self.revisions.iter().map(|r| Arc::new(parse(r.clone()))).collect();
            let outcome = reconcile(&parse(self.set.clone()), &self.nodes, &pods, &revisions, now());
            let mut changed = (0, 0);
            for effect in &outcome.effects {
                match effect {
                    Effect::Create { target, body } if target.kind == Kind::Pod => {
                        let mut pod = body.clone();
                        let name = format!("p{}", self.pods.len());
                        merge(&mut pod, json!({"metadata": {"name": name, "uid": name}}));
                        self.pods.push(pod);
                        changed.0 += 1;
                    }
                    Effect::Create { body, .. } => self.revisions.push(body.clone()),
                    Effect::Delete { target, .. } if target.kind == Kind::Pod => {
                        self.pods.retain(|pod| pod["metadata"]["name"] != target.name.as_str());
                        changed.1 += 1;
                    }
                    Effect::MergeStatus { body, .. } => merge(&mut self.set, body.clone()),
                    _ => {}
                }
            }
            changed
        }

        /// The scheduler and the kubelets do their part.
        fn run(&mut self) {
            for pod in &mut self.pods {
                let parsed: Pod = parse(pod.clone());
                let home = home(&parsed).unwrap().to_owned();
                merge(
                    pod,
                    json!({"spec": {"nodeName": home}, "status": {"phase": "Running",
                    "conditions": [{"type": "Ready", "status": "True"}]}}),
                );
            }
        }

        fn places(&self) -> Vec<String> {
            let mut places: Vec<String> =
                self.pods.iter().filter_map(|pod| home(&parse(pod.clone())).map(str::to_owned)).collect();
            places.sort();
            places
        }
    }

    fn three() -> Vec<Arc<Node>> {
        ["a", "b", "c"].map(|name| node(name, json!({}))).to_vec()
    }

    #[test]
    fn one_pod_on_every_node_that_will_have_it() {
        let taint = |key: &str| json!({"spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}});
        let nodes = vec![
            node("plain", json!({})),
            node("tainted", taint("gpu")),
            node("cordoned", taint("node.kubernetes.io/unschedulable")),
            node("labelled", json!({"metadata": {"labels": {"skip": "yes"}}})),
        ];
        let affinity = json!({"spec": {"template": {"spec": {"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]}]}}}}}}});
        let mut model = Model::new(nodes, affinity);
        model.look();
        assert_eq!(model.places(), ["cordoned", "plain"]);
        let spec = &model.pods[0]["spec"];
        let term = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            [0];
        assert_eq!(term["matchExpressions"][0]["key"], "skip", "the author's wish is kept");
        assert_eq!(model.look(), (0, 0));
    }

    #[test]
    fn nodes_that_come_and_go_take_their_pods_along() {
        let mut model = Model::new(three(), json!({}));
        assert_eq!(model.look(), (3, 0));
        model.run();
        model.nodes.push(node("d", json!({})));
        model.nodes.remove(0);
        assert_eq!(model.look(), (1, 1));
        assert_eq!(model.places(), ["b", "c", "d"]);
    }

    #[test]
    fn updates_replace_as_many_at_once_as_may_be_missing() {
        let mut model = Model::new(three(), json!({}));
        model.look();
        model.run();
        model.look();
        merge(
            &mut model.set,
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}),
        );
        let mut steps = Vec::new();
        for _ in 0..8 {
            steps.push(model.look());
            model.run();
        }
        let deleted: Vec<usize> = steps.iter().map(|(_, deleted)| *deleted).collect();
        assert!(
            deleted.iter().all(|deleted| *deleted <= 1) && deleted.iter().sum::<usize>() == 3,
            "{steps:?}"
        );
        let status = &model.set["status"];
        for field in ["desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable", "numberReady"] {
            assert_eq!(status[field], 3, "{field}");
        }
        assert_eq!(status["numberUnavailable"], 0);
    }

    #[test]
    fn with_a_surge_no_node_is_without_a_pod_that_serves() {
        let surging = json!({"spec": {"updateStrategy": {"type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}}}});
        let mut model = Model::new(three(), surging);
        model.look();
        model.run();
        let newer = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}});
        merge(&mut model.set, newer);
        let mut steps = Vec::new();
        for _ in 0..5 {
            steps.push(model.look());
            for node in ["a", "b", "c"] {
                let here = |pod: &&Value| home(&parse((*pod).clone())) == Some(node);
                let ready = |pod: &&Value| pod["status"]["conditions"][0]["status"] == "True";
                assert!(model.pods.iter().filter(here).any(|pod| ready(&pod)), "{node} after {steps:?}");
            }
            assert_eq!(model.look(), (0, 0), "it waits for those it made");
            model.run();
        }
        assert_eq!(steps, [(2, 0), (1, 2), (0, 1), (0, 0), (0, 0)]);
        assert!(model.pods.iter().all(|pod| pod["spec"]["containers"][0]["image"] == "v2"));
        assert_eq!(model.set["status"]["updatedNumberScheduled"], 3);
    }

    #[test]
    fn a_pod_that_ended_is_made_anew() {
        let mut model = Model::new(three(), json!({}));
        model.look();
        model.run();
        merge(&mut model.pods[1], json!({"status": {"phase": "Failed"}}));
        assert_eq!(model.look(), (0, 1));
        assert_eq!(model.look(), (1, 0));
    }

    #[test]
    fn on_delete_waits_for_the_operator() {
        let mut model = Model::new(three(), json!({"spec": {"updateStrategy": {"type": "OnDelete"}}}));
        model.look();
        model.run();
        merge(
            &mut model.set,
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}),
        );
        assert_eq!(model.look(), (0, 0));
    }
}
