//! Asking and telling the local network who has an address: ARP (RFC 826, RFC 5227) and NDP (RFC 4861, RFC 4862) on one
//! link. Requests for announced addresses are answered by a program (bpf/lib/announce.h); when to ask and to tell is
//! decided in core/decide.

mod frames;

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weft_abi::Mac;
use weft_model::{Addr, Family};

const LARGEST_FRAME: usize = 256;
const NEXT_HEADER: u32 = 14 + 6;
const ICMP_TYPE: u32 = 14 + 40;
const ICMPV6: u32 = 58;
const ADVERTISEMENT: u32 = 136;

#[derive(Debug, thiserror::Error)]
#[error("neighbours of {device}: cannot {action}: {source}")]
pub struct NeighbourError {
    device: String,
    action: &'static str,
    source: io::Error,
}

/// Another machine says that it has the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heard {
    pub addr: Addr,
    pub from: Mac,
}

pub struct Neighbours {
    device: String,
    index: i32,
    mac: Mac,
    arp: OwnedFd,
    ndp: OwnedFd,
}

impl Neighbours {
    /// On a device of the calling thread's network namespace.
    pub fn open(device: &str) -> Result<Self, NeighbourError> {
        let failed = |action| move |source| NeighbourError { device: device.to_owned(), action, source };
        let arp = packet_socket().map_err(failed("open a socket"))?;
        let ndp = packet_socket().map_err(failed("open a socket"))?;
        let mut request = interface_request(device).map_err(failed("name it to the kernel"))?;
        // SAFETY: the request is a whole ifreq, and lives through the calls.
        let index = unsafe {
            control(&arp, libc::SIOCGIFINDEX, &mut request).map_err(failed("find it"))?;
            request.ifr_ifru.ifru_ifindex
        };
        // SAFETY: as above; the kernel has filled in a hardware address.
        let mac = unsafe {
            control(&arp, libc::SIOCGIFHWADDR, &mut request).map_err(failed("read its link address"))?;
            let data = request.ifr_ifru.ifru_hwaddr.sa_data;
            Mac([0, 1, 2, 3, 4, 5].map(|at: usize| data[at] as u8))
        };
        keep_advertisements(&ndp).map_err(failed("filter"))?;
        bind(&arp, index, libc::ETH_P_ARP).map_err(failed("listen"))?;
        bind(&ndp, index, libc::ETH_P_IPV6).map_err(failed("listen"))?;
        Ok(Self { device: device.to_owned(), index, mac, arp, ndp })
    }

    /// Who has this address? A machine that does answers so that `poll` hears it.
    pub fn probe(&self, addr: Addr) -> Result<(), NeighbourError> {
        self.send(&frames::probe(addr, self.mac), "probe")
    }

    /// This machine has the address: caches of others change at once.
    pub fn announce(&self, addr: Addr) -> Result<(), NeighbourError> {
        self.send(&frames::announcement(addr, self.mac), "announce")
    }

    /// Listens on the link for who asks for an IPv6 address, also when this process is gone. A member stays one however
    /// often it joins.
    pub fn join(&self, group: Mac) -> Result<(), NeighbourError> {
        self.membership(libc::SIOCADDMULTI, group, libc::EEXIST, "join a group")
    }

    pub fn leave(&self, group: Mac) -> Result<(), NeighbourError> {
        self.membership(libc::SIOCDELMULTI, group, libc::ENOENT, "leave a group")
    }

    /// The link-layer group in which an address is asked for; IPv4 is asked for by broadcast.
    pub fn group(addr: Addr) -> Option<Mac> {
        (addr.family() == Family::V6).then(|| frames::solicited_mac(addr))
    }

