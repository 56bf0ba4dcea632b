//! One flow as people see it: names, verdict and cause. How names are found lives in `namer`.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use weft_model::{
    Addr, Direction, Family, Labels, NamespaceName, NodeName, Port, Protocol, Reason, ServiceKey, Verdict,
};

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Flow {
    pub time: Timestamp,
    /// Where it was seen.
    pub node: NodeName,
    pub kind: FlowKind,
    pub verdict: Verdict,
    /// `None` for translations: nothing but the service's existence causes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Seen from the pod whose policy decided, or would have.
    pub direction: Direction,
    pub source: Party,
    pub destination: Party,
    /// The service a socket meant; its backend is the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceRef>,
    #[serde(with = "protocol_name")]
    pub protocol: Protocol,
    /// The rule that decided, or the reason in words.
    pub cause: String,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlowKind {
    New,
    Denied,
    /// A socket that meant a service got a backend.
    Translated,
    /// A socket that meant a service got ECONNREFUSED.
    Refused,
    Ended,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Party {
    /// `None`: a socket that has no address yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addr: Option<Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<Port>,
    #[serde(flatten)]
    pub who: Who,
}

/// Whose address it was at the time of the flow.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Who {
    Pod {
        namespace: NamespaceName,
        name: String,
        labels: Labels,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeName>,
    },
    Node {
        name: NodeName,
    },
    Service {
        namespace: NamespaceName,
        name: String,
    },
    /// The node's own name server.
    NameServer,
    /// An address of the cluster that belongs to nobody known.
    Unknown,
    World,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceRef {
    pub namespace: NamespaceName,
    pub name: String,
    /// Empty when the service's only port has no name.
    pub port_name: String,
    pub addr: Addr,
    pub port: Port,
}

impl ServiceRef {
    pub fn key(&self) -> ServiceKey {
        ServiceKey::new(self.namespace.as_str(), &self.name)
    }
}

impl Party {
    pub fn namespace(&self) -> Option<&str> {
        match &self.who {
            Who::Pod { namespace, .. } | Who::Service { namespace, .. } => Some(namespace.as_str()),
            _ => None,
        }
    }
}

impl Flow {
    /// The reason's short form; translations have one of their own.
    pub fn reason_slug(&self) -> &'static str {
        self.reason.map_or("translated", Reason::slug)
    }
}

/// One row; the command line, logs and tests use it.
impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time.to_zoned(TimeZone::UTC).strftime("%H:%M:%S%.3f");
        let verdict = match (self.kind, self.verdict) {
            (FlowKind::Refused, _) => "REFUSED",
            (_, Verdict::Denied) => "DENIED",
            (FlowKind::Ended, _) => "ENDED",
            (FlowKind::Translated, _) => "TRANSLATED",
            (_, Verdict::Forwarded) => "FORWARDED",
        };
        write!(f, "{time} {} {verdict:<10} {} -> {}", self.node, self.source, self.destination)?;
        if let Some(service) = &self.service {
            write!(f, " (service {}/{}:{})", service.namespace, service.name, service.port)?;
        }
        write!(f, " {} {} {}", self.protocol, self.direction, self.reason_slug())?;
        if self.kind == FlowKind::Ended {
            write!(f, " {} packets {} bytes", self.packets, self.bytes)?;
        }
        if self.cause.is_empty() { Ok(()) } else { write!(f, ": {}", self.cause) }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Pod { namespace, name, .. } => write!(f, "{namespace}/{name}")?,
            Who::Node { name } => write!(f, "node {name}")?,
            Who::Service { namespace, name } => write!(f, "service {namespace}/{name}")?,
            Who::NameServer => f.write_str("name server")?,
            Who::Unknown => write!(f, "unknown{}", Bracketed(self.addr))?,
            Who::World => write!(f, "world{}", Bracketed(self.addr))?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

/// The address of a party that has no better name.
struct Bracketed(Option<Addr>);

impl fmt::Display for Bracketed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(addr) if addr.family() == Family::V6 => write!(f, " [{addr}]"),
            Some(addr) => write!(f, " {addr}"),
            None => Ok(()),
        }
    }
}

/// Protocols by name in JSON, by number where they have none.
mod protocol_name {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use weft_model::Protocol;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum NameOrNumber {
        Number(u8),
        Name(String),
    }

    pub fn serialize<S: Serializer>(protocol: &Protocol, to: S) -> Result<S::Ok, S::Error> {
        let name = protocol.to_string();
        let named = name.parse() == Ok(*protocol);
        let value = if named { NameOrNumber::Name(name) } else { NameOrNumber::Number(protocol.0) };
        value.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Protocol, D::Error> {
        match NameOrNumber::deserialize(from)? {
            NameOrNumber::Number(number) => Ok(Protocol(number)),
            NameOrNumber::Name(name) => name.parse().map_err(serde::de::Error::custom),
        }
    }
}
