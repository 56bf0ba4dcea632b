//! Questions, records and causes as text.

use std::fmt;
use std::str::FromStr;

use super::{ALIAS_LIMIT, NameCause, NameData, NameRecord, QueryType};

impl QueryType {
    pub fn from_number(number: u16) -> Self {
        match number {
            1 => Self::A,
            2 => Self::Ns,
            5 => Self::Cname,
            6 => Self::Soa,
            12 => Self::Ptr,
            16 => Self::Txt,
            28 => Self::Aaaa,
            33 => Self::Srv,
            255 => Self::Any,
            other => Self::Other(other),
        }
    }
}

impl FromStr for QueryType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let upper = text.to_ascii_uppercase();
        let known = [1, 2, 5, 6, 12, 16, 28, 33, 255].map(Self::from_number);
        known.into_iter().find(|kind| kind.to_string() == upper).ok_or_else(|| {
            format!("{text:?} is not a record type; use A, AAAA, SRV, PTR, TXT, CNAME, SOA, NS or ANY")
        })
    }
}

impl fmt::Display for QueryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::A => f.pad("A"),
            Self::Aaaa => f.pad("AAAA"),
            Self::Srv => f.pad("SRV"),
            Self::Ptr => f.pad("PTR"),
            Self::Txt => f.pad("TXT"),
            Self::Cname => f.pad("CNAME"),
            Self::Soa => f.pad("SOA"),
            Self::Ns => f.pad("NS"),
            Self::Any => f.pad("ANY"),
            // RFC 3597 5
            Self::Other(number) => f.pad(&format!("TYPE{number}")),
        }
    }
}

impl fmt::Display for NameData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::A(addr) => write!(f, "A {addr}"),
            Self::Aaaa(addr) => write!(f, "AAAA {addr}"),
            Self::Srv(srv) => {
                write!(f, "SRV {} {} {} {}", srv.priority, srv.weight, srv.port, srv.target)
            }
            Self::Ptr(target) => write!(f, "PTR {target}"),
            Self::Txt(text) => write!(f, "TXT {text:?}"),
            Self::Cname(target) => write!(f, "CNAME {target}"),
            Self::Ns(target) => write!(f, "NS {target}"),
            Self::Soa => f.write_str("SOA"),
        }
    }
}

impl fmt::Display for NameRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.data)
    }
}

impl fmt::Display for NameCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => write!(f, "service {service}"),
            Self::Endpoint { service, host } => write!(f, "endpoint {host} of service {service}"),
            Self::Port { service, port } => write!(f, "port {port} of service {service}"),
            Self::PodAddress(addr) => write!(f, "the name spells the pod address {addr}"),
            Self::Zone => f.write_str("part of the cluster's zone"),
            Self::Pointer(addr) => write!(f, "{addr} belongs to a service or to an endpoint"),
            Self::ReverseZone(zone) => write!(f, "part of the zone {zone} of the cluster's own addresses"),
            Self::OutsideZone { domain, alias_of: None } => {
                write!(f, "not below {domain}: asked of the upstream servers")
            }
            Self::OutsideZone { domain, alias_of: Some(target) } => {
                write!(
                    f,
                    "an ExternalName service leads to {target}, which is not below {domain}: asked of the upstream servers"
                )
            }
            Self::AliasLoop => write!(
                f,
                "ExternalName services lead from one to another more than {ALIAS_LIMIT} times: a loop?"
            ),
            Self::TypeMissing { name, query, has } if has.is_empty() => {
                write!(f, "{name} exists and has no records, {query} or other")
            }
            Self::TypeMissing { name, query, has } => {
                let has: Vec<_> = has.iter().map(QueryType::to_string).collect();
                write!(f, "{name} exists and has no {query} records, only {}", has.join(", "))
            }
            Self::NamespaceMissing(namespace) => write!(f, "there is no namespace {namespace}"),
            Self::ServiceMissing(service) => {
                write!(f, "there is no service {} in namespace {}", service.name, service.namespace)
            }
            Self::Withheld(absence) => absence.fmt(f),
            Self::EndpointMissing { service, host } => {
                write!(f, "service {service} has no ready endpoint with hostname {host}")
            }
            Self::PortMissing { service, port } => write!(f, "service {service} has no port named {port}"),
            Self::AddressUnused(addr) => {
                write!(f, "{addr} is an address of the cluster, of no service and of no named endpoint")
            }
            Self::Wildcard => f.write_str("* is not a name here: ask for one service or endpoint"),
            Self::NotShared(domain) => {
                write!(f, "no service of that name is shared with this cluster in {domain}")
            }
            Self::NotInSchema => f.write_str("no service, endpoint or port can have that name"),
            Self::Searched { written, found, cause } => {
                write!(f, "the pod's search list leads from {written} to {found}: {cause}")
            }
            Self::SearchedOutside { written } => {
                write!(f, "the pod's search list leads from {written} out of the cluster's names")
            }
        }
    }
}
