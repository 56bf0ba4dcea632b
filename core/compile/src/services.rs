//! Services and EndpointSlices to frontends and backends. Choosing one backend lives in core/decide.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_model::{
    Addr, EndpointCondition, EndpointSlice, Family, Finding, Service, ServiceKey, ServicePort, Severity,
    Snapshot,
};
use weft_plan::{Backend, BackendList, Exposure, Frontend, ListId, ServiceId, ServicePlan};

use crate::ids::{Digest, Space, numbers};

pub(crate) fn services(snapshot: &Snapshot, findings: &mut Vec<Finding>) -> BTreeMap<Frontend, ServicePlan> {
    let mut slices: BTreeMap<&ServiceKey, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in snapshot.slices.values() {
        slices.entry(&slice.service).or_default().push(slice);
    }
    let mut plans: BTreeMap<Frontend, ServicePlan> = BTreeMap::new();
    for service in snapshot.services.values() {
        let slices = slices.get(&service.key).map(Vec::as_slice).unwrap_or_default();
        for (addr, port) in frontends(snapshot, service) {
            let frontend = Frontend { addr, protocol: port.protocol, port: port.port };
            if let Some(other) = plans.get(&frontend) {
                findings.push(claimed_twice(&frontend, other, service));
                continue;
            }
            let list = list(service, port, addr.family(), backends(slices, addr.family(), port));
            plans.insert(frontend, plan(service, port, list));
        }
    }
    number(&mut plans);
    plans
}

/// The name server's addresses are left out: the node itself answers there.
fn frontends<'a>(
    snapshot: &'a Snapshot,
    service: &'a Service,
) -> impl Iterator<Item = (Addr, &'a ServicePort)> {
    let addresses = service.cluster_ips.iter().filter(|addr| !snapshot.settings.dns_addresses.contains(addr));
    addresses.flat_map(|addr| service.ports.iter().map(|port| (*addr, port)))
}

fn plan(service: &Service, port: &ServicePort, list: BackendList) -> ServicePlan {
    ServicePlan {
        id: ServiceId(0),
        service: service.key.clone(),
        port_name: port.name.clone(),
        exposure: Exposure::ClusterIp,
        list: Arc::new(list),
        balancing: service.balancing,
        affinity: service.affinity,
        source_ranges: BTreeSet::new(),
        edge: None,
    }
}

fn list(service: &Service, port: &ServicePort, family: Family, backends: BTreeSet<Backend>) -> BackendList {
    let digest = Digest::of(
        "list",
        [
            service.key.to_string().as_bytes(),
            port.name.as_bytes(),
            &[port.protocol.0],
            format!("{family:?}").as_bytes(),
        ],
    );
    let id = numbers([digest], Space { first: 1, last: u32::MAX })[&digest];
    BackendList { id: ListId(id), backends: backends.into_iter().collect() }
}

/// Ready endpoints; if there are none, those that still serve while they terminate (KEP-1669).
fn backends(slices: &[&EndpointSlice], family: Family, port: &ServicePort) -> BTreeSet<Backend> {
    let ready = backends_in(slices, family, port, EndpointCondition::Ready);
    if ready.is_empty() {
        backends_in(slices, family, port, EndpointCondition::ServingTerminating)
    } else {
        ready
    }
}

fn backends_in(
    slices: &[&EndpointSlice],
    family: Family,
    port: &ServicePort,
    condition: EndpointCondition,
) -> BTreeSet<Backend> {
    let mut backends: BTreeMap<(Addr, weft_model::Port), Backend> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        let joined =
            slice.ports.iter().filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
        let numbers: Vec<_> = joined.map(|(_, _, number)| *number).collect();
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.condition == condition) {
            for (addr, number) in
                endpoint.addresses.iter().flat_map(|a| numbers.iter().map(move |n| (*a, *n)))
            {
                let backend = Backend {
                    addr,
                    port: number,
                    weight: endpoint.weight,
                    pod: endpoint.target.clone(),
                    node: endpoint.node.clone(),
                };
                // Two slices may hold the same endpoint while the controller moves it.
                let entry = backends.entry((addr, number)).or_insert_with(|| backend.clone());
                if backend > *entry {
                    *entry = backend;
                }
            }
        }
    }
    backends.into_values().collect()
}

fn number(plans: &mut BTreeMap<Frontend, ServicePlan>) {
    let digest = |frontend: &Frontend| {
        let port = frontend.port.0.to_be_bytes();
        Digest::of("frontend", [&frontend.addr.octets()[..], &[frontend.protocol.0], &port])
    };
    let ids = numbers(plans.keys().map(digest), Space { first: 1, last: u32::MAX });
    for (frontend, plan) in plans {
        plan.id = ServiceId(ids[&digest(frontend)]);
    }
}

fn claimed_twice(frontend: &Frontend, owner: &ServicePlan, service: &Service) -> Finding {
    Finding {
        severity: Severity::Error,
        object: format!("Service {}", service.key),
        field: "spec.clusterIPs".to_owned(),
        message: format!(
            "{frontend} belongs to service {} already; it is not served for this one",
            owner.service
        ),
    }
}
