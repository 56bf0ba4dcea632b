//! A node as the network sees it. Its kernel state lives in io/datapath.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Addr, Cidr, Labels, NodeName};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    pub name: NodeName,
    pub labels: Labels,
    /// InternalIP addresses, first of each family first.
    pub addresses: Vec<Addr>,
    pub pod_cidrs: BTreeSet<Cidr>,
    /// Condition `Ready` is true.
    pub ready: bool,
    #[serde(default)]
    pub sctp: Sctp,
}

/// Whether a node's kernel has SCTP, as its agent says by a condition.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Sctp {
    #[default]
    Unknown,
    Available,
    Missing,
}

impl Sctp {
    pub const CONDITION: &str = "weft.dev/Sctp";
}

impl Node {
    /// Label `topology.kubernetes.io/zone`.
    pub fn zone(&self) -> Option<&str> {
        self.labels.get("topology.kubernetes.io/zone").map(String::as_str)
    }
}
