//! What the kernel holds, as plan nouns: for people, and for tests that compare two states.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use weft_abi::{
    BackendKey, EndpointFlags, EndpointKind, EndpointValue, Mac, RouteKind, RouteValue, ServiceFlags,
    ServiceValue, SourceKey,
};
use weft_model::{Addr, Cidr, Port};
use weft_plan::{ClassId, Decision, Frontend, PolicyMatch, PolicySetId, RuleId, ServiceId};

use crate::datapath::Datapath;
use crate::error::ReadError;
use crate::tables::KernelTables;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub endpoints: BTreeMap<Addr, EndpointRow>,
    pub classes: BTreeMap<Cidr, ClassId>,
    pub policies: BTreeMap<PolicySetId, PolicyRows>,
    pub services: BTreeMap<Frontend, ServiceRow>,
    pub routes: BTreeMap<Cidr, RouteRow>,
    pub announced: BTreeSet<Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointRow {
    Pod {
        ifindex: u32,
        ingress: Option<PolicySetId>,
        egress: Option<PolicySetId>,
        pod_mac: Mac,
        host_mac: Mac,
    },
    /// The node's own stack.
    Host,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyRows {
    /// `None`: an entry for everything stands in its place.
    pub default_rule: Option<RuleId>,
    pub entries: BTreeMap<PolicyMatch, Decision>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRow {
    pub id: ServiceId,
    /// As often as their weight.
    pub backends: Vec<(Addr, Port)>,
    /// `None`: nobody comes in from outside.
    pub edge: Option<Vec<(Addr, Port)>>,
    /// Seconds; 0: none.
    pub affinity: u32,
    pub sources: Vec<Cidr>,
    /// Bits of `weft_abi::ServiceFlags`.
    pub flags: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteRow {
    Remote {
        via: Addr,
    },
    OwnPods,
    Services,
    ClusterPods,
    /// To the node's own stack.
    Outside,
}

impl Datapath {
    pub fn read_back(&self) -> Result<Tables, ReadError> {
        Ok(Tables::from(&self.read_tables()?))
    }
}

impl From<&KernelTables> for Tables {
    fn from(raw: &KernelTables) -> Self {
        let mut tables = Self {
            endpoints: raw
                .endpoints
                .iter()
                .map(|(key, value)| ((*key).into(), EndpointRow::from(value)))
                .collect(),
            routes: raw
                .routes
                .iter()
                .filter_map(|(key, value)| Some((key.to_cidr()?, RouteRow::from(value))))
                .collect(),
            ..Default::default()
        };
        let exact = raw.classes.iter().map(|(key, class)| (Cidr::host((*key).into()), ClassId(*class)));
        let blocks =
            raw.class_blocks.iter().filter_map(|(key, class)| Some((key.to_cidr()?, ClassId(*class))));
        tables.classes = exact.chain(blocks).collect();
        for (key, value) in &raw.policies {
            let rows = tables.policies.entry(PolicySetId(key.set)).or_default();
            if value.is_default() {
                rows.default_rule = Some(RuleId(value.rule));
            } else {
                rows.entries.insert(key.to_match(), value.to_decision());
            }
        }
        for (key, value) in &raw.services {
            tables.services.insert((*key).into(), ServiceRow::of(raw, value));
        }
        tables.announced = raw.announced.keys().map(|addr| (*addr).into()).collect();
        tables
    }
}

impl ServiceRow {
    fn of(raw: &KernelTables, value: &ServiceValue) -> Self {
        let slots = (0..value.slots).map(|slot| BackendKey { list: value.list, slot });
        let list = value.edge_list;
        let edge = raw.backends.range(BackendKey { list, slot: 0 }..=BackendKey { list, slot: u32::MAX });
        let sources = raw.source_ranges.keys().filter(|key| key.service == value.id);
        Self {
            id: ServiceId(value.id),
            backends: slots
                .filter_map(|key| raw.backends.get(&key))
                .map(|backend| backend.target())
                .collect(),
            edge: (value.flags & ServiceFlags::EDGE != 0)
                .then(|| edge.map(|(_, backend)| backend.target()).collect()),
            affinity: value.affinity,
            sources: if value.flags & ServiceFlags::SOURCE_RANGES == 0 {
                Vec::new()
            } else {
                sources.filter_map(source_range).collect()
            },
            flags: value.flags,
        }
    }
}

fn source_range(key: &SourceKey) -> Option<Cidr> {
    let bits = key.bits.checked_sub(SourceKey::BITS_SERVICE)?;
    weft_abi::PrefixKey { bits, addr: key.addr }.to_cidr()
}

impl fmt::Display for ServiceRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |backends: &[(Addr, Port)]| {
            let backends: Vec<String> =
                backends.iter().map(|(addr, port)| format!("{addr} port {port}")).collect();
            if backends.is_empty() { "nobody".to_owned() } else { backends.join(", ") }
        };
        write!(f, "-> {}", list(&self.backends))?;
        if let Some(edge) = &self.edge {
            write!(f, "; from outside -> {}", list(edge))?;
        }
        if self.affinity > 0 {
            write!(f, "; affinity {} s", self.affinity)?;
        }
        if !self.sources.is_empty() {
            let sources: Vec<String> = self.sources.iter().map(Cidr::to_string).collect();
            write!(f, "; from {}", sources.join(", "))?;
        }
        let words: Vec<&str> =
            FLAGS.iter().filter(|(bit, _)| self.flags & bit != 0).map(|(_, word)| *word).collect();
        if words.is_empty() { Ok(()) } else { write!(f, "; {}", words.join(", ")) }
    }
}

/// Those that the rest of the row does not show.
const FLAGS: [(u32, &str); 7] = [
    (ServiceFlags::EDGE_LOCAL, "edge local"),
    (ServiceFlags::EDGE_ELSEWHERE, "edge endpoints elsewhere"),
    (ServiceFlags::EDGE_DSR, "direct server return"),
    (ServiceFlags::SOURCE_RANGES, "source ranges"),
    (ServiceFlags::HASHED, "by hash"),
    (ServiceFlags::LOCALHOST, "on loopback"),
    (ServiceFlags::LOCAL_ELSEWHERE, "endpoints elsewhere"),
];

impl From<&EndpointValue> for EndpointRow {
    fn from(value: &EndpointValue) -> Self {
        if value.kind == EndpointKind::HOST {
            return Self::Host;
        }
        let set = |flag: u8, number: u32| (value.flags & flag != 0).then_some(PolicySetId(number));
        Self::Pod {
            ifindex: value.ifindex,
            ingress: set(EndpointFlags::INGRESS_ISOLATED, value.ingress_set),
            egress: set(EndpointFlags::EGRESS_ISOLATED, value.egress_set),
            pod_mac: Mac(value.pod_mac),
            host_mac: Mac(value.host_mac),
        }
    }
}

impl From<&RouteValue> for RouteRow {
    fn from(value: &RouteValue) -> Self {
        match value.kind {
            RouteKind::REMOTE => Self::Remote { via: value.via.into() },
            RouteKind::OWN_PODS => Self::OwnPods,
            RouteKind::SERVICES => Self::Services,
            RouteKind::CLUSTER_PODS => Self::ClusterPods,
            _ => Self::Outside,
        }
    }
}

impl fmt::Display for EndpointRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Pod { ifindex, ingress, egress, pod_mac, .. } => {
                let set = |set: &Option<PolicySetId>| match set {
                    Some(set) => format!("{:08x}", set.0),
                    None => "none".to_owned(),
                };
                write!(
                    f,
                    "pod ifindex {ifindex} mac {pod_mac} ingress {} egress {}",
                    set(ingress),
                    set(egress)
                )
            }
        }
    }
}

