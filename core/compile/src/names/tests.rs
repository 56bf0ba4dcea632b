//! What names a cluster has, by section of the specification.

use weft_model::{
    ClusterSettings, Endpoint, EndpointCondition, Family, Namespace, Port, Protocol, Service, ServicePort,
    TargetPort, Uid,
};

use super::records::address_label;
use super::*;

fn addr(text: &str) -> Addr {
    text.parse().unwrap()
}

fn service(name: &str, kind: ServiceKind, ips: &[&str], ports: &[(&str, u16)]) -> Service {
    Service {
        uid: Uid::new(name),
        kind,
        cluster_ips: ips.iter().map(|ip| addr(ip)).collect(),
        ports: ports
            .iter()
            .map(|(name, port)| ServicePort {
                name: (*name).to_owned(),
                protocol: Protocol::TCP,
                port: Port(*port),
                target: TargetPort::Number(Port(*port)),
                node_port: None,
                app_protocol: None,
            })
            .collect(),
        selector: Some(weft_model::Selector::everything()),
        ..Service::new(ServiceKey::new("shop", name), ServiceKind::ClusterIp)
    }
}

fn endpoint(ip: &str, hostname: Option<&str>, condition: EndpointCondition) -> Endpoint {
    Endpoint {
        addresses: BTreeSet::from([addr(ip)]),
        condition,
        hostname: hostname.map(str::to_owned),
        node: None,
        zone: None,
        target: None,
        hints: Default::default(),
        weight: Default::default(),
    }
}

fn slice(service: &str, name: &str, family: Family, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        service: ServiceKey::new("shop", service),
        name: name.to_owned(),
        family,
        ports: vec![("peer".to_owned(), Protocol::TCP, Port(7000)), (String::new(), Protocol::TCP, Port(1))],
        endpoints,
    }
}

fn compile(snapshot: &Snapshot) -> NamePlan {
    NamePlan::clone(&Names::of(snapshot, &Locals::attached(snapshot)).plan)
}

fn snapshot(services: Vec<Service>, slices: Vec<EndpointSlice>) -> Snapshot {
    Snapshot {
        settings: ClusterSettings {
            cluster_domain: "Cluster.Local.".to_owned(),
            dns_addresses: vec![addr("10.96.0.10"), addr("fd00:10:96::a")],
            pod_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            ..ClusterSettings::default()
        },
        namespaces: ["shop", "bare"]
            .map(|name| {
                let name = NamespaceName::new(name);
                (name.clone(), Namespace { name, labels: BTreeMap::new() })
            })
            .into(),
        services: services.into_iter().map(|service| (service.key.clone(), service)).collect(),
        slices: slices.into_iter().map(|slice| (ServiceKey::new("shop", &slice.name), slice)).collect(),
        ..Snapshot::default()
    }
}

#[test]
fn cluster_ip_services_have_addresses_named_ports_and_pointers() {
    let web =
        service("web", ServiceKind::ClusterIp, &["10.96.0.5", "fd00:10:96::5"], &[("http", 80), ("", 81)]);
    let plan = compile(&snapshot(vec![web], vec![]));
    let records = &plan.names["web.shop.svc.cluster.local"];
    assert_eq!(records.a, BTreeSet::from(["10.96.0.5".parse().unwrap()]));
    assert_eq!(records.aaaa, BTreeSet::from(["fd00:10:96::5".parse().unwrap()]));
    let srv = &plan.names["_http._tcp.web.shop.svc.cluster.local"].srv;
    assert_eq!(srv.iter().map(|srv| srv.port).collect::<Vec<_>>(), [80]);
    assert_eq!(srv.first().unwrap().target, "web.shop.svc.cluster.local");
    assert_eq!(plan.names["_tcp.web.shop.svc.cluster.local"], NameRecords::default());
    assert!(!plan.names.keys().any(|name| name.starts_with("_.")), "an unnamed port has no SRV record");
    let pointed = BTreeSet::from(["web.shop.svc.cluster.local".to_owned()]);
    assert_eq!(plan.pointers[&addr("10.96.0.5")], pointed);
    assert_eq!(plan.pointers[&addr("fd00:10:96::5")], pointed);
}

