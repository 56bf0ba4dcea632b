//! Tracked flows and fragments. Twin of bpf/abi/flows.h. When a flow is over is decided here; deleting it is io/datapath's.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_model::{Addr, Port, Protocol, Reason};
use weft_plan::RuleId;

use crate::AddrKey;
use crate::layout::shared;

shared! {
    "weft_flow_key" FlowKey {
        a: AddrKey,
        b: AddrKey,
        /// Host order.
        port_a: u16,
        port_b: u16,
        protocol: u8,
        reserved: [u8; 3],
    }
}

shared! {
    /// What an address is to this node, as a flow remembers it.
    "weft_end" EndValue {
        ifindex: u32,
        kind: u32,
        target: [u32; 4],
    }
}

shared! {
    "weft_flow" FlowValue {
        created: u64,
        last_seen: u64,
        /// The timer's count at `last_seen`.
        tick: u64,
        packets: [u64; 2],
        bytes: [u64; 2],
        epoch: u32,
        egress_rule: u32,
        ingress_rule: u32,
        reason: u8,
        flags: u8,
        tcp: u8,
        reserved: u8,
        /// The timer's count at the last packet that was put together from segments and came through a tunnel.
        bulk: u32,
        ends: [EndValue; 2],
        reserved_end: u32,
    }
}

shared! {
    "weft_fragment_key" FragmentKey {
        source: AddrKey,
        destination: AddrKey,
        id: u32,
        protocol: u8,
        reserved: [u8; 3],
    }
}

shared! {
    "weft_fragment" FragmentValue {
        source_port: u16,
        destination_port: u16,
        protocol: u8,
        reserved: [u8; 3],
    }
}

impl FlowValue {
    pub const OPENED_BY_B: u8 = 1;
    pub const NAT: u8 = 2;
}

/// Bits of `enum weft_flow_tcp`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct TcpProgress(pub u8);

impl TcpProgress {
    const ESTABLISHED: u8 = 1;
    const CLOSING: u8 = 2 | 4 | 8;
    const ENDED: u8 = 16;

    pub fn is_open(self) -> bool {
        self.0 & Self::ESTABLISHED != 0 && self.0 & Self::CLOSING == 0
    }

    /// Both sides have closed, or one has reset; the kernel has told of it.
    pub fn has_ended(self) -> bool {
        self.0 & Self::ENDED != 0
    }
}

/// One tracked flow, seen from the side that opened it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flow {
    pub source: Addr,
    pub source_port: Port,
    pub destination: Addr,
    pub destination_port: Port,
    pub protocol: Protocol,
    pub reason: Reason,
    pub egress_rule: Option<RuleId>,
    pub ingress_rule: Option<RuleId>,
    pub epoch: u32,
    pub tcp: TcpProgress,
    /// CLOCK_MONOTONIC nanoseconds.
    pub created: u64,
    pub last_seen: u64,
    /// By the opener, by the responder.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
}

impl Flow {
    /// `None`: the kernel's reason is not one this version knows.
    pub fn new(key: &FlowKey, value: &FlowValue) -> Option<Self> {
        let (mut source, mut destination) = ((key.a, key.port_a), (key.b, key.port_b));
        if value.flags & FlowValue::OPENED_BY_B != 0 {
            std::mem::swap(&mut source, &mut destination);
        }
        Some(Self {
            source: source.0.into(),
            source_port: Port(source.1),
            destination: destination.0.into(),
            destination_port: Port(destination.1),
            protocol: Protocol(key.protocol),
            reason: Reason::from_number(value.reason)?,
            egress_rule: rule(value.egress_rule),
            ingress_rule: rule(value.ingress_rule),
            epoch: value.epoch,
            tcp: TcpProgress(value.tcp),
            created: value.created,
            last_seen: value.last_seen,
            packets: value.packets,
            bytes: value.bytes,
        })
    }

    /// After its last packet.
    pub fn lifetime(&self) -> Duration {
        lifetime(self.protocol, self.tcp)
    }

    pub fn is_expired(&self, now: u64) -> bool {
        u128::from(now.saturating_sub(self.last_seen)) > self.lifetime().as_nanos()
    }
}

/// How long a flow, or a translated connection, lives after its last packet (docs/design/datapath.md, "Flow keys").
pub fn lifetime(protocol: Protocol, tcp: TcpProgress) -> Duration {
    match protocol {
        Protocol::TCP if tcp.is_open() => Duration::from_secs(6 * 60 * 60),
        Protocol::TCP => Duration::from_secs(60),
        Protocol::ICMP | Protocol::ICMPV6 => Duration::from_secs(30),
        _ => Duration::from_secs(120),
    }
}

/// Rule numbers in the kernel: zero stands for none.
pub(crate) fn rule(number: u32) -> Option<RuleId> {
    (number != 0).then_some(RuleId(number))
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}:{} -> {}:{} {} packets {}/{} bytes {}/{}",
            self.protocol,
            self.source,
            self.source_port,
            self.destination,
            self.destination_port,
            self.reason,
            self.packets[0],
            self.packets[1],
            self.bytes[0],
            self.bytes[1],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(protocol: Protocol, tcp: u8) -> Flow {
        let key = FlowKey { protocol: protocol.0, port_a: 1, port_b: 2, ..Default::default() };
        let value =
            FlowValue { reason: 1, tcp, flags: FlowValue::OPENED_BY_B, last_seen: 5, ..Default::default() };
        Flow::new(&key, &value).unwrap()
    }

    #[test]
    fn a_flow_is_told_from_its_openers_side() {
        let flow = flow(Protocol::UDP, 0);
        assert_eq!((flow.source_port, flow.destination_port), (Port(2), Port(1)));
    }

    #[test]
    fn only_open_tcp_lives_long() {
        let seconds = |protocol, tcp| flow(protocol, tcp).lifetime().as_secs();
        assert_eq!([0, 1, 3, 9].map(|tcp| seconds(Protocol::TCP, tcp)), [60, 21_600, 60, 60]);
        assert_eq!([seconds(Protocol::UDP, 0), seconds(Protocol::ICMP, 0)], [120, 30]);
        assert!(flow(Protocol::ICMP, 0).is_expired(30_000_000_006));
        assert!(!flow(Protocol::ICMP, 0).is_expired(30_000_000_005));
    }
}
