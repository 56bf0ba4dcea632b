//! The names that one service brings, and how a plan gets them in place of the names it brought before.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    Addr, Endpoint, EndpointCondition, EndpointSlice, Port, Protocol, Service, ServiceKind, SharedMap,
};
use weft_plan::{Absence, NamePlan, NameRecords, SrvRecord};

use super::{add_address, is_label, normal};

/// Endpoints and service ports are all alike to a client, so every record gets the same priority and weight.
const PRIORITY: u16 = 0;
const WEIGHT: u16 = 100;

/// All names are the service's own or below it, so no two services bring the same.
#[derive(Default)]
pub(super) struct Records {
    names: BTreeMap<String, NameRecords>,
    pointers: BTreeSet<(Addr, String)>,
    absent: BTreeMap<String, Absence>,
}

impl Records {
    pub fn of<'a>(service: &Service, slices: impl Iterator<Item = &'a EndpointSlice>, domain: &str) -> Self {
        let mut records = Self::default();
        let (name, namespace) = (service.key.name.as_ref(), service.key.namespace.as_str());
        if !is_label(name) || !is_label(namespace) {
            return records;
        }
        let own = format!("{name}.{namespace}.svc.{domain}");
        match &service.kind {
            ServiceKind::ExternalName(target) => records.external(own, target),
            ServiceKind::Headless => records.headless(own, service, slices),
            ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => {
                records.cluster_ip(own, service);
            }
        }
        records
    }

    /// Puts these into the plan in place of `old`, touching only what differs.
    pub fn replace(self, old: Self, plan: &mut NamePlan) {
        replace(self.names, old.names, &mut plan.names);
        replace(self.absent, old.absent, &mut plan.absent);
        for (addr, target) in old.pointers.difference(&self.pointers) {
            let Some(mut targets) = plan.pointers.get(addr).cloned() else { continue };
            targets.remove(target);
            if targets.is_empty() {
                plan.pointers.remove(addr);
            } else {
                plan.pointers.insert(*addr, targets);
            }
        }
        for (addr, target) in self.pointers.difference(&old.pointers) {
            let mut targets = plan.pointers.get(addr).cloned().unwrap_or_default();
            targets.insert(target.clone());
            plan.pointers.insert(*addr, targets);
        }
    }

    /// 2.3
    fn cluster_ip(&mut self, own: String, service: &Service) {
        let records = self.names.entry(own.clone()).or_default();
        for addr in &service.cluster_ips {
            add_address(records, *addr);
            self.pointers.insert((*addr, own.clone()));
        }
        for port in &service.ports {
            self.port(&own, &port.name, port.protocol, port.port, &own);
        }
    }

    /// 2.4
    fn headless<'a>(
        &mut self,
        own: String,
        service: &Service,
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) {
        let mut not_ready = BTreeSet::new();
        for slice in slices {
            for endpoint in &slice.endpoints {
                if service.publish_not_ready || endpoint.condition == EndpointCondition::Ready {
                    self.endpoint(&own, slice, endpoint);
                } else {
                    not_ready.extend(endpoint.addresses.iter().copied());
                }
            }
        }
        if self.names.is_empty() {
            let absence =
                Absence::NoReadyEndpoints { service: service.key.clone(), not_ready: not_ready.len() };
            self.absent.insert(own, absence);
        }
    }

    fn endpoint(&mut self, own: &str, slice: &EndpointSlice, endpoint: &Endpoint) {
        for addr in &endpoint.addresses {
            let host = endpoint.hostname.as_deref().filter(|hostname| is_label(hostname));
            let name = host.map_or_else(|| address_label(*addr), str::to_owned) + "." + own;
            add_address(self.names.entry(own.to_owned()).or_default(), *addr);
            add_address(self.names.entry(name.clone()).or_default(), *addr);
            for (port_name, protocol, port) in &slice.ports {
                self.port(own, port_name, *protocol, *port, &name);
            }
            self.pointers.insert((*addr, name));
        }
    }

    /// 2.3.2 and 2.4.2: ports without a name have no record.
    fn port(&mut self, own: &str, name: &str, protocol: Protocol, port: Port, target: &str) {
        if !is_label(name) {
            return;
        }
        let above = format!("_{}.{own}", protocol.to_string().to_ascii_lowercase());
        let srv = SrvRecord { priority: PRIORITY, weight: WEIGHT, port: port.0, target: target.to_owned() };
        self.names.entry(format!("_{name}.{above}")).or_default().srv.insert(srv);
        self.names.entry(above).or_default();
    }

    /// 2.5
    fn external(&mut self, own: String, target: &str) {
        let target = normal(target);
        if !target.is_empty() {
            self.names.entry(own).or_default().cname = Some(target);
        }
    }
}

fn replace<V: PartialEq>(new: BTreeMap<String, V>, old: BTreeMap<String, V>, map: &mut SharedMap<String, V>) {
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        map.remove(name);
    }
    for (name, value) in new {
        if old.get(&name) != Some(&value) {
            map.insert(name, value);
        }
    }
}

/// The name of an endpoint that has no hostname, in the form CoreDNS gives it, so that what was learned from
/// one resolves with the other. A label neither starts nor ends with a hyphen.
pub(super) fn address_label(addr: Addr) -> String {
    let mut text = addr.to_string().replace(['.', ':'], "-");
    if text.starts_with('-') {
        text.insert(0, '0');
    }
    if text.ends_with('-') {
        text.push('0');
    }
    text
}
