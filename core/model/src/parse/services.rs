//! Services and EndpointSlices of the Kubernetes API to the model's.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::nodes::cidr;
use super::{Findings, Parsed, non_empty, uid};
use crate::{
    Addr, Affinity, Balancing, Cidr, Endpoint, EndpointCondition, EndpointSlice, Family, Forwarding, Hints,
    IpMode, LoadBalancerIp, NodeName, ObjectKey, Port, Protocol, Selector, Service, ServiceKey, ServiceKind,
    ServicePort, TargetPort, TrafficPolicy, Weight,
};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

pub fn service(service: &api::Service) -> Parsed<Service> {
    let mut findings = Findings::about("Service", &service.metadata);
    let Some(key) = findings.key(&service.metadata) else { return findings.with(None) };
    let Some(spec) = &service.spec else {
        findings.error("spec", "is missing");
        return findings.with(None);
    };
    let Some(kind) = kind(&mut findings, spec) else { return findings.with(None) };
    let selector = spec.selector.as_ref().filter(|labels| !labels.is_empty()).map(Selector::of_labels);
    let cluster_ips = match kind {
        ServiceKind::ExternalName(_) | ServiceKind::Headless => Vec::new(),
        _ => cluster_ips(&mut findings, spec),
    };
    let ports = spec.ports.iter().flatten().enumerate();
    let ports = ports.filter_map(|(index, port)| service_port(&mut findings, index, port)).collect();
    let health_check = spec.health_check_node_port.filter(|port| *port != 0);
    let value = Service {
        key,
        uid: uid(&service.metadata),
        cluster_ips,
        ports,
        selector,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        external_ips: external_ips(&mut findings, spec),
        load_balancer_ips: load_balancer_ips(&mut findings, &kind, service),
        source_ranges: source_ranges(&mut findings, spec),
        affinity: affinity(&mut findings, spec),
        internal_policy: policy(
            &mut findings,
            "spec.internalTrafficPolicy",
            spec.internal_traffic_policy.as_deref(),
        ),
        external_policy: policy(
            &mut findings,
            "spec.externalTrafficPolicy",
            spec.external_traffic_policy.as_deref(),
        ),
        health_check_node_port: health_check.and_then(|port| findings.port("spec.healthCheckNodePort", port)),
        request: super::pools::request(&mut findings, &kind, service),
        load_balancer_class: non_empty(&spec.load_balancer_class).map(str::to_owned),
        balancing: balancing(&mut findings, service),
        forwarding: forwarding(&mut findings, service),
        ip_families: ip_families(&mut findings, spec),
        kind,
    };
    findings.with(Some(value))
}

fn external_ips(findings: &mut Findings, spec: &api::ServiceSpec) -> Vec<Addr> {
    let given = spec.external_ips.iter().flatten().enumerate();
    let mut addresses = Vec::new();
    for (index, text) in given {
        let addr = findings.addr(format!("spec.externalIPs[{index}]"), text);
        addresses.extend(addr.filter(|addr| !addresses.contains(addr)));
    }
    addresses
}

/// Other types of Service may still show what they had as load balancers.
fn load_balancer_ips(
    findings: &mut Findings,
    kind: &ServiceKind,
    service: &api::Service,
) -> Vec<LoadBalancerIp> {
    if *kind != ServiceKind::LoadBalancer {
        return Vec::new();
    }
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten().enumerate();
    let mut addresses: Vec<LoadBalancerIp> = Vec::new();
    for (index, given) in ingress {
        // A balancer known by its name only is somebody else's machine.
        let Some(text) = non_empty(&given.ip) else { continue };
        let field = format!("status.loadBalancer.ingress[{index}]");
        let Some(addr) = findings.addr(format!("{field}.ip"), text) else { continue };
        let mode = match given.ip_mode.as_deref() {
            None | Some("" | "VIP") => IpMode::Vip,
            Some("Proxy") => IpMode::Proxy,
            Some(other) => {
                findings.error(format!("{field}.ipMode"), format!("{other:?} is neither VIP nor Proxy"));
                continue;
            }
        };
        if !addresses.iter().any(|known| known.addr == addr) {
            addresses.push(LoadBalancerIp { addr, mode });
        }
    }
    addresses
}

fn source_ranges(findings: &mut Findings, spec: &api::ServiceSpec) -> BTreeSet<Cidr> {
    let given = spec.load_balancer_source_ranges.iter().flatten().enumerate();
    // The API has allowed spaces around them ever since (validation.ValidateLoadBalancerSourceRanges).
    given
        .filter_map(|(index, text)| {
            cidr(findings, &format!("spec.loadBalancerSourceRanges[{index}]"), text.trim())
        })
        .collect()
}

