//! A packet's journey through a node: docs/design/datapath.md as code. The programs in bpf/ must agree with it on every packet.

use weft_model::{Addr, Cidr, Family, PodKey, Protocol, Reason, Routing, Verdict};
use weft_plan::{NextHop, NodePlan, RuleId};

use crate::flows::{FlowEntry, FlowKey, FlowTable, FragmentKey, FragmentPorts, Moment, Side};
use crate::packets::{Body, Fragment, Packet, Unreadable};
use crate::policies::{Judgement, judge, longest_match};

/// What becomes of a packet, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub reason: Reason,
    pub egress_rule: Option<RuleId>,
    pub ingress_rule: Option<RuleId>,
    pub action: Action,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Into the pod of this node that has the address, hop limit lowered.
    DeliverTo(Addr),
    /// Up to the node's own stack, or on its way down from there.
    ToStack,
    /// To another node, hop limit lowered.
    ToNode(NextHop),
    Drop,
}

/// How a packet came to the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    Uplink,
    Tunnel { from: Addr },
}

impl Outcome {
    pub fn verdict(&self) -> Verdict {
        self.reason.verdict()
    }

    fn drop(reason: Reason) -> Self {
        Self { reason, egress_rule: None, ingress_rule: None, action: Action::Drop }
    }

    fn with(judgement: Judgement, action: Action) -> Self {
        let Judgement { reason, egress_rule, ingress_rule } = judgement;
        Self { reason, egress_rule, ingress_rule, action }
    }

    /// Another reason takes the place of what policy said.
    fn instead(action: Result<Action, Reason>, judgement: Judgement) -> Self {
        match action {
            Ok(action) => Self::with(judgement, action),
            Err(reason) => Self::drop(reason),
        }
    }
}

/// A packet that a pod sends.
pub fn from_pod(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    pod: &PodKey,
    packet: &Result<Packet, Unreadable>,
) -> Outcome {
    let packet = match packet {
        Ok(packet) => packet,
        Err(unreadable) => return Outcome::drop(unreadable.reason()),
    };
    if is_link_local(packet.destination) {
        return Outcome::drop(Reason::LinkLocal);
    }
    if plan.endpoints.get(&packet.source).is_none_or(|sender| sender.pod != *pod) {
        return Outcome::drop(Reason::SpoofedSource);
    }
    match track(plan, flows, at, packet) {
        Err(reason) => Outcome::drop(reason),
        Ok(judgement) if judgement.is_denied() => Outcome::with(judgement, Action::Drop),
        Ok(judgement) => Outcome::instead(forward(plan, packet), judgement),
    }
}

/// A packet that the node's own stack sends to a pod.
pub fn to_pod(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    pod: &PodKey,
    packet: &Result<Packet, Unreadable>,
) -> Outcome {
    let packet = match packet {
        Ok(packet) => packet,
        // The node's address resolution; pods' packets of other kinds never come here.
        Err(Unreadable::NotIp) => return Outcome { action: Action::ToStack, ..Outcome::drop(Reason::NotIp) },
        Err(unreadable) => return Outcome::drop(unreadable.reason()),
    };
    if is_link_local(packet.destination) {
        return Outcome::drop(Reason::LinkLocal);
    }
    if plan.endpoints.get(&packet.destination).is_none_or(|receiver| receiver.pod != *pod) {
        return Outcome::drop(Reason::NoSuchPod);
    }
    match track(plan, flows, at, packet) {
        Err(reason) => Outcome::drop(reason),
        // Its node reaches a pod even on a flow that the pod itself may no longer use.
        Ok(judgement) if judgement.is_denied() && plan.settings.host_addresses.contains(&packet.source) => {
            Outcome::with(Judgement { reason: Reason::FromOwnNode, ..judgement }, Action::ToStack)
        }
        Ok(judgement) if judgement.is_denied() => Outcome::with(judgement, Action::Drop),
        Ok(judgement) => Outcome::with(judgement, Action::ToStack),
    }
}

/// A packet that another machine sends. What is not for a pod of this node is the stack's affair, broken or not.
pub fn from_net(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    arrival: Arrival,
    packet: &Result<Packet, Unreadable>,
) -> Outcome {
    let up = Judgement { reason: Reason::NotIsolated, egress_rule: None, ingress_rule: None };
    let Ok(packet) = packet else { return Outcome::with(up, Action::ToStack) };
    if !plan.endpoints.contains_key(&packet.destination) {
        return match place(plan, packet.destination) {
            Place::OwnPods => Outcome::drop(Reason::NoSuchPod),
            _ => Outcome::with(up, Action::ToStack),
        };
    }
    if is_spoofed(plan, arrival, packet.source) {
        return Outcome::drop(Reason::SpoofedSource);
    }
    match track(plan, flows, at, packet) {
        Err(reason) => Outcome::drop(reason),
        Ok(judgement) if judgement.is_denied() => Outcome::with(judgement, Action::Drop),
        Ok(judgement) => Outcome::with(judgement, deliver(packet)),
    }
}

/// What an address is to this node, in the order of the look-ups.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place<'a> {
    Pod,
    Host,
    Remote(&'a NextHop),
    OwnPods,
    Services,
    ClusterPods,
    Elsewhere,
}

