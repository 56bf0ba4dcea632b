//! The cgroup v2 tree of a fabric: find the hierarchy, make groups, kill and remove whole subtrees.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::mounts::Mount;

const USUAL_MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The mount point of the cgroup v2 hierarchy, the usual places first.
pub fn find_mount(mounts: &[Mount]) -> Option<PathBuf> {
    let v2: Vec<&Mount> = mounts.iter().filter(|mount| mount.kind == "cgroup2").collect();
    let usual =
        USUAL_MOUNTS.iter().map(PathBuf::from).find(|usual| v2.iter().any(|mount| mount.point == *usual));
    usual.or_else(|| v2.first().map(|mount| mount.point.clone()))
}

/// Makes the group and those above it. No controllers are enabled: the groups hold socket programs, not limits.
pub fn create(group: &Path) -> io::Result<()> {
    std::fs::create_dir_all(group)
}

/// The processes in a group and all groups below it.
pub fn processes(group: &Path) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for directory in subtree(group)? {
        match std::fs::read_to_string(directory.join("cgroup.procs")) {
            Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
            Err(e) if gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// Kills everything in the subtree with SIGKILL and waits until it is empty.
pub fn kill(group: &Path, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match std::fs::write(group.join("cgroup.kill"), "1") {
            Err(e) if gone(&e) => return Ok(()),
            other => other?,
        }
        let left = processes(group)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("processes {left:?} do not end")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes a group and all below it; they must hold no processes. The kernel may need a moment after the
/// last process ended.
pub fn remove(group: &Path, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let mut failed = None;
        for directory in subtree(group)?.into_iter().rev() {
            match std::fs::remove_dir(&directory) {
                Err(e) if !gone(&e) => {
                    failed = Some(io::Error::new(e.kind(), format!("{}: {e}", directory.display())))
                }
                _ => {}
            }
        }
        match failed {
            None => return Ok(()),
            Some(e) if Instant::now() > deadline => return Err(e),
            Some(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The group and all below it, parents before children.
fn subtree(group: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut next = vec![group.to_owned()];
    while let Some(directory) = next.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(e) if gone(&e) => continue,
            Err(e) => return Err(e),
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                next.push(entry.path());
            }
        }
        found.push(directory);
    }
    Ok(found)
}

/// ENODEV is what files of a group removed meanwhile answer.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(point: &str, kind: &str) -> Mount {
        Mount { point: point.into(), kind: kind.into() }
    }

    #[test]
    fn the_usual_mount_wins_over_odd_ones_and_v1_does_not_count() {
        let odd = at("/opt/cg2", "cgroup2");
        assert_eq!(find_mount(&[at("/sys/fs/cgroup", "tmpfs"), at("/sys/fs/cgroup/cpu", "cgroup")]), None);
        assert_eq!(find_mount(std::slice::from_ref(&odd)), Some("/opt/cg2".into()));
        let both = [odd.clone(), at("/sys/fs/cgroup/unified", "cgroup2")];
        assert_eq!(find_mount(&both), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_mount(&[odd, at("/sys/fs/cgroup", "cgroup2")]), Some("/sys/fs/cgroup".into()));
    }
}
