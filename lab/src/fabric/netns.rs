//! Named network namespaces: make, enter, remove. What is put into them is `network`'s.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Makes the directory of named namespaces the way `ip netns` does, so that both see each other's.
/// Says whether this call made it a mount point.
pub fn prepare_root(root: &Path) -> io::Result<bool> {
    std::fs::create_dir_all(root)?;
    let shared =
        || mount(None::<&str>, root, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    if shared().is_ok() {
        return Ok(false);
    }
    mount(Some(root), root, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    shared()?;
    Ok(true)
}

/// Gives the directory back when nobody uses it any more. A namespace of somebody else keeps it.
pub fn release_root(root: &Path) -> io::Result<()> {
    let empty = match std::fs::read_dir(root) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    if empty && umount2(root, MntFlags::UMOUNT_NOFOLLOW).is_ok() {
        // Somebody may have put a name into it meanwhile; then it stays.
        let _ = std::fs::remove_dir(root);
    }
    Ok(())
}

/// Makes a new namespace and binds it at `path`.
pub fn create(path: &Path) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    let bound = on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        Ok(())
    });
    if bound.is_err() {
        let _ = std::fs::remove_file(path);
    }
    bound
}

/// Unbinds a namespace and removes its name; the kernel frees it when the last process in it ends.
pub fn remove(path: &Path) -> io::Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // More than one mount may lie on the name.
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break,
            Err(e) => return Err(e.into()),
        }
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Runs `work` on a thread of its own inside the namespace bound at `path`.
pub fn within<T: Send>(path: &Path, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let namespace = File::open(path)?;
    on_thread(move || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

/// A thread that changed its namespace must not be reused, so each piece of work gets a fresh one.
fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    })
}
