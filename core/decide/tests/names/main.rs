//! Kubernetes objects in, answers out: the sections of Kubernetes DNS-Based Service Discovery 1.1.0, one test each.

mod properties;
mod searching;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_decide::names::{NameAnswer, NameDecision, NameRecord, QueryType, answer};
use weft_model::testing::Cluster;
use weft_model::{ClusterSettings, NodeName};
use weft_plan::NamePlan;

/// Namespaces `shop` and `other`, and these services and slices in `shop`.
pub fn cluster(services: Value, slices: Value) -> Cluster {
    let namespaces = json!([{"metadata": {"name": "shop"}}, {"metadata": {"name": "other"}}]);
    Cluster {
        settings: ClusterSettings {
            dns_addresses: vec!["10.96.0.10".parse().unwrap(), "fd00:10:96::a".parse().unwrap()],
            pod_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
            ..ClusterSettings::default()
        },
        namespaces: read(namespaces),
        services: read(services),
        slices: read(slices),
        ..Cluster::default()
    }
}

pub fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap_or_else(|error| panic!("not the object meant: {error}"))
}

pub fn plan(cluster: &Cluster) -> NamePlan {
    let (node, plan) = (NodeName::new("node1"), |node| {
        let (snapshot, findings) = cluster.parse();
        assert_eq!(findings, [], "the objects are good");
        drop(snapshot);
        weft_compile::compile(&cluster.snapshot_on(node), node).plan.names
    });
    NamePlan::clone(&plan(&node))
}

pub fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name, "uid": name}, "spec": spec})
}

pub fn slice(service: &str, family: &str, ports: Value, endpoints: Value) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": format!("{service}-{family}").to_lowercase(),
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": family, "ports": ports, "endpoints": endpoints,
    })
}

/// Records as rows, or what there is in their place with the zone that says so.
pub fn rows(decision: &NameDecision) -> Vec<String> {
    let mut rows: Vec<String> = decision.chain.iter().map(NameRecord::to_string).collect();
    let zone = decision.zone.as_deref().unwrap_or("nobody");
    match &decision.answer {
        NameAnswer::Records(records) => rows.extend(records.iter().map(NameRecord::to_string)),
        NameAnswer::NoData => rows.push(format!("NODATA of {zone}")),
        NameAnswer::NxDomain => rows.push(format!("NXDOMAIN of {zone}")),
        NameAnswer::NotOurs(name) => rows.push(format!("upstream {name}")),
        NameAnswer::Walk(walk) => rows.push(format!("upstream {}", walk.outside.join(" "))),
    }
    rows
}

fn ask(plan: &NamePlan, name: &str, query: &str) -> Vec<String> {
    rows(&answer(plan, name, query.parse::<QueryType>().unwrap()))
}

fn web() -> NamePlan {
    let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "game", "port": 7, "protocol": "SCTP"}]);
    let spec =
        json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5", "fd00:10:96::5"], "ports": ports});
    let unnamed = json!({"clusterIP": "10.96.0.6", "clusterIPs": ["10.96.0.6"], "ports": [{"port": 80}]});
    plan(&cluster(json!([service("web", spec), service("one", unnamed)]), json!([])))
}

/// A headless service with a named endpoint in both families, one without a name, one that is not ready.
fn db(more: Value) -> NamePlan {
    let mut spec =
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "sql", "port": 5432}]});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    let ports = json!([{"name": "sql", "port": 15432, "protocol": "TCP"}]);
    let ready = |address: &str| json!({"addresses": [address], "conditions": {"ready": true}});
    let mut first = ready("10.244.0.7");
    first["hostname"] = "db-0".into();
    let mut first_v6 = ready("fd00:10:244::7");
    first_v6["hostname"] = "db-0".into();
    let starting = json!({"addresses": ["10.244.0.9"], "conditions": {"ready": false}, "hostname": "db-2"});
    let slices = json!([
        slice("db", "IPv4", ports.clone(), json!([first, ready("10.244.0.8"), starting])),
        slice("db", "IPv6", ports, json!([first_v6, ready("fd00:10:244::8")])),
    ]);
    plan(&cluster(json!([service("db", spec)]), slices))
}

/// Proves DNS-SD 2.1: Names are found whatever their case.
#[test]
fn comparisons_do_not_see_case() {
    assert_eq!(ask(&web(), "WEB.Shop.sVc.CLUSTER.local.", "A"), ["web.shop.svc.cluster.local A 10.96.0.5"]);
}

