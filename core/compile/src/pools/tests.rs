//! Allocation case by case, and what holds for every set of pools and services.

use proptest::prelude::*;
use weft_model::{Announcement, IpMode, LoadBalancerIp, Node, NodeName, ServicePort, TargetPort};

use super::*;

fn addr(text: &str) -> Addr {
    text.parse().unwrap()
}

fn pool(name: &str, ranges: &[(&str, &str)]) -> AddressPool {
    let ranges =
        ranges.iter().map(|(first, last)| weft_model::AddressRange { first: addr(first), last: addr(last) });
    AddressPool {
        name: PoolName(name.to_owned()),
        ranges: ranges.collect(),
        assignment: Assignment::Automatic,
        services: None,
        namespaces: None,
        announcement: Announcement::Layer2 { interfaces: Vec::new(), nodes: None },
    }
}

fn port(number: u16) -> ServicePort {
    ServicePort {
        name: number.to_string(),
        protocol: Protocol::TCP,
        port: Port(number),
        target: TargetPort::Number(Port(number)),
        node_port: None,
        app_protocol: None,
    }
}

fn service(name: &str, created: i64, families: &[Family]) -> Service {
    let mut service = Service::new(ServiceKey::new("shop", name), ServiceKind::LoadBalancer);
    service.uid = Uid::new(name);
    service.request.created = created;
    service.ip_families = families.to_vec();
    service.ports = vec![port(80)];
    service
}

fn has(mut service: Service, addresses: &[&str]) -> Service {
    service.load_balancer_ips =
        addresses.iter().map(|text| LoadBalancerIp { addr: addr(text), mode: IpMode::Vip }).collect();
    service.request.giver = AddressGiver::Weft;
    service
}

fn snapshot(pools: Vec<AddressPool>, services: Vec<Service>) -> Snapshot {
    Snapshot {
        pools: pools.into_iter().map(|pool| (pool.name.clone(), pool)).collect(),
        services: services.into_iter().map(|service| (service.key.clone(), service)).collect(),
        ..Snapshot::default()
    }
}

const V4: &[Family] = &[Family::V4];
const BOTH: &[Family] = &[Family::V4, Family::V6];

/// (addresses, reason) of a service.
fn got(allocation: &Allocation, name: &str) -> (Vec<String>, &'static str) {
    let service = &allocation.services[&ServiceKey::new("shop", name)];
    (service.addresses.iter().map(ToString::to_string).collect(), service.outcome.reason)
}

#[test]
fn the_older_gets_the_lower_address_and_the_last_is_told_that_the_pool_is_full() {
    let pools = vec![pool("edge", &[("192.0.2.10", "192.0.2.11")])];
    let services = vec![service("c", 3, V4), service("a", 2, V4), service("b", 1, V4)];
    let allocation = allocate(&snapshot(pools, services));
    assert_eq!(got(&allocation, "b"), (vec!["192.0.2.10".to_owned()], "AddressAssigned"));
    assert_eq!(got(&allocation, "a"), (vec!["192.0.2.11".to_owned()], "AddressAssigned"));
    assert_eq!(got(&allocation, "c"), (vec![], "PoolExhausted"));
    let edge = &allocation.pools[&PoolName("edge".to_owned())];
    assert_eq!(edge.v4, Capacity { total: 2, used: 2 });
    assert_eq!((edge.outcome.ready, edge.outcome.reason), (false, "Exhausted"));
    let message = &allocation.services[&ServiceKey::new("shop", "c")].outcome.message;
    assert_eq!(message, "AddressPool edge has no free IPv4 address; add addresses or delete services");
}

#[test]
fn what_a_service_has_it_keeps_even_against_an_older_one() {
    let pools = vec![pool("edge", &[("192.0.2.10", "192.0.2.10")])];
    let services = vec![service("old", 1, V4), has(service("young", 2, V4), &["192.0.2.10"])];
    let allocation = allocate(&snapshot(pools, services));
    assert_eq!(got(&allocation, "young").0, ["192.0.2.10"]);
    assert_eq!(got(&allocation, "old").1, "PoolExhausted");
}

#[test]
fn an_address_no_pool_has_any_more_is_replaced() {
    let pools = vec![pool("edge", &[("192.0.2.20", "192.0.2.21")])];
    let allocation = allocate(&snapshot(pools, vec![has(service("a", 1, V4), &["192.0.2.10"])]));
    assert_eq!(got(&allocation, "a").0, ["192.0.2.20"]);
}

