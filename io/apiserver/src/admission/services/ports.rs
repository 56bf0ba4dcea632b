//! Node ports of services, and the one where a load balancer asks for a node's health.

use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::Admission;
use super::fields::*;
use crate::api::meta;
use crate::schema::FieldError;

/// Completes a service's node ports and health check port. Requested ones are kept where nobody else has them.
pub(super) fn allocate(admission: &mut Admission<'_, '_>, service: &mut Value) -> Result<(), FieldError> {
    if matches!(text(service, "type"), "NodePort" | "LoadBalancer") {
        let held = admission.old.map(node_ports).unwrap_or_default();
        allocate_node_ports(admission, service, held)?;
    }
    allocate_health_check_port(admission, service)
}

fn allocate_node_ports(
    admission: &mut Admission<'_, '_>,
    service: &mut Value,
    mut own: Vec<u64>,
) -> Result<(), FieldError> {
    let all = needs_node_ports(service);
    let is_new = admission.old.is_none();
    let asked: Vec<(Value, u64)> =
        ports(service).filter_map(|port| Some((port["port"].clone(), node_port(port)?))).collect();
    let mut given: Vec<(Value, u64)> = Vec::new();
    for (index, port) in ports_mut(service).enumerate() {
        let number = match node_port(port) {
            Some(number) => number,
            None if !all => continue,
            None => {
                // A port that is served over several protocols gets one number for all of them.
                let same = |(of, _): &&(Value, u64)| is_new && *of == port["port"];
                match given.iter().chain(&asked).find(same) {
                    Some((_, number)) => *number,
                    None => {
                        let number = u64::from(pick(admission, &format!("spec.ports[{index}].nodePort"))?);
                        own.push(number);
                        number
                    }
                }
            }
        };
        if !own.contains(&number) {
            claim(admission, number, &format!("spec.ports[{index}].nodePort"), "")?;
            own.push(number);
        }
        given.push((port["port"].clone(), number));
        port["nodePort"] = number.into();
    }
    Ok(())
}

fn allocate_health_check_port(
    admission: &mut Admission<'_, '_>,
    service: &mut Value,
) -> Result<(), FieldError> {
    const FIELD: &str = "spec.healthCheckNodePort";
    if !needs_health_check_port(service) {
        return Ok(());
    }
    let wanted = number(service, "healthCheckNodePort");
    let held = admission.old.filter(|old| needs_health_check_port(old));
    let held = held.map_or(0, |old| number(old, "healthCheckNodePort"));
    if held != 0 && wanted != held {
        return Err(FieldError::invalid(FIELD, &wanted.into(), "field is immutable"));
    }
    if held != 0 {
        return Ok(());
    }
    if wanted != 0 {
        let why = format!("failed to allocate requested HealthCheck NodePort {wanted}: ");
        return claim(admission, wanted, FIELD, &why);
    }
    let port = pick(admission, FIELD)?;
    set(service, "healthCheckNodePort", port);
    Ok(())
}

fn claim(admission: &mut Admission<'_, '_>, number: u64, at: &str, context: &str) -> Result<(), FieldError> {
    let refuse = |why: &str| FieldError::invalid(at, &json!(number), format!("{context}{why}"));
    let range = &admission.ranges.node_ports;
    let Some(port) = u16::try_from(number).ok().filter(|port| range.contains(port)) else {
        let (first, last) = (range.start(), range.end());
        return Err(refuse(&format!(
            "provided port is not in the valid range. The range of valid ports is {first}-{last}"
        )));
    };
    if !admission.claims.is_port_free(port) {
        return Err(refuse("provided port is already allocated"));
    }
    admission.claims.take_port(port);
    Ok(())
}

/// A free port, at first above the band that is left to those who ask for one by number.
fn pick(admission: &mut Admission<'_, '_>, at: &str) -> Result<u16, FieldError> {
    let range = admission.ranges.node_ports.clone();
    let (band, open) = bands(&range);
    let count = u32::from(*open.end()) + 1 - u32::from(*open.start());
    let start = u16::from_le_bytes(meta::random_bytes());
    let start = *open.start() + u16::try_from(u32::from(start) % count).unwrap_or_default();
    let candidates = (start..=*open.end()).chain(*open.start()..start).chain(band.into_iter().flatten());
    let Some(port) = candidates.into_iter().find(|port| admission.claims.is_port_free(*port)) else {
        let detail = "failed to allocate a nodePort: range is full";
        return Err(FieldError::invalid(at, &json!(0), detail));
    };
    admission.claims.take_port(port);
    Ok(port)
}

/// The band for requests by number, between 16 and 128 ports, and the rest. A range too small has no band.
fn bands(range: &RangeInclusive<u16>) -> (Option<RangeInclusive<u16>>, RangeInclusive<u16>) {
    let (first, last) = (*range.start(), *range.end());
    let size = u32::from(last.saturating_sub(first)) + 1;
    if size <= 16 {
        return (None, range.clone());
    }
    let band = u16::try_from((size / 32).clamp(16, 128)).unwrap_or(16);
    (Some(first..=first + band - 1), first + band..=last)
}
