//! Policy through the kernel with real sockets: denial, its cause in events, change on established connections, spoofing.

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use support::{Fabric, Node, PATIENCE, Pod, connect, echo_tcp, echo_udp, ping, serve_tcp, serve_udp};
use weft_abi::{Event, EventKind};
use weft_model::{Addr, Cidr, Direction, Port, Protocol, Reason, Routing, Verdict};
use weft_plan::{ClassId, ClassMatch, Decision, PolicyMatch, PolicySet, PolicySetId, PortPrefix, RuleId};

const SOON: Duration = Duration::from_millis(300);

fn set(direction: Direction, allowed: &[(ClassId, u16)]) -> PolicySet {
    let allow = Decision { verdict: Verdict::Forwarded, rule: RuleId(7) };
    let entries: BTreeMap<_, _> = allowed
        .iter()
        .map(|(class, port)| {
            let class = ClassMatch::Only(*class);
            (PolicyMatch { class, protocol: Some(Protocol::TCP), port: PortPrefix::exact(*port) }, allow)
        })
        .collect();
    PolicySet { direction, policies: Vec::new(), entries, default_rule: RuleId(9) }
}

fn isolate(node: &mut Node, pod: &Pod, direction: Direction, id: u32, allowed: &[(ClassId, u16)]) {
    node.plan.policy_sets.insert(PolicySetId(id), set(direction, allowed));
    for address in [pod.v4, pod.v6] {
        let endpoint = node.plan.endpoints.get_mut(&address).unwrap();
        match direction {
            Direction::Ingress => endpoint.ingress = Some(PolicySetId(id)),
            Direction::Egress => endpoint.egress = Some(PolicySetId(id)),
        }
    }
}

fn classify(node: &mut Node, pod: &Pod, class: ClassId) {
    for address in [pod.v4, pod.v6] {
        node.plan.classes.insert(Cidr::host(address), class);
    }
}

/// Events until one matches.
fn wait_for(node: &Node, wanted: impl Fn(&Event) -> bool) -> Event {
    let reader = node.with(|datapath| datapath.events()).unwrap();
    let end = std::time::Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while std::time::Instant::now() < end {
        for event in reader.poll(Duration::from_millis(100)).unwrap() {
            if wanted(&event) {
                return event;
            }
            seen.push(event);
        }
    }
    panic!("no such event among {seen:#?}");
}

#[test]
fn rules_decide_and_are_named() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    let node = &mut fabric.nodes[0];
    classify(node, &client, ClassId(50));
    isolate(node, &server, Direction::Ingress, 1, &[(ClassId(50), 80)]);
    node.apply();
    serve_tcp(&server.namespace, 80);
    serve_tcp(&server.namespace, 81);
    for to in [server.v4, server.v6] {
        echo_tcp(&client.namespace, to, 80, 1 << 16);
        assert!(connect(&client.namespace, to, 81, SOON).is_err());
        assert!(connect(&node.namespace, to, 81, SOON).is_ok(), "a node reaches its pods");
        let about = |kind: EventKind, port: u16| {
            move |event: &Event| {
                event.kind == kind && event.destination == to && event.destination_port == Port(port)
            }
        };
        let denied = wait_for(node, about(EventKind::Denied, 81));
        assert_eq!((denied.reason, denied.ingress_rule), (Some(Reason::DefaultDeny), Some(RuleId(9))));
        assert_eq!((denied.ifindex, denied.protocol), (client.link.ifindex, Protocol::TCP));
    }
    let flows = node.with(|datapath| datapath.flows()).unwrap();
    let flow =
        flows.iter().find(|flow| flow.destination == server.v4 && flow.destination_port == Port(80)).unwrap();
    assert_eq!(
        (flow.reason, flow.ingress_rule, flow.egress_rule),
        (Reason::AllowedByRule, Some(RuleId(7)), None)
    );
    assert!(flow.bytes[0] > 1 << 16 && flow.bytes[1] > 1 << 16, "{flow}");
    let counters = node.with(|datapath| datapath.counters()).unwrap();
    assert!(counters.reasons[&Reason::DefaultDeny].packets >= 2);
}