#[test]
fn requests_are_met_or_refused_with_the_reason() {
    let mut closed = pool("closed", &[("198.51.100.1", "198.51.100.9")]);
    closed.namespaces = Some(Selector::of_labels([(&"team".to_owned(), &"other".to_owned())]));
    let pools = vec![pool("edge", &[("192.0.2.10", "192.0.2.19")]), closed];
    let ask = |name: &str, created, text: &str| {
        let mut service = service(name, created, V4);
        service.request.addresses = vec![addr(text)];
        service
    };
    let mut moved = has(ask("moved", 1, "192.0.2.15"), &["192.0.2.10"]);
    moved.request.created = 9;
    let services = vec![
        ask("fine", 1, "192.0.2.12"),
        ask("late", 2, "192.0.2.12"),
        ask("nowhere", 3, "203.0.113.1"),
        ask("barred", 4, "198.51.100.1"),
        ask("sixth", 5, "fd00::1"),
        moved,
        has(ask("stays", 6, "192.0.2.12"), &["192.0.2.18"]),
        service("auto", 7, V4),
    ];
    let allocation = allocate(&snapshot(pools, services));
    assert_eq!(got(&allocation, "fine"), (vec!["192.0.2.12".to_owned()], "AddressAssigned"));
    assert_eq!(got(&allocation, "late"), (vec![], "AddressInUse"));
    assert_eq!(got(&allocation, "nowhere"), (vec![], "AddressNotAvailable"));
    assert_eq!(got(&allocation, "barred"), (vec![], "PoolNotAllowed"));
    assert_eq!(got(&allocation, "moved").0, ["192.0.2.15"]);
    assert_eq!(got(&allocation, "stays"), (vec!["192.0.2.18".to_owned()], "AddressInUse"));
    assert_eq!(
        got(&allocation, "sixth"),
        (vec!["192.0.2.10".to_owned()], "AddressNotAvailable"),
        "what `moved` gave up"
    );
    assert_eq!(got(&allocation, "auto").0, ["192.0.2.11"]);
}

#[test]
fn pools_are_chosen_by_name_selector_and_assignment() {
    let mut special = pool("special", &[("198.51.100.1", "198.51.100.9")]);
    special.services = Some(Selector::of_labels([(&"app".to_owned(), &"web".to_owned())]));
    let mut asked = pool("asked", &[("203.0.113.1", "203.0.113.9")]);
    asked.assignment = Assignment::OnRequest;
    let pools = vec![pool("edge", &[("192.0.2.10", "192.0.2.19")]), special, asked];
    let mut web = service("web", 1, V4);
    web.request.labels = [("app".to_owned(), "web".to_owned())].into();
    let mut named = service("named", 2, V4);
    named.request.pool = Some(PoolName("asked".to_owned()));
    let mut lost = service("lost", 3, V4);
    lost.request.pool = Some(PoolName("none".to_owned()));
    let mut barred = service("barred", 4, V4);
    barred.request.pool = Some(PoolName("special".to_owned()));
    let allocation = allocate(&snapshot(pools, vec![web, named, lost, barred, service("auto", 5, V4)]));
    assert_eq!(got(&allocation, "web").0, ["198.51.100.1"]);
    assert_eq!(got(&allocation, "named").0, ["203.0.113.1"]);
    assert_eq!(got(&allocation, "lost").1, "PoolNotFound");
    assert_eq!(got(&allocation, "barred").1, "NoPool");
    assert_eq!(got(&allocation, "auto").0, ["192.0.2.10"]);
}

#[test]
fn an_address_is_shared_by_key_when_ports_and_policies_allow() {
    let pools = vec![pool("edge", &[("192.0.2.10", "192.0.2.19")])];
    let share = |name: &str, created, key: &str, number| {
        let mut service = service(name, created, V4);
        service.request.share = Some(key.to_owned());
        service.ports = vec![port(number)];
        service
    };
    let mut local = share("local", 4, "front", 8443);
    local.external_policy = TrafficPolicy::Local;
    let services = vec![
        share("web", 1, "front", 80),
        share("tls", 2, "front", 443),
        share("clash", 3, "front", 80),
        local,
        share("other", 5, "back", 81),
    ];
    let allocation = allocate(&snapshot(pools, services));
    let one = |name: &str| got(&allocation, name).0.concat();
    assert_eq!((one("web"), one("tls")), ("192.0.2.10".to_owned(), "192.0.2.10".to_owned()));
    assert_eq!((one("clash"), one("local")), ("192.0.2.11".to_owned(), "192.0.2.12".to_owned()));
    assert_eq!(one("other"), "192.0.2.13");
    assert_eq!(allocation.pools[&PoolName("edge".to_owned())].v4.used, 4);
}

