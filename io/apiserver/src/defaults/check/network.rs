//! Checks of network policies, ingresses and service address ranges.
use std::net::IpAddr;

use serde_json::{Value, json};

use super::list::*;
use super::metadata::is_wildcard_host;
use crate::schema::{FieldError, formats};

pub(super) fn policy(spec: &Value, at: &At, errors: &mut Errors) {
    label_selector(&spec["podSelector"], &at.field("podSelector"), errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in items(&spec[direction]) {
            let at = at.field(direction).index(index);
            for (index, port) in items(&rule["ports"]) {
                policy_port(port, &at.field("ports").index(index), errors);
            }
            for (index, peer) in items(&rule[peers]) {
                policy_peer(peer, &at.field(peers).index(index), errors);
            }
        }
    }
    let types = &spec["policyTypes"];
    if types.as_array().is_some_and(|list| list.len() > 2) {
        let detail = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid(at.field("policyTypes"), types, detail));
        return;
    }
    for (index, kind) in items(types) {
        one_of(kind, &["Egress", "Ingress"], &at.field("policyTypes").index(index), errors);
    }
}

fn policy_port(port: &Value, at: &At, errors: &mut Errors) {
    one_of(&port["protocol"], PROTOCOLS, &at.field("protocol"), errors);
    port_or_name(&port["port"], &at.field("port"), errors);
    let Some(end) = port["endPort"].as_i64() else { return };
    let at = at.field("endPort");
    match &port["port"] {
        Value::Null => {
            errors.push(FieldError::required(at, "may not be specified when `port` is not specified"))
        }
        Value::String(_) => {
            let detail = "may not be specified when `port` is non-numeric";
            errors.push(FieldError::invalid(at, &port["endPort"], detail));
        }
        number if number.as_i64().is_some_and(|start| end < start) => {
            let detail = "must be greater than or equal to `port`";
            errors.push(FieldError::invalid(at, &port["endPort"], detail));
        }
        _ => port_number(&port["endPort"], &at, errors),
    }
}

fn policy_peer(peer: &Value, at: &At, errors: &mut Errors) {
    let selects = is_set(peer, "podSelector") || is_set(peer, "namespaceSelector");
    let block = is_set(peer, "ipBlock");
    if !selects && !block {
        errors.push(FieldError::required(at, "must specify a peer"));
    }
    if selects && block {
        errors.push(FieldError::forbidden(at, "may not specify both ipBlock and another peer"));
    }
    for name in ["podSelector", "namespaceSelector"] {
        label_selector(&peer[name], &at.field(name), errors);
    }
    if block {
        ip_block(&peer["ipBlock"], &at.field("ipBlock"), errors);
    }
}

fn ip_block(block: &Value, at: &At, errors: &mut Errors) {
    if text(block, "cidr").is_empty() {
        return errors.push(FieldError::required(at.field("cidr"), ""));
    }
    if !cidr(&block["cidr"], &at.field("cidr"), errors) {
        return;
    }
    let Some(outer) = formats::parse_cidr(text(block, "cidr")) else { return };
    for (index, except) in items(&block["except"]) {
        let at = at.field("except").index(index);
        if !cidr(except, &at, errors) {
            continue;
        }
        let inner = except.as_str().and_then(formats::parse_cidr);
        if inner.is_some_and(|inner| !strictly_within(inner, outer)) {
            errors.push(FieldError::invalid(at, except, "must be a strict subset of `cidr`"));
        }
    }
}

fn strictly_within(inner: (IpAddr, u8), outer: (IpAddr, u8)) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((inner_bits, inner_family), (outer_bits, outer_family)) = (bits(inner.0), bits(outer.0));
    let mask = u128::MAX.checked_shl(128 - u32::from(outer.1)).unwrap_or(0);
    inner_family == outer_family && inner.1 > outer.1 && inner_bits & mask == outer_bits & mask
}

pub(super) fn service_cidr(spec: &Value, at: &At, errors: &mut Errors) {
    for (index, range) in items(&spec["cidrs"]) {
        cidr(range, &at.field("cidrs").index(index), errors);
    }
}

pub(super) fn ingress(spec: &Value, at: &At, errors: &mut Errors) {
    let rules = spec["rules"].as_array().map_or(0, Vec::len);
    if rules == 0 && !is_set(spec, "defaultBackend") {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(at, &json!("object"), detail));
    }
    if is_set(spec, "defaultBackend") {
        backend(&spec["defaultBackend"], &at.field("defaultBackend"), errors);
    }
    for (index, rule) in items(&spec["rules"]) {
        let at = at.field("rules").index(index);
        host(text(rule, "host"), &at.field("host"), errors);
        for (index, path) in items(&rule["http"]["paths"]) {
            http_path(path, &at.field("http").field("paths").index(index), errors);
        }
    }
    for (index, tls) in items(&spec["tls"]) {
        for (host_index, name) in items(&tls["hosts"]) {
            let at = at.field("tls").index(index).field("hosts").index(host_index);
            host(name.as_str().unwrap_or_default(), &at, errors);
        }
    }
}

fn host(host: &str, at: &At, errors: &mut Errors) {
    if host.is_empty() {
        return;
    }
    if formats::parse_ip(host).is_some() {
        errors.push(FieldError::invalid(at, &host.into(), "must be a DNS name, not an IP address"));
    } else if !is_wildcard_host(host) {
        errors.push(FieldError::invalid(at, &host.into(), DNS1123_SUBDOMAIN));
    }
}

fn http_path(path: &Value, at: &At, errors: &mut Errors) {
    let kinds = ["Exact", "ImplementationSpecific", "Prefix"];
    match text(path, "pathType") {
        "" => errors.push(FieldError::required(at.field("pathType"), "pathType must be specified")),
        _ => one_of(&path["pathType"], &kinds, &at.field("pathType"), errors),
    }
    let value = text(path, "path");
    let free = text(path, "pathType") == "ImplementationSpecific" && value.is_empty();
    if !value.starts_with('/') && !free {
        errors.push(FieldError::invalid(at.field("path"), &value.into(), "must be an absolute path"));
    }
    backend(&path["backend"], &at.field("backend"), errors);
}

fn backend(backend: &Value, at: &At, errors: &mut Errors) {
    let service = &backend["service"];
    match (is_set(backend, "service"), is_set(backend, "resource")) {
        (true, true) => {
            errors.push(FieldError::invalid(at, &json!(""), "cannot set both resource and service backends"));
        }
        (false, false) => {
            errors.push(FieldError::required(
                at.field("service"),
                "either `service` or `resource` is required",
            ));
        }
        (true, false) => {
            let at = at.field("service");
            label_1035(text(service, "name"), &at.field("name"), errors);
            let (name, number) = (text(&service["port"], "name"), service["port"]["number"].as_i64());
            let at = at.field("port");
            match (name.is_empty(), number.unwrap_or(0)) {
                (true, 0) => errors.push(FieldError::required(at, "port name or number is required")),
                (false, 0) => port_name(name, &at.field("name"), errors),
                (true, _) => port_number(&service["port"]["number"], &at.field("number"), errors),
                (false, _) => {
                    errors.push(FieldError::invalid(
                        at,
                        &json!(""),
                        "cannot set both port name & port number",
                    ));
                }
            }
        }
        (false, true) => {}
    }
}
