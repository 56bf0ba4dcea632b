//! One look at one object: gather what the decision needs from the caches, decide, write.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Client, Resource};

use super::cache::{Cache, Change};
use super::dispatch::{self, Work};
use super::execute::Executor;
use super::pending::{Pending, Seen};
use super::pulse::Pulse;
use super::queue::{Ended, Queue};
use crate::controllers::effect::{Effect, Kind, Outcome};
use crate::controllers::scheduler::{self, Assumed};
use crate::controllers::{
    cronjob, daemonset, deployment, endpoints, garbage, job, legacy_endpoints, meta, nodes, pods, replicaset,
    statefulset,
};

/// Everything the controllers see and write with.
pub struct World {
    deployments: Arc<Cache<Deployment>>,
    replica_sets: Arc<Cache<ReplicaSet>>,
    stateful_sets: Arc<Cache<StatefulSet>>,
    daemon_sets: Arc<Cache<DaemonSet>>,
    revisions: Arc<Cache<ControllerRevision>>,
    jobs: Arc<Cache<Job>>,
    cron_jobs: Arc<Cache<CronJob>>,
    leases: Arc<Cache<Lease>>,
    pods: Arc<Cache<Pod>>,
    nodes: Arc<Cache<Node>>,
    services: Arc<Cache<Service>>,
    slices: Arc<Cache<EndpointSlice>>,
    legacy_endpoints: Arc<Cache<Endpoints>>,
    controllers: Executor,
    scheduler: Executor,
    pending: Pending,
    pulse: Pulse,
    assumed: Mutex<Assumed>,
    queue: Arc<Queue<Work>>,
}

impl World {
    pub fn new(controllers: &Client, scheduler: Client, queue: Arc<Queue<Work>>) -> Self {
        Self {
            deployments: Cache::new(),
            replica_sets: Cache::new(),
            stateful_sets: Cache::new(),
            daemon_sets: Cache::new(),
            revisions: Cache::new(),
            jobs: Cache::new(),
            cron_jobs: Cache::new(),
            leases: Cache::new(),
            pods: Cache::new(),
            nodes: Cache::new(),
            services: Cache::new(),
            slices: Cache::new(),
            legacy_endpoints: Cache::new(),
            controllers: Executor::new(controllers.clone(), "weft-lab-controllers"),
            scheduler: Executor::new(scheduler, scheduler::NAME),
            pending: Pending::default(),
            pulse: Pulse::default(),
            assumed: Mutex::default(),
            queue,
        }
    }

