//! Any Kubernetes API server into the model, and status back. Nothing here knows which server it talks to,
//! and nothing decides what the objects mean: parsing lives in core/model.

/// Leases of addresses and of nodes.
pub mod claims;
mod client;
mod cluster;
mod events;
mod kinds;
mod leadership;
mod nodes;
mod pools;
mod services;
mod store;

/// What the status of Services and AddressPools is to say, and the least patch to it.
pub mod status;

/// Who leads, as a pure state machine; `lead` runs it against an API server.
pub mod lease;

pub use client::{client_from_kubeconfig, client_in_cluster_or, list_once};
pub use cluster::{Cluster, Link, View};
pub use events::{EventRecorder, Subject};
pub use leadership::{Leadership, lead};
pub use nodes::{NodeCondition, set_network_available, set_network_unavailable, set_node_condition};
pub use pools::set_pool_status;
pub use services::{ServiceWriter, WriteReport};

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("kubeconfig {}: {reason}", path.display())]
    Kubeconfig { path: PathBuf, reason: String },
    #[error("no Kubernetes API server to talk to: {0}")]
    NoServer(String),
    #[error("cannot {action}: the API server did not answer in time")]
    Late { action: String },
    #[error("cannot {action}: {}", reason(source))]
    Api { action: String, source: Box<kube::Error> },
}

impl Error {
    fn api(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let action = action.into();
        move |source| Self::Api { action, source: Box::new(source) }
    }
}

/// What went wrong, for a person: the server's own words where it said something, else the innermost cause.
fn reason(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({})", status.message, status.code);
    }
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
