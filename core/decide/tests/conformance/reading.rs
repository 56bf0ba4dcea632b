//! NetworkPolicy as its API reference puts it, rule by rule over the objects themselves. It shares no code with
//! parsing, compiling or deciding, so that all of them can be wrong against it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_model::Protocol;
use weft_model::testing::{Cluster, Probe};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    NotIsolated,
    /// The first rule that allows, policies in the order of their names.
    Allowed {
        policy: String,
        index: usize,
    },
    Denied,
}

type LabelMap = BTreeMap<String, String>;

/// Who has an address, as far as selectors and port names go.
struct Party {
    namespace: String,
    labels: LabelMap,
    /// (name, protocol, number)
    ports: Vec<(String, String, i32)>,
}

/// What egress policy of the source and ingress policy of the destination say on `node`; `None` where there is no
/// such pod of that node.
pub fn read(cluster: &Cluster, node: &str, probe: Probe) -> (Option<Answer>, Option<Answer>) {
    let (source, destination) = (probe.source.to_ip(), probe.destination.to_ip());
    let on_node = |addr: IpAddr| pod_at(cluster, addr).filter(|pod| bound_to(pod) == Some(node));
    let egress = on_node(source).map(|pod| {
        let peer = party_at(cluster, destination);
        answer(cluster, &party(pod), "Egress", destination, peer.as_ref(), peer.as_ref(), probe)
    });
    let ingress = on_node(destination).map(|pod| {
        if is_own_node(cluster, node, source) {
            return Answer::NotIsolated;
        }
        let peer = party_at(cluster, source);
        let subject = party(pod);
        answer(cluster, &subject, "Ingress", source, peer.as_ref(), Some(&subject), probe)
    });
    (egress, ingress)
}

fn bound_to(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// A pod on the host's network or one that has ended has no address of its own.
fn pod_at(cluster: &Cluster, addr: IpAddr) -> Option<&Pod> {
    cluster.pods.iter().find(|pod| {
        let status = pod.status.clone().unwrap_or_default();
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let on_host = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        let ips = status.pod_ips.unwrap_or_default();
        !ended && !on_host && ips.iter().any(|ip| ip.ip.parse() == Ok(addr))
    })
}

fn party(pod: &Pod) -> Party {
    let spec = pod.spec.clone().unwrap_or_default();
    let mut ports = Vec::new();
    for port in spec.containers.into_iter().flat_map(|container| container.ports.unwrap_or_default()) {
        let protocol = port.protocol.unwrap_or("TCP".to_owned());
        ports.extend(port.name.map(|name| (name, protocol, port.container_port)));
    }
    Party {
        namespace: pod.metadata.namespace.clone().unwrap(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        ports,
    }
}

/// The cluster's name server counts as a pod labelled `k8s-app: kube-dns` in `kube-system`.
fn party_at(cluster: &Cluster, addr: IpAddr) -> Option<Party> {
    if cluster.settings.dns_addresses.iter().any(|known| known.to_ip() == addr) {
        return Some(Party {
            namespace: "kube-system".to_owned(),
            labels: LabelMap::from([("k8s-app".to_owned(), "kube-dns".to_owned())]),
            ports: vec![("dns".into(), "UDP".into(), 53), ("dns-tcp".into(), "TCP".into(), 53)],
        });
    }
    pod_at(cluster, addr).map(party)
}

fn is_own_node(cluster: &Cluster, node: &str, addr: IpAddr) -> bool {
    let own = cluster.nodes.iter().find(|object| object.metadata.name.as_deref() == Some(node)).unwrap();
    let addresses = own.status.as_ref().unwrap().addresses.as_ref().unwrap();
    let name_server = cluster.settings.dns_addresses.iter().any(|known| known.to_ip() == addr);
    name_server || addresses.iter().any(|address| address.address.parse() == Ok(addr))
}

/// Isolation: "By default, a pod is non-isolated; it becomes so if any policy selects it and has the direction in
/// its policyTypes; then only what some such policy's rules allow is allowed."
fn answer(
    cluster: &Cluster,
    subject: &Party,
    direction: &str,
    peer_addr: IpAddr,
    peer: Option<&Party>,
    destination: Option<&Party>,
    probe: Probe,
) -> Answer {
    let mut isolated = false;
    let mut policies: Vec<&NetworkPolicy> = cluster.policies.iter().collect();
    policies.sort_by_key(|policy| policy.metadata.name.clone());
    for policy in policies {
        let spec = policy.spec.clone().unwrap_or_default();
        let same_namespace = policy.metadata.namespace.as_ref() == Some(&subject.namespace);
        let selected = spec.pod_selector.as_ref().is_none_or(|selector| selects(selector, &subject.labels));
        if !same_namespace || !selected || !types(policy).contains(&direction.to_owned()) {
            continue;
        }
        isolated = true;
        let rules: Vec<_> = if direction == "Ingress" {
            spec.ingress.unwrap_or_default().into_iter().map(|rule| (rule.from, rule.ports)).collect()
        } else {
            spec.egress.unwrap_or_default().into_iter().map(|rule| (rule.to, rule.ports)).collect()
        };
        for (index, (peers, ports)) in rules.into_iter().enumerate() {
            let peers = peers.unwrap_or_default();
            let ports = ports.unwrap_or_default();
            let own = &subject.namespace;
            let from_peer =
                peers.is_empty() || peers.iter().any(|given| is_peer(cluster, own, given, peer_addr, peer));
            let to_port = ports.is_empty() || ports.iter().any(|given| is_port(given, destination, probe));
            if from_peer && to_port {
                let policy = policy.metadata.name.clone().unwrap();
                return Answer::Allowed { policy, index };
            }
        }
    }
    if isolated { Answer::Denied } else { Answer::NotIsolated }
}

/// "If this field is not specified, it will default based on the existence of ingress or egress rules; policies that
/// contain an egress section are assumed to affect egress, and all policies ingress."
fn types(policy: &NetworkPolicy) -> Vec<String> {
    let spec = policy.spec.clone().unwrap_or_default();
    match spec.policy_types {
        Some(types) if !types.is_empty() => types,
        _ if spec.egress.is_some_and(|rules| !rules.is_empty()) => vec!["Ingress".into(), "Egress".into()],
        _ => vec!["Ingress".into()],
    }
}

fn is_peer(
    cluster: &Cluster,
    policy_namespace: &str,
    given: &NetworkPolicyPeer,
    addr: IpAddr,
    peer: Option<&Party>,
) -> bool {
    if let Some(block) = &given.ip_block {
        return in_block(block, addr);
    }
    let Some(peer) = peer else { return false };
    let namespace_fits = match &given.namespace_selector {
        None => peer.namespace == policy_namespace,
        Some(selector) => selects(selector, &namespace_labels(cluster, &peer.namespace)),
    };
    namespace_fits && given.pod_selector.as_ref().is_none_or(|selector| selects(selector, &peer.labels))
}

fn namespace_labels(cluster: &Cluster, name: &str) -> LabelMap {
    let known = |namespace: &&Namespace| namespace.metadata.name.as_deref() == Some(name);
    match cluster.namespaces.iter().find(known) {
        Some(namespace) => namespace.metadata.labels.clone().unwrap_or_default(),
        None => LabelMap::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]),
    }
}

