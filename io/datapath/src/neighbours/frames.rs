//! ARP and NDP as bytes: what is sent, and what others' frames say. Pure.

use weft_abi::Mac;
use weft_model::{Addr, Family};

use super::Heard;

const BROADCAST: [u8; 6] = [0xff; 6];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];
const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_ADDRESS: u8 = 2;
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ETHERNET: usize = 14;
const IPV6_HEADER: usize = 40;

/// RFC 5227, 2.1.1: from nobody. RFC 4862, 5.4.2: a solicitation from the unspecified address.
pub fn probe(addr: Addr, own: Mac) -> Vec<u8> {
    match addr.family() {
        Family::V4 => arp(own, [0; 4], [0; 6], v4(addr)),
        Family::V6 => {
            let group = solicited(addr);
            neighbour(own, solicited_mac(addr).0, [0; 16], group, &message(SOLICITATION, 0, addr, None))
        }
    }
}

/// RFC 5227, 2.3 and RFC 4861, 7.2.6.
pub fn announcement(addr: Addr, own: Mac) -> Vec<u8> {
    match addr.family() {
        Family::V4 => arp(own, v4(addr), [0; 6], v4(addr)),
        Family::V6 => {
            let body = message(ADVERTISEMENT, OVERRIDE, addr, Some(own));
            neighbour(own, [0x33, 0x33, 0, 0, 0, 1], addr.octets(), ALL_NODES, &body)
        }
    }
}

/// RFC 2464, 7 of the group of RFC 4291, 2.7.1.
pub fn solicited_mac(addr: Addr) -> Mac {
    let octets = addr.octets();
    Mac([0x33, 0x33, 0xff, octets[13], octets[14], octets[15]])
}

fn solicited(addr: Addr) -> [u8; 16] {
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&addr.octets()[13..]);
    group
}

fn v4(addr: Addr) -> [u8; 4] {
    let octets = addr.octets();
    [octets[12], octets[13], octets[14], octets[15]]
}

fn arp(own: Mac, sender: [u8; 4], target_mac: [u8; 6], target: [u8; 4]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend(BROADCAST);
    frame.extend(own.0);
    frame.extend(ARP);
    frame.extend([0, 1, 8, 0, 6, 4, 0, REQUEST]);
    frame.extend(own.0);
    frame.extend(sender);
    frame.extend(target_mac);
    frame.extend(target);
    frame
}

fn message(kind: u8, flags: u8, target: Addr, link: Option<Mac>) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    body.extend(target.octets());
    if let Some(mac) = link {
        body.extend([TARGET_LINK_ADDRESS, 1]);
        body.extend(mac.0);
    }
    body
}

fn neighbour(own: Mac, to: [u8; 6], source: [u8; 16], destination: [u8; 16], body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET + IPV6_HEADER + body.len());
    frame.extend(to);
    frame.extend(own.0);
    frame.extend(IPV6);
    frame.extend([0x60, 0, 0, 0, 0, body.len() as u8, 58, 255]);
    frame.extend(source);
    frame.extend(destination);
    frame.extend(body);
    let sum = checksum(&source, &destination, body);
    frame[ETHERNET + IPV6_HEADER + 2..][..2].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// RFC 4443, 2.3.
fn checksum(source: &[u8; 16], destination: &[u8; 16], body: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
            .sum()
    };
    let mut sum = words(source) + words(destination) + words(body) + body.len() as u32 + 58;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Whose address the frame says its sender has. Probes say nothing: their sender has none yet.
pub fn claimed(frame: &[u8]) -> Option<Heard> {
    let kind = frame.get(12..14)?;
    if kind == ARP { claimed_by_arp(frame.get(ETHERNET..)?) } else { claimed_by_ndp(frame) }
}

fn claimed_by_arp(arp: &[u8]) -> Option<Heard> {
    let arp = arp.get(..28)?;
    let is_ours = arp[..6] == [0, 1, 8, 0, 6, 4] && arp[6] == 0 && matches!(arp[7], REQUEST | REPLY);
    let sender: [u8; 4] = arp[14..18].try_into().ok()?;
    if !is_ours || sender == [0; 4] {
        return None;
    }
    Some(Heard { addr: std::net::Ipv4Addr::from(sender).into(), from: Mac(arp[8..14].try_into().ok()?) })
}

fn claimed_by_ndp(frame: &[u8]) -> Option<Heard> {
    let ip = frame.get(ETHERNET..ETHERNET + IPV6_HEADER)?;
    let body = frame.get(ETHERNET + IPV6_HEADER..)?;
    // RFC 4861, 7.1.2: a hop limit below 255 has crossed a router.
    if frame[12..14] != IPV6 || ip[6] != 58 || ip[7] != 255 || body.len() < 24 || body[0] != ADVERTISEMENT {
        return None;
    }
    let target: [u8; 16] = body[8..24].try_into().ok()?;
    let option = body.get(24..32).filter(|option| option[..2] == [TARGET_LINK_ADDRESS, 1]);
    let from = option.map_or(&frame[6..12], |option| &option[2..8]);
    Some(Heard { addr: Addr::from_octets(target), from: Mac(from.try_into().ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn an_announcement_claims_its_address_and_a_probe_does_not() {
        for text in ["192.0.2.10", "fd00::10"] {
            let addr: Addr = text.parse().unwrap();
            assert_eq!(claimed(&announcement(addr, OWN)), Some(Heard { addr, from: OWN }));
            assert_eq!(claimed(&probe(addr, OWN)), None);
        }
    }

    /// RFC 5227, 2.1.1 byte by byte.
    #[test]
    fn a_probe_is_as_the_standard_has_it() {
        let frame = probe("192.0.2.10".parse().unwrap(), OWN);
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0,
            0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 10,
        ];
        assert_eq!(frame, expected);
    }

    /// The sum over a message with its checksum in place is all ones (RFC 1071).
    #[test]
    fn checksums_hold() {
        let addr: Addr = "fd00::1:2345".parse().unwrap();
        for frame in [probe(addr, OWN), announcement(addr, OWN)] {
            let source: [u8; 16] = frame[22..38].try_into().unwrap();
            let destination: [u8; 16] = frame[38..54].try_into().unwrap();
            assert_eq!(checksum(&source, &destination, &frame[54..]), 0);
        }
        assert_eq!(probe(addr, OWN)[..6], [0x33, 0x33, 0xff, 0x01, 0x23, 0x45]);
    }

    #[test]
    fn broken_frames_say_nothing() {
        let whole = announcement("fd00::10".parse().unwrap(), OWN);
        for length in 0..78 {
            assert_eq!(claimed(&whole[..length]), None, "{length}");
        }
        let arp = announcement("192.0.2.10".parse().unwrap(), OWN);
        for length in 0..arp.len() {
            assert_eq!(claimed(&arp[..length]), None, "{length}");
        }
        let mut routed = whole;
        routed[21] = 254;
        assert_eq!(claimed(&routed), None);
    }
}
