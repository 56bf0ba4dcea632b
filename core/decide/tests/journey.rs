//! Packets' lives: what a node remembers of flows and how that changes with policy. Random packets are in tests/fuzz and, against the kernel, in io/datapath.

use k8s_openapi::api::networking::v1 as networking;
use weft_decide::{
    Action, Arrival, Asker, Chance, Connect, Epoch, MemoryFlows, Moment, Outcome, Owner, Packet, Refusal,
    TcpFlags, Time, connect, from_net, from_pod, to_pod,
};
use weft_model::testing::frames::{FragmentPlace, Frame, FrameBody};
use weft_model::testing::{Cluster, objects};
use weft_model::{Addr, ClusterSettings, NodeName, ObjectKey, PodKey, Port, Protocol, Reason, Routing};
use weft_plan::NodePlan;

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const CLIENT: &str = "10.244.1.10";
const SERVER: &str = "10.244.1.20";
const REMOTE: &str = "10.244.2.10";
const NODE: &str = "172.30.0.11";
const WORLD: &str = "203.0.113.7";

/// A node with two pods, another node with one, and what the first remembers.
struct World {
    cluster: Cluster,
    plan: NodePlan,
    flows: MemoryFlows,
    at: Moment,
}

fn addr(text: &str) -> Addr {
    text.parse().unwrap()
}

fn key(name: &str) -> PodKey {
    ObjectKey::new("shop", name)
}

impl World {
    fn new(routing: Routing) -> Self {
        let cidr = |text: &str| vec![text.parse().unwrap()];
        let pod =
            |name: &str, node: &str, addr: &str| objects::pod("shop", name, node, &[("app", name)], &[addr]);
        let cluster = Cluster {
            settings: ClusterSettings {
                pod_cidrs: cidr("10.244.0.0/16"),
                service_cidrs: cidr("10.96.0.0/16"),
                node_cidrs: cidr("172.30.0.0/24"),
                dns_addresses: vec![addr("10.96.0.10")],
                node_dns_addresses: vec![addr("169.254.20.10")],
                routing,
                ..ClusterSettings::default()
            },
            namespaces: vec![objects::namespace("shop", &[])],
            nodes: vec![
                objects::node("node1", &[NODE], &["10.244.1.0/24"]),
                objects::node("node2", &["172.30.0.12"], &["10.244.2.0/24"]),
            ],
            pods: vec![
                pod("client", "node1", CLIENT),
                pod("server", "node1", SERVER),
                pod("remote", "node2", REMOTE),
            ],
            ..Cluster::default()
        };
        let plan = compiled(&cluster);
        Self { cluster, plan, flows: MemoryFlows::default(), at: Moment::default() }
    }

    fn direct() -> Self {
        Self::new(Routing::Direct)
    }

    /// Policies change: a new plan is in force, and a new epoch.
    fn set_policies(&mut self, policies: Vec<networking::NetworkPolicy>) {
        self.cluster.policies = policies;
        self.plan = compiled(&self.cluster);
        self.at.epoch = Epoch(self.at.epoch.0 + 1);
    }

    fn send(&mut self, pod: &str, frame: &Frame) -> Outcome {
        self.at.time = Time(self.at.time.0 + 1);
        from_pod(&self.plan, &mut self.flows, self.at, &key(pod), &Packet::parse(&frame.bytes()))
    }

    fn arrive(&mut self, arrival: Arrival, frame: &Frame) -> Outcome {
        from_net(&self.plan, &mut self.flows, self.at, arrival, &Packet::parse(&frame.bytes()))
    }

    fn stack_sends(&mut self, pod: &str, frame: &Frame) -> Outcome {
        to_pod(&self.plan, &mut self.flows, self.at, &key(pod), &Packet::parse(&frame.bytes()))
    }
}

fn compiled(cluster: &Cluster) -> NodePlan {
    let node = NodeName::new("node1");
    weft_compile::compile(&cluster.snapshot_on(&node), &node).plan
}