/// Three hours, the API's default.
const DEFAULT_AFFINITY_SECONDS: i32 = 10_800;

fn affinity(findings: &mut Findings, spec: &api::ServiceSpec) -> Affinity {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => Affinity::None,
        Some("ClientIP") => {
            let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
            let seconds =
                config.and_then(|config| config.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECONDS);
            match u32::try_from(seconds) {
                Ok(seconds @ 1..=86_400) => Affinity::ClientIp { seconds },
                _ => {
                    let message =
                        format!("{seconds} is not from 1 to 86400; {DEFAULT_AFFINITY_SECONDS} is in force");
                    findings.error("spec.sessionAffinityConfig.clientIP.timeoutSeconds", message);
                    Affinity::ClientIp { seconds: DEFAULT_AFFINITY_SECONDS as u32 }
                }
            }
        }
        Some(other) => {
            findings.error("spec.sessionAffinity", format!("{other:?} is neither None nor ClientIP"));
            Affinity::None
        }
    }
}

fn policy(findings: &mut Findings, field: &str, given: Option<&str>) -> TrafficPolicy {
    match given {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            findings.error(field, format!("{other:?} is neither Cluster nor Local; Cluster is in force"));
            TrafficPolicy::Cluster
        }
    }
}

const BALANCING_ANNOTATION: &str = "weft.dev/balancing";
const FORWARDING_ANNOTATION: &str = "weft.dev/forwarding";

fn annotation<'a>(service: &'a api::Service, name: &str) -> Option<&'a str> {
    service.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn balancing(findings: &mut Findings, service: &api::Service) -> Balancing {
    match annotation(service, BALANCING_ANNOTATION) {
        None | Some("random") => Balancing::Random,
        Some("maglev") => Balancing::Maglev,
        Some(other) => {
            let message = format!("{other:?} is neither random nor maglev; random is in force");
            findings.error(format!("metadata.annotations[{BALANCING_ANNOTATION}]"), message);
            Balancing::Random
        }
    }
}

fn forwarding(findings: &mut Findings, service: &api::Service) -> Option<Forwarding> {
    match annotation(service, FORWARDING_ANNOTATION)? {
        "snat" => Some(Forwarding::Snat),
        "dsr" => Some(Forwarding::Dsr),
        other => {
            let message = format!("{other:?} is neither snat nor dsr; the cluster's setting is in force");
            findings.error(format!("metadata.annotations[{FORWARDING_ANNOTATION}]"), message);
            None
        }
    }
}

fn ip_families(findings: &mut Findings, spec: &api::ServiceSpec) -> Vec<Family> {
    let given = spec.ip_families.iter().flatten().enumerate();
    given
        .filter_map(|(index, text)| match text.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            other => {
                findings.error(
                    format!("spec.ipFamilies[{index}]"),
                    format!("{other:?} is neither IPv4 nor IPv6"),
                );
                None
            }
        })
        .collect()
}

fn kind(findings: &mut Findings, spec: &api::ServiceSpec) -> Option<ServiceKind> {
    let headless = spec.cluster_ip.as_deref() == Some("None");
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") if headless => Some(ServiceKind::Headless),
        None | Some("" | "ClusterIP") => Some(ServiceKind::ClusterIp),
        Some("NodePort") => Some(ServiceKind::NodePort),
        Some("LoadBalancer") => Some(ServiceKind::LoadBalancer),
        Some("ExternalName") => match non_empty(&spec.external_name) {
            Some(name) => Some(ServiceKind::ExternalName(name.trim_end_matches('.').to_ascii_lowercase())),
            None => {
                findings.error("spec.externalName", "is missing");
                None
            }
        },
        Some(other) => {
            findings.error("spec.type", format!("{other:?} is not a type of Service"));
            None
        }
    }
}

fn cluster_ips(findings: &mut Findings, spec: &api::ServiceSpec) -> Vec<Addr> {
    let list = spec.cluster_ips.as_deref().unwrap_or_default();
    let given: Vec<(String, &String)> = if list.is_empty() {
        let single = spec.cluster_ip.iter().filter(|text| !text.is_empty());
        single.map(|text| ("spec.clusterIP".to_owned(), text)).collect()
    } else {
        list.iter().enumerate().map(|(index, text)| (format!("spec.clusterIPs[{index}]"), text)).collect()
    };
    let mut addresses = Vec::new();
    for (field, text) in given {
        let addr = findings.addr(field, text);
        addresses.extend(addr.filter(|addr| !addresses.contains(addr)));
    }
    addresses
}

