//! The programs against `weft_decide` on generated packets: verdict, reason, rules, action, rewritten bytes and the
//! flow table, over sequences with replies and with a change of policy in the middle.

mod support;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, RingBuffer, RingBufferBuilder, libbpf_sys};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config as RunnerConfig, RngAlgorithm, TestRng, TestRunner};
use support::{Namespace, Worker, bytes, frontends};
use weft_abi::{
    Config, Count, Event, EventKind, FlowKey, FlowValue, NatFlags, NatKey, NatValue, RawEvent, RoutingNumber,
};
use weft_datapath::{KernelTables, PodLink, Programs};
use weft_decide::{
    Action, Arrival, Epoch, MemoryFlows, Moment, NatEntry, NatKind, Outcome, Packet, Side, Time,
};
use weft_model::testing::{Cluster, clusters, frames_for};
use weft_model::{Addr, Family, NodeName, PodKey, Reason, Routing, Verdict};
use weft_plan::{FORWARDING_PORTS, NodePlan};

const DEVICES: usize = 12;
const TC_REDIRECT: u32 = 7;
const TC_DROP: u32 = 2;
const TC_NEXT: u32 = u32::MAX;
const ETHERNET: usize = 14;
const UPLINK_MAC: [u8; 6] = [2, 0xff, 0, 0, 0, 1];
const MASQUERADED_REPLY: u8 = NatFlags::MASQUERADED | NatFlags::REPLY;

/// Which program a packet goes through, and by whose device.
#[derive(Clone, Debug, PartialEq)]
enum Entry {
    FromPod(PodKey),
    ToPod(PodKey),
    FromNet(Arrival),
    ToNet,
}

#[derive(Clone, Debug)]
struct Step {
    frame: Vec<u8>,
    /// Instead of `frame`: one that belongs to an earlier one's flow.
    follows: Option<Follows>,
    /// Where the packet does not come from where its addresses say.
    stray: Option<(u8, prop::sample::Index)>,
    /// To one of the frontends.
    aim: Option<prop::sample::Index>,
    /// Before it the kernel's table has lost a flow.
    loses: Option<prop::sample::Index>,
}

