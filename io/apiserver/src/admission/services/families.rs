//! Which address families a service has, from what the client asked, what the service had and what the cluster has.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::fields::*;
use super::{Errors, ServiceRanges};
use crate::defaults;
use crate::schema::FieldError;

const SINGLE: &str = "SingleStack";
const PREFER_DUAL: &str = "PreferDualStack";
const REQUIRE_DUAL: &str = "RequireDualStack";
const POLICY: &str = "spec.ipFamilyPolicy";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn of_text(address: &str) -> Option<Self> {
        address.parse().ok().map(Self::of)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// The families of a service that was settled or validated.
pub(super) fn of_service(service: &Value) -> Vec<Family> {
    let names = strings(service, "ipFamilies");
    names
        .iter()
        .filter_map(|name| [Family::V4, Family::V6].into_iter().find(|family| family.as_str() == name))
        .collect()
}

/// Settles ipFamilyPolicy and ipFamilies. A service that prefers two families keeps what it has until its owner says
/// otherwise, whatever became of the cluster.
pub(super) fn settle(ranges: &ServiceRanges, old: Option<&Value>, new: &mut Value) -> Result<(), Errors> {
    if old.is_some_and(|old| keeps_preference(old, new)) {
        return Ok(());
    }
    let policy = policy(old, new);
    set(new, "ipFamilyPolicy", policy.clone());
    let errors = defaults::validate_cluster_ips(new);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut errors = Errors::new();
    if let Some(old) = old {
        shrink(old, new, &policy, &mut errors);
    }
    if policy == SINGLE {
        refuse_two(new, &policy, &mut errors);
    }
    let mut families = of_service(new);
    infer_from_addresses(ranges, new, &mut families, &mut errors);
    none(errors)?;
    if is_headless(new) && !has_selector(new) {
        // Whoever writes the endpoints by hand may use families that the cluster's own pods lack.
        let first = families.first().copied().or(ranges.families().first().copied());
        families = with_other(first, families, policy != SINGLE);
    } else {
        none(not_in_cluster(ranges, &families, &policy))?;
        let first = families.first().copied().or(ranges.families().first().copied());
        families = with_other(first, families, policy != SINGLE && ranges.families().len() == 2);
    }
    set(new, "ipFamilies", families.iter().map(|family| family.as_str()).collect::<Value>());
    Ok(())
}

fn none(errors: Errors) -> Result<(), Errors> {
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn with_other(first: Option<Family>, mut families: Vec<Family>, both: bool) -> Vec<Family> {
    if families.is_empty() {
        families.extend(first);
    }
    if both && families.len() == 1 {
        families.push(families[0].other());
    }
    families
}

fn keeps_preference(old: &Value, new: &Value) -> bool {
    let unchanged = |field| strings(old, field) == strings(new, field);
    text(old, "type") == text(new, "type")
        && [old, new].iter().all(|service| text(service, "ipFamilyPolicy") == PREFER_DUAL)
        && unchanged("clusterIPs")
        && unchanged("ipFamilies")
}

/// What is left open is as it was; a new service has one family, unless its owner says what is behind it.
fn policy(old: Option<&Value>, new: &Value) -> String {
    let stated = [Some(new), old].into_iter().flatten().map(|service| text(service, "ipFamilyPolicy"));
    let default = if is_headless(new) && !has_selector(new) { REQUIRE_DUAL } else { SINGLE };
    stated.chain([default]).find(|policy| !policy.is_empty()).unwrap_or(SINGLE).to_owned()
}

fn has_selector(service: &Value) -> bool {
    get(service, "selector").and_then(Value::as_object).is_some_and(|selector| !selector.is_empty())
}

/// Going back to one family: asking for it is enough, leaving the second one out is not.
fn shrink(old: &Value, new: &mut Value, policy: &str, errors: &mut Errors) {
    for (field, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (before, mut now) = (strings(old, field), strings(new, field));
        if policy == SINGLE {
            if before == now && now.len() > 1 {
                now.truncate(1);
                set(new, field, json!(now));
            }
        } else if !now.is_empty() && now.len() < before.len() {
            let detail = format!("must be 'SingleStack' to release the secondary {what}");
            errors.push(FieldError::invalid(POLICY, &policy.into(), detail));
        }
    }
}

fn refuse_two(new: &Value, policy: &str, errors: &mut Errors) {
    for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if strings(new, field).len() == 2 {
            let detail =
                format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
            errors.push(FieldError::invalid(POLICY, &policy.into(), detail));
        }
    }
}

/// An address that was asked for says its family where that was left out.
fn infer_from_addresses(
    ranges: &ServiceRanges,
    new: &Value,
    families: &mut Vec<Family>,
    errors: &mut Errors,
) {
    let addresses = strings(new, "clusterIPs");
    for (index, family) in addresses.iter().map_while(|address| Family::of_text(address)).enumerate() {
        if index < families.len() {
            continue;
        }
        if ranges.family(family).is_some() {
            families.push(family);
        } else {
            let detail = format!("{} is not configured on this cluster", family.as_str());
            errors.push(FieldError::invalid(format!("spec.clusterIPs[{index}]"), &json!(addresses), detail));
        }
    }
}

fn not_in_cluster(ranges: &ServiceRanges, families: &[Family], policy: &str) -> Errors {
    let mut errors = Errors::new();
    if policy == REQUIRE_DUAL && ranges.addresses.len() < 2 {
        let detail = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid(POLICY, &policy.into(), detail));
    }
    for (index, family) in families.iter().enumerate().filter(|(_, family)| ranges.family(**family).is_none())
    {
        let at = format!("spec.ipFamilies[{index}]");
        errors.push(FieldError::invalid(at, &family.as_str().into(), "not configured on this cluster"));
    }
    errors
}
