//! Services on their way in: what an update keeps, address families, cluster addresses, node ports.
//! Whether the result is valid is `defaults::check`'s part.

mod cluster_ips;
mod families;
mod fields;
mod keep;
mod ports;

use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::addresses::{Addresses, Claims, Reservation};
use crate::api::meta;
use crate::http::request::Target;
use crate::schema::FieldError;
use crate::status::{ApiError, Result};
use families::Family;
use fields::text;

/// What services are given from: address ranges, one per family with the primary first, and node ports.
#[derive(Clone, Debug)]
pub struct ServiceRanges {
    pub addresses: Vec<IpNet>,
    pub node_ports: RangeInclusive<u16>,
}

impl ServiceRanges {
    fn family(&self, family: Family) -> Option<&IpNet> {
        self.addresses.iter().find(|range| Family::of(range.addr()) == family)
    }

    fn families(&self) -> Vec<Family> {
        self.addresses.iter().map(|range| Family::of(range.addr())).collect()
    }
}

type Errors = Vec<FieldError>;

/// One service on its way in, and what is known where it goes.
struct Admission<'a, 'claims> {
    ranges: &'a ServiceRanges,
    claims: &'a mut Claims<'claims>,
    old: Option<&'a Value>,
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
    match old {
        None => new["status"] = json!({"loadBalancer": {}}),
        Some(old) => keep::allocated(old, new),
    }
    keep::one_form_of_address(old, new);
    let mut claims = addresses.claim();
    let mut admission = Admission { ranges, claims: &mut claims, old };
    complete(&mut admission, new).map_err(|errors| ApiError::invalid(&target.kind, &name, &errors))?;
    if let Some(old) = old {
        keep::drop_what_the_type_no_longer_has(old, new);
    }
    Ok(claims.reserve())
}

fn complete(admission: &mut Admission<'_, '_>, new: &mut Value) -> std::result::Result<(), Errors> {
    if text(new, "type") != "ExternalName" {
        families::settle(admission.ranges, admission.old, new)?;
        cluster_ips::allocate(admission, new).map_err(|error| vec![error])?;
    }
    ports::allocate(admission, new).map_err(|error| vec![error])
}