pub fn place(plan: &NodePlan, addr: Addr) -> Place<'_> {
    let settings = &plan.settings;
    let inside = |cidrs: &std::collections::BTreeSet<Cidr>| cidrs.iter().any(|cidr| cidr.contains(addr));
    if plan.endpoints.contains_key(&addr) {
        return Place::Pod;
    }
    if settings.host_addresses.contains(&addr) {
        return Place::Host;
    }
    match longest_match(&plan.routes, addr) {
        Some(hop) => Place::Remote(hop),
        None if inside(&settings.pod_cidrs) => Place::OwnPods,
        None if inside(&settings.service_cidrs) => Place::Services,
        None if inside(&settings.cluster_pod_cidrs) => Place::ClusterPods,
        None => Place::Elsewhere,
    }
}

fn forward(plan: &NodePlan, packet: &Packet) -> Result<Action, Reason> {
    match place(plan, packet.destination) {
        Place::Pod => Ok(deliver(packet)),
        Place::Host | Place::Elsewhere => Ok(Action::ToStack),
        Place::Remote(_) if packet.hop_limit <= 1 => Ok(Action::ToStack),
        Place::Remote(hop) => Ok(Action::ToNode(hop.clone())),
        Place::OwnPods => Err(Reason::NoSuchPod),
        Place::Services => Err(Reason::NotTranslated),
        Place::ClusterPods => Err(Reason::RouteMissing),
    }
}

/// The stack answers a packet whose hop limit ends here with the ICMP error.
fn deliver(packet: &Packet) -> Action {
    if packet.hop_limit <= 1 { Action::ToStack } else { Action::DeliverTo(packet.destination) }
}

fn is_spoofed(plan: &NodePlan, arrival: Arrival, source: Addr) -> bool {
    let place = place(plan, source);
    if matches!(place, Place::Pod | Place::Host | Place::OwnPods) {
        return true;
    }
    match (plan.settings.routing, arrival) {
        (Routing::Direct, _) => false,
        (Routing::Vxlan { .. }, Arrival::Uplink) => {
            plan.settings.cluster_pod_cidrs.iter().any(|cidr| cidr.contains(source))
        }
        (Routing::Vxlan { .. }, Arrival::Tunnel { from }) => match place {
            Place::Remote(hop) => hop.via != from,
            _ => true,
        },
    }
}

/// Multicast, broadcast and link-local destinations.
fn is_link_local(addr: Addr) -> bool {
    let octets = addr.octets();
    match addr.family() {
        Family::V4 => {
            let v4 = &octets[12..];
            v4[..2] == [169, 254] || v4[0] >> 4 == 0xe || v4 == [255; 4]
        }
        Family::V6 => octets[0] == 0xff || (octets[0] == 0xfe && octets[1] & 0xc0 == 0x80),
    }
}

/// What is known or now decided about the packet's flow.
fn track(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    packet: &Packet,
) -> Result<Judgement, Reason> {
    let body = completed(flows, packet)?;
    if let Some(judgement) = related(plan, flows, at, packet, &body) {
        return Ok(judgement);
    }
    let source = (packet.source, body.source_port);
    let destination = (packet.destination, body.destination_port);
    let (key, side) = FlowKey::of(source, destination, body.protocol);
    match flows.flow(&key).filter(|entry| !opens_another(entry, side, &body)) {
        Some(entry) => Ok(follow(plan, flows, at, key, entry, side, &body)),
        None => open(plan, flows, at, packet, key, side, &body),
    }
}

/// A TCP SYN from the side that did not open the flow is no reply, and one after its end is no part of it.
fn opens_another(entry: &FlowEntry, side: Side, body: &Body) -> bool {
    body.tcp.opens() && (side != entry.opener || entry.tcp.has_ended())
}

fn open(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    packet: &Packet,
    key: FlowKey,
    side: Side,
    body: &Body,
) -> Result<Judgement, Reason> {
    let judgement = judge(plan, packet.source, packet.destination, body.protocol, body.destination_port);
    if !judgement.is_denied() {
        let entry = FlowEntry {
            opener: side,
            epoch: at.epoch,
            reason: judgement.reason,
            egress_rule: judgement.egress_rule,
            ingress_rule: judgement.ingress_rule,
            tcp: Default::default(),
            last_seen: at.time,
        };
        flows.put_flow(key, entry).map_err(|_| Reason::TableFull)?;
    }
    Ok(judgement)
}

fn follow(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    key: FlowKey,
    entry: FlowEntry,
    side: Side,
    body: &Body,
) -> Judgement {
    let mut entry = current(plan, at, &key, entry);
    let from_opener = side == entry.opener;
    let mut judgement = entry.judgement();
    if !judgement.is_denied() {
        entry.last_seen = at.time;
        if body.protocol == Protocol::TCP {
            entry.tcp.follow(body.tcp, from_opener);
        }
        if !from_opener {
            judgement.reason = Reason::Reply;
        }
    }
    // The entry is there, so changing it needs no room.
    let _ = flows.put_flow(key, entry);
    judgement
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
) -> Option<Judgement> {
    let quoted = body.quoted.filter(|quoted| quoted.source == packet.destination)?;
    let source = (quoted.source, quoted.source_port);
    let (key, _) = FlowKey::of(source, (quoted.destination, quoted.destination_port), quoted.protocol);
    let entry = current(plan, at, &key, flows.flow(&key)?);
    let _ = flows.put_flow(key, entry);
    let judgement = entry.judgement();
    let reason = if judgement.is_denied() { judgement.reason } else { Reason::Related };
    Some(Judgement { reason, ..judgement })
}

/// Later fragments have no ports of their own; the first one's count.
fn completed(flows: &mut impl FlowTable, packet: &Packet) -> Result<Body, Reason> {
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
