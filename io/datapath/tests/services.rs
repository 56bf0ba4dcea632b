//! Services at the socket: processes of pods and of the node meet backends under the service's address.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use libbpf_rs::{MapCore, MapFlags};
use support::{Fabric, Namespace, Node, addr, node_v4, node_v6, serve_tcp, serve_udp, serve_udp_at};
use weft_abi::{AffinityValue, EventKind};
use weft_datapath::{Capacity, Usage};
use weft_decide::{Asker, Chance, Connect, Owner};
use weft_model::{Addr, Affinity, Balancing, Family, Port, Protocol, Reason, Routing, ServiceKey, Weight};
use weft_plan::{Backend, BackendList, Exposure, Frontend, ListId, ServiceId, ServicePlan};

/// Answers each line of its input: a kind of call, an address and a port. What it prints: `ok`, what it read and from
/// whom, or the name of the error. A socket that was made by `udp-open` stays for the calls that name it.
const CLIENT: &str = r#"
import errno, socket, sys, time

def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET

kept = None

def answer(kind, address, port):
    global kept
    if kind == "tcp":
        with socket.create_connection((address, port), timeout=10) as s:
            s.sendall(b"hello")
            return s.recv(16).decode(), s.getpeername()[0]
    if kind == "tcp-start":
        with socket.socket(family(address)) as s:
            s.setblocking(False)
            s.connect((address, port))
            return "connected",
    if kind in ("udp-open", "udp-connect") or kept is None:
        kept = socket.socket(family(address), socket.SOCK_DGRAM)
        kept.settimeout(10)
    if kind == "udp-open":
        return "open",
    if kind in ("udp-connect", "udp-reconnect"):
        kept.connect((address, port))
        return "connected", kept.getpeername()[0], kept.getpeername()[1]
    if kind == "udp-send":
        kept.send(b"hello")
    elif kind == "udp-receive":
        pass
    else:
        kept.sendto(b"hello", (address, port))
    data, peer = kept.recvfrom(64)
    return data.decode(), peer[0], peer[1]

for line in sys.stdin:
    kind, address, port = line.split()
    start = time.monotonic()
    try:
        print(*answer(kind, address, int(port)), flush=True)
    except OSError as error:
        quick = "at once" if time.monotonic() - start < 5 else "late"
        print(errno.errorcode.get(error.errno, error), quick, flush=True)
"#;

/// A process in the node's cgroup and in some network namespace.
struct Client {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Client {
    fn start(node: &Node, namespace: &Namespace) -> Self {
        let procs = node.config.cgroup_dir.join("cgroup.procs");
        // The shell enters the cgroup, so that every socket of its successor is the node's.
        let script = format!("echo 0 > {} && exec python3 -c \"$0\"", procs.display());
        let mut child = namespace.run(move || {
            let mut command = Command::new("sh");
            command.args(["-c", &script, CLIENT]).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().expect("a shell is installed")
        });
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    fn call(&mut self, kind: &str, to: &str, port: u16) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{kind} {to} {port}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.child.stdin.take();
        self.child.wait().ok();
    }
}

fn backends(list: &[(Addr, u16)]) -> Vec<Backend> {
    list.iter().map(|(addr, port)| Backend::at(*addr, Port(*port))).collect()
}

fn add_service(node: &mut Node, id: u32, addr: Addr, protocol: Protocol, to: &[(Addr, u16)]) {
    let service = ServicePlan::cluster_ip(ServiceId(id), ServiceKey::new("test", "web"), backends(to));
    node.plan.services.insert(Frontend { addr, protocol, port: Port(80) }, service);
}

fn add_node_port(node: &mut Node, id: u32, protocol: Protocol, to: &[(Addr, u16)]) {
    let addr = match to[0].0.family() {
        Family::V4 => addr("0.0.0.0"),
        Family::V6 => addr("::"),
    };
    let service = ServicePlan {
        exposure: Exposure::NodePort,
        ..ServicePlan::cluster_ip(ServiceId(id), ServiceKey::new("test", "web"), backends(to))
    };
    node.plan.services.insert(Frontend { addr, protocol, port: Port(30080) }, service);
}

/// Answers each datagram with the server's own address.
fn serve_own_name(namespace: &Namespace, own: Addr, port: u16) {
    let socket = namespace.run(|| UdpSocket::bind(format!("[::]:{port}")).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(own.to_string().as_bytes(), from).ok();
        }
    });
}