/// Proves DNS-SD 2.2: `dns-version` has the TXT record "1.1.0".
#[test]
fn the_schema_has_a_version() {
    assert_eq!(ask(&web(), "dns-version.cluster.local", "TXT"), ["dns-version.cluster.local TXT \"1.1.0\""]);
    assert_eq!(ask(&web(), "dns-version.cluster.local", "A"), ["NODATA of cluster.local"]);
}

/// Proves DNS-SD 2.3.1: The cluster IPs of both families; a family the service does not have is NODATA.
#[test]
fn a_service_has_its_cluster_ips() {
    let plan = web();
    assert_eq!(ask(&plan, "web.shop.svc.cluster.local", "A"), ["web.shop.svc.cluster.local A 10.96.0.5"]);
    assert_eq!(
        ask(&plan, "web.shop.svc.cluster.local", "AAAA"),
        ["web.shop.svc.cluster.local AAAA fd00:10:96::5"]
    );
    assert_eq!(ask(&plan, "one.shop.svc.cluster.local", "AAAA"), ["NODATA of cluster.local"]);
    assert_eq!(ask(&plan, "none.shop.svc.cluster.local", "A"), ["NXDOMAIN of cluster.local"]);
    assert_eq!(ask(&plan, "web.other.svc.cluster.local", "A"), ["NXDOMAIN of cluster.local"]);
    assert_eq!(ask(&plan, "shop.svc.cluster.local", "A"), ["NODATA of cluster.local"]);
}

/// Proves DNS-SD 2.3.2: One record for each named port and protocol, none for ports without a name; names above it exist.
#[test]
fn named_ports_of_a_service_have_srv_records() {
    let plan = web();
    for (name, port) in [("_http._tcp", 80), ("_dns._udp", 53), ("_game._sctp", 7)] {
        let full = format!("{name}.web.shop.svc.cluster.local");
        let expected = format!("{full} SRV 0 100 {port} web.shop.svc.cluster.local");
        assert_eq!(ask(&plan, &full, "SRV"), [expected]);
        let decision = answer(&plan, &full, QueryType::Srv);
        assert_eq!(decision.additional.len(), 2, "the target's addresses come with it");
        assert_eq!(ask(&plan, &full, "A"), ["NODATA of cluster.local"]);
    }
    assert_eq!(ask(&plan, "_tcp.web.shop.svc.cluster.local", "SRV"), ["NODATA of cluster.local"]);
    assert_eq!(ask(&plan, "_tcp.one.shop.svc.cluster.local", "SRV"), ["NXDOMAIN of cluster.local"]);
    assert_eq!(ask(&plan, "_http._udp.web.shop.svc.cluster.local", "SRV"), ["NXDOMAIN of cluster.local"]);
}

/// Proves DNS-SD 2.3.3, RFC 3596 §2.5: The name of a cluster IP, in both families.
#[test]
fn cluster_ips_point_to_their_service() {
    let v6 = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa";
    for name in ["5.0.96.10.in-addr.arpa", v6] {
        assert_eq!(ask(&web(), name, "PTR"), [format!("{name} PTR web.shop.svc.cluster.local")]);
    }
}

/// Proves DNS-SD 2.4.1: The ready endpoints in both families, each by its hostname or, without one, by its address; NXDOMAIN
/// when there is none. With publishNotReadyAddresses all are.
#[test]
fn a_headless_service_has_its_ready_endpoints() {
    let plan = db(json!({}));
    assert_eq!(
        ask(&plan, "db.shop.svc.cluster.local", "A"),
        ["db.shop.svc.cluster.local A 10.244.0.7", "db.shop.svc.cluster.local A 10.244.0.8"]
    );
    assert_eq!(
        ask(&plan, "db.shop.svc.cluster.local", "AAAA"),
        ["db.shop.svc.cluster.local AAAA fd00:10:244::7", "db.shop.svc.cluster.local AAAA fd00:10:244::8"]
    );
    assert_eq!(
        ask(&plan, "db-0.db.shop.svc.cluster.local", "A"),
        ["db-0.db.shop.svc.cluster.local A 10.244.0.7"]
    );
    for name in ["10-244-0-8.db.shop.svc.cluster.local", "fd00-10-244--8.db.shop.svc.cluster.local"] {
        let found = [ask(&plan, name, "A"), ask(&plan, name, "AAAA")].concat();
        assert!(found.iter().any(|row| row.starts_with(name)), "{found:?}");
    }
    assert_eq!(ask(&plan, "db-2.db.shop.svc.cluster.local", "A"), ["NXDOMAIN of cluster.local"]);
    assert_eq!(
        ask(&db(json!({"publishNotReadyAddresses": true})), "db-2.db.shop.svc.cluster.local", "A"),
        ["db-2.db.shop.svc.cluster.local A 10.244.0.9"]
    );
    let spec = json!({"clusterIP": "None", "clusterIPs": ["None"]});
    let empty = self::plan(&cluster(json!([service("db", spec)]), json!([])));
    assert_eq!(ask(&empty, "db.shop.svc.cluster.local", "A"), ["NXDOMAIN of cluster.local"]);
    assert_eq!(ask(&empty, "db.shop.svc.cluster.local", "TXT"), ["NXDOMAIN of cluster.local"]);
}

