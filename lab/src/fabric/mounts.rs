//! What is mounted where: reading the mount table, mounting bpffs and cgroup v2, unmounting a whole subtree.

use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    pub kind: String,
}

/// The mounts this process sees, oldest first.
pub fn list() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

/// The mounts at and under a directory, innermost and newest first: the order to take them down in.
pub fn under(directory: &Path) -> io::Result<Vec<Mount>> {
    let mut found: Vec<Mount> =
        list()?.into_iter().filter(|mount| mount.point.starts_with(directory)).collect();
    found.reverse();
    Ok(found)
}

pub fn mount_bpffs(at: &Path) -> io::Result<()> {
    mount_kind("bpf", at, Some("mode=0700"))
}

pub fn mount_cgroup2(at: &Path) -> io::Result<()> {
    mount_kind("cgroup2", at, None)
}

fn mount_kind(kind: &str, at: &Path, options: Option<&str>) -> io::Result<()> {
    std::fs::create_dir_all(at)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some(kind), at, Some(kind), flags, options)?)
}

/// Takes the newest mount off `point`.
pub fn unmount(point: &Path) -> io::Result<()> {
    match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn parse(table: &str) -> Vec<Mount> {
    table.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let (head, tail) = line.split_once(" - ")?;
    let point = head.split(' ').nth(4)?;
    let kind = tail.split(' ').next()?;
    Some(Mount { point: PathBuf::from(unescape(point)), kind: kind.to_owned() })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_points_kinds_and_escapes() {
        let table = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
                     40 35 0:33 / /run/weft/a\\040b/bpf rw - bpf bpf rw,mode=700\n\
                     broken line\n";
        let expected = [
            Mount { point: "/mnt2".into(), kind: "ext3".into() },
            Mount { point: "/run/weft/a b/bpf".into(), kind: "bpf".into() },
        ];
        assert_eq!(parse(table), expected);
    }

    #[test]
    fn the_running_kernel_lists_proc() {
        assert!(
            list().unwrap().iter().any(|mount| mount.point == Path::new("/proc") && mount.kind == "proc")
        );
    }
}
