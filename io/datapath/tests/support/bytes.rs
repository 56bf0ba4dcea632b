//! Frames as they should leave a program, written from the standards and not from the programs.

use weft_decide::{Fragment, Packet, Quoted, Refusal};
use weft_model::{Addr, Family, Protocol};

const ETHERNET: usize = 14;
const MOST_QUOTED: usize = 512;

pub fn is_v6(frame: &[u8]) -> bool {
    frame[12..ETHERNET] == [0x86, 0xdd]
}

/// RFC 1071 over the parts as if they were one.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let words =
        bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The protocol and place of what follows the IP header at `at` and its extensions.
pub fn transport(bytes: &[u8], at: usize) -> Option<(u8, usize)> {
    if bytes.get(at)? >> 4 == 4 {
        return Some((*bytes.get(at + 9)?, at + usize::from(bytes[at] & 0xf) * 4));
    }
    let (mut kind, mut at) = (*bytes.get(at + 6)?, at + 40);
    while matches!(kind, 0 | 43 | 44 | 51 | 60) {
        let length = match kind {
            44 => 8,
            51 => (usize::from(*bytes.get(at + 1)?) + 2) * 4,
            _ => (usize::from(*bytes.get(at + 1)?) + 1) * 8,
        };
        kind = *bytes.get(at)?;
        at += length;
    }
    Some((kind, at))
}

/// Where a frame's IP packet ends, as its header says.
fn end(frame: &[u8]) -> usize {
    let word = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    if is_v6(frame) { ETHERNET + 40 + word(18) } else { ETHERNET + word(16) }
}

fn pseudo_header(frame: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let addresses = if is_v6(frame) { &frame[22..54] } else { &frame[26..34] };
    [addresses, &[0, protocol], &(length as u16).to_be_bytes()].concat()
}

/// Where in the frame its transport's checksum is, if it has one of the kind that covers addresses or ports.
pub fn checksum_at(frame: &[u8]) -> Option<usize> {
    let (protocol, at) = transport(frame, ETHERNET)?;
    let place = at
        + match protocol {
            6 => 16,
            17 => 6,
            1 | 58 => 2,
            _ => return None,
        };
    (place + 2 <= frame.len()).then_some(place)
}

/// Of whole packets: whether the transport's checksum is right. `None`: there is none to be right.
pub fn transport_checksum_is_right(frame: &[u8]) -> Option<bool> {
    let (protocol, at) = transport(frame, ETHERNET)?;
    let place = checksum_at(frame)?;
    let content = frame.get(at..end(frame))?;
    if protocol == 17 && frame[place..place + 2] == [0, 0] {
        return None;
    }
    let pseudo = if protocol == 1 { Vec::new() } else { pseudo_header(frame, protocol, content.len()) };
    Some(checksum(&[&pseudo, content]) == 0)
}

