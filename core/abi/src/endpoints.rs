//! Addresses that end on this node: its pods' and its own. Twin of bpf/abi/endpoints.h.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use weft_model::{Addr, Cidr};

use crate::layout::shared;

shared! {
    /// An address in network order.
    "weft_addr" AddrKey {
        words: [u32; 4],
    }
}

shared! {
    /// Longest-prefix key; `bits` counts in the 16-byte form.
    "weft_prefix" PrefixKey {
        bits: u32,
        addr: AddrKey,
    }
}

shared! {
    "weft_endpoint" EndpointValue {
        ifindex: u32,
        ingress_set: u32,
        egress_set: u32,
        kind: u8,
        flags: u8,
        reserved: [u8; 2],
        pod_mac: [u8; 6],
        host_mac: [u8; 6],
    }
}

/// Numbers of `enum weft_endpoint_kind`.
pub struct EndpointKind;

impl EndpointKind {
    pub const POD: u8 = 1;
    pub const HOST: u8 = 2;
}

/// Bits of `enum weft_endpoint_flags`.
pub struct EndpointFlags;

impl EndpointFlags {
    pub const INGRESS_ISOLATED: u8 = 1;
    pub const EGRESS_ISOLATED: u8 = 2;
}

impl From<Addr> for AddrKey {
    fn from(addr: Addr) -> Self {
        bytemuck::cast(addr.octets())
    }
}

impl From<AddrKey> for Addr {
    fn from(key: AddrKey) -> Self {
        Addr::from_octets(bytemuck::cast(key))
    }
}

impl From<Cidr> for PrefixKey {
    fn from(cidr: Cidr) -> Self {
        Self { bits: cidr.bits().into(), addr: cidr.addr().into() }
    }
}

impl PrefixKey {
    /// `None` where the kernel's key is no prefix of one family.
    pub fn to_cidr(self) -> Option<Cidr> {
        let addr = Addr::from(self.addr);
        let family_bits = match addr.family() {
            weft_model::Family::V4 => self.bits.checked_sub(96)?,
            weft_model::Family::V6 => self.bits,
        };
        Cidr::around(addr, u8::try_from(family_bits).ok()?)
    }
}

/// A link-layer address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        f.pad(&format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a link-layer address, for example 02:00:00:00:00:01");
        let bytes: Vec<u8> = text
            .split(':')
            .map(|part| u8::from_str_radix(part, 16))
            .collect::<Result<_, _>>()
            .map_err(|_| bad())?;
        bytes.try_into().map(Self).map_err(|_| bad())
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_prefixes_round_trip() {
        for text in ["10.244.1.0/24", "0.0.0.0/0", "::/0", "fd00:10:244:1::/64", "fd00::1/128"] {
            let cidr: Cidr = text.parse().unwrap();
            assert_eq!(PrefixKey::from(cidr).to_cidr(), Some(cidr));
        }
        let mac: Mac = "02:00:0a:f4:01:07".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:0a:f4:01:07");
        assert!("02:00".parse::<Mac>().is_err());
    }
}