fn selects(selector: &LabelSelector, labels: &LabelMap) -> bool {
    for (key, value) in selector.match_labels.iter().flatten() {
        if labels.get(key) != Some(value) {
            return false;
        }
    }
    for expression in selector.match_expressions.iter().flatten() {
        let value = labels.get(&expression.key);
        let listed = value.is_some_and(|value| expression.values.iter().flatten().any(|one| one == value));
        let holds = match expression.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            other => panic!("operator {other}"),
        };
        if !holds {
            return false;
        }
    }
    true
}

fn in_block(block: &IPBlock, addr: IpAddr) -> bool {
    in_cidr(&block.cidr, addr) && !block.except.iter().flatten().any(|except| in_cidr(except, addr))
}

fn in_cidr(text: &str, addr: IpAddr) -> bool {
    let (base, length) = text.split_once('/').unwrap();
    let length: usize = length.parse().unwrap();
    let bits = |addr: IpAddr| -> String {
        let octets = match addr {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        octets.iter().map(|octet| format!("{octet:08b}")).collect()
    };
    let base: IpAddr = base.parse().unwrap();
    base.is_ipv4() == addr.is_ipv4() && bits(base)[..length] == bits(addr)[..length]
}

fn is_port(given: &NetworkPolicyPort, destination: Option<&Party>, probe: Probe) -> bool {
    let protocol = given.protocol.as_deref().unwrap_or("TCP");
    let probed = match probe.protocol {
        Protocol::TCP => "TCP",
        Protocol::UDP => "UDP",
        Protocol::SCTP => "SCTP",
        _ => return false,
    };
    let port = i32::from(probe.port.0);
    protocol == probed
        && match &given.port {
            None => true,
            Some(IntOrString::Int(first)) => (*first..=given.end_port.unwrap_or(*first)).contains(&port),
            // Of several container ports with one name and protocol, the first is meant.
            Some(IntOrString::String(name)) => {
                let ports = destination.map(|party| party.ports.as_slice()).unwrap_or_default();
                let named = ports.iter().find(|(known, of, _)| known == name && of == protocol);
                named.is_some_and(|(_, _, number)| *number == port)
            }
        }
}
