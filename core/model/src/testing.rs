//! Clusters and packets for tests: as Kubernetes objects and as bytes, made by hand or drawn at random. Nothing in production uses it.

pub mod frames;
pub mod objects;
mod random;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;

pub use random::{clusters, frames_for, probes};

use crate::parse::{self, Parsed};
use crate::{
    Addr, ClusterSettings, Finding, LocalEndpoint, NodeName, ObjectKey, PodPhase, Port, Protocol, Snapshot,
};

/// A cluster as its API server would show it.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    pub settings: ClusterSettings,
    pub namespaces: Vec<core::Namespace>,
    pub nodes: Vec<core::Node>,
    pub pods: Vec<core::Pod>,
    pub services: Vec<core::Service>,
    pub slices: Vec<discovery::EndpointSlice>,
    pub policies: Vec<networking::NetworkPolicy>,
}

/// The first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub source: Addr,
    pub destination: Addr,
    pub protocol: Protocol,
    pub port: Port,
}

impl Cluster {
    /// What the API alone tells.
    pub fn snapshot(&self) -> Snapshot {
        self.parse().0
    }

    pub fn parse(&self) -> (Snapshot, Vec<Finding>) {
        let mut found = Vec::new();
        let mut snapshot = Snapshot { settings: self.settings.clone(), ..Snapshot::default() };
        for value in self.namespaces.iter().filter_map(|object| keep(&mut found, parse::namespace(object))) {
            snapshot.namespaces.insert(value.name.clone(), value);
        }
        for value in self.nodes.iter().filter_map(|object| keep(&mut found, parse::node(object))) {
            snapshot.nodes.insert(value.name.clone(), value);
        }
        for value in self.pods.iter().filter_map(|object| keep(&mut found, parse::pod(object))) {
            snapshot.pods.insert(value.key.clone(), value);
        }
        for value in self.services.iter().filter_map(|object| keep(&mut found, parse::service(object))) {
            snapshot.services.insert(value.key.clone(), value);
        }
        for value in self.slices.iter().filter_map(|object| keep(&mut found, parse::endpoint_slice(object))) {
            snapshot.slices.insert(ObjectKey::new(value.service.namespace.as_str(), &value.name), value);
        }
        for value in self.policies.iter().filter_map(|object| keep(&mut found, parse::network_policy(object)))
        {
            snapshot.policies.insert(value.key.clone(), value);
        }
        (snapshot, found)
    }

    /// What the agent of `node` knows: the API, and the interfaces it made.
    pub fn snapshot_on(&self, node: &NodeName) -> Snapshot {
        let mut snapshot = self.snapshot();
        let here = snapshot.pods.values().filter(|pod| {
            pod.node.as_ref() == Some(node) && !pod.host_network && pod.phase != PodPhase::Finished
        });
        let local = here.filter(|pod| !pod.addresses.is_empty()).map(|pod| {
            let endpoint = LocalEndpoint {
                pod: pod.key.clone(),
                uid: pod.uid.clone(),
                addresses: pod.addresses.clone(),
                device: format!("wf-{}", pod.key.name),
            };
            (pod.key.clone(), endpoint)
        });
        snapshot.local = local.collect();
        snapshot
    }

    pub fn node_names(&self) -> Vec<NodeName> {
        self.nodes.iter().filter_map(|node| node.metadata.name.as_deref()).map(NodeName::new).collect()
    }
}

fn keep<T>(found: &mut Vec<Finding>, parsed: Parsed<T>) -> Option<T> {
    found.extend(parsed.findings);
    parsed.value
}
