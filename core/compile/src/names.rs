//! Snapshot to the names the cluster answers for (Kubernetes DNS-Based Service Discovery 1.1.0; section numbers
//! below are its). What one question gets is decided in core/decide.

mod clients;
mod records;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_model::{Addr, EndpointSlice, NamespaceName, ServiceKey, ServiceKind, Shared, Snapshot};
use weft_plan::{NamePlan, NameRecords};

use crate::endpoints::Locals;
use records::Records;

/// 2.2
const SCHEMA_VERSION: &str = "1.1.0";

/// The names, and what is needed to follow changes of some services at the cost of those.
pub(crate) struct Names {
    pub plan: Shared<NamePlan>,
    slices_of: SlicesOf,
}

type SlicesOf = BTreeMap<ServiceKey, BTreeSet<ServiceKey>>;

impl Names {
    pub fn of(snapshot: &Snapshot, locals: &Locals<'_>) -> Self {
        let mut slices_of = SlicesOf::new();
        for (key, slice) in &snapshot.slices {
            slices_of.entry(slice.service.clone()).or_default().insert(key.clone());
        }
        let mut names = Self { plan: zones(snapshot).into(), slices_of };
        for namespace in snapshot.namespaces.keys() {
            names.settle(snapshot, namespace);
        }
        for service in snapshot.services.keys() {
            names.records(snapshot, service).replace(Records::default(), &mut names.plan);
            names.settle(snapshot, &service.namespace);
        }
        names.follow_clients(snapshot, locals);
        names
    }

    /// The settings must be the same in both.
    pub fn follow(&mut self, before: &Snapshot, after: &Snapshot, locals: &Locals<'_>) {
        let affected = affected(before, after);
        let old: Vec<Records> = affected.iter().map(|service| self.records(before, service)).collect();
        for change in after.slices.changes(&before.slices) {
            if let Some(slice) = change.before
                && let Some(keys) = self.slices_of.get_mut(&slice.service)
            {
                keys.remove(change.key);
            }
            if let Some(slice) = change.after {
                self.slices_of.entry(slice.service.clone()).or_default().insert(change.key.clone());
            }
        }
        for (service, old) in affected.iter().zip(old) {
            self.records(after, service).replace(old, &mut self.plan);
        }
        let changed = after.namespaces.changes(&before.namespaces).map(|change| change.key);
        for namespace in changed.chain(affected.iter().map(|service| &service.namespace)) {
            self.settle(after, namespace);
        }
        self.follow_clients(after, locals);
    }

    fn records(&self, snapshot: &Snapshot, service: &ServiceKey) -> Records {
        let Some(service) = snapshot.services.get(service) else { return Records::default() };
        let slices = self.slices_of.get(&service.key).into_iter().flatten();
        Records::of(service, slices.filter_map(|key| snapshot.slices.get(key)), &self.plan.domain)
    }

    /// A namespace has a name while it exists, or a service in it does.
    fn settle(&mut self, snapshot: &Snapshot, namespace: &NamespaceName) {
        let first = ServiceKey::new(namespace.as_str(), "");
        let has_service =
            || snapshot.services.range(first..).next().is_some_and(|(key, _)| key.namespace == *namespace);
        let name = format!("{namespace}.svc.{}", self.plan.domain);
        if !is_label(namespace.as_str()) {
            return;
        }
        match snapshot.namespaces.contains_key(namespace) || has_service() {
            true if self.plan.names.contains_key(&name) => {}
            true => _ = self.plan.names.insert(name, NameRecords::default()),
            false => _ = self.plan.names.remove(&name),
        }
    }

    fn follow_clients(&mut self, snapshot: &Snapshot, locals: &Locals<'_>) {
        let clients = clients::clients(snapshot, locals);
        if clients != self.plan.clients {
            self.plan.clients = clients;
        }
    }
}

/// Services whose names may differ. Endpoints are named for headless services alone.
fn affected(before: &Snapshot, after: &Snapshot) -> BTreeSet<ServiceKey> {
    let is_headless = |key: &ServiceKey| {
        let kind = |snapshot: &Snapshot| snapshot.services.get(key).map(|service| service.kind.clone());
        [before, after].into_iter().any(|snapshot| kind(snapshot) == Some(ServiceKind::Headless))
    };
    let mut affected: BTreeSet<ServiceKey> =
        after.services.changes(&before.services).map(|change| change.key.clone()).collect();
    for change in after.slices.changes(&before.slices) {
        let services =
            change.before.into_iter().chain(change.after).map(|slice: &EndpointSlice| &slice.service);
        affected.extend(services.filter(|service| is_headless(service)).cloned());
    }
    affected
}

/// What exists whatever the cluster holds.
fn zones(snapshot: &Snapshot) -> NamePlan {
    let settings = &snapshot.settings;
    let domain = normal(&settings.cluster_domain);
    let mut plan = NamePlan {
        set_domain: normal(&settings.names.set_domain),
        reverse: settings.pod_cidrs.iter().chain(&settings.service_cidrs).copied().collect(),
        ..NamePlan::default()
    };
    for relative in ["svc.", "pod.", "dns.", ""] {
        plan.names.insert(format!("{relative}{domain}"), NameRecords::default());
    }
    let version = NameRecords { txt: Some(SCHEMA_VERSION.to_owned()), ..NameRecords::default() };
    plan.names.insert(format!("dns-version.{domain}"), version);
    let mut server = NameRecords::default();
    for addr in &settings.dns_addresses {
        add_address(&mut server, *addr);
    }
    plan.names.insert(format!("ns.dns.{domain}"), server);
    // Services that clusters share will have their names below it; it exists without them.
    if !plan.set_domain.is_empty() {
        plan.names.insert(plan.set_domain.clone(), NameRecords::default());
    }
    plan.domain = domain;
    plan
}

fn normal(domain: &str) -> String {
    domain.trim_end_matches('.').to_ascii_lowercase()
}

fn add_address(records: &mut NameRecords, addr: Addr) {
    match addr.to_ip() {
        IpAddr::V4(v4) => _ = records.a.insert(v4),
        IpAddr::V6(v6) => _ = records.aaaa.insert(v6),
    }
}

/// What an API server takes as the name of a namespace, service, host or port. Others cannot be asked for.
fn is_label(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('-')
        && !text.ends_with('-')
}
