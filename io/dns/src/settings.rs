//! The settings of names: which servers answer for what is not the cluster's, what is kept of their answers, how the
//! cluster's own names are answered. Valid-only; reading a Corefile into them lives in `corefile`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::time::Duration;

use hickory_proto::rr::Name;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cache::Limits;
use crate::entry::Lifetimes;
use crate::upstreams::Policy;

const DNS_PORT: u16 = 53;
const TLS_PORT: u16 = 853;
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where node-local name servers answer by custom, besides the service's address.
const LINK_LOCAL: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x20, 0x10)),
];
const DEFAULT_TTL: u32 = 5;
/// A change of the cluster's names shows only after this long.
const LONGEST_TTL: u32 = 3600;
const MOST_CACHE_BYTES: u64 = 16 << 30;
const WEEK: u32 = 7 * 86_400;
/// Resolvers in pods give up after 5 s.
const LONGEST_WAIT: u64 = 4900;
const MOST_SERVERS: usize = 15;

/// The whole of it. `Settings::default()` is what an empty document gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// For how many seconds clients may keep the cluster's names.
    pub ttl: u32,
    /// Whether names a pod's search list would walk are answered at the first question.
    pub search_collapse: bool,
    /// Where the name server answers besides the cluster's DNS service address.
    pub link_local_addresses: Vec<IpAddr>,
    /// Who is asked for which names; the longest zone decides. Empty is: all names, the servers of /etc/resolv.conf.
    pub forward: Vec<Forward>,
    pub cache: CacheSettings,
    /// Names with fixed addresses, ahead of every server.
    pub hosts: Vec<Host>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ttl: DEFAULT_TTL,
            search_collapse: true,
            link_local_addresses: LINK_LOCAL.to_vec(),
            forward: Vec::new(),
            cache: CacheSettings::default(),
            hosts: Vec::new(),
        }
    }
}

/// Who answers for the names of some zones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Forward {
    /// `.` is every name.
    pub zones: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<Server>,
    /// The `nameserver` lines of this file are servers too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolv_conf: Option<PathBuf>,
    #[serde(default)]
    pub policy: Policy,
    /// Names below the zones that are asked as if this entry were not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
    /// How long all attempts together may take.
    #[serde(default = "default_wait", skip_serializing_if = "is_default_wait")]
    pub timeout_milliseconds: u64,
}

fn default_wait() -> u64 {
    4500
}

fn is_default_wait(wait: &u64) -> bool {
    *wait == default_wait()
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Transport {
    /// UDP, and TCP for what does not fit.
    #[default]
    Udp,
    Tcp,
    Tls,
}

impl Transport {
    /// RFC 7858 3.1 gives DNS over TLS its own.
    pub fn port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => DNS_PORT,
            Self::Tls => TLS_PORT,
        }
    }
}

/// One upstream server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "WrittenServer", into = "WrittenServer")]
pub struct Server {
    pub address: SocketAddr,
    pub transport: Transport,
    /// What the server's certificate must be for; without it, its address.
    pub server_name: Option<String>,
    /// Who may have signed the certificate, in PEM; without it, whom the system trusts.
    pub ca_file: Option<PathBuf>,
}

/// A server as people write it: the port follows from the transport where none is given.
#[derive(Serialize, Deserialize)]
#[serde(rename = "server", rename_all = "camelCase", deny_unknown_fields)]
struct WrittenServer {
    address: String,
    #[serde(default, skip_serializing_if = "is_udp")]
    transport: Transport,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca_file: Option<PathBuf>,
}

impl TryFrom<WrittenServer> for Server {
    type Error = String;

    fn try_from(written: WrittenServer) -> Result<Self, String> {
        let WrittenServer { address, transport, server_name, ca_file } = written;
        let address = server_address(&address, transport.port())
            .ok_or_else(|| format!("address: {address:?} is not an address or address:port"))?;
        Ok(Self { address, transport, server_name, ca_file })
    }
}

