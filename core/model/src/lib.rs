//! Nouns of the network as valid-only types. Parsing from Kubernetes objects lives in `parse`; no decision lives here.

mod addresses;
mod labels;
mod names;
mod nodes;
mod pods;
mod policies;
mod pools;
mod reasons;
mod resolving;
mod services;
mod shared;
mod shared_map;
mod snapshot;

pub mod parse;
#[cfg(feature = "testing")]
pub mod testing;

pub use addresses::{Addr, AddrError, Cidr, Family, Port, Protocol};
pub use labels::{Labels, Operator, Requirement, Selector};
pub use names::{NamespaceName, NodeName, ObjectKey, PodKey, PolicyKey, PolicyKind, ServiceKey, Uid};
pub use nodes::{Node, Sctp};
pub use pods::{NamedPort, Namespace, Pod, PodPhase};
pub use policies::{Block, NamespaceMatch, Peer, Policy, PortMatch, Rule, RuleSet, Subject};
pub use pools::{
    AddressGiver, AddressPool, AddressRange, AddressRequest, Announcement, Assignment, FamilyPolicy, PoolName,
};
pub use reasons::{Direction, Reason, Verdict};
pub use resolving::{
    ClusterDns, Collapse, DnsPolicy, NameSettings, PodDns, PodNetwork, ResolvConf, Searching,
};
pub use services::{
    Affinity, Balancing, Endpoint, EndpointCondition, EndpointSlice, Forwarding, Hints, IpMode,
    LoadBalancerIp, Service, ServiceKind, ServicePort, TargetPort, TrafficPolicy, Weight,
};
pub use shared::Shared;
pub use shared_map::{Change, SharedMap};
pub use snapshot::{ClusterSettings, Finding, LocalEndpoint, Routing, Severity, Snapshot};
