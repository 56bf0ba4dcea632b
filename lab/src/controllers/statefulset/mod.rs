//! StatefulSets: pods with numbers, made and replaced in their order. Pure.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, Volume};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::effect::{Effect, Kind, Outcome};
use super::history::{History, LABEL};
use super::meta::{self, Round};
use super::pods::{self, Availability, Naming};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// Decides about one set from the pods and versions of its namespace.
pub fn reconcile(
    set: &StatefulSet,
    pods: &[Arc<Pod>],
    revisions: &[Arc<ControllerRevision>],
    now: Timestamp,
) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(spec) = set.spec.as_ref().filter(|_| !meta::is_terminating(&set.metadata)) else {
        return outcome;
    };
    let history = History::new(Kind::StatefulSet, &set.metadata, &spec.template, revisions);
    let view = View::new(set, spec, pods, &history, now);
    let mut in_use: BTreeSet<String> =
        view.pods.values().filter_map(|pod| revision(pod)).map(str::to_owned).collect();
    in_use.insert(view.current.clone());
    outcome.effects.extend(history.effects(spec.revision_history_limit, &in_use));
    outcome.effects.extend(view.steps());
    let status = view.status();
    if set.status.as_ref() != Some(&status) {
        outcome.effects.push(Effect::status(
            Kind::StatefulSet,
            view.namespace(),
            meta::name(&set.metadata),
            &status,
        ));
    }
    if let Some(next) = view.next_available() {
        outcome.again_in(next);
    }
    outcome
}

struct View<'a> {
    set: &'a StatefulSet,
    spec: &'a StatefulSetSpec,
    history: &'a History<'a>,
    /// The version that pods below the partition keep.
    current: String,
    /// By number.
    pods: BTreeMap<i32, Arc<Pod>>,
    now: Timestamp,
}

impl<'a> View<'a> {
    fn new(
        set: &'a StatefulSet,
        spec: &'a StatefulSetSpec,
        pods: &[Arc<Pod>],
        history: &'a History<'a>,
        now: Timestamp,
    ) -> Self {
        let prefix = format!("{}-", meta::name(&set.metadata));
        let number = |pod: &Arc<Pod>| meta::name(&pod.metadata).strip_prefix(&prefix)?.parse::<i32>().ok();
        let mine = pods.iter().filter(|pod| meta::is_controlled_by(&pod.metadata, &set.metadata));
        let pods = mine.filter_map(|pod| Some((number(pod)?, pod.clone()))).collect();
        let known = set.status.as_ref().and_then(|status| status.current_revision.clone());
        let current = known
            .filter(|name| history.template(name).is_some())
            .unwrap_or_else(|| history.update().to_owned());
        Self { set, spec, history, current, pods, now }
    }

    fn namespace(&self) -> &str {
        meta::namespace(&self.set.metadata)
    }