impl From<Server> for WrittenServer {
    fn from(server: Server) -> Self {
        let Server { address, transport, server_name, ca_file } = server;
        let scoped = matches!(address, SocketAddr::V6(address) if address.scope_id() != 0);
        let usual = address.port() == transport.port() && !scoped;
        let address = if usual { address.ip().to_string() } else { address.to_string() };
        Self { address, transport, server_name, ca_file }
    }
}

fn is_udp(transport: &Transport) -> bool {
    *transport == Transport::Udp
}

impl Server {
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, transport: Transport::Udp, server_name: None, ca_file: None }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport {
            Transport::Udp => {}
            Transport::Tcp => out.write_str("tcp://")?,
            Transport::Tls => out.write_str("tls://")?,
        }
        write!(out, "{}", self.address)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CacheSettings {
    /// What all answers together may take in memory; 0 keeps none.
    pub max_bytes: u64,
    pub max_seconds: u32,
    pub min_seconds: u32,
    pub max_negative_seconds: u32,
    /// How long an answer past its time may serve when no server answers (RFC 8767); 0 is not at all.
    pub serve_stale_seconds: u32,
    /// An answer used this often is asked again before its time is over; 0 is never.
    pub prefetch_hits: u32,
    /// In which last part of its time.
    pub prefetch_percent: u8,
}

impl Default for CacheSettings {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            max_bytes: limits.bytes as u64,
            max_seconds: limits.lifetimes.longest,
            min_seconds: limits.lifetimes.shortest,
            max_negative_seconds: limits.lifetimes.longest_negative,
            serve_stale_seconds: limits.stale.as_secs() as u32,
            prefetch_hits: limits.prefetch_hits,
            prefetch_percent: limits.prefetch_percent,
        }
    }
}

impl CacheSettings {
    pub fn limits(&self) -> Limits {
        let lifetimes = Lifetimes {
            longest: self.max_seconds,
            shortest: self.min_seconds,
            longest_negative: self.max_negative_seconds,
            failure: Limits::default().lifetimes.failure,
        };
        Limits {
            bytes: usize::try_from(self.max_bytes).unwrap_or(usize::MAX),
            lifetimes,
            stale: Duration::from_secs(self.serve_stale_seconds.into()),
            prefetch_hits: self.prefetch_hits,
            prefetch_percent: self.prefetch_percent,
        }
    }
}

/// One address and its names, as a line of hosts(5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    pub address: IpAddr,
    pub names: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("settings of names: {0}")]
    Syntax(String),
    #[error("settings of names: {field}: {reason}")]
    Field { field: String, reason: String },
}

impl Settings {
    /// From YAML or JSON. Unknown fields are refused by name, and so is what cannot be.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        let settings: Self =
            serde_saphyr::from_str(text).map_err(|error| SettingsError::Syntax(error.to_string()))?;
        settings.check()?;
        Ok(settings)
    }

    /// As one would write it by hand: what is as it is without being said is left out.
    pub fn to_yaml(&self) -> String {
        let written = serde_json::to_value(self).and_then(|this| {
            let usual = serde_json::to_value(Self::default())?;
            Ok(without_usual(this, &usual))
        });
        match written {
            Ok(Value::Object(fields)) if fields.is_empty() => "{}\n".to_owned(),
            Ok(value) => serde_saphyr::to_string(&value).unwrap_or_default(),
            Err(_) => String::new(),
        }
    }

    /// Names outside the cluster go to these servers and no others.
    pub fn with_servers(servers: Vec<SocketAddr>) -> Self {
        let servers = servers.into_iter().map(Server::plain).collect();
        let forward = Forward { servers, resolv_conf: None, ..Forward::default_for_all() };
        Self { forward: vec![forward], ..Self::default() }
    }

    /// What is in force: an empty list stands for the system's servers.
    pub fn effective_forward(&self) -> Vec<Forward> {
        if self.forward.is_empty() { vec![Forward::default_for_all()] } else { self.forward.clone() }
    }

    pub fn check(&self) -> Result<(), SettingsError> {
        at_most("ttl", self.ttl.into(), LONGEST_TTL.into())?;
        for (index, address) in self.link_local_addresses.iter().enumerate() {
            if address.is_unspecified() || address.is_multicast() {
                return refuse(
                    format!("linkLocalAddresses[{index}]"),
                    format!("{address} cannot be listened on"),
                );
            }
        }
        self.cache.check()?;
        let mut zones = BTreeMap::new();
        for (index, forward) in self.forward.iter().enumerate() {
            forward.check(&format!("forward[{index}]"), &mut zones)?;
        }
        for (index, host) in self.hosts.iter().enumerate() {
            if host.names.is_empty() {
                return refuse(format!("hosts[{index}].names"), "give at least one name".to_owned());
            }
            for (at, name) in host.names.iter().enumerate() {
                check_name(&format!("hosts[{index}].names[{at}]"), name)?;
            }
        }
        Ok(())
    }
}

