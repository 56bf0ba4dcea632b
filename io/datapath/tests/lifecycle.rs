//! Restarts, half-made things, wrong requests and leaving: the kernel's state follows the plan and nothing else.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use support::{Fabric, Namespace, PATIENCE, Pod, addr, connect, echo_tcp, ping, serve_tcp, serve_udp};
use weft_datapath::{Config, Datapath, OpenError, PodError};
use weft_model::{Addr, Port, Protocol, Routing, ServiceKey};
use weft_plan::{Backend, ClassId, Frontend, ServiceId, ServicePlan};

/// Asks and waits for the answer, again and again; a lost packet is a time-out.
fn exchange(
    pod: &Pod,
    to: Addr,
    stop: &Arc<AtomicBool>,
    done: &Arc<AtomicU64>,
) -> std::thread::JoinHandle<u64> {
    let any = if to.to_ip().is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = pod.namespace.run(move || UdpSocket::bind(any).unwrap());
    socket.connect(SocketAddr::new(to.to_ip(), 53)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let (stop, done) = (Arc::clone(stop), Arc::clone(done));
    std::thread::spawn(move || {
        let mut lost = 0;
        let mut answer = [0; 8];
        let mut number = 0u64;
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            socket.send(&number.to_ne_bytes()).unwrap();
            match socket.recv(&mut answer) {
                Ok(8) if answer == number.to_ne_bytes() => done.fetch_add(1, Ordering::Relaxed),
                _ => {
                    lost += 1;
                    0
                }
            };
        }
        lost
    })
}

#[test]
fn restarts_lose_no_packet_and_change_no_table() {
    let mut fabric = Fabric::new(2, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let near = fabric.nodes[0].add_pod(3);
    let far = fabric.nodes[1].add_pod(4);
    fabric.apply_all();
    serve_udp(&near.namespace, 53);
    serve_udp(&far.namespace, 53);
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let exchanges = [near.v4, near.v6, far.v4, far.v6].map(|to| exchange(&client, to, &stop, &done));
    let tables = fabric.nodes[0].with(|datapath| datapath.read_back()).unwrap();
    for _ in 0..5 {
        let before = done.load(Ordering::Relaxed);
        for node in &fabric.nodes {
            node.open();
            let report = node.apply();
            assert!(report.is_unchanged(), "{report}");
        }
        while done.load(Ordering::Relaxed) < before + 100
            && !exchanges.iter().all(|exchange| exchange.is_finished())
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    stop.store(true, Ordering::Relaxed);
    let lost: u64 = exchanges.into_iter().map(|exchange| exchange.join().unwrap()).sum();
    assert_eq!(lost, 0, "lost of {}", done.load(Ordering::Relaxed));
    assert_eq!(fabric.nodes[0].with(|datapath| datapath.read_back()).unwrap(), tables);
    assert!(fabric.nodes[0].with(|datapath| datapath.flows()).unwrap().len() >= 4);
}

#[test]
fn tables_converge_from_whatever_was_there() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    let node = &mut fabric.nodes[0];
    node.apply();
    let wanted = node.with(|datapath| datapath.read_back()).unwrap();
    let plan = node.plan.clone();
    node.plan.classes.insert(support::cidr("10.0.0.0/8"), ClassId(5));
    node.plan.classes.insert(support::cidr("10.244.9.9/32"), ClassId(6));
    node.plan.routes.clear();
    let backend = Backend::at(pod.v4, Port(80));
    let service = ServicePlan::cluster_ip(ServiceId(3), ServiceKey::new("test", "stray"), vec![backend; 3]);
    node.plan
        .services
        .insert(Frontend { addr: addr("10.96.1.1"), protocol: Protocol::TCP, port: Port(80) }, service);
    node.plan.settings.host_addresses.insert(addr("10.96.0.53"));
    assert!(!node.apply().is_unchanged());
    assert_ne!(node.with(|datapath| datapath.read_back()).unwrap(), wanted);
    assert!(node.namespace.command("ip", "-4 addr show dev lo").contains("10.96.0.53"));
    node.plan = plan;
    node.open();
    let report = node.apply();
    assert!(!report.is_unchanged(), "{report}");
    assert_eq!(node.with(|datapath| datapath.read_back()).unwrap(), wanted);
    assert!(!node.namespace.command("ip", "-4 addr show dev lo").contains("10.96.0.53"));
    assert!(node.apply().is_unchanged());
}

#[test]
fn attaching_is_idempotent_and_checked() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    let node = &fabric.nodes[0];
    let request = pod.attachment.clone();
    let again = node.with(move |datapath| datapath.attach_pod(&request)).unwrap();
    assert_eq!(again, pod.link);
    assert_eq!(node.with(|datapath| datapath.list_pods()).unwrap(), vec![pod.link.clone()]);
    assert_eq!(pod.namespace.run(weft_datapath::netns_cookie).unwrap(), pod.link.netns_cookie);
    let check = || {
        let request = pod.attachment.clone();
        node.with(move |datapath| datapath.check_pod(&request))
    };
    check().unwrap();
    pod.namespace.ip(&format!("addr del {}/32 dev eth0", pod.v4));
    assert!(check().unwrap_err().to_string().contains("does not have address 10.244.1.2"));
    // A link that is not as asked is made anew.
    let request = pod.attachment.clone();
    let link = node.with(move |datapath| datapath.attach_pod(&request)).unwrap();
    assert_eq!((link.addresses, link.device), (pod.link.addresses.clone(), pod.link.device.clone()));
    check().unwrap();
    for _ in 0..2 {
        let device = pod.link.device.clone();
        node.with(move |datapath| datapath.detach_pod(&device)).unwrap();
        assert!(node.with(|datapath| datapath.list_pods()).unwrap().is_empty());
    }
    assert!(check().is_err());
}

