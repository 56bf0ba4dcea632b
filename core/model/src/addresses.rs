//! Addresses, prefixes, ports and protocols in the one form the kernel maps use. No lookups live here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IP address in 16 bytes; IPv4 is held as an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Addr([u8; 16]);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Family {
    V4,
    V6,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddrError {
    #[error("{0:?} is not an IP address")]
    Address(String),
    #[error("{0:?} is not a prefix in CIDR form, for example 10.0.0.0/8")]
    Cidr(String),
    #[error("{0:?} has bits set beyond its prefix length; the prefix is {1}")]
    HostBits(String, Cidr),
}

impl Addr {
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        Self(octets)
    }

    pub const fn octets(self) -> [u8; 16] {
        self.0
    }

    pub fn to_ip(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self.0)).to_canonical()
    }

    pub fn family(self) -> Family {
        match self.to_ip() {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self(ip.to_ipv6_mapped().octets())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        Self(ip.octets())
    }
}

impl FromStr for Addr {
    type Err = AddrError;
    fn from_str(text: &str) -> Result<Self, AddrError> {
        text.parse::<IpAddr>().map(Self::from).map_err(|_| AddrError::Address(text.to_owned()))
    }
}

impl TryFrom<String> for Addr {
    type Error = AddrError;
    fn try_from(text: String) -> Result<Self, AddrError> {
        text.parse()
    }
}

impl From<Addr> for String {
    fn from(addr: Addr) -> Self {
        addr.to_string()
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A prefix without host bits. The length counts in the 16-byte form: IPv4 /24 has `bits` 120.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    addr: Addr,
    bits: u8,
}

impl Cidr {
    /// The prefix that holds `addr` alone.
    pub const fn host(addr: Addr) -> Self {
        Self { addr, bits: 128 }
    }

    /// The prefix of `bits` (in the family's own counting) around `addr`; host bits are cleared.
    pub fn around(addr: Addr, family_bits: u8) -> Option<Self> {
        let bits = match addr.family() {
            Family::V4 if family_bits <= 32 => family_bits + 96,
            Family::V6 if family_bits <= 128 => family_bits,
            _ => return None,
        };
        Some(Self { addr: Addr((u128::from_be_bytes(addr.0) & mask(bits)).to_be_bytes()), bits })
    }

    pub const fn addr(self) -> Addr {
        self.addr
    }

    /// Prefix length in the 16-byte form.
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// Prefix length as the family counts it.
    pub fn family_bits(self) -> u8 {
        match self.family() {
            Family::V4 => self.bits - 96,
            Family::V6 => self.bits,
        }
    }

    pub fn family(self) -> Family {
        // `::/0` shares its address with no IPv4-mapped prefix, and an IPv4 prefix always keeps the mapped part.
        self.addr.family()
    }

    pub fn contains(self, addr: Addr) -> bool {
        self.family() == addr.family()
            && u128::from_be_bytes(addr.0) & mask(self.bits) == u128::from_be_bytes(self.addr.0)
    }

    pub fn covers(self, other: Cidr) -> bool {
        self.bits <= other.bits && self.contains(other.addr)
    }

    pub fn overlaps(self, other: Cidr) -> bool {
        self.covers(other) || other.covers(self)
    }
}

fn mask(bits: u8) -> u128 {
    if bits == 0 { 0 } else { u128::MAX << (128 - u32::from(bits)) }
}

impl FromStr for Cidr {
    type Err = AddrError;
    fn from_str(text: &str) -> Result<Self, AddrError> {
        let bad = || AddrError::Cidr(text.to_owned());
        let (addr, bits) = text.split_once('/').ok_or_else(bad)?;
        let addr: Addr = addr.parse().map_err(|_| bad())?;
        let cidr = Cidr::around(addr, bits.parse().map_err(|_| bad())?).ok_or_else(bad)?;
        if cidr.addr == addr { Ok(cidr) } else { Err(AddrError::HostBits(text.to_owned(), cidr)) }
    }
}

impl TryFrom<String> for Cidr {
    type Error = AddrError;
    fn try_from(text: String) -> Result<Self, AddrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.family_bits())
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A transport port in host order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Port(pub u16);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An IP protocol by its IANA number. IPv6's ICMP keeps its own number (58).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Protocol(pub u8);

impl Protocol {
    pub const ICMP: Self = Self(1);
    pub const TCP: Self = Self(6);
    pub const UDP: Self = Self(17);
    pub const ICMPV6: Self = Self(58);
    pub const SCTP: Self = Self(132);

    pub fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::SCTP)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TCP => f.pad("TCP"),
            Self::UDP => f.pad("UDP"),
            Self::SCTP => f.pad("SCTP"),
            Self::ICMP => f.pad("ICMP"),
            Self::ICMPV6 => f.pad("ICMPv6"),
            Self(number) => f.pad(&format!("IP protocol {number}")),
        }
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Protocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_uppercase().as_str() {
            "TCP" => Ok(Self::TCP),
            "UDP" => Ok(Self::UDP),
            "SCTP" => Ok(Self::SCTP),
            "ICMP" => Ok(Self::ICMP),
            "ICMPV6" => Ok(Self::ICMPV6),
            _ => Err(format!("{text:?} is not a protocol; use TCP, UDP, SCTP, ICMP or ICMPv6")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_is_held_mapped_and_printed_plain() {
        let addr: Addr = "10.244.1.7".parse().unwrap();
        assert_eq!(addr.octets()[10..], [0xff, 0xff, 10, 244, 1, 7]);
        assert_eq!(addr.to_string(), "10.244.1.7");
    }

    #[test]
    fn prefixes_keep_families_apart() {
        let all_v4: Cidr = "0.0.0.0/0".parse().unwrap();
        let all_v6: Cidr = "::/0".parse().unwrap();
        let v4: Addr = "1.2.3.4".parse().unwrap();
        let v6: Addr = "fd00::1".parse().unwrap();
        assert_eq!((all_v4.contains(v4), all_v4.contains(v6)), (true, false));
        assert_eq!((all_v6.contains(v4), all_v6.contains(v6)), (false, true));
        assert!(!all_v6.covers(all_v4));
    }

    #[test]
    fn host_bits_are_refused_with_the_prefix_meant() {
        let error = "10.0.0.1/8".parse::<Cidr>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"10.0.0.1/8\" has bits set beyond its prefix length; the prefix is 10.0.0.0/8"
        );
    }
}
