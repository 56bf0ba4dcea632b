//! Packets to service frontends: which connection, which backend, and what the packet becomes. Where it then goes lives in
//! `journey`; the steps are docs/design/services.md's.

use weft_model::{Addr, Affinity, Balancing, Cidr, Forwarding, Port, Protocol, Reason};
use weft_plan::{Backend, BackendList, FORWARDING_PORTS, Frontend, NodePlan, ServiceId, ServicePlan, maglev};

use crate::flows::{FlowTable, Moment, Time};
use crate::journey::{Place, place};
use crate::nat::{NatEntry, NatKey, NatKind};
use crate::packets::{Body, Packet, TcpFlags};
use crate::sockets::unspecified;

/// How often a free port is looked for.
const PORT_TRIES: u32 = 24;
const TRIES_APART: u32 = 127;
/// Seconds that a connection has to be silent before its port is taken for another, where none is free.
const SPARE_AFTER: u64 = 30;

/// Where a client's last connection to a service went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AffinityEntry {
    pub backend: (Addr, Port),
    pub last_used: Time,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AffinityKey {
    pub client: Addr,
    pub service: ServiceId,
}

/// Which of a frontend's two lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    Cluster,
    Edge,
}

/// What a packet is to services.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Connection {
    None,
    Of(NatEntry),
    Refused(Reason),
}

/// A packet, with its ports, that is not for a pod of this node.
pub(crate) fn find_connection(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    packet: &Packet,
    body: &Body,
    scope: Scope,
) -> Connection {
    let key = NatKey::of(packet, body);
    // Pods' masqueraded packets come by here before policy.
    let entry = flows.nat(&key).filter(|entry| entry.kind != NatKind::Masqueraded);
    let asks = body.protocol == Protocol::UDP || body.tcp.opens();
    if let Some(entry) = entry.filter(|entry| !asks || entry.kind.is_reply()) {
        return keep(flows, at, key, entry, body);
    }
    if !matches!(body.protocol, Protocol::TCP | Protocol::UDP) {
        return Connection::None;
    }
    let service = service_of(plan, packet.destination, body.protocol, body.destination_port, scope);
    let Some(service) = service else {
        forget(flows, &key, entry);
        return nobodys(plan, packet.destination, scope);
    };
    if entry.is_none() && !may_open(body, scope) {
        return nobodys(plan, packet.destination, scope);
    }
    if !may_come(service, packet.source) {
        return Connection::Refused(Reason::SourceRange);
    }
    let list = list_of(service, scope);
    if let Some(entry) = entry.filter(|entry| has(list, entry.destination)) {
        return keep(flows, at, key, entry, body);
    }
    let chosen = choose(flows, at, service, packet, body, scope);
    if chosen.is_none() {
        forget(flows, &key, entry);
    }
    match chosen {
        // The answers of the backend before may still be on their way: their direction stays until it has been silent.
        Some(backend) => open(plan, flows, at, service, key, backend, body, scope),
        None if list.elsewhere => Connection::Refused(Reason::NoLocalBackends),
        None => Connection::Refused(Reason::NoReadyBackends),
    }
}

fn nobodys(plan: &NodePlan, destination: Addr, scope: Scope) -> Connection {
    match (scope, place(plan, destination)) {
        (Scope::Cluster, Place::Services) => Connection::Refused(Reason::NotTranslated),
        _ => Connection::None,
    }
}

/// The table may have lost one direction of a connection. The one that is left says all of it.
pub(crate) fn keep_other(flows: &mut impl FlowTable, key: &NatKey, entry: &NatEntry) {
    let other = entry.other_key(key.protocol);
    if entry.kind != NatKind::SentOn && flows.nat(&other).is_none() {
        // Without room it is tried again with the next packet.
        let _ = flows.put_nat(other, entry.other(key));
    }
}

fn keep(flows: &mut impl FlowTable, at: Moment, key: NatKey, mut entry: NatEntry, body: &Body) -> Connection {
    keep_other(flows, &key, &entry);
    entry.follow(body, at.time);
    // The entry is there, so changing it needs no room.
    let _ = flows.put_nat(key, entry);
    Connection::Of(entry)
}

fn forget(flows: &mut impl FlowTable, key: &NatKey, entry: Option<NatEntry>) {
    let Some(entry) = entry else { return };
    if entry.kind != NatKind::SentOn {
        flows.remove_nat(&entry.other_key(key.protocol));
    }
    flows.remove_nat(key);
}

