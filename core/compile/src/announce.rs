//! Which load balancer addresses are announced on the local network, and from which nodes in which order. Who does it
//! is decided in core/decide, over time.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    Addr, AddressGiver, Announcement, Endpoint, EndpointCondition, IpMode, Node, NodeName, Selector, Service,
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
    let mut announcements = Announcements::default();
    announcements.follow(snapshot);
    announcements.all
}

/// The same for one snapshot after the other: a change costs what it concerns.
#[derive(Default)]
pub struct Announcements {
    last: Option<Snapshot>,
    all: BTreeMap<Addr, Announced>,
    users: BTreeMap<Addr, BTreeSet<ServiceKey>>,
    slices_of: BTreeMap<ServiceKey, BTreeSet<ServiceKey>>,
    made: u64,
}

impl Announcements {
    pub fn all(&self) -> &BTreeMap<Addr, Announced> {
        &self.all
    }

    /// How many addresses were worked out so far.
    pub fn made(&self) -> u64 {
        self.made
    }

    /// Whether anything about any address has changed.
    pub fn follow(&mut self, snapshot: &Snapshot) -> bool {
        let before = self.last.replace(snapshot.clone()).unwrap_or_default();
        let mut affected = BTreeSet::new();
        for change in snapshot.services.changes(&before.services) {
            for service in [change.before, change.after].into_iter().flatten().filter(|one| is_ours(one)) {
                affected.extend(addresses(service));
            }
            self.put_users(change.before, change.after);
        }
        for change in snapshot.slices.changes(&before.slices) {
            if let Some(slice) = change.before {
                forget(&mut self.slices_of, &slice.service, change.key);
            }
            if let Some(slice) = change.after {
                self.slices_of.entry(slice.service.clone()).or_default().insert(change.key.clone());
            }
            for slice in [change.before, change.after].into_iter().flatten() {
                let service = snapshot.services.get(&slice.service).filter(|service| is_ours(service));
                let keeps_local = service.filter(|service| service.external_policy == TrafficPolicy::Local);
                affected.extend(keeps_local.into_iter().flat_map(addresses));
            }
        }
        let about = |node: &Node| (node.ready, node.labels.clone());
        let mut nodes = snapshot.nodes.changes(&before.nodes);
        if snapshot.pools != before.pools || nodes.any(|node| node.before.map(about) != node.after.map(about))
        {
            affected.extend(self.users.keys().chain(self.all.keys()));
        }
        let mut changed = false;
        for addr in affected {
            self.made += 1;
            let now = self.make(snapshot, addr);
            let was = match now.clone() {
                Some(now) => self.all.insert(addr, now),
                None => self.all.remove(&addr),
            };
            changed |= was != now;
        }
        changed
    }

    fn put_users(&mut self, before: Option<&Service>, after: Option<&Service>) {
        if let Some(service) = before.filter(|service| is_ours(service)) {
            addresses(service).for_each(|addr| forget(&mut self.users, &addr, &service.key));
        }
        if let Some(service) = after.filter(|service| is_ours(service)) {
            for addr in addresses(service) {
                self.users.entry(addr).or_default().insert(service.key.clone());
            }
        }
    }

    fn make(&self, snapshot: &Snapshot, addr: Addr) -> Option<Announced> {
        let users = self.users.get(&addr)?;
        let Announcement::Layer2 { interfaces, nodes } = &pool_of(snapshot, addr)?.announcement else {
            return None;
        };
        let mut candidates = eligible(snapshot, nodes.as_ref());
        let services = users.iter().filter_map(|key| snapshot.services.get(key));
        for service in services.filter(|service| service.external_policy == TrafficPolicy::Local) {
            let local = self.nodes_with_endpoints(snapshot, &service.key);
            candidates.retain(|node| local.contains(node));
        }
        candidates.sort_by_key(|node| {
            std::cmp::Reverse(Digest::of("announce", [&addr.octets()[..], node.as_str().as_bytes()]))
        });
        Some(Announced { candidates, services: users.clone(), interfaces: interfaces.clone() })
    }

    /// Ready endpoints; if there are none, those that serve while they terminate (KEP-1669).
    fn nodes_with_endpoints(&self, snapshot: &Snapshot, service: &ServiceKey) -> BTreeSet<NodeName> {
        let keys = self.slices_of.get(service).into_iter().flatten();
        let slices = keys.filter_map(|key| snapshot.slices.get(key));
        let endpoints: Vec<&Endpoint> = slices.flat_map(|slice| &slice.endpoints).collect();
        let with = |condition| -> BTreeSet<NodeName> {
            let matching = endpoints.iter().filter(|endpoint| endpoint.condition == condition);
            matching.filter_map(|endpoint| endpoint.node.clone()).collect()
        };
        let ready = with(EndpointCondition::Ready);
        if ready.is_empty() { with(EndpointCondition::ServingTerminating) } else { ready }
    }
}

