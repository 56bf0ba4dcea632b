//! Gives services their load balancer addresses and says in their status what became of them. Which address is
//! core/compile's business; the words of the conditions are in `say`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use tokio::sync::watch;
use weft_compile::pools::{Allocation, allocate};
use weft_kube::claims::{AddressLease, Claims};
use weft_kube::status::{PoolStatus, ServiceStatus};
use weft_kube::{Cluster, EventRecorder, ServiceWriter, View, set_pool_status};
use weft_model::{Addr, ClusterSettings, Finding, NodeName, PoolName, ServiceKey, Snapshot, parse};

use super::announced::{self, Leases};
use super::say;

/// Changes that come close together are decided on together.
const COALESCE: Duration = Duration::from_millis(20);
const RETRY: Duration = Duration::from_millis(500);

pub async fn run(client: Client, settings: ClusterSettings, events: EventRecorder) {
    let cluster = Cluster::start(client.clone(), settings);
    let mut desk = Desk {
        writer: ServiceWriter::start(client.clone(), events.clone()),
        client,
        events,
        pools: BTreeMap::new(),
        leases: Leases::default(),
    };
    let (send, mut lease_changes) = watch::channel(0);
    let claims = Claims::new(desk.client.clone(), NodeName::new(""));
    tokio::select! {
        () = desk.leases.clone().follow(claims.watch(), send) => {}
        () = sweep(desk.client.clone(), cluster.subscribe()) => {}
        () = work(&mut desk, &cluster, &mut lease_changes) => {}
    }
}

async fn sweep(client: Client, views: watch::Receiver<View>) {
    loop {
        tokio::time::sleep(announced::SWEEP).await;
        let view = views.borrow().clone();
        if view.synced && view.link == weft_kube::Link::Connected {
            announced::sweep(&client, &view.snapshot).await;
        }
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
        let pause = match desk.round(&view).await {
            Ok(()) => Duration::MAX,
            Err(error) => {
                tracing::warn!("load balancer addresses: {error:#}; trying again");
                RETRY
            }
        };
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
            changed = leases.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
        tokio::time::sleep(COALESCE).await;
    }
}

struct Desk {
    client: Client,
    events: EventRecorder,
    writer: ServiceWriter,
    leases: Leases,
    /// What each pool's status was last made to say.
    pools: BTreeMap<PoolName, PoolStatus>,
}

impl Desk {
    async fn round(&mut self, view: &View) -> Result<()> {
        let services = self.writer.current().await?;
        let (snapshot, findings) = (view.snapshot.clone(), view.findings.clone());
        let (seen, leases) = (services.clone(), self.leases.current());
        let decided = tokio::task::spawn_blocking(move || decide(&snapshot, &findings, &seen, &leases));
        let (wanted, pools) = decided.await.context("deciding was interrupted")?;
        let report = self.writer.write(&services, &wanted).await;
        if report.written > 0 || report.conflicts > 0 {
            tracing::info!(written = report.written, conflicts = report.conflicts, "status of services");
        }
        self.write_pools(pools).await?;
        match report.failures.first() {
            None => Ok(()),
            Some(first) => bail!("{first} (and {} more)", report.failures.len() - 1),
        }
    }

    async fn write_pools(&mut self, wanted: BTreeMap<PoolName, PoolStatus>) -> Result<()> {
        self.pools.retain(|name, _| wanted.contains_key(name));
        for (name, status) in wanted {
            if self.pools.get(&name) == Some(&status) {
                continue;
            }
            set_pool_status(&self.client, &self.events, &name, &status).await?;
            self.pools.insert(name, status);
        }
        Ok(())
    }
}

type Wanted = (BTreeMap<ServiceKey, ServiceStatus>, BTreeMap<PoolName, PoolStatus>);

/// The services are those the status is written to, not those of the view, which may be a moment older or newer.
fn decide(
    snapshot: &Snapshot,
    findings: &[Finding],
    services: &[Arc<Service>],
    leases: &BTreeMap<Addr, AddressLease>,
) -> Wanted {
    let mut snapshot = Snapshot::clone(snapshot);
    snapshot.services = services
        .iter()
        .filter_map(|service| parse::service(service).value)
        .map(|service| (service.key.clone(), service))
        .collect();
    let allocation = allocate(&snapshot);
    let not_served = not_served(&snapshot, findings);
    let mut wanted = say::services(&allocation, &not_served);
    for (key, saying) in announced::sayings(&snapshot, leases) {
        if let Some(status) = wanted.get_mut(&key) {
            status.conditions.push(saying);
        }
    }
    (wanted, pools(&allocation, findings))
}

fn pools(allocation: &Allocation, findings: &[Finding]) -> BTreeMap<PoolName, PoolStatus> {
    allocation.pools.iter().map(|(name, usage)| (name.clone(), say::pool(name, usage, findings))).collect()
}

/// What parsing and compiling found about services. Pods and policies tell nothing about them, and are left out of
/// the compilation.
fn not_served(snapshot: &Snapshot, parsed: &[Finding]) -> Vec<Finding> {
    let bare = Snapshot {
        settings: snapshot.settings.clone(),
        nodes: snapshot.nodes.clone(),
        services: snapshot.services.clone(),
        slices: snapshot.slices.clone(),
        ..Snapshot::default()
    };
    let node = snapshot.nodes.keys().next().cloned().unwrap_or_else(|| NodeName::new(""));
    let compiled = weft_compile::compile_from_api(&bare, &node).findings;
    parsed.iter().cloned().chain(compiled).filter(|finding| finding.object.starts_with("Service ")).collect()
}
