//! Snapshot to the names the cluster answers for (Kubernetes DNS-Based Service Discovery 1.1.0; section numbers
//! below are its). What one question gets is decided in core/decide.

use std::collections::BTreeMap;
use std::net::IpAddr;

use weft_model::{
    Addr, Endpoint, EndpointCondition, EndpointSlice, Protocol, Service, ServiceKey, ServiceKind, Snapshot,
};
use weft_plan::{Absence, NamePlan, NameRecords, SrvRecord};

/// Endpoints and service ports are all alike to a client, so every record gets the same priority and weight.
const PRIORITY: u16 = 0;
const WEIGHT: u16 = 100;

/// 2.2
const SCHEMA_VERSION: &str = "1.1.0";

pub fn compile(snapshot: &Snapshot) -> NamePlan {
    let settings = &snapshot.settings;
    let domain = settings.cluster_domain.trim_end_matches('.').to_ascii_lowercase();
    let reverse = settings.pod_cidrs.iter().chain(&settings.service_cidrs).copied().collect();
    let mut names = Builder { plan: NamePlan { domain, reverse, ..NamePlan::default() } };
    names.zone(&settings.dns_addresses);
    for namespace in snapshot.namespaces.keys() {
        names.at(&format!("{}.svc", label(namespace.as_str())));
    }
    let slices = slices_by_service(snapshot);
    for service in snapshot.services.values() {
        let slices = slices.get(&service.key).map_or(&[][..], Vec::as_slice);
        match &service.kind {
            ServiceKind::ExternalName(target) => names.external(service, target),
            ServiceKind::Headless => names.headless(service, slices),
            ServiceKind::ClusterIp | ServiceKind::NodePort | ServiceKind::LoadBalancer => {
                names.cluster_ip(service)
            }
        }
    }
    names.plan
}

fn slices_by_service(snapshot: &Snapshot) -> BTreeMap<&ServiceKey, Vec<&EndpointSlice>> {
    let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for slice in snapshot.slices.values() {
        found.entry(&slice.service).or_default().push(slice);
    }
    found
}

struct Builder {
    plan: NamePlan,
}

impl Builder {
    /// What exists whatever the cluster holds.
    fn zone(&mut self, dns_addresses: &[Addr]) {
        self.at("svc");
        self.at("pod");
        self.at("dns-version").txt = Some(SCHEMA_VERSION.to_owned());
        for addr in dns_addresses {
            add_address(self.at("ns.dns"), *addr);
        }
    }

    /// 2.3
    fn cluster_ip(&mut self, service: &Service) {
        let own = service_name(service);
        self.at(&own);
        for addr in &service.cluster_ips {
            add_address(self.at(&own), *addr);
            self.pointer(*addr, &own);
        }
        let target = self.full(&own);
        for port in service.ports.iter().filter(|port| !port.name.is_empty()) {
            let srv =
                SrvRecord { priority: PRIORITY, weight: WEIGHT, port: port.port.0, target: target.clone() };
            self.at(&port_name(&port.name, port.protocol, &own)).srv.insert(srv);
        }
    }

    /// 2.4
    fn headless(&mut self, service: &Service, slices: &[&EndpointSlice]) {
        let own = service_name(service);
        let mut not_ready = 0;
        let mut ready = 0;
        for slice in slices {
            for endpoint in &slice.endpoints {
                if service.publish_not_ready || endpoint.condition == EndpointCondition::Ready {
                    ready += endpoint.addresses.len();
                    self.endpoint(&own, slice, endpoint);
                } else {
                    not_ready += 1;
                }
            }
        }
        if ready == 0 {
            let absence = Absence::NoReadyEndpoints { service: service.key.clone(), not_ready };
            let name = self.full(&own);
            self.plan.absent.insert(name, absence);
            // The namespace exists even when nothing in it does yet.
            self.at(&format!("{}.svc", label(service.key.namespace.as_str())));
        }
    }

