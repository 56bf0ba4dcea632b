//! Checks of services, endpoints and endpoint slices.
use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::list::*;
use crate::schema::{FieldError, formats};

pub(super) fn service(spec: &Value, at: &At, errors: &mut Errors) {
    if !spec.is_object() {
        errors.push(FieldError::required(at, ""));
        return;
    }
    let kind = text(spec, "type");
    let headless = text(spec, "clusterIP") == "None";
    one_of(
        &spec["type"],
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        &at.field("type"),
        errors,
    );
    let count = spec["ports"].as_array().map_or(0, Vec::len);
    if count == 0 && !headless && kind != "ExternalName" {
        errors.push(FieldError::required(at.field("ports"), ""));
    }
    ports(spec, &at.field("ports"), kind, errors);
    addresses(spec, at, kind, headless, errors);
    affinity(spec, at, errors);
    labels(&spec["selector"], &at.field("selector"), errors);
    traffic(spec, at, kind, errors);
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
        one_of(&port["protocol"], PROTOCOLS, &at.field("protocol"), errors);
        port_or_name(&port["targetPort"], &at.field("targetPort"), errors);
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

fn addresses(spec: &Value, at: &At, kind: &str, headless: bool, errors: &mut Errors) {
    if kind == "ExternalName" {
        let name = text(spec, "externalName");
        let at_name = at.field("externalName");
        if name.is_empty() {
            errors.push(FieldError::required(at_name, ""));
        } else {
            subdomain(name.strip_suffix('.').unwrap_or(name), &at_name, errors);
        }
        if !matches!(text(spec, "clusterIP"), "") {
            errors.push(FieldError::forbidden(
                at.field("clusterIPs"),
                "may not be set for ExternalName services",
            ));
        }
        return;
    }
    let cluster_ip = text(spec, "clusterIP");
    if !cluster_ip.is_empty() && !headless {
        ip(&spec["clusterIP"], &at.field("clusterIPs").index(0), errors);
    }
    if headless && kind != "ClusterIP" && !kind.is_empty() {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid(at.field("clusterIPs").index(0), &json!("None"), detail));
    }
    let first = spec["clusterIPs"].get(0).and_then(Value::as_str);
    if !cluster_ip.is_empty() && first.is_some_and(|first| first != cluster_ip) {
        let detail = "first value must match `clusterIP`";
        errors.push(FieldError::invalid(at.field("clusterIPs"), &spec["clusterIPs"], detail));
    }
    for (index, value) in items(&spec["clusterIPs"]).filter(|(_, value)| *value != "None") {
        ip(value, &at.field("clusterIPs").index(index), errors);
    }
    for (index, value) in items(&spec["externalIPs"]) {
        ip(value, &at.field("externalIPs").index(index), errors);
        outside(value, &at.field("externalIPs").index(index), errors);
    }
    families(spec, at, errors);
}

fn families(spec: &Value, at: &At, errors: &mut Errors) {
    let mut families = HashSet::new();
    for (index, family) in items(&spec["ipFamilies"]) {
        let at = at.field("ipFamilies").index(index);
        one_of(family, &["IPv4", "IPv6"], &at, errors);
        if !families.insert(family.as_str()) {
            errors.push(FieldError::duplicate(at, family));
        }
    }
    let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    one_of(&spec["ipFamilyPolicy"], &policies, &at.field("ipFamilyPolicy"), errors);
}

fn affinity(spec: &Value, at: &At, errors: &mut Errors) {
    one_of(&spec["sessionAffinity"], &["ClientIP", "None"], &at.field("sessionAffinity"), errors);
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if timeout.as_i64().is_some_and(|seconds| !(1..=86_400).contains(&seconds)) {
        let at = at.field("sessionAffinityConfig").field("clientIP").field("timeoutSeconds");
        errors.push(FieldError::invalid(at, timeout, "must be greater than 0 and less than 86400"));
    }
}

fn traffic(spec: &Value, at: &At, kind: &str, errors: &mut Errors) {
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        one_of(&spec[field], &["Cluster", "Local"], &at.field(field), errors);
    }
    one_of(&spec["trafficDistribution"], &["PreferClose"], &at.field("trafficDistribution"), errors);
    let externally_reachable = matches!(kind, "NodePort" | "LoadBalancer")
        || spec["externalIPs"].as_array().is_some_and(|list| !list.is_empty());
    if is_set(spec, "externalTrafficPolicy") && !externally_reachable {
        let detail = "may only be set for externally-accessible services";
        errors.push(FieldError::invalid(
            at.field("externalTrafficPolicy"),
            &spec["externalTrafficPolicy"],
            detail,
        ));
    }
    let ranges = &spec["loadBalancerSourceRanges"];
    if kind != "LoadBalancer" && ranges.as_array().is_some_and(|list| !list.is_empty()) {
        let detail = "may only be used when `type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden(at.field("loadBalancerSourceRanges"), detail));
    }
    for (index, range) in items(ranges) {
        cidr(range, &at.field("loadBalancerSourceRanges").index(index), errors);
    }
}

