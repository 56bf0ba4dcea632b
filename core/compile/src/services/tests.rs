//! Services as objects, lists and frontends as expected from the API's documents.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::{Value, json};
use weft_model::NodeName;
use weft_model::testing::Cluster;
use weft_plan::{NodePlan, ServicePlan};

use crate::compile;

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Three nodes in zones a, a and b, a service of `spec` and its endpoints.
fn cluster(spec: Value, status: Value, endpoints: &[Value]) -> Cluster {
    let node = |number: u8, zone: &str| {
        parse(json!({
            "metadata": {"name": format!("node{number}"), "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("172.30.0.1{number}")}]},
        }))
    };
    let service: core::Service =
        parse(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec, "status": status}));
    let slice: discovery::EndpointSlice = parse(json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    }));
    Cluster {
        nodes: vec![node(1, "a"), node(2, "a"), node(3, "b")],
        services: vec![service],
        slices: vec![slice],
        ..Default::default()
    }
}

fn endpoint(number: u8, conditions: Value) -> Value {
    json!({"addresses": [format!("10.244.{number}.2")], "nodeName": format!("node{number}"), "conditions": conditions})
}

fn ready(number: u8) -> Value {
    endpoint(number, json!({"ready": true}))
}

fn terminating(number: u8) -> Value {
    endpoint(number, json!({"ready": false, "serving": true, "terminating": true}))
}

fn plan(cluster: &Cluster, node: &str) -> NodePlan {
    compile(&cluster.snapshot(), &NodeName::new(node)).plan
}

fn messages(cluster: &Cluster) -> Vec<String> {
    let compiled = compile(&cluster.snapshot(), &NodeName::new("node1"));
    compiled
        .findings
        .iter()
        .filter(|finding| finding.object.starts_with("Service"))
        .map(ToString::to_string)
        .collect()
}

fn frontends(plan: &NodePlan) -> Vec<String> {
    plan.services.keys().map(ToString::to_string).collect()
}

fn frontend<'a>(plan: &'a NodePlan, text: &str) -> &'a ServicePlan {
    let mut found = plan.services.iter().filter(|(frontend, _)| frontend.to_string() == text);
    found.next().unwrap_or_else(|| panic!("{text} is not among {:?}", frontends(plan))).1
}

/// Third octets of the backends: their nodes' numbers.
fn nodes(list: &weft_plan::BackendList) -> Vec<u8> {
    list.backends.iter().map(|backend| backend.addr.octets()[14]).collect()
}

/// Proves spec.clusterIP: The address clients in the cluster use, on every node.
/// Proves spec.externalIPs: Served like a balancer's address; never another service's cluster IP.
/// Proves spec.ports.port: The port of cluster IP, external and balancer addresses.
/// Proves spec.ports.nodePort: The port on every address of every node.
/// Proves status.loadBalancer.ingress.ip: Served on every node, for clients in the cluster and from outside.
/// Proves status.loadBalancer.ingress.ipMode: VIP addresses are served; Proxy addresses are left to the machine that has them.
#[test]
fn every_exposure_has_its_frontends() {
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "externalIPs": ["192.0.2.1"], "ports": [{"port": 80, "nodePort": 30080}]});
    let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}, {"ip": "198.51.100.10", "ipMode": "Proxy"}]}});
    let plan = plan(&cluster(spec, status, &[ready(1), ready(2)]), "node1");
    assert_eq!(
        frontends(&plan),
        ["0.0.0.0:30080/TCP", "10.96.0.7:80/TCP", "192.0.2.1:80/TCP", "198.51.100.9:80/TCP"]
    );
    let (cluster_ip, node_port) = (frontend(&plan, "10.96.0.7:80/TCP"), frontend(&plan, "0.0.0.0:30080/TCP"));
    assert!(cluster_ip.edge.is_none());
    assert_eq!(cluster_ip.list, node_port.list);
    assert_eq!(node_port.edge.as_ref().unwrap().list, node_port.list);
}

