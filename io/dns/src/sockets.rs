//! Listening sockets, opened in the node's network namespace. What is done with them lives in `serve`.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt};

use crate::{Config, Error};

/// linux/in6.h; not in libc for every target.
const IPV6_FREEBIND: libc::c_int = 78;
const BACKLOG: i32 = 1024;
/// Bursts wait here while the one reader of a socket is busy.
const RECEIVE_BUFFER: usize = 4 << 20;
/// More readers than this share nothing but the lock on the network device.
const MOST_READERS: usize = 8;

/// For each reader its own UDP sockets and TCP listeners, one of each for every address; those of an address share its port
/// (SO_REUSEPORT), so that no two threads wait for one queue.
pub struct Listening {
    pub readers: Vec<Sockets>,
}

#[derive(Default)]
pub struct Sockets {
    pub udp: Vec<UdpSocket>,
    pub tcp: Vec<TcpListener>,
}

impl Listening {
    /// Those of a predecessor where they are of the right addresses, else new ones.
    pub async fn open(config: &Config, predecessor: Option<Self>) -> Result<Self, Error> {
        if config.listen.is_empty() {
            return Err(Error::NothingToListenOn);
        }
        let mut config = config.clone();
        let mut listening = predecessor.unwrap_or(Self { readers: Vec::new() });
        listening.keep(&mut config);
        if config.listen.is_empty() {
            return Ok(listening);
        }
        let opened = Self::open_new(config).await?;
        Ok(listening.join(opened))
    }

    /// Only addresses that are asked for; those that are open need not be opened.
    fn keep(&mut self, config: &mut Config) {
        let is_asked = |address: io::Result<SocketAddr>| {
            address.is_ok_and(|address| {
                config.listen.contains(&address.ip()) && (config.port == 0 || config.port == address.port())
            })
        };
        for reader in &mut self.readers {
            reader.udp.retain(|socket| is_asked(socket.local_addr()));
            reader.tcp.retain(|listener| is_asked(listener.local_addr()));
        }
        let open: Vec<SocketAddr> = self.addresses();
        config.listen.retain(|ip| !open.iter().any(|address| address.ip() == *ip));
        self.readers.retain(|reader| !reader.udp.is_empty() || !reader.tcp.is_empty());
    }

    fn join(mut self, other: Self) -> Self {
        for (index, sockets) in other.readers.into_iter().enumerate() {
            match self.readers.get_mut(index) {
                Some(reader) => {
                    reader.udp.extend(sockets.udp);
                    reader.tcp.extend(sockets.tcp);
                }
                None => self.readers.push(sockets),
            }
        }
        self
    }

    /// Other descriptors of the same sockets.
    pub fn try_clone(&self) -> io::Result<Self> {
        let clone = |reader: &Sockets| -> io::Result<Sockets> {
            let udp = reader.udp.iter().map(UdpSocket::try_clone).collect::<io::Result<_>>()?;
            let tcp = reader.tcp.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
            Ok(Sockets { udp, tcp })
        };
        Ok(Self { readers: self.readers.iter().map(clone).collect::<io::Result<_>>()? })
    }

    async fn open_new(config: Config) -> Result<Self, Error> {
        // A thread of its own: a network namespace is a property of the thread, and this one ends with it.
        let (send, receive) = tokio::sync::oneshot::channel();
        let opened = std::thread::Builder::new().name("open-sockets".to_owned()).spawn(move || {
            let _ = send.send(enter(config.netns.as_deref()).and_then(|()| Self::open_here(&config)));
        });
        let here = |source| Error::Namespace { path: "/proc/thread-self/ns/net".into(), source };
        opened.map_err(here)?;
        receive.await.map_err(|_| here(io::Error::other("the thread that opens sockets ended early")))?
    }

    fn open_here(config: &Config) -> Result<Self, Error> {
        let readers = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_READERS);
        let mut listening = Self { readers: (0..readers).map(|_| Sockets::default()).collect() };
        for ip in &config.listen {
            let any = SocketAddr::new(*ip, config.port);
            let port = if config.port == 0 {
                free_port(any).map_err(listen_error(any, "UDP"))?
            } else {
                config.port
            };
            let address = SocketAddr::new(*ip, port);
            match (0..readers).map(|_| pair(address)).collect::<Result<Vec<_>, _>>() {
                Ok(pairs) => listening.add(pairs),
                Err(error) if config.optional.contains(ip) => {
                    tracing::warn!("{error}; the other addresses are served");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(listening)
    }

    /// One pair for each reader.
    fn add(&mut self, pairs: Vec<(UdpSocket, TcpListener)>) {
        for (reader, (udp, tcp)) in self.readers.iter_mut().zip(pairs) {
            reader.udp.push(udp);
            reader.tcp.push(tcp);
        }
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        let first = self.readers.first().map_or(&[][..], |reader| &reader.tcp);
        first.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }
}

/// Bound to all addresses of its family, a socket must be told which one to answer from: the one that was asked.
pub fn is_bound_to_all(socket: &UdpSocket) -> bool {
    socket.local_addr().is_ok_and(|address| address.ip().is_unspecified())
}

/// A port that is free for UDP and TCP alike. Sockets that would share a port find one that another server already
/// shares, and one that only UDP has free; so it is looked for with sockets that share nothing.
fn free_port(any: SocketAddr) -> io::Result<u16> {
    let mut last = io::ErrorKind::AddrInUse.into();
    for _ in 0..32 {
        let udp = UdpSocket::bind(any)?;
        let address = udp.local_addr()?;
        match TcpListener::bind(address) {
            Ok(_) => return Ok(address.port()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn pair(address: SocketAddr) -> Result<(UdpSocket, TcpListener), Error> {
    let udp = udp(address).map_err(listen_error(address, "UDP"))?;
    Ok((udp, tcp(address).map_err(listen_error(address, "TCP"))?))
}

fn listen_error(address: SocketAddr, transport: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Listen { address, transport, source }
}

/// What to do about a failed bind.
pub fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another name server runs there: stop it, or give this one another address"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

fn enter(netns: Option<&Path>) -> Result<(), Error> {
    let Some(path) = netns else { return Ok(()) };
    let failed = |source| Error::Namespace { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    setns(&file, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))
}

fn udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = bound(address, SockType::Datagram)?;
    match address {
        _ if !address.ip().is_unspecified() => {}
        SocketAddr::V4(_) => set_int(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?,
        SocketAddr::V6(_) => set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?,
    }
    let udp = UdpSocket::from(socket);
    udp.set_nonblocking(true)?;
    Ok(udp)
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound(address, SockType::Stream)?;
    socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    let tcp = TcpListener::from(socket);
    tcp.set_nonblocking(true)?;
    Ok(tcp)
}

fn bound(address: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket::socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // The address may be put on the node's loopback after this, and a successor may listen before this one ends.
    match address {
        SocketAddr::V4(_) => socket::setsockopt(&socket, sockopt::IpFreebind, &true)?,
        SocketAddr::V6(_) => {
            socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            set_int(&socket, libc::IPPROTO_IPV6, IPV6_FREEBIND, 1)?;
        }
    }
    match kind {
        // More than the system's limit for everybody needs CAP_NET_ADMIN; without, it is as much as that limit.
        SockType::Datagram => socket::setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .or_else(|_| socket::setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER))?,
        _ => socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?,
    }
    socket::setsockopt(&socket, sockopt::ReusePort, &true)?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

fn set_int(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel reads `size` bytes of an int that lives through the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
