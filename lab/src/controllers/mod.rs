//! The controllers of a control plane that a cluster on one machine needs: workloads, endpoints, nodes, scheduling.
//! Each decision is a pure function of what there is; `shell` watches and writes.

mod cronjob;
mod daemonset;
mod deployment;
mod effect;
mod endpoints;
mod garbage;
mod history;
mod job;
mod legacy_endpoints;
mod meta;
mod nodes;
pub mod podcidr;
mod pods;
mod replicaset;
mod scheduler;
mod shell;
mod statefulset;
#[cfg(test)]
mod testing;

use std::path::{Path, PathBuf};

use kube::Client;
use serde::{Deserialize, Serialize};

use crate::fabric::bootstrap;

/// `weft lab controllers`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub controllers_kubeconfig: PathBuf,
    pub scheduler_kubeconfig: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}", path = path.display())]
pub struct Error {
    path: PathBuf,
    why: String,
}

/// Runs the controllers and the scheduler for as long as it is polled.
pub async fn run(config: Config) -> Result<(), Error> {
    let controllers = client(&config.controllers_kubeconfig).await?;
    let scheduler = client(&config.scheduler_kubeconfig).await?;
    run_with(controllers, scheduler).await;
    Ok(())
}

/// The same with clients made elsewhere.
pub async fn run_with(controllers: Client, scheduler: Client) {
    shell::run(controllers, scheduler).await;
}

async fn client(path: &Path) -> Result<Client, Error> {
    bootstrap::client(path).await.map_err(|why| Error { path: path.to_owned(), why })
}
