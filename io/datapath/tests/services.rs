//! Services at the socket: processes in the node's cgroup meet backends under the service's address.

mod support;

use std::process::Command;
use std::time::Duration;

use support::{Fabric, Node, Pod, addr, node_v4, serve_tcp, serve_udp, serve_udp_at};
use weft_abi::EventKind;
use weft_model::{Addr, Port, Protocol, Reason, Routing, ServiceKey};
use weft_plan::{Backend, Frontend, ServiceId, ServicePlan};

/// What the process in the pod prints: `ok`, what it read, or the name of the error.
const CLIENT: &str = r#"
import errno, socket, sys, time
kind, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
start = time.monotonic()
try:
    if kind == "tcp":
        s = socket.create_connection((address, port), timeout=10)
        s.sendall(b"hello")
        print(s.recv(16).decode(), s.getpeername()[0])
    else:
        s = socket.socket(family, socket.SOCK_DGRAM)
        s.settimeout(10)
        if kind == "udp-connected":
            s.connect((address, port))
            s.send(b"hello")
            print(s.recv(16).decode(), s.getpeername()[0], s.getpeername()[1])
        else:
            s.sendto(b"hello", (address, port))
            data, peer = s.recvfrom(16)
            print(data.decode(), peer[0], peer[1])
except OSError as error:
    quick = "at once" if time.monotonic() - start < 5 else "late"
    print(errno.errorcode.get(error.errno, error), quick)
"#;

fn run(node: &Node, pod: &Pod, kind: &str, to: &str, port: u16) -> String {
    let procs = node.config.cgroup_dir.join("cgroup.procs");
    let (kind, to) = (kind.to_owned(), to.to_owned());
    pod.namespace.run(move || {
        // The shell enters the cgroup, so that every socket of its successor is the node's.
        let script = format!("echo 0 > {} && exec python3 -c \"$0\" \"$@\"", procs.display());
        let output = Command::new("sh")
            .args(["-c", &script, CLIENT, &kind, &to, &port.to_string()])
            .output()
            .expect("a shell is installed");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    })
}

fn add_service(node: &mut Node, id: u32, addr: Addr, protocol: Protocol, backends: &[(Addr, u16)]) {
    let backends = backends.iter().map(|(addr, port)| Backend::at(*addr, Port(*port))).collect();
    let service = ServicePlan::cluster_ip(ServiceId(id), ServiceKey::new("test", "web"), backends);
    node.plan.services.insert(Frontend { addr, protocol, port: Port(80) }, service);
}

const V4: &str = "10.96.1.1";
const V6: &str = "fd00:10:96::101";

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
    assert_eq!(run(node, &client, "tcp", V4, 80), format!("hello {}", server.v4));
    assert_eq!(run(node, &client, "tcp", V6, 80), format!("hello {}", server.v6));
    let mapped = format!("::ffff:{V4}");
    assert_eq!(run(node, &client, "tcp", &mapped, 80), format!("hello ::ffff:{}", server.v4));
    for kind in ["udp-connected", "udp"] {
        assert_eq!(run(node, &client, kind, V4, 80), format!("hello {V4} 80"), "{kind}");
        assert_eq!(run(node, &client, kind, V6, 80), format!("hello {V6} 80"), "{kind}");
        assert_eq!(run(node, &client, kind, &mapped, 80), format!("hello {mapped} 80"), "{kind}");
    }
    let events = reader.poll(Duration::from_secs(1)).unwrap();
    let translated: Vec<_> = events.iter().filter(|event| event.kind == EventKind::Translated).collect();
    assert!(translated.len() >= 9, "{translated:#?}");
    assert!(translated.iter().all(|event| event.netns_cookie == client.link.netns_cookie));
    let first = translated[0];
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
    assert_eq!(run(node, &client, "tcp", V4, 80), format!("hello {}", server.v4));
    for (id, frontend) in [(1, addr(V4)), (2, addr(V6))] {
        add_service(node, id, frontend, Protocol::TCP, &[]);
    }
    node.apply();
    for to in [V4, V6] {
        assert_eq!(run(node, &client, "tcp", to, 80), "ECONNREFUSED at once");
        assert_eq!(run(node, &client, "udp", to, 80), "ECONNREFUSED at once");
        assert_eq!(run(node, &client, "udp-connected", to, 80), "ECONNREFUSED at once");
        assert_eq!(run(node, &client, "tcp", to, 81), "ECONNREFUSED at once", "not a port of the service");
    }
    assert_eq!(
        run(node, &client, "tcp", "10.96.200.1", 80),
        "ECONNREFUSED at once",
        "nobody's service address"
    );
    let counters = node.with(|datapath| datapath.counters()).unwrap();
    assert!(counters.reasons[&Reason::NoReadyBackends].packets >= 6);
    assert!(counters.reasons[&Reason::NotTranslated].packets >= 3);
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
    assert_eq!(run(node, &client, "udp", "10.96.0.10", 53), "hello 10.96.0.10 53");
    assert_eq!(run(node, &client, "tcp", &node_v4(1).to_string(), 81), format!("hello {}", node_v4(1)));
}

#[test]
fn every_backend_gets_its_share() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let servers = [3, 4, 5].map(|host| fabric.nodes[0].add_pod(host));
    let node = &mut fabric.nodes[0];
    let backends: Vec<(Addr, u16)> = servers.iter().map(|server| (server.v4, 8080)).collect();
    add_service(node, 1, addr(V4), Protocol::TCP, &backends);
    node.apply();
    for server in &servers {
        serve_tcp(&server.namespace, 8080);
    }
    let answers: std::collections::BTreeSet<String> =
        (0..40).map(|_| run(node, &client, "tcp", V4, 80)).collect();
    assert_eq!(answers.len(), 3, "{answers:?}");
}