/// Isolates pods of an app in the directions given, and allows nothing.
fn isolate(app: &str, directions: &[&str]) -> networking::NetworkPolicy {
    let spec = networking::NetworkPolicySpec {
        pod_selector: Some(objects::selector(&[("app", app)])),
        policy_types: Some(directions.iter().map(|direction| (*direction).to_owned()).collect()),
        ..networking::NetworkPolicySpec::default()
    };
    objects::policy("shop", &format!("isolate-{app}"), spec)
}

fn tcp(source: (&str, u16), destination: (&str, u16), flags: u8) -> Frame {
    let body = FrameBody::Tcp { source: source.1, destination: destination.1, flags };
    Frame::new(addr(source.0), addr(destination.0), body)
}

fn udp(source: (&str, u16), destination: (&str, u16)) -> Frame {
    let body = FrameBody::Udp { source: source.1, destination: destination.1 };
    Frame::new(addr(source.0), addr(destination.0), body)
}

fn told(outcome: &Outcome) -> (Reason, Action) {
    (outcome.reason, outcome.action.clone())
}

fn delivered(reason: Reason, to: &str) -> (Reason, Action) {
    (reason, Action::DeliverTo(addr(to)))
}

const fn dropped(reason: Reason) -> (Reason, Action) {
    (reason, Action::Drop)
}

#[test]
fn a_reply_needs_no_rule_of_its_own() {
    let mut world = World::direct();
    world.set_policies(vec![isolate("client", &["Ingress"]), isolate("server", &["Egress"])]);
    let request = tcp((CLIENT, 4000), (SERVER, 80), SYN);
    assert_eq!(told(&world.send("client", &request)), delivered(Reason::NotIsolated, SERVER));
    let answer = tcp((SERVER, 80), (CLIENT, 4000), SYN | ACK);
    assert_eq!(told(&world.send("server", &answer)), delivered(Reason::Reply, CLIENT));
    let other_port = tcp((SERVER, 81), (CLIENT, 4000), ACK);
    assert_eq!(told(&world.send("server", &other_port)), dropped(Reason::DefaultDeny));
}

#[test]
fn a_connection_back_over_the_same_ports_is_no_reply() {
    let mut world = World::direct();
    world.set_policies(vec![isolate("server", &["Egress"])]);
    world.send("client", &tcp((CLIENT, 4000), (SERVER, 80), SYN));
    let back = tcp((SERVER, 80), (CLIENT, 4000), SYN);
    assert_eq!(told(&world.send("server", &back)), dropped(Reason::DefaultDeny));
    let still = tcp((SERVER, 80), (CLIENT, 4000), SYN | ACK);
    assert_eq!(told(&world.send("server", &still)), delivered(Reason::Reply, CLIENT));
}

#[test]
fn a_new_policy_ends_an_established_connection_from_both_sides() {
    let mut world = World::direct();
    world.send("client", &tcp((CLIENT, 4000), (SERVER, 80), SYN));
    world.send("server", &tcp((SERVER, 80), (CLIENT, 4000), SYN | ACK));
    world.set_policies(vec![isolate("client", &["Egress"])]);
    // The responder's packets must not open the flow again from its side.
    for _ in 0..2 {
        let data = tcp((SERVER, 80), (CLIENT, 4000), ACK);
        assert_eq!(told(&world.send("server", &data)), dropped(Reason::DefaultDeny));
        let data = tcp((CLIENT, 4000), (SERVER, 80), ACK);
        assert_eq!(told(&world.send("client", &data)), dropped(Reason::DefaultDeny));
    }
    world.set_policies(Vec::new());
    let data = tcp((SERVER, 80), (CLIENT, 4000), ACK);
    assert_eq!(told(&world.send("server", &data)), delivered(Reason::Reply, CLIENT));
}