/// Right checksums for a whole packet.
pub fn mend(frame: &mut [u8]) {
    if !is_v6(frame) {
        let length = usize::from(frame[ETHERNET] & 0xf) * 4;
        frame[24..26].copy_from_slice(&[0, 0]);
        let sum = checksum(&[&frame[ETHERNET..ETHERNET + length]]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    let (Some((protocol, at)), Some(place)) = (transport(frame, ETHERNET), checksum_at(frame)) else {
        return;
    };
    frame[place..place + 2].copy_from_slice(&[0, 0]);
    let content = &frame[at..end(frame)];
    let sum = checksum(&[&pseudo_header(frame, protocol, content.len()), content]);
    frame[place..place + 2].copy_from_slice(&sum.to_be_bytes());
}

fn put_addresses(bytes: &mut [u8], ip: usize, source: Addr, destination: Addr) {
    let (at, first) = if source.family() == Family::V6 { (ip + 8, 0) } else { (ip + 12, 12) };
    for (at, addr) in [(at, source), (at + 16 - first, destination)] {
        bytes[at..at + 16 - first].copy_from_slice(&addr.octets()[first..]);
    }
}

/// The frame with the packet's addresses and ports, or what it quotes; checksums are the caller's to compare.
pub fn translated(frame: &[u8], packet: &Packet) -> Vec<u8> {
    let mut out = frame.to_vec();
    let body = packet.body.unwrap();
    put_addresses(&mut out, ETHERNET, packet.source, packet.destination);
    let Some((_, at)) = transport(frame, ETHERNET) else { return out };
    if let Some(quoted) = body.quoted {
        put_quoted(&mut out, at + 8, &quoted);
    } else if !matches!(body.fragment, Fragment::Later(_)) {
        put_ports(&mut out, at, body.protocol, [body.source_port.0, body.destination_port.0]);
    }
    out
}

/// An ICMP echo has its identifier in place of both; what has no ports has none to put.
fn put_ports(out: &mut [u8], at: usize, protocol: Protocol, ports: [u16; 2]) {
    let [source, destination] = ports.map(u16::to_be_bytes);
    match protocol {
        Protocol::TCP | Protocol::UDP => {
            out[at..at + 2].copy_from_slice(&source);
            out[at + 2..at + 4].copy_from_slice(&destination);
        }
        Protocol::ICMP | Protocol::ICMPV6 if source != [0, 0] => out[at + 4..at + 6].copy_from_slice(&source),
        _ => {}
    }
}

fn put_quoted(out: &mut [u8], ip: usize, quoted: &Quoted) {
    let (_, at) = transport(out, ip).expect("a quotation that was read");
    put_addresses(out, ip, quoted.source, quoted.destination);
    put_ports(out, at, quoted.protocol, [quoted.source_port.0, quoted.destination_port.0]);
    if quoted.source.family() == Family::V4 {
        // Compared by the caller, as other checksums are.
        out[ip + 10..ip + 12].copy_from_slice(&[0, 0]);
    }
}

/// What a frame's sender gets to hear.
pub fn refusal(frame: &[u8], kind: Refusal) -> Vec<u8> {
    match kind {
        Refusal::Reset => reset(frame),
        Refusal::PortUnreachable if is_v6(frame) => error(frame, 1, 4),
        Refusal::PortUnreachable => error(frame, 3, 3),
        Refusal::TimeExceeded if is_v6(frame) => error(frame, 3, 0),
        Refusal::TimeExceeded => error(frame, 11, 0),
    }
}

/// RFC 9293, 3.10.7.1.
fn reset(frame: &[u8]) -> Vec<u8> {
    let (_, at) = transport(frame, ETHERNET).expect("a segment");
    let tcp = &frame[at..];
    let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let flags = tcp[13];
    let data = end(frame) - at - usize::from(tcp[12] >> 4) * 4;
    let length = data as u32 + u32::from(flags >> 1 & 1) + u32::from(flags & 1);
    let (sequence, acknowledged, flags) =
        if flags & 0x10 != 0 { (word(8), 0, 4) } else { (0, word(4).wrapping_add(length), 0x14) };
    let mut header = [&tcp[2..4], &tcp[..2]].concat();
    header.extend(sequence.to_be_bytes());
    header.extend(acknowledged.to_be_bytes());
    header.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    let mut out = turned_round(frame, 6, header.len());
    let sum = checksum(&[&pseudo_header(&out, 6, header.len()), &header]);
    header[16..18].copy_from_slice(&sum.to_be_bytes());
    out.extend(header);
    out
}

/// A frame's Ethernet and IP headers for an answer of `length` bytes.
fn turned_round(frame: &[u8], protocol: u8, length: usize) -> Vec<u8> {
    let mut out = [&frame[6..12], &frame[..6], &frame[12..ETHERNET]].concat();
    if is_v6(frame) {
        out.extend([0x60, 0, 0, 0]);
        out.extend((length as u16).to_be_bytes());
        out.extend([protocol, 64]);
        out.extend([&frame[38..54], &frame[22..38]].concat());
        return out;
    }
    let mut header = vec![0x45, 0];
    header.extend((20 + length as u16).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend([&frame[30..34], &frame[26..30]].concat());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    out.extend(header);
    out
}

/// A router's word to a frame's sender that it was too large (RFC 792; RFC 4443, 3.2).
pub fn too_large(frame: &[u8]) -> Vec<u8> {
    if is_v6(frame) { error(frame, 2, 0) } else { error(frame, 3, 4) }
}

/// The ICMP error about a frame (RFC 792; RFC 4443, 3.1, 3.3).
fn error(frame: &[u8], number: u8, code: u8) -> Vec<u8> {
    let quoted = &frame[ETHERNET..end(frame).min(ETHERNET + MOST_QUOTED)];
    let length = 8 + quoted.len();
    let protocol = if is_v6(frame) { 58 } else { 1 };
    let mut out = turned_round(frame, protocol, length);
    let pseudo = if is_v6(frame) { pseudo_header(&out, 58, length) } else { Vec::new() };
    let sum = checksum(&[&pseudo, &[number, code, 0, 0, 0, 0, 0, 0], quoted]);
    out.extend([number, code]);
    out.extend(sum.to_be_bytes());
    out.extend([0; 4]);
    out.extend(quoted);
    out
}
