//! Local pods, peer classes and the way to pods elsewhere.

use std::fmt;

use serde::{Deserialize, Serialize};
use weft_model::{Addr, NodeName, PodKey, Uid};

use crate::PolicySetId;

/// A set of peers that everything in force treats alike. The number is derived from what the class matches,
/// so it is the same whatever the order of events, and an old and a new plan can share the kernel for a moment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ClassId(pub u32);

impl ClassId {
    /// In a policy key: any class.
    pub const ANY: Self = Self(0);
    /// Matched by nothing in force.
    pub const WORLD: Self = Self(1);
    /// Set on classes of cluster addresses whose pod is not known yet.
    pub const UNKNOWN_BIT: u32 = 1 << 31;

    pub fn is_unknown_pod(self) -> bool {
        self.0 & Self::UNKNOWN_BIT != 0
    }
}

impl fmt::Display for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ANY => f.pad("any"),
            Self::WORLD => f.pad("world"),
            Self(number) => f.pad(&format!("{number:08x}")),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPlan {
    pub pod: PodKey,
    pub uid: Uid,
    /// Host side of the veth pair; its index and MACs are the kernel's to tell.
    pub device: String,
    /// `None`: not isolated in that direction.
    pub ingress: Option<PolicySetId>,
    pub egress: Option<PolicySetId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    pub node: NodeName,
    /// The node's address: the neighbour to send to, or the tunnel's far end.
    pub via: Addr,
}