    fn endpoint(&mut self, own: &str, slice: &EndpointSlice, endpoint: &Endpoint) {
        for addr in &endpoint.addresses {
            let host = match &endpoint.hostname {
                Some(hostname) => label(hostname),
                None => address_label(*addr),
            };
            let name = format!("{host}.{own}");
            add_address(self.at(own), *addr);
            add_address(self.at(&name), *addr);
            self.pointer(*addr, &name);
            let target = self.full(&name);
            for (port_label, protocol, port) in slice.ports.iter().filter(|(name, ..)| !name.is_empty()) {
                let srv =
                    SrvRecord { priority: PRIORITY, weight: WEIGHT, port: port.0, target: target.clone() };
                self.at(&port_name(port_label, *protocol, own)).srv.insert(srv);
            }
        }
    }

    /// 2.5
    fn external(&mut self, service: &Service, target: &str) {
        let own = service_name(service);
        let target = target.trim_end_matches('.').to_ascii_lowercase();
        if !target.is_empty() {
            self.at(&own).cname = Some(target);
        }
    }

    fn pointer(&mut self, addr: Addr, relative: &str) {
        let target = self.full(relative);
        self.plan.pointers.entry(reverse_name(addr)).or_default().insert(target);
    }

    fn full(&self, relative: &str) -> String {
        format!("{relative}.{}", self.plan.domain)
    }

    /// The records of a name below the zone; it and every name above it exist from now on.
    fn at(&mut self, relative: &str) -> &mut NameRecords {
        let full = self.full(relative);
        if !self.plan.names.contains_key(&full) {
            let mut rest = full.as_str();
            while let Some((_, parent)) = rest.split_once('.') {
                if parent.len() < self.plan.domain.len() {
                    break;
                }
                self.plan.names.entry(parent.to_owned()).or_default();
                rest = parent;
            }
        }
        self.plan.names.entry(full).or_default()
    }
}

fn add_address(records: &mut NameRecords, addr: Addr) {
    match addr.to_ip() {
        IpAddr::V4(v4) => _ = records.a.insert(v4),
        IpAddr::V6(v6) => _ = records.aaaa.insert(v6),
    }
}

fn service_name(service: &Service) -> String {
    format!("{}.{}.svc", label(&service.key.name), label(service.key.namespace.as_str()))
}

fn port_name(port: &str, protocol: Protocol, own: &str) -> String {
    format!("_{}._{}.{own}", label(port), label(&protocol.to_string()))
}

fn label(text: &str) -> String {
    text.to_ascii_lowercase()
}

/// The name of an endpoint that has no hostname, in the form CoreDNS gives it, so that what was learned from
/// one resolves with the other. A label neither starts nor ends with a hyphen.
fn address_label(addr: Addr) -> String {
    let mut text = addr.to_string().replace(['.', ':'], "-");
    if text.starts_with('-') {
        text.insert(0, '0');
    }
    if text.ends_with('-') {
        text.push('0');
    }
    text
}

/// RFC 1035 3.5 and RFC 3596 2.5.
fn reverse_name(addr: Addr) -> String {
    match addr.to_ip() {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            let mut name = String::with_capacity(72);
            for nibble in nibbles {
                name.push(char::from_digit(u32::from(nibble), 16).expect("a nibble is below 16"));
                name.push('.');
            }
            name + "ip6.arpa"
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use weft_model::{ClusterSettings, Family, Namespace, NamespaceName, Port, ServicePort, TargetPort, Uid};

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
            ports: vec![
                ("peer".to_owned(), Protocol::TCP, Port(7000)),
                (String::new(), Protocol::TCP, Port(1)),
            ],
            endpoints,
        }
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
        let web = service(
            "web",
            ServiceKind::ClusterIp,
            &["10.96.0.5", "fd00:10:96::5"],
            &[("http", 80), ("", 81)],
        );
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
        assert_eq!(plan.pointers["5.0.96.10.in-addr.arpa"], pointed);
        let v6 = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(plan.pointers[v6], pointed);
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
        let v6 = slice(
            "db",
            "db-2",
            Family::V6,
            vec![endpoint("fd00::7", Some("db-0"), EndpointCondition::Ready)],
        );
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
        assert!(plan.pointers["7.0.244.10.in-addr.arpa"].contains("db-0.db.shop.svc.cluster.local"));
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
}
