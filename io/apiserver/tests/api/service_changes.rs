//! Services that change: types, families, ports, and what is kept, given up and refused on the way.

use serde_json::{Value, json};

use crate::services::{SERVICES, create, service};
use crate::support::{Client, Fixture};

async fn patch(admin: &Client, name: &str, spec: Value) -> crate::support::Answer {
    admin.patch(&format!("{SERVICES}/{name}"), "merge", json!({ "spec": spec })).await
}

async fn changed(admin: &Client, name: &str, spec: Value) -> Value {
    patch(admin, name, spec).await.expect(200)["spec"].clone()
}

fn absent(spec: &Value, fields: &[&str]) {
    for field in fields {
        assert!(spec.get(*field).is_none(), "{field} is still there: {spec}");
    }
}

/// Every type becomes every other one: what only the old type had is gone, what the new one needs is there.
/// Proves spec.type: Every type, and every change from one to another; what the new type does not have is given back.
#[tokio::test]
async fn every_type_becomes_every_other() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let types = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
    for from in types {
        for to in types {
            let name = format!("{}-{}", from.to_lowercase(), to.to_lowercase());
            let first = create(&admin, &name, json!({"type": from, "externalName": "a.example"})).await;
            let second = changed(&admin, &name, json!({"type": to})).await;
            check(to, &second);
            if from != "ExternalName" && to != "ExternalName" {
                assert_eq!(first["clusterIPs"], second["clusterIPs"], "{name}");
            }
            let ports = |spec: &Value| spec["ports"][0].get("nodePort").cloned();
            if let (Some(before), Some(now)) = (ports(&first), ports(&second)) {
                assert_eq!(before, now, "{name}");
            }
        }
    }
}

fn check(kind: &str, spec: &Value) {
    assert_eq!(spec["type"], kind);
    let has_address = spec["clusterIP"].as_str().is_some_and(|ip| ip.starts_with("10.96."));
    assert_eq!(has_address, kind != "ExternalName", "{spec}");
    assert_eq!(spec.get("ipFamilyPolicy").is_some(), kind != "ExternalName", "{spec}");
    let outside = matches!(kind, "NodePort" | "LoadBalancer");
    assert_eq!(spec["ports"][0].get("nodePort").is_some(), outside, "{spec}");
    assert_eq!(spec.get("externalTrafficPolicy").is_some(), outside, "{spec}");
    assert_eq!(spec.get("allocateLoadBalancerNodePorts").is_some(), kind == "LoadBalancer", "{spec}");
}

#[tokio::test]
async fn a_load_balancer_leaves_nothing_behind() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "loadBalancerClass": "weft.dev/l2"});
    let before = create(&admin, "web", spec).await;
    let health = before["healthCheckNodePort"].as_u64().unwrap();
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}});
    let reported = admin.patch(&format!("{SERVICES}/web/status"), "merge", ingress).await.expect(200);
    assert_eq!(reported["status"]["loadBalancer"]["ingress"], json!([{"ip": "192.0.2.7", "ipMode": "VIP"}]));
    let plain = patch(&admin, "web", json!({"type": "ClusterIP"})).await.expect(200);
    absent(
        &plain["spec"],
        &[
            "healthCheckNodePort",
            "loadBalancerClass",
            "allocateLoadBalancerNodePorts",
            "externalTrafficPolicy",
        ],
    );
    assert_eq!(plain["status"]["loadBalancer"], json!({}), "no balancer, no address");
    // Its ports are free again.
    for port in [health, before["ports"][0]["nodePort"].as_u64().unwrap()] {
        let name = format!("taker-{port}");
        let ports = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": port}]});
        create(&admin, &name, ports).await;
    }
}

