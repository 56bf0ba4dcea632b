//! Service frontends, their backends, and translated connections. Twin of bpf/abi/services.h.

use weft_model::{Addr, Port, Protocol};
use weft_plan::Frontend;

use crate::AddrKey;
use crate::layout::shared;

shared! {
    "weft_service_key" ServiceKey {
        addr: AddrKey,
        /// Network order.
        port: u16,
        protocol: u8,
        reserved: u8,
    }
}

shared! {
    "weft_service" ServiceValue {
        id: u32,
        list: u32,
        slots: u32,
        hashed_slots: u32,
        edge_list: u32,
        edge_hashed_slots: u32,
        /// Seconds; 0: none.
        affinity: u32,
        flags: u32,
    }
}

/// Bits of `enum weft_service_flags`.
pub struct ServiceFlags;

impl ServiceFlags {
    pub const EDGE: u32 = 1;
    pub const EDGE_LOCAL: u32 = 2;
    pub const EDGE_ELSEWHERE: u32 = 4;
    pub const EDGE_DSR: u32 = 8;
    pub const SOURCE_RANGES: u32 = 16;
    pub const HASHED: u32 = 32;
    pub const LOCALHOST: u32 = 64;
    pub const LOCAL_ELSEWHERE: u32 = 128;
}

shared! {
    "weft_backend_key" BackendKey {
        list: u32,
        slot: u32,
    }
}

shared! {
    "weft_backend" BackendValue {
        addr: AddrKey,
        /// Network order.
        port: u16,
        reserved: u16,
    }
}

shared! {
    "weft_member_key" MemberKey {
        list: u32,
        addr: AddrKey,
        /// Network order.
        port: u16,
        reserved: u16,
    }
}

shared! {
    "weft_source_key" SourceKey {
        bits: u32,
        service: u32,
        addr: AddrKey,
    }
}

impl SourceKey {
    /// Leading bits that are the frontend's number.
    pub const BITS_SERVICE: u32 = 32;
}

shared! {
    "weft_affinity_key" AffinityKey {
        client: AddrKey,
        service: u32,
        reserved: u32,
    }
}

shared! {
    "weft_affinity" AffinityValue {
        /// CLOCK_MONOTONIC nanoseconds.
        last_used: u64,
        backend: BackendValue,
        reserved: u32,
    }
}

shared! {
    "weft_reverse_key" ReverseKey {
        socket: u64,
        addr: AddrKey,
        port: u16,
        reserved: [u16; 3],
    }
}

shared! {
    "weft_reverse" ReverseValue {
        addr: AddrKey,
        port: u16,
        reserved: u16,
        service: u32,
    }
}

shared! {
    "weft_connected" ConnectedValue {
        list: u32,
        backend: BackendValue,
    }
}

shared! {
    "weft_nat_key" NatKey {
        source: AddrKey,
        destination: AddrKey,
        /// Host order.
        source_port: u16,
        destination_port: u16,
        protocol: u8,
        reserved: [u8; 3],
    }
}

shared! {
    "weft_nat" NatValue {
        created: u64,
        last_seen: u64,
        source: AddrKey,
        destination: AddrKey,
        source_port: u16,
        destination_port: u16,
        tcp: u8,
        flags: u8,
        reserved: u16,
        service: u32,
        list: u32,
    }
}

impl NatValue {
    /// Of the connection's other entry.
    pub fn other_key(&self, protocol: u8) -> NatKey {
        NatKey {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol,
            reserved: [0; 3],
        }
    }
}

/// Bits of `enum weft_nat_flags`.
pub struct NatFlags;

impl NatFlags {
    pub const REPLY: u8 = 1;
    pub const DSR: u8 = 2;
    pub const MASQUERADED: u8 = 4;
}

impl From<&Frontend> for ServiceKey {
    fn from(frontend: &Frontend) -> Self {
        Self {
            addr: frontend.addr.into(),
            port: frontend.port.0.to_be(),
            protocol: frontend.protocol.0,
            reserved: 0,
        }
    }
}

impl From<ServiceKey> for Frontend {
    fn from(key: ServiceKey) -> Self {
        Self { addr: key.addr.into(), protocol: Protocol(key.protocol), port: Port(u16::from_be(key.port)) }
    }
}

impl BackendValue {
    pub fn new(addr: Addr, port: Port) -> Self {
        Self { addr: addr.into(), port: port.0.to_be(), reserved: 0 }
    }

    pub fn target(self) -> (Addr, Port) {
        (self.addr.into(), Port(u16::from_be(self.port)))
    }
}
