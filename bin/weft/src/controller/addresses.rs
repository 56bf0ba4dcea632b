//! Gives services their load balancer addresses and says in their status what became of them. Which address is
//! core/compile's business; the words of the conditions are in `say`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kube::Client;
use tokio::sync::watch;
use weft_kube::claims::Claims;
use weft_kube::status::PoolStatus;
use weft_kube::{Cluster, EventRecorder, ServiceWriter, View, set_pool_status};
use weft_model::{ClusterSettings, NodeName, PoolName, ServiceKey};

use super::announced::Leases;
use super::deciding::{Decider, matters};
use super::leases;

/// Changes that come close together are decided on together.
const COALESCE: Duration = Duration::from_millis(20);
/// For each moment of deciding so many of rest: at most a fifth of a processor, however much happens.
const REST: u32 = 4;
const RETRY: Duration = Duration::from_millis(500);

pub async fn run(client: Client, settings: ClusterSettings, events: EventRecorder) {
    let cluster = Cluster::start(client.clone(), settings);
    let mut desk = Desk {
        writer: ServiceWriter::start(client.clone(), events.clone()),
        client,
        events,
        decider: Decider::default(),
        again: BTreeSet::new(),
        pools: BTreeMap::new(),
        leases: Leases::default(),
    };
    let (send, mut lease_changes) = watch::channel(0);
    let claims = Claims::new(desk.client.clone(), NodeName::new(""));
    tokio::select! {
        () = desk.leases.clone().follow(claims.watch(), send) => {}
        () = leases::sweep(desk.client.clone(), cluster.subscribe()) => {}
        () = work(&mut desk, &cluster, &mut lease_changes) => {}
    }
}

async fn work(desk: &mut Desk, cluster: &Cluster, leases: &mut watch::Receiver<u64>) {
    cluster.synced().await;
    desk.writer.ready().await;
    let (mut views, mut changes) = (cluster.subscribe(), desk.writer.changes());
    loop {
        let view = views.borrow_and_update().clone();
        changes.mark_unchanged();
        leases.mark_unchanged();
        let began = Instant::now();
        let pause = match desk.round(&view).await {
            Ok(()) => Duration::MAX,
            Err(error) => {
                tracing::warn!("load balancer addresses: {error:#}; trying again");
                RETRY
            }
        };
        let rest = COALESCE.max(began.elapsed() * REST).min(RETRY);
        tokio::select! {
            changed = other_view(&mut views, &view) => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
            changed = leases.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
        tokio::time::sleep(rest).await;
    }
}

/// Returns at the first view that may lead to something else.
async fn other_view(
    views: &mut watch::Receiver<View>,
    decided: &View,
) -> Result<(), watch::error::RecvError> {
    let mut seen = decided.clone();
    loop {
        views.changed().await?;
        // From view to view, so that what does not matter is looked at once.
        let view = views.borrow_and_update().clone();
        if matters(&seen, &view) {
            return Ok(());
        }
        seen = view;
    }
}

struct Desk {
    client: Client,
    events: EventRecorder,
    writer: ServiceWriter,
    decider: Decider,
    /// Services whose last write failed.
    again: BTreeSet<ServiceKey>,
    leases: Leases,
    /// What each pool's status was last made to say.
    pools: BTreeMap<PoolName, PoolStatus>,
}

impl Desk {
    async fn round(&mut self, view: &View) -> Result<()> {
        let services = self.writer.current().await?;
        let (view, leases) = (view.clone(), self.leases.current());
        let (mut decider, again) = (std::mem::take(&mut self.decider), std::mem::take(&mut self.again));
        let decided = tokio::task::spawn_blocking(move || {
            let decided = decider.decide(&view, &services, &leases, &again);
            (decider, decided)
        });
        // Had it panicked, the next decision is made from nothing.
        let (decider, decided) = decided.await.context("deciding was interrupted")?;
        self.decider = decider;
        tracing::debug!(work = ?self.decider.work(), "decided");
        let report = self.writer.write(&decided.services).await;
        if report.written > 0 || report.conflicts > 0 {
            tracing::info!(written = report.written, conflicts = report.conflicts, "status of services");
        }
        self.again = report.failed;
        let mut failures = report.failures;
        failures.extend(self.write_pools(decided.pools).await);
        match failures.first() {
            None => Ok(()),
            Some(first) => bail!("{first} (and {} more)", failures.len() - 1),
        }
    }

    /// One that cannot be written does not keep the others from being.
    async fn write_pools(&mut self, wanted: BTreeMap<PoolName, PoolStatus>) -> Vec<String> {
        self.pools.retain(|name, _| wanted.contains_key(name));
        let mut failures = Vec::new();
        for (name, status) in wanted {
            if self.pools.get(&name) == Some(&status) {
                continue;
            }
            match set_pool_status(&self.client, &self.events, &name, &status).await {
                Ok(_) => drop(self.pools.insert(name, status)),
                Err(error) => failures.push(error.to_string()),
            }
        }
        failures
    }
}
