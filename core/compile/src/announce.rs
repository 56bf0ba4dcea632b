//! Which load balancer addresses are announced on the local network, and from which nodes in which order. Who does it
//! is decided in core/decide, over time.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    Addr, AddressGiver, Announcement, Endpoint, EndpointCondition, IpMode, NodeName, Selector, Service,
    ServiceKey, ServiceKind, Snapshot, TrafficPolicy,
};

use crate::ids::Digest;
use crate::pools::pool_of;

/// One address to announce.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// In order of preference: by a hash of address and node, so that addresses spread over nodes and no node's coming
    /// or going changes the order of the others.
    pub candidates: Vec<NodeName>,
    pub services: BTreeSet<ServiceKey>,
    /// Empty: the uplink.
    pub interfaces: Vec<String>,
}

pub fn announced(snapshot: &Snapshot) -> BTreeMap<Addr, Announced> {
    let mut users: BTreeMap<Addr, Vec<&Service>> = BTreeMap::new();
    for service in snapshot.services.values().filter(|service| is_ours(service)) {
        for ip in service.load_balancer_ips.iter().filter(|ip| ip.mode == IpMode::Vip) {
            users.entry(ip.addr).or_default().push(service);
        }
    }
    let mut announced = BTreeMap::new();
    for (addr, services) in users {
        let Some(pool) = pool_of(snapshot, addr) else { continue };
        let Announcement::Layer2 { interfaces, nodes } = &pool.announcement else { continue };
        let mut candidates = eligible(snapshot, nodes.as_ref());
        for service in services.iter().filter(|service| service.external_policy == TrafficPolicy::Local) {
            let local = nodes_with_endpoints(snapshot, &service.key);
            candidates.retain(|node| local.contains(node));
        }
        candidates.sort_by_key(|node| {
            std::cmp::Reverse(Digest::of("announce", [&addr.octets()[..], node.as_str().as_bytes()]))
        });
        let services = services.iter().map(|service| service.key.clone()).collect();
        announced.insert(addr, Announced { candidates, services, interfaces: interfaces.clone() });
    }
    announced
}

fn is_ours(service: &Service) -> bool {
    service.kind == ServiceKind::LoadBalancer && service.request.giver == AddressGiver::Weft
}

/// When no node is ready it is rather the news of nodes that is lost than the nodes: then all may.
fn eligible(snapshot: &Snapshot, selector: Option<&Selector>) -> Vec<NodeName> {
    let selected: Vec<_> = snapshot
        .nodes
        .values()
        .filter(|node| selector.is_none_or(|selector| selector.matches(&node.labels)))
        .collect();
    let ready = selected.iter().any(|node| node.ready);
    selected.iter().filter(|node| node.ready || !ready).map(|node| node.name.clone()).collect()
}

/// Ready endpoints; if there are none, those that serve while they terminate (KEP-1669).
fn nodes_with_endpoints(snapshot: &Snapshot, service: &ServiceKey) -> BTreeSet<NodeName> {
    let slices = snapshot.slices.values().filter(|slice| slice.service == *service);
    let endpoints: Vec<&Endpoint> = slices.flat_map(|slice| &slice.endpoints).collect();
    let with = |condition| -> BTreeSet<NodeName> {
        let matching = endpoints.iter().filter(|endpoint| endpoint.condition == condition);
        matching.filter_map(|endpoint| endpoint.node.clone()).collect()
    };
    let ready = with(EndpointCondition::Ready);
    if ready.is_empty() { with(EndpointCondition::ServingTerminating) } else { ready }
}

#[cfg(test)]
mod tests {
    use weft_model::{
        AddressPool, AddressRange, Assignment, EndpointSlice, Family, Hints, LoadBalancerIp, Node, PoolName,
        Weight,
    };

    use super::*;

    fn node(name: &str, ready: bool) -> Node {
        Node {
            name: NodeName::new(name),
            labels: [("name".to_owned(), name.to_owned())].into(),
            addresses: Vec::new(),
            pod_cidrs: BTreeSet::new(),
            ready,
        }
    }