fn service_port(findings: &mut Findings, index: usize, port: &api::ServicePort) -> Option<ServicePort> {
    let field = format!("spec.ports[{index}]");
    let number = findings.port(format!("{field}.port"), port.port)?;
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => {
            TargetPort::Number(findings.port(format!("{field}.targetPort"), *target)?)
        }
        Some(IntOrString::String(name)) => TargetPort::Name(name.clone()),
    };
    let node_port = port.node_port.filter(|number| *number != 0);
    Some(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol: findings.protocol(format!("{field}.protocol"), port.protocol.as_deref())?,
        port: number,
        target,
        node_port: node_port.and_then(|number| findings.port(format!("{field}.nodePort"), number)),
        app_protocol: port.app_protocol.clone(),
    })
}

/// A slice without the label of a service belongs to none, which is no error: `value` is `None`.
pub fn endpoint_slice(slice: &discovery::EndpointSlice) -> Parsed<EndpointSlice> {
    let mut findings = Findings::about("EndpointSlice", &slice.metadata);
    let Some(key) = findings.key(&slice.metadata) else { return findings.with(None) };
    let label = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME_LABEL));
    let Some(service) = label.filter(|name| !name.is_empty()) else { return findings.with(None) };
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        other => {
            findings.warning("addressType", format!("{other:?} is not used; only IPv4 and IPv6 are"));
            return findings.with(None);
        }
    };
    let ports = slice.ports.iter().flatten().enumerate();
    let ports = ports.filter_map(|(index, port)| slice_port(&mut findings, index, port)).collect();
    let about = About { slice: &key, family, weight: findings.weight(&slice.metadata).unwrap_or_default() };
    let endpoints = slice.endpoints.iter().enumerate();
    let endpoints =
        endpoints.filter_map(|(index, given)| endpoint(&mut findings, &about, index, given)).collect();
    let service = ServiceKey { namespace: key.namespace, name: service.as_str().into() };
    findings.with(Some(EndpointSlice { service, name: key.name.to_string(), family, ports, endpoints }))
}

fn slice_port(
    findings: &mut Findings,
    index: usize,
    port: &discovery::EndpointPort,
) -> Option<(String, Protocol, Port)> {
    let field = format!("ports[{index}]");
    // No number means "all ports", which no Service frontend can be joined to.
    let number = findings.port(format!("{field}.port"), port.port?)?;
    let protocol = findings.protocol(format!("{field}.protocol"), port.protocol.as_deref())?;
    Some((port.name.clone().unwrap_or_default(), protocol, number))
}

/// What a slice says of all its endpoints.
struct About<'a> {
    slice: &'a ObjectKey,
    family: Family,
    weight: Weight,
}

/// Only the first address has a meaning (EndpointSlice API reference, `endpoints.addresses`).
fn endpoint(
    findings: &mut Findings,
    about: &About<'_>,
    index: usize,
    given: &discovery::Endpoint,
) -> Option<Endpoint> {
    let field = format!("endpoints[{index}].addresses[0]");
    let Some(text) = given.addresses.first() else {
        findings.error(format!("endpoints[{index}].addresses"), "is empty");
        return None;
    };
    let addr = findings.addr(field.as_str(), text)?;
    if addr.family() != about.family {
        findings.error(field, format!("{addr} is not of the slice's addressType"));
        return None;
    }
    let target = given.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let target = target.and_then(|target| {
        let namespace = non_empty(&target.namespace).unwrap_or(about.slice.namespace.as_str());
        Some(ObjectKey::new(namespace, non_empty(&target.name)?))
    });
    Some(Endpoint {
        addresses: BTreeSet::from([addr]),
        condition: condition(given.conditions.as_ref()),
        hostname: non_empty(&given.hostname).map(str::to_owned),
        node: non_empty(&given.node_name).map(NodeName::new),
        zone: non_empty(&given.zone).map(str::to_owned),
        target,
        hints: hints(given),
        weight: about.weight,
    })
}

fn hints(given: &discovery::Endpoint) -> Hints {
    let Some(hints) = &given.hints else { return Hints::default() };
    let zones = hints.for_zones.iter().flatten().map(|zone| zone.name.clone());
    let nodes = hints.for_nodes.iter().flatten().map(|node| NodeName::new(&node.name));
    Hints { zones: zones.collect(), nodes: nodes.collect() }
}

