//! The plan of one node as a whole.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use weft_model::{Addr, Cidr, NodeName, Port, Routing, Shared, SharedMap};

use crate::{
    ClassId, EndpointPlan, Frontend, HealthCheck, NamePlan, NextHop, PolicySet, PolicySetId, RuleCause,
    RuleId, ServicePlan,
};

/// Parts are shared between a plan and the next one when nothing in them has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePlan {
    pub settings: NodeSettings,
    /// Pods on this node, by address; a dual-stack pod is there once for each address.
    pub endpoints: Shared<BTreeMap<Addr, EndpointPlan>>,
    /// Peer class of every address that policies in force distinguish: pods as host prefixes, ipBlocks as prefixes.
    /// Longest prefix wins; an address in none has class `ClassId::WORLD`.
    pub classes: Shared<BTreeMap<Cidr, ClassId>>,
    pub policy_sets: Shared<BTreeMap<PolicySetId, PolicySet>>,
    /// What each rule number in verdicts and events means.
    pub rules: Shared<BTreeMap<RuleId, RuleCause>>,
    pub services: SharedMap<Frontend, ServicePlan>,
    /// Pods and nodes elsewhere.
    pub routes: Shared<BTreeMap<Cidr, NextHop>>,
    pub names: Shared<NamePlan>,
    /// By healthCheckNodePort.
    pub health_checks: BTreeMap<Port, HealthCheck>,
    /// Answered for by ARP and NDP on the uplink.
    pub announced: BTreeSet<Addr>,
}

impl NodePlan {
    /// A node with its settings and nothing on it.
    pub fn empty(settings: NodeSettings) -> Self {
        Self {
            settings,
            endpoints: Shared::default(),
            classes: Shared::default(),
            policy_sets: Shared::default(),
            rules: Shared::default(),
            services: SharedMap::new(),
            routes: Shared::default(),
            names: Shared::default(),
            health_checks: BTreeMap::new(),
            announced: BTreeSet::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSettings {
    pub node: NodeName,
    /// Addresses that end on this node's own stack: the node's, and the name server's.
    pub host_addresses: BTreeSet<Addr>,
    /// The node's own, first of each family first; tunnels and masquerading use them.
    pub node_addresses: Vec<Addr>,
    pub pod_cidrs: BTreeSet<Cidr>,
    /// Pod prefixes of the whole cluster, this node's included.
    pub cluster_pod_cidrs: BTreeSet<Cidr>,
    pub service_cidrs: BTreeSet<Cidr>,
    /// Destinations that keep the pod's source address; all others are masqueraded.
    pub cluster_cidrs: BTreeSet<Cidr>,
    pub routing: Routing,
    /// What a pod's link gets: the nodes' link MTU less what the routing mode adds.
    pub pod_mtu: u32,
    /// Node ports answer on 127.0.0.1 too, for processes of the node.
    pub localhost_node_ports: bool,
}
