//! Kubernetes objects with few words. What they mean is not decided here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

pub type LabelList<'a> = &'a [(&'a str, &'a str)];

pub fn labels(list: LabelList<'_>) -> BTreeMap<String, String> {
    list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub fn selector(list: LabelList<'_>) -> LabelSelector {
    LabelSelector { match_labels: Some(labels(list)), match_expressions: None }
}

fn meta(namespace: Option<&str>, name: &str, with: LabelList<'_>) -> ObjectMeta {
    ObjectMeta {
        namespace: namespace.map(str::to_owned),
        name: Some(name.to_owned()),
        uid: Some(format!("uid-of-{}-{name}", namespace.unwrap_or("cluster"))),
        labels: Some(labels(with)),
        ..ObjectMeta::default()
    }
}

pub fn namespace(name: &str, with: LabelList<'_>) -> core::Namespace {
    core::Namespace { metadata: meta(None, name, with), ..core::Namespace::default() }
}

pub fn node(name: &str, addresses: &[&str], pod_cidrs: &[&str]) -> core::Node {
    let address =
        |address: &&str| core::NodeAddress { address: (*address).to_owned(), type_: "InternalIP".into() };
    core::Node {
        metadata: meta(None, name, &[]),
        spec: Some(core::NodeSpec {
            pod_cidr: pod_cidrs.first().map(|cidr| (*cidr).to_owned()),
            pod_cidrs: Some(pod_cidrs.iter().map(|cidr| (*cidr).to_owned()).collect()),
            ..core::NodeSpec::default()
        }),
        status: Some(core::NodeStatus {
            addresses: Some(addresses.iter().map(address).collect()),
            ..core::NodeStatus::default()
        }),
    }
}

/// A running pod with one container.
pub fn pod(namespace: &str, name: &str, node: &str, with: LabelList<'_>, addresses: &[&str]) -> core::Pod {
    let ip = |ip: &&str| core::PodIP { ip: (*ip).to_owned() };
    core::Pod {
        metadata: meta(Some(namespace), name, with),
        spec: Some(core::PodSpec {
            node_name: Some(node.to_owned()),
            containers: vec![core::Container { name: "main".to_owned(), ..core::Container::default() }],
            ..core::PodSpec::default()
        }),
        status: Some(core::PodStatus {
            phase: Some("Running".to_owned()),
            pod_ip: addresses.first().map(|ip| (*ip).to_owned()),
            pod_ips: Some(addresses.iter().map(ip).collect()),
            ..core::PodStatus::default()
        }),
    }
}

pub fn container_port(name: Option<&str>, protocol: &str, number: i32) -> core::ContainerPort {
    core::ContainerPort {
        name: name.map(str::to_owned),
        protocol: Some(protocol.to_owned()),
        container_port: number,
        ..core::ContainerPort::default()
    }
}

pub fn service(
    namespace: &str,
    name: &str,
    cluster_ips: &[&str],
    ports: Vec<core::ServicePort>,
) -> core::Service {
    core::Service {
        metadata: meta(Some(namespace), name, &[]),
        spec: Some(core::ServiceSpec {
            cluster_ip: cluster_ips.first().map(|ip| (*ip).to_owned()),
            cluster_ips: Some(cluster_ips.iter().map(|ip| (*ip).to_owned()).collect()),
            ports: Some(ports),
            selector: Some(labels(&[("app", name)])),
            ..core::ServiceSpec::default()
        }),
        ..core::Service::default()
    }
}

pub fn service_port(name: &str, protocol: &str, number: i32) -> core::ServicePort {
    core::ServicePort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port: number,
        ..core::ServicePort::default()
    }
}

/// A slice of `service`, which `name` is to tell from its other slices.
pub fn slice(
    namespace: &str,
    service: &str,
    name: &str,
    address_type: &str,
    ports: Vec<discovery::EndpointPort>,
    endpoints: Vec<discovery::Endpoint>,
) -> discovery::EndpointSlice {
    discovery::EndpointSlice {
        metadata: meta(Some(namespace), name, &[("kubernetes.io/service-name", service)]),
        address_type: address_type.to_owned(),
        ports: Some(ports),
        endpoints,
    }
}

pub fn endpoint_port(name: &str, protocol: &str, number: i32) -> discovery::EndpointPort {
    discovery::EndpointPort {
        name: Some(name.to_owned()),
        protocol: Some(protocol.to_owned()),
        port: Some(number),
        ..discovery::EndpointPort::default()
    }
}

pub fn endpoint(addr: &str, conditions: discovery::EndpointConditions) -> discovery::Endpoint {
    discovery::Endpoint {
        addresses: vec![addr.to_owned()],
        conditions: Some(conditions),
        ..discovery::Endpoint::default()
    }
}

pub fn policy(namespace: &str, name: &str, spec: networking::NetworkPolicySpec) -> networking::NetworkPolicy {
    networking::NetworkPolicy { metadata: meta(Some(namespace), name, &[]), spec: Some(spec) }
}