fn condition(given: Option<&discovery::EndpointConditions>) -> EndpointCondition {
    let Some(given) = given else { return EndpointCondition::Ready };
    match (given.ready.unwrap_or(true), given.serving, given.terminating.unwrap_or(false)) {
        (true, _, _) => EndpointCondition::Ready,
        (false, Some(true), true) => EndpointCondition::ServingTerminating,
        _ => EndpointCondition::NotReady,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(object: serde_json::Value) -> (Service, Vec<String>) {
        let Parsed { value, findings } = service(&serde_json::from_value(object).unwrap());
        (value.unwrap(), findings.into_iter().map(|finding| finding.field).collect())
    }

    /// Proves spec.sessionAffinityConfig.clientIP.timeoutSeconds: How long after its last connection a client keeps its backend.
    #[test]
    fn every_field_that_steers_traffic_is_kept() {
        let (service, fields) = parsed(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop", "annotations": {"weft.dev/balancing": "maglev", "weft.dev/forwarding": "dsr"}},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.7", "ipFamilies": ["IPv4"], "externalIPs": ["192.0.2.1"],
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000,
                "loadBalancerSourceRanges": [" 203.0.113.0/24 "], "loadBalancerClass": "weft.dev/l2",
                "ports": [{"port": 80, "nodePort": 30080}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9", "ipMode": "Proxy"}, {"hostname": "lb.example"}, {"ip": "fd00::9"}]}},
        }));
        assert_eq!(fields, Vec::<String>::new());
        assert_eq!(service.affinity, Affinity::ClientIp { seconds: 60 });
        assert_eq!(
            (service.internal_policy, service.external_policy),
            (TrafficPolicy::Local, TrafficPolicy::Local)
        );
        assert_eq!((service.balancing, service.forwarding), (Balancing::Maglev, Some(Forwarding::Dsr)));
        assert_eq!(service.health_check_node_port, Some(Port(31000)));
        assert_eq!(service.ports[0].node_port, Some(Port(30080)));
        assert_eq!(service.source_ranges, BTreeSet::from(["203.0.113.0/24".parse().unwrap()]));
        let addresses: Vec<_> =
            service.load_balancer_ips.iter().map(|ip| (ip.addr.to_string(), ip.mode)).collect();
        assert_eq!(
            addresses,
            [("198.51.100.9".to_owned(), IpMode::Proxy), ("fd00::9".to_owned(), IpMode::Vip)]
        );
    }

    #[test]
    fn what_cannot_be_understood_is_named_and_the_rest_is_kept() {
        let (service, fields) = parsed(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop", "annotations": {"weft.dev/balancing": "best", "weft.dev/forwarding": "ipip"}},
            "spec": {
                "clusterIP": "10.96.0.7", "externalIPs": ["nowhere"], "sessionAffinity": "Cookie",
                "internalTrafficPolicy": "Near", "externalTrafficPolicy": "Far", "loadBalancerSourceRanges": ["10.0.0.0/40"],
                "ports": [{"port": 80}],
            },
        }));
        let expected = [
            "spec.externalIPs[0]",
            "spec.loadBalancerSourceRanges[0]",
            "spec.sessionAffinity",
            "spec.internalTrafficPolicy",
            "spec.externalTrafficPolicy",
            "metadata.annotations[weft.dev/balancing]",
            "metadata.annotations[weft.dev/forwarding]",
        ];
        assert_eq!(fields, expected);
        assert_eq!((service.affinity, service.internal_policy), (Affinity::None, TrafficPolicy::Cluster));
    }

    #[test]
    fn only_load_balancers_have_balancer_addresses() {
        let (service, _) = parsed(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}]}},
        }));
        assert_eq!(service.load_balancer_ips, []);
    }

    #[test]
    fn hints_and_weights_of_endpoints() {
        let object = serde_json::json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}, "annotations": {"weft.dev/weight": "5"}},
            "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["10.244.1.2"], "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node1"}]}}],
        });
        let slice = endpoint_slice(&serde_json::from_value(object).unwrap()).value.unwrap();
        let Endpoint { hints, weight, .. } = &slice.endpoints[0];
        assert_eq!(hints.zones, BTreeSet::from(["a".to_owned()]));
        assert_eq!(hints.nodes, BTreeSet::from([NodeName::new("node1")]));
        assert_eq!(*weight, Weight(5));
    }

    #[test]
    fn a_plain_service_has_nothing_to_say() {
        let object = serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.7", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ports": [{"port": 80}]},
        });
        assert_eq!(service(&serde_json::from_value(object).unwrap()).findings, []);
    }
}
