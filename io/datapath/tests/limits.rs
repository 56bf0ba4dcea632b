//! What has an end: flows that nobody uses, tables that are full, tables of another version, kernels that lack
//! something. What is there goes on working, and the reason is told.

mod support;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use nix::mount::{MsFlags, mount};
use support::{
    Fabric, Node, PATIENCE, Pod, addr, age_layout, connect, echo_udp, ping, serve_tcp, serve_udp,
    serve_udp_at,
};
use weft_abi::{Event, EventKind, Flow, FlowKey, FlowValue, Hook};
use weft_datapath::{ApplyError, Datapath, KernelWrites, OpenError, Writes};
use weft_model::{Addr, Cidr, Direction, PodKey, Port, Protocol, Routing, ServiceKey, Uid, Verdict};
use weft_plan::{
    ClassId, ClassMatch, Decision, EndpointPlan, Frontend, PolicyMatch, PolicySet, PolicySetId, PortPrefix,
    RuleId, ServiceId, ServicePlan,
};

/// Makes the kernel believe that the flows to this port have been silent for so many more seconds.
fn age(node: &Node, port: u16, seconds: u64) {
    let changed = node.with(move |datapath| {
        let flows = datapath.programs().map("flows").unwrap();
        let keys: Vec<Vec<u8>> = flows.keys().collect();
        let mut changed = 0;
        for bytes in keys {
            let key: FlowKey = bytemuck::pod_read_unaligned(&bytes);
            let value = flows.lookup(&bytes, MapFlags::ANY).unwrap().unwrap();
            let mut value: FlowValue = bytemuck::pod_read_unaligned(&value);
            let flow = Flow::new(&key, &value).unwrap();
            if flow.destination_port == Port(port) {
                value.last_seen -= seconds * 1_000_000_000;
                flows.update(&bytes, bytemuck::bytes_of(&value), MapFlags::EXIST).unwrap();
                changed += 1;
            }
        }
        changed
    });
    assert!(changed > 0, "no flow to port {port}");
}

fn ports(flows: &[Flow]) -> Vec<u16> {
    let mut ports: Vec<u16> = flows.iter().map(|flow| flow.destination_port.0).collect();
    ports.sort();
    ports
}

#[test]
fn silent_flows_go_and_live_ones_stay() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    fabric.apply_all();
    let node = &fabric.nodes[0];
    for port in [53, 54] {
        serve_udp(&server.namespace, port);
        assert!(echo_udp(&client.namespace, server.v4, port, 100, PATIENCE));
    }
    serve_tcp(&server.namespace, 80);
    let established = connect(&client.namespace, server.v4, 80, PATIENCE).unwrap();
    // Nobody listens: the reset ends the flow.
    assert!(connect(&client.namespace, server.v4, 81, PATIENCE).is_err());
    assert_eq!(node.with(|datapath| datapath.collect_expired()).unwrap(), [], "nothing is old yet");

    // Beyond the time of UDP, and of TCP that is not established.
    for port in [53, 80, 81] {
        age(node, port, 125);
    }
    let expired = node.with(|datapath| datapath.collect_expired()).unwrap();
    assert_eq!(ports(&expired), [53, 81]);
    assert_eq!(ports(&node.with(|datapath| datapath.flows()).unwrap()), [54, 80]);

    let silent = expired.iter().find(|flow| flow.protocol == Protocol::UDP).unwrap();
    let told = Event::expired(silent, Hook::FromPod);
    assert_eq!((told.kind, told.source, told.destination), (EventKind::Ended, client.v4, server.v4));
    assert_eq!((told.packets, told.bytes[0] > 100), ([1, 1], true), "{told:?}");
    assert!(!silent.tcp.has_ended());
    assert!(expired[usize::from(expired[0] == *silent)].tcp.has_ended(), "told by the kernel already");
    // Those that stayed still carry, and the one that went comes back.
    for port in [53, 54] {
        assert!(echo_udp(&client.namespace, server.v4, port, 100, PATIENCE));
    }
    drop(established);
}

#[test]
fn a_full_flow_table_forgets_and_goes_on() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    fabric.nodes[0].config.flow_entries = 128;
    // As an agent that is told to keep fewer flows.
    fabric.nodes[0].open();
    fabric.apply_all();
    serve_tcp(&server.namespace, 80);
    serve_udp(&server.namespace, 53);
    let mut first = connect(&client.namespace, server.v4, 80, PATIENCE).unwrap();
    for _ in 0..1000 {
        assert!(echo_udp(&client.namespace, server.v4, 53, 10, PATIENCE));
    }
    let flows = fabric.nodes[0].with(|datapath| datapath.flows()).unwrap();
    assert!((1..=128).contains(&flows.len()), "{} flows", flows.len());
    use std::io::{Read, Write};
    first.write_all(b"?").unwrap();
    first.read_exact(&mut [0]).expect("a forgotten flow is judged again");
}