/// Proves spec.internalTrafficPolicy: Local keeps cluster IP traffic on its node.
/// Proves spec.externalTrafficPolicy: Local keeps traffic from outside on the node it came to, with the client's address.
#[test]
fn a_local_policy_keeps_to_this_nodes_endpoints_for_those_it_concerns() {
    let both = json!({"type": "NodePort", "clusterIP": "10.96.0.7", "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}]});
    let cluster = cluster(both, json!({}), &[ready(1), ready(2)]);
    let expected = [("node1", vec![1], false), ("node2", vec![2], false), ("node3", vec![], true)];
    for (node, here, elsewhere) in expected {
        let plan = plan(&cluster, node);
        let cluster_ip = &frontend(&plan, "10.96.0.7:80/TCP").list;
        assert_eq!((nodes(cluster_ip), cluster_ip.elsewhere), (here.clone(), elsewhere), "{node}");
        let node_port = frontend(&plan, "0.0.0.0:30080/TCP");
        assert_eq!(nodes(&node_port.list), [1, 2], "clients in the cluster are not outside");
        assert_eq!(nodes(&node_port.edge.as_ref().unwrap().list), here, "{node}");
        assert_ne!(node_port.list.id, node_port.edge.as_ref().unwrap().list.id);
    }
}

#[test]
fn terminating_endpoints_serve_when_nothing_else_is_left() {
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.7", "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}]});
    let lists = |endpoints: &[Value], node: &str| {
        let plan = plan(&cluster(spec.clone(), json!({}), endpoints), node);
        let node_port = frontend(&plan, "0.0.0.0:30080/TCP");
        (nodes(&node_port.list), nodes(&node_port.edge.as_ref().unwrap().list))
    };
    assert_eq!(lists(&[ready(1), terminating(2)], "node1"), (vec![1], vec![1]));
    // KEP-1669: among the node's own endpoints the same holds.
    assert_eq!(lists(&[ready(1), terminating(2)], "node2"), (vec![1], vec![2]));
    assert_eq!(lists(&[terminating(1), terminating(2)], "node3"), (vec![1, 2], vec![]));
    assert_eq!(lists(&[endpoint(1, json!({"ready": false}))], "node1"), (vec![], vec![]));
}

/// Proves spec.trafficDistribution: Hints lead to endpoints of the same node, then zone, then to all.
#[test]
fn hints_lead_to_the_node_then_to_the_zone_and_to_all_when_one_lacks_them() {
    let hinted = |number: u8, hints: Value| {
        let mut endpoint = ready(number);
        endpoint["hints"] = hints;
        endpoint
    };
    let zone = |number: u8, zone: &str| hinted(number, json!({"forZones": [{"name": zone}]}));
    let node = |number: u8, zone: &str| {
        hinted(number, json!({"forZones": [{"name": zone}], "forNodes": [{"name": format!("node{number}")}]}))
    };
    let cases = [
        ("zones", vec![zone(1, "a"), zone(2, "a"), zone(3, "b")], [vec![1, 2], vec![1, 2], vec![3]]),
        ("a zone without endpoints", vec![zone(1, "a"), zone(2, "a")], [vec![1, 2], vec![1, 2], vec![1, 2]]),
        ("one without hints", vec![zone(1, "a"), ready(3)], [vec![1, 3], vec![1, 3], vec![1, 3]]),
        ("nodes", vec![node(1, "a"), node(3, "b")], [vec![1], vec![1], vec![3]]),
    ];
    let spec =
        json!({"clusterIP": "10.96.0.7", "trafficDistribution": "PreferSameNode", "ports": [{"port": 80}]});
    for (name, endpoints, expected) in cases {
        let cluster = cluster(spec.clone(), json!({}), &endpoints);
        for (number, expected) in (1..).zip(expected) {
            let plan = plan(&cluster, &format!("node{number}"));
            assert_eq!(nodes(&frontend(&plan, "10.96.0.7:80/TCP").list), expected, "{name}, node{number}");
        }
    }
}

/// Proves spec.loadBalancerSourceRanges: Only these clients reach the balancer's addresses, from pods too.
#[test]
fn source_ranges_are_for_the_balancers_addresses() {
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "loadBalancerSourceRanges": ["203.0.113.0/24"], "ports": [{"port": 80, "nodePort": 30080}]});
    let status = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}});
    let plan = plan(&cluster(spec, status, &[ready(1)]), "node1");
    assert_eq!(frontend(&plan, "198.51.100.9:80/TCP").source_ranges.len(), 1);
    assert!(frontend(&plan, "0.0.0.0:30080/TCP").source_ranges.is_empty());
    assert!(frontend(&plan, "10.96.0.7:80/TCP").source_ranges.is_empty());
}

