//! Services and their endpoints with the API's defaults made explicit. Choosing a backend lives in core/decide.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    Addr, AddressRequest, Cidr, Family, NodeName, PodKey, Port, Protocol, Selector, ServiceKey, Uid,
};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ServiceKind {
    ClusterIp,
    Headless,
    NodePort,
    LoadBalancer,
    ExternalName(String),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Service {
    pub key: ServiceKey,
    pub uid: Uid,
    pub kind: ServiceKind,
    pub cluster_ips: Vec<Addr>,
    pub ports: Vec<ServicePort>,
    /// `None`: no spec.selector, so endpoints are written by hand.
    pub selector: Option<Selector>,
    pub publish_not_ready: bool,
    pub external_ips: Vec<Addr>,
    /// status.loadBalancer.ingress: what somebody assigned, this program's controller or another's.
    pub load_balancer_ips: Vec<LoadBalancerIp>,
    /// Which clients may use the load balancer's addresses; empty: all.
    pub source_ranges: BTreeSet<Cidr>,
    pub affinity: Affinity,
    /// For clients that use a cluster IP.
    pub internal_policy: TrafficPolicy,
    /// For clients from outside: node ports, external and load balancer addresses.
    pub external_policy: TrafficPolicy,
    pub health_check_node_port: Option<Port>,
    /// spec.loadBalancerClass
    pub load_balancer_class: Option<String>,
    pub request: AddressRequest,
    /// Annotation `weft.dev/balancing`, for clients in the cluster; the edge always hashes.
    pub balancing: Balancing,
    /// Annotation `weft.dev/forwarding`; `None`: the cluster's setting.
    pub forwarding: Option<Forwarding>,
    pub ip_families: Vec<Family>,
}

impl Service {
    /// A service without ports, with the API's defaults.
    pub fn new(key: ServiceKey, kind: ServiceKind) -> Self {
        Self {
            key,
            uid: Uid::new(""),
            kind,
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            selector: None,
            publish_not_ready: false,
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: BTreeSet::new(),
            affinity: Affinity::None,
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            health_check_node_port: None,
            load_balancer_class: None,
            request: AddressRequest::default(),
            balancing: Balancing::Random,
            forwarding: None,
            ip_families: Vec::new(),
        }
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct LoadBalancerIp {
    pub addr: Addr,
    pub mode: IpMode,
}

/// KEP-1860.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum IpMode {
    /// Served by the nodes, for clients in the cluster too.
    Vip,
    /// Clients in the cluster go through the machine that owns the address.
    Proxy,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Affinity {
    None,
    ClientIp { seconds: u32 },
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum TrafficPolicy {
    Cluster,
    /// Only backends of the node that handles the connection.
    Local,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Balancing {
    #[default]
    Random,
    /// By a hash of the connection: every node picks the same backend (Eisenbud et al., NSDI 2016).
    Maglev,
}

/// How a connection from outside gets to a backend of another node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forwarding {
    /// From an address of the node it entered at; replies come back through it.
    #[default]
    Snat,
    /// Unchanged, so the backend sees the client; its node replies to the client directly.
    Dsr,
}

/// A backend's share beside its siblings'.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Weight(pub u8);

impl Default for Weight {
    fn default() -> Self {
        Self(1)
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum TargetPort {
    Number(Port),
    Name(String),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServicePort {
    /// Empty when the service's only port has no name.
    pub name: String,
    pub protocol: Protocol,
    pub port: Port,
    pub target: TargetPort,
    pub node_port: Option<Port>,
    pub app_protocol: Option<String>,
}

/// One EndpointSlice, one port set for all its endpoints (discovery.k8s.io/v1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndpointSlice {
    pub service: ServiceKey,
    /// The slice's own name: several slices belong to one service.
    pub name: String,
    pub family: Family,
    /// (name, protocol, port); the name joins it to the service's port.
    pub ports: Vec<(String, Protocol, Port)>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    pub addresses: BTreeSet<Addr>,
    pub condition: EndpointCondition,
    pub hostname: Option<String>,
    pub node: Option<NodeName>,
    pub zone: Option<String>,
    pub target: Option<PodKey>,
    pub hints: Hints,
    /// Annotation `weft.dev/weight` of the slice; that of the target pod comes first.
    pub weight: Weight,
}

/// For whom the endpoint is meant, as its slice's controller reckons; empty: for everybody.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Hints {
    pub zones: BTreeSet<String>,
    pub nodes: BTreeSet<NodeName>,
}

/// KEP-1672. `ready` missing in the object means ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EndpointCondition {
    Ready,
    ServingTerminating,
    NotReady,
}