fn stranger(node: &Node, number: u32) -> (Addr, EndpointPlan) {
    let endpoint = EndpointPlan {
        pod: PodKey::new("test", format!("stranger-{number}")),
        uid: Uid::new(format!("stranger-{number}")),
        device: format!("wf{:012x}", u64::from(node.number) << 32 | u64::from(number)),
        ingress: None,
        egress: None,
    };
    (addr(&format!("10.245.{}.{}", number >> 8, number & 0xff)), endpoint)
}

/// How many entries the kernel's table takes.
fn capacity(node: &Node, table: &'static str) -> u32 {
    node.with(move |datapath| datapath.programs().map(table).unwrap().max_entries())
}

/// The plan does not fit into `table`: said with the table, its size and an object, and what worked goes on.
fn is_full(node: &Node, table: &'static str, object: &str, pods: [&Pod; 2]) {
    let limit = capacity(node, table);
    let plan = node.plan.clone();
    let error = node.with(move |datapath| datapath.apply(&plan)).unwrap_err();
    assert!(
        matches!(&error, ApplyError::Full { table: t, limit: l, object: o, .. }
            if *t == table && *l == limit && o.starts_with(object)),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains(table) && text.contains(&limit.to_string()) && text.contains(object), "{text}");
    for to in [pods[1].v4, pods[1].v6] {
        assert!(echo_udp(&pods[0].namespace, to, 53, 100, PATIENCE), "{table} is full: {to}");
        assert!(ping(&pods[0].namespace, to), "{table} is full: {to}");
    }
}

#[test]
fn full_tables_are_named_and_the_rest_works() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    let node = &mut fabric.nodes[0];
    node.apply();
    serve_udp(&server.namespace, 53);
    let good = node.plan.clone();
    let wanted = node.with(|datapath| datapath.read_back()).unwrap();

    let strangers: Vec<_> = (0..capacity(node, "endpoints")).map(|number| stranger(node, number)).collect();
    node.plan.endpoints.extend(strangers);
    is_full(node, "endpoints", "address 10.245.", [&client, &server]);

    node.plan = good.clone();
    let blocks = 0..=capacity(node, "class_blocks");
    node.plan.classes.extend(blocks.map(|number| {
        let base = Addr::from(std::net::Ipv4Addr::from(0x0b00_0000 + (number << 8)));
        (Cidr::around(base, 24).unwrap(), ClassId(5))
    }));
    is_full(node, "class_blocks", "prefix 11.", [&client, &server]);

    node.plan = good.clone();
    *node.plan.policy_sets = large_policies(capacity(node, "policies"));
    is_full(node, "policies", "policy set 0000", [&client, &server]);

    node.plan = good;
    node.apply();
    assert_eq!(node.with(|datapath| datapath.read_back()).unwrap(), wanted, "after the excess is gone");
    assert!(node.apply().is_unchanged());
}

/// Sets that together hold more than `entries`.
fn large_policies(entries: u32) -> std::collections::BTreeMap<PolicySetId, PolicySet> {
    let decision = Decision { verdict: Verdict::Forwarded, rule: RuleId(7) };
    let per_set = 50_000u16;
    (1..=entries / u32::from(per_set) + 1)
        .map(|id| {
            let entries = (1..=per_set).map(|port| {
                let class = ClassMatch::Only(ClassId(9));
                let port = PortPrefix::exact(port);
                (PolicyMatch { class, protocol: Some(Protocol::TCP), port }, decision)
            });
            let set = PolicySet {
                direction: Direction::Ingress,
                policies: Vec::new(),
                entries: entries.collect(),
                default_rule: RuleId(9),
            };
            (PolicySetId(id), set)
        })
        .collect()
}