#[test]
fn a_failed_attachment_leaves_nothing() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let other = fabric.nodes[0].add_pod(9);
    let node = &fabric.nodes[0];
    let devices = || -> Vec<String> {
        let text = node.namespace.command("ip", "-br link");
        text.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
    };
    let before = devices();
    let mut request = other.attachment.clone();
    request.container = "another".to_owned();
    request.device = weft_datapath::device_name("another");
    // The interface's name is taken inside the pod.
    let attempt = request.clone();
    let error = node.with(move |datapath| datapath.attach_pod(&attempt)).unwrap_err();
    assert!(matches!(error, PodError::Netlink { .. }), "{error}");
    assert_eq!(devices(), before);
    let mut attempt = request.clone();
    attempt.netns = "/run/no-such-namespace".into();
    let error = node.with(move |datapath| datapath.attach_pod(&attempt)).unwrap_err();
    assert!(matches!(error, PodError::Namespace { .. }), "{error}");
    let mut attempt = request;
    attempt.device = "a-name-that-is-too-long".to_owned();
    let error = node.with(move |datapath| datapath.attach_pod(&attempt)).unwrap_err();
    assert!(error.to_string().contains("15 bytes"), "{error}");
    assert_eq!(devices(), before);
}

#[test]
fn what_died_is_collected() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    let node = &fabric.nodes[0];
    let pins = node.config.bpffs_dir.join("links").join(&pod.link.device);
    let path = pins.clone();
    assert!(node.with(move |_| path.exists()));
    // The runtime removed the pod's side; and an agent died while it made another link.
    pod.namespace.ip("link del eth0");
    node.namespace.ip("link add wf0123456789ab type veth peer name unfinished");
    node.open();
    assert!(!node.with(move |_| pins.exists()));
    assert!(!node.namespace.command("ip", "-br link").contains("wf0123456789ab"));
}

