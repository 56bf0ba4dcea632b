//! Desired state of one node: its kernel tables and its name server's. How it is computed lives in core/compile,
//! what it does to a packet in core/decide, putting it into the kernel in io/datapath.

mod diff;
mod endpoints;
pub mod maglev;
mod name_changes;
mod names;
mod node;
mod policies;
mod print;
mod services;

pub use diff::Changes;
pub use endpoints::{ClassId, EndpointPlan, NextHop};
pub use name_changes::{
    NameEvent, NameHead, NameMessageError, NameMessages, NameRow, NameVersion, write_names,
};
pub use names::{Absence, NameClient, NamePlan, NameRecords, SrvRecord};
pub use node::{NodePlan, NodeSettings};
pub use policies::{
    ClassMatch, Decision, PolicyMatch, PolicySet, PolicySetId, PortPrefix, RuleCause, RuleId,
};
pub use print::Table;
pub use services::{
    Backend, BackendList, EdgePlan, Exposure, FORWARDING_PORTS, Frontend, HealthCheck, ListId, ServiceId,
    ServicePlan,
};