#[test]
fn the_own_node_reaches_an_isolated_pod_and_gets_its_answer() {
    let mut world = World::direct();
    world.set_policies(vec![isolate("server", &["Ingress", "Egress"])]);
    let probe = tcp((NODE, 5000), (SERVER, 80), SYN);
    assert_eq!(told(&world.stack_sends("server", &probe)), (Reason::FromOwnNode, Action::ToStack));
    let answer = tcp((SERVER, 80), (NODE, 5000), SYN | ACK);
    assert_eq!(told(&world.send("server", &answer)), (Reason::Reply, Action::ToStack));
    let own = tcp((SERVER, 6000), (NODE, 80), SYN);
    assert_eq!(told(&world.send("server", &own)), dropped(Reason::DefaultDeny));
    let outsider = tcp((WORLD, 5000), (SERVER, 80), SYN);
    assert_eq!(told(&world.stack_sends("server", &outsider)), dropped(Reason::DefaultDeny));
}

#[test]
fn sources_are_the_senders_own() {
    let mut world = World::direct();
    let lie = tcp((SERVER, 4000), (REMOTE, 80), SYN);
    assert_eq!(told(&world.send("client", &lie)), dropped(Reason::SpoofedSource));
    let inside = tcp((CLIENT, 4000), (SERVER, 80), SYN);
    assert_eq!(told(&world.arrive(Arrival::Uplink, &inside)), dropped(Reason::SpoofedSource));
    let node = tcp((NODE, 4000), (SERVER, 80), SYN);
    assert_eq!(told(&world.arrive(Arrival::Uplink, &node)), dropped(Reason::SpoofedSource));
    let honest = tcp((REMOTE, 4000), (SERVER, 80), SYN);
    assert_eq!(told(&world.arrive(Arrival::Uplink, &honest)), delivered(Reason::NotIsolated, SERVER));
}

#[test]
fn in_a_tunnel_a_source_comes_from_its_own_node() {
    let mut world = World::new(Routing::Vxlan { vni: 1, port: 4789 });
    let packet = tcp((REMOTE, 4000), (SERVER, 80), SYN);
    assert_eq!(told(&world.arrive(Arrival::Uplink, &packet)), dropped(Reason::SpoofedSource));
    let other_end = Arrival::Tunnel { from: addr("172.30.0.13") };
    assert_eq!(told(&world.arrive(other_end, &packet)), dropped(Reason::SpoofedSource));
    let right_end = Arrival::Tunnel { from: addr("172.30.0.12") };
    assert_eq!(told(&world.arrive(right_end, &packet)), delivered(Reason::NotIsolated, SERVER));
    let outsider = tcp((WORLD, 4000), (SERVER, 80), SYN);
    assert_eq!(told(&world.arrive(right_end, &outsider)), dropped(Reason::SpoofedSource));
}

#[test]
fn every_destination_has_its_way() {
    let mut world = World::direct();
    let mut to =
        |destination: &str| told(&world.send("client", &tcp((CLIENT, 4000), (destination, 80), SYN)));
    let Action::ToNode(hop) = to(REMOTE).1 else { panic!("not to a node") };
    assert_eq!((hop.node, hop.via), (NodeName::new("node2"), addr("172.30.0.12")));
    assert_eq!(to(WORLD), (Reason::NotIsolated, Action::ToNet));
    assert_eq!(to(NODE), (Reason::NotIsolated, Action::ToStack));
    assert_eq!(to("10.96.0.10"), (Reason::NotIsolated, Action::ToStack));
    assert_eq!(to("169.254.20.10"), (Reason::NotIsolated, Action::ToStack));
    assert_eq!(to("10.244.1.99"), dropped(Reason::NoSuchPod));
    assert_eq!(to("10.244.9.9"), dropped(Reason::RouteMissing));
    let told_so = Action::Reject(Refusal::Reset);
    assert_eq!(to("10.96.3.4"), (Reason::NotTranslated, told_so));
    assert_eq!(to("224.0.0.251"), dropped(Reason::LinkLocal));
    assert_eq!(to("169.254.1.1"), dropped(Reason::LinkLocal));
}