#[derive(Clone, Debug)]
struct Follows {
    earlier: prop::sample::Index,
    /// From the other side, or from the same one again.
    side: FollowingSide,
    /// Of TCP.
    flags: u8,
    /// Instead of TCP's own, in words: too few, or more than there are.
    header_words: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum FollowingSide {
    Same,
    Other,
    /// A router on the way, by an ICMP error.
    Between,
}

fn follows() -> impl Strategy<Value = Follows> {
    let side = prop_oneof![
        4 => Just(FollowingSide::Other),
        2 => Just(FollowingSide::Same),
        1 => Just(FollowingSide::Between),
    ];
    let flags = prop::sample::select(&[0x02u8, 0x12, 0x10, 0x18, 0x11, 0x04][..]);
    let header_words = prop::option::weighted(0.1, prop::sample::select(&[0u8, 4, 15][..]));
    (any::<prop::sample::Index>(), side, flags, header_words)
        .prop_map(|(earlier, side, flags, header_words)| Follows { earlier, side, flags, header_words })
}

#[derive(Clone, Debug)]
struct Case {
    cluster: Cluster,
    before: Vec<Step>,
    after: Vec<Step>,
    kept_policies: usize,
}

fn steps(cluster: &Cluster) -> impl Strategy<Value = Vec<Step>> + use<> {
    let follows = prop::option::weighted(0.5, follows());
    let stray = prop::option::weighted(0.1, (0u8..4, any::<prop::sample::Index>()));
    let aim = prop::option::weighted(0.9, any::<prop::sample::Index>());
    let loses = prop::option::weighted(0.2, any::<prop::sample::Index>());
    let step = (frames_for(cluster), follows, stray, aim, loses)
        .prop_map(|(frame, follows, stray, aim, loses)| Step { frame, follows, stray, aim, loses });
    vec(step, 20..60)
}

fn cases() -> impl Strategy<Value = Case> {
    clusters().prop_flat_map(|cluster| {
        let policies = cluster.policies.len();
        (Just(cluster.clone()), steps(&cluster), steps(&cluster), 0..=policies).prop_map(
            |(cluster, before, after, kept_policies)| Case { cluster, before, after, kept_policies },
        )
    })
}

/// A later frame of an earlier one's flow, where that has no IP options or extension headers.
fn follow(earlier: &[u8], follows: &Follows) -> Vec<u8> {
    let mut frame = earlier.to_vec();
    let (addresses, size, transport, protocol) = match earlier.get(12..ETHERNET) {
        Some([0x08, 0x00]) if earlier.len() >= 34 && earlier[14] == 0x45 => (26, 4, 34, earlier[23]),
        Some([0x86, 0xdd]) if earlier.len() >= 54 => (22, 16, 54, earlier[20]),
        _ => return frame,
    };
    if follows.side == FollowingSide::Between
        && Packet::parse(earlier).is_ok_and(|packet| packet.body.is_ok())
    {
        return bytes::too_large(earlier);
    }
    let is_later = size == 4 && (earlier[20] & 0x1f != 0 || earlier[21] != 0);
    let has_transport = !is_later && earlier.len() >= transport + 20;
    if has_transport && protocol == 6 {
        frame[transport + 13] = follows.flags;
        if let Some(words) = follows.header_words {
            frame[transport + 12] = words << 4;
        }
    }
    if follows.side == FollowingSide::Same {
        return frame;
    }
    swap(&mut frame, addresses, size);
    match protocol {
        6 | 17 | 132 if has_transport => swap(&mut frame, transport, 2),
        1 if has_transport && earlier[transport] == 8 => frame[transport] = 0,
        58 if has_transport && earlier[transport] == 128 => frame[transport] = 129,
        _ => {}
    }
    frame
}

/// The two neighbours of `size` bytes at `at` change places.
fn swap(frame: &mut [u8], at: usize, size: usize) {
    let (first, second) = frame[at..at + 2 * size].split_at_mut(size);
    first.swap_with_slice(second);
}

/// Programs loaded for one routing mode in a namespace with a device for each pod.
struct Kernel {
    programs: Programs,
    tables: RefCell<KernelTables>,
    devices: Vec<u32>,
    uplink: u32,
    tunnel: u32,
    epoch: Cell<u32>,
    counters: MapHandle,
    counted: RefCell<BTreeMap<Reason, u64>>,
    ring: RingBuffer<'static>,
    events: Rc<RefCell<Vec<Event>>>,
}

impl Kernel {
    fn load(routing: Routing, bpffs: &std::path::Path) -> Self {
        let index = |name: &str| {
            let text = std::ffi::CString::new(name).unwrap();
            // SAFETY: a valid C string.
            let index = unsafe { libc::if_nametoindex(text.as_ptr()) };
            assert_ne!(index, 0, "{name}");
            index
        };
        let (uplink, tunnel) = (index("uplink"), index("tunnel"));
        let (number, vni) = match routing {
            Routing::Direct => (RoutingNumber::DIRECT, 0),
            Routing::Vxlan { vni, .. } => (RoutingNumber::VXLAN, vni),
        };
        let config = Config {
            uplink_ifindex: uplink,
            tunnel_ifindex: if vni == 0 { 0 } else { tunnel },
            routing: number,
            vni,
            denied_events: u32::MAX,
            icmp_errors: u32::MAX,
            nat_ports: FORWARDING_PORTS,
            tunnel_port: match routing {
                Routing::Direct => 0,
                Routing::Vxlan { port, .. } => port.into(),
            },
            ..Default::default()
        };
        std::fs::create_dir(bpffs).unwrap();
        let programs = Programs::load(bpffs, &config, 1 << 14).unwrap_or_else(|error| panic!("{error}"));
        let counters = programs.map("counters").unwrap();
        let events = Rc::new(RefCell::new(Vec::new()));
        let ring = read_into(&programs.map("events").unwrap(), &events);
        let devices = (0..DEVICES).map(|number| index(&format!("pod{number}"))).collect();
        Self {
            programs,
            tables: RefCell::default(),
            devices,
            uplink,
            tunnel,
            epoch: Cell::new(0),
            counters,
            counted: RefCell::default(),
            ring,
            events,
        }
    }

    fn link(&self, number: usize, device: &str) -> PodLink {
        PodLink {
            container: String::new(),
            device: device.to_owned(),
            ifindex: self.devices[number],
            host_mac: weft_abi::Mac([2, 1, 0, 0, 0, number as u8]),
            pod_mac: weft_abi::Mac([2, 2, 0, 0, 0, number as u8]),
            addresses: Default::default(),
            mtu: 1500,
            netns_cookie: 0,
        }
    }

