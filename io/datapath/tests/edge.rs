//! Services for clients outside the cluster, and for pods' datagrams: real sockets, real nodes.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use libbpf_rs::MapCore;
use support::{
    Fabric, Namespace, Node, PATIENCE, Pod, addr, connect, echo_tcp, echo_udp, node_v4, node_v6, serve_tcp,
    serve_udp, serve_udp_at,
};
use weft_model::{Addr, Forwarding, Port, Protocol, Reason, Routing, ServiceKey, TrafficPolicy};
use weft_plan::{Backend, BackendList, EdgePlan, Exposure, Frontend, ListId, ServiceId, ServicePlan};

const VXLAN: Routing = Routing::Vxlan { vni: 78, port: 8472 };
const LB_V4: &str = "203.0.113.7";
const LB_V6: &str = "2001:db8:7::7";
const NODE_PORT: u16 = 30080;
const LB_PORT: u16 = 80;

/// What a service does with clients outside.
#[derive(Clone, Copy)]
struct Edge {
    policy: TrafficPolicy,
    forwarding: Forwarding,
}

const SNAT: Edge = Edge { policy: TrafficPolicy::Cluster, forwarding: Forwarding::Snat };
const DSR: Edge = Edge { policy: TrafficPolicy::Cluster, forwarding: Forwarding::Dsr };
const LOCAL: Edge = Edge { policy: TrafficPolicy::Local, forwarding: Forwarding::Snat };

fn list(id: u32, backends: &[(Addr, u16)], all: &[(Addr, u16)]) -> Arc<BackendList> {
    let elsewhere = backends.is_empty() && !all.is_empty();
    let mut backends: Vec<Backend> =
        backends.iter().map(|(addr, port)| Backend::at(*addr, Port(*port))).collect();
    backends.sort();
    Arc::new(BackendList { id: ListId(id), backends, elsewhere })
}

/// One frontend of TCP and one of UDP; `cluster` is what every client may get, `here` the backends of this node.
fn serve(
    node: &mut Node,
    exposure: Exposure,
    addr: Addr,
    port: u16,
    edge: Edge,
    cluster: &[(Addr, u16)],
    here: &[(Addr, u16)],
) {
    for protocol in [Protocol::TCP, Protocol::UDP] {
        let is_v6 = addr.family() == weft_model::Family::V6;
        let id = u32::from(port) << 2 | u32::from(is_v6) << 1 | u32::from(protocol == Protocol::UDP);
        let mut plan = ServicePlan::cluster_ip(ServiceId(id), ServiceKey::new("test", "web"), Vec::new());
        plan.exposure = exposure;
        plan.list = list(id, cluster, cluster);
        let edge_list = match edge.policy {
            TrafficPolicy::Cluster => Arc::clone(&plan.list),
            TrafficPolicy::Local => list(id ^ 1 << 31, here, cluster),
        };
        plan.edge = Some(EdgePlan { list: edge_list, policy: edge.policy, forwarding: edge.forwarding });
        node.plan.services.insert(Frontend { addr, protocol, port: Port(port) }, plan);
    }
}

/// A load balancer's address and a node port of each family, on every node.
fn expose(fabric: &mut Fabric, edge: Edge, v4: &[(Addr, u16)], v6: &[(Addr, u16)]) {
    for node in &mut fabric.nodes {
        let cidrs = node.plan.settings.pod_cidrs.clone();
        let own = node.plan.settings.host_addresses.clone();
        let is_here = |addr: Addr| own.contains(&addr) || cidrs.iter().any(|cidr| cidr.contains(addr));
        for (lb, any, backends) in [(LB_V4, "0.0.0.0", v4), (LB_V6, "::", v6)] {
            let here: Vec<_> = backends.iter().copied().filter(|(addr, _)| is_here(*addr)).collect();
            serve(node, Exposure::LoadBalancer, addr(lb), LB_PORT, edge, backends, &here);
            serve(node, Exposure::NodePort, addr(any), NODE_PORT, edge, backends, &here);
        }
    }
}

