//! Translated connections: what is remembered of one, and what a packet, or an ICMP error about one, becomes. Which backend a
//! connection gets lives in `edge`.

use weft_model::{Addr, Port, Protocol};
use weft_plan::{ListId, ServiceId};

use crate::flows::{FlowTable, TcpProgress, Time};
use crate::packets::{Body, Packet, Quoted, TcpFlags};

/// A packet of one direction, as it arrives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NatKey {
    pub source: (Addr, Port),
    pub destination: (Addr, Port),
    pub protocol: Protocol,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NatKind {
    /// From the client.
    Request,
    /// From the backend.
    Reply,
    /// From the client, and sent on as it is to the backend's node.
    SentOn,
    /// From a pod to outside the cluster.
    Masqueraded,
    /// Back from there.
    MasqueradedReply,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NatEntry {
    /// What the packet becomes.
    pub source: (Addr, Port),
    pub destination: (Addr, Port),
    pub kind: NatKind,
    pub service: ServiceId,
    pub list: ListId,
    /// As its own direction's packets tell.
    pub tcp: TcpProgress,
    pub last_seen: Time,
}

impl NatKey {
    pub fn of(packet: &Packet, body: &Body) -> Self {
        Self {
            source: (packet.source, body.source_port),
            destination: (packet.destination, body.destination_port),
            protocol: body.protocol,
        }
    }

    /// Of the packets that answer the one an ICMP error quotes.
    pub fn back(quoted: &Quoted) -> Self {
        Self {
            source: (quoted.destination, quoted.destination_port),
            destination: (quoted.source, quoted.source_port),
            protocol: quoted.protocol,
        }
    }
}

impl NatKey {
    /// Whether its packets may get another source port on their way; ICMP echo's is its identifier.
    pub(crate) fn has_own_port(&self) -> bool {
        matches!(self.protocol, Protocol::TCP | Protocol::UDP) || self.is_icmp()
    }

    pub(crate) fn is_icmp(&self) -> bool {
        matches!(self.protocol, Protocol::ICMP | Protocol::ICMPV6)
    }
}

impl NatKind {
    pub(crate) fn is_reply(self) -> bool {
        matches!(self, Self::Reply | Self::MasqueradedReply)
    }

    /// Of the connection's other entry.
    fn other(self) -> Self {
        match self {
            Self::Request => Self::Reply,
            Self::Reply => Self::Request,
            Self::SentOn => Self::SentOn,
            Self::Masqueraded => Self::MasqueradedReply,
            Self::MasqueradedReply => Self::Masqueraded,
        }
    }
}

impl NatEntry {
    /// What the connection becomes the other way; this entry has `key`.
    pub(crate) fn other(&self, key: &NatKey) -> Self {
        Self {
            source: key.destination,
            destination: key.source,
            kind: self.kind.other(),
            tcp: Default::default(),
            ..*self
        }
    }

    /// Of the packets that answer what this one makes: the connection's other entry.
    pub fn other_key(&self, protocol: Protocol) -> NatKey {
        NatKey { source: self.destination, destination: self.source, protocol }
    }

    pub(crate) fn follow(&mut self, body: &Body, now: Time) {
        self.last_seen = now;
        if body.protocol != Protocol::TCP {
            return;
        }
        let flags = body.tcp;
        let reply = self.kind.is_reply();
        if flags.has(TcpFlags::SYN) {
            self.tcp = TcpProgress { established: reply, ..TcpProgress::default() };
        } else if (reply || self.kind == NatKind::SentOn) && flags.has(TcpFlags::ACK) {
            // A connection that was found in its middle, or whose replies do not pass here.
            self.tcp.established = true;
        }
        let finished = if reply { &mut self.tcp.responder_finished } else { &mut self.tcp.opener_finished };
        *finished |= flags.has(TcpFlags::FIN);
        self.tcp.reset |= flags.has(TcpFlags::RST);
    }

    /// The packet as it goes on; `body` has its ports, which a later fragment does not hold itself.
    pub(crate) fn rewrite(&self, packet: &Packet, body: &Body) -> Packet {
        let body = Body { source_port: self.source.1, destination_port: self.destination.1, ..*body };
        Packet { source: self.source.0, destination: self.destination.0, body: Ok(body), ..*packet }
    }

    /// An ICMP error about a translated packet is translated as an answer to it would be (RFC 5508, 4.2). This is that
    /// answer's entry.
    fn rewrite_error(&self, error: &Packet, body: &Body, quoted: &Quoted) -> Packet {
        let quotation = Quoted {
            source: self.destination.0,
            source_port: self.destination.1,
            destination: self.source.0,
            destination_port: self.source.1,
            ..*quoted
        };
        let source = if self.source.0 == quoted.destination { error.source } else { self.source.0 };
        let body = Body { quoted: Some(quotation), ..*body };
        Packet { source, destination: self.destination.0, body: Ok(body), ..*error }
    }
}

/// The backend that answers the client itself, if an ICMP error is about such an answer.
pub(crate) fn sent_on(flows: &impl FlowTable, error: &Packet, body: &Body) -> Option<Addr> {
    let quoted = body.quoted.filter(|quoted| quoted.source == error.destination)?;
    let entry = flows.nat(&NatKey::back(&quoted)).filter(|entry| entry.kind == NatKind::SentOn)?;
    Some(entry.destination.0)
}

/// The ICMP error as its receiver has to see it, if it is about a packet that `kinds` of entries answer.
pub(crate) fn translated_error(
    flows: &impl FlowTable,
    error: &Packet,
    body: &Body,
    kinds: &[NatKind],
) -> Option<Packet> {
    translated_error_of(flows, error, body, kinds).map(|(packet, _)| packet)
}

/// And which of them.
pub(crate) fn translated_error_of(
    flows: &impl FlowTable,
    error: &Packet,
    body: &Body,
    kinds: &[NatKind],
) -> Option<(Packet, NatKind)> {
    let quoted = body.quoted.filter(|quoted| quoted.source == error.destination)?;
    let entry = flows.nat(&NatKey::back(&quoted)).filter(|entry| kinds.contains(&entry.kind))?;
    Some((entry.rewrite_error(error, body, &quoted), entry.kind))
}
