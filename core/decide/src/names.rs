//! What one DNS question gets from the cluster's own names, and why. Wire format, forwarding and caching live in io/dns.

mod print;
mod reverse;
mod search;
mod source;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weft_model::{Addr, ServiceKey};
use weft_plan::{Absence, NameRecords, SrvRecord};

pub use source::Names;

/// Aliases followed within the zone before giving up: ExternalName services can point at each other.
const ALIAS_LIMIT: usize = 8;

/// The type of a question, by its IANA number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum QueryType {
    A,
    Aaaa,
    Srv,
    Ptr,
    Txt,
    Cname,
    Soa,
    Ns,
    Any,
    Other(u16),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameDecision {
    /// Aliases walked on the way: the answer is about the last one's target.
    pub chain: Vec<NameRecord>,
    pub answer: NameAnswer,
    /// Addresses of the hosts that SRV records name.
    pub additional: Vec<NameRecord>,
    /// The zone whose SOA record goes with an answer that has no records.
    pub zone: Option<String>,
    pub cause: NameCause,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NameAnswer {
    Records(Vec<NameRecord>),
    /// The name exists and has nothing of that type.
    NoData,
    NxDomain,
    /// Somebody else's name, to be asked of the upstream servers.
    NotOurs(String),
    /// The question begins a walk through a search list that leads out of the cluster's names.
    Walk(Walk),
}

/// The rest of a walk. The first of `outside` that exists, whatever records it has, is the answer, with an alias from the
/// question's name to it before its records. When one cannot be asked, nobody knows the walk's end, and when none exists,
/// it ends with `then`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Walk {
    /// To be asked of the upstream servers in this order.
    pub outside: Vec<String>,
    pub then: Box<NameDecision>,
    /// The question's own answer, without any search list: for when an upstream server fails.
    pub unsearched: Box<NameDecision>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameRecord {
    pub name: String,
    pub data: NameData,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NameData {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Srv(SrvRecord),
    Ptr(String),
    Txt(String),
    Cname(String),
    Ns(String),
    /// The zone's; its numbers are the server's.
    Soa,
}

/// Why a question got its answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NameCause {
    Service(ServiceKey),
    Endpoint {
        service: ServiceKey,
        host: String,
    },
    Port {
        service: ServiceKey,
        port: String,
    },
    PodAddress(Addr),
    Zone,
    Pointer(Addr),
    ReverseZone(String),
    /// Outside the cluster's domain; the alias that led there, if one did.
    OutsideZone {
        domain: String,
        alias_of: Option<String>,
    },
    AliasLoop,
    TypeMissing {
        name: String,
        query: QueryType,
        has: Vec<QueryType>,
    },
    NamespaceMissing(String),
    ServiceMissing(ServiceKey),
    Withheld(Absence),
    EndpointMissing {
        service: ServiceKey,
        host: String,
    },
    PortMissing {
        service: ServiceKey,
        port: String,
    },
    AddressUnused(Addr),
    Wildcard,
    /// Below the zone of services that clusters share.
    NotShared(String),
    NotInSchema,
    /// The end of a walk through a search list is one of the cluster's names.
    Searched {
        /// What the application wrote.
        written: String,
        found: String,
        cause: Box<NameCause>,
    },
    SearchedOutside {
        written: String,
    },
}

/// `name` in presentation form, any case, with or without the trailing dot.
pub fn answer(names: &dyn Names, name: &str, query: QueryType) -> NameDecision {
    let mut name = normal(name);
    let mut chain = Vec::new();
    loop {
        match resolve(names, &name, query, chain.is_empty()) {
            Step::Done { answer, zone, cause } => {
                let additional = additional(names, &answer);
                let zone = zone.filter(|_| matches!(answer, NameAnswer::NoData | NameAnswer::NxDomain));
                return NameDecision { chain, answer, additional, zone, cause };
            }
            Step::Alias(target) if chain.len() < ALIAS_LIMIT => {
                chain.push(NameRecord { name, data: NameData::Cname(target.clone()) });
                name = target;
            }
            Step::Alias(_) => {
                let (answer, zone) = (NameAnswer::NoData, Some(names.domain().to_owned()));
                let cause = NameCause::AliasLoop;
                return NameDecision { chain, answer, additional: Vec::new(), zone, cause };
            }
        }
    }
}

/// The same for a question from `client`: if it is a pod of this node whose search list the question begins to walk, the
/// answer is the walk's end. Only names that do not exist get different answers for different clients.
pub fn answer_to(names: &dyn Names, client: Option<Addr>, name: &str, query: QueryType) -> NameDecision {
    let decision = answer(names, name, query);
    if decision.answer != NameAnswer::NxDomain || !decision.chain.is_empty() {
        return decision;
    }
    match client.and_then(|client| names.client(client)) {
        Some(client) => search::follow(names, client, &normal(name), query, decision),
        None => decision,
    }
}

fn normal(name: &str) -> String {
    let name = name.strip_suffix('.').filter(|rest| !ends_in_escape(rest)).unwrap_or(name);
    name.to_ascii_lowercase()
}

/// RFC 1035 5.1: a dot after a backslash is part of its label.
fn ends_in_escape(text: &str) -> bool {
    let escapes = text.len() - text.trim_end_matches('\\').len();
    !escapes.is_multiple_of(2)
}

enum Step {
    Done { answer: NameAnswer, zone: Option<String>, cause: NameCause },
    Alias(String),
}

fn done(answer: NameAnswer, zone: &str, cause: NameCause) -> Step {
    Step::Done { answer, zone: Some(zone.to_owned()), cause }
}

fn resolve(names: &dyn Names, name: &str, query: QueryType, first: bool) -> Step {
    if let Some(relative) = below(name, names.domain()) {
        return inside(names, name, relative, query);
    }
    if let Some(relative) = below(name, names.set_domain()).filter(|_| !names.set_domain().is_empty()) {
        return in_set(names, name, relative, query);
    }
    if let Some(step) = reverse::resolve(names, name, query) {
        return step;
    }
    let alias_of = (!first).then(|| name.to_owned());
    let cause = NameCause::OutsideZone { domain: names.domain().to_owned(), alias_of };
    Step::Done { answer: NameAnswer::NotOurs(name.to_owned()), zone: None, cause }
}

fn inside(names: &dyn Names, name: &str, relative: &str, query: QueryType) -> Step {
    if relative.is_empty() {
        return apex(names, name, query, NameCause::Zone);
    }
    if let Some(records) = names.records(name) {
        return match &records.cname {
            Some(target) if !matches!(query, QueryType::Cname | QueryType::Any) => {
                Step::Alias(target.clone())
            }
            _ => existing(names.domain(), name, &records, query, found(relative)),
        };
    }
    match pod_name(names, relative) {
        Some(PodName::Address(addr)) => {
            let mut records = NameRecords::default();
            match addr.to_ip() {
                IpAddr::V4(v4) => _ = records.a.insert(v4),
                IpAddr::V6(v6) => _ = records.aaaa.insert(v6),
            }
            existing(names.domain(), name, &records, query, NameCause::PodAddress(addr))
        }
        Some(PodName::Namespace) => {
            existing(names.domain(), name, &NameRecords::default(), query, NameCause::Zone)
        }
        None => done(NameAnswer::NxDomain, names.domain(), missing(names, name, relative)),
    }
}

/// Names of the zone that clusters share.
fn in_set(names: &dyn Names, name: &str, relative: &str, query: QueryType) -> Step {
    let zone = names.set_domain();
    if relative.is_empty() {
        return apex(names, name, query, NameCause::Zone);
    }
    match names.records(name) {
        Some(records) => existing(zone, name, &records, query, found(relative)),
        None => done(NameAnswer::NxDomain, zone, NameCause::NotShared(zone.to_owned())),
    }
}

/// The part of `name` before `domain`: empty for the domain itself.
fn below<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let relative = name.strip_suffix(domain)?;
    let Some(labels) = relative.strip_suffix('.') else { return relative.is_empty().then_some(relative) };
    (!ends_in_escape(labels)).then_some(labels)
}