/// Proves DNS-SD 2.4.2: One record for each endpoint and named port, with the endpoint's own port number.
#[test]
fn endpoints_have_srv_records() {
    let name = "_sql._tcp.db.shop.svc.cluster.local";
    let targets = ["10-244-0-8", "db-0", "fd00-10-244--8"];
    let expected = targets.map(|host| format!("{name} SRV 0 100 15432 {host}.db.shop.svc.cluster.local"));
    assert_eq!(ask(&db(json!({})), name, "SRV"), expected);
}

/// Proves DNS-SD 2.4.3: The endpoint's name below its service; an address of no named endpoint is NXDOMAIN.
#[test]
fn endpoints_are_pointed_to() {
    let plan = db(json!({}));
    let name = "7.0.244.10.in-addr.arpa";
    assert_eq!(ask(&plan, name, "PTR"), [format!("{name} PTR db-0.db.shop.svc.cluster.local")]);
    assert_eq!(ask(&plan, "9.0.244.10.in-addr.arpa", "PTR"), ["NXDOMAIN of 244.10.in-addr.arpa"]);
}

/// Proves DNS-SD 2.5, RFC 1034 §4.3.2: An alias, followed inside the cluster and handed on outside.
#[test]
fn external_names_are_aliases() {
    let external = |to: &str| json!({"type": "ExternalName", "externalName": to});
    let spec = json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ports": [{"port": 80}]});
    let services = json!([
        service("web", spec),
        service("out", external("WWW.example.com.")),
        service("near", external("web.shop.svc.cluster.local")),
    ]);
    let plan = plan(&cluster(services, json!([])));
    let out = "out.shop.svc.cluster.local CNAME www.example.com";
    assert_eq!(ask(&plan, "out.shop.svc.cluster.local", "A"), [out, "upstream www.example.com"]);
    assert_eq!(ask(&plan, "out.shop.svc.cluster.local", "CNAME"), [out]);
    assert_eq!(
        ask(&plan, "near.shop.svc.cluster.local", "A"),
        [
            "near.shop.svc.cluster.local CNAME web.shop.svc.cluster.local",
            "web.shop.svc.cluster.local A 10.96.0.5"
        ]
    );
}

/// Proves DNS-SD 2.6: The address it spells, in every namespace there is, whether or not a pod has it.
#[test]
fn pod_names_spell_addresses() {
    let plan = web();
    let v4 = "10-1-2-3.shop.pod.cluster.local";
    assert_eq!(ask(&plan, v4, "A"), [format!("{v4} A 10.1.2.3")]);
    assert_eq!(ask(&plan, v4, "AAAA"), ["NODATA of cluster.local"]);
    let v6 = "fd00--7.other.pod.cluster.local";
    assert_eq!(ask(&plan, v6, "AAAA"), [format!("{v6} AAAA fd00::7")]);
    for name in [
        "10-1-2-3.nowhere.pod.cluster.local",
        "256-1-2-3.shop.pod.cluster.local",
        "10-1-2.shop.pod.cluster.local",
    ] {
        assert_eq!(ask(&plan, name, "A"), ["NXDOMAIN of cluster.local"], "{name}");
    }
}

/// Proves names.pods: A pod's hostname below the service its subdomain names, as StatefulSets give them to their pods.
#[test]
fn hostnames_are_below_the_service_of_their_subdomain() {
    let plan = db(json!({}));
    for query in ["A", "AAAA"] {
        assert_eq!(ask(&plan, "db-0.db.shop.svc.cluster.local", query).len(), 1);
    }
    assert_eq!(ask(&plan, "db-0.shop.svc.cluster.local", "A"), ["NXDOMAIN of cluster.local"]);
}

/// Proves RFC 3597 §3: A type that is not known here is one the name has no records of, and its name does exist.
#[test]
fn unknown_types_are_types() {
    let decision = answer(&web(), "web.shop.svc.cluster.local", QueryType::from_number(65_400));
    assert_eq!(rows(&decision), ["NODATA of cluster.local"]);
    assert_eq!(
        decision.cause.to_string(),
        "web.shop.svc.cluster.local exists and has no TYPE65400 records, only A, AAAA"
    );
}
