//! Service frontends, their backends and the way back for datagrams. Twin of bpf/abi/services.h.

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
        backends: u32,
    }
}

shared! {
    "weft_backend_key" BackendKey {
        service: u32,
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