    fn start(&self) -> i32 {
        self.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0)
    }

    fn wanted(&self) -> std::ops::Range<i32> {
        self.start()..self.start() + self.spec.replicas.unwrap_or(1).max(0)
    }

    fn is_parallel(&self) -> bool {
        self.spec.pod_management_policy.as_deref() == Some("Parallel")
    }

    /// What may be done now: make or mend the wanted, then give up the surplus, then replace old versions.
    fn steps(&self) -> Vec<Effect> {
        let mut effects = Vec::new();
        for number in self.wanted() {
            match self.pods.get(&number) {
                None => effects.extend(self.create(number)),
                Some(pod) if pods::is_finished(pod) && !meta::is_terminating(&pod.metadata) => {
                    effects.push(self.delete(pod));
                }
                Some(pod) if self.is_healthy(pod) => continue,
                Some(_) => {}
            }
            if !self.is_parallel() {
                return effects;
            }
        }
        let surplus = self.pods.iter().rev().filter(|(number, _)| !self.wanted().contains(number));
        for (_, pod) in surplus {
            if !meta::is_terminating(&pod.metadata) {
                effects.push(self.delete(pod));
            }
            if !self.is_parallel() {
                return effects;
            }
        }
        if effects.is_empty() {
            effects.extend(self.replace_old());
        }
        effects
    }

    /// Pods of an older version, highest number first, as many at once as may be missing.
    fn replace_old(&self) -> Vec<Effect> {
        let strategy = self.spec.update_strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
            return Vec::new();
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let one = IntOrString::Int(1);
        let total = self.spec.replicas.unwrap_or(1);
        let may_miss =
            meta::share(rolling.and_then(|r| r.max_unavailable.as_ref()), total, Round::Up, &one).max(1);
        let wanted = || self.wanted().rev().filter_map(|number| Some((number, self.pods.get(&number)?)));
        let mut missing =
            i32::try_from(wanted().filter(|(_, pod)| !self.is_healthy(pod)).count()).unwrap_or(i32::MAX);
        let mut effects = Vec::new();
        for (number, pod) in wanted() {
            if number < self.partition() {
                break;
            }
            if revision(pod) == Some(self.history.update()) {
                continue;
            }
            // A pod of the old version that does not serve anyway costs nothing more.
            let costs = i32::from(self.is_healthy(pod));
            if missing + costs > may_miss {
                break;
            }
            missing += costs;
            if !meta::is_terminating(&pod.metadata) {
                effects.push(self.delete(pod));
            }
        }
        effects
    }

    fn partition(&self) -> i32 {
        let rolling =
            self.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        rolling.and_then(|rolling| rolling.partition).unwrap_or(0)
    }

    fn is_healthy(&self, pod: &Pod) -> bool {
        pods::is_active(pod) && self.availability(pod) == Availability::Available
    }

    fn availability(&self, pod: &Pod) -> Availability {
        pods::availability(pod, self.spec.min_ready_seconds.unwrap_or(0), self.now)
    }

    fn next_available(&self) -> Option<std::time::Duration> {
        let waits = self.pods.values().filter_map(|pod| match self.availability(pod) {
            Availability::In(left) => Some(left),
            _ => None,
        });
        waits.min()
    }

    fn create(&self, number: i32) -> Vec<Effect> {
        let version = if number < self.partition() { self.current.as_str() } else { self.history.update() };
        let template = self.history.template(version).unwrap_or_else(|| self.spec.template.clone());
        let name = format!("{}-{number}", meta::name(&self.set.metadata));
        let owner = meta::owner_reference(Kind::StatefulSet, &self.set.metadata);
        let mut pod = pods::from_template(&template, self.namespace(), &Naming::Exactly(&name), owner);
        let labels = pod.metadata.labels.get_or_insert_default();
        labels.insert(LABEL.to_owned(), version.to_owned());
        labels.insert(POD_NAME.to_owned(), name.clone());
        labels.insert(POD_INDEX.to_owned(), number.to_string());
        let spec = pod.spec.get_or_insert_default();
        spec.hostname = Some(name.clone());
        spec.subdomain = self.spec.service_name.clone().filter(|service| !service.is_empty());
        let claims: Vec<PersistentVolumeClaim> = self.claims(&name);
        for claim in &claims {
            let volumes = spec.volumes.get_or_insert_default();
            let volume = self.volume_name(meta::name(&claim.metadata), &name);
            volumes.retain(|known| known.name != volume);
            volumes.push(Volume {
                name: volume,
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: meta::name(&claim.metadata).to_owned(),
                    read_only: None,
                }),
                ..Volume::default()
            });
        }
        let claim = |claim: &PersistentVolumeClaim| {
            Effect::create(Kind::PersistentVolumeClaim, self.namespace(), meta::name(&claim.metadata), claim)
        };
        let mut effects: Vec<Effect> = claims.iter().map(claim).collect();
        effects.push(Effect::create(Kind::Pod, self.namespace(), &name, &pod));
        effects
    }

    /// The pod's own claims, which outlive it.
    fn claims(&self, pod: &str) -> Vec<PersistentVolumeClaim> {
        let templates = self.spec.volume_claim_templates.iter().flatten();
        let claims = templates.map(|template| {
            let mut claim = template.clone();
            claim.metadata.name = Some(format!("{}-{pod}", meta::name(&template.metadata)));
            claim.metadata.namespace = Some(self.namespace().to_owned());
            claim
                .metadata
                .labels
                .get_or_insert_default()
                .extend(self.spec.selector.match_labels.clone().unwrap_or_default());
            claim.status = None;
            claim
        });
        claims.collect()
    }

    fn volume_name(&self, claim: &str, pod: &str) -> String {
        claim.strip_suffix(&format!("-{pod}")).unwrap_or(claim).to_owned()
    }

    fn delete(&self, pod: &Pod) -> Effect {
        Effect::delete(Kind::Pod, self.namespace(), meta::name(&pod.metadata), meta::uid(&pod.metadata))
    }

    fn status(&self) -> StatefulSetStatus {
        let update = self.history.update();
        let of = |version: &str| -> i32 {
            let count = self
                .pods
                .values()
                .filter(|pod| pods::is_active(pod) && revision(pod) == Some(version))
                .count();
            i32::try_from(count).unwrap_or(i32::MAX)
        };
        let counts = pods::count(
            self.pods.values().filter(|pod| !pods::is_finished(pod)),
            self.spec.min_ready_seconds.unwrap_or(0),
            self.now,
        );
        let updated = of(update);
        let wanted = self.spec.replicas.unwrap_or(1);
        let rolled_out = updated == wanted && counts.total == wanted && counts.ready == wanted;
        let current = if rolled_out { update.to_owned() } else { self.current.clone() };
        StatefulSetStatus {
            replicas: counts.total,
            ready_replicas: Some(counts.ready),
            available_replicas: Some(counts.available),
            current_replicas: Some(of(&current)),
            updated_replicas: Some(updated),
            current_revision: Some(current),
            update_revision: Some(update.to_owned()),
            observed_generation: self.set.metadata.generation,
            collision_count: Some(0),
            conditions: self.set.status.as_ref().and_then(|status| status.conditions.clone()),
        }
    }
}

fn revision(pod: &Pod) -> Option<&str> {
    meta::labels(&pod.metadata).get(LABEL).map(String::as_str)
}
