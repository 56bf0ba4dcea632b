//! What one DNS question gets from the cluster's own names, and why. Wire format, forwarding and caching live in io/dns.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use weft_model::{Addr, ServiceKey};
use weft_plan::{Absence, NamePlan, NameRecords, SrvRecord};

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
    NotInSchema,
}

/// Where names are looked up: a plan, or a more compact form of one. Names are in lower case without a trailing dot.
pub trait Names {
    fn domain(&self) -> &str;
    fn records(&self, name: &str) -> Option<Cow<'_, NameRecords>>;
    fn exists(&self, name: &str) -> bool;
    /// What a reverse name points to.
    fn pointers(&self, name: &str) -> Option<Vec<String>>;
    fn absence(&self, name: &str) -> Option<Absence>;
    /// Whether the address is the cluster's own: a pointer that is missing here is missing everywhere.
    fn is_own(&self, addr: Addr) -> bool;
}

impl Names for NamePlan {
    fn domain(&self) -> &str {
        &self.domain
    }

    fn records(&self, name: &str) -> Option<Cow<'_, NameRecords>> {
        self.names.get(name).map(Cow::Borrowed)
    }

    fn exists(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    fn pointers(&self, name: &str) -> Option<Vec<String>> {
        self.pointers.get(name).map(|names| names.iter().cloned().collect())
    }

    fn absence(&self, name: &str) -> Option<Absence> {
        self.absent.get(name).cloned()
    }

    fn is_own(&self, addr: Addr) -> bool {
        self.reverse.iter().any(|cidr| cidr.contains(addr))
    }
}

/// `name` in presentation form, any case, with or without the trailing dot.
pub fn answer(plan: &dyn Names, name: &str, query: QueryType) -> NameDecision {
    let mut name = name.trim_end_matches('.').to_ascii_lowercase();
    let mut chain = Vec::new();
    loop {
        let step = resolve(plan, &name, query, chain.is_empty());
        match step {
            Step::Done { answer, cause } => {
                let additional = additional(plan, &answer);
                return NameDecision { chain, answer, additional, cause };
            }
            Step::Alias(target) if chain.len() < ALIAS_LIMIT => {
                chain.push(NameRecord { name, data: NameData::Cname(target.clone()) });
                name = target;
            }
            Step::Alias(_) => {
                let answer = NameAnswer::NoData;
                return NameDecision { chain, answer, additional: Vec::new(), cause: NameCause::AliasLoop };
            }
        }
    }
}

enum Step {
    Done { answer: NameAnswer, cause: NameCause },
    Alias(String),
}

fn done(answer: NameAnswer, cause: NameCause) -> Step {
    Step::Done { answer, cause }
}

fn resolve(plan: &dyn Names, name: &str, query: QueryType, first: bool) -> Step {
    let Some(relative) = below(name, plan.domain()) else {
        return outside(plan, name, query, first);
    };
    if relative.is_empty() {
        return apex(plan, name, query);
    }
    if let Some(records) = plan.records(name) {
        return match &records.cname {
            Some(target) if !matches!(query, QueryType::Cname | QueryType::Any) => {
                Step::Alias(target.clone())
            }
            _ => existing(name, relative, &records, query),
        };
    }
    if let Some(addr) = pod_address(plan, relative) {
        let mut records = NameRecords::default();
        match addr.to_ip() {
            IpAddr::V4(v4) => _ = records.a.insert(v4),
            IpAddr::V6(v6) => _ = records.aaaa.insert(v6),
        }
        return match existing(name, relative, &records, query) {
            Step::Done { answer: answer @ NameAnswer::Records(_), .. } => {
                done(answer, NameCause::PodAddress(addr))
            }
            other => other,
        };
    }
    done(NameAnswer::NxDomain, missing(plan, name, relative))
}

/// The part of `name` before `domain`: empty for the domain itself.
fn below<'a>(name: &'a str, domain: &str) -> Option<&'a str> {
    let relative = name.strip_suffix(domain)?;
    if relative.is_empty() { Some(relative) } else { relative.strip_suffix('.') }
}

fn apex(plan: &dyn Names, name: &str, query: QueryType) -> Step {
    let data = match query {
        QueryType::Soa | QueryType::Any => NameData::Soa,
        QueryType::Ns => NameData::Ns(format!("ns.dns.{}", plan.domain())),
        _ => {
            let has = vec![QueryType::Soa, QueryType::Ns];
            let cause = NameCause::TypeMissing { name: name.to_owned(), query, has };
            return done(NameAnswer::NoData, cause);
        }
    };
    done(NameAnswer::Records(vec![NameRecord { name: name.to_owned(), data }]), NameCause::Zone)
}