/// Exact, then, for a node's address, the node port. The name server's address is the node's own, whatever a service says.
fn service_of(
    plan: &NodePlan,
    addr: Addr,
    protocol: Protocol,
    port: Port,
    scope: Scope,
) -> Option<&ServicePlan> {
    let place = place(plan, addr);
    let inside = |cidrs: &std::collections::BTreeSet<Cidr>| cidrs.iter().any(|cidr| cidr.contains(addr));
    let is_node = match place {
        Place::Host => true,
        Place::Remote(_) => !inside(&plan.settings.cluster_pod_cidrs),
        _ => false,
    };
    let get = |addr| plan.services.get(&Frontend { addr, protocol, port });
    let service = get(addr).or_else(|| if is_node { get(unspecified(addr.family())) } else { None })?;
    let is_name_server = place == Place::Host && inside(&plan.settings.service_cidrs);
    let serves = scope == Scope::Cluster || service.edge.is_some();
    (serves && !is_name_server).then_some(service)
}

fn list_of(service: &ServicePlan, scope: Scope) -> &BackendList {
    match (&service.edge, scope) {
        (Some(edge), Scope::Edge) => &edge.list,
        _ => &service.list,
    }
}

fn has(list: &BackendList, target: (Addr, Port)) -> bool {
    list.backends.iter().any(|backend| (backend.addr, backend.port) == target)
}

fn may_come(service: &ServicePlan, client: Addr) -> bool {
    service.source_ranges.is_empty() || service.source_ranges.iter().any(|range| range.contains(client))
}

/// Whether a packet without an entry may start a connection: at the edge in the middle of one too, because its hash finds
/// the backend again, on another node as well. An answer of somebody else's to a connection of the node's is none.
fn may_open(body: &Body, scope: Scope) -> bool {
    let in_the_middle = !body.tcp.has(TcpFlags::SYN) && !body.tcp.has(TcpFlags::RST);
    body.protocol != Protocol::TCP || body.tcp.opens() || (scope == Scope::Edge && in_the_middle)
}

fn connection(packet: &Packet, body: &Body) -> maglev::Connection {
    maglev::Connection {
        source: (packet.source, body.source_port),
        destination: (packet.destination, body.destination_port),
        protocol: body.protocol,
    }
}

fn choose<'a>(
    flows: &mut impl FlowTable,
    at: Moment,
    service: &'a ServicePlan,
    packet: &Packet,
    body: &Body,
    scope: Scope,
) -> Option<&'a Backend> {
    let backends = &list_of(service, scope).backends;
    let mut asking = connection(packet, body);
    let Affinity::ClientIp { seconds } = service.affinity else {
        return by_slot(flows, service, backends, &asking, scope);
    };
    let key = AffinityKey { client: packet.source, service: service.id };
    let recent = flows.affinity(&key).filter(|last| at.time.0 < last.last_used.0 + u64::from(seconds));
    let last = recent.and_then(|last| backends.iter().find(|one| (one.addr, one.port) == last.backend));
    // Nodes that share the address then agree about a client without telling each other.
    if scope == Scope::Edge {
        asking.source.1 = Port(0);
    }
    let backend = last.or_else(|| by_slot(flows, service, backends, &asking, scope))?;
    flows.put_affinity(key, AffinityEntry { backend: (backend.addr, backend.port), last_used: at.time });
    Some(backend)
}

fn by_slot<'a>(
    flows: &mut impl FlowTable,
    service: &ServicePlan,
    backends: &'a [Backend],
    asking: &maglev::Connection,
    scope: Scope,
) -> Option<&'a Backend> {
    if backends.is_empty() {
        return None;
    }
    if scope == Scope::Edge || service.balancing == Balancing::Maglev {
        let table = maglev::table(backends);
        return backends.get(table[asking.hash() as usize % table.len()] as usize);
    }
    let slots: Vec<&Backend> =
        backends.iter().flat_map(|one| std::iter::repeat_n(one, one.weight.0.max(1).into())).collect();
    slots.get(flows.draw() as usize % slots.len()).copied()
}