const V4: &str = "10.96.1.1";
const V6: &str = "fd00:10:96::101";

/// Proves spec.clusterIP: The address clients in the cluster use, on every node.
/// Proves spec.ports.port: The port of cluster IP, external and balancer addresses.
#[test]
fn sockets_reach_backends_under_the_services_address() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    let node = &mut fabric.nodes[0];
    for (id, frontend, backend) in [(1, addr(V4), server.v4), (2, addr(V6), server.v6)] {
        add_service(node, id, frontend, Protocol::TCP, &[(backend, 8080)]);
        add_service(node, id + 10, frontend, Protocol::UDP, &[(backend, 5353)]);
    }
    node.apply();
    serve_tcp(&server.namespace, 8080);
    serve_udp(&server.namespace, 5353);
    let reader = node.with(|datapath| datapath.events()).unwrap();
    let node = &fabric.nodes[0];
    let mapped = format!("::ffff:{V4}");
    for namespace in [&client.namespace, &node.namespace] {
        let mut process = Client::start(node, namespace);
        assert_eq!(process.call("tcp", V4, 80), format!("hello {}", server.v4));
        assert_eq!(process.call("tcp", V6, 80), format!("hello {}", server.v6));
        assert_eq!(process.call("tcp", &mapped, 80), format!("hello ::ffff:{}", server.v4));
    }
    let mut process = Client::start(node, &node.namespace);
    for to in [V4, V6, &mapped] {
        assert_eq!(process.call("udp-connect", to, 80), format!("connected {to} 80"));
        assert_eq!(process.call("udp-send", to, 80), format!("hello {to} 80"));
        assert_eq!(process.call("udp-open", to, 80), "open");
        assert_eq!(process.call("udp", to, 80), format!("hello {to} 80"));
    }
    let events = reader.poll(Duration::from_secs(1)).unwrap();
    let translated: Vec<_> = events.iter().filter(|event| event.kind == EventKind::Translated).collect();
    assert_eq!(translated.len(), 12, "{translated:#?}");
    let first = translated[0];
    assert_eq!(first.netns_cookie, client.link.netns_cookie);
    assert_eq!((first.destination, first.destination_port), (addr(V4), Port(80)));
    assert_eq!((first.service, first.backend), (Some(ServiceId(1)), Some((server.v4, Port(8080)))));
}

