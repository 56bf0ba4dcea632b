//! Events of the kernel through names, rows, filters, the ring and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use weft_abi::{Event, EventKind, Hook};
use weft_model::{
    Addr, Direction, Node, NodeName, ObjectKey, Pod, PodKey, PodPhase, PolicyKey, PolicyKind, Port, Protocol,
    Reason, Routing, ServiceKey, Snapshot, Uid, Verdict,
};
use weft_observe::{Filter, Flow, FlowMetrics, FlowRing, Item, Namer, Who};
use weft_plan::{Frontend, NodePlan, NodeSettings, RuleCause, RuleId, ServiceId, ServicePlan};

const COOKIE: u64 = 77;

fn addr(text: &str) -> Addr {
    text.parse().unwrap()
}

fn pod(name: &str, ip: &str, phase: PodPhase) -> Pod {
    Pod {
        key: PodKey::new("shop", name),
        uid: Uid::new(name),
        created: 0,
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
        node: Some(NodeName::new("node1")),
        phase,
        host_network: false,
        addresses: BTreeSet::from([addr(ip)]),
        named_ports: BTreeSet::new(),
        declared_ports: BTreeSet::new(),
        hostname: None,
        subdomain: None,
        dns: Default::default(),
        weight: None,
    }
}

fn snapshot() -> Snapshot {
    let pods = [
        pod("web", "10.244.0.7", PodPhase::Running),
        pod("db", "fd00:10:244::8", PodPhase::Running),
        pod("old", "10.244.0.7", PodPhase::Finished),
    ];
    let node = Node {
        name: NodeName::new("node2"),
        labels: BTreeMap::new(),
        addresses: vec![addr("172.30.0.12")],
        pod_cidrs: BTreeSet::new(),
        ready: true,
        sctp: Default::default(),
    };
    Snapshot {
        pods: pods.into_iter().map(|pod| (pod.key.clone(), pod)).collect(),
        nodes: [(node.name.clone(), node)].into_iter().collect(),
        ..Snapshot::default()
    }
}

fn policy(name: &str) -> PolicyKey {
    PolicyKey { kind: PolicyKind::NetworkPolicy, object: ObjectKey::new("shop", name) }
}

fn plan() -> NodePlan {
    let rule = RuleCause::Rule { policy: policy("allow-web"), direction: Direction::Ingress, index: 2 };
    let deny = RuleCause::DefaultDeny { policies: vec![policy("deny-all")], direction: Direction::Egress };
    let frontend = Frontend { addr: addr("10.96.0.5"), protocol: Protocol::TCP, port: Port(80) };
    let mut service = ServicePlan::cluster_ip(ServiceId(12), ServiceKey::new("shop", "web"), Vec::new());
    service.port_name = "http".to_owned();
    let settings = NodeSettings {
        node: NodeName::new("node1"),
        host_addresses: BTreeSet::from([addr("172.30.0.11")]),
        node_addresses: vec![addr("172.30.0.11")],
        pod_cidrs: BTreeSet::from(["10.244.0.0/24".parse().unwrap()]),
        cluster_pod_cidrs: BTreeSet::from(["10.244.0.0/16".parse().unwrap()]),
        service_cidrs: BTreeSet::from(["10.96.0.0/16".parse().unwrap()]),
        cluster_cidrs: BTreeSet::from(["10.244.0.0/16".parse().unwrap()]),
        routing: Routing::Direct,
        pod_mtu: 1500,
        localhost_node_ports: false,
    };
    NodePlan {
        rules: BTreeMap::from([(RuleId(1), rule), (RuleId(2), deny)]).into(),
        services: [(frontend, service)].into_iter().collect(),
        ..NodePlan::empty(settings)
    }
}

fn event(kind: EventKind, hook: Hook, source: &str, destination: &str) -> Event {
    Event {
        at: 1,
        kind,
        hook,
        source: addr(source),
        source_port: Port(43210),
        destination: addr(destination),
        destination_port: Port(80),
        protocol: Protocol::TCP,
        reason: None,
        egress_rule: None,
        ingress_rule: None,
        ifindex: 0,
        length: 60,
        service: None,
        backend: None,
        netns_cookie: 0,
        socket_cookie: 0,
        packets: [0, 0],
        bytes: [0, 0],
    }
}

