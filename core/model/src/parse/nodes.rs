//! Nodes of the Kubernetes API to the model's.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as api;

use super::{Findings, Parsed, non_empty};
use crate::{Addr, AddrError, Cidr, Node, NodeName, Sctp};

pub fn node(node: &api::Node) -> Parsed<Node> {
    let mut findings = Findings::about("Node", &node.metadata);
    let Some(name) = non_empty(&node.metadata.name) else {
        findings.error("metadata.name", "is missing");
        return findings.with(None);
    };
    let pod_cidrs = pod_cidrs(&mut findings, node);
    let value = internal_addresses(&mut findings, node).map(|addresses| Node {
        name: NodeName::new(name),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        addresses,
        pod_cidrs,
        ready: condition(node, "Ready") == Some("True"),
        sctp: match condition(node, Sctp::CONDITION) {
            Some("True") => Sctp::Available,
            Some("False") => Sctp::Missing,
            _ => Sctp::Unknown,
        },
    });
    findings.with(value)
}

fn condition<'a>(node: &'a api::Node, kind: &str) -> Option<&'a str> {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.find(|condition| condition.type_ == kind).map(|condition| condition.status.as_str())
}

/// In the object's order, without repeats. With one that is no address, or with none, the whole node is not understood:
/// every way to its pods leads by them, and what is known of it may still be right.
fn internal_addresses(findings: &mut Findings, node: &api::Node) -> Option<Vec<Addr>> {
    let given = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let internal = given.enumerate().filter(|(_, address)| address.type_ == "InternalIP");
    let (mut addresses, mut all_read) = (Vec::new(), true);
    for (index, address) in internal {
        match findings.addr(format!("status.addresses[{index}].address"), &address.address) {
            Some(addr) if !addresses.contains(&addr) => addresses.push(addr),
            Some(_) => {}
            None => all_read = false,
        }
    }
    if all_read && !addresses.is_empty() {
        return Some(addresses);
    }
    let what = if all_read { "has no InternalIP" } else { "has an InternalIP that cannot be read" };
    let message = format!("{what}: the node's last good state, if there was one, stays in force");
    findings.error("status.addresses", message);
    None
}

fn pod_cidrs(findings: &mut Findings, node: &api::Node) -> BTreeSet<Cidr> {
    let Some(spec) = &node.spec else { return BTreeSet::new() };
    let list = spec.pod_cidrs.as_deref().unwrap_or_default();
    if list.is_empty() {
        return spec.pod_cidr.iter().filter_map(|text| cidr(findings, "spec.podCIDR", text)).collect();
    }
    let parse = |(index, text): (usize, &String)| cidr(findings, &format!("spec.podCIDRs[{index}]"), text);
    list.iter().enumerate().filter_map(parse).collect()
}

/// Bits beyond the prefix length are ignored, as the API does, and said.
pub(super) fn cidr(findings: &mut Findings, field: &str, text: &str) -> Option<Cidr> {
    match text.parse::<Cidr>() {
        Ok(cidr) => Some(cidr),
        Err(error @ AddrError::HostBits(_, cidr)) => {
            findings.warning(field, error.to_string());
            Some(cidr)
        }
        Err(error) => {
            findings.error(field, error.to_string());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(addresses: Value) -> Parsed<Node> {
        let object = json!({
            "metadata": {"name": "n1"}, "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": addresses},
        });
        node(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn addresses_are_all_understood_or_the_node_is_not() {
        let internal = |address: &str| json!({"type": "InternalIP", "address": address});
        let name = json!({"type": "Hostname", "address": "n1"});
        let good = parsed(json!([internal("172.30.0.11"), name, internal("fd00::11"), internal("fd00::11")]));
        assert_eq!(good.findings, []);
        let expected: Vec<Addr> = ["172.30.0.11", "fd00::11"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(good.value.map(|node| node.addresses), Some(expected));
        for (addresses, fields) in [
            (json!([internal("zz")]), &["status.addresses[0].address", "status.addresses"][..]),
            (
                json!([internal("172.30.0.11"), internal("")]),
                &["status.addresses[1].address", "status.addresses"],
            ),
            (json!([name]), &["status.addresses"]),
            (json!([]), &["status.addresses"]),
        ] {
            let bad = parsed(addresses.clone());
            assert_eq!(bad.value, None, "{addresses}");
            assert_eq!(bad.findings.iter().map(|found| found.field.as_str()).collect::<Vec<_>>(), fields);
        }
    }
}
