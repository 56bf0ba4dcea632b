//! Nodes of the Kubernetes API to the model's.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1 as api;

use super::{Findings, Parsed, non_empty};
use crate::{Addr, AddrError, Cidr, Node, NodeName};

pub fn node(node: &api::Node) -> Parsed<Node> {
    let mut findings = Findings::about("Node", &node.metadata);
    let Some(name) = non_empty(&node.metadata.name) else {
        findings.error("metadata.name", "is missing");
        return findings.with(None);
    };
    let value = Node {
        name: NodeName::new(name),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        addresses: internal_addresses(&mut findings, node),
        pod_cidrs: pod_cidrs(&mut findings, node),
        ready: is_ready(node),
    };
    findings.with(Some(value))
}

fn is_ready(node: &api::Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// In the object's order, without repeats.
fn internal_addresses(findings: &mut Findings, node: &api::Node) -> Vec<Addr> {
    let given = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let mut addresses = Vec::new();
    for (index, address) in given.enumerate().filter(|(_, address)| address.type_ == "InternalIP") {
        let parsed = findings.addr(format!("status.addresses[{index}].address"), &address.address);
        addresses.extend(parsed.filter(|addr| !addresses.contains(addr)));
    }
    addresses
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