    /// What others said meanwhile, or until `patience` is over.
    pub fn poll(&self, patience: Duration) -> Result<Vec<Heard>, NeighbourError> {
        let mut ready = [
            PollFd::new(self.arp.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.ndp.as_fd(), PollFlags::POLLIN),
        ];
        let millis = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX);
        match poll(&mut ready, PollTimeout::from(millis)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(self.failed("wait", error.into())),
        }
        let mut heard = Vec::new();
        for socket in [&self.arp, &self.ndp] {
            let mut frame = [0; LARGEST_FRAME];
            while let Some(length) = self.receive(socket, &mut frame)? {
                let said = frames::claimed(&frame[..length.min(LARGEST_FRAME)]);
                heard.extend(said.filter(|said| said.from != self.mac));
            }
        }
        Ok(heard)
    }

    fn receive(&self, socket: &OwnedFd, frame: &mut [u8]) -> Result<Option<usize>, NeighbourError> {
        // SAFETY: the kernel writes at most the length given into the buffer given.
        let length = unsafe { libc::recv(socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        match usize::try_from(length) {
            Ok(length) => Ok(Some(length)),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                // The link went down: there is nothing to hear until it is up.
                error if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(None),
                error => Err(self.failed("listen", error)),
            },
        }
    }

    fn send(&self, frame: &[u8], action: &'static str) -> Result<(), NeighbourError> {
        // SAFETY: an all-zero sockaddr_ll is valid.
        let mut to: libc::sockaddr_ll = unsafe { zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = self.index;
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(&frame[..6]);
        // SAFETY: frame and address live through the call and have the lengths given.
        let sent = unsafe {
            libc::sendto(
                self.arp.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        if sent < 0 { Err(self.failed(action, io::Error::last_os_error())) } else { Ok(()) }
    }

    fn membership(
        &self,
        request: libc::c_ulong,
        group: Mac,
        already: i32,
        action: &'static str,
    ) -> Result<(), NeighbourError> {
        let mut interface = interface_request(&self.device).map_err(|error| self.failed(action, error))?;
        // SAFETY: the union holds a hardware address of no family, as these requests want it (netdevice(7)).
        let done = unsafe {
            let mut address: libc::sockaddr = zeroed();
            for (to, from) in address.sa_data.iter_mut().zip(group.0) {
                *to = from as libc::c_char;
            }
            interface.ifr_ifru.ifru_hwaddr = address;
            control(&self.arp, request, &mut interface)
        };
        match done {
            Err(error) if error.raw_os_error() != Some(already) => Err(self.failed(action, error)),
            _ => Ok(()),
        }
    }

    fn failed(&self, action: &'static str, source: io::Error) -> NeighbourError {
        NeighbourError { device: self.device.clone(), action, source }
    }
}

/// Of no protocol yet: nothing arrives before the filter is in place.
fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the descriptor is owned by nobody else.
    unsafe {
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        match libc::socket(libc::AF_PACKET, flags, 0) {
            fd if fd < 0 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn bind(socket: &OwnedFd, index: i32, protocol: i32) -> io::Result<()> {
    // SAFETY: an all-zero sockaddr_ll is valid, and it lives through the call.
    let done = unsafe {
        let mut address: libc::sockaddr_ll = zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (protocol as u16).to_be();
        address.sll_ifindex = index;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn interface_request(device: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// # Safety
/// The request is one that takes an ifreq.
unsafe fn control(socket: &OwnedFd, request: libc::c_ulong, interface: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: by the caller's promise; the ifreq lives through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &raw mut *interface) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Of all IPv6 only neighbour advertisements reach the process.
fn keep_advertisements(socket: &OwnedFd) -> io::Result<()> {
    let load = |at| libc::sock_filter { code: 0x30, jt: 0, jf: 0, k: at };
    let unless = |value, skip| libc::sock_filter { code: 0x15, jt: 0, jf: skip, k: value };
    let accept = |bytes| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: bytes };
    let mut program = [
        load(NEXT_HEADER),
        unless(ICMPV6, 3),
        load(ICMP_TYPE),
        unless(ADVERTISEMENT, 1),
        accept(LARGEST_FRAME as u32),
        accept(0),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program lives through the call, which copies it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
