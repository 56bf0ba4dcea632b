//! Ethernet frames with right lengths and checksums, to be broken by tests where they want. Reading them lives in core/decide.

use crate::{Addr, Family, Protocol};

/// An IP packet to be written into a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub source: Addr,
    /// Of the same family.
    pub destination: Addr,
    pub hop_limit: u8,
    /// IPv6 only: extension headers before the transport's, by number (0, 43, 51, 60).
    pub extensions: Vec<u8>,
    pub fragment: Option<FragmentPlace>,
    pub body: FrameBody,
    pub payload: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentPlace {
    pub id: u32,
    /// In units of eight bytes. A frame with another than zero carries only the payload.
    pub offset: u16,
    pub more: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameBody {
    Tcp {
        source: u16,
        destination: u16,
        flags: u8,
    },
    Udp {
        source: u16,
        destination: u16,
    },
    Sctp {
        source: u16,
        destination: u16,
    },
    EchoRequest {
        id: u16,
    },
    EchoReply {
        id: u16,
    },
    /// "Destination unreachable" about a packet, of which it quotes the first bytes.
    Unreachable {
        about: Box<Frame>,
        quoted_bytes: usize,
    },
    Other {
        protocol: u8,
    },
}

const ETHERNET: [u8; 12] = [0x02, 0, 0, 0, 0, 0x02, 0x02, 0, 0, 0, 0, 0x01];

impl Frame {
    pub fn new(source: Addr, destination: Addr, body: FrameBody) -> Self {
        let (extensions, payload) = (Vec::new(), b"weft".to_vec());
        Self { source, destination, hop_limit: 64, extensions, fragment: None, body, payload }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let ethertype: [u8; 2] = match self.source.family() {
            Family::V4 => [0x08, 0x00],
            Family::V6 => [0x86, 0xdd],
        };
        [&ETHERNET[..], &ethertype, &self.ip()].concat()
    }

    fn ip(&self) -> Vec<u8> {
        let later = self.fragment.is_some_and(|fragment| fragment.offset != 0);
        let content = if later { self.payload.clone() } else { self.transport() };
        match self.source.family() {
            Family::V4 => self.ipv4(&content),
            Family::V6 => self.ipv6(&content),
        }
    }

    fn ipv4(&self, content: &[u8]) -> Vec<u8> {
        let total = (20 + content.len()) as u16;
        let mut header = vec![0x45, 0];
        header.extend(total.to_be_bytes());
        let (id, place) = self.fragment.map_or((0, 0x4000), |fragment| {
            (fragment.id as u16, fragment.offset & 0x1fff | if fragment.more { 0x2000 } else { 0 })
        });
        header.extend(id.to_be_bytes());
        header.extend(place.to_be_bytes());
        header.extend([self.hop_limit, self.protocol().0, 0, 0]);
        header.extend(&self.source.octets()[12..]);
        header.extend(&self.destination.octets()[12..]);
        let sum = checksum([&header[..]]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [header, content.to_vec()].concat()
    }

    fn ipv6(&self, content: &[u8]) -> Vec<u8> {
        let mut next = self.protocol().0;
        let mut headers: Vec<u8> = Vec::new();
        if let Some(FragmentPlace { id, offset, more }) = self.fragment {
            let place = (offset << 3 | u16::from(more)).to_be_bytes();
            let fragment = [&[next, 0][..], &place, &id.to_be_bytes()].concat();
            (next, headers) = (44, fragment);
        }
        for extension in self.extensions.iter().rev() {
            // Eight bytes each, with one padding option; an authentication header of length 0 has eight bytes too.
            headers = [&[next, 0, 1, 4, 0, 0, 0, 0][..], &headers].concat();
            next = *extension;
        }
        let length = (headers.len() + content.len()) as u16;
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(length.to_be_bytes());
        header.extend([next, self.hop_limit]);
        header.extend(self.source.octets());
        header.extend(self.destination.octets());
        [header, headers, content.to_vec()].concat()
    }

    pub fn protocol(&self) -> Protocol {
        match (&self.body, self.source.family()) {
            (FrameBody::Tcp { .. }, _) => Protocol::TCP,
            (FrameBody::Udp { .. }, _) => Protocol::UDP,
            (FrameBody::Sctp { .. }, _) => Protocol::SCTP,
            (FrameBody::Other { protocol }, _) => Protocol(*protocol),
            (_, Family::V4) => Protocol::ICMP,
            (_, Family::V6) => Protocol::ICMPV6,
        }
    }

    fn transport(&self) -> Vec<u8> {
        let ports =
            |source: u16, destination: u16| [source.to_be_bytes(), destination.to_be_bytes()].concat();
        let (mut bytes, sum_at) = match &self.body {
            FrameBody::Tcp { source, destination, flags } => {
                let rest = [0, 0, 0, 1, 0, 0, 0, 0, 0x50, *flags, 0xff, 0xff, 0, 0, 0, 0];
                ([ports(*source, *destination), rest.to_vec()].concat(), Some(16))
            }
            FrameBody::Udp { source, destination } => {
                let length = (8 + self.payload.len()) as u16;
                ([&ports(*source, *destination)[..], &length.to_be_bytes(), &[0, 0]].concat(), Some(6))
            }
            FrameBody::Sctp { source, destination } => {
                ([ports(*source, *destination), vec![0; 8]].concat(), None)
            }
            FrameBody::EchoRequest { id } => (self.echo([8, 128], *id), Some(2)),
            FrameBody::EchoReply { id } => (self.echo([0, 129], *id), Some(2)),
            FrameBody::Unreachable { about, quoted_bytes } => {
                let quoted: Vec<u8> = about.ip().into_iter().take(*quoted_bytes).collect();
                ([vec![self.of_family([3, 1]), 1, 0, 0, 0, 0, 0, 0], quoted].concat(), Some(2))
            }
            FrameBody::Other { .. } => (Vec::new(), None),
        };
        bytes.extend(&self.payload);
        if let Some(at) = sum_at {
            let sum = self.transport_checksum(&bytes);
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    fn echo(&self, types: [u8; 2], id: u16) -> Vec<u8> {
        let [high, low] = id.to_be_bytes();
        vec![self.of_family(types), 0, 0, 0, high, low, 0, 1]
    }

    fn of_family(&self, [v4, v6]: [u8; 2]) -> u8 {
        match self.source.family() {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// ICMP over IPv4 has no pseudo-header; everything else has.
    fn transport_checksum(&self, bytes: &[u8]) -> u16 {
        let protocol = self.protocol();
        if protocol == Protocol::ICMP {
            return checksum([bytes]);
        }
        let (source, destination) = (self.source.octets(), self.destination.octets());
        let from = match self.source.family() {
            Family::V4 => 12,
            Family::V6 => 0,
        };
        let tail = [0, protocol.0, (bytes.len() >> 8) as u8, bytes.len() as u8];
        let sum = checksum([&source[from..], &destination[from..], &tail, bytes]);
        if sum == 0 && protocol == Protocol::UDP { 0xffff } else { sum }
    }
}

/// RFC 1071, over parts of even length but the last.
fn checksum<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
