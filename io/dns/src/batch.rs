//! Datagrams by the batch: one system call receives many, one sends their answers. What they say is not looked at.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::ptr;

use crate::reply::LARGEST_UDP;

pub const BATCH: usize = 64;
/// No question is longer; what is cut off is refused as malformed.
const LARGEST_QUESTION: usize = 2048;
const CONTROL: usize = 64;

/// Who sent a datagram, as the kernel writes it, and the address it was sent to where the socket is bound to all.
#[derive(Clone, Copy)]
pub struct Client {
    name: libc::sockaddr_in6,
    length: libc::socklen_t,
    asked: Option<IpAddr>,
}

impl Client {
    fn nobody() -> Self {
        // SAFETY: all zeroes is a value of this plain C struct.
        let name = unsafe { std::mem::zeroed() };
        Self { name, length: size_of::<libc::sockaddr_in6>() as libc::socklen_t, asked: None }
    }

    pub fn address(&self) -> IpAddr {
        if i32::from(self.name.sin6_family) == libc::AF_INET {
            // SAFETY: the family says that the kernel wrote a sockaddr_in, which is smaller and no more strictly aligned.
            let name = unsafe { &*ptr::from_ref(&self.name).cast::<libc::sockaddr_in>() };
            return Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr)).into();
        }
        Ipv6Addr::from(self.name.sin6_addr.s6_addr).to_canonical()
    }
}

/// Buffers of one thread.
pub struct Batch {
    questions: Box<[[u8; LARGEST_QUESTION]]>,
    lengths: [usize; BATCH],
    pub clients: Box<[Client]>,
    answers: Box<[[u8; LARGEST_UDP as usize]]>,
    /// Which client each answer is for, and how long it is.
    to_send: Vec<(usize, usize)>,
    controls: Box<[Control]>,
    vectors: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
    /// Headers, from the first on, that the last calls have changed.
    used: usize,
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

// SAFETY: the pointers in `vectors` and `headers` lead to boxes of the same struct, which stay where they are.
unsafe impl Send for Batch {}

impl Batch {
    pub fn new() -> Self {
        // SAFETY: all zeroes is a value of these plain C structs.
        let (vector, header) = unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        Self {
            questions: vec![[0; LARGEST_QUESTION]; BATCH].into(),
            lengths: [0; BATCH],
            clients: vec![Client::nobody(); BATCH].into(),
            answers: vec![[0; LARGEST_UDP as usize]; BATCH].into(),
            to_send: Vec::with_capacity(BATCH),
            controls: vec![Control([0; CONTROL]); BATCH].into(),
            vectors: vec![vector; BATCH].into(),
            headers: vec![header; BATCH].into(),
            used: BATCH,
        }
    }

    /// The question, and room for its answer.
    pub fn both(&mut self, index: usize) -> (&[u8], &mut [u8]) {
        (&self.questions[index][..self.lengths[index]], &mut self.answers[index])
    }

    /// The answer written for question `index` is to be sent.
    pub fn answered(&mut self, index: usize, length: usize) {
        self.to_send.push((index, length));
    }

    /// How many were received; none when there are none.
    pub fn receive(&mut self, socket: &UdpSocket, bound_to_all: bool) -> io::Result<usize> {
        self.to_send.clear();
        for index in 0..self.used {
            self.vectors[index] = libc::iovec {
                iov_base: self.questions[index].as_mut_ptr().cast(),
                iov_len: LARGEST_QUESTION,
            };
            let header = &mut self.headers[index].msg_hdr;
            header.msg_name = ptr::from_mut(&mut self.clients[index].name).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            header.msg_iov = &raw mut self.vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
        }
        // SAFETY: the headers lead to buffers of this struct with the lengths given, which live through the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        if received < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(0) } else { Err(error) };
        }
        let received = received as usize;
        self.used = received;
        for index in 0..received {
            self.lengths[index] = (self.headers[index].msg_len as usize).min(LARGEST_QUESTION);
            let header = &self.headers[index].msg_hdr;
            self.clients[index].length = header.msg_namelen;
            self.clients[index].asked = if bound_to_all { asked(header) } else { None };
        }
        Ok(received)
    }