    fn addr() -> Addr {
        "192.0.2.10".parse().unwrap()
    }

    fn cluster(nodes: &[(&str, bool)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, ready) in nodes {
            snapshot.nodes.insert(NodeName::new(name), node(name, *ready));
        }
        let pool = AddressPool {
            name: PoolName("edge".to_owned()),
            ranges: vec![AddressRange { first: addr(), last: addr() }],
            assignment: Assignment::Automatic,
            services: None,
            namespaces: None,
            announcement: Announcement::Layer2 { interfaces: Vec::new(), nodes: None },
        };
        snapshot.pools.insert(pool.name.clone(), pool);
        let mut service = Service::new(ServiceKey::new("shop", "web"), ServiceKind::LoadBalancer);
        service.load_balancer_ips = vec![LoadBalancerIp { addr: addr(), mode: IpMode::Vip }];
        service.request.giver = AddressGiver::Weft;
        snapshot.services.insert(service.key.clone(), service);
        snapshot
    }

    fn candidates(snapshot: &Snapshot) -> Vec<String> {
        let mut announced = announced(snapshot);
        let found = announced.remove(&addr()).unwrap_or_default();
        found.candidates.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ready_nodes_are_candidates_and_the_order_of_the_rest_stays() {
        let all = candidates(&cluster(&[("a", true), ("b", true), ("c", true)]));
        assert_eq!(all.len(), 3);
        for gone in ["a", "b", "c"] {
            let nodes: Vec<(&str, bool)> = ["a", "b", "c"].map(|name| (name, name != gone)).to_vec();
            let expected: Vec<String> = all.iter().filter(|name| *name != gone).cloned().collect();
            assert_eq!(candidates(&cluster(&nodes)), expected);
        }
        assert_eq!(candidates(&cluster(&[("a", false), ("b", false), ("c", false)])), all);
    }

    #[test]
    fn local_services_are_announced_where_their_endpoints_are() {
        let mut snapshot = cluster(&[("a", true), ("b", true), ("c", false)]);
        let key = ServiceKey::new("shop", "web");
        let mut service = snapshot.services[&key].clone();
        service.external_policy = TrafficPolicy::Local;
        snapshot.services.insert(key.clone(), service);
        assert!(candidates(&snapshot).is_empty());
        let endpoint = |name: &str, condition| Endpoint {
            addresses: BTreeSet::new(),
            condition,
            hostname: None,
            node: Some(NodeName::new(name)),
            zone: None,
            target: None,
            hints: Hints::default(),
            weight: Weight::default(),
        };
        let mut slice = EndpointSlice {
            service: key.clone(),
            name: "web-1".to_owned(),
            family: Family::V4,
            ports: Vec::new(),
            endpoints: vec![
                endpoint("b", EndpointCondition::ServingTerminating),
                endpoint("c", EndpointCondition::ServingTerminating),
            ],
        };
        snapshot.slices.insert(key.clone(), slice.clone());
        assert_eq!(candidates(&snapshot), ["b"]);
        slice.endpoints.push(endpoint("a", EndpointCondition::Ready));
        snapshot.slices.insert(key, slice);
        assert_eq!(candidates(&snapshot), ["a"]);
    }

    #[test]
    fn pools_that_are_not_announced_and_addresses_of_others_are_not_there() {
        let mut quiet = cluster(&[("a", true)]);
        let mut pool = quiet.pools[&PoolName("edge".to_owned())].clone();
        pool.announcement = Announcement::None;
        quiet.pools.insert(pool.name.clone(), pool);
        assert!(announced(&quiet).is_empty());
        let mut others = cluster(&[("a", true)]);
        let mut service = others.services[&ServiceKey::new("shop", "web")].clone();
        service.request.giver = AddressGiver::Other;
        others.services.insert(service.key.clone(), service);
        assert!(announced(&others).is_empty());
    }
}
