//! Checks of services: each type's fields, ports, traffic, and the status. Families and addresses are beside this.
use std::collections::HashSet;

use serde_json::{Value, json};

use super::endpoints::outside;
use super::list::*;
use super::service_addresses;
use crate::schema::{FieldError, formats};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameNode", "PreferSameZone"];
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";
const KUBELET_PORT: i64 = 10_250;
const MOST_AFFINITY_SECONDS: i64 = 86_400;

pub(super) fn service(object: &Value, errors: &mut Errors) {
    let (spec, at) = (&object["spec"], At::root().field("spec"));
    if !spec.is_object() {
        errors.push(FieldError::required(&at, ""));
        return;
    }
    let kind = text(spec, "type");
    topology_annotations(&object["metadata"]["annotations"], errors);
    one_of(&spec["type"], TYPES, &at.field("type"), errors);
    let count = spec["ports"].as_array().map_or(0, Vec::len);
    if count == 0 && !service_addresses::is_headless(spec) && kind != "ExternalName" {
        errors.push(FieldError::required(at.field("ports"), ""));
    }
    ports(spec, &at.field("ports"), kind, errors);
    match kind {
        "ExternalName" => external_name(spec, &at, errors),
        _ => service_addresses::check(spec, &at, errors),
    }
    for (index, value) in items(&spec["externalIPs"]) {
        ip(value, &at.field("externalIPs").index(index), errors);
        outside(value, &at.field("externalIPs").index(index), errors);
    }
    affinity(spec, &at, errors);
    labels(&spec["selector"], &at.field("selector"), errors);
    traffic(spec, &at, errors);
    source_ranges(object, &at, errors);
    load_balancer(spec, &at, errors);
}

/// What may not change, on top of what is wrong with the new object.
pub(super) fn check_update(old: &Value, new: &Value, errors: &mut Errors) {
    service_addresses::check_update(old, new, errors);
    let both = [old, new].iter().all(|spec| text(spec, "type") == "LoadBalancer");
    if both && text(old, "loadBalancerClass") != text(new, "loadBalancerClass") {
        let class = &new["loadBalancerClass"];
        errors.push(FieldError::invalid("spec.loadBalancerClass", class, "may not change once set"));
    }
}

/// What load balancers report, and conditions.
pub(super) fn status(object: &Value, errors: &mut Errors) {
    let status = &object["status"];
    let at = At::root().field("status").field("loadBalancer").field("ingress");
    let ingress = &status["loadBalancer"]["ingress"];
    let some = ingress.as_array().is_some_and(|list| !list.is_empty());
    if some && text(&object["spec"], "type") != "LoadBalancer" {
        errors.push(FieldError::forbidden(&at, "may only be used when `spec.type` is 'LoadBalancer'"));
    }
    for (index, entry) in items(ingress) {
        reported(entry, &at.index(index), errors);
    }
    let at = At::root().field("status").field("conditions");
    let mut types = HashSet::new();
    for (index, condition) in items(&status["conditions"]) {
        let at = at.index(index);
        if !types.insert(text(condition, "type")) {
            errors.push(FieldError::duplicate(at.field("type"), &condition["type"]));
        }
        label_key(text(condition, "type"), &at.field("type"), errors);
        one_of(&condition["status"], &["False", "True", "Unknown"], &at.field("status"), errors);
        if text(condition, "reason").is_empty() {
            errors.push(FieldError::required(at.field("reason"), ""));
        }
    }
}

