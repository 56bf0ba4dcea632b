//! How long one node's plan takes in a large cluster: 10,000 services, 10,000 policies, 50,000 pods, 500 nodes.
//! `cargo run --release -p weft-compile --example scale`

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use weft_compile::{Compiler, compile};
use weft_model::{
    Addr, Block, Cidr, ClusterSettings, Endpoint, EndpointCondition, EndpointSlice, Family, LocalEndpoint,
    NamedPort, Namespace, NamespaceMatch, NamespaceName, Node, NodeName, ObjectKey, Peer, Pod, PodPhase,
    Policy, PolicyKey, PolicyKind, Port, PortMatch, Protocol, Rule, RuleSet, Selector, Service, ServiceKind,
    ServicePort, Snapshot, Subject, TargetPort, Uid,
};

const NODES: usize = 500;
const NAMESPACES: usize = 200;
const SERVICES: usize = 10_000;
const POLICIES: usize = 10_000;
const PODS: usize = 50_000;
const ROUNDS: usize = 5;
const CHANGES: usize = 500;
const NAME_CHANGES: usize = 10;

fn main() {
    let snapshot = snapshot();
    let node = NodeName::new("node0");
    for round in 1..=ROUNDS {
        let start = Instant::now();
        let plan = compile(&snapshot, &node).plan;
        let took = start.elapsed();
        let entries: usize = plan.policy_sets.values().map(|set| set.entries.len()).sum();
        println!(
            "{round}: {took:?}: {} endpoints, {} sets with {entries} entries, {} classes on {} prefixes, {} frontends, {} names",
            plan.endpoints.len(),
            plan.policy_sets.len(),
            plan.classes.values().collect::<BTreeSet<_>>().len(),
            plan.classes.len(),
            plan.services.len(),
            plan.names.names.len(),
        );
    }
    endpoint_changes(snapshot.clone(), node.clone());
    name_changes(snapshot, node);
}

/// The endpoint of one service after the other goes and comes back.
fn endpoint_changes(mut snapshot: Snapshot, node: NodeName) {
    let mut compiler = Compiler::new(node);
    compiler.compile(&snapshot);
    let slices: Vec<_> = snapshot.slices.iter().map(|(key, slice)| (key.clone(), slice.clone())).collect();
    let mut times = Vec::new();
    for (key, slice) in slices.into_iter().take(CHANGES) {
        let mut smaller = slice.clone();
        smaller.endpoints.pop();
        for value in [smaller, slice] {
            let start = Instant::now();
            snapshot.slices.insert(key.clone(), value);
            let compiled = compiler.compile(&snapshot.clone());
            times.push(start.elapsed());
            assert_eq!(compiled.plan.services.len(), SERVICES);
        }
    }
    times.sort();
    let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("one endpoint change: median {median:?}, p99 {p99:?}");
}

/// Headless services of 20 endpoints come and go: changes of names and of little else.
fn name_changes(mut snapshot: Snapshot, node: NodeName) {
    let mut compiler = Compiler::new(node);
    compiler.compile(&snapshot);
    let mut times = Vec::new();
    for number in 0..NAME_CHANGES {
        let key = ObjectKey::new("namespace0", format!("headless{number}"));
        let service = Service::new(key.clone(), ServiceKind::Headless);
        let endpoints = (0..20).map(|index| Endpoint {
            addresses: BTreeSet::from([pod_addr(number * 20 + index)]),
            condition: EndpointCondition::Ready,
            hostname: Some(format!("h{index}")),
            node: None,
            zone: None,
            target: None,
            hints: Default::default(),
            weight: Default::default(),
        });
        let slice = EndpointSlice {
            service: key.clone(),
            name: key.name.to_string(),
            family: Family::V4,
            ports: vec![("peer".to_owned(), Protocol::TCP, Port(7000))],
            endpoints: endpoints.collect(),
        };
        snapshot.slices.insert(key.clone(), slice);
        compiler.compile(&snapshot.clone());
        snapshot.services.insert(key.clone(), service);
        let start = Instant::now();
        let compiled = compiler.compile(&snapshot.clone());
        times.push(start.elapsed());
        assert!(
            compiled
                .plan
                .names
                .names
                .contains_key(&format!("h0.headless{number}.namespace0.svc.cluster.local"))
        );
        snapshot.services.remove(&key);
        snapshot.slices.remove(&key);
        compiler.compile(&snapshot.clone());
    }
    times.sort();
    let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("a new headless service: median {median:?}, p99 {p99:?}");
}

fn v4(a: u8, b: u8, number: usize) -> Addr {
    std::net::Ipv4Addr::new(a, b, (number >> 8) as u8, number as u8).into()
}

fn pod_addr(number: usize) -> Addr {
    let node = number % NODES;
    let index = number / NODES + 2;
    std::net::Ipv4Addr::from((10u32 << 24 | 128 << 16) + (node * 256 + index) as u32).into()
}

