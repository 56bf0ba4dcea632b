//! The small kubelet of the lab: one process per node that runs the pods bound to it. It speaks to any Kubernetes
//! API and calls CNI plugins as a container runtime does; it needs no container runtime, because containers are
//! host commands or stand-ins. It never decides where a pod runs and never writes spec.podCIDRs.
//!
//! `worker.rs` is the life of one pod; `lifecycle.rs`, `status.rs`, `probe.rs`, `environment.rs` and `names.rs`
//! decide and are pure; `monitor.rs` is the process that stays with a container when the kubelet dies.
mod actions;
mod bundle;
mod cni;
mod containers;
mod enter;
mod environment;
mod events;
mod insecure_tls;
mod isolate;
mod lifecycle;
mod logs;
pub mod monitor;
mod mounts;
mod names;
mod netns;
mod node;
mod pods;
mod probe;
mod prober;
mod probing;
mod process;
mod publish;
mod recover;
mod sandbox;
mod server;
mod shared;
mod sources;
mod status;
mod stop;
mod streams;
mod volumes;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::config::{KubeConfigOptions, Kubeconfig};
use weft_model::{Addr, ClusterDns};

use cni::Cni;
use events::EventSink;
use node::NodeFacts;
use sandbox::SandboxMaker;
use shared::{Registry, Services, Shared};

/// What the kubelet of one node is told.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: String,
    pub kubeconfig: PathBuf,
    /// Where logs, exec, attach and port-forward are served.
    pub socket: PathBuf,
    /// What is recorded of pods, so that a restart finds it.
    pub pods_dir: PathBuf,
    /// Where pods' network namespaces are pinned.
    pub netns_dir: PathBuf,
    /// The v2 cgroup below which each pod gets its own, named by its uid.
    pub cgroup_pods_dir: PathBuf,
    pub cni_conf: PathBuf,
    /// Program and leading arguments of the CNI plugin of type `weft`.
    pub cni_plugin: Vec<String>,
    /// This program, whose verbs `lab run` and `lab standin` are used.
    pub weft_exe: PathBuf,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    pub node_ips: Vec<IpAddr>,
    /// What the node claims to have; absent means what the machine has.
    pub capacity: Option<Capacity>,
    /// More labels for the node.
    pub labels: BTreeMap<String, String>,
    /// How long the node counts as alive after it was last heard of.
    pub lease_seconds: u32,
}

/// What a node can take.
#[derive(Clone, Debug, PartialEq)]
pub struct Capacity {
    pub cpu: Quantity,
    pub memory: Quantity,
    pub pods: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    #[error("kubeconfig {path}: {error}")]
    Kubeconfig { path: PathBuf, error: Box<dyn std::error::Error + Send + Sync> },
    #[error("directory {path}: {error}")]
    Directory { path: PathBuf, error: io::Error },
    #[error("kubelet socket {path}: {error}")]
    Socket { path: PathBuf, error: io::Error },
}

/// Runs until dropped or until the socket fails. Pods keep running when this ends.
///
/// The calling process must be in the node's network namespace: that is where probes come from, and what pods
/// with `hostNetwork` share.
pub async fn run(config: Config) -> Result<(), KubeletError> {
    for path in [&config.pods_dir, &config.netns_dir, &config.cgroup_pods_dir] {
        std::fs::create_dir_all(path)
            .map_err(|error| KubeletError::Directory { path: path.clone(), error })?;
    }
    let listener = server::bind(&config.socket)
        .map_err(|error| KubeletError::Socket { path: config.socket.clone(), error })?;
    let client = client(&config.kubeconfig).await?;
    let facts = NodeFacts {
        name: config.node.clone(),
        ips: config.node_ips.clone(),
        capacity: config.capacity.clone().unwrap_or_else(Capacity::of_machine),
        labels: config.labels.clone(),
        lease_seconds: config.lease_seconds,
    };
    let cni = Cni { conf: config.cni_conf.clone(), weft: config.cni_plugin.clone() };
    let shared = Arc::new(share(&config, client, cni.clone(), &facts));
    tracing::info!("kubelet of {} runs", config.node);
    tokio::join!(
        node::keep(shared.clone(), facts, cni),
        pods::follow_services(shared.clone()),
        pods::follow_pods(shared.clone()),
        server::serve(listener, shared),
    );
    Ok(())
}

async fn client(path: &PathBuf) -> Result<kube::Client, KubeletError> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| KubeletError::Kubeconfig {
        path: path.clone(),
        error,
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| failed(error.into()))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| failed(error.into()))?;
    kube::Client::try_from(config).map_err(|error| failed(error.into()))
}

fn share(config: &Config, client: kube::Client, cni: Cni, facts: &NodeFacts) -> Shared {
    let sandboxes = SandboxMaker {
        cni,
        pods_dir: config.pods_dir.clone(),
        netns_dir: config.netns_dir.clone(),
        cgroups: config.cgroup_pods_dir.clone(),
        dns: ClusterDns {
            servers: config.cluster_dns.iter().copied().map(Addr::from).collect(),
            domain: config.cluster_domain.clone(),
        },
        node: config.node.clone(),
        node_ips: config.node_ips.clone(),
    };
    Shared {
        events: EventSink::start(client.clone(), config.node.clone()),
        client,
        node: config.node.clone(),
        node_ips: config.node_ips.clone(),
        weft_exe: config.weft_exe.clone(),
        sandboxes,
        services: Services::default(),
        allocatable: facts.capacity.quantities(),
        pods: Registry::default(),
    }
}
