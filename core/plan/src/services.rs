//! Service addresses and the backends behind them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weft_model::{
    Addr, Affinity, Balancing, Cidr, Forwarding, NodeName, PodKey, Port, Protocol, ServiceKey, TrafficPolicy,
    Weight,
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Frontend {
    pub addr: Addr,
    pub protocol: Protocol,
    pub port: Port,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addr = match self.addr.family() {
            weft_model::Family::V4 => self.addr.to_string(),
            weft_model::Family::V6 => format!("[{}]", self.addr),
        };
        f.pad(&format!("{addr}:{}/{}", self.port, self.protocol))
    }
}

/// First and last port of connections that are forwarded or masqueraded from the node's own address: those that are nobody's
/// (RFC 6335, 6), which the kernel is told not to give to the node's own sockets.
pub const FORWARDING_PORTS: [u16; 2] = [49_152, 65_535];

/// Derived from the frontend, so it never depends on history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ServiceId(pub u32);

/// Derived from service, port, family and scope, so it stays the same while the backends change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ListId(pub u32);

/// What one frontend does. A node port's frontend has its family's unspecified address: it stands for every address of
/// every node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    pub id: ServiceId,
    pub service: ServiceKey,
    pub port_name: String,
    pub exposure: Exposure,
    /// For clients in the cluster; empty means connections are refused at once.
    pub list: Arc<BackendList>,
    pub balancing: Balancing,
    pub affinity: Affinity,
    /// Which clients may come; empty: all. Asked at the edge, and of pods.
    pub source_ranges: BTreeSet<Cidr>,
    /// `None`: nobody comes in from outside.
    pub edge: Option<EdgePlan>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exposure {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

/// What a connection from outside gets. The backend is always chosen by Maglev.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgePlan {
    pub list: Arc<BackendList>,
    pub policy: TrafficPolicy,
    pub forwarding: Forwarding,
}

/// Backends that frontends share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendList {
    pub id: ListId,
    /// Sorted by address and port.
    pub backends: Vec<Backend>,
    /// Nothing is left because the policy is Local; other nodes have endpoints.
    pub elsewhere: bool,
}

impl ServicePlan {
    /// A cluster IP with the API's defaults, and a list of its own.
    pub fn cluster_ip(id: ServiceId, service: ServiceKey, backends: Vec<Backend>) -> Self {
        Self {
            id,
            service,
            port_name: String::new(),
            exposure: Exposure::ClusterIp,
            list: Arc::new(BackendList { id: ListId(id.0), backends, elsewhere: false }),
            balancing: Balancing::Random,
            affinity: Affinity::None,
            source_ranges: BTreeSet::new(),
            edge: None,
        }
    }

    /// For clients in the cluster.
    pub fn backends(&self) -> &[Backend] {
        &self.list.backends
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Backend {
    pub addr: Addr,
    pub port: Port,
    pub weight: Weight,
    pub pod: Option<PodKey>,
    pub node: Option<NodeName>,
}

impl EdgePlan {
    /// In a row that shows the list of clients in the cluster already.
    pub(crate) fn beside(&self, list: &BackendList) -> String {
        let forwarding = match self.forwarding {
            Forwarding::Snat => "snat",
            Forwarding::Dsr => "dsr",
        };
        match self.policy {
            TrafficPolicy::Local => format!("local: {}", self.list),
            TrafficPolicy::Cluster if self.list.id == list.id => forwarding.to_owned(),
            TrafficPolicy::Cluster => format!("{forwarding}: {}", self.list),
        }
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ClusterIp => "cluster-ip",
            Self::ExternalIp => "external-ip",
            Self::LoadBalancer => "load-balancer",
            Self::NodePort => "node-port",
        })
    }
}

impl fmt::Display for BackendList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let backends: Vec<String> = self.backends.iter().map(ToString::to_string).collect();
        f.pad(match (&backends[..], self.elsewhere) {
            ([], false) => "none",
            ([], true) => "none here",
            _ => return f.pad(&backends.join(",")),
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr.family() {
            weft_model::Family::V4 => write!(f, "{}:{}", self.addr, self.port)?,
            weft_model::Family::V6 => write!(f, "[{}]:{}", self.addr, self.port)?,
        }
        match self.weight {
            Weight(1) => Ok(()),
            Weight(weight) => write!(f, "*{weight}"),
        }
    }
}

impl Backend {
    /// One that is no pod.
    pub fn at(addr: Addr, port: Port) -> Self {
        Self { addr, port, weight: Weight::default(), pod: None, node: None }
    }
}

/// What the port of a service's healthCheckNodePort says to balancers outside: 200 while the node has ready endpoints, else 503.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HealthCheck {
    pub service: ServiceKey,
    pub local_endpoints: usize,
}
