//! A private containerd: its own directories and sockets, and images made here. Ends with the value, and what it
//! started with it. Not a crate: a test includes it with `#[path = "../../../tests/containers/mod.rs"]`. What a test
//! asks of containerd, and through which of its interfaces, is in the test.
#![allow(dead_code, unused_imports)] // each test uses its own part

mod image;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use image::{IMAGE, PAUSE};

/// Wanted by every network, also by containerd itself.
pub const LOOPBACK: &str = "/usr/lib/cni/loopback";

pub struct Containerd {
    dir: tempfile::TempDir,
    daemon: Child,
}

/// What containers need of the machine; the reason if it lacks some of it.
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

/// The directory of a daemon to be.
pub fn home() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("weft-containerd-").tempdir().unwrap()
}

impl Containerd {
    /// Starts the daemon in `home` with `config` (version 2) beside its directories and sockets. `wrapper` is a
    /// command that runs its arguments in its own place.
    pub fn start(home: tempfile::TempDir, config: &str, wrapper: &[&str]) -> Self {
        let path = |name: &str| home.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n{config}\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("grpc.sock"),
            path("ttrpc.sock")
        );
        fs::write(path("config.toml"), config).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let config = path("config.toml");
        let words: Vec<&str> = wrapper.iter().copied().chain(["containerd", "--config", &config]).collect();
        let daemon = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut containerd = Self { dir: home, daemon };
        containerd.wait_until_serving();
        containerd
    }

    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    pub fn home(&self) -> &Path {
        self.dir.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("grpc.sock")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn import_images(&self, namespace: &str) {
        let archive = image::archive(&self.dir.path().join("image"));
        image::run(
            Command::new("ctr")
                .arg("--address")
                .arg(self.socket())
                .args(["--namespace", namespace, "images", "import", "--snapshotter", "native"])
                .arg(archive),
        );
    }

    fn wait_until_serving(&mut self) {
        for _ in 0..600 {
            if std::os::unix::net::UnixStream::connect(self.socket()).is_ok() {
                return;
            }
            if let Some(status) = self.daemon.try_wait().unwrap() {
                panic!("containerd ended ({status}): {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("containerd does not listen: {}", self.log());
    }

    /// Processes that work for this daemon, which name its socket in their command line, and their children.
    fn workers(&self) -> BTreeSet<i32> {
        let socket = self.socket();
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids: Vec<i32> = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        let is_shim = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| Path::new(&*String::from_utf8_lossy(word)) == socket)
        };
        let mut workers: BTreeSet<i32> = pids.iter().copied().filter(is_shim).collect();
        let children: Vec<i32> =
            pids.iter().copied().filter(|pid| parent(*pid).is_some_and(|by| workers.contains(&by))).collect();
        workers.extend(children);
        workers
    }
}

/// A dead process that nobody has waited for holds nothing.
fn is_running(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let workers = self.workers();
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let workers: BTreeSet<i32> = workers.into_iter().chain(self.workers()).collect();
        for pid in &workers {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        for _ in 0..600 {
            if !workers.iter().any(|pid| is_running(*pid)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let home = self.dir.path().display().to_string();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        // What was mounted last lies on top.
        for target in ours.filter(|target| target.starts_with(&home)).collect::<Vec<_>>().into_iter().rev() {
            let _ = nix::mount::umount2(target, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// A cgroup that runc makes for containers, in whichever hierarchies the machine has. Goes with the value, which must
/// be dropped after the daemon.
pub struct Cgroup(pub String);

impl Drop for Cgroup {
    fn drop(&mut self) {
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let group = hierarchy.path().join(self.0.trim_start_matches('/'));
            remove_directories(&group);
            // Groups above it that nobody else uses came with it; the kernel keeps the others.
            let above = group.ancestors().skip(1).take_while(|path| *path != hierarchy.path());
            above.take_while(|path| fs::remove_dir(path).is_ok()).for_each(drop);
        }
    }
}

fn remove_directories(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_directories(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}
