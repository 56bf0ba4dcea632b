//! containerd as a node's runtime: in the node's network namespace and cgroup, with the node's CNI configuration.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::containers::{self, Cgroup, Containerd, IMAGE, LOOPBACK, PAUSE};
use crate::cri::{Cri, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata};
use crate::support::{Fabric, text, weft};

/// Where containerd's CRI keeps what it runs.
const NAMESPACE: &str = "k8s.io";

pub struct ContainerdNode {
    containerd: Containerd,
    cgroup: Cgroup,
    netns: String,
}

impl ContainerdNode {
    pub fn start(fabric: &Fabric, node: &str) -> Self {
        let home = containers::home();
        let path = |name: &str| home.path().join(name).display().to_string();
        install_plugins(fabric, node, &home);
        // Relative to every hierarchy. In the v2 one it is inside the node's, whose sockets the agent serves.
        let cgroup = Cgroup(format!("/weft/{}/{node}/containerd", fabric.name));
        // Root without CAP_SYS_RESOURCE, as in some virtual machines, may not lower a process' oom_score_adj.
        let config = format!(
            r#"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
netns_mounts_under_state_dir = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {:?}
conf_dir = {:?}
"#,
            path("plugins"),
            path("net.d")
        );
        let netns = fabric.namespace(node);
        let place = format!(
            "mkdir -p {0} && echo $$ > {0}/cgroup.procs && exec nsenter --net={netns} \"$@\"",
            fabric.cgroup(node).join("containerd/daemon").display()
        );
        let containerd = Containerd::start(home, &config, &["sh", "-c", &place, "sh"]);
        containerd.import_images(NAMESPACE);
        Self { containerd, cgroup, netns }
    }

    /// Returns once containerd's CRI knows the images.
    pub async fn cri(&self) -> Cri {
        let mut cri = Cri::connect(&self.containerd.socket()).await;
        for _ in 0..600 {
            if cri.has_image(IMAGE).await && cri.has_image(PAUSE).await {
                return cri;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("CRI does not know the images:\n{}", self.log());
    }

    pub fn log(&self) -> String {
        self.containerd.log()
    }

    pub fn network_namespaces(&self) -> Vec<String> {
        let path = self.containerd.home().join("state/io.containerd.grpc.v1.cri/netns");
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// How many pods have a link on the node.
    pub fn links(&self) -> usize {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.netns))
            .args(["ip", "-o", "link", "show", "type", "veth"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().filter(|line| line.contains(": wf")).count()
    }
}

pub fn sandbox_config(pod: &Pod, node: &ContainerdNode) -> PodSandboxConfig {
    let meta = &pod.metadata;
    let logs: PathBuf = node.containerd.home().join("logs");
    std::fs::create_dir_all(&logs).unwrap();
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: meta.name.clone().unwrap(),
            uid: meta.uid.clone().unwrap(),
            namespace: meta.namespace.clone().unwrap(),
        }),
        hostname: meta.name.clone().unwrap(),
        log_directory: logs.display().to_string(),
        labels: Default::default(),
        linux: Some(LinuxPodSandboxConfig { cgroup_parent: node.cgroup.0.clone() }),
    }
}

/// The node's own configuration, in the version that containerd 1.6 knows.
fn install_plugins(fabric: &Fabric, node: &str, home: &tempfile::TempDir) {
    let (plugins, confs) = (home.path().join("plugins"), home.path().join("net.d"));
    for directory in [&plugins, &confs] {
        std::fs::create_dir_all(directory).unwrap();
    }
    std::os::unix::fs::symlink(weft(), plugins.join("weft")).unwrap();
    std::os::unix::fs::symlink(LOOPBACK, plugins.join("loopback")).unwrap();
    let written = std::fs::read(fabric.root().join("nodes").join(node).join("cni.conflist")).unwrap();
    let mut conflist: Value = serde_json::from_slice(&written).unwrap();
    conflist["cniVersion"] = "1.0.0".into();
    std::fs::write(confs.join("weft.conflist"), conflist.to_string()).unwrap();
}