fn outside(plan: &dyn Names, name: &str, query: QueryType, first: bool) -> Step {
    if let Some(addr) = pointed_address(name) {
        if let Some(names) = plan.pointers(name) {
            if !matches!(query, QueryType::Ptr | QueryType::Any) {
                let cause =
                    NameCause::TypeMissing { name: name.to_owned(), query, has: vec![QueryType::Ptr] };
                return done(NameAnswer::NoData, cause);
            }
            let records = names
                .into_iter()
                .map(|target| NameRecord { name: name.to_owned(), data: NameData::Ptr(target) });
            return done(NameAnswer::Records(records.collect()), NameCause::Pointer(addr));
        }
        if plan.is_own(addr) {
            return done(NameAnswer::NxDomain, NameCause::AddressUnused(addr));
        }
    }
    let alias_of = (!first).then(|| name.to_owned());
    let cause = NameCause::OutsideZone { domain: plan.domain().to_owned(), alias_of };
    done(NameAnswer::NotOurs(name.to_owned()), cause)
}

fn existing(name: &str, relative: &str, records: &NameRecords, query: QueryType) -> Step {
    let all = record_sets(records);
    // RFC 8482: a question for ANY gets one of the sets, not all.
    let chosen = match query {
        QueryType::Any => all.iter().find(|(_, data)| !data.is_empty()),
        _ => all.iter().find(|(kind, data)| *kind == query && !data.is_empty()),
    };
    if let Some((_, data)) = chosen {
        let records = data.iter().map(|data| NameRecord { name: name.to_owned(), data: data.clone() });
        return done(NameAnswer::Records(records.collect()), found(relative));
    }
    let has = all.iter().filter(|(_, data)| !data.is_empty()).map(|(kind, _)| *kind).collect();
    done(NameAnswer::NoData, NameCause::TypeMissing { name: name.to_owned(), query, has })
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

fn additional(plan: &dyn Names, answer: &NameAnswer) -> Vec<NameRecord> {
    let NameAnswer::Records(records) = answer else { return Vec::new() };
    let mut found: Vec<NameRecord> = Vec::new();
    for record in records {
        let NameData::Srv(srv) = &record.data else { continue };
        let Some(target) = plan.records(&srv.target) else { continue };
        if found.iter().any(|known| known.name == srv.target) {
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

fn missing(plan: &dyn Names, name: &str, relative: &str) -> NameCause {
    if let Some(absence) = withheld(plan, name) {
        return NameCause::Withheld(absence);
    }
    let exists =
        |key: &ServiceKey| plan.exists(&format!("{}.{}.svc.{}", key.name, key.namespace, plan.domain()));
    let namespace_exists = |name: &str| plan.exists(&format!("{name}.svc.{}", plan.domain()));
    let by_service = |key: ServiceKey, cause: &dyn Fn(ServiceKey) -> NameCause| {
        if !namespace_exists(key.namespace.as_str()) {
            NameCause::NamespaceMissing(key.namespace.to_string())
        } else if exists(&key) {
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

/// The nearest withheld name at or above this one.
fn withheld(plan: &dyn Names, name: &str) -> Option<Absence> {
    let mut rest = name;
    loop {
        if let Some(absence) = plan.absence(rest) {
            return Some(absence);
        }
        (_, rest) = rest.split_once('.')?;
    }
}

/// 2.6: `10-244-0-7.shop.pod` has the address it spells, in every namespace there is.
fn pod_address(plan: &dyn Names, relative: &str) -> Option<Addr> {
    let (address, rest) = relative.split_once('.')?;
    let namespace = rest.strip_suffix(".pod")?;
    if namespace.contains('.') || !plan.exists(&format!("{namespace}.svc.{}", plan.domain())) {
        return None;
    }
    let v4 = address.replace('-', ".").parse::<Ipv4Addr>().map(Addr::from);
    v4.or_else(|_| address.replace('-', ":").parse::<Ipv6Addr>().map(Addr::from)).ok()
}

/// The address a whole reverse name stands for (RFC 1035 3.5, RFC 3596 2.5).
fn pointed_address(name: &str) -> Option<Addr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let reversed: Vec<&str> = labels.rsplit('.').collect();
        return reversed.join(".").parse::<Ipv4Addr>().ok().map(Addr::from);
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let mut octets = [0u8; 16];
    let mut count = 0;
    for (index, label) in labels.rsplit('.').enumerate() {
        let nibble = u8::from_str_radix(label, 16).ok().filter(|_| label.len() == 1)?;
        let octet = octets.get_mut(index / 2)?;
        *octet = *octet << 4 | nibble;
        count = index + 1;
    }
    (count == 32).then(|| Addr::from(Ipv6Addr::from(octets)))
}

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
            Self::NotInSchema => f.write_str("no service, endpoint or port can have that name"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn plan() -> NamePlan {
        let mut plan = NamePlan {
            domain: "cluster.local".to_owned(),
            reverse: BTreeSet::from(["10.96.0.0/16".parse().unwrap()]),
            ..NamePlan::default()
        };
        for name in ["cluster.local", "svc.cluster.local", "shop.svc.cluster.local"] {
            plan.names.insert(name.to_owned(), NameRecords::default());
        }
        let web = plan.names.entry("web.shop.svc.cluster.local".to_owned()).or_default();
        web.a.insert(Ipv4Addr::new(10, 96, 0, 5));
        let srv =
            SrvRecord { priority: 0, weight: 100, port: 80, target: "web.shop.svc.cluster.local".to_owned() };
        plan.names.entry("_http._tcp.web.shop.svc.cluster.local".to_owned()).or_default().srv.insert(srv);
        plan.names.entry("_tcp.web.shop.svc.cluster.local".to_owned()).or_default();
        for (alias, target) in [
            ("out", "example.org"),
            ("near", "web.shop.svc.cluster.local"),
            ("gone", "nobody.shop.svc.cluster.local"),
            ("a", "b.shop.svc.cluster.local"),
            ("b", "a.shop.svc.cluster.local"),
        ] {
            plan.names.entry(format!("{alias}.shop.svc.cluster.local")).or_default().cname =
                Some(target.to_owned());
        }
        let service = ServiceKey::new("shop", "db");
        plan.absent.insert(
            "db.shop.svc.cluster.local".to_owned(),
            Absence::NoReadyEndpoints { service, not_ready: 2 },
        );
        plan.pointers
            .entry("5.0.96.10.in-addr.arpa".to_owned())
            .or_default()
            .insert("web.shop.svc.cluster.local".to_owned());
        plan
    }

    fn ask(name: &str, query: QueryType) -> NameDecision {
        answer(&plan(), name, query)
    }

    fn rows(decision: &NameDecision) -> Vec<String> {
        let NameAnswer::Records(records) = &decision.answer else {
            panic!("no records: {decision:?}");
        };
        records.iter().map(NameRecord::to_string).collect()
    }

    #[test]
    fn names_are_found_in_any_case_with_or_without_the_last_dot() {
        let decision = ask("WEB.shop.SVC.Cluster.local.", QueryType::A);
        assert_eq!(rows(&decision), ["web.shop.svc.cluster.local A 10.96.0.5"]);
        assert_eq!(decision.cause, NameCause::Service(ServiceKey::new("shop", "web")));
    }

    #[test]
    fn srv_brings_the_addresses_of_its_targets() {
        let decision = ask("_http._tcp.web.shop.svc.cluster.local", QueryType::Srv);
        assert_eq!(
            rows(&decision),
            ["_http._tcp.web.shop.svc.cluster.local SRV 0 100 80 web.shop.svc.cluster.local"]
        );
        assert_eq!(decision.additional.len(), 1);
    }

    #[test]
    fn every_refusal_has_its_cause() {
        let cases = [
            (
                "web.shop.svc.cluster.local",
                QueryType::Aaaa,
                NameAnswer::NoData,
                "web.shop.svc.cluster.local exists and has no AAAA records, only A",
            ),
            (
                "_tcp.web.shop.svc.cluster.local",
                QueryType::Srv,
                NameAnswer::NoData,
                "_tcp.web.shop.svc.cluster.local exists and has no records, SRV or other",
            ),
            (
                "shop.svc.cluster.local",
                QueryType::A,
                NameAnswer::NoData,
                "shop.svc.cluster.local exists and has no records, A or other",
            ),
            (
                "cluster.local",
                QueryType::A,
                NameAnswer::NoData,
                "cluster.local exists and has no A records, only SOA, NS",
            ),
            (
                "web.nowhere.svc.cluster.local",
                QueryType::A,
                NameAnswer::NxDomain,
                "there is no namespace nowhere",
            ),
            (
                "wep.shop.svc.cluster.local",
                QueryType::A,
                NameAnswer::NxDomain,
                "there is no service wep in namespace shop",
            ),
            (
                "x.wep.shop.svc.cluster.local",
                QueryType::A,
                NameAnswer::NxDomain,
                "there is no service wep in namespace shop",
            ),
            (
                "db.shop.svc.cluster.local",
                QueryType::A,
                NameAnswer::NxDomain,
                "headless service shop/db has no ready endpoints (2 not ready)",
            ),
            (
                "db-0.db.shop.svc.cluster.local",
                QueryType::A,
                NameAnswer::NxDomain,
                "headless service shop/db has no ready endpoints (2 not ready)",
            ),
            (
                "x.web.shop.svc.cluster.local",
                QueryType::A,
                NameAnswer::NxDomain,
                "service shop/web has no ready endpoint with hostname x",
            ),
            (
                "_grpc._tcp.web.shop.svc.cluster.local",
                QueryType::Srv,
                NameAnswer::NxDomain,
                "service shop/web has no port named _grpc._tcp",
            ),
            (
                "example.org.cluster.local",
                QueryType::A,
                NameAnswer::NxDomain,
                "no service, endpoint or port can have that name",
            ),
            (
                "9.9.96.10.in-addr.arpa",
                QueryType::Ptr,
                NameAnswer::NxDomain,
                "10.96.9.9 is an address of the cluster, of no service and of no named endpoint",
            ),
        ];
        for (name, query, answer, cause) in cases {
            let decision = ask(name, query);
            assert_eq!(
                (decision.answer, decision.cause.to_string().as_str()),
                (answer, cause),
                "{name} {query}"
            );
        }
    }

    #[test]
    fn aliases_are_followed_inside_and_handed_on_outside() {
        let near = ask("near.shop.svc.cluster.local", QueryType::A);
        assert_eq!(near.chain.len(), 1);
        assert_eq!(rows(&near), ["web.shop.svc.cluster.local A 10.96.0.5"]);
        let out = ask("out.shop.svc.cluster.local", QueryType::A);
        assert_eq!((out.chain.len(), out.answer), (1, NameAnswer::NotOurs("example.org".to_owned())));
        let gone = ask("gone.shop.svc.cluster.local", QueryType::A);
        assert_eq!((gone.chain.len(), gone.answer), (1, NameAnswer::NxDomain));
        let cname = ask("out.shop.svc.cluster.local", QueryType::Cname);
        assert_eq!(rows(&cname), ["out.shop.svc.cluster.local CNAME example.org"]);
        let looped = ask("a.shop.svc.cluster.local", QueryType::A);
        assert_eq!((looped.chain.len(), looped.cause), (ALIAS_LIMIT, NameCause::AliasLoop));
    }

    #[test]
    fn others_names_are_not_ours() {
        for name in
            ["example.org", "notcluster.local", "local", "", "8.8.8.8.in-addr.arpa", "96.10.in-addr.arpa"]
        {
            assert_eq!(ask(name, QueryType::Ptr).answer, NameAnswer::NotOurs(name.to_owned()));
        }
    }

    #[test]
    fn pod_addresses_are_spelled_in_existing_namespaces() {
        let decision = ask("10-244-0-7.shop.pod.cluster.local", QueryType::A);
        assert_eq!(rows(&decision), ["10-244-0-7.shop.pod.cluster.local A 10.244.0.7"]);
        assert_eq!(ask("10-244-0-7.shop.pod.cluster.local", QueryType::Aaaa).answer, NameAnswer::NoData);
        assert_eq!(
            rows(&ask("fd00--7.shop.pod.cluster.local", QueryType::Aaaa)),
            ["fd00--7.shop.pod.cluster.local AAAA fd00::7"]
        );
        assert_eq!(ask("10-244-0-7.nowhere.pod.cluster.local", QueryType::A).answer, NameAnswer::NxDomain);
    }

    #[test]
    fn pointers_and_any_and_types() {
        let pointer = ask("5.0.96.10.IN-ADDR.arpa", QueryType::Ptr);
        assert_eq!(rows(&pointer), ["5.0.96.10.in-addr.arpa PTR web.shop.svc.cluster.local"]);
        assert_eq!(rows(&ask("web.shop.svc.cluster.local", QueryType::Any)).len(), 1);
        assert_eq!(rows(&ask("cluster.local", QueryType::Ns)), ["cluster.local NS ns.dns.cluster.local"]);
        assert_eq!("aaaa".parse::<QueryType>().unwrap(), QueryType::Aaaa);
        assert!("WKS".parse::<QueryType>().is_err());
    }
}
