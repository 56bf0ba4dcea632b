//! Services on their way in: address families, cluster addresses, node ports.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::addresses::{Addresses, Claims, Reservation};
use crate::api::meta;
use crate::http::request::Target;
use crate::schema::FieldError;
use crate::status::{ApiError, Result};

const FIRST_NODE_PORT: u16 = 30000;
const LAST_NODE_PORT: u16 = 32767;
const NONE: &str = "None";

/// The address ranges of services, one per family, the primary first.
#[derive(Clone, Debug)]
pub struct ServiceRanges(pub Vec<IpNet>);

impl ServiceRanges {
    fn family(&self, family: Family) -> Option<&IpNet> {
        self.0.iter().find(|range| Family::of(range.addr()) == family)
    }

    fn families(&self) -> Vec<Family> {
        self.0.iter().map(|range| Family::of(range.addr())).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }
}

/// Completes a service's addresses and ports, and reserves them.
pub(super) fn admit(
    addresses: &Addresses,
    ranges: &ServiceRanges,
    target: &Target,
    old: Option<&Value>,
    new: &mut Value,
) -> Result<Reservation> {
    if !new.get("spec").is_some_and(Value::is_object) {
        new["spec"] = json!({});
    }
    let name = meta::text(new, "name").to_owned();
    let refuse = |errors: &[FieldError]| ApiError::invalid(&target.kind, &name, errors);
    if let Some(old) = old {
        inherit(old, new);
    } else {
        new["status"] = json!({"loadBalancer": {}});
    }
    let mut claims = addresses.claim();
    if text(new, "type") == "ExternalName" {
        release_cluster_fields(new);
    } else {
        complete_addresses(&mut claims, ranges, old, new).map_err(|error| refuse(&[error]))?;
    }
    complete_ports(&mut claims, old, new).map_err(|error| refuse(&[error]))?;
    Ok(claims.reserve())
}

fn text<'a>(service: &'a Value, field: &str) -> &'a str {
    service.pointer("/spec").and_then(|spec| spec.get(field)).and_then(Value::as_str).unwrap_or_default()
}