/// The way to the backend and, unless its node answers the client itself, back.
#[allow(clippy::too_many_arguments)]
fn open(
    plan: &NodePlan,
    flows: &mut impl FlowTable,
    at: Moment,
    service: &ServicePlan,
    key: NatKey,
    backend: &Backend,
    body: &Body,
    scope: Scope,
) -> Connection {
    let mut entry = NatEntry {
        source: key.source,
        destination: (backend.addr, backend.port),
        kind: NatKind::Request,
        service: service.id,
        list: list_of(service, scope).id,
        tcp: Default::default(),
        last_seen: at.time,
    };
    let backend_place = place(plan, backend.addr);
    let is_dsr = service.edge.as_ref().is_some_and(|edge| edge.forwarding == Forwarding::Dsr);
    if scope == Scope::Edge && is_dsr && matches!(backend_place, Place::Remote(_)) {
        entry.kind = NatKind::SentOn;
        entry.follow(body, at.time);
        return put(flows, key, entry);
    }
    // A pod takes no packets from its own address.
    let keeps_source = match scope {
        Scope::Cluster => backend.addr != key.source.0,
        Scope::Edge => matches!(backend_place, Place::Pod | Place::Host),
    };
    let mut own_ports_first = None;
    if keeps_source {
        own_ports_first = Some(key.source.1);
    } else {
        let own = plan.settings.node_addresses.iter().find(|own| own.family() == backend.addr.family());
        let Some(own) = own else { return Connection::Refused(Reason::NoFreePort) };
        entry.source.0 = *own;
    }
    entry.follow(body, at.time);
    let hash =
        maglev::Connection { source: key.source, destination: key.destination, protocol: key.protocol };
    match claim_port(flows, &key, entry, own_ports_first, hash.hash()) {
        Some(entry) => put(flows, key, entry),
        None => Connection::Refused(Reason::NoFreePort),
    }
}

fn put(flows: &mut impl FlowTable, key: NatKey, entry: NatEntry) -> Connection {
    match flows.put_nat(key, entry) {
        Ok(()) => Connection::Of(entry),
        Err(_) => Connection::Refused(Reason::TableFull),
    }
}

/// As it is, or not at all.
pub(crate) fn claim_once(flows: &mut impl FlowTable, key: &NatKey, entry: NatEntry) -> Option<NatEntry> {
    [Owner::Nobody, Owner::Spare(entry.last_seen)]
        .into_iter()
        .any(|from| claim(flows, key, &entry, from))
        .then_some(entry)
}

/// Two connections to one backend may not look alike there: one of them gets another port.
pub(crate) fn claim_port(
    flows: &mut impl FlowTable,
    key: &NatKey,
    entry: NatEntry,
    first: Option<Port>,
    hash: u32,
) -> Option<NatEntry> {
    let count = u32::from(FORWARDING_PORTS[1] - FORWARDING_PORTS[0]) + 1;
    let tries = (0..2 * PORT_TRIES).map(|number| {
        let offset = hash.wrapping_add(number * TRIES_APART) % count;
        let from = if number < PORT_TRIES { Owner::Nobody } else { Owner::Spare(entry.last_seen) };
        (Port(FORWARDING_PORTS[0] + offset as u16), from)
    });
    let own = first.filter(|port| port.0 != 0).map(|port| (port, Owner::Nobody));
    own.into_iter().chain(tries).find_map(|(port, from)| {
        let mut entry = NatEntry { source: (entry.source.0, port), ..entry };
        // An echo's identifier is the same both ways.
        if key.is_icmp() {
            entry.destination.1 = port;
        }
        claim(flows, key, &entry, from).then_some(entry)
    })
}

/// Whom a port may be taken from: where all are taken, from connections that are over or silent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Nobody,
    Spare(Time),
}

/// Whether the connection now owns its reply's key.
fn claim(flows: &mut impl FlowTable, key: &NatKey, entry: &NatEntry, from: Owner) -> bool {
    let other = entry.other_key(key.protocol);
    if let Some(taken) = flows.nat(&other) {
        // Its own may be left from before the table lost the other direction.
        let is_own = (taken.destination, taken.source) == (key.source, key.destination);
        let earlier = taken.other_key(key.protocol);
        if !is_own && !is_spare(from, &taken, flows.nat(&earlier)) {
            return false;
        }
        if !is_own {
            flows.remove_nat(&earlier);
        }
    }
    flows.put_nat(other, entry.other(key)).is_ok()
}

/// Whether a connection may be given up for another: no data can follow on it, or it is silent, and was never established or
/// is closing. What its replies say, and its requests, if their entry is left.
fn is_spare(from: Owner, back: &NatEntry, there: Option<NatEntry>) -> bool {
    let Owner::Spare(now) = from else { return false };
    let opener_finished = there.is_none_or(|there| there.tcp.opener_finished);
    let is_over = back.tcp.reset
        || there.is_some_and(|there| there.tcp.reset)
        || (back.tcp.responder_finished && opener_finished);
    // The other entry may only have been evicted.
    let is_closing = back.tcp.responder_finished || there.is_some_and(|there| there.tcp.opener_finished);
    let last_seen = there.map_or(back.last_seen, |there| back.last_seen.max(there.last_seen));
    let is_silent = now.0 > last_seen.0 + SPARE_AFTER;
    is_over || (is_silent && (!back.tcp.established || is_closing))
}