#[test]
fn services_without_backends_refuse_at_once() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    let node = &mut fabric.nodes[0];
    for (id, frontend, backend) in [(1, addr(V4), server.v4), (2, addr(V6), server.v6)] {
        add_service(node, id, frontend, Protocol::TCP, &[(backend, 8080)]);
        add_service(node, id + 10, frontend, Protocol::UDP, &[]);
    }
    node.apply();
    serve_tcp(&server.namespace, 8080);
    let mut pod = Client::start(node, &client.namespace);
    let mut process = Client::start(node, &node.namespace);
    assert_eq!(pod.call("tcp", V4, 80), format!("hello {}", server.v4));
    for (id, frontend) in [(1, addr(V4)), (2, addr(V6))] {
        add_service(node, id, frontend, Protocol::TCP, &[]);
    }
    node.apply();
    for to in [V4, V6] {
        for client in [&mut pod, &mut process] {
            assert_eq!(client.call("tcp", to, 80), "ECONNREFUSED at once");
            assert_eq!(client.call("tcp", to, 81), "ECONNREFUSED at once", "not a port of the service");
        }
        assert_eq!(process.call("udp-connect", to, 80), "ECONNREFUSED at once");
        assert_eq!(process.call("udp-open", to, 80), "open");
        assert_eq!(process.call("udp", to, 80), "ECONNREFUSED at once");
        // Resolvers connect datagram sockets to learn their own address, and send nothing.
        assert_eq!(pod.call("udp-connect", to, 80), format!("connected {to} 80"));
    }
    assert_eq!(pod.call("tcp", "10.96.200.1", 80), "ECONNREFUSED at once", "nobody's service address");
    let counters = node.with(|datapath| datapath.counters()).unwrap();
    assert_eq!(counters.reasons[&Reason::NoReadyBackends].packets, 8);
    assert!(!counters.reasons.contains_key(&Reason::NoLocalBackends));
    assert_eq!(counters.reasons[&Reason::NotTranslated].packets, 5);
    let frontend = Frontend { addr: addr(V4), protocol: Protocol::TCP, port: Port(80) };
    let mut service = node.plan.services.get(&frontend).unwrap().clone();
    service.list = Arc::new(BackendList { id: ListId(1), backends: Vec::new(), elsewhere: true });
    node.plan.services.insert(frontend, service);
    node.apply();
    assert_eq!(pod.call("tcp", V4, 80), "ECONNREFUSED at once", "nobody waits for silence at a socket");
    let counters = node.with(|datapath| datapath.counters()).unwrap();
    assert_eq!(counters.reasons[&Reason::NoLocalBackends].packets, 1);
}

#[test]
fn nodes_own_and_foreign_addresses_are_left_alone() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    fabric.apply_all();
    let node = &fabric.nodes[0];
    // A server on all addresses would answer from another one of the node's.
    serve_udp_at(&node.namespace, "10.96.0.10:53");
    serve_tcp(&node.namespace, 81);
    let mut pod = Client::start(node, &client.namespace);
    assert_eq!(pod.call("udp", "10.96.0.10", 53), "hello 10.96.0.10 53");
    assert_eq!(pod.call("tcp", &node_v4(1).to_string(), 81), format!("hello {}", node_v4(1)));
}

/// Proves spec.ports.nodePort: The port on every address of every node.
#[test]
fn node_ports_answer_at_every_nodes_address() {
    let mut fabric = Fabric::new(2, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    let node = &mut fabric.nodes[0];
    add_node_port(node, 1, Protocol::TCP, &[(server.v4, 8080)]);
    add_node_port(node, 2, Protocol::TCP, &[(server.v6, 8080)]);
    add_node_port(node, 3, Protocol::UDP, &[(server.v4, 5353)]);
    node.apply();
    serve_tcp(&server.namespace, 8080);
    serve_udp(&server.namespace, 5353);
    let mut pod = Client::start(node, &client.namespace);
    let mut process = Client::start(node, &node.namespace);
    for number in [1, 2] {
        for client in [&mut pod, &mut process] {
            let (v4, v6) = (node_v4(number).to_string(), node_v6(number).to_string());
            assert_eq!(client.call("tcp", &v4, 30080), format!("hello {}", server.v4));
            assert_eq!(client.call("tcp", &v6, 30080), format!("hello {}", server.v6));
        }
        let v4 = node_v4(number).to_string();
        assert_eq!(process.call("udp-connect", &v4, 30080), format!("connected {v4} 30080"));
        assert_eq!(process.call("udp-send", &v4, 30080), format!("hello {v4} 30080"));
    }
    // Not an address of a node, a pod's own, and a port that is not one.
    assert_eq!(process.call("tcp", &server.v4.to_string(), 30080), "ECONNREFUSED at once");
    assert_eq!(process.call("tcp", &node_v4(1).to_string(), 30081), "ECONNREFUSED at once");
    assert_eq!(process.call("tcp", "127.0.0.1", 30080), "ECONNREFUSED at once", "the setting is off");
    node.plan.settings.localhost_node_ports = true;
    node.apply();
    assert_eq!(process.call("tcp", "127.0.0.1", 30080), format!("hello {}", server.v4));
    assert_eq!(process.call("tcp", "::1", 30080), format!("hello {}", server.v6));
    assert_eq!(pod.call("tcp", "127.0.0.1", 30080), "ECONNREFUSED at once", "a pod's own loopback");
}

#[test]
fn source_ranges_are_asked_of_packets_and_not_of_the_nodes_processes() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    let node = &mut fabric.nodes[0];
    let mut service =
        ServicePlan::cluster_ip(ServiceId(1), ServiceKey::new("test", "web"), backends(&[(server.v4, 8080)]));
    service.source_ranges.insert("192.0.2.0/24".parse().unwrap());
    node.plan.services.insert(Frontend { addr: addr(V4), protocol: Protocol::TCP, port: Port(80) }, service);
    node.apply();
    serve_tcp(&server.namespace, 8080);
    let reader = node.with(|datapath| datapath.events()).unwrap();
    let mut pod = Client::start(node, &client.namespace);
    assert_eq!(pod.call("tcp-start", V4, 80), "EINPROGRESS at once");
    let mut process = Client::start(node, &node.namespace);
    assert_eq!(process.call("tcp", V4, 80), format!("hello {}", server.v4));
    let events = reader.poll(Duration::from_secs(1)).unwrap();
    let translated: Vec<_> = events.iter().filter(|event| event.kind == EventKind::Translated).collect();
    assert_eq!(translated.len(), 1);
    assert_ne!(translated[0].netns_cookie, client.link.netns_cookie);
}

