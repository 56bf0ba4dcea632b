//! A packet's flow: what is remembered of it, or now decided. Where the packet then goes lives in `journey`.

use weft_model::{Protocol, Reason};
use weft_plan::NodePlan;

use crate::flows::{FlowEntry, FlowKey, FlowTable, FragmentKey, FragmentPorts, Moment, Side, TcpProgress};
use crate::nat::{NatKey, NatKind};
use crate::packets::{Body, Fragment, Packet, Unreadable};
use crate::policies::{Judgement, judge};

/// Whether a packet has been translated on its way to a backend, and its source looked at before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Translated {
    No,
    Yes,
    /// It answers what a pod has sent to outside, masqueraded.
    Back,
}

/// What is known or now decided about the packet's flow.
pub(crate) struct Tracked {
    pub judgement: Judgement,
    /// The flow's packets are translated.
    pub answers: bool,
}

impl Tracked {
    fn of(entry: &FlowEntry, judgement: Judgement) -> Self {
        Self { judgement, answers: entry.is_translated }
    }
}

pub(crate) fn track(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    packet: &Packet,
    translated: Translated,
) -> Result<Tracked, Reason> {
    let body = completed(flows, packet)?;
    if let Some(tracked) = related(plan, flows, at, packet, &body) {
        return Ok(tracked);
    }
    let source = (packet.source, body.source_port);
    let destination = (packet.destination, body.destination_port);
    let (key, side) = FlowKey::of(source, destination, body.protocol);
    match flows.flow(&key).filter(|entry| !opens_another(entry, side, &body)) {
        Some(entry) => Ok(follow(plan, flows, at, (key, entry), &Step { packet, body, side, translated })),
        None => open(plan, flows, at, key, &Step { packet, body, side, translated }),
    }
}

/// Whether nothing has to be asked about the packet again: it is a whole one of a flow judged in this epoch.
pub(crate) fn is_current(flows: &impl FlowTable, at: Moment, packet: &Packet) -> bool {
    let Ok(body) = packet.body else { return false };
    let source = (packet.source, body.source_port);
    let (key, _) = FlowKey::of(source, (packet.destination, body.destination_port), body.protocol);
    let is_plain = body.fragment == Fragment::Whole && body.quoted.is_none() && !body.tcp.opens();
    is_plain && flows.flow(&key).is_some_and(|entry| entry.epoch == at.epoch)
}

/// A TCP SYN from the side that did not open the flow is no reply, and one after its end is no part of it.
fn opens_another(entry: &FlowEntry, side: Side, body: &Body) -> bool {
    body.tcp.opens() && (side != entry.opener || entry.tcp.has_ended())
}

/// A packet on its way through its flow.
struct Step<'a> {
    packet: &'a Packet,
    body: Body,
    side: Side,
    translated: Translated,
}

fn open(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    key: FlowKey,
    step: &Step<'_>,
) -> Result<Tracked, Reason> {
    let Step { packet, body, side, translated } = step;
    let lost = *translated != Translated::Yes && answers_lost(flows, packet, body);
    // What opens a connection answers nothing, whatever it is translated by.
    let back = lost || (*translated == Translated::Back && !body.tcp.opens());
    let mut judgement = match back {
        true => judge(plan, packet.destination, packet.source, body.protocol, body.source_port),
        false => judge(plan, packet.source, packet.destination, body.protocol, body.destination_port),
    };
    if !judgement.is_denied() {
        let entry = FlowEntry {
            opener: if back { side.other() } else { *side },
            epoch: at.epoch,
            reason: judgement.reason,
            egress_rule: judgement.egress_rule,
            ingress_rule: judgement.ingress_rule,
            tcp: TcpProgress { established: back && body.protocol == Protocol::TCP, ..Default::default() },
            last_seen: at.time,
            is_translated: lost || *translated == Translated::Yes,
        };
        flows.put_flow(key, entry).map_err(|_| Reason::TableFull)?;
    }
    let answers = lost && !judgement.is_denied();
    if back && !judgement.is_denied() {
        judgement.reason = Reason::Reply;
    }
    Ok(Tracked { judgement, answers })
}

