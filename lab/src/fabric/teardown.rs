//! Takes a fabric away, whole or half-made, and tells what is left of one. Works by name alone, so that it needs
//! no record to be intact.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::paths::Paths;
use super::process::{Identity, recorded};
use super::{cgroup, mounts, netns};

const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(20);
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// The record name of the process that supervises a fabric.
pub const SUPERVISOR: &str = "supervisor";

/// Ends the supervisor of a fabric, if one lives, and lets it clean up after itself.
pub fn stop_supervisor(paths: &Paths) -> io::Result<()> {
    let Some(supervisor) = supervisor(paths) else { return Ok(()) };
    supervisor.signal(Signal::SIGTERM)?;
    if wait_for_end(supervisor, SUPERVISOR_PATIENCE) {
        return Ok(());
    }
    supervisor.signal(Signal::SIGKILL)?;
    wait_for_end(supervisor, KILL_PATIENCE);
    Ok(())
}

/// The living supervisor of a fabric other than this process.
pub fn supervisor(paths: &Paths) -> Option<Identity> {
    let found = recorded(&paths.processes()).into_iter().find(|(name, _)| name == SUPERVISOR)?.1;
    let me = i32::try_from(std::process::id()).ok();
    (found.is_alive() && Some(found.pid) != me).then_some(found)
}

/// Removes everything of a fabric; each step is tried whatever the others did. Says what could not be removed.
pub fn remove(paths: &Paths) -> Vec<String> {
    let mut failures = Failures::default();
    kill_processes(paths, &mut failures);
    let namespaces = netns_names(paths);
    for name in &namespaces {
        let path = paths.netns_root().join(name);
        failures.note(|| format!("network namespace {name}"), netns::remove(&path));
    }
    unmount_all(paths, &mut failures);
    // Groups on a hierarchy of our own went with its mount.
    for group in cgroups(paths) {
        failures.note(|| format!("cgroup {}", group.display()), cgroup::remove(&group, KILL_PATIENCE));
        remove_if_empty(group.parent());
    }
    // A mount that could not be taken down may hold somebody's files: never delete through it.
    if mounts::under(&paths.root()).is_ok_and(|left| left.is_empty()) {
        failures.note(|| format!("directory {}", paths.root().display()), remove_tree(&paths.root()));
    }
    if is_last(paths) {
        failures.note(|| format!("directory {}", paths.netns_root().display()), give_back_netns_root(paths));
        remove_if_empty(Some(paths.state_root()));
    }
    failures.0
}

/// Whether no other fabric keeps its state beside this one.
fn is_last(paths: &Paths) -> bool {
    let Ok(entries) = std::fs::read_dir(paths.state_root()) else { return false };
    entries.flatten().all(|entry| entry.path() == paths.made_netns_root())
}

/// The first fabric made the directory of namespaces a mount point; the last one undoes that, unless somebody
/// else has namespaces there by now.
fn give_back_netns_root(paths: &Paths) -> io::Result<()> {
    if !paths.made_netns_root().exists() {
        return Ok(());
    }
    netns::release_root(paths.netns_root())?;
    std::fs::remove_file(paths.made_netns_root())
}

/// What is left of a fabric: one line each, empty when all is gone.
pub fn leftovers(paths: &Paths) -> Vec<String> {
    let mut found = Vec::new();
    for (name, identity) in recorded(&paths.processes()) {
        let me = i32::try_from(std::process::id()).ok();
        if identity.is_alive() && Some(identity.pid) != me {
            found.push(format!("process {} ({name})", identity.pid));
        }
    }
    for group in cgroups(paths) {
        for pid in cgroup::processes(&group).unwrap_or_default() {
            found.push(format!("process {pid} in cgroup {}", group.display()));
        }
        found.push(format!("cgroup {}", group.display()));
    }
    found.extend(netns_names(paths).into_iter().map(|name| format!("network namespace {name}")));
    found.extend(strays(paths).into_iter().map(|(pid, what)| format!("process {pid} in {what}")));
    match mounts::under(&paths.root()) {
        Ok(mounts) => {
            found.extend(mounts.iter().map(|m| format!("mount {} ({})", m.point.display(), m.kind)))
        }
        Err(e) => found.push(format!("mounts: cannot be listed: {e}")),
    }
    if paths.root().exists() {
        found.push(format!("directory {}", paths.root().display()));
    }
    found.sort();
    found.dedup();
    found
}

