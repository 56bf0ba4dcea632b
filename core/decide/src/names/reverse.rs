//! The zones of the cluster's own addresses (RFC 1035 3.5, RFC 3596 2.5).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;

use weft_model::{Addr, Cidr, Family};

use super::{NameAnswer, NameCause, NameData, NameRecord, Names, QueryType, Step, apex, done};

/// A name below in-addr.arpa or ip6.arpa.
struct Reverse {
    /// The addresses whose names are at or below it.
    prefix: Cidr,
    kind: Kind,
}

#[derive(PartialEq, Eq)]
enum Kind {
    /// The name of one address, or of a prefix.
    Prefix,
    /// Below such a name, with labels that no address has.
    Foreign,
}

/// `None`: not of the cluster's addresses.
pub(super) fn resolve(names: &dyn Names, name: &str, query: QueryType) -> Option<Step> {
    let reverse = Reverse::parse(name)?;
    let prefix = reverse.prefix;
    let targets = || names.pointers(prefix.addr()).filter(|_| is_whole(prefix));
    let Some(own) = names.own_prefix(prefix) else {
        // An address of elsewhere that a service has all the same: external endpoints. Whatever else it has, others know.
        let is_asked = reverse.kind == Kind::Prefix && query == QueryType::Ptr;
        return Some(pointer(name, name, prefix.addr(), targets().filter(|_| is_asked)?, query));
    };
    let zone = zone(own, prefix);
    if reverse.kind == Kind::Foreign {
        return Some(done(NameAnswer::NxDomain, &zone, NameCause::NotInSchema));
    }
    if zone == name {
        return Some(apex(names, name, query, NameCause::ReverseZone(zone.clone())));
    }
    if let Some(targets) = targets() {
        return Some(pointer(&zone, name, prefix.addr(), targets, query));
    }
    if is_whole(prefix) {
        return Some(done(NameAnswer::NxDomain, &zone, NameCause::AddressUnused(prefix.addr())));
    }
    Some(match names.points_into(prefix) {
        true => {
            let cause = NameCause::TypeMissing { name: name.to_owned(), query, has: Vec::new() };
            done(NameAnswer::NoData, &zone, cause)
        }
        false => done(NameAnswer::NxDomain, &zone, NameCause::ReverseZone(zone.clone())),
    })
}

fn pointer(zone: &str, name: &str, addr: Addr, targets: Vec<String>, query: QueryType) -> Step {
    if !matches!(query, QueryType::Ptr | QueryType::Any) {
        let cause = NameCause::TypeMissing { name: name.to_owned(), query, has: vec![QueryType::Ptr] };
        return done(NameAnswer::NoData, zone, cause);
    }
    let record = |target| NameRecord { name: name.to_owned(), data: NameData::Ptr(target) };
    done(NameAnswer::Records(targets.into_iter().map(record).collect()), zone, NameCause::Pointer(addr))
}

fn is_whole(prefix: Cidr) -> bool {
    prefix.bits() == 128
}

/// Bits that one label stands for.
fn step(family: Family) -> u8 {
    match family {
        Family::V4 => 8,
        Family::V6 => 4,
    }
}

/// The name of the smallest zone of whole labels that `own` is made of, or is in, around `prefix`.
fn zone(own: Cidr, prefix: Cidr) -> String {
    let step = step(own.family());
    let longest = match own.family() {
        Family::V4 => 32 - step,
        Family::V6 => 128 - step,
    };
    let bits = own.family_bits().next_multiple_of(step).min(longest);
    match prefix.addr().to_ip() {
        std::net::IpAddr::V4(v4) => {
            let labels = v4.octets().into_iter().take(usize::from(bits / step)).map(|byte| byte.to_string());
            joined(labels, "in-addr.arpa")
        }
        std::net::IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
            joined(nibbles.take(usize::from(bits / step)).map(|nibble| format!("{nibble:x}")), "ip6.arpa")
        }
    }
}

fn joined(labels: impl Iterator<Item = String>, suffix: &str) -> String {
    let mut labels: Vec<String> = labels.collect();
    labels.reverse();
    labels.push(suffix.to_owned());
    labels.join(".")
}

impl Reverse {
    fn parse(name: &str) -> Option<Self> {
        if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
            let (octets, count, kind) = read::<4>(labels, decimal);
            return Self::of(Ipv4Addr::from(octets).into(), count * 8, kind);
        }
        let labels = name.strip_suffix(".ip6.arpa")?;
        let (nibbles, count, kind) = read::<32>(labels, hexadecimal);
        let mut octets = [0; 16];
        for (octet, pair) in octets.iter_mut().zip(nibbles.chunks_exact(2)) {
            *octet = pair[0] << 4 | pair[1];
        }
        Self::of(Ipv6Addr::from(octets).into(), count * 4, kind)
    }

    fn of(addr: Addr, bits: u8, kind: Kind) -> Option<Self> {
        Some(Self { prefix: Cidr::around(addr, bits)?, kind })
    }
}

/// Labels from the right as numbers, how many there are, and whether they are all.
fn read<const N: usize>(labels: &str, number: fn(&str) -> Option<u8>) -> ([u8; N], u8, Kind) {
    let mut numbers = [0; N];
    let read = labels.rsplit('.').try_fold(0u8, |count, label| {
        match (numbers.get_mut(usize::from(count)), number(label)) {
            (Some(place), Some(number)) => {
                *place = number;
                ControlFlow::Continue(count + 1)
            }
            _ => ControlFlow::Break(count),
        }
    });
    match read {
        ControlFlow::Continue(count) => (numbers, count, Kind::Prefix),
        ControlFlow::Break(count) => (numbers, count, Kind::Foreign),
    }
}

/// As `Ipv4Addr` prints it, and in no other form.
fn decimal(label: &str) -> Option<u8> {
    label.parse().ok().filter(|number: &u8| number.to_string() == label)
}

fn hexadecimal(label: &str) -> Option<u8> {
    u8::from_str_radix(label, 16).ok().filter(|_| label.len() == 1)
}