/// Whether a packet without a flow answers a translated connection, whose flow the table has lost.
fn answers_lost(flows: &impl FlowTable, packet: &Packet, body: &Body) -> bool {
    let has_ports = matches!(body.protocol, Protocol::TCP | Protocol::UDP);
    let entry = flows.nat(&NatKey::of(packet, body));
    has_ports && !body.tcp.opens() && entry.is_some_and(|entry| entry.kind == NatKind::Reply)
}

fn follow(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    (key, entry): (FlowKey, FlowEntry),
    step: &Step<'_>,
) -> Tracked {
    let mut entry = current(plan, at, &key, entry);
    let from_opener = step.side == entry.opener;
    let mut judgement = entry.judgement();
    if !judgement.is_denied() {
        entry.is_translated |= step.translated == Translated::Yes;
        entry.last_seen = at.time;
        if step.body.protocol == Protocol::TCP {
            entry.tcp.follow(step.body.tcp, from_opener);
        }
        if !from_opener {
            judgement.reason = Reason::Reply;
        }
    }
    // The entry is there, so changing it needs no room.
    let _ = flows.put_flow(key, entry);
    Tracked::of(&entry, judgement)
}

/// The entry as policy has it now. One that is denied stays: were it gone, the responder's next packet would open
/// the flow again from its side.
fn current(plan: &NodePlan, at: Moment, key: &FlowKey, entry: FlowEntry) -> FlowEntry {
    if entry.epoch == at.epoch {
        return entry;
    }
    let (opener, responder) = match entry.opener {
        Side::A => (key.a, key.b),
        Side::B => (key.b, key.a),
    };
    let Judgement { reason, egress_rule, ingress_rule } =
        judge(plan, opener.0, responder.0, key.protocol, responder.1);
    FlowEntry { epoch: at.epoch, reason, egress_rule, ingress_rule, ..entry }
}

impl FlowEntry {
    fn judgement(&self) -> Judgement {
        Judgement { reason: self.reason, egress_rule: self.egress_rule, ingress_rule: self.ingress_rule }
    }
}

/// An ICMP error belongs to the flow it speaks of, if it goes to the one who sent the packet it quotes.
fn related(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    packet: &Packet,
    body: &Body,
) -> Option<Tracked> {
    let quoted = body.quoted.filter(|quoted| quoted.source == packet.destination)?;
    let source = (quoted.source, quoted.source_port);
    let (key, _) = FlowKey::of(source, (quoted.destination, quoted.destination_port), quoted.protocol);
    let entry = current(plan, at, &key, flows.flow(&key)?);
    let _ = flows.put_flow(key, entry);
    let judgement = entry.judgement();
    let reason = if judgement.is_denied() { judgement.reason } else { Reason::Related };
    Some(Tracked::of(&entry, Judgement { reason, ..judgement }))
}

/// Later fragments have no ports of their own; the first one's count.
pub(crate) fn completed(flows: &mut impl FlowTable, packet: &Packet) -> Result<Body, Reason> {
    let body = packet.body.map_err(Unreadable::reason)?;
    let key = |id| FragmentKey { source: packet.source, destination: packet.destination, id };
    match body.fragment {
        Fragment::Whole => Ok(body),
        Fragment::First(id) => {
            let Body { protocol, source_port, destination_port, .. } = body;
            let ports = FragmentPorts { protocol, source_port, destination_port };
            flows.put_fragment(key(id), ports).map_err(|_| Reason::TableFull)?;
            Ok(body)
        }
        Fragment::Later(id) => {
            let first = flows.fragment(&key(id)).ok_or(Reason::FragmentUnknown)?;
            let FragmentPorts { protocol, source_port, destination_port } = first;
            Ok(Body { protocol, source_port, destination_port, ..body })
        }
    }
}