/// The fields that differ, objects field by field.
fn without_usual(value: Value, usual: &Value) -> Value {
    let Value::Object(fields) = value else { return value };
    let differing = fields.into_iter().filter(|(name, value)| usual.get(name) != Some(value));
    let stripped = differing.map(|(name, value)| {
        let usual = usual.get(&name).cloned().unwrap_or_default();
        (name, if usual.is_object() { without_usual(value, &usual) } else { value })
    });
    Value::Object(stripped.collect())
}

impl Forward {
    pub fn default_for_all() -> Self {
        Self {
            zones: vec![".".to_owned()],
            servers: Vec::new(),
            resolv_conf: Some(PathBuf::from(RESOLV_CONF)),
            policy: Policy::default(),
            except: Vec::new(),
            timeout_milliseconds: default_wait(),
        }
    }

    fn check(&self, field: &str, seen: &mut BTreeMap<Name, String>) -> Result<(), SettingsError> {
        if self.zones.is_empty() {
            return refuse(
                format!("{field}.zones"),
                "give at least one zone; \".\" is every name".to_owned(),
            );
        }
        for (index, zone) in self.zones.iter().enumerate() {
            let here = format!("{field}.zones[{index}]");
            let name = check_name(&here, zone)?;
            if let Some(earlier) = seen.insert(name, here.clone()) {
                return refuse(here, format!("{zone:?} is also given in {earlier}"));
            }
        }
        if self.servers.is_empty() && self.resolv_conf.is_none() {
            return refuse(format!("{field}.servers"), "give servers, resolvConf or both".to_owned());
        }
        if self.servers.len() > MOST_SERVERS {
            return refuse(format!("{field}.servers"), format!("at most {MOST_SERVERS} are allowed"));
        }
        let mut servers = BTreeSet::new();
        for (index, server) in self.servers.iter().enumerate() {
            server.check(&format!("{field}.servers[{index}]"))?;
            if !servers.insert(server.to_string()) {
                return refuse(format!("{field}.servers[{index}]"), format!("{server} is given twice"));
            }
        }
        for (index, name) in self.except.iter().enumerate() {
            check_name(&format!("{field}.except[{index}]"), name)?;
        }
        if !(100..=LONGEST_WAIT).contains(&self.timeout_milliseconds) {
            let reason = format!(
                "{} is not between 100 and {LONGEST_WAIT}: resolvers in pods give up after 5 s",
                self.timeout_milliseconds
            );
            return refuse(format!("{field}.timeoutMilliseconds"), reason);
        }
        Ok(())
    }
}

