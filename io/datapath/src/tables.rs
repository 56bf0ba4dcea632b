//! The plan as raw map entries. Pure: putting them into the kernel lives in `apply`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use weft_abi::{
    AddrKey, BackendKey, BackendValue, EndpointFlags, EndpointKind, EndpointValue, MemberKey, PolicyMapKey,
    PolicyValue, PrefixKey, RouteFlags, RouteKind, RouteValue, ServiceKey, ServiceValue, SourceKey,
};
use weft_model::{Addr, Cidr};
use weft_plan::{EndpointPlan, Exposure, Frontend, NodePlan, ServicePlan};

use crate::pods::PodLink;
use crate::service_entries::{self, Hashing, ListEntries, Localhost, lists_of};

/// What map entries without a value of their own hold.
pub(crate) const PRESENT: u32 = 1;

/// Everything that the agent, and not a program, writes into maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelTables {
    pub endpoints: BTreeMap<AddrKey, EndpointValue>,
    pub classes: BTreeMap<AddrKey, u32>,
    pub class_blocks: BTreeMap<PrefixKey, u32>,
    pub policies: BTreeMap<PolicyMapKey, PolicyValue>,
    pub routes: BTreeMap<PrefixKey, RouteValue>,
    pub services: BTreeMap<ServiceKey, ServiceValue>,
    pub backends: BTreeMap<BackendKey, BackendValue>,
    pub members: BTreeMap<MemberKey, u32>,
    /// By list: the words of its table.
    pub maglev: BTreeMap<u32, Arc<[u64]>>,
    pub source_ranges: BTreeMap<SourceKey, u32>,
    pub announced: BTreeMap<AddrKey, u32>,
}

impl KernelTables {
    /// `links` are the pod links that exist; an endpoint without one is known but not ready.
    pub fn of_plan(plan: &NodePlan, links: &[PodLink]) -> Self {
        let mut tables = Self::of_node(plan, links);
        tables.add_services(plan);
        tables
    }

    /// All but services.
    pub(crate) fn of_node(plan: &NodePlan, links: &[PodLink]) -> Self {
        let mut tables = Self::default();
        tables.add_endpoints(plan, links);
        tables.add_classes(plan);
        tables.add_policies(plan);
        tables.add_routes(plan);
        tables.announced = plan.announced.iter().map(|addr| ((*addr).into(), PRESENT)).collect();
        tables
    }

    fn add_endpoints(&mut self, plan: &NodePlan, links: &[PodLink]) {
        for addr in &plan.settings.host_addresses {
            let value = EndpointValue { kind: EndpointKind::HOST, ..Default::default() };
            self.endpoints.insert((*addr).into(), value);
        }
        for (addr, endpoint) in &plan.endpoints {
            let link = links.iter().find(|link| link.device == endpoint.device);
            self.endpoints.insert((*addr).into(), endpoint_value(endpoint, link));
        }
    }

    fn add_classes(&mut self, plan: &NodePlan) {
        for (prefix, class) in &plan.classes {
            if prefix.bits() == 128 {
                self.classes.insert(prefix.addr().into(), class.0);
            } else {
                self.class_blocks.insert((*prefix).into(), class.0);
            }
        }
    }

    fn add_policies(&mut self, plan: &NodePlan) {
        for (id, set) in &plan.policy_sets {
            self.policies.insert(PolicyMapKey::default_of(*id), PolicyValue::default_deny(set.default_rule));
            // An entry for everything takes the default's place: the default is then never reached.
            for (matched, decision) in &set.entries {
                self.policies.insert(PolicyMapKey::new(*id, matched), (*decision).into());
            }
        }
    }

