//! Pods' traffic to outside the cluster: real sockets, the node's address, and no part of netfilter.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use libbpf_rs::{MapCore, MapFlags};
use support::{
    Fabric, Namespace, Node, PATIENCE, addr, connect, echo_tcp, echo_udp, node_v4, node_v6, ping, serve_tcp,
    serve_udp_at,
};
use weft_abi::{NatFlags, NatKey, NatValue};
use weft_model::{Addr, Reason, Routing};
use weft_plan::FORWARDING_PORTS;

const VXLAN: Routing = Routing::Vxlan { vni: 79, port: 8472 };
const OUTSIDE: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

fn own(outside: &str) -> Addr {
    if outside.contains(':') { node_v6(1) } else { node_v4(1) }
}

fn serve_outside(fabric: &Fabric) {
    serve_tcp(&fabric.outside, 80);
    for local in ["192.0.2.1:53", "[2001:db8::1]:53"] {
        serve_udp_at(&fabric.outside, local);
    }
}

/// A datagram socket of the namespace, bound to `port`.
fn bound(namespace: &Namespace, to: &str, port: u16) -> UdpSocket {
    let any = if to.contains(':') { "::" } else { "0.0.0.0" }.parse::<std::net::IpAddr>().unwrap();
    let socket = namespace.run(move || UdpSocket::bind((any, port)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn at(to: &str, port: u16) -> SocketAddr {
    SocketAddr::new(addr(to).to_ip(), port)
}

fn everything_reaches_outside(routing: Routing) {
    let mut fabric = Fabric::new(1, routing);
    let pod = fabric.nodes[0].add_pod(2);
    fabric.apply_all();
    serve_outside(&fabric);
    // Answers are as large as the uplink carries, and learn of the tunnel's size only by being lost.
    let large = if routing == Routing::Direct { 6000 } else { 1300 };
    let check = |bytes: usize| {
        for to in OUTSIDE {
            echo_tcp(&pod.namespace, addr(to), 80, bytes);
            assert!(echo_udp(&pod.namespace, addr(to), 53, 100, PATIENCE), "datagram to {to}");
            assert!(echo_udp(&pod.namespace, addr(to), 53, large, PATIENCE), "{large} bytes to {to}");
            assert!(ping(&pod.namespace, addr(to)), "echo of {to}");
            let closed = bound(&pod.namespace, to, 0);
            closed.connect(at(to, 9)).unwrap();
            closed.send(b"anybody?").unwrap();
            assert_eq!(closed.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
        }
    };
    check(4 << 20);
    fabric.real_checksums();
    check(1 << 18);
    assert!(!fabric.nodes[0].namespace.command("nft", "list ruleset").contains("weft"));
}

#[test]
fn everything_reaches_outside_direct() {
    everything_reaches_outside(Routing::Direct);
}

#[test]
fn everything_reaches_outside_vxlan() {
    everything_reaches_outside(VXLAN);
}

#[test]
fn pods_with_the_same_port_are_told_apart_and_a_port_of_the_range_is_kept() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pods = [2, 3, 4].map(|host| fabric.nodes[0].add_pod(host));
    fabric.apply_all();
    for (number, to) in OUTSIDE.into_iter().enumerate() {
        let port = 700 + number as u16;
        let there = to.parse::<std::net::IpAddr>().unwrap();
        let server = fabric.outside.run(move || UdpSocket::bind((there, port)).unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        for from in [50_000, 40_000] {
            let sockets = [0, 1, 2].map(|pod| bound(&pods[pod].namespace, to, from));
            let mut seen = Vec::new();
            for (number, socket) in sockets.iter().enumerate() {
                socket.connect(at(to, port)).unwrap();
                socket.send(&[number as u8]).unwrap();
                let (_, peer) = server.recv_from(&mut [0; 8]).unwrap();
                assert_eq!(Addr::from(peer.ip()), own(to));
                assert!((FORWARDING_PORTS[0]..=FORWARDING_PORTS[1]).contains(&peer.port()));
                seen.push(peer);
            }
            assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2], "{seen:?}");
            assert_eq!(seen[0].port() == from, from == 50_000, "kept where it may be");
            for (number, peer) in seen.iter().enumerate().rev() {
                server.send_to(&[number as u8], peer).unwrap();
            }
            for (number, socket) in sockets.iter().enumerate() {
                let mut got = [9; 8];
                assert_eq!((socket.recv(&mut got).unwrap(), got[0]), (1, number as u8));
            }
        }
    }
}

/// Takes all entries out of a table that `which` says.
fn lose(node: &Node, table: &'static str, which: fn(&[u8]) -> bool) {
    node.with(move |datapath| {
        let map = datapath.programs().map(table).unwrap();
        let entries: Vec<Vec<u8>> = map.keys().collect();
        let lost = entries.into_iter().filter(|key| which(&map.lookup(key, MapFlags::ANY).unwrap().unwrap()));
        lost.for_each(|key| map.delete(&key).unwrap());
    });
}

fn is_reply(value: &[u8]) -> bool {
    bytemuck::pod_read_unaligned::<NatValue>(value).flags & NatFlags::REPLY != 0
}

fn is_request(value: &[u8]) -> bool {
    !is_reply(value)
}

fn exchange(from: &mut TcpStream, to: &mut TcpStream, word: &[u8]) {
    from.write_all(word).unwrap();
    let mut got = vec![0; word.len()];
    to.read_exact(&mut got).unwrap_or_else(|error| panic!("{}: {error}", String::from_utf8_lossy(word)));
    assert_eq!(got, word);
}

#[test]
fn connections_outlive_agents_and_lost_entries() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    fabric.apply_all();
    let node = &fabric.nodes[0];
    let listener = fabric.outside.run(|| TcpListener::bind(("::", 80)).unwrap());
    for to in OUTSIDE {
        let mut client = connect(&pod.namespace, addr(to), 80, PATIENCE).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        // Loading programs is work, and so may be what else the machine does.
        for side in [&client, &server] {
            side.set_read_timeout(Some(6 * PATIENCE)).unwrap();
        }
        exchange(&mut client, &mut server, b"at first");
        node.open();
        exchange(&mut server, &mut client, b"a new agent");
        node.apply();
        exchange(&mut client, &mut server, b"and its plan");
        lose(node, "flows", |_| true);
        exchange(&mut server, &mut client, b"no flow, from outside");
        lose(node, "flows", |_| true);
        exchange(&mut client, &mut server, b"no flow, from the pod");
        support::age_layout(node);
        node.open();
        node.apply();
        exchange(&mut server, &mut client, b"other tables");
    }
}

/// One direction of a connection says all of the other. Datagrams, because nobody answers them unasked.
#[test]
fn a_lost_direction_is_mended() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    fabric.apply_all();
    let node = &fabric.nodes[0];
    for to in OUTSIDE {
        let there = to.parse::<std::net::IpAddr>().unwrap();
        let server = fabric.outside.run(move || UdpSocket::bind((there, 54)).unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let client = bound(&pod.namespace, to, 0);
        client.connect(at(to, 54)).unwrap();
        let ask = || {
            client.send(b"?").unwrap();
            server.recv_from(&mut [0; 8]).unwrap().1
        };
        let answer = |peer| {
            server.send_to(b"!", peer).unwrap();
            assert_eq!(client.recv(&mut [0; 8]).unwrap(), 1, "{to}");
        };
        let peer = ask();
        let directions: [fn(&[u8]) -> bool; 2] = [is_reply, is_request];
        for which in directions {
            // A tick of the kernel's clock apart: what is left is looked at once in each.
            std::thread::sleep(Duration::from_millis(20));
            lose(node, "nat", which);
            match which(bytemuck::bytes_of(&NatValue::default())) {
                true => answer(peer),
                false => assert_eq!(ask(), peer),
            }
            answer(peer);
            assert_eq!(ask(), peer);
        }
    }
}

#[test]
fn a_pods_word_that_nobody_listens_reaches_outside() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    fabric.apply_all();
    for to in OUTSIDE {
        let there = to.parse::<std::net::IpAddr>().unwrap();
        let server = fabric.outside.run(move || UdpSocket::bind((there, 54)).unwrap());
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let client = bound(&pod.namespace, to, 0);
        client.send_to(b"?", at(to, 54)).unwrap();
        let (_, peer) = server.recv_from(&mut [0; 8]).unwrap();
        drop(client);
        server.connect(peer).unwrap();
        server.send(b"!").unwrap();
        assert_eq!(server.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
    }
}

#[test]
fn silent_connections_are_collected_both_directions_together() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    fabric.apply_all();
    serve_outside(&fabric);
    let node = &fabric.nodes[0];
    for to in OUTSIDE {
        assert!(echo_udp(&pod.namespace, addr(to), 53, 100, PATIENCE));
        assert!(ping(&pod.namespace, addr(to)));
    }
    let entries = || node.with(|datapath| datapath.connections()).unwrap();
    node.with(|datapath| datapath.collect_expired()).unwrap();
    assert_eq!(entries(), 8, "nothing is old yet");
    let age = |which: fn(&[u8]) -> bool| {
        node.with(move |datapath| {
            let map = datapath.programs().map("nat").unwrap();
            for key in map.keys().collect::<Vec<_>>() {
                let value = map.lookup(&key, MapFlags::ANY).unwrap().unwrap();
                let mut old: NatValue = bytemuck::pod_read_unaligned(&value);
                old.last_seen = old.last_seen.saturating_sub(if which(&value) { 125_000_000_000 } else { 0 });
                map.update(&key, bytemuck::bytes_of(&old), MapFlags::ANY).unwrap();
            }
            datapath.collect_expired().unwrap();
        });
    };
    age(is_reply);
    assert_eq!(entries(), 8, "one direction is not silent");
    age(is_request);
    assert_eq!(entries(), 0);
}