impl Server {
    fn check(&self, field: &str) -> Result<(), SettingsError> {
        let ip = self.address.ip();
        if ip.is_unspecified() || ip.is_multicast() || self.address.port() == 0 {
            return refuse(
                format!("{field}.address"),
                format!("{} is not the address of a server", self.address),
            );
        }
        if self.transport != Transport::Tls {
            for (name, given) in
                [("serverName", self.server_name.is_some()), ("caFile", self.ca_file.is_some())]
            {
                if given {
                    return refuse(format!("{field}.{name}"), "is for transport: tls only".to_owned());
                }
            }
        }
        if let Some(name) = &self.server_name
            && rustls_pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            return refuse(format!("{field}.serverName"), format!("{name:?} is not a name or an address"));
        }
        Ok(())
    }
}

impl CacheSettings {
    fn check(&self) -> Result<(), SettingsError> {
        at_most("cache.maxBytes", self.max_bytes, MOST_CACHE_BYTES)?;
        at_most("cache.maxSeconds", self.max_seconds.into(), WEEK.into())?;
        at_most("cache.maxNegativeSeconds", self.max_negative_seconds.into(), WEEK.into())?;
        at_most("cache.serveStaleSeconds", self.serve_stale_seconds.into(), WEEK.into())?;
        at_most("cache.prefetchPercent", self.prefetch_percent.into(), 90)?;
        if self.min_seconds > self.max_seconds {
            let reason = format!("{} is more than cache.maxSeconds, {}", self.min_seconds, self.max_seconds);
            return refuse("cache.minSeconds".to_owned(), reason);
        }
        Ok(())
    }
}

fn at_most(field: &str, value: u64, most: u64) -> Result<(), SettingsError> {
    if value <= most { Ok(()) } else { refuse(field.to_owned(), format!("{value} is more than {most}")) }
}

fn refuse<T>(field: String, reason: String) -> Result<T, SettingsError> {
    Err(SettingsError::Field { field, reason })
}

fn check_name(field: &str, text: &str) -> Result<Name, SettingsError> {
    match domain_name(text) {
        Some(name) => Ok(name),
        None => refuse(field.to_owned(), format!("{text:?} is not a DNS name")),
    }
}

/// A name as people write it, with or without the dot at its end, in lower case.
pub fn domain_name(text: &str) -> Option<Name> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(plain)
    };
    if text == "." {
        return Some(Name::root());
    }
    if !bare.split('.').all(label) {
        return None;
    }
    Name::from_ascii(format!("{}.", bare.to_ascii_lowercase())).ok()
}

/// `192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1`, `[2001:db8::1]:53`, `fe80::1%eth0`.
pub fn server_address(text: &str, port: u16) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (bare, zone) = text.split_once('%').map_or((text, None), |(bare, zone)| (bare, Some(zone)));
    match (bare.parse().ok()?, zone) {
        (ip, None) => Some(SocketAddr::new(ip, port)),
        (IpAddr::V4(_), Some(_)) => None,
        (IpAddr::V6(ip), Some(zone)) => {
            let index = zone.parse().ok().or_else(|| nix::net::if_::if_nametoindex(zone).ok())?;
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, 0, index)))
        }
    }
}

