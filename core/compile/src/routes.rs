//! The node's own settings and the way to pods and nodes elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{Addr, Cidr, ClusterSettings, Family, Finding, Node, NodeName, Routing, Severity, Snapshot};
use weft_plan::{NextHop, NodeSettings};

/// Ethernet, IP, UDP and VXLAN headers around a packet (RFC 7348, 5).
const VXLAN_OVER_IPV4: u32 = 50;
const VXLAN_OVER_IPV6: u32 = 70;

pub(crate) fn settings(snapshot: &Snapshot, node: &NodeName, findings: &mut Vec<Finding>) -> NodeSettings {
    let own = snapshot.nodes.get(node);
    match own {
        None => {
            findings.push(error(node, "", "is not in the cluster, so it has no addresses and no pods".into()))
        }
        Some(own) if own.addresses.is_empty() => {
            findings.push(error(node, "status.addresses", "has no InternalIP".into()));
        }
        Some(_) => {}
    }
    let addresses = own.map(|own| own.addresses.clone()).unwrap_or_default();
    let given = &snapshot.settings;
    let node_hosts = snapshot.nodes.values().flat_map(|node| &node.addresses).map(|addr| Cidr::host(*addr));
    let pods = cluster_pod_cidrs(snapshot);
    NodeSettings {
        node: node.clone(),
        host_addresses: addresses.iter().chain(given.name_servers()).copied().collect(),
        pod_cidrs: own.map(|own| own.pod_cidrs.clone()).unwrap_or_default(),
        service_cidrs: given.service_cidrs.iter().copied().collect(),
        // Not the nodes' whole network: other machines of it know no way back to a pod.
        cluster_cidrs: outermost(pods.iter().copied().chain(node_hosts)),
        cluster_pod_cidrs: pods,
        routing: given.routing,
        pod_mtu: pod_mtu(given),
        localhost_node_ports: given.localhost_node_ports,
        node_addresses: first_of_each_family_first(addresses),
    }
}

/// The pod prefixes of the cluster: those set, and those nodes were given beyond them.
pub(crate) fn cluster_pod_cidrs(snapshot: &Snapshot) -> BTreeSet<Cidr> {
    let given = snapshot.settings.pod_cidrs.iter();
    outermost(given.chain(snapshot.nodes.values().flat_map(|node| &node.pod_cidrs)).copied())
}

/// Without the prefixes that lie inside others.
fn outermost(cidrs: impl Iterator<Item = Cidr>) -> BTreeSet<Cidr> {
    let mut by_length: Vec<Cidr> = cidrs.collect();
    by_length.sort_by_key(|cidr| (cidr.bits(), *cidr));
    let mut kept = BTreeSet::new();
    let mut lengths = BTreeSet::new();
    for cidr in by_length {
        let mut outer = lengths.iter().filter_map(|bits| truncated(cidr, *bits));
        if !outer.any(|outer| kept.contains(&outer)) {
            lengths.insert(cidr.bits());
            kept.insert(cidr);
        }
    }
    kept
}

/// `cidr` shortened to `bits` (of the 16-byte form), if it is at least that long.
pub(crate) fn truncated(cidr: Cidr, bits: u8) -> Option<Cidr> {
    let bits = (bits <= cidr.bits()).then_some(bits)?;
    match cidr.family() {
        Family::V4 => Cidr::around(cidr.addr(), bits.checked_sub(96)?),
        Family::V6 => Cidr::around(cidr.addr(), bits),
    }
}

fn first_of_each_family_first(addresses: Vec<Addr>) -> Vec<Addr> {
    let first = |family| addresses.iter().position(|addr| addr.family() == family);
    let heads = [first(Family::V4), first(Family::V6)];
    let (mut sorted, mut rest) = (Vec::new(), Vec::new());
    for (index, addr) in addresses.iter().enumerate() {
        if heads.contains(&Some(index)) { sorted.push(*addr) } else { rest.push(*addr) }
    }
    sorted.extend(rest);
    sorted
}

