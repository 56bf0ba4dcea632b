//! What the node's name server answers from its own knowledge (Kubernetes DNS-Based Service Discovery 1.1.0).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};
use weft_model::{Cidr, ServiceKey};

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NamePlan {
    /// Without a trailing dot: `cluster.local`.
    pub domain: String,
    /// Full names in lower case without a trailing dot. A name with empty records exists and has no data.
    pub names: BTreeMap<String, NameRecords>,
    /// `4.3.2.1.in-addr.arpa` to names.
    pub pointers: BTreeMap<String, BTreeSet<String>>,
    /// Names that do not exist at this moment although a service stands behind them.
    #[serde(default)]
    pub absent: BTreeMap<String, Absence>,
    /// The cluster's own addresses: a pointer that is missing here is missing everywhere.
    #[serde(default)]
    pub reverse: BTreeSet<Cidr>,
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