fn labels(pairs: &[(&str, String)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

/// Apps are numbered per namespace.
fn app(number: usize) -> (NamespaceName, String) {
    (NamespaceName::new(format!("ns{}", number % NAMESPACES)), format!("app{}", number / NAMESPACES % 50))
}

fn select(app: String) -> Selector {
    Selector::of_labels(&labels(&[("app", app)]))
}

fn snapshot() -> Snapshot {
    let cidr = |text: &str| text.parse().expect("a prefix");
    let mut snapshot = Snapshot {
        settings: ClusterSettings {
            pod_cidrs: vec![cidr("10.128.0.0/9")],
            service_cidrs: vec![cidr("10.96.0.0/12")],
            node_cidrs: vec![cidr("172.30.0.0/16")],
            dns_addresses: vec![v4(10, 96, 10)],
            ..ClusterSettings::default()
        },
        ..Snapshot::default()
    };
    for number in 0..NAMESPACES {
        let name = NamespaceName::new(format!("ns{number}"));
        let labels = labels(&[("team", format!("team{}", number % 20))]);
        snapshot.namespaces.insert(name.clone(), Namespace { name, labels });
    }
    for number in 0..NODES {
        let name = NodeName::new(format!("node{number}"));
        let pod_cidrs = Cidr::around(pod_addr(number), 24).into_iter().collect();
        let node = Node {
            name: name.clone(),
            labels: BTreeMap::new(),
            addresses: vec![v4(172, 30, number)],
            pod_cidrs,
            ready: true,
            sctp: Default::default(),
        };
        snapshot.nodes.insert(name, node);
    }
    (0..PODS).for_each(|number| add_pod(&mut snapshot, number));
    (0..SERVICES).for_each(|number| add_service(&mut snapshot, number));
    (0..POLICIES).for_each(|number| add_policy(&mut snapshot, number));
    snapshot
}

fn add_pod(snapshot: &mut Snapshot, number: usize) {
    let (namespace, app) = app(number);
    let key = ObjectKey::new(namespace.as_str(), format!("pod{number}"));
    let node = NodeName::new(format!("node{}", number % NODES));
    let addresses = BTreeSet::from([pod_addr(number)]);
    let uid = Uid::new(format!("pod{number}"));
    if number.is_multiple_of(NODES) {
        let (pod, device, addresses) = (key.clone(), format!("wf{number}"), addresses.clone());
        snapshot.local.insert(key.clone(), LocalEndpoint { pod, uid: uid.clone(), addresses, device });
    }
    let named = NamedPort { protocol: Protocol::TCP, name: "http".to_owned(), port: Port(8080) };
    let pod = Pod {
        key: key.clone(),
        uid,
        created: 0,
        labels: labels(&[("app", app), ("hash", format!("{}", number % 5_000))]),
        node: Some(node),
        phase: PodPhase::Running,
        host_network: false,
        addresses,
        named_ports: BTreeSet::from([named]),
        declared_ports: BTreeSet::from([(Protocol::TCP, Port(8080))]),
        hostname: None,
        subdomain: None,
        dns: Default::default(),
        weight: None,
    };
    snapshot.pods.insert(key, pod);
}

fn add_service(snapshot: &mut Snapshot, number: usize) {
    let (namespace, app) = app(number);
    let key = ObjectKey::new(namespace.as_str(), format!("service{number}"));
    let port = ServicePort {
        name: "http".to_owned(),
        protocol: Protocol::TCP,
        port: Port(80),
        target: TargetPort::Name("http".to_owned()),
        node_port: None,
        app_protocol: None,
    };
    let addr = std::net::Ipv4Addr::from((10u32 << 24 | 97 << 16) + number as u32);
    let service = Service {
        uid: Uid::new(format!("service{number}")),
        cluster_ips: vec![addr.into()],
        ports: vec![port],
        selector: Some(select(app)),
        ..Service::new(key.clone(), ServiceKind::ClusterIp)
    };
    let endpoint = |pod: usize| Endpoint {
        addresses: BTreeSet::from([pod_addr(pod)]),
        condition: EndpointCondition::Ready,
        hostname: None,
        node: Some(NodeName::new(format!("node{}", pod % NODES))),
        zone: None,
        target: None,
        hints: Default::default(),
        weight: Default::default(),
    };
    let slice = EndpointSlice {
        service: key.clone(),
        name: format!("{}-1", key.name),
        family: Family::V4,
        ports: vec![("http".to_owned(), Protocol::TCP, Port(8080))],
        endpoints: (0..5).map(|copy| endpoint((number + copy * SERVICES) % PODS)).collect(),
    };
    snapshot.slices.insert(ObjectKey::new(namespace.as_str(), &slice.name), slice);
    snapshot.services.insert(key, service);
}

fn add_policy(snapshot: &mut Snapshot, number: usize) {
    let (namespace, own) = app(number);
    let (_, other) = app(number + NAMESPACES);
    let object = ObjectKey::new(namespace.as_str(), format!("policy{number}"));
    let key = PolicyKey { kind: PolicyKind::NetworkPolicy, object };
    let team = Selector::of_labels(&labels(&[("team", format!("team{}", number % 20))]));
    let rule = |peer: Peer| Rule {
        peers: Some(vec![peer]),
        ports: Some(vec![PortMatch::Range { protocol: Protocol::TCP, first: Port(8080), last: Port(8090) }]),
    };
    let pods = |namespaces| Peer::Pods { namespaces, pods: select(other.clone()) };
    let block = Cidr::around(v4(192, 168, number), 28).map(|cidr| Block { cidr, except: BTreeSet::new() });
    let policy = Policy {
        key: key.clone(),
        uid: Uid::new(format!("policy{number}")),
        ingress: RuleSet::Isolates(vec![
            rule(pods(NamespaceMatch::Name(namespace.clone()))),
            rule(pods(NamespaceMatch::Labels(team))),
        ]),
        egress: RuleSet::Isolates(block.map(|block| rule(Peer::Block(block))).into_iter().collect()),
        subject: Subject { namespace, pods: select(own) },
    };
    snapshot.policies.insert(key, policy);
}