#[test]
fn headless_services_name_their_ready_endpoints() {
    let db = service("db", ServiceKind::Headless, &[], &[("peer", 1)]);
    let v4 = slice(
        "db",
        "db-1",
        Family::V4,
        vec![
            endpoint("10.244.0.7", Some("db-0"), EndpointCondition::Ready),
            endpoint("10.244.0.8", None, EndpointCondition::Ready),
            endpoint("10.244.0.9", Some("db-2"), EndpointCondition::NotReady),
        ],
    );
    let v6 =
        slice("db", "db-2", Family::V6, vec![endpoint("fd00::7", Some("db-0"), EndpointCondition::Ready)]);
    let plan = compile(&snapshot(vec![db], vec![v4, v6]));
    let all = &plan.names["db.shop.svc.cluster.local"];
    assert_eq!((all.a.len(), all.aaaa.len()), (2, 1));
    let host = &plan.names["db-0.db.shop.svc.cluster.local"];
    assert_eq!((host.a.len(), host.aaaa.len()), (1, 1));
    assert!(plan.names.contains_key("10-244-0-8.db.shop.svc.cluster.local"));
    assert!(!plan.names.contains_key("db-2.db.shop.svc.cluster.local"));
    let srv = &plan.names["_peer._tcp.db.shop.svc.cluster.local"].srv;
    assert_eq!(srv.iter().map(|srv| srv.port).collect::<BTreeSet<_>>(), BTreeSet::from([7000]));
    assert_eq!(srv.len(), 2, "one for each endpoint, whatever its number of families");
    assert!(plan.pointers[&addr("10.244.0.7")].contains("db-0.db.shop.svc.cluster.local"));
}

#[test]
fn a_headless_service_without_ready_endpoints_is_absent_with_the_cause() {
    let db = service("db", ServiceKind::Headless, &[], &[]);
    let endpoints = vec![endpoint("10.244.0.7", Some("db-0"), EndpointCondition::NotReady)];
    let slices = vec![slice("db", "db-1", Family::V4, endpoints)];
    let plan = compile(&snapshot(vec![db.clone()], slices.clone()));
    assert!(!plan.names.contains_key("db.shop.svc.cluster.local"));
    assert_eq!(
        plan.absent["db.shop.svc.cluster.local"].to_string(),
        "headless service shop/db has no ready endpoints (1 not ready)"
    );
    let published = Service { publish_not_ready: true, ..db };
    let plan = compile(&snapshot(vec![published], slices));
    assert_eq!(plan.names["db-0.db.shop.svc.cluster.local"].a.len(), 1);
    assert!(plan.absent.is_empty());
}

#[test]
fn the_zone_has_its_version_its_server_and_empty_namespaces() {
    let out = service("out", ServiceKind::ExternalName("Www.Example.Com.".to_owned()), &[], &[]);
    let plan = compile(&snapshot(vec![out], vec![]));
    assert_eq!(plan.domain, "cluster.local");
    assert_eq!(plan.names["dns-version.cluster.local"].txt.as_deref(), Some("1.1.0"));
    assert_eq!(plan.names["out.shop.svc.cluster.local"].cname.as_deref(), Some("www.example.com"));
    assert_eq!(plan.names["bare.svc.cluster.local"], NameRecords::default());
    assert_eq!(plan.names["ns.dns.cluster.local"].aaaa.len(), 1);
    assert!(plan.names.contains_key("cluster.local") && !plan.names.contains_key("local"));
}

/// Proves spec.externalName: An alias in the cluster's names; nothing is balanced.
#[test]
fn an_external_name_is_an_alias() {
    let kind = ServiceKind::ExternalName("DB.example.com.".to_owned());
    let plan = compile(&snapshot(vec![service("db", kind, &[], &[])], vec![]));
    let records = &plan.names["db.shop.svc.cluster.local"];
    assert_eq!(records.cname.as_deref(), Some("db.example.com"));
    assert!(records.a.is_empty() && records.srv.is_empty());
}

#[test]
fn address_labels_are_labels() {
    for (text, expected) in
        [("10.0.0.1", "10-0-0-1"), ("fd00::", "fd00--0"), ("::1", "0--1"), ("fd00:1::5", "fd00-1--5")]
    {
        assert_eq!(address_label(addr(text)), expected);
    }
}