/// Asks and waits for the answer, again and again, until told to stop or an answer does not come.
fn exchange(
    pod: &Pod,
    to: Addr,
    stop: &Arc<AtomicBool>,
    done: &Arc<AtomicU64>,
) -> std::thread::JoinHandle<bool> {
    let socket = pod.namespace.run(|| UdpSocket::bind("[::]:0").unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let (stop, done) = (Arc::clone(stop), Arc::clone(done));
    std::thread::spawn(move || {
        while !stop.load(Ordering::Relaxed) {
            socket.send_to(b"?", SocketAddr::new(std::net::Ipv6Addr::from(to.octets()).into(), 53)).unwrap();
            if !matches!(socket.recv(&mut [0; 8]), Ok(1)) {
                return false;
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        true
    })
}

#[test]
fn tables_of_another_version_are_replaced_under_traffic() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    fabric.apply_all();
    let node = &fabric.nodes[0];
    serve_udp(&server.namespace, 53);
    let tables = node.with(|datapath| datapath.read_back()).unwrap();
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let exchanges = [server.v4, server.v6].map(|to| exchange(&client, to, &stop, &done));
    let more = || {
        let before = done.load(Ordering::Relaxed);
        while done.load(Ordering::Relaxed) < before + 50 && !exchanges.iter().any(|one| one.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    more();
    age_layout(node);
    // The second is the successor of one that died before its first plan: its tables are as empty.
    for _ in 0..2 {
        node.open();
        more();
        assert_eq!(node.with(|datapath| datapath.flows()).unwrap(), [], "the older programs still run");
    }
    node.apply();
    more();
    let flows = node.with(|datapath| datapath.flows()).unwrap();
    assert!(flows.len() >= 2, "the new programs run: {flows:?}");
    // From now on the tables are kept.
    node.open();
    assert!(node.apply().is_unchanged());
    more();
    stop.store(true, Ordering::Relaxed);
    let kept = exchanges.map(|one| one.join().unwrap());
    assert_eq!(kept, [true, true], "one was lost after {}", done.load(Ordering::Relaxed));
    assert_eq!(node.with(|datapath| datapath.read_back()).unwrap(), tables);
}

/// No write into one table succeeds.
struct Failing(&'static str);

impl Writes for Failing {
    fn put(&self, table: &str, map: &MapHandle, keys: &[u8], values: &[u8], count: u32) -> io::Result<()> {
        match table == self.0 {
            true => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
            false => KernelWrites.put(table, map, keys, values, count),
        }
    }

    fn remove(&self, table: &str, map: &MapHandle, keys: &[u8], count: u32) -> io::Result<()> {
        KernelWrites.remove(table, map, keys, count)
    }
}

#[test]
fn a_table_that_fails_holds_up_neither_policy_nor_new_programs() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    fabric.apply_all();
    let node = &mut fabric.nodes[0];
    serve_udp(&server.namespace, 53);
    for outside in ["192.0.2.1:53", "[2001:db8::1]:53"] {
        serve_udp_at(&fabric.outside, outside);
    }
    let backend = weft_plan::Backend::at(server.v4, Port(53));
    let service = ServicePlan::cluster_ip(ServiceId(1), ServiceKey::new("test", "dns"), vec![backend]);
    let frontend = Frontend { addr: addr("10.96.1.1"), protocol: Protocol::UDP, port: Port(53) };
    node.plan.services.insert(frontend, service);
    node.plan.announced.insert(addr("172.30.0.200"));
    for table in ["members", "services", "announced"] {
        age_layout(node);
        let (config, slot) = (node.config.clone(), Arc::clone(&node.datapath));
        let plan = node.plan.clone();
        let error = node.worker.run(move || {
            let opened = Datapath::open_with(config, Arc::new(Failing(table))).unwrap();
            let error = opened.apply(&plan).unwrap_err();
            *slot.lock().unwrap() = Some(Arc::new(opened));
            error
        });
        assert!(error.to_string().contains(table), "{error}");
        for to in [server.v4, server.v6, addr("192.0.2.1"), addr("2001:db8::1")] {
            assert!(echo_udp(&client.namespace, to, 53, 100, PATIENCE), "{table} fails: {to}");
        }
        let flows = node.with(|datapath| datapath.flows()).unwrap();
        assert!(flows.len() >= 4, "the new programs run: {flows:?}");
    }
}

#[test]
fn a_kernel_without_type_information_is_named() {
    let fabric = Fabric::new(1, Routing::Direct);
    let node = &fabric.nodes[0];
    let config = node.config.clone();
    let error = node.worker.run(move || {
        mount(Some("none"), "/sys/kernel/btf", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Datapath::open(config).map(|_| ()).unwrap_err()
    });
    assert!(matches!(&error, OpenError::NoBtf { path } if path.ends_with("btf/vmlinux")), "{error}");
}
