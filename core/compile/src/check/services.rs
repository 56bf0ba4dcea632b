//! Services that lead nowhere.

use std::collections::BTreeMap;

use weft_model::{
    EndpointCondition, EndpointSlice, Finding, Pod, Service, ServiceKey, ServiceKind, Snapshot, TargetPort,
};

use super::{Pods, hint, warning};

pub(super) fn check(snapshot: &Snapshot, pods: &Pods<'_>, findings: &mut Vec<Finding>) {
    let mut slices: BTreeMap<&ServiceKey, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in snapshot.slices.values() {
        slices.entry(&slice.service).or_default().push(slice);
    }
    for service in snapshot.services.values() {
        let is_name_server =
            service.cluster_ips.iter().any(|addr| snapshot.settings.dns_addresses.contains(addr));
        // The API server is reached at its own address, which the cluster's set-up answers for.
        let is_api = service.key == ServiceKey::new("default", "kubernetes");
        if matches!(service.kind, ServiceKind::ExternalName(_)) || is_name_server || is_api {
            continue;
        }
        let slices = slices.get(&service.key).map(Vec::as_slice).unwrap_or_default();
        one(service, slices, pods, findings);
    }
}

fn one(service: &Service, slices: &[&EndpointSlice], pods: &Pods<'_>, findings: &mut Vec<Finding>) {
    let object = format!("Service {}", service.key);
    let namespace = &service.key.namespace;
    if let Some(selector) = &service.selector {
        let selected = pods.selected(namespace, selector);
        if selected.is_empty() {
            let hint = hint(selector, pods.of_namespace(namespace).iter().map(|pod| &pod.labels));
            let message = format!("{selector} selects no pod of namespace {namespace}{hint}");
            findings.push(warning(object, "spec.selector", message));
            return;
        }
        targets(service, &object, &selected, findings);
    }
    let conditions: Vec<_> =
        slices.iter().flat_map(|slice| &slice.endpoints).map(|endpoint| endpoint.condition).collect();
    let usable = |condition: &EndpointCondition| *condition != EndpointCondition::NotReady;
    if !conditions.iter().any(usable) {
        let message = match conditions.len() {
            0 => "has no endpoints; connections to it are refused".to_owned(),
            count => format!("none of its {count} endpoints is ready; connections to it are refused"),
        };
        findings.push(warning(object, "", message));
    }
}

/// Target ports that no selected pod declares.
fn targets(service: &Service, object: &str, selected: &[&Pod], findings: &mut Vec<Finding>) {
    for (index, port) in service.ports.iter().enumerate() {
        let declares = |pod: &&Pod| match &port.target {
            TargetPort::Number(number) => pod.declared_ports.contains(&(port.protocol, *number)),
            TargetPort::Name(name) => {
                pod.named_ports.iter().any(|named| named.protocol == port.protocol && named.name == *name)
            }
        };
        // Pods that declare nothing may listen anywhere, but a name must be declared to mean something.
        let silent = |pod: &&Pod| pod.declared_ports.is_empty();
        let by_number = matches!(port.target, TargetPort::Number(_));
        if selected.iter().any(declares) || (by_number && selected.iter().any(silent)) {
            continue;
        }
        let target = match &port.target {
            TargetPort::Number(number) => number.to_string(),
            TargetPort::Name(name) => format!("named {name}"),
        };
        let message = format!("no selected pod declares {} port {target}", port.protocol);
        findings.push(warning(object, format!("spec.ports[{index}].targetPort"), message));
    }
}
