//! A packet's journey through a node: docs/design/datapath.md as code. The programs in bpf/ must agree with it on every packet.

use weft_model::{Addr, Cidr, Family, PodKey, Protocol, Reason, Routing, Verdict};
use weft_plan::{NextHop, NodePlan, RuleId};

use crate::edge::{Connection, Scope, find_connection, keep_other};
use crate::flows::{FlowTable, Moment};
use crate::masquerade::{is_masqueraded, masquerade};
use crate::nat::{NatEntry, NatKey, NatKind, sent_on, translated_error, translated_error_of};
use crate::packets::{Body, Fragment, Packet, TcpFlags, Unreadable};
use crate::policies::{Judgement, longest_match};
use crate::track::{Translated, completed, is_current, track};

/// What becomes of a packet, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub reason: Reason,
    pub egress_rule: Option<RuleId>,
    pub ingress_rule: Option<RuleId>,
    /// The packet as it goes on where it was translated, before its hop limit is lowered.
    pub translated: Option<Packet>,
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
    /// To another machine along the node's own routes, hop limit lowered.
    ToNet,
    /// Dropped, and its sender is told.
    Reject(Refusal),
    Drop,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// TCP's.
    Reset,
    /// The others are ICMP errors.
    PortUnreachable,
    TimeExceeded,
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

    pub(crate) fn drop(reason: Reason) -> Self {
        Self { reason, egress_rule: None, ingress_rule: None, translated: None, action: Action::Drop }
    }

    fn reject(packet: &Packet, reason: Reason) -> Self {
        let action = match (reason, packet.body) {
            (Reason::HopLimit, _) => Action::Reject(Refusal::TimeExceeded),
            (Reason::NoReadyBackends | Reason::NotTranslated, Ok(body)) => refusal(&body),
            _ => Action::Drop,
        };
        let action = if may_hear_errors(packet) { action } else { Action::Drop };
        Self { action, ..Self::drop(reason) }
    }

    pub(crate) fn with(judgement: Judgement, action: Action) -> Self {
        let Judgement { reason, egress_rule, ingress_rule } = judgement;
        Self { reason, egress_rule, ingress_rule, translated: None, action }
    }

    /// Not policy's affair: no rule was asked.
    fn because(reason: Reason, action: Action) -> Self {
        Self::with(Judgement { reason, egress_rule: None, ingress_rule: None }, action)
    }

    /// Another reason takes the place of what policy said.
    fn instead(action: Result<Action, Reason>, judgement: Judgement) -> Self {
        match action {
            Ok(action) => Self::with(judgement, action),
            Err(reason) => Self::drop(reason),
        }
    }

    pub(crate) fn of(self, translated: Packet) -> Self {
        Self { translated: Some(translated), ..self }
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
    // Some of the node's own addresses are link-local: its name server's.
    if is_link_local(packet.destination) && !plan.settings.host_addresses.contains(&packet.destination) {
        return Outcome::drop(Reason::LinkLocal);
    }
    if plan.endpoints.get(&packet.source).is_none_or(|sender| sender.pod != *pod) {
        return Outcome::drop(Reason::SpoofedSource);
    }
    if is_current(flows, at, packet) {
        return leave_pod(plan, flows, at, packet, Translated::No);
    }
    match to_service(plan, flows, at, packet) {
        Service::None => leave_pod(plan, flows, at, packet, Translated::No),
        Service::Refused(reason) => Outcome::reject(packet, reason),
        Service::Translated(packet) => {
            let outcome = leave_pod(plan, flows, at, &packet, Translated::Yes);
            Outcome { translated: outcome.translated.or(Some(packet)), ..outcome }
        }
    }
}

/// Judges a pod's packet under the backend's address, and sends it on.
fn leave_pod(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    packet: &Packet,
    translated: Translated,
) -> Outcome {
    match track(plan, flows, at, packet, translated) {
        Err(reason) => Outcome::drop(reason),
        Ok(tracked) if tracked.judgement.is_denied() => Outcome::with(tracked.judgement, Action::Drop),
        Ok(tracked) if tracked.answers && translated == Translated::No => {
            answer(plan, flows, at, packet, tracked.judgement, Hook::FromPod)
        }
        Ok(tracked) => match forward(plan, packet) {
            Ok(Action::ToNet) => masquerade(plan, flows, at, packet, tracked.judgement),
            action => Outcome::instead(action, tracked.judgement),
        },
    }
}

/// What a packet of a pod is to services.
enum Service {
    None,
    Refused(Reason),
    Translated(Packet),
}

