//! Address pools: which addresses load balancers may have, for whom, and who announces them. Choosing one lives in core/compile.

use serde::{Deserialize, Serialize};

use crate::{Addr, Selector};

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PoolName(pub String);

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
