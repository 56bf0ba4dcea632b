//! What programs tell the agent: events and counters. Twin of bpf/abi/events.h.

use serde::{Deserialize, Serialize};
use weft_model::{Addr, Port, Protocol, Reason};
use weft_plan::{RuleId, ServiceId};

use crate::AddrKey;
use crate::flows::{Flow, rule};
use crate::layout::shared;

shared! {
    "weft_event" RawEvent {
        at: u64,
        socket: u64,
        netns: u64,
        packets: [u64; 2],
        bytes: [u64; 2],
        source: AddrKey,
        destination: AddrKey,
        backend: AddrKey,
        egress_rule: u32,
        ingress_rule: u32,
        ifindex: u32,
        length: u32,
        service: u32,
        source_port: u16,
        destination_port: u16,
        backend_port: u16,
        protocol: u8,
        kind: u8,
        hook: u8,
        reason: u8,
        reserved: [u8; 2],
    }
}

shared! {
    "weft_count" Count {
        packets: u64,
        bytes: u64,
    }
}

/// Slots of map `counters` beyond the reasons.
pub struct Counter;

impl Counter {
    pub const EVENTS_LOST: u32 = 64;
    pub const EVENTS_SUPPRESSED: u32 = 65;
    pub const LIMIT: u32 = 66;
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    NewFlow,
    Denied,
    /// A socket meant a service and got a backend.
    Translated,
    /// A socket meant a service and got ECONNREFUSED.
    Refused,
    /// A TCP flow was closed or reset, or a flow was silent for so long that it was removed.
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    FromPod,
    ToPod,
    FromNet,
    Socket,
    ToNet,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// CLOCK_MONOTONIC nanoseconds.
    pub at: u64,
    pub kind: EventKind,
    pub hook: Hook,
    pub source: Addr,
    pub source_port: Port,
    pub destination: Addr,
    pub destination_port: Port,
    pub protocol: Protocol,
    /// `None`: a translation, which nothing but the service's existence causes.
    pub reason: Option<Reason>,
    pub egress_rule: Option<RuleId>,
    pub ingress_rule: Option<RuleId>,
    /// Where the packet was seen; 0 for sockets.
    pub ifindex: u32,
    /// Of the packet that caused the event.
    pub length: u32,
    pub service: Option<ServiceId>,
    pub backend: Option<(Addr, Port)>,
    /// Of the socket's namespace; 0 for packets.
    pub netns_cookie: u64,
    pub socket_cookie: u64,
    /// Of ended flows: by the opener, by the responder.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
}

impl EventKind {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::NewFlow,
            2 => Self::Denied,
            3 => Self::Translated,
            4 => Self::Refused,
            5 => Self::Ended,
            _ => return None,
        })
    }
}

impl Hook {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::FromPod,
            2 => Self::ToPod,
            3 => Self::FromNet,
            4 => Self::Socket,
            5 => Self::ToNet,
            _ => return None,
        })
    }
}

impl Event {
    /// `None`: not an event of this version.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let raw: RawEvent = bytemuck::try_pod_read_unaligned(bytes.get(..size_of::<RawEvent>())?).ok()?;
        let backend = Addr::from(raw.backend);
        Some(Self {
            at: raw.at,
            kind: EventKind::from_number(raw.kind)?,
            hook: Hook::from_number(raw.hook)?,
            source: raw.source.into(),
            source_port: Port(raw.source_port),
            destination: raw.destination.into(),
            destination_port: Port(raw.destination_port),
            protocol: Protocol(raw.protocol),
            reason: Reason::from_number(raw.reason),
            egress_rule: rule(raw.egress_rule),
            ingress_rule: rule(raw.ingress_rule),
            ifindex: raw.ifindex,
            length: raw.length,
            service: (raw.service != 0).then_some(ServiceId(raw.service)),
            backend: (backend.octets() != [0; 16]).then_some((backend, Port(raw.backend_port))),
            netns_cookie: raw.netns,
            socket_cookie: raw.socket,
            packets: raw.packets,
            bytes: raw.bytes,
        })
    }
}

impl Event {
    /// The end of a flow that was removed because it was silent: the kernel tells only of flows that close. `hook` is
    /// where its opener's packets came in.
    pub fn expired(flow: &Flow, hook: Hook) -> Self {
        Self {
            at: flow.last_seen,
            kind: EventKind::Ended,
            hook,
            source: flow.source,
            source_port: flow.source_port,
            destination: flow.destination,
            destination_port: flow.destination_port,
            protocol: flow.protocol,
            reason: Some(flow.reason),
            egress_rule: flow.egress_rule,
            ingress_rule: flow.ingress_rule,
            ifindex: 0,
            length: 0,
            service: None,
            backend: None,
            netns_cookie: 0,
            socket_cookie: 0,
            packets: flow.packets,
            bytes: flow.bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_or_foreign_bytes_are_no_event() {
        assert_eq!(Event::from_bytes(&[1; 16]), None);
        assert_eq!(Event::from_bytes(bytemuck::bytes_of(&RawEvent::default())), None);
    }

    #[test]
    fn a_translation_carries_service_and_backend() {
        let addr: Addr = "10.244.1.9".parse().unwrap();
        let raw = RawEvent {
            kind: 3,
            hook: 4,
            service: 12,
            backend: addr.into(),
            backend_port: 8080,
            ..Default::default()
        };
        let event = Event::from_bytes(bytemuck::bytes_of(&raw)).unwrap();
        assert_eq!((event.service, event.backend), (Some(ServiceId(12)), Some((addr, Port(8080)))));
        assert_eq!((event.kind, event.reason, event.egress_rule), (EventKind::Translated, None, None));
    }
}
