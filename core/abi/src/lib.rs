//! Keys, values and events shared with the BPF programs: the twin of bpf/abi, and what they mean as model nouns.
//! Reading and writing maps lives in io/datapath.

mod config;
mod endpoints;
mod events;
mod flows;
mod layout;
mod policies;
mod routes;
mod services;

pub use config::{Config, RoutingNumber};
pub use endpoints::{AddrKey, EndpointFlags, EndpointKind, EndpointValue, Mac, PrefixKey};
pub use events::{Count, Counter, Event, EventKind, Hook, RawEvent};
pub use flows::{EndValue, Flow, FlowKey, FlowValue, FragmentKey, FragmentValue, TcpProgress, lifetime};
pub use layout::{Field, Layout, layouts};
pub use policies::{PolicyFlags, PolicyKeyBits, PolicyMapKey, PolicyValue};
pub use routes::{RouteFlags, RouteKind, RouteValue};
pub use services::{
    AffinityKey, AffinityValue, BackendKey, BackendValue, ConnectedValue, MemberKey, NatFlags, NatKey,
    NatValue, ReverseKey, ReverseValue, ServiceFlags, ServiceKey, ServiceValue, SourceKey,
};