#[test]
fn cleanup_leaves_nothing() {
    for routing in [Routing::Direct, Routing::Vxlan { vni: 7, port: 8472 }] {
        let mut fabric = Fabric::new(2, routing);
        fabric.nodes[0].add_pod(2);
        fabric.apply_all();
        let node = &fabric.nodes[0];
        *node.datapath.lock().unwrap() = None;
        let config = node.config.clone();
        node.worker.run(move || Datapath::cleanup(&config).unwrap());
        let config = node.config.clone();
        assert!(!node.worker.run(move || config.bpffs_dir.exists()));
        let links = node.namespace.command("ip", "-br link");
        assert_eq!(links.lines().count(), 2, "lo and eth0 alone:\n{links}");
        assert!(!node.namespace.command("ip", "addr show dev lo").contains("10.96.0.10"));
        for family in ["-4", "-6"] {
            assert_eq!(node.namespace.command("ip", &format!("{family} route show proto 119")), "");
        }
        assert!(!node.namespace.command("nft", "list tables").contains("weft"));
        let config = node.config.clone();
        node.worker.run(move || Datapath::cleanup(&config).unwrap());
    }
}

#[test]
fn what_older_agents_left_is_removed_and_ports_are_reserved_beside_others() {
    const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let fabric = Fabric::new(1, Routing::Direct);
    let node = &fabric.nodes[0];
    let reserved = || node.namespace.run(|| std::fs::read_to_string(RESERVED).unwrap());
    assert_eq!(reserved().trim(), "49152-65535");
    node.namespace.run(|| std::fs::write(RESERVED, "8080,9000-9100").unwrap());
    node.open();
    assert_eq!(reserved().trim(), "8080,9000-9100,49152-65535");
    node.namespace.command("nft", "add table inet weft");
    node.namespace
        .command("nft", "add chain inet weft postrouting { type nat hook postrouting priority srcnat; }");
    node.namespace.command("nft", "add rule inet weft postrouting masquerade");
    node.namespace.command("nft", "add table inet others");
    node.open();
    node.apply();
    let tables = node.namespace.command("nft", "list tables");
    assert!(tables.contains("others") && !tables.contains("weft"), "{tables}");
    *node.datapath.lock().unwrap() = None;
    let config = node.config.clone();
    node.worker.run(move || Datapath::cleanup(&config).unwrap());
    assert_eq!(reserved().trim(), "8080,9000-9100");
}

#[test]
fn wrong_surroundings_are_named() {
    let fabric = Fabric::new(1, Routing::Direct);
    let node = &fabric.nodes[0];
    let open = |change: fn(&mut Config)| {
        let mut config = node.config.clone();
        change(&mut config);
        node.worker.run(move || Datapath::open(config).map(|_| ())).unwrap_err()
    };
    let error = open(|config| config.uplink = "eth7".to_owned());
    assert!(matches!(&error, OpenError::NoUplink { name } if name == "eth7"), "{error}");
    let error = open(|config| config.cgroup_dir = "/tmp".into());
    assert!(matches!(error, OpenError::NotCgroup { .. }), "{error}");
    let error = open(|config| config.bpffs_dir = std::env::temp_dir().join("weft-test-not-bpffs"));
    std::fs::remove_dir_all(std::env::temp_dir().join("weft-test-not-bpffs")).unwrap();
    assert!(matches!(error, OpenError::NotBpffs { .. }), "{error}");
}

#[test]
fn pods_without_a_plan_are_alone() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let known = fabric.nodes[0].add_pod(2);
    fabric.apply_all();
    let unknown = fabric.nodes[0].add_pod(3);
    serve_tcp(&known.namespace, 80);
    let soon = Duration::from_millis(300);
    assert!(connect(&unknown.namespace, known.v4, 80, soon).is_err());
    fabric.apply_all();
    echo_tcp(&unknown.namespace, known.v4, 80, 100);
    assert!(ping(&unknown.namespace, known.v6));
    let _: &Namespace = &fabric.outside;
}