/// Proves spec.ipFamilies: One or both, in the order asked for; the first cannot change.
/// Proves spec.ipFamilyPolicy: SingleStack, PreferDualStack and RequireDualStack, with the second address allocated and given back.
/// Proves spec.clusterIPs: Allocated, or taken as requested; the first stays for the service's life.
#[tokio::test]
async fn families_come_and_go_and_the_first_stays() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let single = create(&admin, "web", json!({})).await;
    let message = |answer: crate::support::Answer| answer.expect(422)["message"].as_str().unwrap().to_owned();
    let moved = message(patch(&admin, "web", json!({"clusterIP": "10.96.7.7"})).await);
    assert!(
        moved.contains("spec.clusterIPs[0]: Invalid value: [\"10.96.7.7\"]: may not change once set"),
        "{moved}"
    );
    let headless = message(patch(&admin, "web", json!({"clusterIP": "None"})).await);
    assert!(
        headless.contains("spec.clusterIPs[0]: Invalid value: [\"None\"]: may not change once set"),
        "{headless}"
    );
    let both = changed(&admin, "web", json!({"ipFamilyPolicy": "PreferDualStack"})).await;
    assert_eq!(both["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert_eq!(both["clusterIPs"][0], single["clusterIP"]);
    let second = both["clusterIPs"][1].clone();
    let left_out = message(patch(&admin, "web", json!({"clusterIPs": [single["clusterIP"]]})).await);
    assert!(left_out.contains("must be 'SingleStack' to release the secondary cluster IP"), "{left_out}");
    let swapped = message(patch(&admin, "web", json!({"ipFamilies": ["IPv6", "IPv4"]})).await);
    assert!(swapped.contains("`ipFamilies[0]`"), "{swapped}");
    let back = changed(&admin, "web", json!({"ipFamilyPolicy": "SingleStack"})).await;
    assert_eq!((&back["ipFamilies"], &back["clusterIPs"]), (&json!(["IPv4"]), &single["clusterIPs"]));
    let taker = json!({"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"],
        "clusterIP": second, "clusterIPs": [second]});
    let taker = create(&admin, "taker", taker).await;
    assert_eq!(taker["clusterIPs"][0], second, "the second address was given back");
    assert_eq!(taker["ipFamilies"], json!(["IPv6", "IPv4"]));
}

#[tokio::test]
async fn headless_services_have_families_without_addresses() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let by_hand = json!({"clusterIP": "None", "selector": null});
    let by_hand = create(&admin, "by-hand", by_hand).await;
    assert_eq!(
        (&by_hand["clusterIPs"], &by_hand["ipFamilies"], &by_hand["ipFamilyPolicy"]),
        (&json!(["None"]), &json!(["IPv4", "IPv6"]), &json!("RequireDualStack"))
    );
    let pods = create(&admin, "pods", json!({"clusterIP": "None"})).await;
    assert_eq!((&pods["ipFamilies"], &pods["ipFamilyPolicy"]), (&json!(["IPv4"]), &json!("SingleStack")));
    let both = changed(&admin, "pods", json!({"ipFamilyPolicy": "PreferDualStack"})).await;
    assert_eq!((&both["clusterIPs"], &both["ipFamilies"]), (&json!(["None"]), &json!(["IPv4", "IPv6"])));
    create(&admin, "no-ports", json!({"clusterIP": "None", "ports": null})).await;
}

#[tokio::test]
async fn a_cluster_that_lost_a_family_leaves_services_that_prefer_two_alone() {
    let mut fixture = Fixture::start().await;
    let before = create(&fixture.admin(), "web", json!({"ipFamilyPolicy": "PreferDualStack"})).await;
    fixture.restart_with(|config| config.service_ranges.truncate(1)).await;
    let after = changed(&fixture.admin(), "web", json!({"sessionAffinity": "ClientIP"})).await;
    assert_eq!((&after["clusterIPs"], &after["ipFamilies"]), (&before["clusterIPs"], &before["ipFamilies"]));
}

/// Proves spec.ports.name: Ports keep their node port by their name.
#[tokio::test]
async fn node_ports_follow_their_names() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
    let before = create(&admin, "web", json!({"type": "NodePort", "ports": ports})).await;
    let number = |spec: &Value, name: &str| {
        let ports = spec["ports"].as_array().unwrap();
        ports.iter().find(|port| port["name"] == name).unwrap()["nodePort"].as_u64().unwrap()
    };
    // The port behind a name moves, another takes its place, one is new.
    let ports = json!([{"name": "b", "port": 80}, {"name": "a", "port": 8080}, {"name": "c", "port": 81}]);
    let put = service("web", json!({"type": "NodePort", "ports": ports}));
    let after = admin.put(&format!("{SERVICES}/web"), put).await.expect(200)["spec"].clone();
    assert_eq!(number(&after, "a"), number(&before, "a"));
    assert_eq!(number(&after, "b"), number(&before, "b"));
    assert!(![number(&after, "a"), number(&after, "b")].contains(&number(&after, "c")), "{after}");
}

#[tokio::test]
async fn one_number_serves_several_protocols_of_one_service() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let protocols = ["TCP", "UDP", "SCTP"];
    let ports: Vec<Value> = protocols
        .iter()
        .map(|protocol| json!({"name": protocol.to_lowercase(), "port": 53, "protocol": protocol}))
        .collect();
    let spec = create(&admin, "dns", json!({"type": "NodePort", "ports": ports})).await;
    let numbers: Vec<&Value> =
        spec["ports"].as_array().unwrap().iter().map(|port| &port["nodePort"]).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] == pair[1]), "{spec}");
    let taken =
        json!({"type": "NodePort", "ports": [{"port": 53, "protocol": "UDP", "nodePort": numbers[0]}]});
    let message = crate::services::refusal(&admin, taken).await;
    assert!(message.contains("spec.ports[0].nodePort: Invalid value"), "{message}");
    assert!(message.contains("provided port is already allocated"), "{message}");
}

