//! Prefixes that overlap and addresses that two claim.

use std::collections::BTreeMap;

use weft_model::{Addr, Cidr, Finding, NodeName, Severity, Snapshot};

use crate::endpoints::{Locals, Owners};
use crate::services::Services;

pub(super) fn check(snapshot: &Snapshot, findings: &mut Vec<Finding>) {
    settings(snapshot, findings);
    nodes(snapshot, findings);
    Owners::of(snapshot, &Locals::attached(snapshot), findings);
    findings.extend(Services::of(snapshot, None).findings);
}

fn settings(snapshot: &Snapshot, findings: &mut Vec<Finding>) {
    let given = &snapshot.settings;
    let lists = [("pod", &given.pod_cidrs), ("service", &given.service_cidrs), ("node", &given.node_cidrs)];
    for (place, (kind, cidrs)) in lists.iter().enumerate() {
        for (other_kind, others) in &lists[place + 1..] {
            for (cidr, other) in cidrs.iter().flat_map(|cidr| others.iter().map(move |other| (cidr, other))) {
                if cidr.overlaps(*other) {
                    let message = format!("{kind} prefix {cidr} overlaps {other_kind} prefix {other}");
                    findings.push(error("cluster settings".to_owned(), "", message));
                }
            }
        }
    }
}

fn nodes(snapshot: &Snapshot, findings: &mut Vec<Finding>) {
    let mut prefixes: Vec<(Cidr, &NodeName)> = Vec::new();
    let mut owners: BTreeMap<Addr, &NodeName> = BTreeMap::new();
    for node in snapshot.nodes.values() {
        prefixes.extend(node.pod_cidrs.iter().map(|cidr| (*cidr, &node.name)));
        for addr in &node.addresses {
            if let Some(other) = owners.insert(*addr, &node.name) {
                let message = format!("{addr} is node {other}'s too");
                findings.push(error(format!("Node {}", node.name), "status.addresses", message));
            }
            if let Some(cidr) = snapshot.settings.pod_cidrs.iter().find(|cidr| cidr.contains(*addr)) {
                let message = format!("{addr} lies in pod prefix {cidr}");
                findings.push(error(format!("Node {}", node.name), "status.addresses", message));
            }
        }
        for cidr in &node.pod_cidrs {
            if let Some(service) =
                snapshot.settings.service_cidrs.iter().find(|service| service.overlaps(*cidr))
            {
                let message = format!("{cidr} overlaps service prefix {service}");
                findings.push(error(format!("Node {}", node.name), "spec.podCIDRs", message));
            }
        }
    }
    // Sorted by start and length, a prefix inside another follows it before any that lies beyond.
    prefixes.sort();
    let mut outer: Option<(Cidr, &NodeName)> = None;
    for (cidr, node) in prefixes {
        match outer.filter(|(outer, _)| outer.overlaps(cidr)) {
            Some((outer, other)) if other != node => {
                let message = format!("{cidr} overlaps {outer} of node {other}");
                findings.push(error(format!("Node {node}"), "spec.podCIDRs", message));
            }
            Some(_) => {}
            None => outer = Some((cidr, node)),
        }
    }
}

fn error(object: String, field: &str, message: String) -> Finding {
    Finding { severity: Severity::Error, object, field: field.to_owned(), message }
}