/// Proves spec.healthCheckNodePort: Answers how many ready endpoints the node has.
#[test]
fn health_checks_count_the_nodes_ready_endpoints_once() {
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000, "ports": [{"port": 80, "nodePort": 30080}]});
    let mut cluster = cluster(spec, json!({}), &[ready(1), ready(2), terminating(3)]);
    let pod = json!({"kind": "Pod", "name": "web-a", "namespace": "shop"});
    cluster.slices[0].endpoints[0].target_ref = Some(parse(pod.clone()));
    let mut v6 = cluster.slices[0].clone();
    v6.metadata.name = Some("web-2".to_owned());
    v6.address_type = "IPv6".to_owned();
    v6.endpoints = vec![parse(
        json!({"addresses": ["fd00:10:244:1::2"], "nodeName": "node1", "conditions": {"ready": true}, "targetRef": pod}),
    )];
    cluster.slices.push(v6);
    let counts = ["node1", "node2", "node3"].map(|node| {
        let checks = plan(&cluster, node).health_checks;
        checks.into_iter().map(|(port, check)| (port.0, check.local_endpoints)).collect::<Vec<_>>()
    });
    assert_eq!(counts, [vec![(31000, 1)], vec![(31000, 1)], vec![(31000, 0)]]);
}

#[test]
fn weights_come_from_pods_and_slices() {
    let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
    let mut cluster = cluster(spec, json!({}), &[ready(1), ready(2)]);
    cluster.slices[0].metadata.annotations = Some([("weft.dev/weight".to_owned(), "3".to_owned())].into());
    cluster.slices[0].endpoints[1].target_ref =
        Some(parse(json!({"kind": "Pod", "name": "web-b", "namespace": "shop"})));
    cluster.pods = vec![parse(json!({
        "metadata": {"name": "web-b", "namespace": "shop", "annotations": {"weft.dev/weight": "7"}}, "spec": {"containers": []},
    }))];
    let plan = plan(&cluster, "node1");
    let weights: Vec<u8> =
        frontend(&plan, "10.96.0.7:80/TCP").backends().iter().map(|backend| backend.weight.0).collect();
    assert_eq!(weights, [3, 7]);
}

/// Proves spec.ports.protocol: TCP and UDP; SCTP is said not to be served, and which kernels have none.
#[test]
fn what_cannot_be_served_is_said_and_takes_nothing_away() {
    let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.0.7", "externalIPs": ["10.96.0.8", "2001:db8::1"], "ports": [{"port": 80}, {"name": "s", "protocol": "SCTP", "port": 90}]});
    let mut cluster = cluster(spec, json!({}), &[ready(1)]);
    cluster.services.push(parse(json!({
        "metadata": {"name": "other", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.8", "ports": [{"port": 80}]},
    })));
    let plan = plan(&cluster, "node1");
    assert_eq!(frontend(&plan, "10.96.0.8:80/TCP").service.to_string(), "shop/other");
    let expected = [
        "error: Service shop/web: spec.externalIPs[0]: 10.96.0.8:80/TCP belongs to service shop/other already; it is not served for this one",
        "error: Service shop/web: spec.externalIPs[1]: 2001:db8::1 is not of the service's families; it is not served",
        "error: Service shop/web: spec.ports[1].protocol: SCTP port 90 is not served: the datapath balances TCP and UDP",
    ];
    assert_eq!(messages(&cluster), expected);
    let mut said = |kernels: &[&str]| {
        let node = |(index, sctp): (usize, &&str)| {
            parse(json!({
                "metadata": {"name": format!("node{}", index + 1)},
                "status": {"conditions": [{"type": "weft.dev/Sctp", "status": sctp}],
                    "addresses": [{"type": "InternalIP", "address": format!("172.30.0.{}", index + 11)}]},
            }))
        };
        cluster.nodes = kernels.iter().enumerate().map(node).collect();
        messages(&cluster).last().cloned().unwrap_or_default()
    };
    assert!(said(&["False", "False"]).ends_with("served: no node's kernel has SCTP (CONFIG_IP_SCTP)"));
    assert!(said(&["False", "True"]).ends_with("UDP, and the kernel of node node1 has no SCTP"));
    assert!(said(&["True", "True"]).ends_with("served: the datapath balances TCP and UDP"));
}