/// The outside machine reaches the load balancer's addresses through the first node.
fn route_outside(fabric: &Fabric) {
    fabric.outside.ip(&format!("route replace {LB_V4} via {}", node_v4(1)));
    fabric.outside.ip(&format!("route replace {LB_V6} via {}", node_v6(1)));
}

fn frontends() -> [(Addr, u16); 4] {
    [(addr(LB_V4), LB_PORT), (node_v4(1), NODE_PORT), (addr(LB_V6), LB_PORT), (node_v6(1), NODE_PORT)]
}

fn listen(pod: &Pod) {
    serve_tcp(&pod.namespace, 8080);
    serve_udp(&pod.namespace, 8080);
}

fn check_all(client: &Namespace, size: usize) {
    for (to, port) in frontends() {
        echo_tcp(client, to, port, size);
        assert!(echo_udp(client, to, port, 100, PATIENCE), "datagram to {to}");
        assert!(echo_udp(client, to, port, 6000, PATIENCE), "fragments to {to}");
    }
}

/// Proves status.loadBalancer.ingress.ip: Served on every node, for clients in the cluster and from outside.
#[test]
fn outside_reaches_a_pod_of_the_node_it_asks() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    expose(&mut fabric, SNAT, &[(pod.v4, 8080)], &[(pod.v6, 8080)]);
    fabric.apply_all();
    route_outside(&fabric);
    listen(&pod);
    check_all(&fabric.outside, 4 << 20);
    fabric.real_checksums();
    check_all(&fabric.outside, 1 << 18);
}

fn another_nodes_pod(routing: Routing, edge: Edge) {
    let mut fabric = Fabric::new(2, routing);
    let pod = fabric.nodes[1].add_pod(2);
    expose(&mut fabric, edge, &[(pod.v4, 8080)], &[(pod.v6, 8080)]);
    fabric.apply_all();
    route_outside(&fabric);
    listen(&pod);
    check_all(&fabric.outside, 4 << 20);
    fabric.real_checksums();
    check_all(&fabric.outside, 1 << 18);
}

#[test]
fn outside_reaches_another_nodes_pod_by_snat_direct() {
    another_nodes_pod(Routing::Direct, SNAT);
}

#[test]
fn outside_reaches_another_nodes_pod_by_snat_vxlan() {
    another_nodes_pod(VXLAN, SNAT);
}

#[test]
fn outside_reaches_another_nodes_pod_by_dsr_direct() {
    another_nodes_pod(Routing::Direct, DSR);
}

#[test]
fn outside_reaches_another_nodes_pod_by_dsr_vxlan() {
    another_nodes_pod(VXLAN, DSR);
}

/// Who the server of a pod sees.
fn seen_by(pod: &Pod, client: &Namespace, to: Addr, port: u16) -> Addr {
    let listener = pod.namespace.run(|| TcpListener::bind(("::", 8080)).unwrap());
    let stream = connect(client, to, port, PATIENCE).unwrap();
    let (_, peer) = listener.accept().unwrap();
    drop(stream);
    Addr::from(peer.ip())
}

/// Proves spec.externalTrafficPolicy: Local keeps traffic from outside on the node it came to, with the client's address.
#[test]
fn local_backends_see_the_client_and_other_nodes_are_silent() {
    let mut fabric = Fabric::new(2, Routing::Direct);
    let pod = fabric.nodes[1].add_pod(2);
    expose(&mut fabric, LOCAL, &[(pod.v4, 8080)], &[(pod.v6, 8080)]);
    fabric.apply_all();
    for (asked, client) in [(node_v4(2), "172.30.0.1"), (node_v6(2), "fd00:172:30::1")] {
        assert_eq!(seen_by(&pod, &fabric.outside, asked, NODE_PORT), addr(client));
    }
    for asked in [node_v4(1), node_v6(1)] {
        let silence = connect(&fabric.outside, asked, NODE_PORT, Duration::from_millis(100));
        assert_eq!(silence.unwrap_err().kind(), ErrorKind::TimedOut);
    }
    let counters = fabric.nodes[0].with(|datapath| datapath.counters()).unwrap();
    assert!(counters.reasons[&Reason::NoLocalBackends].packets >= 2);
}

