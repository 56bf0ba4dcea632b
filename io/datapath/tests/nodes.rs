//! Pods of one node and of two, with real sockets, in direct and VXLAN mode.

mod support;

use support::{Fabric, PATIENCE, addr, echo_tcp, echo_udp, node_v4, node_v6, ping, serve_tcp, serve_udp};
use weft_model::Routing;

const VXLAN: Routing = Routing::Vxlan { vni: 77, port: 8472 };

#[test]
fn pods_of_one_node_reach_each_other() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[0].add_pod(3);
    fabric.apply_all();
    serve_tcp(&server.namespace, 80);
    serve_udp(&server.namespace, 53);
    for to in [server.v4, server.v6] {
        echo_tcp(&client.namespace, to, 80, 1 << 20);
        assert!(echo_udp(&client.namespace, to, 53, 100, PATIENCE));
        assert!(echo_udp(&client.namespace, to, 53, 9000, PATIENCE), "fragments to {to}");
        assert!(ping(&client.namespace, to));
    }
    fabric.real_checksums();
    for to in [server.v4, server.v6] {
        echo_tcp(&client.namespace, to, 80, 1 << 18);
        assert!(echo_udp(&client.namespace, to, 53, 9000, PATIENCE), "fragments to {to} with real checksums");
    }
}

#[test]
fn node_and_pods_reach_each_other() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    fabric.apply_all();
    let node = fabric.nodes[0].namespace.clone();
    serve_tcp(&pod.namespace, 80);
    serve_tcp(&node, 81);
    serve_udp(&node, 53);
    for (to, own, name_server) in
        [(pod.v4, node_v4(1), addr("10.96.0.10")), (pod.v6, node_v6(1), addr("fd00:10:96::a"))]
    {
        echo_tcp(&node, to, 80, 1 << 16);
        assert!(ping(&node, to));
        echo_tcp(&pod.namespace, own, 81, 1 << 16);
        assert!(ping(&pod.namespace, own));
        assert!(echo_udp(&pod.namespace, name_server, 53, 100, PATIENCE));
    }
}

fn two_nodes(routing: Routing) {
    let mut fabric = Fabric::new(2, routing);
    let client = fabric.nodes[0].add_pod(2);
    let server = fabric.nodes[1].add_pod(3);
    fabric.apply_all();
    serve_tcp(&server.namespace, 80);
    serve_udp(&server.namespace, 53);
    let far_node = fabric.nodes[1].namespace.clone();
    serve_tcp(&far_node, 81);
    let check = |size: usize| {
        for to in [server.v4, server.v6] {
            echo_tcp(&client.namespace, to, 80, size);
            assert!(echo_udp(&client.namespace, to, 53, 100, PATIENCE));
            assert!(echo_udp(&client.namespace, to, 53, 9000, PATIENCE), "fragments to {to}");
            assert!(ping(&client.namespace, to));
            // From the other node's own stack to a pod of this one, and from a pod to the other node.
            echo_tcp(&fabric.nodes[0].namespace, to, 80, 1 << 16);
        }
        for own in [node_v4(2), node_v6(2)] {
            echo_tcp(&client.namespace, own, 81, 1 << 16);
        }
    };
    check(8 << 20);
    fabric.real_checksums();
    check(1 << 18);
}

#[test]
fn two_nodes_direct() {
    two_nodes(Routing::Direct);
}

#[test]
fn two_nodes_vxlan() {
    two_nodes(VXLAN);
}

#[test]
fn outside_sees_the_nodes_address() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let pod = fabric.nodes[0].add_pod(2);
    fabric.apply_all();
    serve_tcp(&fabric.outside, 80);
    // Far away, and on the nodes' own network without being a node.
    let seen_from = [
        ("192.0.2.1", node_v4(1)),
        ("2001:db8::1", node_v6(1)),
        ("172.30.0.1", node_v4(1)),
        ("fd00:172:30::1", node_v6(1)),
    ];
    for (to, own) in seen_from {
        echo_tcp(&pod.namespace, addr(to), 80, 1 << 18);
        assert!(ping(&pod.namespace, addr(to)));
        let seen = fabric.outside.run(move || {
            let listener = std::net::TcpListener::bind(("::", 0)).unwrap();
            let port = listener.local_addr().unwrap().port();
            (listener, port)
        });
        let client = support::connect(&pod.namespace, addr(to), seen.1, PATIENCE).unwrap();
        let (_, from) = seen.0.accept().unwrap();
        assert_eq!(weft_model::Addr::from(from.ip()), own, "masqueraded");
        drop(client);
    }
}
