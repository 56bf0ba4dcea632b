//! What the node's name server answers from its own knowledge (Kubernetes DNS-Based Service Discovery 1.1.0).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use weft_model::{Addr, Cidr, PodKey, Searching, ServiceKey, SharedMap};

/// Two plans know cheaply where they differ: see `SharedMap::changes`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NamePlan {
    /// Without a trailing dot: `cluster.local`.
    pub domain: String,
    /// The zone of services that clusters share, beside `domain`: `clusterset.local`. Empty: there is none.
    #[serde(default)]
    pub set_domain: String,
    /// Full names in lower case without a trailing dot. A name with empty records exists and has no data.
    pub names: SharedMap<String, NameRecords>,
    /// Full names by the address that stands for them.
    pub pointers: SharedMap<Addr, BTreeSet<String>>,
    /// Names that do not exist at this moment although a service stands behind them.
    #[serde(default)]
    pub absent: SharedMap<String, Absence>,
    /// The cluster's own addresses: a pointer that is missing here is missing everywhere.
    #[serde(default)]
    pub reverse: BTreeSet<Cidr>,
    /// Pods of this node, by the address they ask from.
    #[serde(default)]
    pub clients: SharedMap<Addr, NameClient>,
}

/// A pod that asks questions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameClient {
    pub pod: PodKey,
    /// How its resolver walks a search list, where questions may be answered with the end of that walk.
    pub searching: Option<Searching>,
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

/// Why a name is withheld.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Absence {
    /// A headless service whose endpoints are all not ready, or that has none: NXDOMAIN (2.4.1).
    NoReadyEndpoints { service: ServiceKey, not_ready: usize },
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoReadyEndpoints { service, not_ready: 0 } => {
                write!(f, "headless service {service} has no endpoints")
            }
            Self::NoReadyEndpoints { service, not_ready } => {
                write!(f, "headless service {service} has no ready endpoints ({not_ready} not ready)")
            }
        }
    }
}