#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn note(&mut self, what: impl FnOnce() -> String, result: io::Result<()>) {
        if let Err(e) = result {
            self.0.push(format!("{}: {e}", what()));
        }
    }
}

/// Three ways to find a process: by record, by cgroup, and by the namespace it is in. The records come first:
/// whoever starts others must not start more.
fn kill_processes(paths: &Paths, failures: &mut Failures) {
    let me = i32::try_from(std::process::id()).ok();
    let alive: Vec<(String, Identity)> =
        recorded(&paths.processes()).into_iter().filter(|(_, p)| p.is_alive() && Some(p.pid) != me).collect();
    for (name, process) in &alive {
        failures.note(|| format!("process {} ({name})", process.pid), process.signal(Signal::SIGKILL));
    }
    for group in cgroups(paths) {
        failures.note(|| format!("cgroup {}", group.display()), cgroup::kill(&group, KILL_PATIENCE));
    }
    for (name, process) in alive {
        if !wait_for_end(process, KILL_PATIENCE) {
            failures.0.push(format!("process {} ({name}): does not end", process.pid));
        }
    }
    for (pid, what) in strays(paths) {
        if let Some(process) = Identity::of(pid) {
            failures.note(|| format!("process {pid} in {what}"), process.signal(Signal::SIGKILL));
            wait_for_end(process, KILL_PATIENCE);
        }
    }
}

/// Processes inside the fabric's namespaces, nodes' and pods', wherever their cgroup is.
fn strays(paths: &Paths) -> Vec<(i32, String)> {
    let mut namespaces: Vec<(PathBuf, String)> =
        netns_names(paths).into_iter().map(|name| (paths.netns_root().join(&name), name)).collect();
    if let Ok(pods) = std::fs::read_dir(paths.pod_netns()) {
        namespaces.extend(
            pods.flatten().map(|pod| (pod.path(), format!("pod namespace {}", pod.path().display()))),
        );
    }
    let known: Vec<((u64, u64), String)> =
        namespaces.into_iter().filter_map(|(path, what)| Some((namespace_id(&path)?, what))).collect();
    if known.is_empty() {
        return Vec::new();
    }
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let own = namespace_id(Path::new("/proc/self/ns/net"));
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let inside = namespace_id(Path::new(&format!("/proc/{pid}/ns/net")))?;
            // An unbound name is an ordinary file: it never equals a process's namespace.
            let (_, what) = known.iter().find(|(id, _)| *id == inside && Some(*id) != own)?;
            Some((pid, what.clone()))
        })
        .collect()
}

fn namespace_id(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn netns_names(paths: &Paths) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(paths.netns_root()) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| paths.owns_netns(name))
        .collect();
    names.sort();
    names
}

/// The fabric's group on every cgroup v2 hierarchy mounted.
fn cgroups(paths: &Paths) -> Vec<PathBuf> {
    let mounts = mounts::list().unwrap_or_default();
    let mut found: Vec<PathBuf> = mounts
        .iter()
        .filter(|mount| mount.kind == "cgroup2")
        .map(|mount| paths.cgroup(&mount.point))
        .filter(|group| group.exists())
        .collect();
    found.sort();
    found.dedup();
    found
}

fn unmount_all(paths: &Paths, failures: &mut Failures) {
    for mount in mounts::under(&paths.root()).unwrap_or_default() {
        if mount.kind == "cgroup2" {
            // Unmounted or not, the hierarchy is the machine's; our groups in it go first.
            let group = paths.cgroup(&mount.point);
            failures.note(|| format!("cgroup {}", group.display()), cgroup::remove(&group, KILL_PATIENCE));
            remove_if_empty(group.parent());
        }
        failures.note(|| format!("mount {}", mount.point.display()), mounts::unmount(&mount.point));
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Directories shared by fabrics go with the last one; `rmdir` refuses while another is in it.
fn remove_if_empty(directory: Option<&Path>) {
    if let Some(directory) = directory {
        let _ = std::fs::remove_dir(directory);
    }
}

fn wait_for_end(process: Identity, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while process.is_alive() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
