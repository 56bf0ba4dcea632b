//! A pod's own network namespace: made with loopback up, kept alive by a bind mount, removed.
//! Interfaces other than loopback are the CNI plugin's.
use std::fs::File;
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::bundle::at;

/// Makes a namespace and pins it at `path`. Blocks: it needs a thread of its own.
pub fn create(path: &Path) -> io::Result<()> {
    let path = path.to_owned();
    std::thread::spawn(move || {
        File::create_new(&path).map_err(|error| at(&path, error))?;
        create_in_this_thread(&path).inspect_err(|_| {
            // The caller is told the first failure; this only leaves nothing behind.
            let _ = remove(&path);
        })
    })
    .join()
    .map_err(|_| io::Error::other("the thread that makes a network namespace panicked"))?
}

fn create_in_this_thread(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    bring_loopback_up()?;
    // As container runtimes do: a program needs no privilege for low ports and ping inside its own pod.
    write_sysctl("net/ipv4/ip_unprivileged_port_start", "0")?;
    write_sysctl("net/ipv4/ping_group_range", "0 2147483647")?;
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|errno| at(path, errno.into()))
}

fn write_sysctl(name: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys").join(name);
    std::fs::write(&path, value).map_err(|error| at(&path, error))
}

fn bring_loopback_up() -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an all-zero ifreq is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: `request` outlives the call and names an interface.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets the namespace go. Removing what is already gone is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(at(path, errno.into())),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "../../../tests/skip.rs"]
mod skip;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_new_has_loopback_up_and_goes_away() {
        if !nix::unistd::Uid::effective().is_root() {
            return skip::skip("a_namespace_is_new_has_loopback_up_and_goes_away", "needs root");
        }
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pod");
        create(&path).expect("made");
        let netns = File::open(&path).expect("pinned");
        let seen = std::thread::spawn(move || {
            nix::sched::setns(netns, CloneFlags::CLONE_NEWNET).expect("entered");
            let listener = std::net::TcpListener::bind("127.0.0.1:80").expect("loopback has its address");
            std::net::TcpStream::connect(listener.local_addr().expect("bound")).map(|_| ())
        });
        seen.join().expect("no panic").expect("loopback is up");
        remove(&path).expect("removed");
        remove(&path).expect("removing again is fine");
        assert!(!path.exists());
    }
}
