//! Policies with every default of the API made explicit. What they do to a packet lives in core/compile and core/decide.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Cidr, NamespaceName, PolicyKey, Port, Protocol, Selector, Uid};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Policy {
    pub key: PolicyKey,
    pub uid: Uid,
    pub subject: Subject,
    pub ingress: RuleSet,
    pub egress: RuleSet,
}

/// The pods a policy selects.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Subject {
    pub namespace: NamespaceName,
    pub pods: Selector,
}

/// One direction of a policy. `Absent` does not isolate; `Isolates` with no rules denies everything.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RuleSet {
    Absent,
    Isolates(Vec<Rule>),
}

/// One allow rule, at its place in the object (`spec.ingress[2]`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Rule {
    /// `None`: every peer, also outside the cluster.
    pub peers: Option<Vec<Peer>>,
    /// `None`: every port of every protocol.
    pub ports: Option<Vec<PortMatch>>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Peer {
    Pods { namespaces: NamespaceMatch, pods: Selector },
    Block(Block),
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum NamespaceMatch {
    /// The policy's own namespace (no namespaceSelector given).
    Name(NamespaceName),
    Labels(Selector),
}

/// Addresses inside `cidr` and outside every prefix of `except`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Block {
    pub cidr: Cidr,
    pub except: BTreeSet<Cidr>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum PortMatch {
    /// Every port of one protocol.
    All(Protocol),
    /// `first..=last`.
    Range { protocol: Protocol, first: Port, last: Port },
    /// Resolved on the destination pod's container ports.
    Named { protocol: Protocol, name: String },
}