fn refuses_datagrams(namespace: &Namespace, to: Addr, port: u16) -> bool {
    let any = if to.to_ip().is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = namespace.run(move || UdpSocket::bind(any).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(SocketAddr::new(to.to_ip(), port)).unwrap();
    socket.send(b"anybody?").unwrap();
    socket.recv(&mut [0; 16]).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn nobody_there_is_said_at_once() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    expose(&mut fabric, SNAT, &[], &[]);
    fabric.apply_all();
    route_outside(&fabric);
    let check = || {
        for client in [&fabric.outside, &pod.namespace] {
            for (to, port) in frontends() {
                let refused = connect(client, to, port, PATIENCE).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to}");
                assert!(refuses_datagrams(client, to, port), "datagram to {to}");
            }
        }
        for unknown in ["10.96.77.7", "fd00:10:96::77"] {
            let refused = connect(&pod.namespace, addr(unknown), 80, PATIENCE).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{unknown}");
            assert!(refuses_datagrams(&pod.namespace, addr(unknown), 80), "datagram to {unknown}");
        }
    };
    check();
    fabric.real_checksums();
    check();
}

/// Datagrams of a pod, whose sockets nobody translates, to each kind of backend.
fn pods_datagrams(routing: Routing) {
    let mut fabric = Fabric::new(2, routing);
    let client = fabric.nodes[0].add_pod(2);
    let near = fabric.nodes[0].add_pod(3);
    let far = fabric.nodes[1].add_pod(4);
    fabric.apply_all();
    for pod in [&client, &near, &far] {
        listen(pod);
    }
    for (namespace, local) in [(&fabric.nodes[0].namespace, 1), (&fabric.nodes[1].namespace, 2)] {
        serve_udp_at(namespace, &format!("{}:8080", node_v4(local)));
        serve_udp_at(namespace, &format!("[{}]:8080", node_v6(local)));
    }
    serve_udp_at(&fabric.outside, "192.0.2.1:8080");
    serve_udp_at(&fabric.outside, "[2001:db8::1]:8080");
    let outside = (addr("192.0.2.1"), addr("2001:db8::1"));
    let kinds = [
        ("of the same node", (near.v4, near.v6)),
        ("of another node", (far.v4, far.v6)),
        ("itself", (client.v4, client.v6)),
        ("its node", (node_v4(1), node_v6(1))),
        ("another node", (node_v4(2), node_v6(2))),
        ("outside", outside),
    ];
    let check = |fabric: &mut Fabric| {
        for (kind, (v4, v6)) in kinds {
            expose(fabric, SNAT, &[(v4, 8080)], &[(v6, 8080)]);
            fabric.apply_all();
            for (to, port) in frontends() {
                // Answers from outside are as large as the uplink carries, and learn of the tunnel's only by being lost.
                let large = if kind == "outside" { 1300 } else { 6000 };
                for size in [100, large] {
                    let came = echo_udp(&client.namespace, to, port, size, PATIENCE);
                    assert!(came, "{size} bytes to {to} with a backend that is {kind}");
                }
            }
        }
    };
    check(&mut fabric);
    fabric.real_checksums();
    check(&mut fabric);
}

#[test]
fn pods_datagrams_are_translated_direct() {
    pods_datagrams(Routing::Direct);
}

#[test]
fn pods_datagrams_are_translated_vxlan() {
    pods_datagrams(VXLAN);
}

/// Names itself to whoever sends.
fn serve_name(pod: &Pod, name: &'static str) {
    let socket = pod.namespace.run(|| UdpSocket::bind("[::]:8080").unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(name.as_bytes(), from).ok();
        }
    });
}

