//! Pods and namespaces as the network sees them. How a pod gets its address lives in io/cni.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Addr, Labels, NamespaceName, NodeName, PodDns, PodKey, Port, Protocol, Uid, Weight};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Namespace {
    pub name: NamespaceName,
    pub labels: Labels,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PodPhase {
    Pending,
    Running,
    /// Succeeded or Failed: its address may already belong to another pod.
    Finished,
}

/// A container port that has a name; a policy or service may refer to it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct NamedPort {
    pub protocol: Protocol,
    pub name: String,
    pub port: Port,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pod {
    pub key: PodKey,
    pub uid: Uid,
    /// Seconds since 1970, 0 if not said: of two pods that claim one address the newer has it.
    pub created: i64,
    pub labels: Labels,
    pub node: Option<NodeName>,
    pub phase: PodPhase,
    pub host_network: bool,
    /// status.podIPs, or what this node's own address management gave it, which is known earlier.
    pub addresses: BTreeSet<Addr>,
    pub named_ports: BTreeSet<NamedPort>,
    /// Every declared container port: what `weft policy matrix` asks about.
    pub declared_ports: BTreeSet<(Protocol, Port)>,
    pub hostname: Option<String>,
    pub subdomain: Option<String>,
    pub dns: PodDns,
    /// Annotation `weft.dev/weight`: the pod's share in each service it is an endpoint of.
    pub weight: Option<Weight>,
}