#[tokio::test]
async fn given_node_ports_leave_the_lowest_to_those_who_ask() {
    let fixture = Fixture::start_with(|config| config.node_ports = 31_000..=31_039).await;
    let admin = fixture.admin();
    let mut given = Vec::new();
    for index in 0..40 {
        let spec = create(&admin, &format!("s{index}"), json!({"type": "NodePort"})).await;
        given.push(spec["ports"][0]["nodePort"].as_u64().unwrap());
    }
    // Of 40 ports, the first 16 are the band for requests: they are used when nothing else is left.
    assert!(given[..24].iter().all(|port| *port >= 31_016), "{given:?}");
    assert!(given[24..].iter().all(|port| *port < 31_016), "{given:?}");
    let full = crate::services::refusal(&admin, json!({"type": "NodePort"})).await;
    assert!(full.contains("failed to allocate a nodePort: range is full"), "{full}");
    let outside = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_000}]});
    let outside = crate::services::refusal(&admin, outside).await;
    assert!(outside.contains("The range of valid ports is 31000-31039"), "{outside}");
}

/// Proves spec.allocateLoadBalancerNodePorts: With false, a balancer's ports get no node ports unless they ask for one.
#[tokio::test]
async fn load_balancers_may_do_without_node_ports() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let spec = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false});
    let spec = create(&admin, "without", spec).await;
    absent(&spec["ports"][0], &["nodePort"]);
    let with = changed(&admin, "without", json!({"allocateLoadBalancerNodePorts": true})).await;
    let port = with["ports"][0]["nodePort"].clone();
    assert!(port.is_number(), "{with}");
    let kept = json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
        "ports": [{"port": 80, "nodePort": 30_123}]});
    assert_eq!(create(&admin, "asked", kept).await["ports"][0]["nodePort"], 30_123);
    let released = changed(&admin, "without", json!({"allocateLoadBalancerNodePorts": false})).await;
    absent(&released["ports"][0], &["nodePort"]);
}

/// Proves spec.healthCheckNodePort: Allocated, or taken as requested, for balancers whose external policy is Local.
#[tokio::test]
async fn health_check_ports_come_with_local_load_balancers_only() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let spec = create(&admin, "web", json!({"type": "LoadBalancer"})).await;
    absent(&spec, &["healthCheckNodePort"]);
    let local = changed(&admin, "web", json!({"externalTrafficPolicy": "Local"})).await;
    let port = local["healthCheckNodePort"].as_u64().unwrap();
    let put = service("web", json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}));
    let again = admin.put(&format!("{SERVICES}/web"), put).await.expect(200);
    assert_eq!(again["spec"]["healthCheckNodePort"], port);
    let other = if port == 30_999 { 30_998 } else { 30_999 };
    let moved = patch(&admin, "web", json!({"healthCheckNodePort": other})).await.expect(422);
    assert!(moved["message"].as_str().unwrap().contains("field is immutable"), "{moved}");
    let cluster = changed(&admin, "web", json!({"externalTrafficPolicy": "Cluster"})).await;
    absent(&cluster, &["healthCheckNodePort"]);
    let asked =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30_777});
    assert_eq!(create(&admin, "asked", asked).await["healthCheckNodePort"], 30_777);
}

/// Proves spec.loadBalancerClass: Set once; only for balancers.
#[tokio::test]
async fn a_load_balancers_class_stays() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    create(&admin, "web", json!({"type": "LoadBalancer", "loadBalancerClass": "weft.dev/l2"})).await;
    create(&admin, "none", json!({"type": "LoadBalancer"})).await;
    for (name, class) in
        [("web", json!("other.example/x")), ("web", Value::Null), ("none", json!("a.example/x"))]
    {
        let refused = patch(&admin, name, json!({"loadBalancerClass": class})).await.expect(422);
        let text = refused["message"].as_str().unwrap();
        assert!(
            text.contains("spec.loadBalancerClass") && text.contains("may not change once set"),
            "{text}"
        );
    }
    let plain = changed(&admin, "none", json!({"type": "ClusterIP"})).await;
    assert_eq!(plain["type"], "ClusterIP");
    let chosen =
        changed(&admin, "none", json!({"type": "LoadBalancer", "loadBalancerClass": "a.example/x"})).await;
    assert_eq!(chosen["loadBalancerClass"], "a.example/x");
}