#[test]
fn dual_stack_follows_the_family_policy() {
    let pools = vec![pool("edge", &[("192.0.2.10", "192.0.2.19")])];
    let dual = |name: &str, created, policy| {
        let mut service = service(name, created, BOTH);
        service.request.families = policy;
        service
    };
    let services =
        vec![dual("require", 1, FamilyPolicy::RequireDual), dual("prefer", 2, FamilyPolicy::PreferDual)];
    let mut snapshot = snapshot(pools, services);
    let allocation = allocate(&snapshot);
    assert_eq!(got(&allocation, "require"), (vec![], "NoPool"));
    assert_eq!(got(&allocation, "prefer"), (vec!["192.0.2.10".to_owned()], "AddressAssigned"));
    let six = pool("six", &[("fd00::", "fd00::ff")]);
    snapshot.pools.insert(six.name.clone(), six);
    let allocation = allocate(&snapshot);
    assert_eq!(got(&allocation, "require").0, ["192.0.2.10", "fd00::"]);
    assert_eq!(got(&allocation, "prefer").0, ["192.0.2.11", "fd00::1"]);
}

#[test]
fn overlaps_belong_to_the_first_by_name_and_nobody_gives_the_clusters_own() {
    let pools = vec![
        pool("a", &[("192.0.2.10", "192.0.2.12")]),
        pool("b", &[("192.0.2.12", "192.0.2.14"), ("10.96.0.0", "10.96.0.9"), ("192.0.2.53", "192.0.2.53")]),
    ];
    let mut snapshot = snapshot(pools, vec![]);
    snapshot.settings.service_cidrs = vec!["10.96.0.0/16".parse().unwrap()];
    snapshot.settings.dns_addresses = vec![addr("192.0.2.53")];
    let node = Node {
        name: NodeName::new("node1"),
        labels: BTreeMap::new(),
        addresses: vec![addr("192.0.2.13")],
        pod_cidrs: BTreeSet::new(),
        ready: true,
        sctp: Default::default(),
    };
    snapshot.nodes.insert(node.name.clone(), node);
    let allocation = allocate(&snapshot);
    let b = &allocation.pools[&PoolName("b".to_owned())];
    assert_eq!((b.v4.total, b.outcome.reason), (1, "PartlyUsable"));
    let messages: Vec<String> = allocation.findings.iter().map(|finding| finding.to_string()).collect();
    assert_eq!(
        messages,
        [
            "error: AddressPool b: spec.addresses[0]: 192.0.2.12 belongs to pool a and is not given out by this pool",
            "error: AddressPool b: spec.addresses[0]: 192.0.2.13 belongs to node node1 and is not given out by this pool",
            "error: AddressPool b: spec.addresses[1]: 10.96.0.0-10.96.0.9 belongs to the cluster's service prefix 10.96.0.0/16 and is not given out by this pool",
            "error: AddressPool b: spec.addresses[2]: 192.0.2.53 belongs to the cluster's name server and is not given out by this pool",
        ]
    );
}

/// Proves spec.loadBalancerClass: weft.dev/l2 and none are given addresses; other classes are left to others.
#[test]
fn services_of_others_are_left_alone() {
    let pools = vec![pool("edge", &[("192.0.2.10", "192.0.2.19")])];
    let mut classed = service("classed", 1, V4);
    classed.load_balancer_class = Some("example.com/cloud".to_owned());
    let mut ours = service("ours", 2, V4);
    ours.load_balancer_class = Some(LOAD_BALANCER_CLASS.to_owned());
    let mut served = has(service("served", 3, V4), &["203.0.113.1"]);
    served.request.giver = AddressGiver::Other;
    let plain = Service::new(ServiceKey::new("shop", "plain"), ServiceKind::NodePort);
    let allocation = allocate(&snapshot(pools, vec![classed, ours, served, plain]));
    let names: Vec<&str> = allocation.services.keys().map(|key| &*key.name).collect();
    assert_eq!(names, ["ours"]);
}

#[test]
fn a_large_prefix_costs_nothing() {
    let pools = vec![pool("six", &[("fd00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")])];
    let services = (0..200).map(|number| service(&format!("s{number}"), number, &[Family::V6])).collect();
    let allocation = allocate(&snapshot(pools, services));
    assert_eq!(got(&allocation, "s199").0, ["fd00::c7"]);
}

/// A service in a small world, where wishes, keys and ports meet.
fn any_service() -> impl Strategy<Value = Service> {
    let families = prop_oneof![Just(V4), Just(BOTH)];
    let key = prop::option::of(prop::sample::select(vec!["x", "y"]));
    let wish = prop::option::weighted(0.3, 0u8..8);
    let held = prop::option::weighted(0.4, 0u8..8);
    (0i64..4, families, key, wish, held, 80u16..82, any::<bool>()).prop_map(
        |(created, families, key, wish, held, number, local)| {
            let mut service = service("unnamed", created, families);
            service.request.share = key.map(str::to_owned);
            service.request.addresses =
                wish.map(|last| addr(&format!("192.0.2.{last}"))).into_iter().collect();
            service.ports = vec![port(number)];
            if local {
                service.external_policy = TrafficPolicy::Local;
            }
            match held {
                Some(last) => has(service, &[&format!("192.0.2.{last}"), &format!("fd00::{last}")]),
                None => service,
            }
        },
    )
}

fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    prop::collection::vec(any_service(), 0..10).prop_map(|services| {
        let pools = vec![
            pool("a", &[("192.0.2.0", "192.0.2.3"), ("fd00::", "fd00::2")]),
            pool("b", &[("192.0.2.3", "192.0.2.5")]),
        ];
        let named = services.into_iter().enumerate().map(|(index, mut service)| {
            service.key = ServiceKey::new("shop", format!("s{index}"));
            service.uid = Uid::new(format!("u{index}"));
            service
        });
        snapshot(pools, named.collect())
    })
}

/// The cluster after the outcome was written into it.
fn written(snapshot: &Snapshot, allocation: &Allocation) -> Snapshot {
    let mut snapshot = snapshot.clone();
    for (key, given) in &allocation.services {
        let mut service = snapshot.services[key].clone();
        let ips = given.addresses.iter().map(|addr| LoadBalancerIp { addr: *addr, mode: IpMode::Vip });
        service.load_balancer_ips = ips.collect();
        service.request.giver = AddressGiver::Weft;
        snapshot.services.insert(key.clone(), service);
    }
    snapshot
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_address_is_given_twice_unless_shared(snapshot in any_snapshot()) {
        let allocation = allocate(&snapshot);
        let services: Vec<&Service> = allocation.services.keys().map(|key| &snapshot.services[key]).collect();
        for (index, one) in services.iter().enumerate() {
            for other in &services[index + 1..] {
                let (ours, theirs) = (&allocation.services[&one.key], &allocation.services[&other.key]);
                if ours.addresses.iter().any(|addr| theirs.addresses.contains(addr)) {
                    prop_assert!(one.request.share.is_some() && one.request.share == other.request.share);
                    prop_assert!(one.ports[0].port != other.ports[0].port);
                    prop_assert!(one.external_policy == TrafficPolicy::Cluster
                        && other.external_policy == TrafficPolicy::Cluster);
                }
            }
        }
    }

    #[test]
    fn what_is_given_is_in_a_pool_and_of_the_right_family(snapshot in any_snapshot()) {
        for (key, given) in allocate(&snapshot).services {
            let families: Vec<Family> = given.addresses.iter().map(|addr| addr.family()).collect();
            prop_assert!(families.iter().all(|family| snapshot.services[&key].ip_families.contains(family)));
            prop_assert!(families.len() < 2 || families[0] != families[1]);
            for addr in given.addresses {
                prop_assert!(pool_of(&snapshot, addr).is_some(), "{addr}");
            }
        }
    }

    /// Every address stays where it is when another service comes, and when one goes.
    #[test]
    fn nothing_moves_when_something_unrelated_changes(snapshot in any_snapshot(), newcomer in any_service()) {
        let mut settled = snapshot;
        // Requests may have to wait for each other's old addresses.
        for _ in 0..settled.services.len() + 1 {
            settled = written(&settled, &allocate(&settled));
        }
        let before = allocate(&settled);
        let mut newcomer = newcomer;
        newcomer.load_balancer_ips.clear();
        let mut more = settled.clone();
        more.services.insert(newcomer.key.clone(), newcomer);
        let with = allocate(&more);
        for (key, given) in &before.services {
            prop_assert_eq!(&given.addresses, &with.services[key].addresses, "{}", key);
        }
        let first = settled.services.keys().next().cloned();
        if let Some(gone) = first {
            let mut fewer = settled.clone();
            fewer.services.remove(&gone);
            let without = allocate(&fewer);
            for (key, given) in before.services.iter().filter(|(key, _)| **key != gone) {
                for addr in &given.addresses {
                    let asked = settled.services[key].request.addresses.iter().any(|wish| wish.family() == addr.family());
                    prop_assert!(asked || without.services[key].addresses.contains(addr), "{}", key);
                }
            }
        }
    }

    /// Capacity is what can be counted.
    #[test]
    fn usage_counts_what_is_held(snapshot in any_snapshot()) {
        let allocation = allocate(&snapshot);
        let held: BTreeSet<Addr> = allocation.services.values().flat_map(|given| given.addresses.clone()).collect();
        let used: u128 = allocation.pools.values().map(|usage| usage.v4.used + usage.v6.used).sum();
        prop_assert_eq!(used, held.len() as u128);
        for usage in allocation.pools.values() {
            prop_assert!(usage.v4.used <= usage.v4.total && usage.v6.used <= usage.v6.total);
        }
    }
}