/// The servers of a resolv.conf(5), and the lines that name none.
pub fn resolv_conf(text: &str) -> (Vec<SocketAddr>, Vec<String>) {
    let (mut servers, mut wrong) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        match words.next().and_then(|word| server_address(word, DNS_PORT)) {
            Some(server) if servers.contains(&server) => {}
            Some(server) => servers.push(server),
            None => wrong.push(line.to_owned()),
        }
    }
    (servers, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        Settings::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn nothing_said_is_the_usual_and_is_written_as_nothing() {
        for text in ["", "# only a comment\n", "{}"] {
            assert_eq!(Settings::parse(text), Ok(Settings::default()), "{text:?}");
        }
        assert_eq!(Settings::default().to_yaml(), "{}\n");
        assert_eq!(Settings::default().effective_forward(), [Forward::default_for_all()]);
    }

    #[test]
    fn settings_are_read_from_yaml_and_json_and_written_back() {
        let text = "
ttl: 10
searchCollapse: false
linkLocalAddresses: [169.254.20.11]
forward:
- zones: [.]
  servers: [{address: 192.0.2.1, transport: tls, serverName: dns.example}, {address: '[2001:db8::1]:54'}]
  policy: fastest
- zones: [corp.example]
  resolvConf: /etc/corp.conf
  timeoutMilliseconds: 2000
cache: {maxBytes: 1000000, serveStaleSeconds: 0}
hosts: [{address: 192.0.2.5, names: [a.example]}]
";
        let settings = Settings::parse(text).unwrap();
        let [tls, plain] = settings.forward[0].servers.as_slice() else { panic!("{settings:?}") };
        assert_eq!(
            (tls.to_string(), plain.to_string()),
            ("tls://192.0.2.1:853".into(), "[2001:db8::1]:54".into())
        );
        assert_eq!(settings.cache.limits().bytes, 1_000_000);
        assert_eq!(Settings::parse(&settings.to_yaml()), Ok(settings.clone()));
        assert_eq!(Settings::parse(&serde_json::to_string(&settings).unwrap()), Ok(settings));
    }

    #[test]
    fn what_cannot_be_is_refused_by_field() {
        let server = "servers: [{address: 192.0.2.1}]";
        for (text, expected) in [
            ("ttl: 4000", "ttl: 4000 is more than 3600"),
            ("linkLocalAddresses: [0.0.0.0]", "linkLocalAddresses[0]: 0.0.0.0 cannot be listened on"),
            ("forward: [{zones: []}]", "forward[0].zones: give at least one zone"),
            ("forward: [{zones: [.]}]", "forward[0].servers: give servers, resolvConf or both"),
            (
                &format!("forward: [{{zones: [a..b], {server}}}]"),
                "forward[0].zones[0]: \"a..b\" is not a DNS name",
            ),
            (
                &format!("forward: [{{zones: [a], {server}}}, {{zones: [A.], {server}}}]"),
                "forward[1].zones[0]: \"A.\" is also given in forward[0].zones[0]",
            ),
            (
                "forward: [{zones: [.], servers: [{address: 192.0.2.1}, {address: '192.0.2.1:53'}]}]",
                "forward[0].servers[1]: 192.0.2.1:53 is given twice",
            ),
            (
                "forward: [{zones: [.], servers: [{address: 0.0.0.0}]}]",
                "forward[0].servers[0].address: 0.0.0.0:53",
            ),
            (
                "forward: [{zones: [.], servers: [{address: dns.example}]}]",
                "\"dns.example\" is not an address",
            ),
            (
                "forward: [{zones: [.], servers: [{address: 192.0.2.1, caFile: /x}]}]",
                "forward[0].servers[0].caFile: is for transport: tls only",
            ),
            (
                "forward: [{zones: [.], servers: [{address: 192.0.2.1, transport: tls, serverName: 'a b'}]}]",
                "forward[0].servers[0].serverName: \"a b\" is not a name",
            ),
            (
                &format!("forward: [{{zones: [.], {server}, timeoutMilliseconds: 9000}}]"),
                "forward[0].timeoutMilliseconds: 9000 is not between 100 and 4900",
            ),
            (&format!("forward: [{{zones: [.], {server}, policy: best}}]"), "best"),
            (
                "cache: {minSeconds: 60, maxSeconds: 30}",
                "cache.minSeconds: 60 is more than cache.maxSeconds, 30",
            ),
            ("cache: {prefetchPercent: 95}", "cache.prefetchPercent: 95 is more than 90"),
            ("cache: {bytes: 1}", "bytes"),
            ("upstreams: []", "upstreams"),
            ("hosts: [{address: 192.0.2.1, names: []}]", "hosts[0].names: give at least one name"),
            ("forward: 3", "settings of names: "),
        ] {
            let reason = refused(text);
            assert!(reason.contains(expected), "{text}\n{reason}");
        }
    }
}