#[test]
fn every_backend_gets_its_share() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let servers = [3, 4, 5].map(|host| fabric.nodes[0].add_pod(host));
    let node = &mut fabric.nodes[0];
    let mut weighted = backends(&servers.each_ref().map(|server| (server.v4, 8080)));
    weighted[1].weight = Weight(6);
    let service = ServicePlan::cluster_ip(ServiceId(1), ServiceKey::new("test", "web"), weighted);
    node.plan.services.insert(Frontend { addr: addr(V4), protocol: Protocol::TCP, port: Port(80) }, service);
    node.apply();
    for server in &servers {
        serve_tcp(&server.namespace, 8080);
    }
    let mut pod = Client::start(node, &client.namespace);
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..400 {
        *answers.entry(pod.call("tcp", V4, 80)).or_default() += 1;
    }
    // Of 400, 50, 300 and 50 are expected: each bound is six standard deviations away.
    let share = |server: &support::Pod| answers.get(&format!("hello {}", server.v4)).copied().unwrap_or(0);
    assert!((10..=90).contains(&share(&servers[0])), "{answers:?}");
    assert!((248..=352).contains(&share(&servers[1])), "{answers:?}");
    assert!((10..=90).contains(&share(&servers[2])), "{answers:?}");
}

#[test]
fn a_hash_chooses_what_the_definition_chooses() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let servers = [3, 4, 5, 6, 7].map(|host| fabric.nodes[0].add_pod(host));
    let node = &mut fabric.nodes[0];
    for number in 0..40u8 {
        let mut list = backends(&servers.each_ref().map(|server| (server.v4, 8080)));
        list[usize::from(number % 5)].weight = Weight(number % 7 + 1);
        let list = BackendList { id: ListId(100 + u32::from(number)), backends: list, elsewhere: false };
        let service = ServicePlan {
            balancing: Balancing::Maglev,
            list: Arc::new(list),
            ..ServicePlan::cluster_ip(ServiceId(number.into()), ServiceKey::new("test", "web"), Vec::new())
        };
        let frontend =
            Frontend { addr: addr(&format!("10.96.3.{number}")), protocol: Protocol::TCP, port: Port(80) };
        node.plan.services.insert(frontend, service);
    }
    node.apply();
    for server in &servers {
        serve_tcp(&server.namespace, 8080);
    }
    let mut seen = BTreeSet::new();
    let node_cookie = node.namespace.run(weft_datapath::netns_cookie).unwrap();
    let askers = [
        (&client.namespace, Owner::Pod, client.link.netns_cookie),
        (&node.namespace, Owner::Node, node_cookie),
    ];
    for (namespace, owner, netns_cookie) in askers {
        let mut process = Client::start(node, namespace);
        let asker = Asker { owner, netns_cookie };
        for frontend in node.plan.services.keys() {
            let (to, port) = (frontend.addr, frontend.port);
            let expected =
                match weft_decide::connect(&node.plan, asker, Protocol::TCP, to, port, Chance::default()) {
                    Connect::To { backend, .. } => format!("hello {}", backend.addr),
                    other => panic!("{other:?}"),
                };
            for _ in 0..3 {
                assert_eq!(process.call("tcp", &to.to_string(), 80), expected, "{frontend}");
            }
            seen.insert(expected);
        }
    }
    assert_eq!(seen.len(), servers.len());
}