impl fmt::Display for RouteRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote { via } => write!(f, "via {via}"),
            Self::OwnPods => f.write_str("own pods"),
            Self::Services => f.write_str("services"),
            Self::ClusterPods => f.write_str("cluster pods without a route"),
            Self::Outside => f.write_str("outside"),
        }
    }
}

impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (addr, row) in &self.endpoints {
            writeln!(f, "endpoint {addr} {row}")?;
        }
        for (prefix, class) in &self.classes {
            writeln!(f, "class {prefix} {class}")?;
        }
        for (set, rows) in &self.policies {
            for (matched, decision) in &rows.entries {
                let class = matched.class.number();
                let protocol =
                    matched.protocol.map_or_else(|| "any".to_owned(), |protocol| protocol.to_string());
                let (port, rule) = (matched.port, decision.rule.0);
                writeln!(
                    f,
                    "policy {:08x} class {class:08x} {protocol} port {}/{} {:?} rule {rule:08x}",
                    set.0, port.value, port.bits, decision.verdict
                )?;
            }
            if let Some(rule) = rows.default_rule {
                writeln!(f, "policy {:08x} default deny rule {:08x}", set.0, rule.0)?;
            }
        }
        for (frontend, row) in &self.services {
            writeln!(f, "service {frontend} {row}")?;
        }
        for (prefix, row) in &self.routes {
            writeln!(f, "route {prefix} {row}")?;
        }
        for addr in &self.announced {
            writeln!(f, "announced {addr}")?;
        }
        Ok(())
    }
}