fn to_service(plan: &NodePlan, flows: &mut impl FlowTable, at: Moment, packet: &Packet) -> Service {
    let may_be = match place(plan, packet.destination) {
        Place::Host | Place::Services | Place::Elsewhere => true,
        Place::Remote(_) => !is_cluster_pod(plan, packet.destination),
        Place::Pod | Place::OwnPods | Place::ClusterPods => false,
    };
    let is_error = |body: &Body| body.quoted.is_some();
    let asks = |body: &Body| matches!(body.protocol, Protocol::TCP | Protocol::UDP) || is_error(body);
    let Some(_) = packet.body.ok().filter(|body| may_be && asks(body)) else { return Service::None };
    let Ok(body) = completed(flows, packet) else { return Service::None };
    if is_error(&body) {
        let error = translated_error(flows, packet, &body, &[NatKind::Request]);
        return error.map_or(Service::None, Service::Translated);
    }
    if !matches!(body.protocol, Protocol::TCP | Protocol::UDP) {
        return Service::None;
    }
    match find_connection(plan, flows, at, packet, &body, Scope::Cluster) {
        Connection::Refused(reason) => Service::Refused(reason),
        Connection::Of(entry) if entry.kind == NatKind::Request && packet.hop_limit <= 1 => {
            Service::Refused(Reason::HopLimit)
        }
        Connection::Of(entry) if entry.kind == NatKind::Request => {
            Service::Translated(entry.rewrite(packet, &body))
        }
        Connection::Of(_) | Connection::None => Service::None,
    }
}

/// Entries of what answers clients' packets, and pods' to outside.
const ABOUT_REQUEST: [NatKind; 2] = [NatKind::Reply, NatKind::MasqueradedReply];

/// Where a packet was seen that answers a translated one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hook {
    FromPod,
    ToPod,
    FromNet,
}

/// A packet that answers a translated one, after policy: it gets the address that its receiver knows.
fn answer(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    packet: &Packet,
    judgement: Judgement,
    hook: Hook,
) -> Outcome {
    // The stack answers a packet whose hop limit ends here with an ICMP error, about the packet as its sender knows it.
    let ends = packet.hop_limit <= 1;
    let translated = match completed(flows, packet) {
        Err(_) => return Outcome::drop(Reason::Malformed),
        Ok(body) if body.quoted.is_some() && ends => None,
        Ok(body) if body.quoted.is_some() => translated_error(flows, packet, &body, &ABOUT_REQUEST),
        Ok(_) if ends && hook != Hook::ToPod => None,
        Ok(body) => reply(flows, at, packet, &body),
    };
    let sent = translated.unwrap_or(*packet);
    let to = place(plan, sent.destination);
    if let Some(reason) = leads_nowhere(to).filter(|_| hook != Hook::ToPod) {
        return Outcome { translated, ..Outcome::drop(reason) };
    }
    let action = match to {
        _ if hook == Hook::ToPod => Action::ToStack,
        Place::Pod => deliver(&sent),
        Place::Host => Action::ToStack,
        Place::Remote(_) if sent.hop_limit <= 1 => Action::ToStack,
        Place::Remote(hop) if translated.is_none() || is_cluster_pod(plan, sent.destination) => {
            Action::ToNode(hop.clone())
        }
        _ if translated.is_some() => Action::ToNet,
        // A pod may also speak to a backend outside without the service.
        Place::Elsewhere if hook == Hook::FromPod && is_masqueraded(plan, packet.destination) => {
            return masquerade(plan, flows, at, packet, judgement);
        }
        _ => Action::ToStack,
    };
    Outcome { translated, ..Outcome::with(judgement, action) }
}

/// What the packet becomes on its way back, if it is one of a translated connection's.
fn reply(flows: &mut impl FlowTable, at: Moment, packet: &Packet, body: &Body) -> Option<Packet> {
    let key = NatKey::of(packet, body);
    let mut entry = flows.nat(&key).filter(|entry| entry.kind.is_reply())?;
    keep_other(flows, &key, &entry);
    entry.follow(body, at.time);
    // The entry is there, so changing it needs no room.
    let _ = flows.put_nat(key, entry);
    Some(entry.rewrite(packet, body))
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
    let tracked = match track(plan, flows, at, packet, Translated::No) {
        Err(reason) => return Outcome::drop(reason),
        Ok(tracked) => tracked,
    };
    let judgement = tracked.judgement;
    if judgement.is_denied() {
        // Its node reaches a pod even on a flow that the pod itself may no longer use.
        return if plan.settings.host_addresses.contains(&packet.source) {
            Outcome::with(Judgement { reason: Reason::FromOwnNode, ..judgement }, Action::ToStack)
        } else {
            Outcome::with(judgement, Action::Drop)
        };
    }
    if tracked.answers {
        return answer(plan, flows, at, packet, judgement, Hook::ToPod);
    }
    Outcome::with(judgement, Action::ToStack)
}

