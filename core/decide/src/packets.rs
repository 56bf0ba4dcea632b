//! Bytes of an Ethernet frame to what the datapath looks at (RFC 791, 8200, 9293, 768, 9260, 792, 4443). No decision lives here.

use weft_model::{Addr, Port, Protocol, Reason};

use crate::icmp;

/// An IP packet as the datapath sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: Addr,
    pub destination: Addr,
    pub hop_limit: u8,
    /// What follows the IP header may be broken where that does not matter yet.
    pub body: Result<Body, Unreadable>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body {
    /// Past IPv6's extension headers. In a later fragment, as its fragment header has it.
    pub protocol: Protocol,
    /// Both are the identifier of an ICMP echo; zero where a protocol has no ports.
    pub source_port: Port,
    pub destination_port: Port,
    pub tcp: TcpFlags,
    pub fragment: Fragment,
    /// The flow an ICMP error speaks of.
    pub quoted: Option<Quoted>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;

    pub fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    /// The first packet of a connection.
    pub fn opens(self) -> bool {
        self.has(Self::SYN) && !self.has(Self::ACK)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    Whole,
    First(FragmentId),
    Later(FragmentId),
}

/// With both addresses, what fragments of one packet share. The protocol is the one beside the identification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentId {
    pub protocol: Protocol,
    pub number: u32,
}

/// The packet that an ICMP error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted {
    pub source: Addr,
    pub destination: Addr,
    pub protocol: Protocol,
    pub source_port: Port,
    pub destination_port: Port,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("neither IPv4 nor IPv6")]
    NotIp,
    #[error("the {0} is broken or too short")]
    Malformed(Header),
}

impl Unreadable {
    pub fn reason(self) -> Reason {
        match self {
            Self::NotIp => Reason::NotIp,
            Self::Malformed(_) => Reason::Malformed,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    Ethernet,
    Ipv4,
    Ipv6,
    Extension,
    Tcp,
    Udp,
    Sctp,
    Icmp,
}

impl std::fmt::Display for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?} header")
    }
}

const ETHERNET: usize = 14;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// The kernel's program needs a bound; honest packets have two at most.
const MOST_EXTENSIONS: usize = 8;

impl Packet {
    pub fn parse(frame: &[u8]) -> Result<Self, Unreadable> {
        let ethertype = frame.get(12..ETHERNET).ok_or(Unreadable::Malformed(Header::Ethernet))?;
        let (ip, rest) = match ethertype {
            [0x08, 0x00] => Network::ipv4(&frame[ETHERNET..])?,
            [0x86, 0xdd] => Network::ipv6(&frame[ETHERNET..])?,
            _ => return Err(Unreadable::NotIp),
        };
        if ETHERNET + ip.total > frame.len() {
            return Err(Unreadable::Malformed(ip.header()));
        }
        let header = frame.len() - ETHERNET - rest.len();
        let body = rest.get(..ip.total - header).ok_or(Unreadable::Malformed(ip.header()))?;
        let body = Body::parse(&ip, body);
        Ok(Self { source: ip.source, destination: ip.destination, hop_limit: ip.hop_limit, body })
    }
}

/// The fixed part of either IP header.
pub(crate) struct Network {
    pub source: Addr,
    pub destination: Addr,
    hop_limit: u8,
    protocol: u8,
    fragment: Fragment,
    /// Of the whole packet, as the header says.
    total: usize,
    pub version: Version,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Four,
    Six,
}

impl Network {
    fn header(&self) -> Header {
        match self.version {
            Version::Four => Header::Ipv4,
            Version::Six => Header::Ipv6,
        }
    }

    /// The header and what follows it, which may be cut short.
    pub fn ipv4(bytes: &[u8]) -> Result<(Self, &[u8]), Unreadable> {
        let broken = Unreadable::Malformed(Header::Ipv4);
        let ip: &[u8; 20] = bytes.first_chunk().ok_or(broken)?;
        let header = usize::from(ip[0] & 0xf) * 4;
        let total = usize::from(word(ip, 2));
        if ip[0] >> 4 != 4 || header < 20 || total < header {
            return Err(broken);
        }
        let place = word(ip, 6);
        let id = FragmentId { protocol: Protocol(ip[9]), number: u32::from(word(ip, 4)) };
        let network = Self {
            source: std::net::Ipv4Addr::new(ip[12], ip[13], ip[14], ip[15]).into(),
            destination: std::net::Ipv4Addr::new(ip[16], ip[17], ip[18], ip[19]).into(),
            hop_limit: ip[8],
            protocol: ip[9],
            fragment: fragment(place & 0x1fff != 0, place & 0x2000 != 0, id),
            total,
            version: Version::Four,
        };
        Ok((network, bytes.get(header..).unwrap_or_default()))
    }