    /// Fills the maps as `apply` would; the order does not matter while no packet passes.
    fn hold(&self, plan: &NodePlan, links: &[PodLink]) {
        let wanted = KernelTables::of_plan(plan, links);
        let held = self.tables.replace(wanted.clone());
        self.replace("endpoints", &held.endpoints, &wanted.endpoints);
        self.replace("classes", &held.classes, &wanted.classes);
        self.replace("class_blocks", &held.class_blocks, &wanted.class_blocks);
        self.replace("policies", &held.policies, &wanted.policies);
        self.replace("routes", &held.routes, &wanted.routes);
        self.replace("services", &held.services, &wanted.services);
        self.replace("backends", &held.backends, &wanted.backends);
        self.replace("members", &held.members, &wanted.members);
        self.replace("source_ranges", &held.source_ranges, &wanted.source_ranges);
        self.replace_hashes(&wanted);
        self.put_node_addresses(plan);
        self.epoch.set(self.epoch.get() + 1);
        let map = self.programs.map("epoch").unwrap();
        map.update(&0u32.to_ne_bytes(), &self.epoch.get().to_ne_bytes(), MapFlags::ANY).unwrap();
    }

    fn replace<K, V>(&self, name: &str, held: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>)
    where
        K: bytemuck::Pod + Ord,
        V: bytemuck::Pod,
    {
        let map = self.programs.map(name).unwrap();
        for key in held.keys().filter(|key| !wanted.contains_key(key)) {
            map.delete(bytemuck::bytes_of(key)).unwrap();
        }
        for (key, value) in wanted {
            map.update(bytemuck::bytes_of(key), bytemuck::bytes_of(value), MapFlags::ANY).unwrap();
        }
    }

    /// All of them at once: each change of such a table waits for the programs that run.
    fn replace_hashes(&self, wanted: &KernelTables) {
        if wanted.maglev.is_empty() {
            return;
        }
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            map_flags: libbpf_sys::BPF_F_INNER_MAP,
            ..Default::default()
        };
        let lists: Vec<u32> = wanted.maglev.keys().copied().collect();
        let tables = wanted.maglev.values().map(|words| {
            let map = MapHandle::create(MapType::Array, Some("hashes"), 4, 8, words.len() as u32, &options)
                .unwrap();
            for (slot, word) in words.iter().enumerate() {
                map.update(&(slot as u32).to_ne_bytes(), &word.to_ne_bytes(), MapFlags::ANY).unwrap();
            }
            map
        });
        let tables: Vec<MapHandle> = tables.collect();
        let fds: Vec<i32> = tables.iter().map(|table| table.as_fd().as_raw_fd()).collect();
        let map = self.programs.map("maglev").unwrap();
        let (keys, values) = (bytemuck::cast_slice(&lists), bytemuck::cast_slice(&fds));
        map.update_batch(keys, values, lists.len() as u32, MapFlags::ANY, MapFlags::ANY).unwrap();
    }

    fn put_node_addresses(&self, plan: &NodePlan) {
        let map = self.programs.map("node_addresses").unwrap();
        for (slot, family) in [(0u32, Family::V4), (1, Family::V6)] {
            let own = plan.settings.node_addresses.iter().find(|addr| addr.family() == family);
            let octets = own.map(|addr| addr.octets()).unwrap_or_default();
            map.update(&slot.to_ne_bytes(), &octets, MapFlags::ANY).unwrap();
        }
    }

    fn connections(&self) -> Vec<String> {
        let map = self.programs.map("nat").unwrap();
        let entries = map.keys().map(|key| {
            let value = map.lookup(&key, MapFlags::ANY).unwrap().unwrap();
            describe_connection(bytemuck::pod_read_unaligned(&key), bytemuck::pod_read_unaligned(&value))
        });
        let mut entries: Vec<String> = entries.collect();
        entries.sort();
        entries
    }

    fn forget_flows(&self) {
        for name in ["flows", "fragments", "nat", "affinities"] {
            let map = self.programs.map(name).unwrap();
            let keys: Vec<Vec<u8>> = map.keys().collect();
            for key in keys {
                map.delete(&key).unwrap();
            }
        }
    }

    fn flows(&self) -> BTreeMap<FlowKey, FlowValue> {
        let map = self.programs.map("flows").unwrap();
        map.keys()
            .map(|key| {
                let value = map.lookup(&key, MapFlags::ANY).unwrap().unwrap();
                (bytemuck::pod_read_unaligned(&key), bytemuck::pod_read_unaligned(&value))
            })
            .collect()
    }

