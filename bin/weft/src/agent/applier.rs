//! Keeps the kernel at the plan of the newest state: one thread, whole recompute, newest wins. What a plan says is
//! core/compile's business, how it gets into the kernel io/datapath's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use weft_compile::{Compiled, Compiler};
use weft_datapath::{Datapath, Report};
use weft_kube::View;
use weft_model::{Addr, LocalEndpoint, NodeName, PodKey, Snapshot};

/// After a failed apply the same plan is tried again after this.
const RETRY: Duration = Duration::from_millis(500);

pub struct Applier {
    node: NodeName,
    local: Mutex<Local>,
    wake: Notify,
    applied: watch::Sender<Applied>,
}

/// Pods whose interface this node has made, and a number that grows with each change of them.
#[derive(Default)]
struct Local {
    endpoints: BTreeMap<PodKey, LocalEndpoint>,
    /// Load balancer addresses that this node answers for.
    announced: BTreeSet<Addr>,
    generation: u64,
}

/// The newest attempt to bring the kernel to a plan.
#[derive(Clone, Default)]
pub struct Applied {
    /// The local generation this attempt covers.
    pub generation: u64,
    /// What is in force: the newest plan that went in without an error.
    pub state: Option<Arc<InForce>>,
    /// Why the newest plan is not in force, if so.
    pub error: Option<String>,
    pub count: u64,
    pub took: Duration,
    /// What the newest plan found no room for, and how full the kernel's tables are.
    pub report: Arc<Report>,
}

pub struct InForce {
    pub snapshot: Arc<Snapshot>,
    pub compiled: Compiled,
}

impl Applier {
    pub fn start(node: NodeName, datapath: Arc<Datapath>, views: watch::Receiver<View>) -> Arc<Self> {
        let (applied, _) = watch::channel(Applied::default());
        let applier = Arc::new(Self { node, local: Mutex::default(), wake: Notify::new(), applied });
        tokio::spawn(applier.clone().follow(datapath, views));
        applier
    }

    /// Puts back what was attached before this process started.
    pub fn restore(&self, endpoints: impl Iterator<Item = LocalEndpoint>) {
        let mut local = self.local();
        local.endpoints.extend(endpoints.map(|endpoint| (endpoint.pod.clone(), endpoint)));
        local.generation += 1;
        self.wake.notify_one();
    }

    /// Whether pods are attached here, now or since before this process started.
    pub fn has_endpoints(&self) -> bool {
        !self.local().endpoints.is_empty()
    }

    /// From the next plan on this node answers for these addresses; returns the generation of that plan.
    pub fn announce(&self, addresses: BTreeSet<Addr>) -> u64 {
        let mut local = self.local();
        local.announced = addresses;
        local.generation += 1;
        self.wake.notify_one();
        local.generation
    }

    /// Returns when a plan with this endpoint is in the kernel.
    pub async fn add(&self, endpoint: LocalEndpoint) -> Result<(), String> {
        let generation = self.change(|endpoints| {
            endpoints.insert(endpoint.pod.clone(), endpoint);
        });
        self.reached(generation).await
    }

    /// Returns when a plan without the endpoint of that device is in the kernel.
    pub async fn remove(&self, device: &str) -> Result<(), String> {
        let generation = self.change(|endpoints| endpoints.retain(|_, endpoint| endpoint.device != device));
        self.reached(generation).await
    }

    pub fn subscribe(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    pub async fn first_applied(&self) {
        let mut applied = self.applied.subscribe();
        // The sender lives as long as self.
        applied.wait_for(|applied| applied.state.is_some()).await.ok();
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<PodKey, LocalEndpoint>)) -> u64 {
        let mut local = self.local();
        change(&mut local.endpoints);
        local.generation += 1;
        self.wake.notify_one();
        local.generation
    }

    fn local(&self) -> MutexGuard<'_, Local> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn reached(&self, generation: u64) -> Result<(), String> {
        let mut applied = self.applied.subscribe();
        let reached = applied.wait_for(|applied| applied.generation >= generation).await;
        let reached = reached.map_err(|_| "the agent is stopping".to_owned())?;
        reached.error.clone().map_or(Ok(()), Err)
    }

    async fn follow(self: Arc<Self>, datapath: Arc<Datapath>, mut views: watch::Receiver<View>) {
        let mut compiler = Compiler::new(self.node.clone());
        loop {
            let view = views.borrow_and_update().clone();
            // Before the first sync the kernel's state is older and better than what little is known here.
            let retry = match view.synced {
                true => self.bring(&mut compiler, datapath.clone(), view.snapshot).await,
                false => false,
            };
            let pause = if retry { RETRY } else { Duration::MAX };
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Compiles and applies; true if it has to be tried again.
    async fn bring(&self, compiler: &mut Compiler, datapath: Arc<Datapath>, snapshot: Arc<Snapshot>) -> bool {
        let started = Instant::now();
        let (generation, endpoints, announced) = {
            let local = self.local();
            (local.generation, local.endpoints.clone(), local.announced.clone())
        };
        let mut last = std::mem::replace(compiler, Compiler::new(self.node.clone()));
        let outcome = tokio::task::spawn_blocking(move || {
            let mut snapshot = Snapshot::clone(&snapshot);
            snapshot.local = endpoints;
            snapshot.announced = announced;
            let compiled = last.compile(&snapshot);
            let report = datapath.apply(&compiled.plan);
            (last, report, InForce { snapshot: Arc::new(snapshot), compiled })
        })
        .await;
        // Had it panicked, the next plan is made from nothing.
        let outcome = outcome.map(|(last, report, in_force)| {
            *compiler = last;
            (report, in_force)
        });
        let took = started.elapsed();
        let error = match outcome {
            Ok((Ok(report), in_force)) => {
                let (state, report) = (Some(Arc::new(in_force)), Arc::new(report));
                self.applied.send_modify(|applied| {
                    let count = applied.count + 1;
                    *applied = Applied { generation, state, error: None, count, took, report };
                });
                return false;
            }
            Ok((Err(error), _)) => error.to_string(),
            Err(error) => format!("applying the plan was interrupted: {error}"),
        };
        tracing::error!(error, "the plan is not in force; the last good one stays");
        self.applied.send_modify(|applied| {
            applied.generation = generation;
            applied.error = Some(error);
            applied.took = took;
        });
        true
    }
}
