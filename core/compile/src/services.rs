//! Services and EndpointSlices to frontends and the lists behind them (docs/design/services.md). Choosing one backend lives in
//! core/decide.

mod lists;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_model::{
    Addr, Cidr, EndpointSlice, Family, Finding, Forwarding, IpMode, Node, NodeName, Port, Protocol, Sctp,
    Service, ServiceKey, ServiceKind, ServicePort, Severity, SharedMap, Snapshot, TrafficPolicy,
};
use weft_plan::{BackendList, EdgePlan, Exposure, Frontend, HealthCheck, ServiceId, ServicePlan};

use crate::ids::{Digest, Space, numbers};
use lists::{Lists, Numbers, Place};

/// What a node does for services, and what is needed to follow a change of their endpoints.
#[derive(Default)]
pub(crate) struct Services {
    pub frontends: SharedMap<Frontend, ServicePlan>,
    pub health_checks: BTreeMap<Port, HealthCheck>,
    pub findings: Vec<Finding>,
    place: Place,
    numbers: Numbers,
    frontends_of: BTreeMap<ServiceKey, Vec<Frontend>>,
    slices_of: BTreeMap<ServiceKey, BTreeSet<ServiceKey>>,
}

impl Services {
    /// `node`: whose endpoints are local; `None` asks for what is the same everywhere, as findings are.
    pub fn of(snapshot: &Snapshot, node: Option<&NodeName>) -> Self {
        let slices_of = slices_of(snapshot);
        let place = Place::of(snapshot, node);
        let numbers = Numbers::of(snapshot.services.values());
        let slices = |service: &Service| slices(snapshot, &slices_of, &service.key);
        let lists = snapshot.services.values().map(|service| (service, slices(service)));
        let mut lists: Vec<(&Service, Lists<'_>)> =
            lists.map(|(service, slices)| (service, Lists::new(service, slices, &place, &numbers))).collect();
        let mut building = Building { snapshot, frontends: BTreeMap::new(), findings: Vec::new() };
        // A frontend of a later kind never takes one of an earlier kind away: an external IP cannot be another's cluster IP.
        for exposure in
            [Exposure::ClusterIp, Exposure::NodePort, Exposure::LoadBalancer, Exposure::ExternalIp]
        {
            for (service, lists) in &mut lists {
                building.expose(service, exposure, lists);
            }
        }
        let health_checks = building.health_checks(&lists);
        number_frontends(&mut building.frontends);
        let mut frontends_of: BTreeMap<ServiceKey, Vec<Frontend>> = BTreeMap::new();
        for (frontend, plan) in &building.frontends {
            frontends_of.entry(plan.service.clone()).or_default().push(*frontend);
        }
        let Building { frontends, findings, .. } = building;
        drop(lists);
        Self {
            frontends: frontends.into_iter().collect(),
            health_checks,
            findings,
            place,
            numbers,
            frontends_of,
            slices_of,
        }
    }

    /// Follows a change of endpoints alone, which changes no frontend, number or finding. False: something else has
    /// changed too, and nothing was done.
    pub fn follow(&mut self, before: &Snapshot, after: &Snapshot) -> bool {
        let same_services = after.services == before.services && after.settings == before.settings;
        if !same_services || !self.place.holds_for(before, after) || !same_kernels(before, after) {
            return false;
        }
        let mut affected = BTreeSet::new();
        for change in after.slices.changes(&before.slices) {
            if let Some(slice) = change.before {
                affected.insert(slice.service.clone());
                if let Some(keys) = self.slices_of.get_mut(&slice.service) {
                    keys.remove(change.key);
                }
            }
            if let Some(slice) = change.after {
                affected.insert(slice.service.clone());
                self.slices_of.entry(slice.service.clone()).or_default().insert(change.key.clone());
            }
        }
        for service in affected.iter().filter_map(|key| after.services.get(key)) {
            self.follow_one(after, service);
        }
        true
    }

    fn follow_one(&mut self, snapshot: &Snapshot, service: &Service) {
        let slices = slices(snapshot, &self.slices_of, &service.key);
        let mut lists = Lists::new(service, slices, &self.place, &self.numbers);
        for frontend in self.frontends_of.get(&service.key).into_iter().flatten() {
            let Some(plan) = self.frontends.get(frontend) else { continue };
            let of_plan =
                |port: &&ServicePort| port.name == plan.port_name && port.protocol == frontend.protocol;
            let Some(port) = service.ports.iter().find(of_plan) else { continue };
            let mut plan = plan.clone();
            let family = frontend.addr.family();
            plan.list = lists.get(port, family, internal_scope(service, plan.exposure));
            if let Some(edge) = &mut plan.edge {
                edge.list = lists.get(port, family, edge.policy);
            }
            self.frontends.insert(*frontend, plan);
        }
        for check in self.health_checks.values_mut().filter(|check| check.service == service.key) {
            check.local_endpoints = lists.ready_here();
        }
    }
}

/// Findings name nodes whose kernel lacks something.
pub(crate) fn same_kernels(before: &Snapshot, after: &Snapshot) -> bool {
    let sctp = |node: Option<&Node>| node.map(|node| node.sctp);
    after.nodes.changes(&before.nodes).all(|change| sctp(change.before) == sctp(change.after))
}

fn slices_of(snapshot: &Snapshot) -> BTreeMap<ServiceKey, BTreeSet<ServiceKey>> {
    let mut found: BTreeMap<ServiceKey, BTreeSet<ServiceKey>> = BTreeMap::new();
    for (key, slice) in &snapshot.slices {
        found.entry(slice.service.clone()).or_default().insert(key.clone());
    }
    found
}

fn slices<'a>(
    snapshot: &'a Snapshot,
    slices_of: &BTreeMap<ServiceKey, BTreeSet<ServiceKey>>,
    service: &ServiceKey,
) -> Vec<&'a EndpointSlice> {
    slices_of.get(service).into_iter().flatten().filter_map(|key| snapshot.slices.get(key)).collect()
}