    /// The reasons that were counted since the last time.
    fn newly_counted(&self) -> Vec<Reason> {
        let total = |reason: &Reason| {
            let slot = u32::from(*reason as u8).to_ne_bytes();
            let values = self.counters.lookup_percpu(&slot, MapFlags::ANY).unwrap().unwrap();
            values.iter().map(|value| bytemuck::pod_read_unaligned::<Count>(value).packets).sum::<u64>()
        };
        let now: BTreeMap<Reason, u64> = Reason::ALL.iter().map(|reason| (*reason, total(reason))).collect();
        let before = self.counted.replace(now.clone());
        now.into_iter()
            .filter(|(reason, count)| before.get(reason) != Some(count))
            .map(|(reason, _)| reason)
            .collect()
    }

    fn read_events(&self) -> Vec<Event> {
        self.ring.consume().unwrap();
        self.events.take()
    }

    /// BPF_PROG_TEST_RUN: what the program returned and made of the bytes.
    fn run(&self, program: &str, ifindex: u32, frame: &[u8]) -> (u32, Vec<u8>) {
        // SAFETY: all-zero is a valid value of this plain C structure.
        let mut options: libbpf_sys::bpf_test_run_opts = unsafe { std::mem::zeroed() };
        // `struct __sk_buff`, whose words before and after `ifindex` the kernel wants to be zero.
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
        let program = self.programs.program(program).unwrap();
        // SAFETY: every pointer in the options outlives the call and is as large as its size says.
        let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut options) };
        assert_eq!(result, 0, "test run with ifindex {ifindex} and {} bytes", frame.len());
        out.truncate(options.data_size_out as usize);
        (options.retval, out)
    }
}

fn read_into(map: &MapHandle, events: &Rc<RefCell<Vec<Event>>>) -> RingBuffer<'static> {
    let sink = Rc::clone(events);
    let mut builder = RingBufferBuilder::new();
    builder
        .add(map, move |bytes| {
            assert_eq!(bytes.len(), size_of::<RawEvent>());
            sink.borrow_mut().push(Event::from_bytes(bytes).expect("an event of this version"));
            0
        })
        .unwrap();
    builder.build().unwrap()
}

/// The frame as it should leave: hop limit lowered, and the link addresses of the pod it goes to.
fn rewritten(frame: &[u8], link: Option<&PodLink>) -> Vec<u8> {
    let mut out = frame.to_vec();
    if let Some(link) = link {
        out[..6].copy_from_slice(&link.pod_mac.0);
        out[6..12].copy_from_slice(&link.host_mac.0);
    }
    if frame[12..ETHERNET] == [0x86, 0xdd] {
        out[21] -= 1;
        return out;
    }
    out[22] -= 1;
    // RFC 1624, equation 3, so that a wrong checksum stays as wrong as it was.
    let word = |bytes: &[u8], at: usize| u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    let (old, new) = (word(frame, 22), word(&out, 22));
    let mut sum = (!word(frame, 24) & 0xffff) + (!old & 0xffff) + new;
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !(sum as u16);
    out[24..26].copy_from_slice(&checksum.to_be_bytes());
    out
}

/// Checksums that were right before are right after; `wanted` then takes those of `out`, so that only the rest is left to compare.
fn compare_checksums(
    frame: &[u8],
    out: &[u8],
    wanted: &mut [u8],
    translated: &Packet,
    context: &str,
) -> Result<(), TestCaseError> {
    let mut places: Vec<usize> = bytes::checksum_at(frame).into_iter().collect();
    if !bytes::is_v6(frame) {
        prop_assert!(!header_checksum_is_right(frame) || header_checksum_is_right(out), "{}", context);
        places.push(24);
    }
    if let Some((1, at)) = bytes::transport(frame, ETHERNET)
        && translated.body.is_ok_and(|body| body.quoted.is_some())
    {
        let length = usize::from(out[at + 8] & 0xf) * 4;
        let quoted = |frame: &[u8]| bytes::checksum(&[&frame[at + 8..at + 8 + length]]) == 0;
        prop_assert!(!quoted(frame) || quoted(out), "{}", context);
        places.push(at + 18);
    }
    let right = bytes::transport_checksum_is_right;
    prop_assert!(right(frame) != Some(true) || right(out) == Some(true), "{}", context);
    for place in places {
        wanted[place..place + 2].copy_from_slice(&out[place..place + 2]);
    }
    Ok(())
}

/// A test run refuses frames that end inside the IP header; `weft_decide` has its own tests of those.
fn can_be_run(frame: &[u8]) -> bool {
    match frame.get(12..ETHERNET) {
        Some([0x08, 0x00]) => frame.len() >= ETHERNET + 20,
        Some([0x86, 0xdd]) => frame.len() >= ETHERNET + 40,
        Some(_) => true,
        None => false,
    }
}

