//! Deployments: one replica set per version of the template, and the steps from one to the next. Pure.

mod conditions;
mod rollout;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::effect::{Effect, Kind, Outcome, Target, Tone, to_value};
use super::meta::{self, Labels, Round};

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
pub const TEMPLATE_HASH: &str = "pod-template-hash";
const KEPT_REVISIONS: i32 = 10;

/// Decides about one deployment from the replica sets and pods of its namespace.
pub fn reconcile(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> Outcome {
    let mut outcome = Outcome::default();
    if meta::is_terminating(&deployment.metadata) {
        return outcome;
    }
    let Some(view) = View::of(deployment, sets, pods) else { return outcome };
    outcome.effects.extend(view.revision_on_deployment());
    let sizes = rollout::sizes(&view);
    outcome.effects.extend(view.write_sets(&sizes));
    let (status, recheck) = conditions::status(&view, &sizes, now);
    outcome.recheck = recheck;
    outcome.effects.extend(view.forget_old(&status));
    if deployment.status.as_ref() != Some(&status) {
        outcome.effects.push(Effect::MergeStatus {
            target: view.target(),
            body: json!({"status": status_body(&status)}),
        });
    }
    outcome
}

/// A merge patch keeps what it does not name, so that numbers which became zero must be said.
fn status_body(status: &DeploymentStatus) -> serde_json::Value {
    let mut body = to_value(status);
    for field in ["availableReplicas", "readyReplicas", "replicas", "unavailableReplicas", "updatedReplicas"]
    {
        if body.get(field).is_none() {
            body[field] = json!(0);
        }
    }
    body
}

/// A deployment and its replica sets, sorted out.
pub struct View<'a> {
    deployment: &'a Deployment,
    template: &'a PodTemplateSpec,
    selector: &'a LabelSelector,
    /// The set of the template in force, if it exists.
    new: Option<Arc<ReplicaSet>>,
    /// The others, oldest first.
    old: Vec<Arc<ReplicaSet>>,
    /// Whether pods of old sets are still there, ended ones aside.
    old_pods: OldPods,
    revision: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OldPods {
    Gone,
    StillThere,
}

impl<'a> View<'a> {
    fn of(deployment: &'a Deployment, sets: &[Arc<ReplicaSet>], pods: &[Arc<Pod>]) -> Option<Self> {
        let spec = deployment.spec.as_ref()?;
        let mut mine: Vec<Arc<ReplicaSet>> = sets
            .iter()
            .filter(|set| meta::is_controlled_by(&set.metadata, &deployment.metadata))
            .cloned()
            .collect();
        mine.sort_by_key(|set| (meta::created(&set.metadata), meta::name(&set.metadata).to_owned()));
        let at = mine.iter().position(|set| same_template(set, &spec.template));
        let new = at.map(|at| mine.remove(at));
        let old = mine;
        let lives = |pod: &&Arc<Pod>| {
            !super::pods::is_finished(pod)
                && old.iter().any(|set| meta::is_controlled_by(&pod.metadata, &set.metadata))
        };
        let old_pods = if pods.iter().any(|pod| lives(&pod)) { OldPods::StillThere } else { OldPods::Gone };
        let highest = old.iter().map(|set| revision_of(&set.metadata)).max().unwrap_or(0);
        let revision = new.as_ref().map_or(0, |set| revision_of(&set.metadata)).max(highest + 1);
        Some(Self {
            deployment,
            template: &spec.template,
            selector: &spec.selector,
            new,
            old,
            old_pods,
            revision,
        })
    }

    fn all(&self) -> impl Iterator<Item = &Arc<ReplicaSet>> {
        self.old.iter().chain(&self.new)
    }

    fn wanted(&self) -> i32 {
        self.deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).max(0)
    }

    fn is_paused(&self) -> bool {
        self.deployment.spec.as_ref().is_some_and(|spec| spec.paused == Some(true))
    }

    fn is_recreate(&self) -> bool {
        let strategy = self.deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
        strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
    }

    fn limits(&self) -> (i32, i32) {
        if self.is_recreate() {
            return (0, 0);
        }
        let strategy = self.deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".to_owned());
        let wanted = self.wanted();
        let surge = meta::share(rolling.and_then(|r| r.max_surge.as_ref()), wanted, Round::Up, &quarter);
        let unavailable =
            meta::share(rolling.and_then(|r| r.max_unavailable.as_ref()), wanted, Round::Down, &quarter);
        // With neither, no step would ever be possible.
        if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable.min(wanted)) }
    }

    /// How many pods more than wanted there may be.
    fn max_surge(&self) -> i32 {
        self.limits().0
    }

    /// How many pods fewer than wanted may be available.
    fn max_unavailable(&self) -> i32 {
        if self.is_recreate() { self.wanted() } else { self.limits().1 }
    }

    fn namespace(&self) -> &str {
        meta::namespace(&self.deployment.metadata)
    }

    fn target(&self) -> Target {
        Target::new(Kind::Deployment, self.namespace(), meta::name(&self.deployment.metadata))
    }

    fn revision_on_deployment(&self) -> Option<Effect> {
        let known = meta::annotation(&self.deployment.metadata, REVISION);
        let revision = self.revision.to_string();
        // While paused without a set of its own, the template has no revision yet.
        if known == Some(&revision) || (self.new.is_none() && self.is_paused()) {
            return None;
        }
        Some(Effect::Merge {
            target: self.target(),
            body: json!({"metadata": {"annotations": {REVISION: revision}}}),
        })
    }

    fn write_sets(&self, sizes: &rollout::Sizes) -> Vec<Effect> {
        let mut effects = Vec::new();
        match (&self.new, sizes.new) {
            (Some(set), _) => effects.extend(self.update(set, sizes.new, self.annotations(Some(set)))),
            (None, Some(size)) => effects.extend(self.create(size)),
            (None, None) => {}
        }
        for (set, size) in self.old.iter().zip(&sizes.old) {
            let mut annotations = set.metadata.annotations.clone().unwrap_or_default();
            self.note_size(&mut annotations);
            effects.extend(self.update(set, Some(*size), annotations));
        }
        effects
    }

    fn create(&self, size: i32) -> Vec<Effect> {
        let hash = self.template_hash();
        let name = format!("{}-{hash}", meta::name(&self.deployment.metadata));
        let mut template = self.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(TEMPLATE_HASH.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector = self.selector.clone();
        selector.match_labels.get_or_insert_default().insert(TEMPLATE_HASH.to_owned(), hash);
        let set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(self.namespace().to_owned()),
                labels: Some(labels),
                annotations: Some(self.annotations(None)),
                owner_references: Some(vec![meta::owner_reference(
                    Kind::Deployment,
                    &self.deployment.metadata,
                )]),
                ..ObjectMeta::default()
            },
            spec: Some(k8s_openapi::api::apps::v1::ReplicaSetSpec {
                replicas: Some(size),
                min_ready_seconds: self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds),
                selector,
                template: Some(template),
            }),
            status: None,
        };
        let mut effects = vec![Effect::create(Kind::ReplicaSet, self.namespace(), &name, &set)];
        effects.extend(self.tell(&name, 0, size));
        effects
    }

    fn tell(&self, set: &str, before: i32, after: i32) -> Option<Effect> {
        let direction = match after.cmp(&before) {
            std::cmp::Ordering::Greater => "up",
            std::cmp::Ordering::Less => "down",
            std::cmp::Ordering::Equal => return None,
        };
        let message = format!("Scaled {direction} replica set {set} from {before} to {after}");
        let about = meta::reference(Kind::Deployment, &self.deployment.metadata);
        Some(Effect::Tell { about, tone: Tone::Normal, reason: "ScalingReplicaSet", message })
    }

    fn template_hash(&self) -> String {
        let collisions =
            self.deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
        meta::hash(&json!([to_value(self.template), collisions]))
    }

    /// What the new set carries: the deployment's own annotations, its revision and its sizes.
    fn annotations(&self, set: Option<&ReplicaSet>) -> Labels {
        let mut annotations = set.and_then(|set| set.metadata.annotations.clone()).unwrap_or_default();
        let own = [REVISION, HISTORY, DESIRED, MAX, LAST_APPLIED];
        let given = self.deployment.metadata.annotations.iter().flatten();
        annotations.extend(
            given
                .filter(|(key, _)| !own.contains(&key.as_str()))
                .map(|(key, value)| (key.clone(), value.clone())),
        );
        let revision = self.revision.to_string();
        let before = annotations.insert(REVISION.to_owned(), revision.clone());
        if let Some(before) = before.filter(|before| *before != revision) {
            let history =
                annotations.get(HISTORY).map_or(before.clone(), |history| format!("{history},{before}"));
            annotations.insert(HISTORY.to_owned(), history);
        }
        self.note_size(&mut annotations);
        annotations
    }

    fn note_size(&self, annotations: &mut Labels) {
        annotations.insert(DESIRED.to_owned(), self.wanted().to_string());
        annotations.insert(MAX.to_owned(), (self.wanted() + self.max_surge()).to_string());
    }

    fn update(&self, set: &ReplicaSet, size: Option<i32>, mut annotations: Labels) -> Vec<Effect> {
        let size = size.unwrap_or(replicas(set));
        // Idle sets keep the sizes they had: nothing about them changed.
        let idle = size == 0 && replicas(set) == 0;
        if idle && self.new.as_ref().is_none_or(|new| new.metadata.uid != set.metadata.uid) {
            annotations = set.metadata.annotations.clone().unwrap_or_default();
        }
        let min_ready = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        let old_min_ready = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
        let same = size == replicas(set)
            && Some(&annotations) == set.metadata.annotations.as_ref()
            && min_ready.unwrap_or(0) == old_min_ready.unwrap_or(0);
        if same || meta::is_terminating(&set.metadata) {
            return Vec::new();
        }
        let change = Effect::Merge {
            target: Target::new(Kind::ReplicaSet, self.namespace(), meta::name(&set.metadata)),
            body: json!({
                "metadata": {"resourceVersion": set.metadata.resource_version, "annotations": annotations},
                "spec": {"replicas": size, "minReadySeconds": min_ready.unwrap_or(0)},
            }),
        };
        let tell = self.tell(meta::name(&set.metadata), replicas(set), size);
        std::iter::once(change).chain(tell).collect()
    }

    /// Old sets beyond the history asked for, once the new one has taken over.
    fn forget_old(&self, status: &DeploymentStatus) -> Vec<Effect> {
        if !conditions::is_complete(self, status) {
            return Vec::new();
        }
        let limit = self
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.revision_history_limit)
            .unwrap_or(KEPT_REVISIONS);
        let mut idle: Vec<&Arc<ReplicaSet>> = self.old.iter().filter(|set| is_idle(set)).collect();
        idle.sort_by_key(|set| revision_of(&set.metadata));
        let surplus = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        let delete = |set: &&Arc<ReplicaSet>| {
            Effect::delete(
                Kind::ReplicaSet,
                self.namespace(),
                meta::name(&set.metadata),
                meta::uid(&set.metadata),
            )
        };
        idle.iter().take(surplus).map(delete).collect()
    }
}

fn is_idle(set: &ReplicaSet) -> bool {
    let seen = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
    replicas(set) == 0
        && set.status.as_ref().is_none_or(|status| status.replicas == 0)
        && seen >= set.metadata.generation.unwrap_or(0)
        && !meta::is_terminating(&set.metadata)
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn revision_of(meta: &ObjectMeta) -> i64 {
    meta::annotation(meta, REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

/// Whether a set was made from this template: equal but for the label that tells versions apart.
fn same_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let mut theirs = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let mut ours = template.clone();
    for template in [&mut theirs, &mut ours] {
        let metadata = template.metadata.get_or_insert_default();
        metadata.labels.get_or_insert_default().remove(TEMPLATE_HASH);
    }
    theirs == ours
}