/// A zone's own name.
fn apex(names: &dyn Names, zone: &str, query: QueryType, cause: NameCause) -> Step {
    let data = match query {
        QueryType::Soa | QueryType::Any => NameData::Soa,
        QueryType::Ns => NameData::Ns(format!("ns.dns.{}", names.domain())),
        _ => {
            let has = vec![QueryType::Soa, QueryType::Ns];
            let cause = NameCause::TypeMissing { name: zone.to_owned(), query, has };
            return done(NameAnswer::NoData, zone, cause);
        }
    };
    done(NameAnswer::Records(vec![NameRecord { name: zone.to_owned(), data }]), zone, cause)
}

fn existing(zone: &str, name: &str, records: &NameRecords, query: QueryType, cause: NameCause) -> Step {
    let all = record_sets(records);
    // RFC 8482: a question for ANY gets one of the sets, not all.
    let chosen = match query {
        QueryType::Any => all.iter().find(|(_, data)| !data.is_empty()),
        _ => all.iter().find(|(kind, data)| *kind == query && !data.is_empty()),
    };
    if let Some((_, data)) = chosen {
        let records = data.iter().map(|data| NameRecord { name: name.to_owned(), data: data.clone() });
        return done(NameAnswer::Records(records.collect()), zone, cause);
    }
    let has = all.iter().filter(|(_, data)| !data.is_empty()).map(|(kind, _)| *kind).collect();
    done(NameAnswer::NoData, zone, NameCause::TypeMissing { name: name.to_owned(), query, has })
}

fn record_sets(records: &NameRecords) -> [(QueryType, Vec<NameData>); 5] {
    [
        (QueryType::Cname, records.cname.iter().cloned().map(NameData::Cname).collect()),
        (QueryType::A, records.a.iter().copied().map(NameData::A).collect()),
        (QueryType::Aaaa, records.aaaa.iter().copied().map(NameData::Aaaa).collect()),
        (QueryType::Srv, records.srv.iter().cloned().map(NameData::Srv).collect()),
        (QueryType::Txt, records.txt.iter().cloned().map(NameData::Txt).collect()),
    ]
}