/// What a pod's link gets: the nodes' link MTU less what the routing mode puts around a packet.
pub fn pod_mtu(settings: &ClusterSettings) -> u32 {
    let only_v6 =
        !settings.node_cidrs.is_empty() && settings.node_cidrs.iter().all(|cidr| cidr.family() == Family::V6);
    let overhead = match settings.routing {
        Routing::Direct => 0,
        Routing::Vxlan { .. } if only_v6 => VXLAN_OVER_IPV6,
        Routing::Vxlan { .. } => VXLAN_OVER_IPV4,
    };
    settings.mtu.saturating_sub(overhead)
}

/// Pod prefixes and own addresses of every other node.
pub(crate) fn routes(
    snapshot: &Snapshot,
    node: &NodeName,
    findings: &mut Vec<Finding>,
) -> BTreeMap<Cidr, NextHop> {
    let Some(own) = snapshot.nodes.get(node) else { return BTreeMap::new() };
    let mut routes: BTreeMap<Cidr, NextHop> = BTreeMap::new();
    for other in snapshot.nodes.values().filter(|other| other.name != *node) {
        let hosts = other.addresses.iter().map(|addr| Cidr::host(*addr));
        let hosts = hosts.filter(|host| !own.addresses.contains(&host.addr()));
        for prefix in other.pod_cidrs.iter().copied().chain(hosts) {
            if let Some(mine) = own.pod_cidrs.iter().find(|mine| mine.overlaps(prefix)) {
                let message = format!("{prefix} overlaps {mine} of node {node}; it is not routed there");
                findings.push(error(&other.name, "spec.podCIDRs", message));
                continue;
            }
            if let Some(hop) = routes.get(&prefix) {
                let message = format!("{prefix} belongs to node {} already", hop.node);
                findings.push(error(&other.name, "spec.podCIDRs", message));
                continue;
            }
            match next_hop(snapshot.settings.routing, own, other, prefix.family()) {
                Some(hop) => {
                    routes.insert(prefix, hop);
                }
                None => findings.push(no_way(own, other, prefix)),
            }
        }
    }
    routes
}

/// Direct: the neighbour's address of the packet's family. VXLAN: the same choice seen from both ends, so that each
/// can check that a packet came from the tunnel end it belongs to.
fn next_hop(routing: Routing, own: &Node, other: &Node, family: Family) -> Option<NextHop> {
    let has = |node: &Node, family| node.addresses.iter().copied().find(|addr| addr.family() == family);
    let both = |family| has(own, family).and(has(other, family));
    let via = match routing {
        Routing::Direct => both(family),
        Routing::Vxlan { .. } => both(Family::V4).or_else(|| both(Family::V6)),
    };
    Some(NextHop { node: other.name.clone(), via: via? })
}

fn no_way(own: &Node, other: &Node, prefix: Cidr) -> Finding {
    let message = format!("no InternalIP that node {} can reach {prefix} through", own.name);
    error(&other.name, "status.addresses", message)
}

fn error(node: &NodeName, field: &str, message: String) -> Finding {
    Finding { severity: Severity::Error, object: format!("Node {node}"), field: field.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pods_and_nodes_see_a_pods_own_address() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let node = |number: u8| Node {
            name: NodeName::new(format!("n{number}")),
            labels: BTreeMap::new(),
            addresses: vec![format!("172.30.0.1{number}").parse().unwrap()],
            pod_cidrs: BTreeSet::from([cidr(&format!("10.244.{number}.0/24"))]),
            ready: true,
            sctp: Default::default(),
        };
        let mut snapshot = Snapshot::default();
        snapshot.settings.pod_cidrs = vec![cidr("10.244.0.0/16")];
        snapshot.settings.node_cidrs = vec![cidr("172.30.0.0/24")];
        for number in [1, 2] {
            snapshot.nodes.insert(NodeName::new(format!("n{number}")), node(number));
        }
        let settings = settings(&snapshot, &NodeName::new("n1"), &mut Vec::new());
        let keeps = ["10.244.0.0/16", "172.30.0.11/32", "172.30.0.12/32"].map(cidr);
        assert_eq!(settings.cluster_cidrs, BTreeSet::from(keeps), "172.30.0.99 is no node");
    }
}
