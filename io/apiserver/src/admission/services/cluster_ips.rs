//! Cluster addresses: those asked for, those held already, and free ones for the rest.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::fields::*;
use super::{Admission, families};
use crate::api::meta;
use crate::schema::FieldError;

/// Gives a service one address per family.
pub(super) fn allocate(admission: &mut Admission<'_, '_>, service: &mut Value) -> Result<(), FieldError> {
    if is_headless(service) {
        return Ok(());
    }
    let families = families::of_service(service);
    let mut addresses = strings(service, "clusterIPs");
    let asked = addresses.clone();
    let held = admission.old.filter(|old| needs_address(old));
    let held = held.map(|old| strings(old, "clusterIPs")).unwrap_or_default();
    for (index, family) in families.into_iter().enumerate() {
        let Some(range) = admission.ranges.family(family).copied() else { continue };
        match asked.get(index) {
            // What the service holds at this place stays, or the change is refused later on.
            Some(_) if held.get(index).is_some() => {}
            Some(wanted) => claim(admission, &range, wanted, &asked)?,
            None => addresses.push(pick(admission, &range, &asked)?.to_string()),
        }
    }
    if let Some(first) = addresses.first() {
        set(service, "clusterIP", first.clone());
    }
    set(service, "clusterIPs", json!(addresses));
    Ok(())
}

fn claim(
    admission: &mut Admission<'_, '_>,
    range: &IpNet,
    wanted: &str,
    asked: &[String],
) -> Result<(), FieldError> {
    let refuse = |why: String| {
        let detail = format!("failed to allocate IP {wanted}: {why}");
        FieldError::invalid("spec.clusterIPs", &json!(asked), detail)
    };
    let address: IpAddr = wanted.parse().map_err(|_| refuse("it is not an address".to_owned()))?;
    if !range.contains(&address) || address == range.network() || is_broadcast(range, address) {
        return Err(refuse(format!(
            "the provided IP ({wanted}) is not in the valid range. The range of valid IPs is {range}"
        )));
    }
    if !admission.claims.is_address_free(address) {
        return Err(refuse("provided IP is already allocated".to_owned()));
    }
    admission.claims.take_address(address);
    Ok(())
}

fn is_broadcast(range: &IpNet, address: IpAddr) -> bool {
    address.is_ipv4() && range.broadcast() == address
}

/// A free address, at first above the band that is left to those who ask for one by number.
fn pick(admission: &mut Admission<'_, '_>, range: &IpNet, asked: &[String]) -> Result<IpAddr, FieldError> {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len()).min(20);
    let last = (1u64 << bits) - if matches!(range, IpNet::V4(_)) { 2 } else { 1 };
    let band = (last / 16).clamp(16.min(last / 2), 256);
    let free = |offset: &u64| admission.claims.is_address_free(nth(range, *offset));
    let start = band + 1 + u64::from(u32::from_le_bytes(meta::random_bytes())) % (last - band).max(1);
    let offset =
        (start..=last).find(free).or_else(|| (band + 1..start).find(free)).or_else(|| (1..=band).find(free));
    let Some(offset) = offset else {
        let detail = format!("failed to allocate a serviceIP: range {range} is full");
        return Err(FieldError::invalid("spec.clusterIPs", &json!(asked), detail));
    };
    let address = nth(range, offset);
    admission.claims.take_address(address);
    Ok(address)
}

/// The address this far into a range; offsets have at most 20 bits.
fn nth(range: &IpNet, offset: u64) -> IpAddr {
    match range {
        IpNet::V4(net) => {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            IpAddr::from(u32::from(net.network()).saturating_add(offset).to_be_bytes())
        }
        IpNet::V6(net) => IpAddr::from((u128::from(net.network()) + u128::from(offset)).to_be_bytes()),
    }
}
