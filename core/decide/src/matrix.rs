//! Who reaches whom: every pod against every declared port and every service port. One question's story lives in `explain`.

use std::fmt;

use serde::Serialize;
use weft_model::{Addr, Pod, PodKey, PodPhase, Port, Protocol, ServiceKey, Snapshot};

use crate::reach::{Cluster, Reach};

/// One pod, one address and port, and what an application sees.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Cell {
    pub from: PodKey,
    pub to: Target,
    pub address: Addr,
    pub protocol: Protocol,
    pub port: Port,
    pub reach: Reach,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    Pod(PodKey),
    Service(ServiceKey),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => f.pad(&format!("pod/{key}")),
            Self::Service(key) => f.pad(&format!("service/{key}")),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, address, protocol, port, reach } = self;
        write!(f, "{from} -> {to} {address} {port}/{protocol}: {reach}")
    }
}

/// A cell for each running pod with an own address, and each address and port of the same family that a running
/// pod declares or a service with an address of its own offers. Sorted.
pub fn matrix(snapshot: &Snapshot) -> Vec<Cell> {
    let cluster = Cluster::new(snapshot);
    let targets: Vec<_> = pod_targets(snapshot).chain(service_targets(snapshot)).collect();
    let mut cells = Vec::new();
    for pod in cluster.senders() {
        for (to, address, protocol, port) in &targets {
            if !has_family(pod, *address) {
                continue;
            }
            let Some(reach) = cluster.reach(pod, *address, *protocol, *port) else { continue };
            let (from, to) = (pod.key.clone(), to.clone());
            cells.push(Cell { from, to, address: *address, protocol: *protocol, port: *port, reach });
        }
    }
    cells.sort();
    cells
}

type TargetPort = (Target, Addr, Protocol, Port);

fn pod_targets(snapshot: &Snapshot) -> impl Iterator<Item = TargetPort> {
    let running = snapshot.pods.values().filter(|pod| pod.phase == PodPhase::Running);
    running.flat_map(|pod| {
        pod.addresses.iter().flat_map(move |addr| {
            let ports = pod.declared_ports.iter();
            ports.map(move |(protocol, port)| (Target::Pod(pod.key.clone()), *addr, *protocol, *port))
        })
    })
}

/// The name server's addresses are the node's affair.
fn service_targets(snapshot: &Snapshot) -> impl Iterator<Item = TargetPort> {
    snapshot.services.values().flat_map(|service| {
        let own = service.cluster_ips.iter().filter(|addr| !snapshot.settings.dns_addresses.contains(addr));
        own.flat_map(move |addr| {
            let target = move |port: &weft_model::ServicePort| {
                (Target::Service(service.key.clone()), *addr, port.protocol, port.port)
            };
            service.ports.iter().map(target)
        })
    })
}

fn has_family(pod: &Pod, addr: Addr) -> bool {
    pod.addresses.iter().any(|own| own.family() == addr.family())
}
