//! The controllers of a control plane that a cluster on one machine needs: workloads, endpoints, nodes, scheduling.

pub mod podcidr;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `weft lab controllers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub controllers_kubeconfig: PathBuf,
    pub scheduler_kubeconfig: PathBuf,
}
