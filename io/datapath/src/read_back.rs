//! What the kernel holds, as plan nouns: for people, and for tests that compare two states.

use std::collections::BTreeMap;
use std::fmt;

use weft_abi::{BackendKey, EndpointFlags, EndpointKind, EndpointValue, Mac, RouteKind, RouteValue};
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
    pub backends: Vec<(Addr, Port)>,
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
            let slots = (0..value.slots).map(|slot| BackendKey { list: value.list, slot });
            let backends =
                slots.filter_map(|key| raw.backends.get(&key)).map(|backend| backend.target()).collect();
            tables.services.insert((*key).into(), ServiceRow { id: ServiceId(value.id), backends });
        }
        tables
    }
}

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
            let backends: Vec<String> =
                row.backends.iter().map(|(addr, port)| format!("{addr} port {port}")).collect();
            writeln!(f, "service {frontend} -> {}", backends.join(", "))?;
        }
        for (prefix, row) in &self.routes {
            writeln!(f, "route {prefix} {row}")?;
        }
        Ok(())
    }
}
