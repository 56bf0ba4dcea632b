//! Pods and namespaces of the Kubernetes API to the model's.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as api;

use super::{Findings, Parsed, non_empty, uid};
use crate::{
    Addr, DnsPolicy, NamedPort, Namespace, NamespaceName, NodeName, Pod, PodDns, PodPhase, Port, Protocol,
};

/// The label every namespace has (KEP-2161); objects from elsewhere may lack it.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub fn namespace(namespace: &api::Namespace) -> Parsed<Namespace> {
    let mut findings = Findings::about("Namespace", &namespace.metadata);
    let Some(name) = non_empty(&namespace.metadata.name) else {
        findings.error("metadata.name", "is missing");
        return findings.with(None);
    };
    let mut labels = namespace.metadata.labels.clone().unwrap_or_default();
    labels.entry(NAME_LABEL.to_owned()).or_insert_with(|| name.to_owned());
    findings.with(Some(Namespace { name: NamespaceName::new(name), labels }))
}

pub fn pod(pod: &api::Pod) -> Parsed<Pod> {
    let mut findings = Findings::about("Pod", &pod.metadata);
    let Some(key) = findings.key(&pod.metadata) else { return findings.with(None) };
    let spec = pod.spec.as_ref();
    let (named_ports, declared_ports) = spec.map(|spec| ports(&mut findings, spec)).unwrap_or_default();
    let text = |get: fn(&api::PodSpec) -> &Option<String>| spec.and_then(|spec| non_empty(get(spec)));
    let value = Pod {
        key,
        uid: uid(&pod.metadata),
        created: pod.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        node: text(|spec| &spec.node_name).map(NodeName::new),
        phase: phase(pod),
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        addresses: addresses(&mut findings, pod),
        named_ports,
        declared_ports,
        hostname: text(|spec| &spec.hostname).map(str::to_owned),
        subdomain: text(|spec| &spec.subdomain).map(str::to_owned),
        dns: spec.map(|spec| dns(&mut findings, spec)).unwrap_or_default(),
        weight: findings.weight(&pod.metadata),
    };
    findings.with(Some(value))
}

/// What the pod says about its resolver. A policy that is unknown counts as the default.
fn dns(findings: &mut Findings, spec: &api::PodSpec) -> PodDns {
    let policy = match spec.dns_policy.as_deref() {
        None | Some("" | "ClusterFirst") => DnsPolicy::ClusterFirst,
        Some("ClusterFirstWithHostNet") => DnsPolicy::ClusterFirstWithHostNet,
        Some("Default") => DnsPolicy::Default,
        Some("None") => DnsPolicy::None,
        Some(other) => {
            findings.warning("spec.dnsPolicy", format!("{other:?} is not known; ClusterFirst counts"));
            DnsPolicy::ClusterFirst
        }
    };
    let Some(config) = &spec.dns_config else { return PodDns { policy, ..PodDns::default() } };
    let options = config.options.iter().flatten().filter_map(|option| {
        let name = option.name.as_deref()?;
        Some(option.value.as_ref().map_or(name.to_owned(), |value| format!("{name}:{value}")))
    });
    PodDns {
        policy,
        servers: config.nameservers.clone().unwrap_or_default(),
        searches: config.searches.clone().unwrap_or_default(),
        options: options.collect(),
    }
}

fn phase(pod: &api::Pod) -> PodPhase {
    match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
        Some("Succeeded" | "Failed") => PodPhase::Finished,
        Some("Running") => PodPhase::Running,
        _ => PodPhase::Pending,
    }
}

fn addresses(findings: &mut Findings, pod: &api::Pod) -> BTreeSet<Addr> {
    let Some(status) = &pod.status else { return BTreeSet::new() };
    let list = status.pod_ips.as_deref().unwrap_or_default();
    let single = status.pod_ip.iter().filter(|text| !text.is_empty());
    if list.is_empty() {
        return single.filter_map(|text| findings.addr("status.podIP", text)).collect();
    }
    let given = list.iter().enumerate();
    given.filter_map(|(index, ip)| findings.addr(format!("status.podIPs[{index}].ip"), &ip.ip)).collect()
}

/// Ports of ordinary containers, then of sidecars (init containers that keep running).
fn ports(findings: &mut Findings, spec: &api::PodSpec) -> (BTreeSet<NamedPort>, BTreeSet<(Protocol, Port)>) {
    let ordinary =
        spec.containers.iter().enumerate().map(|(index, container)| ("containers", index, container));
    let sidecars = spec.init_containers.iter().flatten().enumerate();
    let sidecars = sidecars.filter(|(_, container)| container.restart_policy.as_deref() == Some("Always"));
    let sidecars = sidecars.map(|(index, container)| ("initContainers", index, container));
    let mut named = BTreeSet::new();
    let mut declared = BTreeSet::new();
    for (list, index, container) in ordinary.chain(sidecars) {
        for (place, port) in container.ports.iter().flatten().enumerate() {
            let field = format!("spec.{list}[{index}].ports[{place}]");
            let Some((protocol, number)) = one_port(findings, &field, port) else { continue };
            declared.insert((protocol, number));
            let Some(name) = non_empty(&port.name) else { continue };
            add_named(
                findings,
                &mut named,
                &field,
                NamedPort { protocol, name: name.to_owned(), port: number },
            );
        }
    }
    (named, declared)
}

fn one_port(findings: &mut Findings, field: &str, port: &api::ContainerPort) -> Option<(Protocol, Port)> {
    let protocol = findings.protocol(format!("{field}.protocol"), port.protocol.as_deref())?;
    Some((protocol, findings.port(format!("{field}.containerPort"), port.container_port)?))
}

/// The first container port of a name and protocol is the one that name means, as for Services.
fn add_named(findings: &mut Findings, named: &mut BTreeSet<NamedPort>, field: &str, port: NamedPort) {
    let same = |other: &&NamedPort| other.protocol == port.protocol && other.name == port.name;
    match named.iter().find(same) {
        None => {
            named.insert(port);
        }
        Some(first) if first.port == port.port => {}
        Some(first) => {
            let message =
                format!("{} already names port {} of this pod; that one counts", port.name, first.port);
            findings.warning(format!("{field}.name"), message);
        }
    }
}