    /// One table for four: an entry that an earlier kind covers is left out, so that the order of kinds and not the
    /// length of prefixes decides between kinds.
    fn add_routes(&mut self, plan: &NodePlan) {
        let settings = &plan.settings;
        let is_pod = |prefix: &Cidr| settings.cluster_pod_cidrs.iter().any(|pods| pods.covers(*prefix));
        let mut earlier: Vec<Cidr> = Vec::new();
        for (prefix, hop) in &plan.routes {
            let flags = if is_pod(prefix) { RouteFlags::IS_POD } else { 0 };
            let value = RouteValue { via: hop.via.into(), kind: RouteKind::REMOTE, flags, reserved: [0; 2] };
            self.routes.insert((*prefix).into(), value);
            earlier.push(*prefix);
        }
        let kinds = [
            (RouteKind::OWN_PODS, &settings.pod_cidrs, RouteFlags::IS_POD),
            (RouteKind::SERVICES, &settings.service_cidrs, 0),
            (RouteKind::CLUSTER_PODS, &settings.cluster_pod_cidrs, RouteFlags::IS_POD),
        ];
        for (kind, prefixes, flags) in kinds {
            let uncovered: Vec<Cidr> = prefixes
                .iter()
                .filter(|prefix| !earlier.iter().any(|before| before.covers(**prefix)))
                .copied()
                .collect();
            for prefix in &uncovered {
                self.routes.insert((*prefix).into(), RouteValue { kind, flags, ..Default::default() });
            }
            earlier.extend(uncovered);
        }
        self.add_outside(plan, &earlier);
        // In sixteen bytes a short IPv6 prefix covers all of IPv4.
        let all_v4 =
            Cidr::around(Addr::from(std::net::Ipv4Addr::UNSPECIFIED), 0).expect("no bits are within range");
        self.routes
            .entry(all_v4.into())
            .or_insert(RouteValue { kind: RouteKind::NONE, ..Default::default() });
    }

    /// What is special about addresses outside the cluster's prefixes.
    fn add_outside(&mut self, plan: &NodePlan, inside: &[Cidr]) {
        let as_is = &plan.settings.cluster_cidrs;
        let is_inside = |prefix: Cidr| inside.iter().any(|before| before.covers(prefix));
        let value = |flags| RouteValue { kind: RouteKind::OUTSIDE, flags, ..Default::default() };
        for prefix in as_is.iter().filter(|prefix| !is_inside(**prefix)) {
            self.routes.insert((*prefix).into(), value(RouteFlags::AS_IS));
        }
        let frontends =
            plan.services.iter().filter(|(frontend, service)| is_reached_from_outside(frontend, service));
        for addr in frontends.map(|(frontend, _)| frontend.addr).filter(|addr| !is_inside(Cidr::host(*addr)))
        {
            let known = if as_is.iter().any(|prefix| prefix.contains(addr)) { RouteFlags::AS_IS } else { 0 };
            self.routes.insert(Cidr::host(addr).into(), value(known | RouteFlags::IS_FRONTEND));
        }
    }

    fn add_services(&mut self, plan: &NodePlan) {
        let localhost = localhost(plan);
        let mut lists = HashMap::new();
        for (frontend, service) in &plan.services {
            let value = service_entries::service_value(frontend, service, localhost);
            self.services.insert(frontend.into(), value);
            let sources = service_entries::source_keys(frontend, service).into_iter();
            self.source_ranges.extend(sources.map(|key| (key, PRESENT)));
            for (list, hashing) in lists_of(service) {
                let known = lists.entry(list.id.0).or_insert((list, Hashing::Never));
                known.1 = known.1.max(hashing);
            }
        }
        for (id, (list, hashing)) in lists {
            let entries = ListEntries::of(list, hashing);
            self.backends.extend(entries.backends(id));
            self.members.extend(entries.members(id));
            self.maglev.extend(entries.table.map(|table| (id, table)));
        }
    }
}

/// At an address of its own, and no node's.
pub(crate) fn is_reached_from_outside(frontend: &Frontend, service: &ServicePlan) -> bool {
    service.edge.is_some()
        && service.exposure != Exposure::NodePort
        && !frontend.addr.to_ip().is_unspecified()
}

pub(crate) fn localhost(plan: &NodePlan) -> Localhost {
    if plan.settings.localhost_node_ports { Localhost::Open } else { Localhost::Closed }
}

fn endpoint_value(endpoint: &EndpointPlan, link: Option<&PodLink>) -> EndpointValue {
    let mut flags = 0;
    if endpoint.ingress.is_some() {
        flags |= EndpointFlags::INGRESS_ISOLATED;
    }
    if endpoint.egress.is_some() {
        flags |= EndpointFlags::EGRESS_ISOLATED;
    }
    EndpointValue {
        ifindex: link.map(|link| link.ifindex).unwrap_or_default(),
        ingress_set: endpoint.ingress.map(|set| set.0).unwrap_or_default(),
        egress_set: endpoint.egress.map(|set| set.0).unwrap_or_default(),
        kind: EndpointKind::POD,
        flags,
        reserved: [0; 2],
        pod_mac: link.map(|link| link.pod_mac.0).unwrap_or_default(),
        host_mac: link.map(|link| link.host_mac.0).unwrap_or_default(),
    }
}
