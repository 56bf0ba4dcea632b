//! Finding a cluster on this machine and talking to its processes' sockets.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use weft_lab::fabric::config::AgentConfig;
use weft_lab::fabric::paths::Paths;
use weft_lab::fabric::{self, Record, Spec};
use weft_model::{ClusterSettings, Finding, Snapshot};

pub const DEFAULT_NAME: &str = "weft";
/// A process that listens answers at once; one that does not is stuck.
const PATIENCE: Duration = Duration::from_secs(10);

/// A cluster that `weft up` wove on this machine.
pub struct Fabric {
    paths: Paths,
}

impl Fabric {
    pub fn find(name: &str) -> Result<Self> {
        let spec = Spec { name: name.to_owned(), ..Spec::default() };
        let paths = Paths::of(&spec);
        if !paths.record().exists() {
            let others: Vec<String> = fabric::list(&spec.state_root, &spec.netns_root)?
                .into_iter()
                .map(|other| other.name)
                .collect();
            let hint = match others.as_slice() {
                [] => "none is running here; start one with `weft up`".to_owned(),
                names => format!("running here: {}; choose one with --name", names.join(", ")),
            };
            bail!("no cluster named {name:?} ({hint})");
        }
        Ok(Self { paths })
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.paths.admin_kubeconfig()
    }

    /// Nodes in the order of their numbers.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let directory = self.paths.root().join("nodes");
        let entries =
            std::fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
        let mut nodes: Vec<String> = entries
            .filter_map(|entry| entry.ok().and_then(|entry| entry.file_name().into_string().ok()))
            .collect();
        nodes.sort_by_key(|name| (name.len(), name.clone()));
        Ok(nodes)
    }

    /// The network namespace of a node or an outside machine, and, for a node, a cgroup for guests on it.
    pub fn machine(&self, name: &str) -> Result<Option<(PathBuf, Option<PathBuf>)>> {
        let record: Record = read_json(&self.paths.record())?;
        let netns = self.paths.netns(name);
        if record.outside.iter().any(|machine| machine.name == name) {
            return Ok(Some((netns, None)));
        }
        if !self.nodes()?.iter().any(|node| node == name) {
            return Ok(None);
        }
        let config: AgentConfig = read_json(&self.paths.config(&format!("agent.{name}")))?;
        Ok(Some((netns, Some(config.cgroup_dir.join("guests")))))
    }

    pub fn names_settings(&self) -> PathBuf {
        self.paths.names_settings()
    }

    pub fn agent_socket(&self, node: &str) -> PathBuf {
        self.paths.node_file(node, "agent.sock")
    }

    pub fn proxy_socket(&self, node: &str) -> PathBuf {
        self.paths.node_file(node, "proxy.sock")
    }

    pub async fn client(&self) -> Result<kube::Client> {
        Ok(weft_kube::client_from_kubeconfig(&self.kubeconfig()).await?)
    }

    /// The cluster's settings, as its agents were given them.
    pub fn settings(&self) -> Result<ClusterSettings> {
        let node = self.nodes()?.into_iter().next().context("the cluster has no nodes")?;
        let config: AgentConfig = read_json(&self.paths.config(&format!("agent.{node}")))?;
        Ok(crate::agent::settings(&config))
    }

    /// The whole cluster as the API tells it now.
    pub async fn snapshot(&self) -> Result<(Snapshot, Vec<Finding>)> {
        let client = self.client().await?;
        Ok(weft_kube::list_once(&client, self.settings()?).await?)
    }
}

pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{}: not the settings expected here", path.display()))
}

/// Returns at SIGTERM or SIGINT.
pub async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be watched; only SIGKILL ends this process");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

/// One HTTP request over a Unix socket, answered whole.
pub async fn unix_request(socket: &Path, method: &str, path: &str, body: Vec<u8>) -> Result<Answer> {
    let exchange = async {
        let response = unix_open(socket, method, path, body).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.context("the answer broke off")?.to_bytes();
        Ok(Answer { status, body })
    };
    let answered = tokio::time::timeout(PATIENCE, exchange).await;
    answered.unwrap_or_else(|_| bail!("{}: no answer in {} s", socket.display(), PATIENCE.as_secs()))
}

/// One HTTP request over a Unix socket, its answer still streaming.
pub async fn unix_open(
    socket: &Path,
    method: &str,
    path: &str,
    body: Vec<u8>,
) -> Result<hyper::Response<hyper::body::Incoming>> {
    let stream =
        tokio::net::UnixStream::connect(socket).await.with_context(|| format!("{}", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "weft")
        .body(Full::new(Bytes::from(body)))?;
    Ok(sender.send_request(request).await?)
}