    pub fn ipv6(bytes: &[u8]) -> Result<(Self, &[u8]), Unreadable> {
        let broken = Unreadable::Malformed(Header::Ipv6);
        let (ip, rest) = bytes.split_first_chunk::<40>().ok_or(broken)?;
        let addr = |at: usize| {
            let octets: [u8; 16] = std::array::from_fn(|index| ip[at + index]);
            Addr::from_octets(octets)
        };
        let (source, destination) = (addr(8), addr(24));
        // Mapped addresses are on no wire (RFC 4291, 2.5.5.2), and would pass for IPv4 in the kernel's keys.
        let mapped = |addr: Addr| addr.family() == weft_model::Family::V4;
        if ip[0] >> 4 != 6 || mapped(source) || mapped(destination) {
            return Err(broken);
        }
        let network = Self {
            source,
            destination,
            hop_limit: ip[7],
            protocol: ip[6],
            fragment: Fragment::Whole,
            total: 40 + usize::from(word(ip, 4)),
            version: Version::Six,
        };
        Ok((network, rest))
    }
}

fn fragment(later: bool, more: bool, id: FragmentId) -> Fragment {
    match (later, more) {
        (true, _) => Fragment::Later(id),
        (false, true) => Fragment::First(id),
        (false, false) => Fragment::Whole,
    }
}

/// The transport header's place after IPv6's extension headers.
pub(crate) struct Transport<'a> {
    pub protocol: Protocol,
    pub fragment: Fragment,
    pub bytes: &'a [u8],
}

impl<'a> Transport<'a> {
    pub fn find(ip: &Network, bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let found = Self { protocol: Protocol(ip.protocol), fragment: ip.fragment, bytes };
        match ip.version {
            Version::Four => Ok(found),
            Version::Six => found.past_extensions(),
        }
    }

    fn past_extensions(mut self) -> Result<Self, Unreadable> {
        let broken = Unreadable::Malformed(Header::Extension);
        for _ in 0..MOST_EXTENSIONS {
            let kind = self.protocol.0;
            if !is_extension(kind) {
                return Ok(self);
            }
            let header: &[u8; 8] = self.bytes.first_chunk().ok_or(broken)?;
            self.protocol = Protocol(header[0]);
            let length = match kind {
                FRAGMENT => 8,
                AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
                _ => (usize::from(header[1]) + 1) * 8,
            };
            if kind == FRAGMENT {
                let place = word(header, 2);
                let number = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                let id = FragmentId { protocol: self.protocol, number };
                self.fragment = fragment(place & 0xfff8 != 0, place & 1 != 0, id);
            }
            self.bytes = self.bytes.get(length..).ok_or(broken)?;
            if matches!(self.fragment, Fragment::Later(_)) {
                return Ok(self);
            }
        }
        if is_extension(self.protocol.0) { Err(broken) } else { Ok(self) }
    }
}

fn is_extension(kind: u8) -> bool {
    matches!(kind, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

impl Body {
    fn parse(ip: &Network, bytes: &[u8]) -> Result<Self, Unreadable> {
        let transport = Transport::find(ip, bytes)?;
        let mut body = Self {
            protocol: transport.protocol,
            source_port: Port(0),
            destination_port: Port(0),
            tcp: TcpFlags::default(),
            fragment: transport.fragment,
            quoted: None,
        };
        if !matches!(body.fragment, Fragment::Later(_)) {
            body.read_transport(ip, transport.bytes)?;
        }
        Ok(body)
    }

    fn read_transport(&mut self, ip: &Network, bytes: &[u8]) -> Result<(), Unreadable> {
        let (header, least) = match (self.protocol, ip.version) {
            (Protocol::TCP, _) => (Header::Tcp, 20),
            (Protocol::UDP, _) => (Header::Udp, 8),
            (Protocol::SCTP, _) => (Header::Sctp, 12),
            (Protocol::ICMP, Version::Four) | (Protocol::ICMPV6, Version::Six) => (Header::Icmp, 8),
            _ => return Ok(()),
        };
        if bytes.len() < least {
            return Err(Unreadable::Malformed(header));
        }
        if header == Header::Icmp {
            let id = icmp::echo_id(ip.version, bytes).unwrap_or(0);
            (self.source_port, self.destination_port) = (Port(id), Port(id));
            self.quoted = icmp::quoted(ip.version, bytes);
            return Ok(());
        }
        (self.source_port, self.destination_port) = (Port(word(bytes, 0)), Port(word(bytes, 2)));
        if header == Header::Tcp {
            let length = usize::from(bytes[12] >> 4) * 4;
            if length < 20 || length > bytes.len() {
                return Err(Unreadable::Malformed(header));
            }
            self.tcp = TcpFlags(bytes[13]);
        }
        Ok(())
    }
}

/// Two bytes in network order; the caller has seen that they are there.
pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