fn additional(names: &dyn Names, answer: &NameAnswer) -> Vec<NameRecord> {
    let NameAnswer::Records(records) = answer else { return Vec::new() };
    let mut found: Vec<NameRecord> = Vec::new();
    let mut named = std::collections::BTreeSet::new();
    for record in records {
        let NameData::Srv(srv) = &record.data else { continue };
        let Some(target) = names.records(&srv.target) else { continue };
        if !named.insert(&srv.target) {
            continue;
        }
        let [_, (_, a), (_, aaaa), _, _] = record_sets(&target);
        let addresses = a.into_iter().chain(aaaa);
        found.extend(addresses.map(|data| NameRecord { name: srv.target.clone(), data }));
    }
    found
}

/// What a name inside the zone is about, read from the schema.
enum Subject<'a> {
    Namespace(&'a str),
    Service(ServiceKey),
    Endpoint(ServiceKey, &'a str),
    Port(ServiceKey, String),
    Other,
}

fn subject(relative: &str) -> Subject<'_> {
    let labels: Vec<&str> = relative.split('.').collect();
    let [rest @ .., namespace, "svc"] = labels.as_slice() else {
        return Subject::Other;
    };
    let [rest @ .., service] = rest else {
        return Subject::Namespace(namespace);
    };
    let key = ServiceKey::new(namespace, service);
    match rest {
        [] => Subject::Service(key),
        [.., last] if last.starts_with('_') => Subject::Port(key, rest.join(".")),
        [host] => Subject::Endpoint(key, host),
        _ => Subject::Other,
    }
}

fn found(relative: &str) -> NameCause {
    match subject(relative) {
        Subject::Service(service) => NameCause::Service(service),
        Subject::Endpoint(service, host) => NameCause::Endpoint { service, host: host.to_owned() },
        Subject::Port(service, port) => NameCause::Port { service, port },
        Subject::Namespace(_) | Subject::Other => NameCause::Zone,
    }
}

fn missing(names: &dyn Names, name: &str, relative: &str) -> NameCause {
    if relative.split('.').any(|label| label == "*") {
        return NameCause::Wildcard;
    }
    if let Some(absence) = withheld(names, name) {
        return NameCause::Withheld(absence);
    }
    let by_service = |key: ServiceKey, cause: &dyn Fn(ServiceKey) -> NameCause| {
        if !namespace_exists(names, key.namespace.as_str()) {
            NameCause::NamespaceMissing(key.namespace.to_string())
        } else if service_exists(names, &key) {
            cause(key)
        } else {
            NameCause::ServiceMissing(key)
        }
    };
    match subject(relative) {
        Subject::Namespace(name) => NameCause::NamespaceMissing(name.to_owned()),
        Subject::Service(key) => by_service(key, &NameCause::ServiceMissing),
        Subject::Endpoint(key, host) => {
            by_service(key, &|service| NameCause::EndpointMissing { service, host: host.to_owned() })
        }
        Subject::Port(key, port) => {
            by_service(key, &|service| NameCause::PortMissing { service, port: port.clone() })
        }
        Subject::Other => NameCause::NotInSchema,
    }
}

fn namespace_exists(names: &dyn Names, namespace: &str) -> bool {
    names.exists(&format!("{namespace}.svc.{}", names.domain()))
}

/// Also while its names are withheld.
fn service_exists(names: &dyn Names, key: &ServiceKey) -> bool {
    let name = format!("{}.{}.svc.{}", key.name, key.namespace, names.domain());
    names.exists(&name) || names.absence(&name).is_some()
}

/// The nearest withheld name at or above this one.
fn withheld(names: &dyn Names, name: &str) -> Option<Absence> {
    let mut rest = name;
    loop {
        if let Some(absence) = names.absence(rest) {
            return Some(absence);
        }
        (_, rest) = rest.split_once('.')?;
    }
}

/// 2.6: `10-244-0-7.shop.pod` has the address it spells, in every namespace there is.
enum PodName {
    Namespace,
    Address(Addr),
}

fn pod_name(names: &dyn Names, relative: &str) -> Option<PodName> {
    let above = relative.strip_suffix(".pod")?;
    let (address, namespace) =
        above.rsplit_once('.').map_or((None, above), |(before, last)| (Some(before), last));
    if !namespace_exists(names, namespace) {
        return None;
    }
    let Some(address) = address else { return Some(PodName::Namespace) };
    if address.contains(['.', ':']) {
        return None;
    }
    let v4 = address.replace('-', ".").parse::<Ipv4Addr>().map(Addr::from);
    let addr = v4.or_else(|_| address.replace('-', ":").parse::<Ipv6Addr>().map(Addr::from));
    addr.ok().map(PodName::Address)
}
