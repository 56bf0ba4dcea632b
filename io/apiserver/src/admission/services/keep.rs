//! What an update keeps although it does not say so, and what goes with a type although nobody took it out.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::fields::*;

/// An update that leaves allocated values out means to keep them.
pub(super) fn allocated(old: &Value, new: &mut Value) {
    if needs_address(old) && needs_address(new) {
        if text(new, "clusterIP").is_empty() {
            copy(old, new, "clusterIP");
        }
        if strings(new, "clusterIPs").is_empty() && text(new, "clusterIP") == text(old, "clusterIP") {
            copy(old, new, "clusterIPs");
        }
    }
    if needs_node_ports(old) && needs_node_ports(new) {
        node_ports_by_name(old, new);
    }
    if needs_health_check_port(old) && needs_health_check_port(new) && number(new, "healthCheckNodePort") == 0
    {
        copy(old, new, "healthCheckNodePort");
    }
}

/// A port keeps its node port by its name, unless another port of the service has claimed that number.
fn node_ports_by_name(old: &Value, new: &mut Value) {
    let now: HashSet<u64> = node_ports(new).into_iter().collect();
    let mut used: HashSet<u64> = node_ports(old).into_iter().filter(|port| now.contains(port)).collect();
    let before: HashMap<String, u64> =
        ports(old).filter_map(|port| Some((name(port).to_owned(), node_port(port)?))).collect();
    for port in ports_mut(new).filter(|port| node_port(port).is_none()) {
        if let Some(known) = before.get(name(port))
            && used.insert(*known)
        {
            port["nodePort"] = (*known).into();
        }
    }
}

fn name(port: &Value) -> &str {
    port.get("name").and_then(Value::as_str).unwrap_or_default()
}

fn copy(old: &Value, new: &mut Value, field: &str) {
    if let Some(value) = get(old, field) {
        set(new, field, value.clone());
    }
}

/// `clusterIP` and `clusterIPs` say the same: clients that know only the first may go on doing so.
pub(super) fn one_form_of_address(old: Option<&Value>, new: &mut Value) {
    let (first, all) = (text(new, "clusterIP").to_owned(), strings(new, "clusterIPs"));
    let Some(old) = old else {
        if !first.is_empty() && all.is_empty() {
            set(new, "clusterIPs", json!([first]));
        }
        return;
    };
    if first == text(old, "clusterIP") || !same(old, new, "clusterIPs") {
        if !first.is_empty() && all.is_empty() {
            set(new, "clusterIPs", json!([first]));
        }
    } else if first.is_empty() {
        unset(new, "clusterIPs");
    } else {
        set(new, "clusterIPs", json!([first]));
    }
}

/// Fields that only the old type had go with it, if the update did not touch them. Where it did, validation speaks.
pub(super) fn drop_what_the_type_no_longer_has(old: &Value, new: &mut Value) {
    let mut drop = |had: fn(&Value) -> bool, fields: &[&str]| {
        if had(old) && !had(new) {
            for field in fields.iter().filter(|field| same(old, new, field)).copied().collect::<Vec<_>>() {
                unset(new, field);
            }
        }
    };
    drop(needs_address, &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]);
    drop(needs_health_check_port, &["healthCheckNodePort"]);
    drop(is_load_balancer, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    drop(needs_external_policy, &["externalTrafficPolicy"]);
    if needs_node_ports(old) && !needs_node_ports(new) && same_node_ports(old, new) {
        for port in ports_mut(new) {
            if let Some(fields) = port.as_object_mut() {
                fields.remove("nodePort");
            }
        }
    }
    if !is_load_balancer(new) && new.get("status").is_some_and(Value::is_object) {
        new["status"]["loadBalancer"] = json!({});
    }
}

fn same(old: &Value, new: &Value, field: &str) -> bool {
    let empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty) || *value == "" || *value == 0;
    let read = |service| get(service, field).filter(|value| !empty(value)).cloned();
    read(old) == read(new)
}

/// A port that the update brings along must have had its number before.
fn same_node_ports(old: &Value, new: &Value) -> bool {
    let before: HashSet<u64> = node_ports(old).into_iter().collect();
    node_ports(new).iter().all(|port| before.contains(port))
}
