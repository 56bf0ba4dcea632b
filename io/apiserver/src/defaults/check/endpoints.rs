//! Checks of endpoints and endpoint slices, and of addresses that clients may be sent to.
use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::Value;

use super::list::*;
use crate::schema::{FieldError, formats};

/// Addresses that can only mean the node itself.
pub(super) fn outside(value: &Value, at: &At, errors: &mut Errors) {
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