fn name(event: &Event) -> Flow {
    let snapshot = snapshot();
    let namer =
        Namer::new(&snapshot, &plan()).with_sockets([(COOKIE, PodKey::new("shop", "web"))], &snapshot);
    namer.flow(event, SystemTime::UNIX_EPOCH + Duration::from_millis(45_296_789))
}

fn row(event: &Event) -> String {
    name(event).to_string()
}

fn allowed() -> Event {
    let event = event(EventKind::NewFlow, Hook::FromNet, "172.30.0.12", "10.244.0.7");
    Event { reason: Some(Reason::AllowedByRule), ingress_rule: Some(RuleId(1)), ..event }
}

fn denied() -> Event {
    let event = event(EventKind::Denied, Hook::FromPod, "10.244.0.7", "8.8.8.8");
    Event { reason: Some(Reason::DefaultDeny), egress_rule: Some(RuleId(2)), ..event }
}

fn translated() -> Event {
    Event {
        service: Some(ServiceId(12)),
        backend: Some((addr("fd00:10:244::8"), Port(8080))),
        netns_cookie: COOKIE,
        source_port: Port(0),
        ..event(EventKind::Translated, Hook::Socket, "::", "10.96.0.5")
    }
}

fn refused() -> Event {
    Event { kind: EventKind::Refused, reason: Some(Reason::NoReadyBackends), backend: None, ..translated() }
}

#[test]
fn rows_name_both_sides_the_verdict_and_its_cause() {
    let cases = [
        (
            allowed(),
            "12:34:56.789 node1 FORWARDED  node node2:43210 -> shop/web:80 TCP ingress allowed-by-rule: \
             NetworkPolicy shop/allow-web spec.ingress[2]",
        ),
        (
            denied(),
            "12:34:56.789 node1 DENIED     shop/web:43210 -> world 8.8.8.8:80 TCP egress default-deny: \
             egress isolated by NetworkPolicy shop/deny-all; no rule allows it",
        ),
        (
            translated(),
            "12:34:56.789 node1 TRANSLATED shop/web -> shop/db:8080 (service shop/web:80) TCP egress translated",
        ),
        (
            Event {
                reason: Some(Reason::NotIsolated),
                ..event(EventKind::NewFlow, Hook::FromPod, "10.244.9.9", "172.30.0.11")
            },
            "12:34:56.789 node1 FORWARDED  unknown 10.244.9.9:43210 -> node node1:80 TCP egress not-isolated: \
             no policy selects the pod in this direction",
        ),
    ];
    for (event, expected) in cases {
        assert_eq!(row(&event), expected);
    }
    let refusal = row(&refused());
    assert!(
        refusal.contains("REFUSED") && refusal.ends_with("service shop/web has no ready endpoints"),
        "{refusal}"
    );
}

#[test]
fn a_rule_that_is_gone_is_said_to_be() {
    let flow = name(&Event { egress_rule: Some(RuleId(9)), ..denied() });
    assert_eq!(flow.cause, "rule 00000009, no longer in force");
}

#[test]
fn sockets_of_no_pod_are_the_nodes() {
    let flow = name(&Event { netns_cookie: 5, ..translated() });
    assert_eq!(flow.source.who, Who::Node { name: NodeName::new("node1") });
}

#[test]
fn json_comes_back_the_same() {
    let tunnelled = Event { protocol: Protocol(47), ..denied() };
    for event in [allowed(), denied(), translated(), refused(), tunnelled] {
        let flow = name(&event);
        let json = serde_json::to_string(&flow).unwrap();
        assert_eq!(serde_json::from_str::<Flow>(&json).unwrap(), flow, "{json}");
    }
}

