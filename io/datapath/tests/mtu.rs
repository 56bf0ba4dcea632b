//! Packet sizes: what a pod may send, that nothing cuts its packets in pieces unseen, and that it learns of narrower
//! links beyond the cluster although policy lets nobody speak to it.

mod support;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use support::{Fabric, Namespace, PATIENCE, addr, connect, echo_tcp, serve_tcp, serve_udp};
use weft_model::{Addr, Direction, Routing};
use weft_plan::{PolicySet, PolicySetId, RuleId};

const VXLAN: Routing = Routing::Vxlan { vni: 77, port: 8472 };

/// A socket whose packets are not cut in pieces, by the sender or on the way.
fn unfragmented(namespace: &Namespace, to: Addr, port: u16) -> UdpSocket {
    let any: SocketAddr = if to.to_ip().is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = namespace.run(move || UdpSocket::bind(any).unwrap());
    let (level, option) = match to.to_ip() {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
    };
    let wanted = libc::IP_PMTUDISC_DO;
    // SAFETY: the option is an integer that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const wanted).cast(),
            size_of_val(&wanted) as u32,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    socket.connect(SocketAddr::new(to.to_ip(), port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn number(socket: &impl AsRawFd, level: i32, option: i32) -> i32 {
    let (mut value, mut size) = (0i32, size_of::<i32>() as u32);
    // SAFETY: both outlive the call, and the size is that of the value.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut size)
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    value
}

/// The MTU of the way there, as the kernel knows it.
fn path_mtu(socket: &UdpSocket, to: Addr) -> i32 {
    match to.to_ip() {
        IpAddr::V4(_) => number(socket, libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => number(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU),
    }
}

fn headers(to: Addr) -> usize {
    if to.to_ip().is_ipv4() { 28 } else { 48 }
}

fn fragments_made(namespace: &Namespace) -> u64 {
    let count = |text: &str, name: &str, place: usize| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name) && !line.contains("Frag Creates"));
        line.and_then(|line| line.split_whitespace().nth(place)).and_then(|word| word.parse().ok()).unwrap()
    };
    namespace.run(|| {
        let v4 = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let names = v4.lines().find(|line| line.starts_with("Ip:")).unwrap();
        let place = names.split_whitespace().position(|name| name == "FragCreates").unwrap();
        let values = v4.lines().filter(|line| line.starts_with("Ip:")).nth(1).unwrap();
        let v6 = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
        count(values, "Ip:", place) + count(&v6, "Ip6FragCreates", 1)
    })
}

fn full_size_between_nodes(routing: Routing, mtu: usize) {
    let mut fabric = Fabric::new(2, routing);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[1].add_pod(3);
    fabric.apply_all();
    serve_tcp(&server.namespace, 80);
    serve_udp(&server.namespace, 53);
    assert_eq!(client.link.mtu as usize, mtu);
    let namespaces = [
        &client.namespace,
        &server.namespace,
        &fabric.nodes[0].namespace,
        &fabric.nodes[1].namespace,
        &fabric.outside,
    ];
    let before = namespaces.map(fragments_made);
    for to in [server.v4, server.v6] {
        let socket = unfragmented(&client.namespace, to, 53);
        let largest = mtu - headers(to);
        socket.send(&vec![7; largest]).unwrap();
        assert_eq!(socket.recv(&mut [0; 2000]).unwrap(), largest, "as large as the pod's MTU, to {to}");
        let error = socket.send(&vec![7; largest + 1]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "{to}: {error}");
        let stream = connect(&client.namespace, to, 80, PATIENCE).unwrap();
        let segment = number(&stream, libc::IPPROTO_TCP, libc::TCP_MAXSEG) as usize;
        let (room, options) = (mtu - headers(to) - 12, 12);
        assert!((room - options..=room).contains(&segment), "{segment} bytes per segment to {to}");
        echo_tcp(&client.namespace, to, 80, 4 << 20);
    }
    assert_eq!(namespaces.map(fragments_made), before, "nothing was cut in pieces");
}

#[test]
fn full_size_between_nodes_direct() {
    full_size_between_nodes(Routing::Direct, 1500);
}

#[test]
fn full_size_between_nodes_vxlan() {
    full_size_between_nodes(VXLAN, 1430);
}

const NARROW: usize = 1300;

/// A network behind a router and a narrow link, with servers of TCP and UDP.
fn narrow_beyond(fabric: &Fabric) -> Namespace {
    let beyond = Namespace::new();
    let outside = &fabric.outside;
    outside.ip(&format!("link add narrow type veth peer name eth0 netns {}", beyond.path().display()));
    for (namespace, device, ends) in [
        (outside, "narrow", ["198.51.100.1/24", "2001:db8:51::1/64"]),
        (&beyond, "eth0", ["198.51.100.2/24", "2001:db8:51::2/64"]),
    ] {
        namespace.ip(&format!("link set {device} mtu {NARROW} up"));
        namespace.ip(&format!("addr add {} dev {device}", ends[0]));
        namespace.ip(&format!("addr add {} dev {device} nodad", ends[1]));
    }
    beyond.ip("route add default via 198.51.100.1");
    beyond.ip("route add default via 2001:db8:51::1");
    outside.run(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    });
    serve_tcp(&beyond, 80);
    serve_udp(&beyond, 53);
    beyond
}

#[test]
fn a_narrow_link_outside_is_learnt_of_through_policy() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let _beyond = narrow_beyond(&fabric);
    let node = &mut fabric.nodes[0];
    // Nobody may open anything to the pod: only what belongs to its own flows comes in.
    let nothing = PolicySet {
        direction: Direction::Ingress,
        policies: Vec::new(),
        entries: BTreeMap::new(),
        default_rule: RuleId(9),
    };
    node.plan.policy_sets.insert(PolicySetId(1), nothing);
    for address in [client.v4, client.v6] {
        node.plan.endpoints.get_mut(&address).unwrap().ingress = Some(PolicySetId(1));
    }
    node.apply();
    for to in ["198.51.100.2", "2001:db8:51::2"].map(addr) {
        let socket = unfragmented(&client.namespace, to, 53);
        assert_eq!(path_mtu(&socket, to), 1500, "nothing is known yet of the way to {to}");
        let deadline = Instant::now() + PATIENCE;
        // Each try that is too large is answered by the router; the answer comes a moment later.
        while path_mtu(&socket, to) != NARROW as i32 && Instant::now() < deadline {
            match socket.send(&[7; 1400]) {
                Err(error) if error.raw_os_error() != Some(libc::EMSGSIZE) => panic!("{to}: {error}"),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        assert_eq!(path_mtu(&socket, to), NARROW as i32, "the router's answer did not reach the pod: {to}");
        let largest = NARROW - headers(to);
        match socket.send(&vec![7; largest]) {
            // What the router said of the packets before is told once more.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                socket.send(&vec![7; largest]).unwrap();
            }
            result => assert_eq!(result.unwrap(), largest),
        }
        let got = loop {
            match socket.recv(&mut [0; 2000]) {
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no answer from {to}"),
                result => break result.unwrap(),
            }
        };
        assert_eq!(got, largest, "{to}");
        echo_tcp(&client.namespace, to, 80, 1 << 20);
    }
    let counters = fabric.nodes[0].with(|datapath| datapath.counters()).unwrap();
    assert!(counters.reasons[&weft_model::Reason::Related].packets >= 2, "{:?}", counters.reasons);
}
