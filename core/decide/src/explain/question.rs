//! What `weft why SRC DST[:PORT][/PROTO]` asks, read from words. The answer lives in `tell`.

use std::net::{Ipv4Addr, Ipv6Addr};

use weft_model::{Addr, Family, ObjectKey, PodKey, Port, Protocol, ServiceKey, Snapshot};

/// Can this pod reach that destination?
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    pub source: PodKey,
    pub destination: Destination,
    /// `None`: the destination's only port.
    pub port: Option<PortName>,
    pub protocol: Option<Protocol>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    Addr(Addr),
    Pod(PodKey),
    Service(ServiceKey),
    /// A host name, looked up as the pod would.
    Name(String),
}

/// A port by number, or by the name it has in the service or pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortName {
    Number(Port),
    Name(String),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    #[error("there is no pod {0}; write it as NAMESPACE/POD")]
    NoSuchPod(String),
    #[error("there is no service {0}")]
    NoSuchService(ServiceKey),
    #[error("pod {0} {1}")]
    Unplaced(PodKey, &'static str),
    #[error("{0}")]
    Protocol(String),
    #[error("{0:?} is not a port; use a number from 1 to 65535, or the name of a port")]
    Port(String),
    #[error("say which port of {destination}: {ports}")]
    WhichPort { destination: String, ports: String },
    #[error("{destination} has no port {port}; it has {ports}")]
    NoSuchPort { destination: String, port: String, ports: String },
}

impl Question {
    /// `source` is NAMESPACE/POD. `destination` is an address, NAMESPACE/NAME of a service or pod (with `svc/` or
    /// `pod/` before it where both have the name), or a host name; then perhaps `:PORT` and `/PROTOCOL`.
    pub fn parse(snapshot: &Snapshot, source: &str, destination: &str) -> Result<Self, QuestionError> {
        let source = source.strip_prefix("pod/").unwrap_or(source);
        let (namespace, name) = source.split_once('/').unwrap_or(("default", source));
        let source = ObjectKey::new(namespace, name);
        if !snapshot.pods.contains_key(&source) {
            return Err(QuestionError::NoSuchPod(source.to_string()));
        }
        let (rest, protocol) = split_protocol(destination)?;
        let (host, port) = split_port(rest)?;
        let destination = find(snapshot, &source, host)?;
        Ok(Self { source, destination, port, protocol })
    }
}

/// A protocol is the last part only if it reads as one: `shop/web/udp`, but not `shop/web`.
fn split_protocol(text: &str) -> Result<(&str, Option<Protocol>), QuestionError> {
    let Some((rest, last)) = text.rsplit_once('/') else { return Ok((text, None)) };
    match last.parse::<Protocol>() {
        Ok(protocol) if rest.contains([':', '/', '.']) => Ok((rest, Some(protocol))),
        Ok(_) => Ok((text, None)),
        Err(error) if rest.contains(':') => Err(QuestionError::Protocol(error)),
        Err(_) => Ok((text, None)),
    }
}

fn split_port(text: &str) -> Result<(&str, Option<PortName>), QuestionError> {
    if text.parse::<Addr>().is_ok() {
        return Ok((text, None));
    }
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest.strip_prefix(':')),
        None => text.rsplit_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let Some(port) = port else { return Ok((host, None)) };
    let port = match port.parse::<u16>() {
        Ok(number) if number > 0 => PortName::Number(Port(number)),
        Err(_) if port.contains(|letter: char| letter.is_ascii_alphabetic()) => {
            PortName::Name(port.to_owned())
        }
        _ => return Err(QuestionError::Port(port.to_owned())),
    };
    Ok((host, Some(port)))
}

fn find(snapshot: &Snapshot, source: &PodKey, host: &str) -> Result<Destination, QuestionError> {
    if let Ok(addr) = host.parse() {
        return Ok(Destination::Addr(addr));
    }
    let (kind, rest) = match host.split_once('/') {
        Some(("pod", rest)) => (Some("pod"), rest),
        Some(("svc" | "service", rest)) => (Some("service"), rest),
        _ => (None, host),
    };
    let qualified = rest.split_once('/');
    let (namespace, name) = qualified.unwrap_or((source.namespace.as_str(), rest));
    let key = ObjectKey::new(namespace, name);
    match kind {
        Some("pod") if snapshot.pods.contains_key(&key) => Ok(Destination::Pod(key)),
        Some("pod") => Err(QuestionError::NoSuchPod(key.to_string())),
        Some(_) if snapshot.services.contains_key(&key) => Ok(Destination::Service(key)),
        Some(_) => Err(QuestionError::NoSuchService(key)),
        None if qualified.is_some() && snapshot.services.contains_key(&key) => Ok(Destination::Service(key)),
        None if snapshot.pods.contains_key(&key) => Ok(Destination::Pod(key)),
        None if qualified.is_some() => Err(QuestionError::NoSuchPod(format!("or service {key}"))),
        None if host == "localhost" => Ok(Destination::Addr(loopback(snapshot, source))),
        None => Ok(Destination::Name(host.to_owned())),
    }
}

/// What every pod's hosts file has for localhost, in a family that the pod has.
fn loopback(snapshot: &Snapshot, source: &PodKey) -> Addr {
    let mut own = snapshot.pods.get(source).into_iter().flat_map(|pod| &pod.addresses);
    let only_v6 = own.all(|addr| addr.family() == Family::V6);
    if only_v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }
}