#[test]
fn filters_choose_by_every_key() {
    let (allowed, denied, translated) = (name(&allowed()), name(&denied()), name(&translated()));
    let all = [&allowed, &denied, &translated];
    let cases: [(&str, [bool; 3]); 17] = [
        ("", [true, true, true]),
        ("pod=shop/web", [true, true, true]),
        ("pod=db", [false, false, true]),
        ("from=shop/w", [false, true, true]),
        ("to=shop/", [true, false, true]),
        ("to=world verdict=denied", [false, true, false]),
        ("to=8.8.0.0/16", [false, true, false]),
        ("from=node:node2", [true, false, false]),
        ("from=172.30.0.12", [true, false, false]),
        ("port=80", [true, true, true]),
        ("port=8080", [false, false, true]),
        ("port=81 port=8080", [false, false, true]),
        ("reason=default-deny", [false, true, false]),
        ("service=shop/web", [false, false, true]),
        ("namespace=shop protocol=tcp node=node1", [true, true, true]),
        ("protocol=udp", [false, false, false]),
        ("namespace=other", [false, false, false]),
    ];
    for (text, expected) in cases {
        let filter: Filter = text.parse().unwrap();
        assert_eq!(all.map(|flow| filter.matches(flow)), expected, "{text}");
    }
}

#[test]
fn bad_filters_say_what_would_be_good() {
    let cases = [
        ("pod", "\"pod\" is not of the form key=value"),
        ("colour=red", "\"colour\" is not a key"),
        ("port=http", "a port is a number"),
        ("verdict=maybe", "use forwarded or denied"),
        ("reason=because", "default-deny"),
        ("protocol=quic", "use TCP, UDP"),
        ("from=/x", "use NAMESPACE/NAME"),
    ];
    for (text, expected) in cases {
        let error = text.parse::<Filter>().unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[tokio::test]
async fn the_ring_keeps_the_last_and_tells_listeners_what_they_missed() {
    let ring = FlowRing::new(3);
    let mut stream = ring.subscribe();
    for port in 1..=5 {
        ring.push(name(&Event { source_port: Port(port), ..denied() }));
    }
    ring.lost(7);
    let kept: Vec<_> = ring.recent(&Filter::default(), 2).iter().map(|flow| flow.source.port).collect();
    assert_eq!(kept, [Some(Port(4)), Some(Port(5))]);
    assert_eq!(ring.recent(&"verdict=forwarded".parse().unwrap(), 9), []);
    assert_eq!(ring.recent(&Filter::default(), 9).len(), 3);
    for port in 1..=5 {
        let Some(Item::Flow(flow)) = stream.next().await else { panic!("flow {port} is missing") };
        assert_eq!(flow.source.port, Some(Port(port)));
    }
    assert_eq!((stream.next().await, ring.lost_total()), (Some(Item::Lost(7)), 7));
    for _ in 0..5000 {
        ring.push(name(&denied()));
    }
    assert!(matches!(stream.next().await, Some(Item::Lost(count)) if count >= 900));
    drop(ring);
    while let Some(item) = stream.next().await {
        assert!(matches!(item, Item::Flow(_)));
    }
}

#[test]
fn metrics_count_by_verdict_and_reason_and_name_nobody() {
    let mut metrics = FlowMetrics::default();
    for event in [allowed(), denied(), denied(), translated()] {
        metrics.record(&name(&event));
    }
    let ended = Event { bytes: [1000, 234], packets: [3, 2], kind: EventKind::Ended, ..allowed() };
    metrics.record(&name(&ended));
    let text = metrics.render();
    let expected = "weft_flows_total{event=\"denied\",verdict=\"denied\",reason=\"default-deny\",direction=\"egress\",protocol=\"tcp\"} 2\n";
    assert!(text.contains(expected), "{text}");
    assert!(
        text.contains("reason=\"allowed-by-rule\",direction=\"ingress\",protocol=\"tcp\"} 1234\n"),
        "{text}"
    );
    assert!(!text.contains("shop") && !text.contains("10.244"), "{text}");
}

#[test]
fn verdicts_follow_events() {
    assert_eq!(name(&refused()).verdict, Verdict::Denied);
    assert_eq!(name(&translated()).verdict, Verdict::Forwarded);
    assert_eq!(name(&translated()).reason, None);
}