fn reported(entry: &Value, at: &At, errors: &mut Errors) {
    let (address, hostname) = (text(entry, "ip"), text(entry, "hostname"));
    if !address.is_empty() {
        ip(&entry["ip"], &at.field("ip"), errors);
    }
    match (address.is_empty(), is_set(entry, "ipMode")) {
        (false, false) => {
            errors.push(FieldError::required(at.field("ipMode"), "must be specified when `ip` is set"));
        }
        (true, true) => {
            errors
                .push(FieldError::forbidden(at.field("ipMode"), "may not be specified when `ip` is not set"));
        }
        _ => one_of(&entry["ipMode"], &["Proxy", "VIP"], &at.field("ipMode"), errors),
    }
    if !hostname.is_empty() {
        subdomain(hostname, &at.field("hostname"), errors);
        if formats::parse_ip(hostname).is_some() {
            let detail = "must be a DNS name, not an IP address";
            errors.push(FieldError::invalid(at.field("hostname"), &entry["hostname"], detail));
        }
    }
    for (index, port) in items(&entry["ports"]) {
        let at = at.field("ports").index(index);
        port_number(&port["port"], &at.field("port"), errors);
        one_of(&port["protocol"], PROTOCOLS, &at.field("protocol"), errors);
        if is_set(port, "error") {
            label_key(text(port, "error"), &at.field("error"), errors);
        }
    }
}

fn topology_annotations(annotations: &Value, errors: &mut Errors) {
    let (mode, hints) = (&annotations[TOPOLOGY_MODE], &annotations[TOPOLOGY_HINTS]);
    if mode.is_string() && hints.is_string() && mode != hints {
        let detail = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        let at = At::root().field("metadata").field("annotations").key(TOPOLOGY_MODE);
        errors.push(FieldError::invalid(at, mode, detail));
    }
}

fn ports(spec: &Value, at: &At, kind: &str, errors: &mut Errors) {
    let list = &spec["ports"];
    let many = list.as_array().is_some_and(|list| list.len() > 1);
    let (mut names, mut keys, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (index, port) in items(list) {
        let at = at.index(index);
        let name = text(port, "name");
        if name.is_empty() && many {
            errors.push(FieldError::required(at.field("name"), ""));
        } else if !name.is_empty() {
            label_1123(name, &at.field("name"), errors);
            if !names.insert(name) {
                errors.push(FieldError::duplicate(at.field("name"), &name.into()));
            }
        }
        port_number(&port["port"], &at.field("port"), errors);
        if kind == "LoadBalancer" && port["port"] == KUBELET_PORT {
            let detail = format!("may not expose port {KUBELET_PORT} externally since it is used by kubelet");
            errors.push(FieldError::invalid(&at, &port["port"], detail));
        }
        one_of(&port["protocol"], PROTOCOLS, &at.field("protocol"), errors);
        port_or_name(&port["targetPort"], &at.field("targetPort"), errors);
        if is_set(port, "appProtocol") {
            label_key(text(port, "appProtocol"), &at.field("appProtocol"), errors);
        }
        let protocol = text(port, "protocol");
        if !keys.insert((protocol, port["port"].as_i64())) {
            let shown = json!({"protocol": protocol, "port": port["port"]});
            errors.push(FieldError::duplicate(&at, &shown));
        }
        let node_port = port["nodePort"].as_i64().unwrap_or(0);
        if node_port != 0 {
            port_number(&port["nodePort"], &at.field("nodePort"), errors);
            if matches!(kind, "ClusterIP" | "ExternalName") {
                let detail = format!("may not be used when `type` is '{kind}'");
                errors.push(FieldError::forbidden(at.field("nodePort"), detail));
            }
            if !node_ports.insert((protocol, node_port)) {
                errors.push(FieldError::duplicate(at.field("nodePort"), &port["nodePort"]));
            }
        }
    }
}

fn external_name(spec: &Value, at: &At, errors: &mut Errors) {
    let name = text(spec, "externalName");
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        errors.push(FieldError::required(at.field("externalName"), ""));
    } else {
        subdomain(name, &at.field("externalName"), errors);
    }
    let given = |field: &str| match &spec[field] {
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => false,
    };
    let addresses = given("clusterIP") || given("clusterIPs");
    for (field, given) in [
        ("clusterIPs", addresses),
        ("ipFamilies", given("ipFamilies")),
        ("ipFamilyPolicy", given("ipFamilyPolicy")),
    ] {
        if given {
            let detail = "may not be set for ExternalName services";
            errors.push(FieldError::forbidden(at.field(field), detail));
        }
    }
}

