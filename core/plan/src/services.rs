//! Service addresses and the backends behind them.

use std::fmt;

use serde::{Deserialize, Serialize};
use weft_model::{Addr, NodeName, PodKey, Port, Protocol, ServiceKey};

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

/// Derived from the frontend, so it never depends on history.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ServiceId(pub u32);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    pub id: ServiceId,
    pub service: ServiceKey,
    pub port_name: String,
    /// Sorted by address and port; empty means connections are refused at once.
    pub backends: Vec<Backend>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Backend {
    pub addr: Addr,
    pub port: Port,
    pub pod: Option<PodKey>,
    pub node: Option<NodeName>,
}