fn strings(service: &Value, field: &str) -> Vec<String> {
    let list = service.pointer("/spec").and_then(|spec| spec.get(field)).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// An update that leaves allocated values out means to keep them.
fn inherit(old: &Value, new: &mut Value) {
    let both_have_addresses = text(old, "type") != "ExternalName" && text(new, "type") != "ExternalName";
    if both_have_addresses {
        let left_out = text(new, "clusterIP").is_empty() && strings(new, "clusterIPs").is_empty();
        if left_out {
            copy(old, new, "clusterIP");
            copy(old, new, "clusterIPs");
        } else if strings(new, "clusterIPs").is_empty() && text(new, "clusterIP") == text(old, "clusterIP") {
            copy(old, new, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if new["spec"].get(field).is_none_or(Value::is_null) {
                copy(old, new, field);
            }
        }
    }
    if wants_node_ports(new) {
        let known = old.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
        for port in ports_mut(new) {
            let same =
                |other: &&Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
            if let (None, Some(before)) = (node_port(port), known.iter().find(same).and_then(node_port)) {
                port["nodePort"] = before.into();
            }
        }
        copy_if_absent(old, new, "healthCheckNodePort");
    }
}

fn copy(old: &Value, new: &mut Value, field: &str) {
    if let Some(value) = old.pointer("/spec").and_then(|spec| spec.get(field)) {
        new["spec"][field] = value.clone();
    }
}

fn copy_if_absent(old: &Value, new: &mut Value, field: &str) {
    if new["spec"].get(field).is_none() {
        copy(old, new, field);
    }
}

fn release_cluster_fields(service: &mut Value) {
    if let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    }
}

fn complete_addresses(
    claims: &mut Claims<'_>,
    ranges: &ServiceRanges,
    old: Option<&Value>,
    service: &mut Value,
) -> std::result::Result<(), FieldError> {
    let mut requested = strings(service, "clusterIPs");
    let first = text(service, "clusterIP").to_owned();
    match requested.first() {
        None if !first.is_empty() => requested.push(first),
        Some(listed) if !first.is_empty() && *listed != first => {
            let error = "first value must match `clusterIP`";
            return Err(FieldError::invalid("spec.clusterIPs", &json!(requested), error));
        }
        _ => {}
    }
    check_primary_kept(old, &requested)?;
    let families = families(ranges, service, &requested)?;
    requested.truncate(families.len().max(1));
    let addresses = if requested.first().map(String::as_str) == Some(NONE) {
        vec![NONE.to_owned()]
    } else {
        let held = old.map(|old| strings(old, "clusterIPs")).unwrap_or_default();
        allocate_addresses(claims, ranges, &families, &requested, &held)?
    };
    let spec = &mut service["spec"];
    spec["clusterIP"] = addresses[0].clone().into();
    spec["clusterIPs"] = json!(addresses);
    spec["ipFamilies"] = families.iter().map(|family| family.as_str()).collect();
    Ok(())
}

fn check_primary_kept(old: Option<&Value>, requested: &[String]) -> std::result::Result<(), FieldError> {
    let Some(old) = old.filter(|old| text(old, "type") != "ExternalName") else { return Ok(()) };
    let before = text(old, "clusterIP");
    match requested.first() {
        Some(now) if !before.is_empty() && now != before => {
            Err(FieldError::invalid("spec.clusterIPs[0]", &json!(requested), "may not change once set"))
        }
        _ => Ok(()),
    }
}

/// Settles ipFamilyPolicy and the families, from what the client asked and what the cluster has.
fn families(
    ranges: &ServiceRanges,
    service: &mut Value,
    requested: &[String],
) -> std::result::Result<Vec<Family>, FieldError> {
    let named = strings(service, "ipFamilies");
    let mut families: Vec<Family> = named.iter().filter_map(|name| Family::parse(name)).collect();
    let of_addresses: Vec<Family> =
        requested.iter().filter_map(|ip| Some(Family::of(ip.parse().ok()?))).collect();
    for (at, family) in of_addresses.iter().enumerate() {
        match families.get(at) {
            None => families.push(*family),
            Some(stated) if stated != family => {
                let error =
                    format!("expected an {} value as indicated by `ipFamilies[{at}]`", stated.as_str());
                return Err(FieldError::invalid(
                    format!("spec.clusterIPs[{at}]"),
                    &json!(requested[at]),
                    error,
                ));
            }
            Some(_) => {}
        }
    }
    if families.len() == 2 && families[0] == families[1] {
        return Err(FieldError::duplicate("spec.ipFamilies[1]", &json!(families[1].as_str())));
    }
    let available = ranges.families();
    for (at, family) in families.iter().enumerate() {
        if !available.contains(family) {
            let error = "not configured on this cluster";
            return Err(FieldError::invalid(
                format!("spec.ipFamilies[{at}]"),
                &json!(family.as_str()),
                error,
            ));
        }
    }
    let policy = policy(service, requested, families.len());
    let wanted = match (policy.as_str(), available.len()) {
        ("RequireDualStack", 1) => {
            let error = "this cluster is not configured for dual-stack services";
            return Err(FieldError::invalid("spec.ipFamilyPolicy", &json!(policy), error));
        }
        ("RequireDualStack" | "PreferDualStack", count) => count.min(2),
        _ if families.len() > 1 || requested.len() > 1 => {
            let error = "may only hold up to 1 value when `ipFamilyPolicy` is SingleStack";
            let given: Vec<&str> = families.iter().map(|family| family.as_str()).collect();
            // Going back to one family drops the second.
            if !service_shrinks(service) {
                return Err(FieldError::invalid("spec.ipFamilies", &json!(given), error));
            }
            1
        }
        _ => 1,
    };
    for family in available {
        if families.len() < wanted && !families.contains(&family) {
            families.push(family);
        }
    }
    families.truncate(wanted);
    service["spec"]["ipFamilyPolicy"] = policy.into();
    Ok(families)
}

/// Whether this is an existing service, whose second family may be given up.
fn service_shrinks(service: &Value) -> bool {
    !meta::text(service, "resourceVersion").is_empty() || !meta::text(service, "uid").is_empty()
}

fn policy(service: &Value, requested: &[String], families: usize) -> String {
    let stated = text(service, "ipFamilyPolicy");
    if !stated.is_empty() {
        return stated.to_owned();
    }
    let selects = service.pointer("/spec/selector").and_then(Value::as_object).is_some_and(|s| !s.is_empty());
    let headless = requested.first().map(String::as_str) == Some(NONE);
    let dual = requested.len() == 2 || families == 2;
    if dual {
        "RequireDualStack".into()
    } else if headless && !selects && families == 0 {
        "PreferDualStack".into()
    } else {
        "SingleStack".into()
    }
}

fn allocate_addresses(
    claims: &mut Claims<'_>,
    ranges: &ServiceRanges,
    families: &[Family],
    requested: &[String],
    held: &[String],
) -> std::result::Result<Vec<String>, FieldError> {
    let mut addresses = Vec::new();
    for (at, family) in families.iter().enumerate() {
        let Some(range) = ranges.family(*family) else { continue };
        match requested.get(at) {
            Some(own) if held.contains(own) => addresses.push(own.clone()),
            Some(wanted) => addresses.push(claim_address(claims, range, wanted)?.to_string()),
            None => {
                let free = pick_address(claims, range).ok_or_else(|| {
                    let error = format!("failed to allocate a serviceIP: range {range} is full");
                    FieldError::invalid("spec.clusterIPs", &json!(requested), error)
                })?;
                claims.take_address(free);
                addresses.push(free.to_string());
            }
        }
    }
    Ok(addresses)
}

fn claim_address(
    claims: &mut Claims<'_>,
    range: &IpNet,
    wanted: &str,
) -> std::result::Result<IpAddr, FieldError> {
    let refuse = |why: String| {
        let error = format!("failed to allocate IP {wanted}: {why}");
        FieldError::invalid("spec.clusterIPs", &json!([wanted]), error)
    };
    let address: IpAddr = wanted.parse().map_err(|_| {
        FieldError::invalid(
            "spec.clusterIPs[0]",
            &json!(wanted),
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        )
    })?;
    if !range.contains(&address) || address == range.network() || is_broadcast(range, address) {
        return Err(refuse(format!(
            "the provided IP ({wanted}) is not in the valid range. The range of valid IPs is {range}"
        )));
    }
    if !claims.is_address_free(address) {
        return Err(refuse("provided IP is already allocated".into()));
    }
    claims.take_address(address);
    Ok(address)
}

fn is_broadcast(range: &IpNet, address: IpAddr) -> bool {
    address.is_ipv4() && range.broadcast() == address
}

/// A free address above the band that is left to those who ask for one by number.
fn pick_address(claims: &Claims<'_>, range: &IpNet) -> Option<IpAddr> {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len()).min(20);
    let last = (1u64 << bits) - if matches!(range, IpNet::V4(_)) { 2 } else { 1 };
    let band = (last / 16).clamp(16.min(last / 2), 256);
    let candidate = |offset: u64| match range {
        IpNet::V4(net) => {
            u32::try_from(offset).ok().map(|n| IpAddr::from((u32::from(net.network()) + n).to_be_bytes()))
        }
        IpNet::V6(net) => Some(IpAddr::from((u128::from(net.network()) + u128::from(offset)).to_be_bytes())),
    };
    let free = |offset: &u64| candidate(*offset).is_some_and(|address| claims.is_address_free(address));
    let start = band + 1 + u64::from(u32::from_le_bytes(meta::random_bytes())) % (last - band).max(1);
    let found =
        (start..=last).find(free).or_else(|| (band + 1..start).find(free)).or_else(|| (1..=band).find(free));
    found.and_then(candidate)
}

fn wants_node_ports(service: &Value) -> bool {
    match text(service, "type") {
        "NodePort" => true,
        "LoadBalancer" => {
            service.pointer("/spec/allocateLoadBalancerNodePorts").and_then(Value::as_bool) != Some(false)
        }
        _ => false,
    }
}

fn ports_mut(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    service.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten()
}

fn node_port(port: &Value) -> Option<u64> {
    port.get("nodePort").and_then(Value::as_u64).filter(|port| *port != 0)
}

fn complete_ports(
    claims: &mut Claims<'_>,
    old: Option<&Value>,
    service: &mut Value,
) -> std::result::Result<(), FieldError> {
    let held: Vec<u64> = old
        .and_then(|old| old.pointer("/spec/ports")?.as_array().cloned())
        .unwrap_or_default()
        .iter()
        .filter_map(node_port)
        .collect();
    let wanted = wants_node_ports(service);
    let keeps_requested = text(service, "type") == "LoadBalancer";
    let mut taken: Vec<(u64, Value, Value)> = Vec::new();
    for (at, port) in ports_mut(service).enumerate() {
        let has_port = wanted || (keeps_requested && node_port(port).is_some());
        if !has_port {
            if let Some(fields) = port.as_object_mut() {
                fields.remove("nodePort");
            }
            continue;
        }
        let number = match node_port(port) {
            Some(number) => {
                let shared = taken
                    .iter()
                    .any(|(other, _, protocol)| *other == number && *protocol != port["protocol"]);
                if !held.contains(&number) && !shared {
                    claim_port(claims, number, at)?;
                }
                number
            }
            // The same port for another protocol gets the same node port.
            None => match taken.iter().find(|(_, same, _)| *same == port["port"]) {
                Some((number, _, _)) => *number,
                None => u64::from(pick_port(claims).ok_or_else(|| {
                    FieldError::invalid(
                        format!("spec.ports[{at}].nodePort"),
                        &json!(0),
                        "failed to allocate a nodePort: range is full",
                    )
                })?),
            },
        };
        port["nodePort"] = number.into();
        taken.push((number, port["port"].clone(), port["protocol"].clone()));
    }
    complete_health_check_port(claims, service)
}

fn complete_health_check_port(
    claims: &mut Claims<'_>,
    service: &mut Value,
) -> std::result::Result<(), FieldError> {
    let needed = text(service, "type") == "LoadBalancer" && text(service, "externalTrafficPolicy") == "Local";
    let Some(spec) = service.get_mut("spec").and_then(Value::as_object_mut) else { return Ok(()) };
    if !needed {
        spec.remove("healthCheckNodePort");
    } else if spec.get("healthCheckNodePort").and_then(Value::as_u64).unwrap_or_default() == 0 {
        let port = pick_port(claims).ok_or_else(|| {
            FieldError::invalid("spec.healthCheckNodePort", &json!(0), "failed to allocate: range is full")
        })?;
        spec.insert("healthCheckNodePort".into(), port.into());
    }
    Ok(())
}

fn claim_port(claims: &mut Claims<'_>, number: u64, at: usize) -> std::result::Result<(), FieldError> {
    let refuse = |why: String| FieldError::invalid(format!("spec.ports[{at}].nodePort"), &json!(number), why);
    let port = u16::try_from(number).ok().filter(|port| (FIRST_NODE_PORT..=LAST_NODE_PORT).contains(port));
    let port = port.ok_or_else(|| {
        refuse(format!(
            "provided port is not in the valid range. The range of valid ports is {FIRST_NODE_PORT}-{LAST_NODE_PORT}"
        ))
    })?;
    if !claims.is_port_free(port) {
        return Err(refuse("provided port is already allocated".into()));
    }
    claims.take_port(port);
    Ok(())
}

fn pick_port(claims: &mut Claims<'_>) -> Option<u16> {
    let span = LAST_NODE_PORT - FIRST_NODE_PORT + 1;
    let start = u16::from_le_bytes(meta::random_bytes()) % span;
    let candidates = (0..span).map(|step| FIRST_NODE_PORT + (start + step) % span);
    let port = candidates.into_iter().find(|port| claims.is_port_free(*port))?;
    claims.take_port(port);
    Some(port)
}