#[test]
fn outside_sees_the_node_and_its_answers_find_the_pod() {
    let mut world = World::direct();
    let mut sees = |pod: &str, source: (&str, u16)| {
        let sent = world.send(pod, &tcp(source, (WORLD, 80), SYN)).translated.unwrap();
        assert_eq!((sent.source, sent.destination), (addr(NODE), addr(WORLD)));
        sent.body.unwrap().source_port.0
    };
    // Kept where it is one of the node's for this and free; the same as long as the connection lasts.
    let ports =
        [sees("client", (CLIENT, 50_000)), sees("server", (SERVER, 50_000)), sees("client", (CLIENT, 4000))];
    assert_eq!((ports[0], sees("server", (SERVER, 50_000))), (50_000, ports[1]));
    assert!(ports[1] != 50_000 && (49_152..=65_535).contains(&ports[1]) && ports[2] >= 49_152, "{ports:?}");
    for (port, (to, at)) in ports.into_iter().zip([(CLIENT, 50_000), (SERVER, 50_000), (CLIENT, 4000)]) {
        let outcome = world.arrive(Arrival::Uplink, &tcp((WORLD, 80), (NODE, port), SYN | ACK));
        assert_eq!(told(&outcome), delivered(Reason::Reply, to));
        let translated = outcome.translated.unwrap();
        assert_eq!((translated.destination, translated.body.unwrap().destination_port.0), (addr(to), at));
    }
    let stranger = world.arrive(Arrival::Uplink, &tcp((WORLD, 81), (NODE, ports[0]), SYN | ACK));
    assert_eq!((stranger.action, stranger.translated), (Action::ToStack, None));
}

#[test]
fn the_stack_answers_when_the_hop_limit_ends() {
    let mut world = World::direct();
    for destination in [SERVER, REMOTE] {
        let last = Frame { hop_limit: 1, ..tcp((CLIENT, 4000), (destination, 80), SYN) };
        assert_eq!(world.send("client", &last).action, Action::ToStack, "{destination}");
    }
}

#[test]
fn an_unknown_pod_is_told_apart() {
    let mut world = World::direct();
    world.set_policies(vec![isolate("server", &["Ingress"])]);
    let stranger = tcp(("10.244.2.77", 4000), (SERVER, 80), SYN);
    assert_eq!(told(&world.arrive(Arrival::Uplink, &stranger)), dropped(Reason::IdentityUnknown));
    let known = tcp((REMOTE, 4000), (SERVER, 80), SYN);
    assert_eq!(told(&world.arrive(Arrival::Uplink, &known)), dropped(Reason::DefaultDeny));
}

#[test]
fn an_icmp_error_belongs_to_its_flow() {
    let mut world = World::direct();
    world.set_policies(vec![isolate("server", &["Egress"]), isolate("client", &["Ingress"])]);
    let query = udp((CLIENT, 4000), (SERVER, 53));
    world.send("client", &query);
    let error = |about: &Frame, to: &str| {
        let body = FrameBody::Unreachable { about: Box::new(about.clone()), quoted_bytes: 28 };
        Frame::new(addr(SERVER), addr(to), body)
    };
    assert_eq!(told(&world.send("server", &error(&query, CLIENT))), delivered(Reason::Related, CLIENT));
    let unknown = udp((CLIENT, 4001), (SERVER, 53));
    assert_eq!(told(&world.send("server", &error(&unknown, CLIENT))), dropped(Reason::DefaultDeny));
    // To another than the one who sent what it quotes.
    assert_eq!(told(&world.send("server", &error(&query, REMOTE))), dropped(Reason::DefaultDeny));
}

#[test]
fn echo_replies_belong_to_their_request() {
    let mut world = World::direct();
    world.set_policies(vec![isolate("server", &["Egress"])]);
    let frame = |source, destination, body| Frame::new(addr(source), addr(destination), body);
    world.send("client", &frame(CLIENT, SERVER, FrameBody::EchoRequest { id: 7 }));
    let reply = frame(SERVER, CLIENT, FrameBody::EchoReply { id: 7 });
    assert_eq!(told(&world.send("server", &reply)), delivered(Reason::Reply, CLIENT));
    let other = frame(SERVER, CLIENT, FrameBody::EchoReply { id: 8 });
    assert_eq!(told(&world.send("server", &other)), dropped(Reason::DefaultDeny));
}