#[test]
fn datagrams_move_and_connections_stay_when_a_backend_goes() {
    let mut fabric = Fabric::new(2, Routing::Direct);
    let one = fabric.nodes[0].add_pod(2);
    let other = fabric.nodes[1].add_pod(3);
    let inside = fabric.nodes[0].add_pod(4);
    expose(&mut fabric, SNAT, &[(one.v4, 8080)], &[(one.v6, 8080)]);
    fabric.apply_all();
    route_outside(&fabric);
    serve_tcp(&one.namespace, 8080);
    serve_name(&one, "one");
    serve_name(&other, "other");
    let ask = |socket: &UdpSocket| {
        socket.send(b"who?").unwrap();
        let mut answer = [0; 16];
        let length = socket.recv(&mut answer).unwrap();
        String::from_utf8(answer[..length].to_vec()).unwrap()
    };
    let clients = [&fabric.outside, &inside.namespace];
    let sockets: Vec<UdpSocket> = frontends()
        .into_iter()
        .flat_map(|(to, port)| clients.map(|client| (client, to, port)))
        .map(|(client, to, port)| {
            let any = if to.to_ip().is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = client.run(move || UdpSocket::bind(any).unwrap());
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(SocketAddr::new(to.to_ip(), port)).unwrap();
            socket
        })
        .collect();
    for socket in &sockets {
        assert_eq!(ask(socket), "one");
    }
    let mut streams: Vec<_> = frontends()
        .into_iter()
        .map(|(to, port)| connect(&fabric.outside, to, port, PATIENCE).unwrap())
        .collect();
    expose(&mut fabric, SNAT, &[(other.v4, 8080)], &[(other.v6, 8080)]);
    fabric.apply_all();
    for socket in &sockets {
        assert_eq!(ask(socket), "other", "the first datagram after");
    }
    for stream in &mut streams {
        stream.write_all(b"still there").unwrap();
        let mut answer = [0; 11];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"still there");
    }
}

/// A switch that does not know a link address sends its frames to every machine.
#[test]
fn frames_for_another_machine_are_left_alone() {
    let mut fabric = Fabric::new(2, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    expose(&mut fabric, SNAT, &[(pod.v4, 8080)], &[(pod.v6, 8080)]);
    fabric.apply_all();
    route_outside(&fabric);
    serve_udp(&pod.namespace, 8080);
    for (to, port) in frontends() {
        let hop = if to.family() == weft_model::Family::V4 { node_v4(1) } else { node_v6(1) };
        let any = if to.to_ip().is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = fabric.outside.run(move || UdpSocket::bind(any).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(SocketAddr::new(to.to_ip(), port)).unwrap();
        fabric.outside.ip(&format!("neigh replace {hop} lladdr 02:00:00:00:de:ad dev br0 nud permanent"));
        socket.send(b"for nobody").unwrap();
        fabric.outside.ip(&format!("neigh del {hop} dev br0"));
        socket.send(b"for you").unwrap();
        let mut answer = [0; 16];
        let length = socket.recv(&mut answer).unwrap();
        assert_eq!(&answer[..length], b"for you", "the first answer of {to}");
    }
}

/// Processes of the nodes, and pods in their network, as backends.
fn nodes_own_backends(routing: Routing, edge: Edge) {
    let mut fabric = Fabric::new(2, routing);
    for number in [1, 2] {
        let namespace = fabric.nodes[usize::from(number) - 1].namespace.clone();
        serve_tcp(&namespace, 8080);
        serve_udp_at(&namespace, &format!("{}:8080", node_v4(number)));
        serve_udp_at(&namespace, &format!("[{}]:8080", node_v6(number)));
    }
    for number in [1, 2] {
        expose(&mut fabric, edge, &[(node_v4(number), 8080)], &[(node_v6(number), 8080)]);
        fabric.apply_all();
        route_outside(&fabric);
        check_all(&fabric.outside, 1 << 20);
    }
    fabric.real_checksums();
    check_all(&fabric.outside, 1 << 18);
}

#[test]
fn nodes_own_backends_by_snat() {
    nodes_own_backends(Routing::Direct, SNAT);
    nodes_own_backends(VXLAN, SNAT);
}

#[test]
fn nodes_own_backends_by_dsr() {
    nodes_own_backends(Routing::Direct, DSR);
    nodes_own_backends(VXLAN, DSR);
}

#[test]
fn connections_outlive_the_agent() {
    let mut fabric = Fabric::new(2, VXLAN);
    let near = fabric.nodes[0].add_pod(2);
    let far = fabric.nodes[1].add_pod(3);
    fabric.apply_all();
    route_outside(&fabric);
    for pod in [&near, &far] {
        listen(pod);
        expose(&mut fabric, SNAT, &[(pod.v4, 8080)], &[(pod.v6, 8080)]);
        fabric.apply_all();
        let mut streams: Vec<_> = frontends()
            .into_iter()
            .map(|(to, port)| connect(&fabric.outside, to, port, PATIENCE).unwrap())
            .collect();
        let connections = fabric.nodes[0].with(|datapath| datapath.connections()).unwrap();
        assert!(connections >= 2 * streams.len(), "both directions of each: {connections}");
        for node in &fabric.nodes {
            node.open();
        }
        for stream in &mut streams {
            stream.write_all(b"still there").unwrap();
            let mut answer = [0; 11];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"still there");
        }
        fabric.apply_all();
        for stream in &mut streams {
            stream.write_all(b"still there").unwrap();
            stream.read_exact(&mut [0; 11]).unwrap();
        }
    }
}

#[test]
fn ports_that_no_service_has_are_refused_at_its_address() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    expose(&mut fabric, SNAT, &[(pod.v4, 8080)], &[(pod.v6, 8080)]);
    fabric.apply_all();
    route_outside(&fabric);
    fabric.outside.ip(&format!("route add 10.96.0.0/16 via {}", node_v4(1)));
    fabric.outside.ip(&format!("route add fd00:10:96::/112 via {}", node_v6(1)));
    for to in [LB_V4, LB_V6, "10.96.77.7", "fd00:10:96::77"] {
        let refused = connect(&fabric.outside, addr(to), 81, PATIENCE).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to}");
        assert!(refuses_datagrams(&fabric.outside, addr(to), 81), "datagram to {to}");
    }
    let dropped = || {
        let counters = fabric.nodes[0].with(|datapath| datapath.counters()).unwrap();
        counters.reasons[&Reason::NotTranslated].packets
    };
    // An echo is not answered, and does not go round.
    let before = dropped();
    for to in [LB_V4, "10.96.77.7"] {
        let (_, sent) = support::try_ping(&fabric.outside, addr(to), Duration::from_millis(100));
        assert!(sent, "{to}");
    }
    assert_eq!(dropped(), before + 2, "each came by once");
}

