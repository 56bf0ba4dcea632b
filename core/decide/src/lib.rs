//! Plan and packet or query to verdict and reason: the executable definition of the datapath and the name server.

pub mod announce;
mod edge;
pub mod explain;
mod flows;
mod icmp;
mod journey;
mod masquerade;
mod matrix;
pub mod names;
mod nat;
mod packets;
mod policies;
mod reach;
mod sockets;
mod track;

pub use edge::{AffinityEntry, AffinityKey};
pub use flows::{
    Epoch, FlowEntry, FlowKey, FlowTable, FragmentKey, FragmentPorts, MemoryFlows, Moment, Side, TableFull,
    TcpProgress, Time,
};
pub use journey::{Action, Arrival, Outcome, Place, Refusal, from_net, from_pod, place, to_net, to_pod};
pub use matrix::{Cell, Target, matrix};
pub use nat::{NatEntry, NatKey, NatKind};
pub use packets::{Body, Fragment, FragmentId, Header, Packet, Quoted, TcpFlags, Unreadable};
pub use policies::{Judgement, Ruling, class_of, egress, ingress, judge, policy_lookup, set_of};
pub use reach::{Cluster, Reach};
pub use sockets::{Asker, Chance, Connect, Owner, Served, connect, served};