/// Proves spec.ports.appProtocol: Kept and handed on in EndpointSlices; TCP and UDP are balanced the same whatever it says.
#[tokio::test]
async fn what_is_left_open_is_filled_in() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let spec = create(&admin, "web", json!({"sessionAffinity": "ClientIP"})).await;
    assert_eq!(spec["sessionAffinityConfig"], json!({"clientIP": {"timeoutSeconds": 10_800}}));
    assert_eq!(spec["internalTrafficPolicy"], "Cluster");
    absent(&spec, &["externalTrafficPolicy", "trafficDistribution", "allocateLoadBalancerNodePorts"]);
    let none = changed(&admin, "web", json!({"sessionAffinity": "None"})).await;
    absent(&none, &["sessionAffinityConfig"]);
    let external = changed(&admin, "web", json!({"externalIPs": ["192.0.2.1"]})).await;
    assert_eq!(external["externalTrafficPolicy"], "Cluster");
    let without = changed(&admin, "web", json!({"externalIPs": null})).await;
    absent(&without, &["externalTrafficPolicy"]);
    for distribution in ["PreferClose", "PreferSameZone", "PreferSameNode"] {
        let spec = changed(&admin, "web", json!({"trafficDistribution": distribution})).await;
        assert_eq!(spec["trafficDistribution"], distribution);
    }
    let more = json!({"publishNotReadyAddresses": true, "ports": [{"port": 80, "protocol": "SCTP",
        "targetPort": "web", "appProtocol": "kubernetes.io/h2c"}]});
    let spec = changed(&admin, "web", more).await;
    assert_eq!(
        (&spec["publishNotReadyAddresses"], &spec["ports"][0]["appProtocol"]),
        (&json!(true), &json!("kubernetes.io/h2c"))
    );
}

/// Proves status.loadBalancer.ingress.hostname: Kept as reported; a balancer known by name is reached by its name, not served here.
/// Proves status.loadBalancer.ingress.ports.port, status.loadBalancer.ingress.ports.protocol, status.loadBalancer.ingress.ports.error: Kept as a balancer outside reports them; Weft's own addresses serve every port and report none.
#[tokio::test]
async fn balancers_report_addresses_and_others_may_not() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    create(&admin, "web", json!({"type": "LoadBalancer"})).await;
    create(&admin, "plain", json!({})).await;
    let report = async |name: &str, ingress: Value| {
        let body = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        admin.patch(&format!("{SERVICES}/{name}/status"), "merge", body).await
    };
    for (name, ingress, expected) in [
        ("plain", json!([{"ip": "192.0.2.7"}]), "may only be used when `spec.type` is 'LoadBalancer'"),
        ("web", json!([{"ip": "192.0.2"}]), "status.loadBalancer.ingress[0].ip: Invalid value: \"192.0.2\""),
        ("web", json!([{"hostname": "192.0.2.7"}]), "must be a DNS name, not an IP address"),
        (
            "web",
            json!([{"hostname": "a.example", "ipMode": "VIP"}]),
            "may not be specified when `ip` is not set",
        ),
        ("web", json!([{"ip": "192.0.2.7", "ipMode": "Vip"}]), "supported values: \"Proxy\", \"VIP\""),
        (
            "web",
            json!([{"ip": "192.0.2.7", "ports": [{"port": 0, "protocol": "TCP"}]}]),
            "ports[0].port: Invalid value: 0",
        ),
    ] {
        let refused = report(name, ingress).await.expect(422);
        assert!(refused["message"].as_str().unwrap().contains(expected), "{refused}");
    }
    let ingress = json!([{"ip": "192.0.2.7", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]},
        {"hostname": "lb.example"}]);
    let reported = report("web", ingress.clone()).await.expect(200);
    assert_eq!(reported["status"]["loadBalancer"]["ingress"], ingress);
    let condition = json!({"type": "weft.dev/Addresses", "status": "False", "reason": "PoolExhausted",
        "message": "no address is left", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let body = json!({"status": {"conditions": [condition]}});
    let said = admin.patch(&format!("{SERVICES}/web/status"), "merge", body).await.expect(200);
    assert_eq!(said["status"]["conditions"][0]["reason"], "PoolExhausted");
    assert_eq!(said["status"]["loadBalancer"]["ingress"], ingress, "the rest of the status stays");
    // The main resource does not touch the status.
    let touched =
        admin.patch(&format!("{SERVICES}/web"), "merge", json!({"status": {"loadBalancer": {}}})).await;
    assert_eq!(touched.expect(200)["status"]["loadBalancer"]["ingress"], ingress);
}
