//! A containerd that is asked through `ctr`, with its CNI configuration. The daemon itself is in tests/containers.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::containers::{self, Cgroup, LOOPBACK};

pub struct Containerd {
    daemon: containers::Containerd,
    /// containerd's namespace, and the cgroup that runc puts the containers in.
    namespace: Cgroup,
}

const DISABLED: &str =
    "disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]";

impl Containerd {
    pub fn start() -> Self {
        let daemon = containers::Containerd::start(containers::home(), DISABLED, &[]);
        let namespace = Cgroup(format!("weft-cni-test-{}", daemon.pid()));
        daemon.import_images(&namespace.0);
        Self { daemon, namespace }
    }

    /// `ctr` with a CNI configuration and plugin folder of its own, laid over the machine's in a mount namespace.
    pub fn ctr(&self, args: &[&str]) -> Command {
        let home = self.daemon.home().display();
        let script = format!(
            "mkdir -p {home}/etc && mount -t tmpfs none /opt && mkdir -p /opt/cni && ln -s {home}/plugins /opt/cni/bin && \
             mount -t tmpfs none {home}/etc && mkdir {home}/etc/up {home}/etc/work && \
             mount -t overlay -o lowerdir=/etc,upperdir={home}/etc/up,workdir={home}/etc/work none /etc && \
             rm -rf /etc/cni && mkdir -p /etc/cni/net.d && cp {home}/weft.conflist /etc/cni/net.d/ && exec \"$@\""
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh", "ctr", "--address"]);
        command.arg(self.daemon.socket()).args(["--namespace", &self.namespace.0]);
        command.args(args).stdin(Stdio::null());
        command
    }

    pub fn install_plugin(&self, program: &Path, conflist: &Value) {
        let plugins = self.daemon.home().join("plugins");
        fs::create_dir_all(&plugins).unwrap();
        std::os::unix::fs::symlink(program, plugins.join("weft")).unwrap();
        std::os::unix::fs::symlink(LOOPBACK, plugins.join("loopback")).unwrap();
        fs::write(self.daemon.home().join("weft.conflist"), conflist.to_string()).unwrap();
    }

    pub fn kill_task(&self, id: &str) {
        let output = self.ctr(&["task", "kill", "--signal", "SIGKILL", id]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
