//! Services and their endpoints with the API's defaults made explicit. Choosing a backend lives in core/decide.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Addr, Family, NodeName, PodKey, Port, Protocol, Selector, ServiceKey, Uid};

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
}

/// KEP-1672. `ready` missing in the object means ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EndpointCondition {
    Ready,
    ServingTerminating,
    NotReady,
}
