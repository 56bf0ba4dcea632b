//! ICMP and ICMPv6: echo identifiers, and the packets that errors quote (RFC 792, RFC 4443). Plain headers live in `packets`.

use weft_model::{Port, Protocol};

use crate::packets::{Fragment, Network, Quoted, Transport, Version, word};

/// Requests and replies of one exchange share the identifier. `bytes` holds at least the eight of the header.
pub(crate) fn echo_id(version: Version, bytes: &[u8]) -> Option<u16> {
    let echo = match version {
        Version::Four => matches!(bytes[0], 0 | 8),
        Version::Six => matches!(bytes[0], 128 | 129),
    };
    echo.then(|| word(bytes, 4))
}

fn is_error(version: Version, kind: u8) -> bool {
    match version {
        Version::Four => matches!(kind, 3 | 4 | 5 | 11 | 12),
        Version::Six => matches!(kind, 1..=4),
    }
}

/// The start of the packet an error is about; `None` where that tells no flow.
pub(crate) fn quoted(version: Version, bytes: &[u8]) -> Option<Quoted> {
    if !is_error(version, bytes[0]) {
        return None;
    }
    let (ip, rest) = match version {
        Version::Four => Network::ipv4(&bytes[8..]).ok()?,
        Version::Six => Network::ipv6(&bytes[8..]).ok()?,
    };
    let transport = Transport::find(&ip, rest).ok()?;
    if matches!(transport.fragment, Fragment::Later(_)) {
        return None;
    }
    let (source_port, destination_port) = ports(version, &transport)?;
    Some(Quoted {
        source: ip.source,
        destination: ip.destination,
        protocol: transport.protocol,
        source_port,
        destination_port,
    })
}

/// An error quotes at least eight bytes of the transport header.
fn ports(version: Version, transport: &Transport<'_>) -> Option<(Port, Port)> {
    let bytes = transport.bytes;
    match (transport.protocol, version) {
        (Protocol::TCP | Protocol::UDP | Protocol::SCTP, _) if bytes.len() >= 8 => {
            Some((Port(word(bytes, 0)), Port(word(bytes, 2))))
        }
        (Protocol::ICMP, Version::Four) | (Protocol::ICMPV6, Version::Six) if bytes.len() >= 8 => {
            let id = Port(echo_id(version, bytes).unwrap_or(0));
            Some((id, id))
        }
        (Protocol::TCP | Protocol::UDP | Protocol::SCTP, _) => None,
        (Protocol::ICMP, Version::Four) | (Protocol::ICMPV6, Version::Six) => None,
        _ => Some((Port(0), Port(0))),
    }
}
