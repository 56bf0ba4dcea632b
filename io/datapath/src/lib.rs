//! Load BPF programs, speak netlink, apply a plan to the kernel and read it back. What a plan is lives in core/plan,
//! what the programs do to a packet in bpf/.
//!
//! Every call blocks and acts on the network namespace of the calling thread.

mod apply;
mod collect;
mod compare;
mod datapath;
mod device;
mod error;
mod events;
mod leftovers;
mod links;
mod maglev;
mod maps;
mod neighbours;
mod netlink;
mod netns;
mod node;
mod pods;
mod programs;
mod read_back;
mod reserved;
mod routes;
mod sctp;
mod service_apply;
mod service_entries;
mod service_state;
mod sockets;
mod tables;
mod usage;

pub use apply::Report;
pub use compare::gateways;
pub use datapath::{Capacity, Config, Datapath};
pub use error::{ApplyError, NetlinkError, OpenError, PodError, ReadError};
pub use events::{Counters, EventReader};
pub use maps::{KernelWrites, Writes};
pub use neighbours::{Heard, NeighbourError, Neighbours};
pub use netns::{in_namespace, netns_cookie};
pub use pods::{PodAttachment, PodLink, device_name};
pub use programs::{OBJECT, Programs};
pub use read_back::Tables;
pub use sctp::kernel_has_sctp;
pub use tables::KernelTables;
pub use usage::{Kept, Refused, Usage};

/// What clusters of one fabric use unless told otherwise; the port is IANA's (RFC 7348, 5).
pub const VXLAN_VNI: u32 = 1;
pub const VXLAN_PORT: u16 = 4789;
