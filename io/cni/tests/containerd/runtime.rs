//! A private containerd: its own directories, sockets and namespace, and an image made here. Ends with the value.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

pub struct Containerd {
    dir: tempfile::TempDir,
    daemon: Child,
}

pub const IMAGE: &str = "weft.test/probe:1";

/// What this test needs of the machine; the reason if it lacks some of it.
pub fn lacking() -> Option<String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("containerd needs root".to_owned());
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let found = |name: &str| path.split(':').any(|dir| Path::new(dir).join(name).exists());
    ["containerd", "ctr", "runc", "gcc", "unshare", "nsenter", "ip", "tar"]
        .into_iter()
        .find(|name| !found(name))
        .map(|name| format!("{name} is not installed (make setup-tests)"))
        .or_else(|| {
            (!Path::new(LOOPBACK).exists()).then(|| format!("{LOOPBACK} is not installed (make setup-tests)"))
        })
}

/// ctr always adds the loopback interface.
const LOOPBACK: &str = "/usr/lib/cni/loopback";

impl Containerd {
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("weft-containerd-").tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("grpc.sock"),
            path("ttrpc.sock")
        );
        fs::write(path("config.toml"), config).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let daemon = Command::new("containerd")
            .args(["--config", &path("config.toml")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut containerd = Self { dir, daemon };
        containerd.wait_until_serving();
        containerd.import_image();
        containerd
    }

    /// `ctr` with a CNI configuration and plugin folder of its own, laid over the machine's in a mount namespace.
    pub fn ctr(&self, args: &[&str]) -> Command {
        let home = self.dir.path().display();
        let script = format!(
            "mkdir -p {home}/etc && mount -t tmpfs none /opt && mkdir -p /opt/cni && ln -s {home}/plugins /opt/cni/bin && \
             mount -t tmpfs none {home}/etc && mkdir {home}/etc/up {home}/etc/work && \
             mount -t overlay -o lowerdir=/etc,upperdir={home}/etc/up,workdir={home}/etc/work none /etc && \
             rm -rf /etc/cni && mkdir -p /etc/cni/net.d && cp {home}/weft.conflist /etc/cni/net.d/ && exec \"$@\""
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh", "ctr"]);
        command.args(["--address", &self.path("grpc.sock"), "--namespace", &self.namespace()]);
        command.args(args).stdin(Stdio::null());
        command
    }

    pub fn install_plugin(&self, program: &Path, conflist: &Value) {
        let plugins = self.dir.path().join("plugins");
        fs::create_dir_all(&plugins).unwrap();
        std::os::unix::fs::symlink(program, plugins.join("weft")).unwrap();
        std::os::unix::fs::symlink(LOOPBACK, plugins.join("loopback")).unwrap();
        fs::write(self.dir.path().join("weft.conflist"), conflist.to_string()).unwrap();
    }

    pub fn kill_task(&self, id: &str) {
        let output = self.ctr(&["task", "kill", "--signal", "SIGKILL", id]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Also the name of the cgroup that runc puts the containers in.
    fn namespace(&self) -> String {
        format!("weft-cni-test-{}", self.daemon.id())
    }

    fn wait_until_serving(&mut self) {
        for _ in 0..600 {
            if std::os::unix::net::UnixStream::connect(self.path("grpc.sock")).is_ok() {
                return;
            }
            if let Some(status) = self.daemon.try_wait().unwrap() {
                panic!("containerd ended ({status}): {}", fs::read_to_string(self.path("log")).unwrap());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("containerd does not listen: {}", fs::read_to_string(self.path("log")).unwrap());
    }

    fn import_image(&self) {
        let archive = image(&self.dir.path().join("image"));
        let output = Command::new("ctr")
            .args(["--address", &self.path("grpc.sock"), "--namespace", &self.namespace()])
            .args(["images", "import", "--snapshotter", "native", &archive.display().to_string()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Processes that work for this daemon: they name its socket in their command line.
    fn shims(&self) -> Vec<i32> {
        let socket = self.path("grpc.sock");
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let mut words = line.split(|byte| *byte == 0);
                words.any(|word| word == socket.as_bytes())
            })
            .collect()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for pid in self.shims() {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let home = self.dir.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for target in mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|target| target.starts_with(&home))
        {
            let _ = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(hierarchy.path().join(self.namespace()));
        }
    }
}

/// An OCI image archive (image-spec 1.0) with one layer that holds one static program.
fn image(work: &Path) -> PathBuf {
    let blobs = work.join("layout/blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(work.join("layer")).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/containerd/probe.c");
    run(Command::new("gcc").args(["-static", "-O1", "-o"]).arg(work.join("layer/probe")).arg(source));
    run(Command::new("tar")
        .arg("-C")
        .arg(work.join("layer"))
        .arg("-cf")
        .arg(work.join("layer.tar"))
        .arg("probe"));

    let layer =
        blob(&blobs, &fs::read(work.join("layer.tar")).unwrap(), "application/vnd.oci.image.layer.v1.tar");
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["/probe"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob(&blobs, config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer],
    });
    let mut manifest =
        blob(&blobs, manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    manifest["annotations"] = json!({"io.containerd.image.name": IMAGE});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(work.join("layout/index.json"), index.to_string()).unwrap();
    fs::write(work.join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let archive = work.join("image.tar");
    run(Command::new("tar").arg("-C").arg(work.join("layout")).arg("-cf").arg(&archive).arg("."));
    archive
}

/// Stores the bytes under their digest; returns their descriptor.
fn blob(blobs: &Path, bytes: &[u8], media_type: &str) -> Value {
    use sha2::Digest;
    let digest: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(blobs.join(&digest), bytes).unwrap();
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