fn addresses(service: &Service) -> impl Iterator<Item = Addr> + '_ {
    service.load_balancer_ips.iter().filter(|ip| ip.mode == IpMode::Vip).map(|ip| ip.addr)
}

fn forget<K: Ord>(map: &mut BTreeMap<K, BTreeSet<ServiceKey>>, from: &K, key: &ServiceKey) {
    if let Some(keys) = map.get_mut(from) {
        keys.remove(key);
        if keys.is_empty() {
            map.remove(from);
        }
    }
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

#[cfg(test)]
mod tests {
    use weft_model::{
        AddressPool, AddressRange, Assignment, EndpointSlice, Family, Hints, LoadBalancerIp, PoolName, Weight,
    };

    use super::*;

    fn node(name: &str, ready: bool) -> Node {
        Node {
            name: NodeName::new(name),
            labels: [("name".to_owned(), name.to_owned())].into(),
            addresses: Vec::new(),
            pod_cidrs: BTreeSet::new(),
            ready,
            sctp: Default::default(),
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

    /// One after the other or all at once: the same is announced, and an event costs the addresses it is about.
    #[test]
    fn a_change_costs_the_addresses_it_concerns() {
        let range = |first: &str, last: &str| AddressRange {
            first: first.parse().unwrap(),
            last: last.parse().unwrap(),
        };
        let mut snapshot = cluster(&[("a", true), ("b", true)]);
        let mut pool = snapshot.pools[&PoolName("edge".to_owned())].clone();
        pool.ranges = vec![range("192.0.2.10", "192.0.3.250")];
        snapshot.pools.insert(pool.name.clone(), pool);
        let service = |number: u32, policy| {
            let key = ServiceKey::new("shop", format!("s{number}"));
            let mut service = Service::new(key, ServiceKind::LoadBalancer);
            let addr = Addr::from(std::net::Ipv4Addr::from(0xc000_020b + number));
            service.load_balancer_ips = vec![LoadBalancerIp { addr, mode: IpMode::Vip }];
            service.request.giver = AddressGiver::Weft;
            service.external_policy = policy;
            service
        };
        for number in 0..300 {
            let policy = if number == 7 { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
            let service = service(number, policy);
            snapshot.services.insert(service.key.clone(), service);
        }
        let mut followed = Announcements::default();
        let mut cost = |snapshot: &Snapshot| {
            let before = followed.made();
            let changed = followed.follow(snapshot);
            assert_eq!(*followed.all(), announced(snapshot));
            (followed.made() - before, changed)
        };
        assert_eq!(cost(&snapshot), (301, true));
        assert_eq!(cost(&snapshot), (0, false));
        let slice = |of: u32, node: &str| EndpointSlice {
            service: ServiceKey::new("shop", format!("s{of}")),
            name: format!("s{of}-1"),
            family: Family::V4,
            ports: Vec::new(),
            endpoints: vec![Endpoint {
                addresses: BTreeSet::new(),
                condition: EndpointCondition::Ready,
                hostname: None,
                node: Some(NodeName::new(node)),
                zone: None,
                target: None,
                hints: Hints::default(),
                weight: Weight::default(),
            }],
        };
        for (of, node, expected) in
            [(3, "a", (0, false)), (7, "a", (1, true)), (7, "b", (1, true)), (3, "b", (0, false))]
        {
            snapshot.slices.insert(ServiceKey::new("shop", format!("s{of}-1")), slice(of, node));
            assert_eq!(cost(&snapshot), expected, "slice of s{of}");
        }
        let renamed = service(9, TrafficPolicy::Local);
        snapshot.services.insert(renamed.key.clone(), renamed);
        assert_eq!(cost(&snapshot), (1, true));
        snapshot.services.remove(&ServiceKey::new("shop", "s9"));
        assert_eq!(cost(&snapshot), (1, true));
        // A node's addresses are not what makes it a candidate, its readiness is.
        let mut node = node("a", true);
        node.addresses.push("192.0.2.1".parse().unwrap());
        snapshot.nodes.insert(node.name.clone(), node.clone());
        assert_eq!(cost(&snapshot), (0, false));
        node.ready = false;
        snapshot.nodes.insert(node.name.clone(), node);
        assert_eq!(cost(&snapshot), (300, true));
    }
}