/// Proves spec.sessionAffinityConfig.clientIP.timeoutSeconds: How long after its last connection a client keeps its backend.
/// Proves spec.sessionAffinity: ClientIP sends a client to its last backend while that is a member and the timeout is not over.
#[test]
fn session_affinity_holds_while_it_is_young_and_its_backend_a_member() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let servers = [3, 4, 5, 6].map(|host| fabric.nodes[0].add_pod(host));
    let node = &mut fabric.nodes[0];
    let set = |node: &mut Node, to: &[&support::Pod]| {
        let to: Vec<(Addr, u16)> = to.iter().map(|server| (server.v4, 8080)).collect();
        let service = ServicePlan {
            affinity: Affinity::ClientIp { seconds: 10_800 },
            ..ServicePlan::cluster_ip(ServiceId(1), ServiceKey::new("test", "web"), backends(&to))
        };
        node.plan
            .services
            .insert(Frontend { addr: addr(V4), protocol: Protocol::TCP, port: Port(80) }, service);
        node.apply();
    };
    let all: Vec<&support::Pod> = servers.iter().collect();
    set(node, &all);
    for server in &servers {
        serve_tcp(&server.namespace, 8080);
    }
    let mut pod = Client::start(node, &client.namespace);
    let mut ask = || pod.call("tcp", V4, 80);
    let first = ask();
    assert!((0..20).all(|_| ask() == first));
    // Its backend leaves, and comes back.
    let rest: Vec<&support::Pod> =
        all.iter().copied().filter(|server| format!("hello {}", server.v4) != first).collect();
    assert_eq!(rest.len(), 3);
    set(node, &rest);
    let second = ask();
    assert_ne!(second, first);
    set(node, &all);
    assert!((0..20).all(|_| ask() == second));
    // As old as the service allows, every choice is a new one.
    let chosen: BTreeSet<String> = (0..60)
        .map(|_| {
            node.with(|datapath| {
                let map = datapath.programs().map("affinities").unwrap();
                for key in map.keys() {
                    let bytes = map.lookup(&key, MapFlags::ANY).unwrap().unwrap();
                    let mut value: AffinityValue = bytemuck::pod_read_unaligned(&bytes);
                    value.last_used -= 10_800 * 1_000_000_000;
                    map.update(&key, bytemuck::bytes_of(&value), MapFlags::ANY).unwrap();
                }
            });
            ask()
        })
        .collect();
    assert_eq!(chosen.len(), 4, "{chosen:?}");
}

