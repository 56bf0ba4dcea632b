//! Services and EndpointSlices of the Kubernetes API to the model's.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Findings, Parsed, non_empty, uid};
use crate::{
    Addr, Endpoint, EndpointCondition, EndpointSlice, Family, NodeName, ObjectKey, Port, Protocol, Selector,
    Service, ServiceKey, ServiceKind, ServicePort, TargetPort,
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
    not_served_yet(&mut findings, spec);
    let selector = spec.selector.as_ref().filter(|labels| !labels.is_empty()).map(Selector::of_labels);
    let cluster_ips = match kind {
        ServiceKind::ExternalName(_) | ServiceKind::Headless => Vec::new(),
        _ => cluster_ips(&mut findings, spec),
    };
    let ports = spec.ports.iter().flatten().enumerate();
    let ports = ports.filter_map(|(index, port)| service_port(&mut findings, index, port)).collect();
    let value = Service {
        key,
        uid: uid(&service.metadata),
        kind,
        cluster_ips,
        ports,
        selector,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
    };
    findings.with(Some(value))
}

/// What the API accepts and the datapath does not do yet: said, so that nobody waits for it.
fn not_served_yet(findings: &mut Findings, spec: &api::ServiceSpec) {
    if let Some(kind @ ("NodePort" | "LoadBalancer")) = spec.type_.as_deref() {
        let text =
            format!("{kind}: only the cluster IP is served yet; no node port or outside address answers");
        findings.warning("spec.type", text);
    }
    if spec.external_ips.as_ref().is_some_and(|addresses| !addresses.is_empty()) {
        findings.warning("spec.externalIPs", "external addresses are not served yet");
    }
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        findings.warning(
            "spec.sessionAffinity",
            "ClientIP is not honoured yet: each connection picks a backend anew",
        );
    }
    if spec.internal_traffic_policy.as_deref() == Some("Local") {
        findings.warning(
            "spec.internalTrafficPolicy",
            "Local is not honoured yet: backends of all nodes are used",
        );
    }
    if let Some(preference) = &spec.traffic_distribution {
        let text = format!("{preference} is not honoured yet: backends of all nodes are used alike");
        findings.warning("spec.trafficDistribution", text);
    }
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
    let endpoints = slice.endpoints.iter().enumerate();
    let endpoints =
        endpoints.filter_map(|(index, given)| endpoint(&mut findings, &key, family, index, given)).collect();
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

/// Only the first address has a meaning (EndpointSlice API reference, `endpoints.addresses`).
fn endpoint(
    findings: &mut Findings,
    slice: &ObjectKey,
    family: Family,
    index: usize,
    given: &discovery::Endpoint,
) -> Option<Endpoint> {
    let field = format!("endpoints[{index}].addresses[0]");
    let Some(text) = given.addresses.first() else {
        findings.error(format!("endpoints[{index}].addresses"), "is empty");
        return None;
    };
    let addr = findings.addr(field.as_str(), text)?;
    if addr.family() != family {
        findings.error(field, format!("{addr} is not of the slice's addressType"));
        return None;
    }
    let target = given.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    let target = target.and_then(|target| {
        let namespace = non_empty(&target.namespace).unwrap_or(slice.namespace.as_str());
        Some(ObjectKey::new(namespace, non_empty(&target.name)?))
    });
    Some(Endpoint {
        addresses: BTreeSet::from([addr]),
        condition: condition(given.conditions.as_ref()),
        hostname: non_empty(&given.hostname).map(str::to_owned),
        node: non_empty(&given.node_name).map(NodeName::new),
        zone: non_empty(&given.zone).map(str::to_owned),
        target,
    })
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

    #[test]
    fn what_is_accepted_and_not_served_is_said() {
        let object = serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.7", "externalIPs": ["192.0.2.1"], "sessionAffinity": "ClientIP",
                "internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose", "ports": [{"port": 80}],
            },
        });
        let parsed = service(&serde_json::from_value(object).unwrap());
        assert!(parsed.value.is_some());
        let fields: Vec<&str> = parsed.findings.iter().map(|finding| finding.field.as_str()).collect();
        let expected =
            ["type", "externalIPs", "sessionAffinity", "internalTrafficPolicy", "trafficDistribution"]
                .map(|field| format!("spec.{field}"));
        assert_eq!(fields, expected);
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
