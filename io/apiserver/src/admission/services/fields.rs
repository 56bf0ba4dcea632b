//! Reading and writing the parts of a service's spec that allocation is about.

use serde_json::Value;

pub(super) const NO_ADDRESS: &str = "None";

pub(super) fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    get(service, field).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn strings(service: &Value, field: &str) -> Vec<String> {
    let list = get(service, field).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

pub(super) fn number(service: &Value, field: &str) -> u64 {
    get(service, field).and_then(Value::as_u64).unwrap_or_default()
}

/// A field of the spec, unless it is missing or null.
pub(super) fn get<'a>(service: &'a Value, field: &str) -> Option<&'a Value> {
    service.get("spec")?.get(field).filter(|value| !value.is_null())
}

pub(super) fn set(service: &mut Value, field: &str, value: impl Into<Value>) {
    service["spec"][field] = value.into();
}

pub(super) fn unset(service: &mut Value, field: &str) {
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove(field);
    }
}

pub(super) fn ports(service: &Value) -> impl Iterator<Item = &Value> {
    get(service, "ports").and_then(Value::as_array).into_iter().flatten()
}

pub(super) fn ports_mut(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    service.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten()
}

pub(super) fn node_port(port: &Value) -> Option<u64> {
    port.get("nodePort").and_then(Value::as_u64).filter(|port| *port != 0)
}

pub(super) fn node_ports(service: &Value) -> Vec<u64> {
    ports(service).filter_map(node_port).collect()
}

pub(super) fn is_headless(service: &Value) -> bool {
    text(service, "clusterIP") == NO_ADDRESS
}

pub(super) fn is_load_balancer(service: &Value) -> bool {
    text(service, "type") == "LoadBalancer"
}

pub(super) fn needs_address(service: &Value) -> bool {
    text(service, "type") != "ExternalName"
}

pub(super) fn needs_node_ports(service: &Value) -> bool {
    let wanted = || get(service, "allocateLoadBalancerNodePorts").and_then(Value::as_bool) != Some(false);
    text(service, "type") == "NodePort" || (is_load_balancer(service) && wanted())
}

pub(super) fn needs_health_check_port(service: &Value) -> bool {
    is_load_balancer(service) && text(service, "externalTrafficPolicy") == "Local"
}

pub(super) fn needs_external_policy(service: &Value) -> bool {
    match text(service, "type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !strings(service, "externalIPs").is_empty(),
        _ => false,
    }
}