#[test]
fn flows_are_told_from_start_to_end() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    let node = &mut fabric.nodes[0];
    node.apply();
    serve_tcp(&server.namespace, 80);
    echo_tcp(&client.namespace, server.v4, 80, 1000);
    let to = server.v4;
    let started = std::cell::RefCell::new(None);
    let ended = wait_for(node, |event| {
        if event.kind == EventKind::NewFlow && event.destination == to {
            started.replace(Some(event.clone()));
        }
        event.kind == EventKind::Ended
    });
    let started = started.into_inner().expect("told before its end");
    assert_eq!((started.reason, started.source), (Some(Reason::NotIsolated), client.v4));
    assert!(ended.bytes[0] > 1000 && ended.bytes[1] > 1000 && ended.packets[0] >= 3, "{ended:?}");
    assert_eq!((ended.source, ended.destination), (started.source, started.destination));
    assert_eq!(started.at.max(ended.at), ended.at);
}

#[test]
fn a_change_of_policy_cuts_established_connections() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    let node = &mut fabric.nodes[0];
    classify(node, &client, ClassId(50));
    isolate(node, &server, Direction::Ingress, 1, &[(ClassId(50), 80)]);
    node.apply();
    serve_tcp(&server.namespace, 80);
    let mut stream = connect(&client.namespace, server.v4, 80, PATIENCE).unwrap();
    let mut byte = [1];
    stream.write_all(&byte).unwrap();
    stream.read_exact(&mut byte).unwrap();
    isolate(node, &server, Direction::Ingress, 2, &[]);
    node.apply();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(&byte).unwrap();
    assert!(stream.read_exact(&mut byte).is_err(), "denied by the new policy");
    isolate(node, &server, Direction::Ingress, 1, &[(ClassId(50), 80)]);
    node.apply();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut byte).expect("TCP repeats what was denied, and it is allowed again");
}

#[test]
fn egress_policy_binds_the_sender_and_replies_pass() {
    let mut fabric = Fabric::new(2, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[1].add_pod(3);
    for (at, pod, direction) in [(0, &client, Direction::Egress), (1, &server, Direction::Ingress)] {
        let node = &mut fabric.nodes[at];
        classify(node, &client, ClassId(50));
        classify(node, &server, ClassId(51));
        let peer = if at == 0 { ClassId(51) } else { ClassId(50) };
        isolate(node, pod, direction, 1, &[(peer, 80)]);
    }
    // Neither side may do more than answer.
    isolate(&mut fabric.nodes[0], &client, Direction::Ingress, 3, &[]);
    isolate(&mut fabric.nodes[1], &server, Direction::Egress, 3, &[]);
    fabric.apply_all();
    for port in [80, 81] {
        serve_tcp(&server.namespace, port);
        serve_tcp(&client.namespace, port);
    }
    serve_udp(&server.namespace, 80);
    for to in [server.v4, server.v6] {
        echo_tcp(&client.namespace, to, 80, 1 << 18);
        assert!(connect(&client.namespace, to, 81, SOON).is_err());
        assert!(!echo_udp(&client.namespace, to, 80, 10, SOON));
    }
    assert!(connect(&server.namespace, client.v4, 80, SOON).is_err());
    let counters = fabric.nodes[0].with(|datapath| datapath.counters()).unwrap();
    assert!(counters.reasons[&Reason::DefaultDeny].packets > 0);
}

#[test]
fn spoofed_sources_do_not_leave_a_pod() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    fabric.apply_all();
    serve_udp(&server.namespace, 53);
    assert!(ping(&client.namespace, server.v4));
    client.namespace.ip("addr add 10.244.1.77/32 dev eth0");
    client.namespace.ip("addr add fd00:10:244:1::77/128 dev eth0 nodad");
    for (from, to) in [("10.244.1.77:0", server.v4), ("[fd00:10:244:1::77]:0", server.v6)] {
        let socket = client.namespace.run(|| UdpSocket::bind(from).unwrap());
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.send_to(b"spoofed", SocketAddr::new(Addr::to_ip(to), 53)).unwrap();
        assert!(socket.recv(&mut [0; 16]).is_err());
        let source: Addr = SocketAddr::ip(&from.parse().unwrap()).into();
        let event =
            wait_for(&fabric.nodes[0], |event| event.kind == EventKind::Denied && event.source == source);
        assert_eq!(event.reason, Some(Reason::SpoofedSource));
    }
}
