//! What services and pools are to say, followed from state to state: objects that did not change are not read again, and
//! nothing is worked out anew whose grounds are the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service as ServiceObject;
use kube::ResourceExt;
use weft_compile::announce::Announcements;
use weft_compile::pools::{Allocation, allocate};
use weft_kube::View;
use weft_kube::status::{ANNOUNCED, PoolStatus, ServiceStatus};
use weft_model::{
    Finding, PoolName, Service, ServiceKey, ServiceKind, SharedMap, Snapshot, TrafficPolicy, parse,
};

use super::announced::{self, Known};
use super::say;

/// How often what was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Services read.
    pub parsed: u64,
    /// All addresses given out anew.
    pub allocated: u64,
    /// All services looked through for what cannot be served.
    pub checked: u64,
    /// Services whose status was compared with what it is to say.
    pub compared: u64,
}

#[derive(Default)]
pub struct Decider {
    /// Version of each service as it was read last.
    read: BTreeMap<ServiceKey, String>,
    last: Option<Snapshot>,
    allocation: Allocation,
    findings: Vec<Finding>,
    announcements: Announcements,
    wanted: BTreeMap<ServiceKey, ServiceStatus>,
    work: Work,
}

/// What is to be written.
#[derive(Default)]
pub struct Decided {
    /// Services that changed, or that are to say something else than before.
    pub services: Vec<(Arc<ServiceObject>, ServiceStatus)>,
    pub pools: BTreeMap<PoolName, PoolStatus>,
}

/// Whether a view may lead to another decision than the one before it. Changes of services are told of by their writer.
pub fn matters(before: &View, after: &View) -> bool {
    let (was, is) = (&before.snapshot, &after.snapshot);
    let local = |key: &ServiceKey| {
        let service = is.services.get(key);
        service.is_some_and(|service| {
            service.kind == ServiceKind::LoadBalancer && service.external_policy == TrafficPolicy::Local
        })
    };
    let mut slices = is.slices.changes(&was.slices);
    was.settings != is.settings
        || was.pools != is.pools
        || was.namespaces != is.namespaces
        || was.nodes != is.nodes
        || before.findings != after.findings
        || slices
            .any(|change| change.before.into_iter().chain(change.after).any(|slice| local(&slice.service)))
}

impl Decider {
    pub fn work(&self) -> Work {
        self.work
    }

    /// `services` are those the status is written to, not those of the view, which may be a moment older or newer.
    /// `again`: services that could not be written.
    pub fn decide(
        &mut self,
        view: &View,
        services: &[Arc<ServiceObject>],
        leases: &Known,
        again: &BTreeSet<ServiceKey>,
    ) -> Decided {
        let before = self.last.take().unwrap_or_default();
        let mut snapshot = Snapshot::clone(&view.snapshot);
        snapshot.services = before.services.clone();
        let changed = self.read(&mut snapshot.services, services);
        let fresh = self.wanted.is_empty() && self.work.allocated == 0;
        self.follow(&before, &snapshot, fresh);
        let wanted = self.wanted(view, &snapshot, leases);
        let due = |key: &ServiceKey| {
            changed.contains(key) || again.contains(key) || self.wanted.get(key) != wanted.get(key)
        };
        let due: Vec<_> =
            services.iter().map(|object| (key(object), object)).filter(|(key, _)| due(key)).collect();
        let said = |key| wanted.get(&key).cloned().unwrap_or_else(|| silence(leases));
        let services: Vec<_> = due.into_iter().map(|(key, object)| (object.clone(), said(key))).collect();
        self.work.compared += services.len() as u64;
        (self.wanted, self.last) = (wanted, Some(snapshot));
        let pools = self.allocation.pools.iter();
        let pools =
            pools.map(|(name, usage)| (name.clone(), say::pool(name, usage, &view.findings))).collect();
        Decided { services, pools }
    }

    /// Reads what changed; the keys of that.
    fn read(
        &mut self,
        known: &mut SharedMap<ServiceKey, Service>,
        services: &[Arc<ServiceObject>],
    ) -> BTreeSet<ServiceKey> {
        let mut changed = BTreeSet::new();
        let mut gone = std::mem::take(&mut self.read);
        for object in services {
            let key = key(object);
            let version = format!("{:?} {:?}", object.uid(), object.resource_version());
            if gone.remove(&key).as_ref() != Some(&version) {
                self.work.parsed += 1;
                match parse::service(object).value {
                    Some(service) if known.get(&key) == Some(&service) => {}
                    Some(service) => drop(known.insert(key.clone(), service)),
                    None => drop(known.remove(&key)),
                }
                changed.insert(key.clone());
            }
            self.read.insert(key, version);
        }
        for key in gone.into_keys() {
            known.remove(&key);
            changed.insert(key);
        }
        changed
    }

    fn follow(&mut self, before: &Snapshot, after: &Snapshot, fresh: bool) {
        let settings = fresh || before.settings != after.settings;
        let balances =
            |service: Option<&Service>| service.is_some_and(|one| one.kind == ServiceKind::LoadBalancer);
        let mut services = after.services.changes(&before.services);
        let same_grounds = before.pools == after.pools
            && before.namespaces == after.namespaces
            && before.nodes == after.nodes;
        if settings || !same_grounds || services.any(|one| balances(one.before) || balances(one.after)) {
            self.work.allocated += 1;
            self.allocation = allocate(after);
        }
        if settings || !weft_compile::same_service_findings(before, after) {
            self.work.checked += 1;
            self.findings = weft_compile::service_findings(after);
        }
        self.announcements.follow(after);
    }

    fn wanted(
        &self,
        view: &View,
        snapshot: &Snapshot,
        leases: &Known,
    ) -> BTreeMap<ServiceKey, ServiceStatus> {
        let parsed = view.findings.iter().filter(|finding| finding.object.starts_with("Service "));
        let findings: Vec<Finding> = parsed.chain(&self.findings).cloned().collect();
        let mut wanted = say::services(&self.allocation, &findings);
        for (key, saying) in announced::sayings(self.announcements.all(), &leases.by_address) {
            if let Some(status) = wanted.get_mut(&key) {
                status.conditions.push(saying);
            }
        }
        let untold = silence(leases).untold;
        if !untold.is_empty() {
            for key in snapshot.services.keys() {
                wanted.entry(key.clone()).or_default().untold.clone_from(&untold);
            }
        }
        wanted
    }
}

/// What a service says that there is nothing to say about.
fn silence(leases: &Known) -> ServiceStatus {
    let untold = if leases.listed { Vec::new() } else { vec![ANNOUNCED] };
    ServiceStatus { untold, ..ServiceStatus::default() }
}

fn key(service: &ServiceObject) -> ServiceKey {
    ServiceKey::new(service.namespace().unwrap_or_default(), service.name_any())
}

#[cfg(test)]
mod tests;
