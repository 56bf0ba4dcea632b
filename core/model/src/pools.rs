//! Address pools: which addresses load balancers may have, for whom, and who announces them. Choosing one lives in core/compile.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Addr, Cidr, Family, Labels, Selector};

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PoolName(pub String);

impl fmt::Display for PoolName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// `AddressPool` of weft.dev/v1alpha1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddressPool {
    pub name: PoolName,
    /// In the order of the object.
    pub ranges: Vec<AddressRange>,
    pub assignment: Assignment,
    /// `None`: services of every kind of label.
    pub services: Option<Selector>,
    /// `None`: of every namespace.
    pub namespaces: Option<Selector>,
    pub announcement: Announcement,
}

/// First and last are of one family, first is not after last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct AddressRange {
    pub first: Addr,
    pub last: Addr,
}

impl AddressRange {
    pub fn of(cidr: Cidr) -> Self {
        let hosts = u128::MAX.checked_shr(u32::from(cidr.bits())).unwrap_or(0);
        let last = u128::from_be_bytes(cidr.addr().octets()) | hosts;
        Self { first: cidr.addr(), last: Addr::from_octets(last.to_be_bytes()) }
    }

    pub fn family(self) -> Family {
        self.first.family()
    }

    pub fn contains(self, addr: Addr) -> bool {
        addr.family() == self.family() && self.first <= addr && addr <= self.last
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return f.pad(&self.first.to_string());
        }
        f.pad(&format!("{}-{}", self.first, self.last))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Assignment {
    Automatic,
    /// Only to services that ask for one of its addresses or name the pool.
    OnRequest,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Announcement {
    /// Somebody else leads the addresses to the nodes.
    None,
    /// By ARP and NDP, on these interfaces (empty: the uplink), from these nodes (`None`: all).
    Layer2 { interfaces: Vec<String>, nodes: Option<Selector> },
}

/// What a service of type LoadBalancer asks of the pools; of other services it is empty.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AddressRequest {
    /// Seconds since the epoch: the older is served first.
    pub created: i64,
    pub labels: Labels,
    /// Annotation `weft.dev/addresses`, else spec.loadBalancerIP.
    pub addresses: Vec<Addr>,
    /// Annotation `weft.dev/address-pool`.
    pub pool: Option<PoolName>,
    /// Annotation `weft.dev/share-address`: services with the same text may have one address together.
    pub share: Option<String>,
    pub families: FamilyPolicy,
    pub giver: AddressGiver,
}

/// spec.ipFamilyPolicy
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum FamilyPolicy {
    #[default]
    Single,
    PreferDual,
    RequireDual,
}

/// Who put the addresses into the service's status.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum AddressGiver {
    /// The condition `weft.dev/AddressAssigned` is not there.
    #[default]
    Other,
    Weft,
}
