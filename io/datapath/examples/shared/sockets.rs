//! Sockets and threads as the benchmarks want them: cubic, one CPU. What they send is the benchmarks' own.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, socket};
use nix::unistd::Pid;

pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("the CPU's number is small");
    sched_setaffinity(Pid::from_raw(0), &set).expect("pinning a thread of one's own");
}

/// The default here may be another algorithm, which would measure itself. Before a socket connects: one that began with
/// BBR keeps its pacing for good.
pub fn use_cubic(socket: BorrowedFd<'_>) {
    let name = b"cubic";
    // SAFETY: the option's value is as long as said.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_CONGESTION,
            name.as_ptr().cast(),
            name.len() as u32,
        )
    };
    assert_eq!(result, 0, "cubic: {}", std::io::Error::last_os_error());
}

pub fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    use_cubic(socket.as_fd());
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}
