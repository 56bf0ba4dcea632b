//! What is decided, and what deciding costs.

use std::time::SystemTime;

use serde_json::json;
use weft_kube::Link;
use weft_kube::claims::AddressLease;
use weft_kube::status::Truth;
use weft_model::{
    AddressPool, AddressRange, Announcement, Assignment, EndpointSlice, Family, Node, NodeName,
};

use super::*;

fn object(number: u32, version: u32, status: serde_json::Value) -> Arc<ServiceObject> {
    let kind = if number.is_multiple_of(10) { "LoadBalancer" } else { "ClusterIP" };
    let object = json!({
        "metadata": {"namespace": "shop", "name": format!("s{number}"), "uid": format!("u{number}"),
            "resourceVersion": version.to_string(), "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": kind, "clusterIP": format!("10.96.{}.{}", number / 250, number % 250 + 1),
            "clusterIPs": [format!("10.96.{}.{}", number / 250, number % 250 + 1)], "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}], "selector": {"app": "web"}},
        "status": status,
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

fn addr(number: u32) -> weft_model::Addr {
    std::net::Ipv4Addr::from(0xc000_0200 + number).into()
}

fn view() -> View {
    let mut snapshot = Snapshot::default();
    let pool = AddressPool {
        name: PoolName("edge".to_owned()),
        ranges: vec![AddressRange { first: addr(0), last: addr(499) }],
        assignment: Assignment::Automatic,
        services: None,
        namespaces: None,
        announcement: Announcement::Layer2 { interfaces: Vec::new(), nodes: None },
    };
    snapshot.pools.insert(pool.name.clone(), pool);
    let node = Node {
        name: NodeName::new("a"),
        labels: BTreeMap::new(),
        addresses: Vec::new(),
        pod_cidrs: BTreeSet::new(),
        ready: true,
        sctp: Default::default(),
    };
    snapshot.nodes.insert(node.name.clone(), node);
    View {
        snapshot: Arc::new(snapshot),
        findings: Arc::default(),
        synced: true,
        link: Link::Connected,
        generation: 1,
    }
}

fn listed() -> Known {
    Known { listed: true, ..Known::default() }
}

fn named(decided: &Decided) -> Vec<String> {
    decided.services.iter().map(|(object, _)| object.name_any()).collect()
}

/// Answers as the API server's: the status is as it was made to be, under a new version.
fn written(number: u32, version: u32, status: &ServiceStatus) -> Arc<ServiceObject> {
    let ingress: Vec<_> = status
        .addresses
        .iter()
        .flatten()
        .map(|addr| json!({"ip": addr.to_string(), "ipMode": "VIP"}))
        .collect();
    let conditions = status.conditions.iter().map(|said| {
        json!({"type": said.kind,
        "status": if said.truth == Truth::True { "True" } else { "False" }, "reason": said.reason,
        "message": said.message, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    });
    let conditions = conditions.collect::<Vec<_>>();
    object(number, version, json!({"conditions": conditions, "loadBalancer": {"ingress": ingress}}))
}

#[test]
fn an_event_costs_what_it_changes() {
    let (view, none) = (view(), BTreeSet::new());
    let mut services: Vec<_> = (0..1000).map(|number| object(number, 1, json!({}))).collect();
    let mut decider = Decider::default();
    let cost = |decider: &mut Decider, view: &View, services: &[Arc<ServiceObject>], leases: &Known| {
        let before = decider.work();
        let decided = decider.decide(view, services, leases, &none);
        let after = decider.work();
        let work = Work {
            parsed: after.parsed - before.parsed,
            allocated: after.allocated - before.allocated,
            checked: after.checked - before.checked,
            compared: after.compared - before.compared,
        };
        (work, decided)
    };
    let (first, decided) = cost(&mut decider, &view, &services, &listed());
    assert_eq!(first, Work { parsed: 1000, allocated: 1, checked: 1, compared: 1000 });
    for (object, status) in decided.services.iter().filter(|(_, status)| status.addresses.is_some()) {
        let number: u32 = object.name_any()[1..].parse().unwrap();
        services[number as usize] = written(number, 2, status);
    }
    let (second, _) = cost(&mut decider, &view, &services, &listed());
    assert_eq!((second.parsed, second.compared), (100, 100), "those that were written come back");
    let (nothing, decided) = cost(&mut decider, &view, &services, &listed());
    assert_eq!((nothing, named(&decided).len()), (Work::default(), 0));
    // A service without addresses of ours changes.
    services[7] = object(7, 3, json!({}));
    let (one, decided) = cost(&mut decider, &view, &services, &listed());
    assert_eq!(
        (one, named(&decided)),
        (Work { parsed: 1, compared: 1, ..Work::default() }, vec!["s7".to_owned()])
    );
    // An address finds its holder.
    let lease = AddressLease {
        addr: addr(3),
        holder: Some(NodeName::new("a")),
        version: "1".to_owned(),
        transitions: 0,
        since: None,
        obstacle: None,
    };
    let known = Known { by_address: [(addr(3), lease)].into(), listed: true };
    let (one, decided) = cost(&mut decider, &view, &services, &known);
    assert_eq!((one, decided.services.len()), (Work { compared: 1, ..Work::default() }, 1));
    assert_eq!(decided.services[0].1.conditions.last().unwrap().kind, ANNOUNCED);
    // And one goes.
    services.remove(7);
    let (one, decided) = cost(&mut decider, &view, &services, &known);
    assert_eq!((one.parsed, one.allocated, decided.services.len()), (0, 0, 0));
}

#[test]
fn a_write_that_failed_is_made_again() {
    let (view, mut decider) = (view(), Decider::default());
    let services = [object(0, 1, json!({}))];
    decider.decide(&view, &services, &listed(), &BTreeSet::new());
    assert!(decider.decide(&view, &services, &listed(), &BTreeSet::new()).services.is_empty());
    let again = [ServiceKey::new("shop", "s0")].into();
    assert_eq!(named(&decider.decide(&view, &services, &listed(), &again)), ["s0"]);
}

/// A controller that has just begun does not know who announces what.
#[test]
fn before_leases_are_listed_nothing_is_said_about_them_and_nothing_taken_back() {
    let (view, mut decider) = (view(), Decider::default());
    let services = [object(0, 1, json!({})), object(1, 1, json!({}))];
    let decided = decider.decide(&view, &services, &Known::default(), &BTreeSet::new());
    assert!(
        decided.services.iter().all(|(_, status)| status.untold == [ANNOUNCED]),
        "also those without addresses"
    );
    let decided = decider.decide(&view, &services, &listed(), &BTreeSet::new());
    assert_eq!(decided.services.len(), 2, "now it is known");
    assert!(decided.services.iter().all(|(_, status)| status.untold.is_empty()));
}

#[test]
fn pods_and_most_endpoints_matter_to_nobody_here() {
    let before = view();
    let mut snapshot = Snapshot::clone(&before.snapshot);
    let plain = parse::service(&object(1, 1, json!({}))).value.unwrap();
    let mut local = parse::service(&object(10, 1, json!({}))).value.unwrap();
    local.external_policy = TrafficPolicy::Local;
    for service in [plain, local] {
        snapshot.services.insert(service.key.clone(), service);
    }
    let changed = |change: &dyn Fn(&mut Snapshot)| {
        let mut after = before.clone();
        let mut with = snapshot.clone();
        change(&mut with);
        after.snapshot = Arc::new(with);
        after.link = Link::Lost { since: SystemTime::UNIX_EPOCH, error: String::new() };
        matters(&before, &after)
    };
    let slice = |of: &str| EndpointSlice {
        service: ServiceKey::new("shop", of),
        name: format!("{of}-1"),
        family: Family::V4,
        ports: Vec::new(),
        endpoints: Vec::new(),
    };
    let pod = json!({"metadata": {"namespace": "shop", "name": "p", "uid": "p"}, "spec": {"containers": []}});
    let pod = parse::pod(&serde_json::from_value(pod).unwrap()).value.unwrap();
    assert!(!changed(&|snapshot| drop(snapshot.pods.insert(pod.key.clone(), pod.clone()))));
    assert!(!changed(&|snapshot| drop(snapshot.slices.insert(ServiceKey::new("shop", "s1-1"), slice("s1")))));
    assert!(changed(&|snapshot| drop(
        snapshot.slices.insert(ServiceKey::new("shop", "s10-1"), slice("s10"))
    )));
    assert!(changed(&|snapshot| snapshot.nodes.clear()));
}