fn affinity(spec: &Value, at: &At, errors: &mut Errors) {
    one_of(&spec["sessionAffinity"], &["ClientIP", "None"], &at.field("sessionAffinity"), errors);
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if timeout.as_i64().is_some_and(|seconds| !(1..=MOST_AFFINITY_SECONDS).contains(&seconds)) {
        let at = at.field("sessionAffinityConfig").field("clientIP").field("timeoutSeconds");
        let detail = format!("must be greater than 0 and less than {MOST_AFFINITY_SECONDS}");
        errors.push(FieldError::invalid(at, timeout, detail));
    }
}

fn traffic(spec: &Value, at: &At, errors: &mut Errors) {
    let kind = text(spec, "type");
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        if !text(spec, field).is_empty() || field == "internalTrafficPolicy" {
            one_of(&spec[field], &["Cluster", "Local"], &at.field(field), errors);
        }
    }
    one_of(&spec["trafficDistribution"], DISTRIBUTIONS, &at.field("trafficDistribution"), errors);
    let external_addresses = spec["externalIPs"].as_array().is_some_and(|list| !list.is_empty());
    let reachable =
        matches!(kind, "NodePort" | "LoadBalancer") || (kind == "ClusterIP" && external_addresses);
    if !text(spec, "externalTrafficPolicy").is_empty() && !reachable {
        errors.push(FieldError::invalid(
            at.field("externalTrafficPolicy"),
            &spec["externalTrafficPolicy"],
            "may only be set for externally-accessible services",
        ));
    }
    let at = at.field("healthCheckNodePort");
    let port = &spec["healthCheckNodePort"];
    if kind == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local" {
        port_number(port, &at, errors);
    } else if port.as_i64().unwrap_or_default() != 0 {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(FieldError::invalid(at, port, detail));
    }
}

/// The field takes precedence over the annotation that came before it.
fn source_ranges(object: &Value, at: &At, errors: &mut Errors) {
    let spec = &object["spec"];
    let given = &spec["loadBalancerSourceRanges"];
    let annotation = object["metadata"]["annotations"][SOURCE_RANGES].as_str();
    let in_field = given.as_array().is_some_and(|list| !list.is_empty());
    let (at, ranges): (At, Vec<(At, &str)>) = if in_field {
        let at = at.field("LoadBalancerSourceRanges");
        let ranges = items(given).map(|(index, range)| (at.index(index), range.as_str().unwrap_or_default()));
        let ranges = ranges.collect();
        (at, ranges)
    } else if let Some(text) = annotation {
        let at = At::root().field("metadata").field("annotations").key(SOURCE_RANGES);
        let ranges = text.split(',').filter(|_| !text.trim().is_empty());
        let ranges = ranges.map(|range| (at.clone(), range)).collect();
        (at, ranges)
    } else {
        return;
    };
    if text(spec, "type") != "LoadBalancer" {
        errors.push(FieldError::forbidden(at, ONLY_LOAD_BALANCER));
    }
    for (at, range) in ranges {
        // Spaces around a range were always accepted.
        cidr(&range.trim().into(), &at, errors);
    }
}

fn load_balancer(spec: &Value, at: &At, errors: &mut Errors) {
    let is_balancer = text(spec, "type") == "LoadBalancer";
    for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if is_set(spec, field) && !is_balancer {
            errors.push(FieldError::forbidden(at.field(field), ONLY_LOAD_BALANCER));
        }
    }
    if is_set(spec, "loadBalancerClass") && is_balancer {
        label_key(text(spec, "loadBalancerClass"), &at.field("loadBalancerClass"), errors);
    }
}
