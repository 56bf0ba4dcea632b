//! VXLAN without the stack: outer headers as the standards have them, written and taken off by the programs; what is unusual is left
//! to the tunnel device, untouched. Judgement of the packets inside is `packets`' affair.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use libbpf_rs::libbpf_sys;
use support::{
    Fabric, Node, Offload, PATIENCE, Pod, bytes, echo_tcp, node_v4, offload_off, serve_tcp, serve_udp_at,
};
use weft_model::{Addr, Family, Routing};

const VNI: u32 = 77;
const VXLAN: Routing = Routing::Vxlan { vni: VNI, port: 8472 };
const TC_REDIRECT: u32 = 7;
const TC_NEXT: u32 = u32::MAX;
const ETHERNET: usize = 14;
/// Ethernet, IPv4, UDP and VXLAN.
const OUTER: usize = 50;
const CLIENT_PORT: u16 = 4000;
const SERVER_PORT: u16 = 53;

struct Pair {
    fabric: Fabric,
    client: Pod,
    server: Pod,
}

fn pair() -> Pair {
    let mut fabric = Fabric::new(2, VXLAN);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[1].add_pod(3);
    fabric.apply_all();
    Pair { fabric, client, server }
}

impl Pair {
    /// Datagrams there and back, so that both nodes know the flow.
    fn talk(&self, family: Family) {
        let (from, to) = self.addresses(family);
        serve_udp_at(&self.server.namespace, &SocketAddr::new(to.to_ip(), SERVER_PORT).to_string());
        let own = SocketAddr::new(from.to_ip(), CLIENT_PORT);
        let socket = self.client.namespace.run(move || UdpSocket::bind(own).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.send_to(&[1], SocketAddr::new(to.to_ip(), SERVER_PORT)).unwrap();
        assert_eq!(socket.recv(&mut [0; 10]).unwrap(), 1);
    }

    fn addresses(&self, family: Family) -> (Addr, Addr) {
        match family {
            Family::V4 => (self.client.v4, self.server.v4),
            Family::V6 => (self.client.v6, self.server.v6),
        }
    }

    /// What the client's stack would send on that flow.
    fn datagram(&self, family: Family, marks: u8) -> Vec<u8> {
        let (from, to) = self.addresses(family);
        let link = &self.client.link;
        let mut frame = [link.host_mac.0, link.pod_mac.0].concat();
        if family == Family::V4 {
            frame.extend([0x08, 0x00, 0x45, marks, 0, 40, 0, 7, 0x40, 0, 64, 17, 0, 0]);
            frame.extend([&from.octets()[12..], &to.octets()[12..]].concat());
        } else {
            frame.extend([0x86, 0xdd, 0x60, marks << 4, 0, 0, 0, 20, 17, 64]);
            frame.extend([from.octets(), to.octets()].concat());
        }
        frame.extend([CLIENT_PORT.to_be_bytes(), SERVER_PORT.to_be_bytes(), [0, 20], [0, 0]].concat());
        frame.extend(*b"twelve bytes");
        bytes::mend(&mut frame);
        frame
    }

    /// The client's node sends the frame until it knows the next hop: the first of them goes through the device.
    fn encapsulated(&self, frame: &[u8]) -> Vec<u8> {
        let device = self.client.link.ifindex;
        for _ in 0..100 {
            let (action, out) = run(&self.fabric.nodes[0], "from_pod", Arrival::Pod(device), frame);
            assert_eq!(action, TC_REDIRECT);
            if out.len() != frame.len() {
                return out;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("the programs never wrote the outer headers themselves");
    }

    fn received(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        run(&self.fabric.nodes[1], "from_net", Arrival::Uplink, frame)
    }
}

#[derive(Clone, Copy)]
enum Arrival {
    Pod(u32),
    Uplink,
}

/// BPF_PROG_TEST_RUN on the node: what the program returned and made of the bytes.
fn run(node: &Node, program: &'static str, arrival: Arrival, frame: &[u8]) -> (u32, Vec<u8>) {
    let frame = frame.to_vec();
    node.with(move |datapath| {
        let ifindex = match arrival {
            Arrival::Pod(ifindex) => ifindex,
            // SAFETY: a valid C string.
            Arrival::Uplink => unsafe { libc::if_nametoindex(c"eth0".as_ptr()) },
        };
        // SAFETY: all-zero is a valid value of this plain C structure.
        let mut options: libbpf_sys::bpf_test_run_opts = unsafe { std::mem::zeroed() };
        let mut context = [0u32; 11];
        context[10] = ifindex;
        let mut out = vec![0; frame.len() + 256];
        options.sz = size_of_val(&options) as _;
        options.data_in = frame.as_ptr().cast();
        options.data_size_in = frame.len() as u32;
        options.data_out = out.as_mut_ptr().cast();
        options.data_size_out = out.len() as u32;
        options.ctx_in = (&raw const context).cast();
        options.ctx_size_in = size_of_val(&context) as u32;
        let program = datapath.programs().program(program).unwrap();
        // SAFETY: every pointer in the options outlives the call and is as large as its size says.
        let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut options) };
        assert_eq!(result, 0);
        out.truncate(options.data_size_out as usize);
        (options.retval, out)
    })
}

fn link_address(node: &Node) -> [u8; 6] {
    let text = node.namespace.command("ip", "-o link show dev eth0");
    let mac = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    let octets: Vec<u8> = mac.split(':').map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect();
    octets.try_into().unwrap()
}

/// A router took one hop.
fn one_hop_on(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let hop_limit = if bytes::is_v6(&frame) { ETHERNET + 7 } else { ETHERNET + 8 };
    frame[hop_limit] -= 1;
    bytes::mend(&mut frame);
    frame
}

fn mend_outer(frame: &mut [u8]) {
    frame[24..26].copy_from_slice(&[0, 0]);
    let sum = bytes::checksum(&[&frame[ETHERNET..ETHERNET + 20]]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn outer_headers_are_those_of_the_standards() {
    let pair = pair();
    let nodes = &pair.fabric.nodes;
    let (own, other) = (link_address(&nodes[0]), link_address(&nodes[1]));
    for family in [Family::V4, Family::V6] {
        pair.talk(family);
        for (marks, shown) in [(0, 0), (1, 1), (2, 2), (3, 2)] {
            let frame = pair.datagram(family, marks);
            let out = pair.encapsulated(&frame);
            let (outer, inner) = out.split_at(OUTER);
            assert_eq!(inner, one_hop_on(&frame), "what is inside");
            assert_eq!(outer[..ETHERNET], [&other[..], &own, &[0x08, 0x00]].concat());
            let length = (OUTER - ETHERNET + inner.len()) as u16;
            assert_eq!(outer[14..16], [0x45, shown], "RFC 6040: marks {marks}");
            assert_eq!(outer[16..18], length.to_be_bytes());
            assert_eq!(
                outer[20..24],
                [0, 0, 64, 17],
                "may be cut in pieces, as from the device; hop limit; UDP"
            );
            assert_eq!(bytes::checksum(&[&outer[ETHERNET..34]]), 0);
            assert_eq!(outer[26..34], [&node_v4(1).octets()[12..], &node_v4(2).octets()[12..]].concat());
            assert!(outer[34] >= 0xc0, "RFC 7348, 5: a port of the dynamic range");
            assert_eq!(outer[36..38], 8472u16.to_be_bytes());
            assert_eq!(outer[38..40], (length - 20).to_be_bytes());
            assert_eq!(outer[40..42], [0, 0], "no checksum over IPv4");
            assert_eq!(outer[42..50], [8, 0, 0, 0, 0, 0, VNI as u8, 0]);
            let again = pair.encapsulated(&frame);
            assert_eq!(again[34..36], outer[34..36], "one port for one flow");
            assert_ne!(again[18..20], outer[18..20], "each packet has its own identification");
        }
    }
}

#[test]
fn what_is_usual_is_taken_out_and_all_else_left_to_the_device() {
    let pair = pair();
    for family in [Family::V4, Family::V6] {
        pair.talk(family);
        let sent = pair.encapsulated(&pair.datagram(family, 2));
        let (action, out) = pair.received(&sent);
        let link = &pair.server.link;
        let mut wanted = one_hop_on(&sent[OUTER..]);
        wanted[..12].copy_from_slice(&[link.pod_mac.0, link.host_mac.0].concat());
        assert_eq!((action, out), (TC_REDIRECT, wanted), "{family:?}");
        for (what, change) in unusual(family) {
            let mut frame = sent.clone();
            change(&mut frame);
            assert_eq!(pair.received(&frame), (TC_NEXT, frame), "{family:?}: {what}");
        }
    }
}

type Change = fn(&mut Vec<u8>);

fn unusual(family: Family) -> Vec<(&'static str, Change)> {
    let mut changes: Vec<(&str, Change)> = vec![
        ("a wrong header checksum", |frame| frame[24] ^= 1),
        ("congestion on the way", |frame| {
            frame[15] = 3;
            mend_outer(frame);
        }),
        ("from somebody else's tunnel", |frame| {
            frame[29] ^= 1;
            mend_outer(frame);
        }),
        ("to another machine", |frame| {
            frame[33] ^= 0x40;
            mend_outer(frame);
        }),
        ("a piece", |frame| {
            frame[20] = 0x20;
            mend_outer(frame);
        }),
        ("a UDP checksum", |frame| frame[41] = 1),
        ("another UDP length", |frame| frame[39] ^= 1),
        ("another network", |frame| frame[48] ^= 1),
        ("flags", |frame| frame[42] = 0x0c),
        ("reserved bits", |frame| frame[49] = 1),
        ("not IP inside", |frame| frame[62..64].copy_from_slice(&[0x08, 0x06])),
        ("cut short", |frame| frame.truncate(OUTER + ETHERNET + 10)),
    ];
    let of_inner: [(&str, Change); 2] = match family {
        Family::V4 => [
            ("at its last hop", |frame| frame[OUTER + ETHERNET + 8] = 1),
            ("a flow that nobody knows", |frame| frame[OUTER + ETHERNET + 20] ^= 1),
        ],
        Family::V6 => [
            ("at its last hop", |frame| frame[OUTER + ETHERNET + 7] = 1),
            ("a flow that nobody knows", |frame| frame[OUTER + ETHERNET + 40] ^= 1),
        ],
    };
    changes.extend(of_inner);
    changes
}

/// Packets that the tunnel device has sent.
fn sent_by_device(node: &Node) -> u64 {
    node.namespace.run(|| {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let line = text.lines().find(|line| line.trim_start().starts_with("weft_vx:")).unwrap();
        line.split(':').nth(1).unwrap().split_whitespace().nth(9).unwrap().parse().unwrap()
    })
}

fn bulk(pair: &Pair) {
    for to in [pair.server.v4, pair.server.v6] {
        echo_tcp(&pair.client.namespace, to, 80, 2 << 20);
    }
}

#[test]
fn bulk_passes_whoever_makes_the_segments() {
    let pair = pair();
    serve_tcp(&pair.server.namespace, 80);
    bulk(&pair);
    let before = sent_by_device(&pair.fabric.nodes[0]);
    // First nobody makes segments, for both ends are on one machine; then the node does as it sends; then with checksums, too.
    let steps: [&[Offload]; 3] =
        [&[], &[Offload::TcpSegments, Offload::Segments], &[Offload::Checksums, Offload::ScatterGather]];
    for offloads in steps {
        for (node, offload) in
            pair.fabric.nodes.iter().flat_map(|node| offloads.iter().map(move |offload| (node, *offload)))
        {
            node.namespace.run(move || offload_off("eth0", offload));
        }
        bulk(&pair);
    }
    let by_device = sent_by_device(&pair.fabric.nodes[0]) - before;
    assert!(by_device < 500, "{by_device} packets of more than a thousand went through the device");
}