/// Addresses that were given stay until the service's type gives them up.
pub(super) fn check_update(old: &Value, new: &Value, errors: &mut Errors) {
    if text(old, "type") == "ExternalName" || text(new, "type") == "ExternalName" {
        return;
    }
    let (before, now) = (text(old, "clusterIP"), text(new, "clusterIP"));
    if !before.is_empty() && before != now {
        let shown = json!([now]);
        errors.push(FieldError::invalid("spec.clusterIPs[0]", &shown, "may not change once set"));
    }
}

/// Addresses that can only mean the node itself.
fn outside(value: &Value, at: &At, errors: &mut Errors) {
    let Some(address) = value.as_str().and_then(formats::parse_ip) else { return };
    let detail = match address {
        _ if address.is_unspecified() => "may not be unspecified (0.0.0.0 or ::)",
        _ if address.is_loopback() => "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        IpAddr::V4(v4) if v4.is_link_local() => {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)"
        }
        IpAddr::V4(v4) if v4.octets()[..3] == [224, 0, 0] => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
        }
        _ => return,
    };
    errors.push(FieldError::invalid(at, value, detail));
}

pub(super) fn endpoints(object: &Value, errors: &mut Errors) {
    for (index, subset) in items(&object["subsets"]) {
        let at = At::root().field("subsets").index(index);
        let count = |list: &str| subset[list].as_array().map_or(0, Vec::len);
        if count("addresses") + count("notReadyAddresses") == 0 {
            errors.push(FieldError::required(&at, "must specify `addresses` or `notReadyAddresses`"));
        }
        for list in ["addresses", "notReadyAddresses"] {
            for (index, address) in items(&subset[list]) {
                let at = at.field(list).index(index).field("ip");
                ip(&address["ip"], &at, errors);
                outside(&address["ip"], &at, errors);
            }
        }
        for (index, port) in items(&subset["ports"]) {
            let at = at.field("ports").index(index);
            if count("ports") > 1 && text(port, "name").is_empty() {
                errors.push(FieldError::required(at.field("name"), ""));
            }
            port_number(&port["port"], &at.field("port"), errors);
            one_of(&port["protocol"], PROTOCOLS, &at.field("protocol"), errors);
        }
    }
}

pub(super) fn endpoint_slice(object: &Value, errors: &mut Errors) {
    let kind = text(object, "addressType");
    one_of(&object["addressType"], &["FQDN", "IPv4", "IPv6"], &At::root().field("addressType"), errors);
    let count = object["endpoints"].as_array().map_or(0, Vec::len);
    if count > 1000 {
        errors.push(FieldError::too_many("endpoints", count, 1000));
    }
    for (index, endpoint) in items(&object["endpoints"]) {
        let at = At::root().field("endpoints").index(index).field("addresses");
        match endpoint["addresses"].as_array().map_or(0, Vec::len) {
            0 => errors.push(FieldError::required(&at, "must contain at least 1 address")),
            many if many > 100 => errors.push(FieldError::too_many(&at, many, 100)),
            _ => {}
        }
        for (index, address) in items(&endpoint["addresses"]) {
            slice_address(address, kind, &at.index(index), errors);
        }
    }
    slice_ports(&object["ports"], errors);
}

fn slice_address(address: &Value, kind: &str, at: &At, errors: &mut Errors) {
    let parsed = address.as_str().and_then(formats::parse_ip);
    match (kind, parsed) {
        ("IPv4", Some(IpAddr::V4(_))) | ("IPv6", Some(IpAddr::V6(_))) => outside(address, at, errors),
        ("IPv4", _) => errors.push(FieldError::invalid(at, address, "must be a valid IPv4 address")),
        ("IPv6", _) => errors.push(FieldError::invalid(at, address, "must be a valid IPv6 address")),
        ("FQDN", _) => subdomain(address.as_str().unwrap_or_default(), at, errors),
        _ => {}
    }
}

fn slice_ports(list: &Value, errors: &mut Errors) {
    let mut names = HashSet::new();
    for (index, port) in items(list) {
        let at = At::root().field("ports").index(index);
        let name = text(port, "name");
        if !name.is_empty() {
            label_1123(name, &at.field("name"), errors);
        }
        if !names.insert(name) {
            errors.push(FieldError::duplicate(at.field("name"), &name.into()));
        }
        port_number(&port["port"], &at.field("port"), errors);
        one_of(&port["protocol"], PROTOCOLS, &at.field("protocol"), errors);
    }
}