#[test]
fn datagrams_of_the_node_stay_with_a_backend_until_it_leaves() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let servers = [3, 4, 5].map(|host| fabric.nodes[0].add_pod(host));
    let node = &mut fabric.nodes[0];
    let all: Vec<(Addr, u16)> = servers.iter().map(|server| (server.v4, 5353)).collect();
    add_service(node, 1, addr(V4), Protocol::UDP, &all);
    node.apply();
    for server in &servers {
        serve_own_name(&server.namespace, server.v4, 5353);
    }
    let mut sender = Client::start(node, &node.namespace);
    assert_eq!(sender.call("udp-open", V4, 80), "open");
    let first = sender.call("udp", V4, 80);
    assert!((0..20).all(|_| sender.call("udp", V4, 80) == first), "{first}");
    let mut connected = Client::start(node, &node.namespace);
    assert_eq!(connected.call("udp-connect", V4, 80), format!("connected {V4} 80"));
    let other = connected.call("udp-send", V4, 80);
    let direct = servers[0].v4.to_string();
    let mut straight = Client::start(node, &node.namespace);
    assert_eq!(straight.call("udp-connect", &direct, 5353), format!("connected {direct} 5353"));
    // Both lose their backend; the one that meant no service keeps its own.
    let left: Vec<(Addr, u16)> = all
        .into_iter()
        .filter(|(addr, _)| ![&first, &other].iter().any(|answer| answer.starts_with(&format!("{addr} "))))
        .collect();
    add_service(node, 1, addr(V4), Protocol::UDP, &left);
    node.apply();
    let new = sender.call("udp", V4, 80);
    assert!(left.iter().any(|(addr, _)| new == format!("{addr} {V4} 80")), "{new}");
    assert_eq!(connected.call("udp-receive", V4, 80), "ECONNABORTED at once");
    assert_eq!(connected.call("udp-reconnect", V4, 80), format!("connected {V4} 80"));
    let again = connected.call("udp-send", V4, 80);
    assert!(left.iter().any(|(addr, _)| again == format!("{addr} {V4} 80")), "{again}");
    assert_eq!(straight.call("udp-send", &direct, 5353), format!("{direct} {direct} 5353"));
    // The service goes altogether.
    node.plan.services = Default::default();
    node.apply();
    assert_eq!(connected.call("udp-send", V4, 80), "EDESTADDRREQ at once");
    assert_eq!(sender.call("udp", V4, 80), "ECONNREFUSED at once");
}

#[test]
fn tables_of_another_size_are_filled_before_they_are_used() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    let node = &mut fabric.nodes[0];
    add_service(node, 1, addr(V4), Protocol::TCP, &[(server.v4, 8080)]);
    node.apply();
    serve_tcp(&server.namespace, 8080);
    let mut pod = Client::start(node, &client.namespace);
    let answer = format!("hello {}", server.v4);
    assert_eq!(pod.call("tcp", V4, 80), answer);
    node.config.capacity = Capacity { frontends: 100, backends: 1000 };
    // The first agent dies before it has a plan.
    for _ in 0..2 {
        node.open();
        assert_eq!(pod.call("tcp", V4, 80), answer, "the programs before go on");
    }
    assert_eq!(node.apply().usage["backends"], Usage { used: 1, capacity: 1000 });
    assert_eq!(pod.call("tcp", V4, 80), answer);
    node.open();
    assert!(node.apply().is_unchanged());
}

/// What a socket met, by events: its backend, or why it was refused.
type Met = BTreeMap<(u64, Protocol, Addr, Port), Result<(Addr, Port), Reason>>;

