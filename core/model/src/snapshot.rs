//! Everything known about the cluster at one moment, and what was wrong with its objects. Watching lives in io/kube.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    Addr, AddressPool, Cidr, EndpointSlice, Forwarding, NameSettings, Namespace, NamespaceName, Node,
    NodeName, Pod, PodKey, Policy, PolicyKey, PoolName, Service, ServiceKey, SharedMap, Uid,
};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub settings: ClusterSettings,
    pub namespaces: SharedMap<NamespaceName, Namespace>,
    pub nodes: SharedMap<NodeName, Node>,
    pub pods: SharedMap<PodKey, Pod>,
    pub services: SharedMap<ServiceKey, Service>,
    /// Keyed by namespace and slice name.
    pub slices: SharedMap<ServiceKey, EndpointSlice>,
    pub policies: SharedMap<PolicyKey, Policy>,
    pub pools: SharedMap<PoolName, AddressPool>,
    /// Pods whose interface this node has made; known here before the API says so.
    pub local: BTreeMap<PodKey, LocalEndpoint>,
    /// Load balancer addresses that this node holds the claim to: it answers for them on its local network.
    pub announced: BTreeSet<Addr>,
}

/// A learned fact: this node gave the pod these addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalEndpoint {
    pub pod: PodKey,
    pub uid: Uid,
    pub addresses: BTreeSet<Addr>,
    /// Name of the host side of the pod's veth pair.
    pub device: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSettings {
    pub pod_cidrs: Vec<Cidr>,
    pub service_cidrs: Vec<Cidr>,
    /// Where nodes have their addresses, among other machines perhaps.
    pub node_cidrs: Vec<Cidr>,
    pub routing: Routing,
    /// The name server's service.
    pub dns_addresses: Vec<Addr>,
    /// Where every node's name server answers besides, link-local by custom.
    #[serde(default)]
    pub node_dns_addresses: Vec<Addr>,
    pub cluster_domain: String,
    pub names: NameSettings,
    /// MTU of the links between nodes; a pod's follows from it and the routing mode.
    pub mtu: u32,
    /// For services that do not say themselves.
    pub forwarding: Forwarding,
    /// Node ports answer on 127.0.0.1 too, for processes of the node.
    pub localhost_node_ports: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routing {
    Direct,
    /// RFC 7348.
    Vxlan {
        vni: u32,
        port: u16,
    },
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            pod_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            node_cidrs: Vec::new(),
            routing: Routing::Direct,
            dns_addresses: Vec::new(),
            node_dns_addresses: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            names: NameSettings::default(),
            mtu: 1500,
            forwarding: Forwarding::Snat,
            localhost_node_ports: false,
        }
    }
}

impl ClusterSettings {
    /// Every address that a node's own name server answers at.
    pub fn name_servers(&self) -> impl Iterator<Item = &Addr> {
        self.dns_addresses.iter().chain(&self.node_dns_addresses)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Legal, and probably not what was meant.
    Warning,
    /// The object, or part of it, is not in force.
    Error,
}

/// Something a user should know about an object: which one, which field, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    /// `NetworkPolicy shop/allow-web`
    pub object: String,
    /// `spec.ingress[0].from[1].podSelector`; empty for the whole object.
    pub field: String,
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: {}", self.object)?;
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}
