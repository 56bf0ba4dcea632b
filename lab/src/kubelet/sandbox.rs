//! What a pod has before any container runs: its directory, cgroups, network namespace and addresses; and how
//! all of that goes away again. Every step is recorded first, so that a restart finds what it must undo.
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::json;
use weft_model::ClusterDns;

use super::bundle::{AttemptDir, at, read_json, write_json};
use super::cni::{Attached, Attachment, Cni, CniError};
use super::monitor::kill_cgroup;
use super::names;
use super::netns;

/// The directory of one pod.
#[derive(Clone, Debug)]
pub struct PodDir(PathBuf);

impl PodDir {
    pub fn new(pods: &Path, uid: &str) -> Self {
        Self(pods.join(uid))
    }
    pub fn path(&self) -> &Path {
        &self.0
    }
    fn record(&self) -> PathBuf {
        self.0.join("pod.json")
    }
    pub fn etc(&self) -> PathBuf {
        self.0.join("etc")
    }
    pub fn volumes(&self) -> PathBuf {
        self.0.join("volumes")
    }
    pub fn container(&self, name: &str) -> PathBuf {
        self.0.join("containers").join(name)
    }
    pub fn attempt(&self, container: &str, attempt: u32) -> AttemptDir {
        AttemptDir(self.container(container).join(attempt.to_string()))
    }
}

/// What is written down of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub cgroup: PathBuf,
    pub start_time: Timestamp,
    pub network: PodNetwork,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum PodNetwork {
    /// The node's own network and addresses.
    Node {
        ips: Vec<IpAddr>,
    },
    /// A namespace is being made, or was left half-made.
    Making(Attachment),
    Attached(Attachment, Attached),
    /// Given back, after the pod was over.
    Released,
}

impl Record {
    pub fn read(dir: &PodDir) -> io::Result<Option<Self>> {
        read_json(&dir.record())
    }

    pub fn write(&self, dir: &PodDir) -> io::Result<()> {
        write_json(&dir.record(), self)
    }

    pub fn pod_ips(&self) -> &[IpAddr] {
        match &self.network {
            PodNetwork::Node { ips } => ips,
            PodNetwork::Attached(_, attached) => &attached.ips,
            PodNetwork::Making(_) | PodNetwork::Released => &[],
        }
    }

    pub fn netns(&self) -> Option<PathBuf> {
        match &self.network {
            PodNetwork::Attached(attachment, _) => Some(attachment.netns.clone()),
            _ => None,
        }
    }

    pub fn monitor_cgroup(&self) -> PathBuf {
        self.cgroup.join("monitors")
    }

    pub fn container_cgroup(&self, container: &str) -> PathBuf {
        // A container may be called "monitors".
        self.cgroup.join(format!("container-{container}"))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Cni(#[from] CniError),
}

/// How sandboxes are made on this node.
#[derive(Clone, Debug)]
pub struct SandboxMaker {
    pub cni: Cni,
    pub pods_dir: PathBuf,
    pub netns_dir: PathBuf,
    pub cgroups: PathBuf,
    pub dns: ClusterDns,
    pub node: String,
    pub node_ips: Vec<IpAddr>,
}

impl SandboxMaker {
    /// Makes everything the pod needs; what a failed try leaves is removed by `discard` or the next try.
    pub async fn make(&self, pod: &Pod) -> Result<Record, SandboxError> {
        let dir = PodDir::new(&self.pods_dir, pod.metadata.uid.as_deref().unwrap_or_default());
        if let Some(mut earlier) = Record::read(&dir)? {
            // Its record is about to be overwritten: what it holds must be given back first.
            self.release_network(&mut earlier).await?;
        }
        let mut record = self.begin(pod)?;
        if let PodNetwork::Making(attachment) = record.network.clone() {
            record.write(&dir)?;
            let path = attachment.netns.clone();
            tokio::task::spawn_blocking(move || netns::create(&path)).await.map_err(io::Error::other)??;
            let attached = self.cni.add(&attachment).await?;
            record.network = PodNetwork::Attached(attachment, attached);
        }
        self.write_names(pod, &dir, record.pod_ips())?;
        record.write(&dir)?;
        Ok(record)
    }

    fn begin(&self, pod: &Pod) -> io::Result<Record> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let meta = &pod.metadata;
        let uid = text(&meta.uid);
        let dir = PodDir::new(&self.pods_dir, &uid);
        let cgroup = self.cgroups.join(&uid);
        for path in [dir.path(), &dir.etc(), &dir.volumes(), &cgroup, &cgroup.join("monitors")] {
            std::fs::create_dir_all(path).map_err(|error| at(path, error))?;
        }
        let on_node = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
        let network = if on_node {
            PodNetwork::Node { ips: self.node_ips.clone() }
        } else {
            PodNetwork::Making(self.attachment(pod, &uid))
        };
        let start_time = Record::read(&dir)?.map_or_else(Timestamp::now, |before| before.start_time);
        let (namespace, name) = (text(&meta.namespace), text(&meta.name));
        Ok(Record { namespace, name, uid, cgroup, start_time, network })
    }

    fn attachment(&self, pod: &Pod, uid: &str) -> Attachment {
        // Another id for each try: a plugin must not take a new namespace for one it has seen.
        let stamp = Timestamp::now().as_nanosecond();
        let sandbox_id = format!("{}{stamp:032x}", uid.replace('-', "")).chars().take(64).collect::<String>();
        Attachment {
            netns: self.netns_dir.join(format!("pod-{uid}-{stamp:x}")),
            sandbox_id,
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            pod: pod.metadata.name.clone().unwrap_or_default(),
            uid: uid.to_owned(),
            port_mappings: port_mappings(pod),
        }
    }

    fn write_names(&self, pod: &Pod, dir: &PodDir, ips: &[IpAddr]) -> io::Result<()> {
        let Some(spec) = &pod.spec else { return Ok(()) };
        let (name, namespace) = pod_name(pod);
        let etc = dir.etc();
        let hostname = self.hostname(pod);
        let on_node = spec.host_network == Some(true);
        let hosts = if on_node {
            names::hosts_of_node(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), spec)
        } else {
            names::hosts(ips, &hostname, spec, &self.dns.domain, namespace)
        };
        let node_resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let resolv = names::resolv_conf(pod, &self.dns, &node_resolv);
        for (file, text) in [("hosts", hosts), ("resolv.conf", resolv), ("hostname", hostname + "\n")] {
            let path = etc.join(file);
            std::fs::write(&path, text).map_err(|error| at(&path, error))?;
        }
        tracing::debug!(pod = name, namespace, "sandbox ready");
        Ok(())
    }