/// Tells the sender of `quoted` that no more than `mtu` bytes pass.
fn tell_mtu(from: &Namespace, to: &str, mtu: u16, quoted: &[u8]) {
    let mut message = vec![3, 4, 0, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend(quoted);
    let sum = support::bytes::checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let to: std::net::IpAddr = to.parse().unwrap();
    from.run(move || {
        // SAFETY: a plain system call; the descriptor becomes the socket's own.
        let socket = unsafe {
            <UdpSocket as std::os::fd::FromRawFd>::from_raw_fd(libc::socket(
                libc::AF_INET,
                libc::SOCK_RAW,
                libc::IPPROTO_ICMP,
            ))
        };
        socket.send_to(&message, (to, 0)).unwrap();
    });
}

fn backends_elsewhere_hear_of_the_path(routing: Routing) {
    let mut fabric = Fabric::new(2, routing);
    let pod = fabric.nodes[1].add_pod(2);
    expose(&mut fabric, DSR, &[(pod.v4, 8080)], &[(pod.v6, 8080)]);
    fabric.apply_all();
    route_outside(&fabric);
    listen(&pod);
    let client = fabric.outside.run(|| UdpSocket::bind("172.30.0.1:0").unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.connect(SocketAddr::new(addr(LB_V4).to_ip(), LB_PORT)).unwrap();
    client.send(b"?").unwrap();
    client.recv(&mut [0; 8]).unwrap();
    let port = client.local_addr().unwrap().port();
    let mut quoted = vec![0x45, 0, 0x05, 0xdc, 0, 0, 0x40, 0, 63, 17, 0, 0, 203, 0, 113, 7, 172, 30, 0, 1];
    let sum = support::bytes::checksum(&[&quoted]);
    quoted[10..12].copy_from_slice(&sum.to_be_bytes());
    quoted.extend(LB_PORT.to_be_bytes());
    quoted.extend(port.to_be_bytes());
    quoted.extend([0x05, 0xc8, 0, 0]);
    tell_mtu(&fabric.outside, LB_V4, 1200, &quoted);
    let route = || pod.namespace.command("ip", "route get 172.30.0.1");
    let end = std::time::Instant::now() + PATIENCE;
    while !route().contains("mtu 1200") && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(route().contains("mtu 1200"), "{}", route());
}

#[test]
fn backends_elsewhere_hear_of_the_path_direct() {
    backends_elsewhere_hear_of_the_path(Routing::Direct);
}

#[test]
fn backends_elsewhere_hear_of_the_path_vxlan() {
    backends_elsewhere_hear_of_the_path(VXLAN);
}

/// The other side's next bytes.
fn hear(stream: &mut std::net::TcpStream, wanted: &[u8]) {
    let mut got = vec![0; wanted.len()];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, wanted);
}

fn forget_flows(node: &Node) {
    node.with(|datapath| {
        let flows = datapath.programs().map("flows").unwrap();
        let keys: Vec<Vec<u8>> = flows.keys().collect();
        keys.iter().for_each(|key| flows.delete(key).unwrap());
    });
}

#[test]
fn a_backend_that_speaks_first_is_known_when_its_flow_is_not() {
    let mut fabric = Fabric::new(2, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    expose(&mut fabric, SNAT, &[(pod.v4, 8080)], &[(pod.v6, 8080)]);
    fabric.apply_all();
    route_outside(&fabric);
    let listener = pod.namespace.run(|| TcpListener::bind(("::", 8080)).unwrap());
    let datagrams = pod.namespace.run(|| UdpSocket::bind("[::]:8080").unwrap());
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    for (to, port) in frontends() {
        let mut client = connect(&fabric.outside, to, port, PATIENCE).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let any = if to.to_ip().is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let asker = fabric.outside.run(move || UdpSocket::bind(any).unwrap());
        asker.set_read_timeout(Some(PATIENCE)).unwrap();
        asker.connect(SocketAddr::new(to.to_ip(), port)).unwrap();
        asker.send(b"call me").unwrap();
        let (_, from) = datagrams.recv_from(&mut [0; 16]).unwrap();
        let mut speak = |word: &[u8]| {
            server.write_all(word).unwrap();
            hear(&mut client, word);
            datagrams.send_to(word, from).unwrap();
            let mut got = [0; 16];
            let length = asker.recv(&mut got).unwrap();
            assert_eq!(&got[..length], word, "{to}");
        };
        speak(b"at once");
        forget_flows(&fabric.nodes[0]);
        speak(b"evicted");
        support::age_layout(&fabric.nodes[0]);
        fabric.nodes[0].open();
        fabric.nodes[0].apply();
        assert_eq!(fabric.nodes[0].with(|datapath| datapath.flows()).unwrap(), [], "its tables are new");
        speak(b"upgraded");
    }
}

#[test]
fn connections_to_a_backend_that_is_gone_end_on_the_node() {
    let mut fabric = Fabric::new(2, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    expose(&mut fabric, SNAT, &[(pod.v4, 8080)], &[(pod.v6, 8080)]);
    fabric.apply_all();
    route_outside(&fabric);
    listen(&pod);
    let mut streams: Vec<_> = frontends()
        .into_iter()
        .map(|(to, port)| connect(&fabric.outside, to, port, PATIENCE).unwrap())
        .collect();
    for addr in [pod.v4, pod.v6] {
        fabric.nodes[0].plan.endpoints.remove(&addr);
    }
    fabric.apply_all();
    for stream in &mut streams {
        stream.write_all(b"anybody?").unwrap();
    }
    let gone = || {
        let counters = fabric.nodes[0].with(|datapath| datapath.counters()).unwrap();
        counters.reasons.get(&Reason::NoSuchPod).map_or(0, |count| count.packets)
    };
    let end = std::time::Instant::now() + PATIENCE;
    while gone() < 4 && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(gone() >= 4, "each is dropped with its cause");
}

/// Proves spec.loadBalancerSourceRanges: Only these clients reach the balancer's addresses, from pods too.
#[test]
fn clients_outside_a_services_ranges_are_not_heard() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    listen(&pod);
    expose(&mut fabric, SNAT, &[(pod.v4, 8080)], &[(pod.v6, 8080)]);
    let limit = |fabric: &mut Fabric, ranges: &[&str]| {
        let services = &mut fabric.nodes[0].plan.services;
        let changed: Vec<(Frontend, ServicePlan)> =
            services.iter().map(|(frontend, service)| (*frontend, service.clone())).collect();
        for (frontend, mut service) in changed {
            service.source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
            services.insert(frontend, service);
        }
        fabric.apply_all();
    };
    route_outside(&fabric);
    limit(&mut fabric, &["192.0.2.0/24", "2001:db8::/64"]);
    for (to, port) in frontends() {
        let silence = connect(&fabric.outside, to, port, Duration::from_millis(100));
        assert_eq!(silence.unwrap_err().kind(), ErrorKind::TimedOut, "{to}");
    }
    let counters = fabric.nodes[0].with(|datapath| datapath.counters()).unwrap();
    assert!(counters.reasons[&Reason::SourceRange].packets >= 4);
    limit(&mut fabric, &["172.30.0.0/24", "fd00:172:30::/64"]);
    check_all(&fabric.outside, 1 << 16);
}

/// The backend's own stack says so, in an ICMP error about the packet as it was translated.
fn errors_come_back(routing: Routing) {
    let mut fabric = Fabric::new(2, routing);
    let near = fabric.nodes[0].add_pod(2);
    let far = fabric.nodes[1].add_pod(3);
    let inside = fabric.nodes[0].add_pod(4);
    fabric.apply_all();
    route_outside(&fabric);
    let backends = [(near.v4, near.v6), (far.v4, far.v6), (node_v4(1), node_v6(1))];
    for (v4, v6) in backends {
        expose(&mut fabric, SNAT, &[(v4, 8080)], &[(v6, 8080)]);
        fabric.apply_all();
        for client in [&fabric.outside, &inside.namespace] {
            for (to, port) in frontends() {
                assert!(refuses_datagrams(client, to, port), "to {to}, backend {v4}");
            }
        }
    }
}

#[test]
fn errors_about_translated_datagrams_come_back_direct() {
    errors_come_back(Routing::Direct);
}

#[test]
fn errors_about_translated_datagrams_come_back_vxlan() {
    errors_come_back(VXLAN);
}

/// All of the node's ports towards a backend, as ended connections leave them for a minute.
fn hold_all_ports(node: &Node, backend: Addr) {
    const ENDED: u8 = 1 | 4;
    node.with(move |datapath| {
        let map = datapath.programs().map("nat").unwrap();
        for port in weft_plan::FORWARDING_PORTS[0]..=weft_plan::FORWARDING_PORTS[1] {
            let key = weft_abi::NatKey {
                source: backend.into(),
                destination: node_v4(1).into(),
                source_port: 8080,
                destination_port: port,
                protocol: 6,
                reserved: [0; 3],
            };
            let value = weft_abi::NatValue {
                source: addr(LB_V4).into(),
                destination: addr("192.0.2.77").into(),
                source_port: LB_PORT,
                destination_port: port,
                tcp: ENDED,
                flags: weft_abi::NatFlags::REPLY,
                ..Default::default()
            };
            map.update(bytemuck::bytes_of(&key), bytemuck::bytes_of(&value), libbpf_rs::MapFlags::ANY)
                .unwrap();
        }
    });
}

#[test]
fn short_connections_do_not_run_out_of_ports() {
    let mut fabric = Fabric::new(2, Routing::Direct);
    let pod = fabric.nodes[1].add_pod(2);
    expose(&mut fabric, SNAT, &[(pod.v4, 8080)], &[(pod.v6, 8080)]);
    fabric.apply_all();
    route_outside(&fabric);
    listen(&pod);
    hold_all_ports(&fabric.nodes[0], pod.v4);
    let target = SocketAddr::new(addr(LB_V4).to_ip(), LB_PORT);
    fabric.outside.run(move || {
        for number in 0..1000 {
            let mut stream = std::net::TcpStream::connect_timeout(&target, PATIENCE)
                .unwrap_or_else(|error| panic!("connection {number}: {error}"));
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(b"x").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the other side closes, too");
        }
    });
}