/// A packet that another machine sends. What is not for a pod of this node is the stack's affair, broken or not.
pub fn from_net(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    arrival: Arrival,
    packet: &Result<Packet, Unreadable>,
) -> Outcome {
    let up = Outcome::because(Reason::NotIsolated, Action::ToStack);
    let Ok(packet) = packet else { return up };
    if plan.endpoints.contains_key(&packet.destination) {
        if is_spoofed(plan, arrival, packet.source) {
            return Outcome::drop(Reason::SpoofedSource);
        }
        return enter_pod(plan, flows, at, packet, Translated::No);
    }
    match place(plan, packet.destination) {
        Place::OwnPods => Outcome::drop(Reason::NoSuchPod),
        _ => from_outside(plan, flows, at, arrival, packet).unwrap_or(up),
    }
}

/// A packet of the node's own processes on its way out of the uplink.
pub fn to_net(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    packet: &Result<Packet, Unreadable>,
) -> Outcome {
    let on = Outcome::because(Reason::NotIsolated, Action::ToStack);
    let Some((packet, body)) = packet.ok().and_then(|packet| Some((packet, packet.body.ok()?))) else {
        return on;
    };
    if is_tunnels(plan, &body) {
        return on;
    }
    if body.quoted.is_some() {
        let translated = translated_error(flows, &packet, &body, &ABOUT_REQUEST);
        return Outcome { translated, ..on };
    }
    if !matches!(body.protocol, Protocol::TCP | Protocol::UDP) {
        return on;
    }
    let Ok(body) = completed(flows, &packet) else { return on };
    Outcome { translated: reply(flows, at, &packet, &body), ..on }
}

fn enter_pod(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    packet: &Packet,
    translated: Translated,
) -> Outcome {
    match track(plan, flows, at, packet, translated) {
        Err(reason) => Outcome::drop(reason),
        Ok(tracked) if tracked.judgement.is_denied() => Outcome::with(tracked.judgement, Action::Drop),
        Ok(tracked) if tracked.answers && translated != Translated::Yes => {
            answer(plan, flows, at, packet, tracked.judgement, Hook::FromNet)
        }
        Ok(tracked) => Outcome::with(tracked.judgement, deliver(packet)),
    }
}

/// What is not for a pod: for a frontend, of a translated connection, or the stack's.
fn from_outside(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    arrival: Arrival,
    packet: &Packet,
) -> Option<Outcome> {
    let body = packet.body.ok()?;
    if is_link_local(packet.destination) || is_tunnels(plan, &body) {
        return None;
    }
    let body = completed(flows, packet).ok()?;
    if body.quoted.is_some() {
        return forward_error(plan, flows, at, arrival, packet, &body);
    }
    let nobodys = || is_service_address(plan, packet.destination).then(|| refuse_unserved(packet, &body));
    if is_spoofed_client(plan, arrival, packet.source) {
        return None;
    }
    match find_connection(plan, flows, at, packet, &body, Scope::Edge) {
        Connection::None => nobodys(),
        Connection::Refused(reason) => Some(Outcome::reject(packet, reason)),
        Connection::Of(entry) => Some(forward_connection(plan, flows, at, packet, &body, &entry)),
    }
}

fn forward_connection(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    packet: &Packet,
    body: &Body,
    entry: &NatEntry,
) -> Outcome {
    let backend = place(plan, entry.destination.0);
    if backend != Place::Host && packet.hop_limit <= 1 {
        return Outcome::reject(packet, Reason::HopLimit);
    }
    if entry.kind == NatKind::SentOn {
        return match backend {
            Place::Remote(hop) => Outcome::because(Reason::Balanced, Action::ToNode(hop.clone())),
            _ => Outcome::drop(Reason::RouteMissing),
        };
    }
    send_translated(plan, flows, at, (entry.rewrite(packet, body), entry.kind), Reason::Balanced)
}

/// An ICMP error to the node, or to a service's address, may be about a translated packet of either direction.
fn forward_error(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    arrival: Arrival,
    packet: &Packet,
    body: &Body,
) -> Option<Outcome> {
    if packet.hop_limit <= 1 || is_spoofed_client(plan, arrival, packet.source) {
        return None;
    }
    let kinds = [NatKind::Request, NatKind::Reply, NatKind::MasqueradedReply];
    if let Some(translated) = translated_error_of(flows, packet, body, &kinds) {
        return Some(send_translated(plan, flows, at, translated, Reason::Related));
    }
    if let Some(backend) = sent_on(flows, packet, body) {
        return Some(match place(plan, backend) {
            Place::Remote(hop) => Outcome::because(Reason::Related, Action::ToNode(hop.clone())),
            _ => Outcome::drop(Reason::RouteMissing),
        });
    }
    is_service_address(plan, packet.destination).then(|| refuse_unserved(packet, body))
}