    /// Sends the answers; how many could not be sent.
    pub fn send(&mut self, socket: &UdpSocket) -> usize {
        let count = self.to_send.len();
        for (place, (index, length)) in self.to_send.iter().enumerate() {
            self.vectors[place] =
                libc::iovec { iov_base: self.answers[*index].as_mut_ptr().cast(), iov_len: *length };
            let client = &mut self.clients[*index];
            let header = &mut self.headers[place].msg_hdr;
            header.msg_name = ptr::from_mut(&mut client.name).cast();
            header.msg_namelen = client.length;
            header.msg_iov = &raw mut self.vectors[place];
            header.msg_iovlen = 1;
            (header.msg_control, header.msg_controllen) = (ptr::null_mut(), 0);
            if let Some(asked) = client.asked {
                let control = &mut self.controls[place].0;
                header.msg_controllen = write_source(control, asked) as _;
                header.msg_control = control.as_mut_ptr().cast();
            }
        }
        self.to_send.clear();
        let (mut at, mut failed) = (0, 0);
        while at < count {
            // SAFETY: as in `receive`; the headers from `at` to `count` were set above.
            let sent = unsafe {
                let rest = self.headers.as_mut_ptr().add(at);
                libc::sendmmsg(socket.as_raw_fd(), rest, (count - at) as libc::c_uint, 0)
            };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 => at += sent,
                // The one it stopped at is given up, the others may do better.
                _ => (at, failed) = (at + 1, failed + 1),
            }
        }
        failed
    }
}

/// Sends one answer to who asked, from the address that was asked.
pub fn send(socket: &UdpSocket, client: &Client, answer: &[u8]) -> io::Result<()> {
    let mut client = *client;
    let mut vector = libc::iovec { iov_base: answer.as_ptr().cast_mut().cast(), iov_len: answer.len() };
    let mut control = Control([0; CONTROL]);
    // SAFETY: all zeroes is a value of this plain C struct.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = ptr::from_mut(&mut client.name).cast();
    header.msg_namelen = client.length;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    if let Some(asked) = client.asked {
        header.msg_controllen = write_source(&mut control.0, asked) as _;
        header.msg_control = control.0.as_mut_ptr().cast();
    }
    // SAFETY: the header leads to values that live through the call; the kernel only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The address a datagram was sent to, from its control messages (IP_PKTINFO, IPV6_PKTINFO).
fn asked(header: &libc::msghdr) -> Option<IpAddr> {
    // SAFETY: the kernel has written well-formed control messages and their length into the header.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = message.as_ref() {
            match (found.cmsg_level, found.cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = ptr::read_unaligned(libc::CMSG_DATA(message).cast::<libc::in_pktinfo>());
                    return Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = ptr::read_unaligned(libc::CMSG_DATA(message).cast::<libc::in6_pktinfo>());
                    return Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

/// Has the kernel send from `source`; returns the length of the control message.
fn write_source(control: &mut [u8; CONTROL], source: IpAddr) -> usize {
    match source {
        IpAddr::V4(address) => {
            let any = libc::in_addr { s_addr: 0 };
            let source = libc::in_addr { s_addr: u32::from(address).to_be() };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: any };
            write_control(control, libc::IPPROTO_IP, libc::IP_PKTINFO, info)
        }
        IpAddr::V6(address) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: address.octets() },
                ipi6_ifindex: 0,
            };
            write_control(control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
        }
    }
}

fn write_control<T>(control: &mut [u8; CONTROL], level: libc::c_int, kind: libc::c_int, value: T) -> usize {
    let size = size_of::<T>() as libc::c_uint;
    // SAFETY: both kinds of value fit into the buffer with their header, and the buffer is aligned as a header is (`Control`).
    unsafe {
        let header = control.as_mut_ptr().cast::<libc::cmsghdr>();
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(size) as _;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast::<T>(), value);
        libc::CMSG_SPACE(size) as usize
    }
}
