//! The private file-system view of one container: the host's tree with the pod's files and volumes laid over it,
//! without leaving a trace on the host. Called in a child that has its own mount namespace.
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use super::bundle::{Access, Mount, at};

/// A directory with more entries than this is not re-created entry by entry to gain one more.
const MOST_ENTRIES: usize = 2000;

// From linux/mount.h; libc does not name them on every target.
const OPEN_TREE_CLONE: u32 = 1;
const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC.cast_unsigned();
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 4;

/// Gives this process its own mount namespace, of which nothing gets back to the host's.
pub fn enter_private_namespace() -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    release_foreign_mounts()
}

/// Lays every mount over the tree. Returns what could not be mounted and why; the rest is in place.
pub fn lay(mounts: &[Mount], scratch: &Path) -> io::Result<Vec<String>> {
    let mut failures = Vec::new();
    let mut detached = Vec::new();
    // Every source is taken before anything is laid: a volume over /run must not hide the next one's source.
    for wanted in mounts {
        match DetachedMount::of(&wanted.source) {
            Ok(source) => detached.push((wanted, source)),
            Err(error) => failures.push(failure(wanted, &error)),
        }
    }
    // A parent before what is mounted inside it.
    detached.sort_by_key(|(wanted, _)| wanted.target.components().count());
    if detached.iter().any(|(wanted, _)| needs_new_root(&wanted.target)) {
        replace_root(scratch)?;
    }
    for (wanted, source) in detached {
        if let Err(error) = lay_one(wanted, &source) {
            failures.push(failure(wanted, &error));
        }
    }
    Ok(failures)
}

/// A copy of a mounted tree that is not yet attached anywhere.
struct DetachedMount(OwnedFd);

impl DetachedMount {
    fn of(path: &Path) -> io::Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE.cast_unsigned();
        // SAFETY: the path is a NUL-terminated string that outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, name.as_ptr(), flags) };
        if fd < 0 {
            return Err(at(path, io::Error::last_os_error()));
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn attach(&self, target: &Path) -> io::Result<()> {
        let name = CString::new(target.as_os_str().as_bytes()).map_err(io::Error::other)?;
        // SAFETY: both paths are NUL-terminated strings that outlive the call.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                name.as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn is_dir(&self) -> io::Result<bool> {
        Ok(nix::sys::stat::fstat(&self.0)?.st_mode & libc::S_IFMT == libc::S_IFDIR)
    }
}

fn needs_new_root(target: &Path) -> bool {
    let (ancestor, missing) = existing_ancestor(target);
    ancestor == Path::new("/") && missing != Path::new("")
}

fn failure(wanted: &Mount, error: &io::Error) -> String {
    format!("{} cannot be mounted: {error}", wanted.target.display())
}

/// The mounts whose copies would keep alive what somebody else means to take down: the bind mount of a namespace
/// file, and a file system of pinned BPF objects other than the system's own.
fn holds_foreign_things(filesystem: &str, target: &str) -> bool {
    match filesystem.split(' ').next() {
        Some("nsfs") => true,
        Some("bpf") => target != "/sys/fs/bpf",
        _ => false,
    }
}

fn release_foreign_mounts() -> io::Result<()> {
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines().rev() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let target = mount.split(' ').nth(4).map(unescape).unwrap_or_default();
        if !holds_foreign_things(filesystem, &target) {
            continue;
        }
        // One that is hidden under another mount cannot be reached by its path and is not ours to remove.
        let _ = umount2(Path::new(&target), MntFlags::MNT_DETACH);
    }
    Ok(())
}

/// Undoes the octal escapes of /proc/self/mountinfo.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| at(path, io::Error::from(errno)))
}