/// Packets from outside to a port that no service has there would go round: the address leads back to this node.
fn is_service_address(plan: &NodePlan, addr: Addr) -> bool {
    let mut frontends = plan.services.iter();
    match place(plan, addr) {
        Place::Services => true,
        Place::Elsewhere => {
            frontends.any(|(frontend, service)| frontend.addr == addr && service.edge.is_some())
        }
        _ => false,
    }
}

fn refuse_unserved(packet: &Packet, body: &Body) -> Outcome {
    match body.protocol {
        Protocol::TCP | Protocol::UDP => Outcome::reject(packet, Reason::NotTranslated),
        _ => Outcome::drop(Reason::NotTranslated),
    }
}

fn send_translated(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    (packet, kind): (Packet, NatKind),
    reason: Reason,
) -> Outcome {
    let translated = if kind == NatKind::MasqueradedReply { Translated::Back } else { Translated::Yes };
    let to = place(plan, packet.destination);
    if let Some(nowhere) = leads_nowhere(to) {
        return Outcome::drop(nowhere).of(packet);
    }
    match to {
        Place::Pod => {
            let outcome = enter_pod(plan, flows, at, &packet, translated);
            Outcome { translated: outcome.translated.or(Some(packet)), ..outcome }
        }
        Place::Host => Outcome::because(Reason::NotIsolated, Action::ToStack).of(packet),
        Place::Remote(hop) if is_cluster_pod(plan, packet.destination) => {
            Outcome::because(reason, Action::ToNode(hop.clone())).of(packet)
        }
        _ => Outcome::because(reason, Action::ToNet).of(packet),
    }
}

/// Other nodes' tunnels end in the stack.
fn is_tunnels(plan: &NodePlan, body: &Body) -> bool {
    let port = match plan.settings.routing {
        Routing::Direct => return false,
        Routing::Vxlan { port, .. } => port,
    };
    body.protocol == Protocol::UDP && body.destination_port.0 == port
}

fn is_cluster_pod(plan: &NodePlan, addr: Addr) -> bool {
    plan.settings.cluster_pod_cidrs.iter().any(|cidr| cidr.contains(addr))
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
        Place::Elsewhere if is_masqueraded(plan, packet.destination) => Ok(Action::ToNet),
        Place::Host | Place::Elsewhere => Ok(Action::ToStack),
        Place::Remote(_) if packet.hop_limit <= 1 => Ok(Action::ToStack),
        Place::Remote(hop) => Ok(Action::ToNode(hop.clone())),
        to @ (Place::OwnPods | Place::Services | Place::ClusterPods) => {
            leads_nowhere(to).map_or(Ok(Action::ToStack), Err)
        }
    }
}

/// Why nothing can be sent to an address of the cluster.
fn leads_nowhere(to: Place<'_>) -> Option<Reason> {
    match to {
        Place::OwnPods => Some(Reason::NoSuchPod),
        Place::Services => Some(Reason::NotTranslated),
        Place::ClusterPods => Some(Reason::RouteMissing),
        Place::Pod | Place::Host | Place::Remote(_) | Place::Elsewhere => None,
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

/// A node sends on what it got from outside, unchanged; nobody else's tunnel may.
fn is_spoofed_client(plan: &NodePlan, arrival: Arrival, source: Addr) -> bool {
    match arrival {
        Arrival::Tunnel { from } if place(plan, source) == Place::Elsewhere => {
            is_cluster_pod(plan, from) || !matches!(place(plan, from), Place::Remote(_))
        }
        _ => is_spoofed(plan, arrival, source),
    }
}

/// A reset answers whole segments only: it says how long they were. Nothing answers a reset.
fn refusal(body: &Body) -> Action {
    let answered = body.fragment == Fragment::Whole && !body.tcp.has(TcpFlags::RST);
    match body.protocol {
        Protocol::TCP if answered => Action::Reject(Refusal::Reset),
        Protocol::TCP => Action::Drop,
        _ => Action::Reject(Refusal::PortUnreachable),
    }
}

/// RFC 1122, 3.2.2: not about later fragments, and not to those who are not one host.
fn may_hear_errors(packet: &Packet) -> bool {
    let is_later = packet.body.is_ok_and(|body| matches!(body.fragment, Fragment::Later(_)));
    let octets = packet.source.octets();
    let is_nobody = match packet.source.family() {
        Family::V4 => octets[12..] == [0; 4],
        Family::V6 => octets == [0; 16],
    };
    !is_later && !is_nobody && !is_link_local(packet.source)
}

/// Multicast, broadcast and link-local destinations.
pub(crate) fn is_link_local(addr: Addr) -> bool {
    let octets = addr.octets();
    match addr.family() {
        Family::V4 => {
            let v4 = &octets[12..];
            v4[..2] == [169, 254] || v4[0] >> 4 == 0xe || v4 == [255; 4]
        }
        Family::V6 => octets[0] == 0xff || (octets[0] == 0xfe && octets[1] & 0xc0 == 0x80),
    }
}
