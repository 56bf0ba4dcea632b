//! Which flows somebody wants to see: `pod=shop/web verdict=denied`. Keys must all match; a key given twice
//! matches either value.

use std::str::FromStr;

use weft_model::{Addr, Cidr, Port, Protocol, Reason, Verdict};

use crate::flows::{Flow, Party, Who};

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    pod: Vec<PartyMatch>,
    from: Vec<PartyMatch>,
    to: Vec<PartyMatch>,
    namespace: Vec<String>,
    node: Vec<String>,
    port: Vec<Port>,
    protocol: Vec<Protocol>,
    verdict: Vec<Verdict>,
    reason: Vec<String>,
    service: Vec<NameMatch>,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FilterError {
    #[error("{0:?} is not of the form key=value")]
    NotAPair(String),
    #[error(
        "{0:?} is not a key; keys are pod, from, to, namespace, node, port, protocol, verdict, reason, service"
    )]
    Key(String),
    #[error("{key}: {value:?}: {reason}")]
    Value { key: String, value: String, reason: String },
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum PartyMatch {
    Within(Cidr),
    World,
    Unknown,
    NameServer,
    Node(Option<String>),
    Name(NameMatch),
}

/// `namespace/name` or `name`, where the name may be only its start.
#[derive(Clone, PartialEq, Eq, Debug)]
struct NameMatch {
    namespace: Option<String>,
    start: String,
}

impl Filter {
    pub fn matches(&self, flow: &Flow) -> bool {
        let either = |matches: &PartyMatch| matches.party(&flow.source) || matches.party(&flow.destination);
        any(&self.pod, either)
            && any(&self.from, |matches| matches.party(&flow.source))
            && any(&self.to, |matches| matches.party(&flow.destination))
            && any(&self.namespace, |name| {
                [&flow.source, &flow.destination].iter().any(|party| party.namespace() == Some(name))
            })
            && any(&self.node, |name| flow.node.as_str() == name)
            && any(&self.port, |port| {
                flow.destination.port == Some(*port)
                    || flow.service.as_ref().is_some_and(|at| at.port == *port)
            })
            && any(&self.protocol, |protocol| flow.protocol == *protocol)
            && any(&self.verdict, |verdict| flow.verdict == *verdict)
            && any(&self.reason, |reason| flow.reason_slug() == reason)
            && any(&self.service, |matches| {
                let meant = flow.service.as_ref().map(|at| (at.namespace.as_str(), at.name.as_str()));
                let addressed = match &flow.destination.who {
                    Who::Service { namespace, name } => Some((namespace.as_str(), name.as_str())),
                    _ => None,
                };
                meant.or(addressed).is_some_and(|(namespace, name)| matches.name(namespace, name))
            })
    }

    fn add(&mut self, key: &str, value: &str) -> Result<(), FilterError> {
        let bad =
            |reason: String| FilterError::Value { key: key.to_owned(), value: value.to_owned(), reason };
        match key {
            "pod" => self.pod.push(PartyMatch::parse(value).map_err(bad)?),
            "from" => self.from.push(PartyMatch::parse(value).map_err(bad)?),
            "to" => self.to.push(PartyMatch::parse(value).map_err(bad)?),
            "namespace" => self.namespace.push(value.to_owned()),
            "node" => self.node.push(value.to_owned()),
            "port" => {
                let port = value.parse().map_err(|_| bad("a port is a number from 0 to 65535".to_owned()))?;
                self.port.push(Port(port));
            }
            "protocol" => self.protocol.push(value.parse().map_err(bad)?),
            "verdict" => self.verdict.push(match value.to_ascii_lowercase().as_str() {
                "forwarded" => Verdict::Forwarded,
                "denied" => Verdict::Denied,
                _ => return Err(bad("use forwarded or denied".to_owned())),
            }),
            "reason" => {
                let known = || Reason::ALL.iter().map(|reason| reason.slug()).chain(["translated"]);
                if !known().any(|slug| slug == value) {
                    return Err(bad(format!("use one of {}", known().collect::<Vec<_>>().join(", "))));
                }
                self.reason.push(value.to_owned());
            }
            "service" => self.service.push(NameMatch::parse(value).map_err(bad)?),
            _ => return Err(FilterError::Key(key.to_owned())),
        }
        Ok(())
    }
}

/// Nothing given matches everything.
fn any<T>(wanted: &[T], matches: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(matches)
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let mut filter = Self::default();
        for pair in text.split_whitespace() {
            let (key, value) = pair.split_once('=').ok_or_else(|| FilterError::NotAPair(pair.to_owned()))?;
            filter.add(key, value)?;
        }
        Ok(filter)
    }
}

impl PartyMatch {
    fn parse(text: &str) -> Result<Self, String> {
        if let Ok(addr) = text.parse::<Addr>() {
            return Ok(Self::Within(Cidr::host(addr)));
        }
        if let Ok(cidr) = text.parse::<Cidr>() {
            return Ok(Self::Within(cidr));
        }
        Ok(match text {
            "world" => Self::World,
            "unknown" => Self::Unknown,
            "name-server" => Self::NameServer,
            "node" => Self::Node(None),
            _ => match text.strip_prefix("node:") {
                Some(name) => Self::Node(Some(name.to_owned())),
                None => Self::Name(NameMatch::parse(text)?),
            },
        })
    }

    fn party(&self, party: &Party) -> bool {
        match (self, &party.who) {
            (Self::Within(cidr), _) => party.addr.is_some_and(|addr| cidr.contains(addr)),
            (Self::World, who) => *who == Who::World,
            (Self::Unknown, who) => *who == Who::Unknown,
            (Self::NameServer, who) => *who == Who::NameServer,
            (Self::Node(wanted), Who::Node { name }) => {
                wanted.as_ref().is_none_or(|wanted| wanted == name.as_str())
            }
            (Self::Name(matches), Who::Pod { namespace, name, .. } | Who::Service { namespace, name }) => {
                matches.name(namespace.as_str(), name)
            }
            _ => false,
        }
    }
}

impl NameMatch {
    fn parse(text: &str) -> Result<Self, String> {
        let (namespace, start) = match text.split_once('/') {
            Some((namespace, start)) => (Some(namespace), start),
            None => (None, text),
        };
        if namespace == Some("") || (namespace.is_none() && start.is_empty()) || start.contains('/') {
            return Err("use NAMESPACE/NAME or NAME; the name may be only its start".to_owned());
        }
        Ok(Self { namespace: namespace.map(str::to_owned), start: start.to_owned() })
    }

    fn name(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_ref().is_none_or(|wanted| wanted == namespace) && name.starts_with(&self.start)
    }
}