fn by_descriptor(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn lay_one(wanted: &Mount, source: &DetachedMount) -> io::Result<()> {
    let is_dir = source.is_dir()?;
    let target = match fs::metadata(&wanted.target) {
        Ok(found) if found.is_dir() == is_dir => wanted.target.clone(),
        Ok(_) => return Err(io::Error::other("one of volume and mount point is a directory, the other not")),
        Err(_) => make_mount_point(&wanted.target, is_dir)?,
    };
    source.attach(&target)?;
    if wanted.access == Access::ReadOnly {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, &target, None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}

fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    Ok(())
}

/// The deepest directory on the way to `target` that is there, with links resolved, and what is missing below it.
fn existing_ancestor(target: &Path) -> (PathBuf, PathBuf) {
    for ancestor in target.ancestors() {
        if let Ok(real) = fs::canonicalize(ancestor) {
            let missing = target.strip_prefix(ancestor).unwrap_or(Path::new("")).to_owned();
            return (real, missing);
        }
    }
    (PathBuf::from("/"), target.strip_prefix("/").unwrap_or(target).to_owned())
}

fn make_mount_point(target: &Path, is_dir: bool) -> io::Result<PathBuf> {
    let (ancestor, missing) = existing_ancestor(target);
    if missing.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(io::Error::other("the path must be absolute and without `..`"));
    }
    if ancestor != Path::new("/") {
        cover(&ancestor)?;
    }
    let made = ancestor.join(missing);
    if is_dir {
        fs::create_dir_all(&made)?;
    } else {
        fs::create_dir_all(made.parent().unwrap_or(Path::new("/")))?;
        fs::File::create(&made)?;
    }
    Ok(made)
}

/// Covers a directory with a writable copy of itself whose entries are the originals.
fn cover(dir: &Path) -> io::Result<()> {
    let original = open_path(dir)?;
    let entries = list(&by_descriptor(&original))?;
    let mode = fs::metadata(dir)?.permissions();
    mount_tmpfs(dir, mode.mode())?;
    populate(&by_descriptor(&original), dir, &entries)
}

/// The same for the root directory, which cannot be covered in place: a copy is built aside and becomes the root.
fn replace_root(scratch: &Path) -> io::Result<()> {
    let entries = list(Path::new("/"))?;
    mount_tmpfs(scratch, 0o755)?;
    populate(Path::new("/"), scratch, &entries)?;
    nix::unistd::chdir(scratch)?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;
    Ok(())
}

fn mount_tmpfs(target: &Path, mode: u32) -> io::Result<()> {
    let options = CString::new(format!("mode={:o},size=16m", mode & 0o7777)).map_err(io::Error::other)?;
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), Some(options.as_c_str()))?;
    Ok(())
}

fn list(dir: &Path) -> io::Result<BTreeMap<PathBuf, fs::FileType>> {
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        entries.insert(PathBuf::from(entry.file_name()), entry.file_type()?);
        if entries.len() > MOST_ENTRIES {
            return Err(io::Error::other(format!(
                "a directory for it would have to be made beside more than {MOST_ENTRIES} others"
            )));
        }
    }
    Ok(entries)
}

fn populate(from: &Path, to: &Path, entries: &BTreeMap<PathBuf, fs::FileType>) -> io::Result<()> {
    for (name, kind) in entries {
        let (source, target) = (from.join(name), to.join(name));
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
            continue;
        }
        if kind.is_dir() {
            fs::create_dir(&target)?;
        } else {
            fs::File::create(&target)?;
        }
        if let Err(error) = bind(&source, &target) {
            // Others work in the same directories: an entry that went away meanwhile is left out.
            if source.exists() {
                return Err(at(&source, error));
            }
            if kind.is_dir() {
                fs::remove_dir(&target)?
            } else {
                fs::remove_file(&target)?
            };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_from_the_resolved_part_on() {
        let (found, missing) = existing_ancestor(Path::new("/usr/bin/../bin/not/there"));
        assert_eq!(
            (found, missing),
            (fs::canonicalize("/usr/bin").expect("/usr/bin"), PathBuf::from("not/there"))
        );
        let (found, missing) = existing_ancestor(Path::new("/no-such-top-level/x"));
        assert_eq!((found, missing), (PathBuf::from("/"), PathBuf::from("no-such-top-level/x")));
    }

    #[test]
    fn copies_that_would_outlive_their_owner_are_known() {
        assert!(holds_foreign_things("nsfs nsfs rw", "/run/netns/x"));
        assert!(holds_foreign_things("bpf bpf rw,mode=700", "/run/weft/other/bpf"));
        assert!(!holds_foreign_things("bpf bpf rw,mode=700", "/sys/fs/bpf"));
        assert!(!holds_foreign_things("tmpfs tmpfs rw", "/run"));
    }

    #[test]
    fn mount_table_escapes_are_undone() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }
}