fn header_checksum_is_right(frame: &[u8]) -> bool {
    let length = usize::from(frame[14] & 0xf) * 4;
    let sum: u32 = frame[ETHERNET..ETHERNET + length]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

struct Player<'a> {
    kernel: &'a Kernel,
    plan: NodePlan,
    links: Vec<PodLink>,
    oracle: MemoryFlows,
    sent: Vec<Vec<u8>>,
    packets: &'a Cell<usize>,
    translated: &'a Cell<usize>,
}

impl Player<'_> {
    fn entry(&self, step: &Step, frame: &[u8]) -> Entry {
        let pods: Vec<&PodKey> = self.plan.endpoints.values().map(|endpoint| &endpoint.pod).collect();
        let tunnel = || Arrival::Tunnel { from: "::".parse().unwrap() };
        if let Some((kind, pod)) = &step.stray {
            match kind {
                0 if !pods.is_empty() => return Entry::FromPod((*pod.get(&pods)).clone()),
                1 if !pods.is_empty() => return Entry::ToPod((*pod.get(&pods)).clone()),
                2 if matches!(self.plan.settings.routing, Routing::Vxlan { .. }) => {
                    return Entry::FromNet(tunnel());
                }
                _ => return Entry::FromNet(Arrival::Uplink),
            }
        }
        let Ok(packet) = Packet::parse(frame) else {
            return match pods.first() {
                Some(pod) => Entry::FromPod((*pod).clone()),
                None => Entry::FromNet(Arrival::Uplink),
            };
        };
        let settings = &self.plan.settings;
        if let Some(sender) = self.plan.endpoints.get(&packet.source) {
            return Entry::FromPod(sender.pod.clone());
        }
        let from_host = settings.host_addresses.contains(&packet.source);
        match self.plan.endpoints.get(&packet.destination) {
            None if from_host => Entry::ToNet,
            Some(receiver) if settings.host_addresses.contains(&packet.source) => {
                Entry::ToPod(receiver.pod.clone())
            }
            // Replies of masqueraded flows come down from the stack.
            Some(receiver) if packet.hop_limit % 2 == 1 => Entry::ToPod(receiver.pod.clone()),
            _ => Entry::FromNet(Arrival::Uplink),
        }
    }

    fn device_of(&self, pod: &PodKey) -> u32 {
        let endpoint = self.plan.endpoints.values().find(|endpoint| endpoint.pod == *pod).unwrap();
        self.links.iter().find(|link| link.device == endpoint.device).unwrap().ifindex
    }

    /// As when the tables are full of others.
    fn lose(&mut self, choice: &prop::sample::Index) {
        self.lose_direction(choice);
        let keys: Vec<weft_decide::FlowKey> = self.oracle.flows.keys().copied().collect();
        if keys.is_empty() {
            return;
        }
        let key = choice.get(&keys);
        self.oracle.flows.remove(key);
        let key = FlowKey {
            a: key.a.0.into(),
            b: key.b.0.into(),
            port_a: key.a.1.0,
            port_b: key.b.1.0,
            protocol: key.protocol.0,
            reserved: [0; 3],
        };
        self.kernel.programs.map("flows").unwrap().delete(bytemuck::bytes_of(&key)).unwrap();
    }

    /// A frame for another machine of the link.
    fn leaves_alone(&self, frame: &[u8]) -> Result<(), TestCaseError> {
        let mut frame = frame.to_vec();
        frame[..6].copy_from_slice(&[2, 0xff, 0, 0, 0, 2]);
        let (returned, out) = self.kernel.run("from_net", self.kernel.uplink, &frame);
        prop_assert_eq!(returned, TC_NEXT);
        prop_assert_eq!(out, frame);
        prop_assert_eq!(self.kernel.newly_counted(), vec![]);
        Ok(())
    }

    /// One of a translated connection's entries. The other was used a while ago.
    fn lose_direction(&mut self, choice: &prop::sample::Index) {
        let entries: Vec<(weft_decide::NatKey, NatEntry)> =
            self.oracle.nat.iter().map(|(key, entry)| (*key, *entry)).collect();
        if entries.is_empty() {
            return;
        }
        let (lost, entry) = choice.get(&entries);
        let raw = |key: &weft_decide::NatKey| NatKey {
            source: key.source.0.into(),
            destination: key.destination.0.into(),
            source_port: key.source.1.0,
            destination_port: key.destination.1.0,
            protocol: key.protocol.0,
            reserved: [0; 3],
        };
        let map = self.kernel.programs.map("nat").unwrap();
        self.oracle.nat.remove(lost);
        map.delete(bytemuck::bytes_of(&raw(lost))).unwrap();
        let other = raw(&entry.other_key(lost.protocol));
        let Some(value) = map.lookup(bytemuck::bytes_of(&other), MapFlags::ANY).unwrap() else { return };
        let mut value: NatValue = bytemuck::pod_read_unaligned(&value);
        value.last_seen -= 1_000_000_000;
        map.update(bytemuck::bytes_of(&other), bytemuck::bytes_of(&value), MapFlags::ANY).unwrap();
    }

    fn play(&mut self, step: &Step) -> Result<(), TestCaseError> {
        if let Some(choice) = &step.loses {
            self.lose(choice);
        }
        let mut frame = match &step.follows {
            Some(follows) if !self.sent.is_empty() => {
                follow(follows.earlier.get(self.sent.as_slice()).as_slice(), follows)
            }
            _ => match &step.aim {
                Some(choice) => frontends::aim(&self.plan, &step.frame, choice),
                None => step.frame.clone(),
            },
        };
        if !can_be_run(&frame) {
            return Ok(());
        }
        let entry = self.entry(step, &frame);
        if entry == Entry::FromNet(Arrival::Uplink) {
            self.leaves_alone(&frame)?;
            frame[..6].copy_from_slice(&UPLINK_MAC);
        }
        let frame = frame;
        let at = Moment { time: Time(1), epoch: Epoch(self.kernel.epoch.get()) };
        let packet = Packet::parse(&frame);
        let (plan, oracle) = (&self.plan, &mut self.oracle);
        let expected = match &entry {
            Entry::FromPod(pod) => weft_decide::from_pod(plan, oracle, at, pod, &packet),
            Entry::ToPod(pod) => weft_decide::to_pod(plan, oracle, at, pod, &packet),
            Entry::FromNet(arrival) => weft_decide::from_net(plan, oracle, at, *arrival, &packet),
            Entry::ToNet => weft_decide::to_net(plan, oracle, at, &packet),
        };
        let (program, ifindex) = match &entry {
            Entry::FromPod(pod) => ("from_pod", self.device_of(pod)),
            Entry::ToPod(pod) => ("to_pod", self.device_of(pod)),
            Entry::FromNet(Arrival::Uplink) => ("from_net", self.kernel.uplink),
            Entry::ToNet => ("to_net", self.kernel.uplink),
            Entry::FromNet(Arrival::Tunnel { .. }) => ("from_net", self.kernel.tunnel),
        };
        let (returned, out) = self.kernel.run(program, ifindex, &frame);
        let counted = self.kernel.newly_counted();
        let context = format!("{entry:?} {packet:?}\n{}\nexpected {expected:?}", hex(&frame));
        self.compare(&entry, &expected, returned, &frame, &out, &counted, &context)?;
        self.compare_events(&expected, &context)?;
        if expected.translated.is_some() {
            // What answers a translated packet is about what it became.
            self.translated.set(self.translated.get() + 1);
            self.sent.push(out);
        }
        self.sent.push(frame);
        self.packets.set(self.packets.get() + 1);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn compare(
        &self,
        entry: &Entry,
        expected: &Outcome,
        returned: u32,
        frame: &[u8],
        out: &[u8],
        counted: &[Reason],
        context: &str,
    ) -> Result<(), TestCaseError> {
        let link = |addr: &Addr| {
            let endpoint = &self.plan.endpoints[addr];
            self.links.iter().find(|link| link.device == endpoint.device)
        };
        let sent = match &expected.translated {
            Some(packet) => bytes::translated(frame, packet),
            None => frame.to_vec(),
        };
        let (action, mut wanted) = match &expected.action {
            Action::DeliverTo(addr) => (TC_REDIRECT, rewritten(&sent, link(addr))),
            Action::ToNode(_) | Action::ToNet => (TC_REDIRECT, rewritten(&sent, None)),
            Action::ToStack => (TC_NEXT, sent),
            Action::Reject(refusal) => (TC_REDIRECT, bytes::refusal(frame, *refusal)),
            Action::Drop => (TC_DROP, sent),
        };
        prop_assert_eq!(returned, action, "{}", context);
        if let Some(packet) = &expected.translated {
            compare_checksums(frame, out, &mut wanted, packet, context)?;
        }
        prop_assert_eq!(hex(out), hex(&wanted), "{}", context);
        let is_v4 = frame[12..ETHERNET] == [0x08, 0x00];
        if returned == TC_REDIRECT && is_v4 && header_checksum_is_right(frame) {
            prop_assert!(header_checksum_is_right(out), "{}", context);
        }
        // What is the stack's affair is not counted.
        let passed = expected.action == Action::ToStack
            && match entry {
                Entry::ToNet => true,
                Entry::FromNet(_) => !Packet::parse(frame)
                    .is_ok_and(|packet| self.plan.endpoints.contains_key(&packet.destination)),
                _ => expected.reason == Reason::NotIp,
            };
        let reasons = if passed { vec![] } else { vec![expected.reason] };
        prop_assert_eq!(counted, &reasons[..], "{}", context);
        Ok(())
    }

    fn compare_events(&self, expected: &Outcome, context: &str) -> Result<(), TestCaseError> {
        let events = self.kernel.read_events();
        let silent = matches!(expected.reason, Reason::LinkLocal | Reason::NotIp);
        let denied = expected.reason.verdict() == Verdict::Denied && !silent;
        prop_assert_eq!(
            events.iter().filter(|event| event.kind == EventKind::Denied).count(),
            usize::from(denied),
            "{}",
            context
        );
        for event in events {
            // Policy allowed it, and then there was no port to leave from.
            if event.kind == EventKind::NewFlow && expected.reason == Reason::NoFreePort {
                continue;
            }
            // A flow ends with a reply or with its opener's packet, and one that was lost begins again with either: its own
            // reason is told, not the packet's.
            let is_lost = event.kind == EventKind::NewFlow && expected.reason == Reason::Reply;
            if !matches!(event.kind, EventKind::Ended | EventKind::Translated) && !is_lost {
                prop_assert_eq!(event.reason, Some(expected.reason), "{}", context);
            }
            if event.kind != EventKind::Translated {
                prop_assert_eq!(event.egress_rule, expected.egress_rule, "{}", context);
                prop_assert_eq!(event.ingress_rule, expected.ingress_rule, "{}", context);
            }
        }
        Ok(())
    }

    fn compare_flows(&self) -> Result<(), TestCaseError> {
        let kernel: Vec<String> =
            self.kernel.flows().iter().map(|(key, value)| describe_kernel(key, value)).collect();
        let mut kernel = kernel;
        let mut oracle: Vec<String> = self
            .oracle
            .flows
            .iter()
            .map(|(key, entry)| {
                format!(
                    "{}:{} {}:{} {} {:?} {} {:?} {:?} {:?} {}{}{}{} {}",
                    key.a.0,
                    key.a.1,
                    key.b.0,
                    key.b.1,
                    key.protocol.0,
                    entry.opener,
                    entry.epoch.0,
                    entry.reason,
                    entry.egress_rule.map(|rule| rule.0),
                    entry.ingress_rule.map(|rule| rule.0),
                    u8::from(entry.tcp.established),
                    u8::from(entry.tcp.opener_finished),
                    u8::from(entry.tcp.responder_finished),
                    u8::from(entry.tcp.reset),
                    entry.is_translated,
                )
            })
            .collect();
        kernel.sort();
        oracle.sort();
        prop_assert_eq!(kernel, oracle);
        let entries = self.oracle.nat.iter();
        let mut oracle: Vec<String> = entries.map(|(key, entry)| describe_entry(key, entry)).collect();
        oracle.sort();
        prop_assert_eq!(self.kernel.connections(), oracle);
        Ok(())
    }
}

