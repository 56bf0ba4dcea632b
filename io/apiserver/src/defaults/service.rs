//! Defaults of services and their endpoints. Addresses and node ports are allocated by the server.
use serde_json::{Value, json};

use super::fields::{child, each, fill, fill_text, set, text, unset};

pub(super) fn service(object: &mut Value) {
    let spec = child(object, "spec");
    if !spec.is_object() {
        return;
    }
    fill_text(spec, "sessionAffinity", "None");
    if text(spec, "sessionAffinity") == "None" {
        unset(spec, "sessionAffinityConfig");
    } else if text(spec, "sessionAffinity") == "ClientIP" {
        let client = child(child(spec, "sessionAffinityConfig"), "clientIP");
        fill(client, "timeoutSeconds", 10_800);
    }
    fill_text(spec, "type", "ClusterIP");
    each(spec, "ports").for_each(port);
    let kind = text(spec, "type").to_owned();
    let external_addresses = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|a| !a.is_empty());
    if kind == "NodePort" || kind == "LoadBalancer" || (kind == "ClusterIP" && external_addresses) {
        fill_text(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        fill_text(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
    }
    let balancer = child(child(object, "status"), "loadBalancer");
    for ingress in each(balancer, "ingress") {
        if kind == "LoadBalancer" && !text(ingress, "ip").is_empty() {
            fill_text(ingress, "ipMode", "VIP");
        }
    }
}

fn port(port: &mut Value) {
    fill_text(port, "protocol", "TCP");
    let number = port["port"].clone();
    let unset = |target: &Value| target.is_null() || *target == 0 || *target == "";
    if number.is_number() && port.get("targetPort").is_none_or(unset) {
        set(port, "targetPort", number);
    }
}

pub(super) fn endpoints(object: &mut Value) {
    for subset in each(object, "subsets") {
        each(subset, "ports").for_each(|port| fill_text(port, "protocol", "TCP"));
    }
}

pub(super) fn endpoint_slice(object: &mut Value) {
    for port in each(object, "ports") {
        fill(port, "name", "");
        fill_text(port, "protocol", "TCP");
    }
    // A slice without endpoints is written as an empty list; clients rely on the field.
    fill(object, "endpoints", json!([]));
}