#[test]
fn later_fragments_go_the_way_of_the_first() {
    let mut world = World::direct();
    let fragment = |id, offset, more| Frame {
        fragment: Some(FragmentPlace { id, offset, more }),
        ..udp((CLIENT, 4000), (SERVER, 53))
    };
    assert_eq!(told(&world.send("client", &fragment(9, 2, false))), dropped(Reason::FragmentUnknown));
    assert_eq!(told(&world.send("client", &fragment(9, 0, true))), delivered(Reason::NotIsolated, SERVER));
    assert_eq!(told(&world.send("client", &fragment(9, 2, false))), delivered(Reason::NotIsolated, SERVER));
    // Somebody else's first fragment is refused before it is remembered.
    let lie = Frame { source: addr(REMOTE), ..fragment(10, 0, true) };
    assert_eq!(told(&world.send("client", &lie)), dropped(Reason::SpoofedSource));
    assert_eq!(world.flows.fragments.len(), 1);
}

#[test]
fn a_port_used_again_after_the_end_is_a_new_flow() {
    let mut world = World::direct();
    world.send("client", &tcp((CLIENT, 4000), (SERVER, 80), SYN));
    world.send("client", &tcp((CLIENT, 4000), (SERVER, 80), ACK | TcpFlags::FIN));
    world.send("server", &tcp((SERVER, 80), (CLIENT, 4000), ACK | TcpFlags::FIN));
    // The other side may open the next one, over the same ports.
    let back = tcp((SERVER, 80), (CLIENT, 4000), SYN);
    assert_eq!(told(&world.send("server", &back)), delivered(Reason::NotIsolated, CLIENT));
    let answer = tcp((CLIENT, 4000), (SERVER, 80), SYN | ACK);
    assert_eq!(told(&world.send("client", &answer)), delivered(Reason::Reply, SERVER));
}

#[test]
fn sockets_are_translated_or_refused() {
    let mut world = World::direct();
    let ports = vec![objects::service_port("", "TCP", 80)];
    world.cluster.services = vec![objects::service("shop", "server", &["10.96.0.20"], ports)];
    world.set_policies(Vec::new());
    let (service, port) = (addr("10.96.0.20"), Port(80));
    let pod = Asker { owner: Owner::Pod, netns_cookie: 1 };
    let first = Chance::default();
    let refused = |plan: &NodePlan, addr| match connect(plan, pod, Protocol::TCP, addr, port, first) {
        Connect::Refused { reason, .. } => Some(reason),
        _ => None,
    };
    assert_eq!(refused(&world.plan, service), Some(Reason::NoReadyBackends));
    assert_eq!(refused(&world.plan, addr("10.96.0.99")), Some(Reason::NotTranslated));
    let open = [CLIENT, WORLD, "10.96.0.10", NODE];
    let connect_to = |asker, protocol, to| connect(&world.plan, asker, protocol, to, port, first);
    assert!(open.iter().all(|text| connect_to(pod, Protocol::TCP, addr(text)) == Connect::Unchanged));
    let ready = || Default::default();
    let endpoints = vec![objects::endpoint(SERVER, ready()), objects::endpoint(REMOTE, ready())];
    let ports = vec![objects::endpoint_port("", "TCP", 8080)];
    world.cluster.slices = vec![objects::slice("shop", "server", "server-1", "IPv4", ports, endpoints)];
    world.set_policies(Vec::new());
    let chosen = |entropy| match connect(
        &world.plan,
        pod,
        Protocol::TCP,
        service,
        port,
        Chance { entropy, last: None },
    ) {
        Connect::To { backend, .. } => (backend.addr, backend.port),
        other => panic!("{other:?}"),
    };
    let all: std::collections::BTreeSet<_> = (0..10).map(chosen).collect();
    assert_eq!(all, [(addr(SERVER), Port(8080)), (addr(REMOTE), Port(8080))].into());
}