    pub fn hostname(&self, pod: &Pod) -> String {
        let (name, namespace) = pod_name(pod);
        let default = k8s_openapi::api::core::v1::PodSpec::default();
        let spec = pod.spec.as_ref().unwrap_or(&default);
        names::hostname(name, spec, &self.node, &self.dns.domain, namespace)
    }

    /// Gives the network back: the plugin's part, then the namespace. The addresses are free afterwards.
    pub async fn release_network(&self, record: &mut Record) -> Result<(), SandboxError> {
        let (attachment, attached) = match &record.network {
            PodNetwork::Making(attachment) => (attachment, None),
            PodNetwork::Attached(attachment, attached) => (attachment, Some(attached)),
            PodNetwork::Node { .. } | PodNetwork::Released => return Ok(()),
        };
        self.cni.del(attachment, attached).await?;
        netns::remove(&attachment.netns)?;
        record.network = PodNetwork::Released;
        let dir = PodDir::new(&self.pods_dir, &record.uid);
        if dir.path().exists() {
            record.write(&dir)?;
        }
        Ok(())
    }

    /// Ends every process of the pod and removes its cgroups.
    pub async fn remove_cgroups(&self, cgroup: &Path) -> io::Result<()> {
        kill_cgroup(cgroup)?;
        for _ in 0..200 {
            match remove_cgroup_tree(cgroup) {
                Ok(()) => return Ok(()),
                // Killed processes take a moment to be gone.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(error) => return Err(at(cgroup, error)),
            }
        }
        Err(at(cgroup, io::Error::from_raw_os_error(libc::EBUSY)))
    }

    /// Removes what is left of a pod: processes, cgroups, network, files.
    pub async fn discard(&self, mut record: Record) -> Result<(), SandboxError> {
        self.remove_cgroups(&record.cgroup).await?;
        self.release_network(&mut record).await?;
        self.remove_files(&record.uid)?;
        Ok(())
    }

    pub fn remove_files(&self, uid: &str) -> io::Result<()> {
        let dir = PodDir::new(&self.pods_dir, uid);
        match std::fs::remove_dir_all(dir.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(dir.path(), error)),
            _ => Ok(()),
        }
    }
}

fn pod_name(pod: &Pod) -> (&str, &str) {
    let meta = &pod.metadata;
    (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default())
}

fn port_mappings(pod: &Pod) -> Vec<serde_json::Value> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let host_port = port.host_port.filter(|port| *port > 0)?;
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
            let mut mapping =
                json!({"hostPort": host_port, "containerPort": port.container_port, "protocol": protocol});
            if let Some(ip) = &port.host_ip {
                mapping["hostIP"] = json!(ip);
            }
            Some(mapping)
        })
        .collect()
}

fn remove_cgroup_tree(cgroup: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(cgroup) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_cgroup_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(cgroup)
}