/// Clients in the cluster are not outside, so only the cluster IP asks for the internal policy.
fn internal_scope(service: &Service, exposure: Exposure) -> TrafficPolicy {
    match exposure {
        Exposure::ClusterIp => service.internal_policy,
        _ => TrafficPolicy::Cluster,
    }
}

struct Building<'a> {
    snapshot: &'a Snapshot,
    frontends: BTreeMap<Frontend, ServicePlan>,
    findings: Vec<Finding>,
}

impl Building<'_> {
    fn expose(&mut self, service: &Service, exposure: Exposure, lists: &mut Lists<'_>) {
        for (addr, field) in self.addresses(service, exposure) {
            for (index, port) in service.ports.iter().enumerate() {
                let number = match exposure {
                    Exposure::NodePort => port.node_port,
                    _ => Some(port.port),
                };
                let Some(number) = number else { continue };
                if !matches!(port.protocol, Protocol::TCP | Protocol::UDP) {
                    self.not_served(service, index, port);
                    continue;
                }
                let frontend = Frontend { addr, protocol: port.protocol, port: number };
                if let Some(other) = self.frontends.get(&frontend) {
                    let finding = claimed_twice(&frontend, other, service, &field);
                    self.findings.push(finding);
                    continue;
                }
                let plan = self.plan(service, port, exposure, addr.family(), lists);
                self.frontends.insert(frontend, plan);
            }
        }
    }

    /// With the field each comes from.
    fn addresses(&mut self, service: &Service, exposure: Exposure) -> Vec<(Addr, String)> {
        let families: BTreeSet<Family> = service.cluster_ips.iter().map(|addr| addr.family()).collect();
        match exposure {
            // The name server's addresses are left out: the node itself answers there.
            Exposure::ClusterIp => {
                let addresses = service.cluster_ips.iter().enumerate();
                let served = addresses.filter(|(_, addr)| !self.is_name_server(**addr));
                served.map(|(index, addr)| (*addr, format!("spec.clusterIPs[{index}]"))).collect()
            }
            Exposure::NodePort => match service.kind {
                ServiceKind::NodePort | ServiceKind::LoadBalancer => {
                    families.iter().map(|family| (any_node(*family), "spec.ports".to_owned())).collect()
                }
                _ => Vec::new(),
            },
            Exposure::LoadBalancer => {
                let given = service.load_balancer_ips.iter().enumerate();
                let vips = given.filter(|(_, ip)| ip.mode == IpMode::Vip);
                let named = vips
                    .map(|(index, ip)| (ip.addr, format!("status.loadBalancer.ingress[{index}]")))
                    .collect();
                self.outside(service, &families, named)
            }
            Exposure::ExternalIp => {
                let given = service.external_ips.iter().enumerate();
                let named =
                    given.map(|(index, addr)| (*addr, format!("spec.externalIPs[{index}]"))).collect();
                self.outside(service, &families, named)
            }
        }
    }

    /// Addresses that others lead to the nodes: of the service's families, and nobody else's.
    fn outside(
        &mut self,
        service: &Service,
        families: &BTreeSet<Family>,
        given: Vec<(Addr, String)>,
    ) -> Vec<(Addr, String)> {
        let mut served = Vec::new();
        for (addr, field) in given {
            let settings = &self.snapshot.settings;
            let inside = |cidrs: &[Cidr]| cidrs.iter().any(|cidr| cidr.contains(addr));
            let problem = if !families.contains(&addr.family()) {
                Some(format!("{addr} is not of the service's families; it is not served"))
            } else if self.is_name_server(addr) {
                Some(format!("{addr} is the cluster's name server; it is not served for this service"))
            } else if inside(&settings.pod_cidrs) {
                Some(format!("{addr} lies in the pods' prefixes; it is not served"))
            } else {
                None
            };
            match problem {
                Some(message) => self.findings.push(error(service, &field, message)),
                None => served.push((addr, field)),
            }
        }
        served
    }

    fn is_name_server(&self, addr: Addr) -> bool {
        self.snapshot.settings.dns_addresses.contains(&addr)
    }

    fn plan(
        &self,
        service: &Service,
        port: &ServicePort,
        exposure: Exposure,
        family: Family,
        lists: &mut Lists<'_>,
    ) -> ServicePlan {
        let edge = (exposure != Exposure::ClusterIp).then(|| EdgePlan {
            list: lists.get(port, family, service.external_policy),
            policy: service.external_policy,
            forwarding: self.forwarding(service),
        });
        let source_ranges = match exposure {
            Exposure::LoadBalancer => service.source_ranges.clone(),
            _ => BTreeSet::new(),
        };
        ServicePlan {
            id: ServiceId(0),
            service: service.key.clone(),
            port_name: port.name.clone(),
            exposure,
            list: lists.get(port, family, internal_scope(service, exposure)),
            balancing: service.balancing,
            affinity: service.affinity,
            source_ranges,
            edge,
        }
    }

    fn forwarding(&self, service: &Service) -> Forwarding {
        service.forwarding.unwrap_or(self.snapshot.settings.forwarding)
    }

    fn health_checks(&mut self, all: &[(&Service, Lists<'_>)]) -> BTreeMap<Port, HealthCheck> {
        let mut checks: BTreeMap<Port, HealthCheck> = BTreeMap::new();
        for (service, lists) in all {
            let asked =
                service.kind == ServiceKind::LoadBalancer && service.external_policy == TrafficPolicy::Local;
            let Some(port) = service.health_check_node_port.filter(|_| asked) else { continue };
            if let Some(other) = checks.get(&port) {
                let message =
                    format!("{port} belongs to service {} already; it is not served", other.service);
                self.findings.push(error(service, "spec.healthCheckNodePort", message));
                continue;
            }
            let check = HealthCheck { service: service.key.clone(), local_endpoints: lists.ready_here() };
            checks.insert(port, check);
        }
        checks
    }

    fn not_served(&mut self, service: &Service, index: usize, port: &ServicePort) {
        let why = match port.protocol {
            Protocol::SCTP => why_no_sctp(self.snapshot),
            _ => NOT_BALANCED.to_owned(),
        };
        let message = format!("{} port {} is not served: {why}", port.protocol, port.port);
        let finding = error(service, &format!("spec.ports[{index}].protocol"), message);
        if !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }
}

const NOT_BALANCED: &str = "the datapath balances TCP and UDP";

fn why_no_sctp(snapshot: &Snapshot) -> String {
    let without = snapshot.nodes.values().filter(|node| node.sctp == Sctp::Missing);
    match (without.clone().count(), without.clone().next()) {
        (_, None) => NOT_BALANCED.to_owned(),
        (count, _) if count == snapshot.nodes.len() => {
            "no node's kernel has SCTP (CONFIG_IP_SCTP)".to_owned()
        }
        (1, Some(node)) => format!("{NOT_BALANCED}, and the kernel of node {} has no SCTP", node.name),
        (count, Some(node)) => {
            format!(
                "{NOT_BALANCED}, and the kernels of {count} nodes, {} among them, have no SCTP",
                node.name
            )
        }
    }
}

/// Stands for every address of every node.
fn any_node(family: Family) -> Addr {
    match family {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn number_frontends(plans: &mut BTreeMap<Frontend, ServicePlan>) {
    let digest = |frontend: &Frontend| {
        let port = frontend.port.0.to_be_bytes();
        Digest::of("frontend", [&frontend.addr.octets()[..], &[frontend.protocol.0], &port])
    };
    let digests: Vec<Digest> = plans.keys().map(digest).collect();
    let ids = numbers(digests.iter().copied(), Space { first: 1, last: u32::MAX });
    for (plan, digest) in plans.values_mut().zip(digests) {
        plan.id = ServiceId(ids[&digest]);
    }
}

fn claimed_twice(frontend: &Frontend, owner: &ServicePlan, service: &Service, field: &str) -> Finding {
    let message =
        format!("{frontend} belongs to service {} already; it is not served for this one", owner.service);
    error(service, field, message)
}

fn error(service: &Service, field: &str, message: String) -> Finding {
    Finding {
        severity: Severity::Error,
        object: format!("Service {}", service.key),
        field: field.to_owned(),
        message,
    }
}

/// Shared by every frontend of one port, family and scope.
type SharedList = Arc<BackendList>;

#[cfg(test)]
mod tests;