fn describe_kernel(key: &FlowKey, value: &FlowValue) -> String {
    let side = if value.flags & FlowValue::OPENED_BY_B != 0 { Side::B } else { Side::A };
    let rule = |number: u32| (number != 0).then_some(number);
    let bit = |bit: u8| u8::from(value.tcp & bit != 0);
    format!(
        "{}:{} {}:{} {} {side:?} {} {:?} {:?} {:?} {}{}{}{} {}",
        Addr::from(key.a),
        key.port_a,
        Addr::from(key.b),
        key.port_b,
        key.protocol,
        value.epoch,
        Reason::from_number(value.reason).unwrap(),
        rule(value.egress_rule),
        rule(value.ingress_rule),
        bit(1),
        bit(2),
        bit(4),
        bit(8),
        value.flags & FlowValue::NAT != 0,
    )
}

fn describe_connection(key: NatKey, value: NatValue) -> String {
    let kind = match value.flags {
        0 => NatKind::Request,
        NatFlags::REPLY => NatKind::Reply,
        NatFlags::DSR => NatKind::SentOn,
        NatFlags::MASQUERADED => NatKind::Masqueraded,
        MASQUERADED_REPLY => NatKind::MasqueradedReply,
        flags => panic!("flags {flags}"),
    };
    let addr = |key| Addr::from(key);
    format!(
        "{} {}:{} {}:{} becomes {}:{} {}:{} {kind:?} {} {} {}{}{}{}",
        key.protocol,
        addr(key.source),
        key.source_port,
        addr(key.destination),
        key.destination_port,
        addr(value.source),
        value.source_port,
        addr(value.destination),
        value.destination_port,
        value.service,
        value.list,
        value.tcp & 1,
        value.tcp >> 1 & 1,
        value.tcp >> 2 & 1,
        value.tcp >> 3 & 1,
    )
}

