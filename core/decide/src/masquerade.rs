//! Pods' packets to outside the cluster: they leave with the node's address, and a port of the node's where their protocol has
//! ports. What answers them comes back through `edge`.

use weft_model::{Addr, Port, Protocol, Reason};
use weft_plan::{FORWARDING_PORTS, ListId, NodePlan, ServiceId, maglev};

use crate::edge::{claim_once, claim_port, keep_other};
use crate::flows::{FlowTable, Moment};
use crate::journey::{Action, Outcome};
use crate::nat::{NatEntry, NatKey, NatKind, translated_error};
use crate::packets::{Body, Packet};
use crate::policies::Judgement;
use crate::track::completed;

/// Whether a destination outside the cluster gets to see the node's address in place of the pod's.
pub(crate) fn is_masqueraded(plan: &NodePlan, to: Addr) -> bool {
    !plan.settings.cluster_cidrs.iter().any(|cidr| cidr.contains(to))
}

/// After policy. Routes are taken to lead out of the uplink: where they do not, the stack sends the packet as it is.
pub(crate) fn masquerade(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    packet: &Packet,
    judgement: Judgement,
) -> Outcome {
    let body = match completed(flows, packet) {
        Ok(body) => body,
        Err(_) => return Outcome::drop(Reason::Malformed),
    };
    if packet.hop_limit <= 1 {
        return Outcome::with(judgement, Action::ToStack);
    }
    let leave = |packet| Outcome::with(judgement, Action::ToNet).of(packet);
    if let Some(error) = translated_error(flows, packet, &body, &[NatKind::Masqueraded]) {
        return leave(error);
    }
    match find_or_open(plan, flows, at, packet, &body) {
        Ok(entry) => leave(entry.rewrite(packet, &body)),
        Err(reason) => Outcome::drop(reason),
    }
}

fn find_or_open(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    packet: &Packet,
    body: &Body,
) -> Result<NatEntry, Reason> {
    let key = NatKey::of(packet, body);
    let own = plan.settings.node_addresses.iter().find(|own| own.family() == packet.source.family());
    let goes_on = body.protocol == Protocol::TCP && !body.tcp.opens();
    let known = flows.nat(&key).filter(|entry| entry.kind == NatKind::Masqueraded);
    if let Some(mut entry) = known.filter(|entry| goes_on || own == Some(&entry.source.0)) {
        keep_other(flows, &key, &entry);
        entry.follow(body, at.time);
        // The entry is there, so changing it needs no room.
        let _ = flows.put_nat(key, entry);
        return Ok(entry);
    }
    // Nothing tells whose the answers to other ICMP messages than echo are.
    let is_told_apart = !key.is_icmp() || key.source.1 != Port(0);
    let own = own.filter(|_| is_told_apart).ok_or(Reason::NoFreePort)?;
    let mut entry = NatEntry {
        source: (*own, key.source.1),
        destination: key.destination,
        kind: NatKind::Masqueraded,
        service: ServiceId(0),
        list: ListId(0),
        tcp: Default::default(),
        last_seen: at.time,
    };
    entry.follow(body, at.time);
    let entry = claim(flows, &key, entry).ok_or(Reason::NoFreePort)?;
    flows.put_nat(key, entry).map_err(|_| Reason::TableFull)?;
    Ok(entry)
}

/// The source port is kept where it is one of the node's for this. What has none, or cannot have another, is one pod's at a time.
fn claim(flows: &mut impl FlowTable, key: &NatKey, entry: NatEntry) -> Option<NatEntry> {
    let port = key.source.1;
    if !key.has_own_port() || port == Port(0) {
        return claim_once(flows, key, entry);
    }
    let asked =
        maglev::Connection { source: key.source, destination: key.destination, protocol: key.protocol };
    let is_ours = (FORWARDING_PORTS[0]..=FORWARDING_PORTS[1]).contains(&port.0);
    claim_port(flows, key, entry, is_ours.then_some(port), asked.hash())
}
