//! CNI: the plugin a container runtime calls, and the agent's side of it (addresses, records, order of calls).
//! Links, routes and BPF are made by whoever implements `PodNetwork`.

mod attachment;
mod attachments;
mod client;
mod conf;
mod deletions;
mod disk;
mod error;
mod http;
mod invocation;
mod ipam;
mod plugin;
mod result;
mod service;
mod wire;

pub use attachment::{Attached, Attachment, MacAddr, Owner, PodRef};
pub use attachments::{Attachments, StoreError};
pub use conf::{NetConf, SUPPORTED_VERSIONS, Version, conflist};
pub use deletions::Deletions;
pub use disk::{Disk, Files};
pub use error::{CniError, code};
pub use http::{bind_socket, handle};
pub use invocation::{Command, Invocation};
pub use ipam::{Allocator, PoolError, PoolUsage};
pub use plugin::{called_as_plugin, plugin_main, process_env};
pub use service::{CniService, PodNetwork, Recovered, ServiceConfig};
pub use wire::{AttachRequest, CheckRequest, DetachRequest, GcRequest};
