//! Checks of a service's cluster addresses and families, alone and against what the service had.
use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::list::*;
use crate::schema::{FieldError, formats};

const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
const NO_ADDRESS: &str = "None";
const FIXED: &str = "may not change once set";

pub(super) fn is_headless(spec: &Value) -> bool {
    spec["clusterIPs"].get(0).map_or(text(spec, "clusterIP"), |first| first.as_str().unwrap_or_default())
        == NO_ADDRESS
}

/// Whether addresses, families and policy fit together. Not for services of type ExternalName.
pub(super) fn check(spec: &Value, at: &At, errors: &mut Errors) {
    let kind = text(spec, "type");
    let at_addresses = at.field("clusterIPs");
    if is_headless(spec) && matches!(kind, "NodePort" | "LoadBalancer") {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid(at_addresses.index(0), &NO_ADDRESS.into(), detail));
    }
    both_forms(spec, &at_addresses, errors);
    for (index, family) in items(&spec["ipFamilies"]) {
        one_of(family, FAMILIES, &at.field("ipFamilies").index(index), errors);
    }
    duplicates(&spec["ipFamilies"], &at.field("ipFamilies"), errors);
    one_of(&spec["ipFamilyPolicy"], POLICIES, &at.field("ipFamilyPolicy"), errors);
    if addresses(&spec["clusterIPs"], &at_addresses, errors) {
        of_stated_families(spec, &at_addresses, errors);
    }
}

/// A second family may come and go; the first address and family stay, except from and to ExternalName.
pub(super) fn check_update(old: &Value, new: &Value, errors: &mut Errors) {
    if [old, new].iter().any(|spec| text(spec, "type") == "ExternalName") {
        return;
    }
    let (was_headless, headless) = (is_headless(old), is_headless(new));
    if !(was_headless && headless) {
        addresses_kept(old, new, errors);
    }
    if !was_headless && !headless {
        families_kept(old, new, errors);
    }
}

fn both_forms(spec: &Value, at: &At, errors: &mut Errors) {
    let single = text(spec, "clusterIP");
    let first = spec["clusterIPs"].get(0).map(|first| first.as_str().unwrap_or_default());
    match first {
        None if !single.is_empty() => errors.push(FieldError::required(at, "")),
        Some(_) if single.is_empty() => {
            let detail = "must be empty when `clusterIP` is not specified";
            errors.push(FieldError::invalid(at, &spec["clusterIPs"], detail));
        }
        Some(first) if first != single => {
            let detail = "first value must match `clusterIP`";
            errors.push(FieldError::invalid(at, &spec["clusterIPs"], detail));
        }
        _ => {}
    }
}

fn duplicates(list: &Value, at: &At, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (index, value) in items(list) {
        if !seen.insert(value.as_str()) {
            errors.push(FieldError::duplicate(at.index(index), value));
        }
    }
}

/// Whether the addresses are well-formed, so that more can be said about them.
fn addresses(list: &Value, at: &At, errors: &mut Errors) -> bool {
    let before = errors.len();
    let count = list.as_array().map_or(0, Vec::len);
    for (index, value) in items(list) {
        if index > 0 || *value != NO_ADDRESS {
            ip(value, &at.index(index), errors);
        } else if count > 1 {
            errors.push(FieldError::invalid(at, list, "'None' must be the first and only value"));
        }
    }
    let well_formed = errors.len() == before;
    if count > 2 {
        errors.push(FieldError::invalid(at, list, "may only hold up to 2 values"));
    }
    well_formed
}

fn of_stated_families(spec: &Value, at: &At, errors: &mut Errors) {
    let list = &spec["clusterIPs"];
    let families: Vec<&str> = items(list)
        .filter_map(|(_, address)| formats::parse_ip(address.as_str()?))
        .map(|address| if matches!(address, IpAddr::V4(_)) { "IPv4" } else { "IPv6" })
        .collect();
    if families.len() > 1 && families.iter().all(|family| *family == families[0]) {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(at, list, detail));
    }
    let stated = items(&spec["ipFamilies"]).filter_map(|(_, family)| family.as_str());
    for (index, (family, stated)) in families.iter().zip(stated).enumerate() {
        if *family != stated && FAMILIES.contains(&stated) {
            let detail = format!("expected an {stated} value as indicated by `ipFamilies[{index}]`");
            errors.push(FieldError::invalid(at.index(index), &list[index], detail));
        }
    }
}

fn list<'a>(spec: &'a Value, field: &str) -> &'a [Value] {
    spec[field].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn addresses_kept(old: &Value, new: &Value, errors: &mut Errors) {
    let (before, now) = (list(old, "clusterIPs"), list(new, "clusterIPs"));
    let at = At::root().field("spec").field("clusterIPs");
    let shown = json!(now);
    if now.is_empty() && !before.is_empty() {
        errors.push(FieldError::invalid(at.index(0), &shown, "primary clusterIP can not be unset"));
    }
    for (index, (before, now)) in before.iter().zip(now).enumerate() {
        if before != now {
            errors.push(FieldError::invalid(at.index(index), &shown, FIXED));
        }
    }
    released(old, new, "clusterIPs", "clusterIP", errors);
}

fn families_kept(old: &Value, new: &Value, errors: &mut Errors) {
    let (before, now) = (list(old, "ipFamilies"), list(new, "ipFamilies"));
    let at = At::root().field("spec").field("ipFamilies").index(0);
    if now.is_empty() && !before.is_empty() {
        errors.push(FieldError::invalid(at, &json!(now), "primary ipFamily can not be unset"));
    } else if before.iter().zip(now).any(|(before, now)| before != now) {
        errors.push(FieldError::invalid(at, &json!(now), FIXED));
    }
    released(old, new, "ipFamilies", "ipFamily", errors);
}

fn released(old: &Value, new: &Value, field: &str, what: &str, errors: &mut Errors) {
    let fewer = list(new, field).len() == 1 && list(old, field).len() == 2;
    if fewer && text(new, "ipFamilyPolicy") != "SingleStack" {
        let detail = format!("must be set to 'SingleStack' when releasing the secondary {what}");
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", &new["ipFamilyPolicy"], detail));
    }
}
