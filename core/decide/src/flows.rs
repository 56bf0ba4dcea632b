//! What is remembered of flows and fragments. How a packet is judged lives in `journey` and `policies`.

use std::collections::BTreeMap;

use weft_model::{Addr, Port, Protocol, Reason};
use weft_plan::RuleId;

use crate::edge::{AffinityEntry, AffinityKey};
use crate::nat::{NatEntry, NatKey};
use crate::packets::{FragmentId, TcpFlags};

/// Seconds on any clock that does not jump.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time(pub u64);

/// Raised after every change of policy sets, classes or endpoints' sets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Epoch(pub u32);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moment {
    pub time: Time,
    pub epoch: Epoch,
}

/// One flow in both directions: the smaller (address, port) first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowKey {
    pub a: (Addr, Port),
    pub b: (Addr, Port),
    pub protocol: Protocol,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    A,
    B,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl FlowKey {
    /// The key, and which side sends.
    pub fn of(source: (Addr, Port), destination: (Addr, Port), protocol: Protocol) -> (Self, Side) {
        if source <= destination {
            (Self { a: source, b: destination, protocol }, Side::A)
        } else {
            (Self { a: destination, b: source, protocol }, Side::B)
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowEntry {
    pub opener: Side,
    pub epoch: Epoch,
    /// Of the last judgement in the opener's direction; a denial when policy has changed since the flow was opened.
    pub reason: Reason,
    pub egress_rule: Option<RuleId>,
    pub ingress_rule: Option<RuleId>,
    pub tcp: TcpProgress,
    pub last_seen: Time,
    /// Packets of the opener were translated, so what answers them has to be translated back.
    pub is_translated: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcpProgress {
    pub established: bool,
    pub opener_finished: bool,
    pub responder_finished: bool,
    pub reset: bool,
}

impl TcpProgress {
    /// No data can follow: another SYN opens another connection.
    pub fn has_ended(self) -> bool {
        self.reset || (self.opener_finished && self.responder_finished)
    }

    pub(crate) fn follow(&mut self, flags: TcpFlags, from_opener: bool) {
        self.established |= !from_opener && flags.has(TcpFlags::SYN);
        self.reset |= flags.has(TcpFlags::RST);
        let finished = if from_opener { &mut self.opener_finished } else { &mut self.responder_finished };
        *finished |= flags.has(TcpFlags::FIN);
    }
}

/// What the first fragment of a packet says about the later ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FragmentPorts {
    pub protocol: Protocol,
    pub source_port: Port,
    pub destination_port: Port,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FragmentKey {
    pub source: Addr,
    pub destination: Addr,
    pub id: FragmentId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table is full")]
pub struct TableFull;

/// The memory a node's datapath has.
pub trait FlowTable {
    fn flow(&self, key: &FlowKey) -> Option<FlowEntry>;
    fn put_flow(&mut self, key: FlowKey, entry: FlowEntry) -> Result<(), TableFull>;
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    fn put_fragment(&mut self, key: FragmentKey, ports: FragmentPorts) -> Result<(), TableFull>;
    fn nat(&self, key: &NatKey) -> Option<NatEntry>;
    fn put_nat(&mut self, key: NatKey, entry: NatEntry) -> Result<(), TableFull>;
    fn remove_nat(&mut self, key: &NatKey);
    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry>;
    fn put_affinity(&mut self, key: AffinityKey, entry: AffinityEntry);
    /// A random number.
    fn draw(&mut self) -> u32;
}

/// A table without bounds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryFlows {
    pub flows: BTreeMap<FlowKey, FlowEntry>,
    pub fragments: BTreeMap<FragmentKey, FragmentPorts>,
    pub nat: BTreeMap<NatKey, NatEntry>,
    pub affinities: BTreeMap<AffinityKey, AffinityEntry>,
    /// What is drawn next: no random numbers, but different ones.
    pub next: u32,
}

impl FlowTable for MemoryFlows {
    fn flow(&self, key: &FlowKey) -> Option<FlowEntry> {
        self.flows.get(key).copied()
    }

    fn put_flow(&mut self, key: FlowKey, entry: FlowEntry) -> Result<(), TableFull> {
        self.flows.insert(key, entry);
        Ok(())
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.get(key).copied()
    }

    fn put_fragment(&mut self, key: FragmentKey, ports: FragmentPorts) -> Result<(), TableFull> {
        self.fragments.insert(key, ports);
        Ok(())
    }

    fn nat(&self, key: &NatKey) -> Option<NatEntry> {
        self.nat.get(key).copied()
    }

    fn put_nat(&mut self, key: NatKey, entry: NatEntry) -> Result<(), TableFull> {
        self.nat.insert(key, entry);
        Ok(())
    }

    fn remove_nat(&mut self, key: &NatKey) {
        self.nat.remove(key);
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityEntry> {
        self.affinities.get(key).copied()
    }

    fn put_affinity(&mut self, key: AffinityKey, entry: AffinityEntry) {
        self.affinities.insert(key, entry);
    }

    fn draw(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }
}