    /// The watches that keep the caches current; each runs for as long as it is polled.
    pub fn follow(self: &Arc<Self>, client: Client) -> Vec<BoxFuture<'static, ()>> {
        vec![
            self.plain(&self.deployments, &client, |world, change| world.changed(Kind::Deployment, change)),
            self.plain(&self.replica_sets, &client, |world, change| world.changed(Kind::ReplicaSet, change)),
            self.plain(&self.stateful_sets, &client, |world, change| {
                world.changed(Kind::StatefulSet, change)
            }),
            self.plain(&self.daemon_sets, &client, |world, change| world.changed(Kind::DaemonSet, change)),
            self.plain(&self.revisions, &client, |world, change| dispatch::owned(&world.queue, change)),
            self.plain(&self.jobs, &client, |world, change| world.changed(Kind::Job, change)),
            self.plain(&self.cron_jobs, &client, |world, change| world.changed(Kind::CronJob, change)),
            self.plain(&self.leases, &client, |world, change| dispatch::lease(&world.queue, change)),
            self.plain(&self.pods, &client, Self::pod_changed),
            self.plain(&self.nodes, &client, Self::node_changed),
            self.plain(&self.services, &client, |world, change| dispatch::service(&world.queue, change)),
            self.plain(&self.slices, &client, |world, change| dispatch::slice(&world.queue, change)),
            self.plain(&self.legacy_endpoints, &client, |world, change| {
                dispatch::endpoints(&world.queue, change)
            }),
        ]
    }

    fn plain<K: super::cache::Object>(
        self: &Arc<Self>,
        cache: &Arc<Cache<K>>,
        client: &Client,
        react: fn(&Self, Change<'_, K>),
    ) -> BoxFuture<'static, ()> {
        let world = self.clone();
        cache.clone().follow(client.clone(), move |change| react(&world, change)).boxed()
    }

    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Since when every renewal of a lease would have been heard of.
    fn listening(&self, now: Timestamp) -> Option<Timestamp> {
        Some(self.leases.unbroken()?.max(self.pulse.since(now)?))
    }

    pub async fn wait_synced(&self) {
        self.deployments.wait_synced().await;
        self.replica_sets.wait_synced().await;
        self.stateful_sets.wait_synced().await;
        self.daemon_sets.wait_synced().await;
        self.revisions.wait_synced().await;
        self.jobs.wait_synced().await;
        self.cron_jobs.wait_synced().await;
        self.leases.wait_synced().await;
        self.pods.wait_synced().await;
        self.nodes.wait_synced().await;
        self.services.wait_synced().await;
        self.slices.wait_synced().await;
        self.legacy_endpoints.wait_synced().await;
    }

    pub async fn look(&self, work: &Work) -> Ended {
        match work {
            Work::Schedule => self.schedule().await,
            Work::PodGarbage => self.collect_garbage().await,
            Work::Object(kind, namespace, name) => self.look_at(work, *kind, namespace, name).await,
        }
    }

    async fn look_at(&self, work: &Work, kind: Kind, namespace: &str, name: &str) -> Ended {
        // Asked before the caches are read: what they show then includes everything that was waited for.
        let uid = self.uid(kind, namespace, name);
        if let Some(wait) = uid.as_deref().and_then(|uid| self.pending.wait(uid, Instant::now())) {
            // What was written comes back through the watch and asks again; this is for when it does not.
            self.queue.add_after(work.clone(), wait);
            return Ended::Well;
        }
        let (Some(uid), Some(outcome)) = (uid, self.decide(kind, namespace, name, Timestamp::now())) else {
            return Ended::Well;
        };
        if let Some(after) = outcome.recheck {
            self.queue.add_after(work.clone(), after);
        }
        self.write(&uid, outcome.effects).await
    }

    fn uid(&self, kind: Kind, namespace: &str, name: &str) -> Option<String> {
        match kind {
            Kind::Deployment => uid(self.deployments.get(namespace, name)),
            Kind::ReplicaSet => uid(self.replica_sets.get(namespace, name)),
            Kind::StatefulSet => uid(self.stateful_sets.get(namespace, name)),
            Kind::DaemonSet => uid(self.daemon_sets.get(namespace, name)),
            Kind::Job => uid(self.jobs.get(namespace, name)),
            Kind::CronJob => uid(self.cron_jobs.get(namespace, name)),
            Kind::Node => uid(self.nodes.get("", name)),
            Kind::Service => uid(self.services.get(namespace, name)),
            Kind::Endpoints => uid(self.legacy_endpoints.get(namespace, name)),
            _ => None,
        }
    }

    fn decide(&self, kind: Kind, namespace: &str, name: &str, now: Timestamp) -> Option<Outcome> {
        let pods = || self.pods.in_namespace(namespace);
        Some(match kind {
            Kind::Deployment => {
                let object = self.deployments.get(namespace, name)?;
                deployment::reconcile(&object, &self.replica_sets.in_namespace(namespace), &pods(), now)
            }
            Kind::ReplicaSet => {
                replicaset::reconcile(&*self.replica_sets.get(namespace, name)?, &pods(), now)
            }
            Kind::StatefulSet => {
                let object = self.stateful_sets.get(namespace, name)?;
                statefulset::reconcile(&object, &pods(), &self.revisions.in_namespace(namespace), now)
            }
            Kind::DaemonSet => {
                let object = self.daemon_sets.get(namespace, name)?;
                let revisions = self.revisions.in_namespace(namespace);
                daemonset::reconcile(&object, &self.nodes.all(), &pods(), &revisions, now)
            }
            Kind::Job => job::reconcile(&*self.jobs.get(namespace, name)?, &pods(), now),
            Kind::CronJob => {
                let object = self.cron_jobs.get(namespace, name)?;
                cronjob::reconcile(&object, &self.jobs.in_namespace(namespace), now)
            }
            Kind::Node => {
                let lease = self.leases.get(nodes::LEASES, name);
                let word = nodes::Word { lease: lease.as_deref(), listening: self.listening(now) };
                nodes::reconcile(&*self.nodes.get("", name)?, word, &self.pods.all(), now)
            }
            Kind::Service => {
                let object = self.services.get(namespace, name)?;
                let (pods, slices) = (pods(), self.slices.in_namespace(namespace));
                let mut outcome = endpoints::reconcile(&object, &pods, &self.nodes.all(), &slices);
                let existing = self.legacy_endpoints.get(namespace, name);
                outcome.effects.extend(legacy_endpoints::write(&object, &pods, existing.as_deref()));
                outcome
            }
            Kind::Endpoints => {
                let object = self.legacy_endpoints.get(namespace, name)?;
                let service = self.services.get(namespace, name);
                legacy_endpoints::mirror(service.as_deref(), &object, &self.slices.in_namespace(namespace))
            }
            _ => return None,
        })
    }

    async fn write(&self, owner: &str, effects: Vec<Effect>) -> Ended {
        if effects.is_empty() {
            return Ended::Well;
        }
        self.pending.begin(owner);
        let report = self.controllers.carry_out(effects).await;
        self.pending.end(owner, report.pods, Instant::now());
        if report.failures.is_empty() { Ended::Well } else { Ended::Failed }
    }

    async fn schedule(&self) -> Ended {
        let (nodes, pods) = (self.nodes.all(), self.pods.all());
        let decisions = {
            let mut assumed = self.assumed();
            let decisions = scheduler::schedule(&nodes, &pods, &assumed);
            for decision in &decisions {
                if let scheduler::Verdict::Node(node) = &decision.verdict {
                    assumed.insert(meta::uid(&decision.pod.metadata).to_owned(), node.clone());
                }
            }
            decisions
        };
        let report = self.scheduler.carry_out(scheduler::effects(&decisions, Timestamp::now())).await;
        if report.failures.is_empty() {
            return Ended::Well;
        }
        // What could not be bound waits again.
        let mut assumed = self.assumed();
        for decision in &decisions {
            assumed.remove(meta::uid(&decision.pod.metadata));
        }
        Ended::Failed
    }

    async fn collect_garbage(&self) -> Ended {
        let outcome = garbage::reconcile(&self.nodes.all(), &self.pods.all(), Timestamp::now());
        if let Some(after) = outcome.recheck {
            self.queue.add_after(Work::PodGarbage, after);
        }
        let report = self.controllers.carry_out(outcome.effects).await;
        if report.failures.is_empty() { Ended::Well } else { Ended::Failed }
    }

    /// An object with a controller of its own here, which may itself have an owner.
    fn changed<K: Resource<DynamicType = ()>>(&self, kind: Kind, change: Change<'_, K>) {
        dispatch::itself(&self.queue, kind, change);
        dispatch::owned(&self.queue, change);
    }

    fn pod_changed(&self, change: Change<'_, Pod>) {
        let pod = change.any();
        let uid = meta::uid(&pod.metadata);
        let seen = match change.after {
            None => Seen::Gone,
            Some(pod) if meta::is_terminating(&pod.metadata) => Seen::Leaving,
            Some(_) => Seen::There,
        };
        if change.after.is_none_or(|pod| pods::node_name(pod).is_some()) {
            self.assumed().remove(uid);
        }
        if let Some(owner) = meta::controller(&pod.metadata) {
            self.pending.saw(&owner.uid, uid, seen);
        }
        dispatch::pod(&self.queue, &self.services, change);
        if let Some(node) = change.after.filter(|pod| pods::is_ready(pod)).and_then(pods::node_name) {
            dispatch::tainted(&self.queue, self.nodes.get("", node).as_deref());
        }
        let namespace = meta::namespace(&pod.metadata);
        dispatch::orphan(&self.queue, Kind::ReplicaSet, &self.replica_sets.in_namespace(namespace), change);
    }

    fn node_changed(&self, change: Change<'_, Node>) {
        dispatch::itself(&self.queue, Kind::Node, change);
        if !dispatch::node_matters(change) {
            return;
        }
        self.queue.add(Work::Schedule);
        if change.after.is_none() {
            self.queue.add(Work::PodGarbage);
        }
        for set in self.daemon_sets.all() {
            self.queue.add(Work::object(Kind::DaemonSet, &set.metadata));
        }
        let labels = |node: &Node| node.metadata.labels.clone();
        if change.before.map(labels) != change.after.map(labels) {
            for service in self.services.all() {
                self.queue.add(Work::object(Kind::Service, &service.metadata));
            }
        }
    }

    fn assumed(&self) -> std::sync::MutexGuard<'_, Assumed> {
        self.assumed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn uid<K: Resource>(object: Option<Arc<K>>) -> Option<String> {
    object?.meta().uid.clone()
}