fn describe_entry(key: &weft_decide::NatKey, entry: &NatEntry) -> String {
    format!(
        "{} {}:{} {}:{} becomes {}:{} {}:{} {:?} {} {} {}{}{}{}",
        key.protocol.0,
        key.source.0,
        key.source.1,
        key.destination.0,
        key.destination.1,
        entry.source.0,
        entry.source.1,
        entry.destination.0,
        entry.destination.1,
        entry.kind,
        entry.service.0,
        entry.list.0,
        u8::from(entry.tcp.established),
        u8::from(entry.tcp.opener_finished),
        u8::from(entry.tcp.responder_finished),
        u8::from(entry.tcp.reset),
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn links_of(kernel: &Kernel, plan: &NodePlan) -> Vec<PodLink> {
    let devices: std::collections::BTreeSet<&str> =
        plan.endpoints.values().map(|endpoint| endpoint.device.as_str()).collect();
    devices.into_iter().enumerate().map(|(number, device)| kernel.link(number, device)).collect()
}

fn play_case(
    kernels: &[(Routing, Kernel)],
    case: &Case,
    packets: &Cell<usize>,
    translated: &Cell<usize>,
) -> Result<(), TestCaseError> {
    let node = NodeName::new("node1");
    let mut plan = weft_compile::compile(&case.cluster.snapshot_on(&node), &node).plan;
    frontends::add(&mut plan);
    let same =
        |routing: &Routing| std::mem::discriminant(routing) == std::mem::discriminant(&plan.settings.routing);
    let (_, kernel) = kernels.iter().find(|(routing, _)| same(routing)).unwrap();
    kernel.forget_flows();
    kernel.read_events();
    kernel.newly_counted();
    let links = links_of(kernel, &plan);
    kernel.hold(&plan, &links);
    let mut player =
        Player { kernel, plan, links, oracle: MemoryFlows::default(), sent: Vec::new(), packets, translated };
    for step in &case.before {
        player.play(step)?;
    }
    player.compare_flows()?;
    let mut changed = case.cluster.clone();
    changed.policies.truncate(case.kept_policies);
    player.plan = weft_compile::compile(&changed.snapshot_on(&node), &node).plan;
    frontends::add(&mut player.plan);
    kernel.hold(&player.plan, &player.links);
    for step in &case.after {
        player.play(step)?;
    }
    player.compare_flows()?;
    Ok(())
}

#[test]
fn programs_agree_with_decide() {
    let namespace = Namespace::new();
    for number in 0..DEVICES {
        namespace.ip(&format!("link add pod{number} type veth peer name peer{number}"));
    }
    namespace.run(|| {
        for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{name}"), "1").unwrap();
        }
    });
    namespace.ip("link add uplink address 02:ff:00:00:00:01 type veth peer name wire");
    // Masqueraded packets go where the node's routes lead.
    namespace.ip("link set uplink up");
    namespace.ip("link set wire up");
    namespace.ip("route add default dev uplink");
    namespace.ip("-6 route add default dev uplink");
    namespace.ip("link add tunnel type veth peer name underlay");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    Worker::new(namespace, path.clone()).run(move || {
        let vxlan = Routing::Vxlan { vni: 7, port: 4789 };
        let kernels = [(Routing::Direct, "direct"), (vxlan, "vxlan")]
            .map(|(routing, name)| (routing, Kernel::load(routing, &path.join(name))));
        let config = RunnerConfig {
            cases: 450,
            failure_persistence: None,
            max_shrink_time: 20_000,
            ..Default::default()
        };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let (packets, translated) = (Cell::new(0), Cell::new(0));
        let result = runner.run(&cases(), |case| play_case(&kernels, &case, &packets, &translated));
        if let Err(error) = result {
            panic!("{error}");
        }
        assert!(packets.get() >= 20_000, "only {} packets", packets.get());
        assert!(translated.get() >= 1_000, "only {} translated", translated.get());
        eprintln!("{} packets compared, {} of them translated", packets.get(), translated.get());
    });
}
