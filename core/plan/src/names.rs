//! What the node's name server answers from its own knowledge (Kubernetes DNS-Based Service Discovery 1.1.0).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NamePlan {
    /// Without a trailing dot: `cluster.local`.
    pub domain: String,
    /// Full names in lower case without a trailing dot. A name with empty records exists and has no data.
    pub names: BTreeMap<String, NameRecords>,
    /// `4.3.2.1.in-addr.arpa` to names.
    pub pointers: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NameRecords {
    pub a: BTreeSet<Ipv4Addr>,
    pub aaaa: BTreeSet<Ipv6Addr>,
    pub srv: BTreeSet<SrvRecord>,
    pub cname: Option<String>,
    pub txt: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SrvRecord {
    pub priority: u16,
    pub weight: u16,
    pub port: u16,
    pub target: String,
}