/// All ports towards one address and port outside, as they would be held by another pod.
fn hold_all_ports(node: &Node, tcp: u8, age: u64) {
    node.with(move |datapath| {
        let map = datapath.programs().map("nat").unwrap();
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
        let now = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
        let (server, other): (Addr, Addr) = (addr(OUTSIDE[0]), addr("10.244.1.77"));
        for port in FORWARDING_PORTS[0]..=FORWARDING_PORTS[1] {
            let key = NatKey {
                source: server.into(),
                destination: node_v4(1).into(),
                source_port: 80,
                destination_port: port,
                protocol: 6,
                reserved: [0; 3],
            };
            let value = NatValue {
                created: now,
                last_seen: now - age,
                source: server.into(),
                destination: other.into(),
                source_port: 80,
                destination_port: 1,
                tcp,
                flags: NatFlags::MASQUERADED | NatFlags::REPLY,
                ..Default::default()
            };
            map.update(bytemuck::bytes_of(&key), bytemuck::bytes_of(&value), MapFlags::ANY).unwrap();
        }
    });
}

#[test]
fn without_a_free_port_it_is_said_and_what_is_over_serves_again() {
    const ESTABLISHED: u8 = 1;
    const RESET: u8 = 8;
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    fabric.apply_all();
    serve_outside(&fabric);
    let node = &fabric.nodes[0];
    let refused = || {
        let counters = node.with(|datapath| datapath.counters()).unwrap();
        counters.reasons.get(&Reason::NoFreePort).map_or(0, |count| count.packets)
    };
    hold_all_ports(node, ESTABLISHED, 0);
    let silence = connect(&pod.namespace, addr(OUTSIDE[0]), 80, Duration::from_millis(200));
    assert_eq!(silence.unwrap_err().kind(), ErrorKind::TimedOut);
    let end = Instant::now() + PATIENCE;
    while refused() == 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(refused() > 0);
    echo_tcp(&pod.namespace, addr(OUTSIDE[1]), 80, 100);
    hold_all_ports(node, ESTABLISHED | RESET, 0);
    echo_tcp(&pod.namespace, addr(OUTSIDE[0]), 80, 100);
    // Half open, and silent.
    hold_all_ports(node, 0, 60_000_000_000);
    echo_tcp(&pod.namespace, addr(OUTSIDE[0]), 80, 100);
}