fn every_kind_of_service(node: &mut Node, servers: &[support::Pod]) {
    let (v4, v6) = (|server: &support::Pod| server.v4, |server: &support::Pod| server.v6);
    let list = |id: u32, addr: fn(&support::Pod) -> Addr, count: usize| {
        let to: Vec<(Addr, u16)> = servers[..count].iter().map(|server| (addr(server), 8080)).collect();
        Arc::new(BackendList {
            id: ListId(id),
            backends: backends(&to),
            elsewhere: id % 2 == 1 && count == 0,
        })
    };
    let mut id = 0;
    let mut put = |text: &str, port: u16, exposure: Exposure, count: usize, ranges: &[&str]| {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            id += 1;
            let family = if addr(text).family() == Family::V4 { v4 } else { v6 };
            let service = ServicePlan {
                exposure,
                balancing: Balancing::Maglev,
                list: list(100 + id, family, count),
                source_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
                ..ServicePlan::cluster_ip(ServiceId(id), ServiceKey::new("test", "web"), Vec::new())
            };
            node.plan.services.insert(Frontend { addr: addr(text), protocol, port: Port(port) }, service);
        }
    };
    put(V4, 80, Exposure::ClusterIp, 3, &[]);
    put(V6, 80, Exposure::ClusterIp, 2, &[]);
    put("10.96.1.2", 80, Exposure::ClusterIp, 0, &[]);
    put("fd00:10:96::102", 80, Exposure::ClusterIp, 0, &[]);
    put("203.0.113.7", 80, Exposure::LoadBalancer, 3, &["192.0.2.0/24"]);
    put("172.30.0.11", 80, Exposure::ExternalIp, 2, &[]);
    put("0.0.0.0", 30080, Exposure::NodePort, 3, &[]);
    put("::", 30080, Exposure::NodePort, 3, &[]);
    put("0.0.0.0", 30081, Exposure::NodePort, 0, &[]);
}

#[test]
fn the_kernel_and_the_definition_agree_on_every_address() {
    let mut fabric = Fabric::new(2, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let servers: Vec<support::Pod> = [3, 4, 5].iter().map(|host| fabric.nodes[0].add_pod(*host)).collect();
    let node = &mut fabric.nodes[0];
    every_kind_of_service(node, &servers);
    let node_cookie = node.namespace.run(weft_datapath::netns_cookie).unwrap();
    let mut addresses: Vec<String> =
        [V4, V6, "10.96.1.2", "fd00:10:96::102", "203.0.113.7"].map(str::to_owned).into();
    addresses.extend(["10.96.200.1", "fd00:10:96::ffff", "10.96.0.10", "fd00:10:96::a"].map(str::to_owned));
    addresses.extend(["127.0.0.1", "127.0.0.2", "::1", "192.0.2.1", "0.0.0.0"].map(str::to_owned));
    addresses
        .extend([node_v4(1), node_v4(2), node_v6(1), node_v6(2), servers[0].v4].map(|addr| addr.to_string()));
    for localhost in [false, true] {
        node.plan.settings.localhost_node_ports = localhost;
        node.apply();
        let reader = node.with(|datapath| datapath.events()).unwrap();
        let mut expected = Met::new();
        let askers = [
            (&client.namespace, Owner::Pod, client.link.netns_cookie),
            (&node.namespace, Owner::Node, node_cookie),
        ];
        for (namespace, owner, netns_cookie) in askers {
            let mut process = Client::start(node, namespace);
            for (kind, protocol) in [("tcp-start", Protocol::TCP), ("udp-connect", Protocol::UDP)] {
                for (to, port) in
                    addresses.iter().flat_map(|to| [80, 81, 30080, 30081].map(|port| (to, port)))
                {
                    process.call(kind, to, port);
                    let asker = Asker { owner, netns_cookie };
                    let (to, port) = (addr(to), Port(port));
                    let met = weft_decide::connect(&node.plan, asker, protocol, to, port, Chance::default());
                    let met = match met {
                        Connect::Unchanged => continue,
                        Connect::To { backend, .. } => Ok((backend.addr, backend.port)),
                        Connect::Refused { reason, .. } => Err(reason),
                    };
                    expected.insert((netns_cookie, protocol, to, port), met);
                }
            }
        }
        let mut met = Met::new();
        for event in reader.poll(Duration::from_secs(1)).unwrap() {
            let key = (event.netns_cookie, event.protocol, event.destination, event.destination_port);
            match event.kind {
                EventKind::Translated => drop(met.insert(key, Ok(event.backend.unwrap()))),
                EventKind::Refused => drop(met.insert(key, Err(event.reason.unwrap()))),
                _ => {}
            }
        }
        assert!(expected.len() > 60 && expected.values().any(Result::is_err), "{}", expected.len());
        assert_eq!(met, expected, "node ports on loopback: {localhost}");
    }
}
