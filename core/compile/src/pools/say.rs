//! What users are told about load balancer addresses: one sentence for each outcome, with what to do about it.

use std::collections::BTreeMap;

use weft_model::{Addr, Family, FamilyPolicy, Finding, PoolName, Service, ServiceKey};

use super::book::Book;
use super::{Capacity, families};

/// The condition `weft.dev/AddressAssigned` of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub assigned: Assigned,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Assigned {
    Yes,
    /// Nothing, or not what was asked for.
    No,
}

/// The condition `Ready` of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolOutcome {
    pub ready: bool,
    pub reason: &'static str,
    pub message: String,
}

/// Why a family gets no address, or not the one asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    OtherFamily(Addr),
    InNoPool(Addr),
    Reserved(Addr, String),
    NotForService(Addr, PoolName),
    Taken(Addr, ServiceKey),
    NoSuchPool(PoolName),
    NoPools,
    NoPoolFor(Family),
    Exhausted(Family, Vec<PoolName>),
}

impl Refusal {
    fn reason(&self) -> &'static str {
        match self {
            Self::OtherFamily(_) | Self::InNoPool(_) | Self::Reserved(..) => "AddressNotAvailable",
            Self::NotForService(..) => "PoolNotAllowed",
            Self::Taken(..) => "AddressInUse",
            Self::NoSuchPool(_) => "PoolNotFound",
            Self::NoPools | Self::NoPoolFor(_) => "NoPool",
            Self::Exhausted(..) => "PoolExhausted",
        }
    }

    fn message(&self) -> String {
        match self {
            Self::OtherFamily(addr) => {
                format!("{addr} was asked for, and the service is not of its family; see spec.ipFamilies")
            }
            Self::InNoPool(addr) => {
                format!("{addr} was asked for, and no AddressPool has it; add it to one or ask for another")
            }
            Self::Reserved(addr, by) => {
                format!("{addr} was asked for, and {by} has it; ask for another")
            }
            Self::NotForService(addr, pool) => format!(
                "{addr} was asked for, and AddressPool {pool} is not for this service; see the pool's selectors and the annotation weft.dev/address-pool"
            ),
            Self::Taken(addr, holder) => format!(
                "{addr} was asked for, and service {holder} has it; ask for another, or let both share it with the annotation weft.dev/share-address and ports that do not clash"
            ),
            Self::NoSuchPool(pool) => {
                format!("there is no AddressPool {pool}; create it or change the annotation weft.dev/address-pool")
            }
            Self::NoPools => "there is no AddressPool; create one, or set spec.loadBalancerClass to let another implementation serve it".to_owned(),
            Self::NoPoolFor(family) => format!(
                "no AddressPool gives {} addresses to this service; see the pools' addresses, selectors and autoAssign",
                name(*family)
            ),
            Self::Exhausted(family, pools) => {
                let names: Vec<&str> = pools.iter().map(|pool| pool.0.as_str()).collect();
                format!(
                    "AddressPool {} has no free {} address; add addresses or delete services",
                    names.join(", "),
                    name(*family)
                )
            }
        }
    }

    /// That a preferred second family is not to be had is no failure.
    fn is_about_supply(&self) -> bool {
        matches!(self, Self::NoPools | Self::NoPoolFor(_) | Self::Exhausted(..))
    }
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

pub(super) fn outcome(
    service: &Service,
    book: &Book<'_>,
    addresses: &[Addr],
    refusals: &BTreeMap<Family, Refusal>,
) -> Outcome {
    let mut parts: Vec<String> = addresses
        .iter()
        .map(|addr| match book.pool_of(*addr) {
            Some(pool) => format!("{addr} of AddressPool {}", pool.name),
            None => addr.to_string(),
        })
        .collect();
    parts.extend(refusals.values().map(Refusal::message));
    if service.request.families == FamilyPolicy::RequireDual && addresses.len() < families(service).len() {
        parts.push("spec.ipFamilyPolicy RequireDualStack wants both families or none".to_owned());
    }
    let optional = |refusal: &&Refusal| {
        let preferred = service.request.families == FamilyPolicy::PreferDual && !addresses.is_empty();
        !(preferred && refusal.is_about_supply())
    };
    let message = parts.join("; ");
    match refusals.values().find(optional) {
        Some(refusal) => Outcome { assigned: Assigned::No, reason: refusal.reason(), message },
        None => Outcome { assigned: Assigned::Yes, reason: "AddressAssigned", message },
    }
}

pub(super) fn pool_outcome(pool: &PoolName, v4: Capacity, v6: Capacity, findings: &[Finding]) -> PoolOutcome {
    let object = format!("AddressPool {pool}");
    let found: Vec<String> = findings
        .iter()
        .filter(|finding| finding.object == object)
        .map(|finding| format!("{}: {}", finding.field, finding.message))
        .collect();
    let full: Vec<&str> = [(Family::V4, v4), (Family::V6, v6)]
        .into_iter()
        .filter(|(_, capacity)| capacity.total > 0 && capacity.used >= capacity.total)
        .map(|(family, _)| name(family))
        .collect();
    if v4.total == 0 && v6.total == 0 {
        let mut message = "the pool has no address to give".to_owned();
        if !found.is_empty() {
            message = format!("{message}: {}", found.join("; "));
        }
        return PoolOutcome { ready: false, reason: "NoAddresses", message };
    }
    if !full.is_empty() {
        let message = format!("every {} address is in use; add some", full.join(" and every "));
        return PoolOutcome { ready: false, reason: "Exhausted", message };
    }
    if !found.is_empty() {
        return PoolOutcome { ready: true, reason: "PartlyUsable", message: found.join("; ") };
    }
    PoolOutcome { ready: true, reason: "AddressesFree", message: "addresses are free".to_owned() }
}
