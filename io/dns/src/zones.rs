//! Settings made into what a question is looked up in: the longest zone a name is in, its servers, and names with
//! fixed addresses. What is known of servers survives a change of settings.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::entry::{Accepted, Key, wire_name};
use crate::exchange::Line;
use crate::settings::{Forward, Host, Server, Settings, SettingsError, Transport, domain_name, resolv_conf};
use crate::tls;
use crate::upstreams::{Group, Upstream, UpstreamStatus};

/// One zone and who answers for it.
pub struct Zone {
    pub name: Name,
    pub group: Arc<Group>,
    pub timeout: Duration,
    except: HashSet<Box<[u8]>>,
}

#[derive(Default)]
pub struct Table {
    zones: HashMap<Box<[u8]>, Arc<Zone>>,
    hosts: Hosts,
    upstreams: HashMap<Known, Arc<Upstream>>,
    /// Servers by the file they were read from.
    files: HashMap<PathBuf, Vec<SocketAddr>>,
    /// What the operator should know, though the settings are in force.
    pub problems: Vec<String>,
}

/// The same server with the same trust is the same upstream, also after a change of settings.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Known {
    server: Server,
    authorities: Option<Vec<u8>>,
}

impl Table {
    /// `own` are the addresses of this name server: it never asks itself.
    pub fn new(settings: &Settings, own: &[SocketAddr], earlier: &Self) -> Result<Self, SettingsError> {
        let mut table = Self { hosts: Hosts::new(&settings.hosts, settings.ttl), ..Self::default() };
        for (index, forward) in settings.effective_forward().iter().enumerate() {
            let servers = table.servers(forward, own, earlier);
            let mut upstreams = Vec::new();
            for (at, server) in servers.into_iter().enumerate() {
                let field = || format!("forward[{index}].servers[{at}].caFile");
                upstreams.push(table.upstream(server, earlier, &field)?);
            }
            let group = Arc::new(Group::new(upstreams, forward.policy));
            table.add_zones(forward, &group);
        }
        Ok(table)
    }

    /// Who answers for a name, given in lower case as on the wire: the longest zone that does not except it.
    pub fn find(&self, name: &[u8]) -> Option<&Arc<Zone>> {
        suffixes(name)
            .filter_map(|suffix| self.zones.get(suffix))
            .find(|zone| zone.except.is_empty() || !suffixes(name).any(|suffix| zone.except.contains(suffix)))
    }

    /// An answer from the fixed names.
    pub fn fixed(&self, key: &Key) -> Option<Accepted> {
        self.hosts.answer(key)
    }

    /// Whether another answer may be due for this name than by `other`.
    pub fn differs(&self, other: &Self, name: &[u8]) -> bool {
        let servers = |table: &Self| {
            let zone = table.find(name)?;
            Some(zone.group.upstreams.iter().map(|upstream| upstream.server.clone()).collect::<Vec<_>>())
        };
        servers(self) != servers(other) || self.hosts.of(name) != other.hosts.of(name)
    }

    /// Into the log, what the operator should know.
    pub fn report(&self) {
        for problem in &self.problems {
            tracing::warn!("{problem}");
        }
    }

    pub fn zones(&self) -> impl Iterator<Item = &Arc<Zone>> {
        self.zones.values()
    }

    pub fn status(&self) -> Vec<UpstreamStatus> {
        let status = |zone: &Arc<Zone>| {
            let name = zone.name.to_ascii();
            zone.group.upstreams.iter().map(move |upstream| upstream.status(&name)).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = self.zones.values().flat_map(status).collect();
        all.sort_by(|a, b| a.zone.cmp(&b.zone));
        all
    }

    fn servers(&mut self, forward: &Forward, own: &[SocketAddr], earlier: &Self) -> Vec<Server> {
        let mut servers = forward.servers.clone();
        if let Some(file) = &forward.resolv_conf {
            servers.extend(self.read(file, earlier).into_iter().map(Server::plain));
        }
        let mut seen = HashSet::new();
        servers.retain(|server| seen.insert(server.clone()));
        let zones = forward.zones.join(", ");
        servers.retain(|server| {
            let ours = own.contains(&server.address);
            if ours {
                self.problems.push(format!(
                    "{zones}: {server} is not asked: this name server has that address itself, which would be a loop"
                ));
            }
            !ours
        });
        if servers.is_empty() {
            self.problems
                .push(format!("{zones}: there are no upstream name servers: these names get SERVFAIL"));
        }
        servers
    }

    /// A file that cannot be read leaves what was in it before.
    fn read(&mut self, file: &Path, earlier: &Self) -> Vec<SocketAddr> {
        let servers = match std::fs::read_to_string(file) {
            Ok(text) => {
                let (servers, wrong) = resolv_conf(&text);
                let file = file.display();
                self.problems.extend(wrong.iter().map(|line| format!("{file}: no address in {line:?}")));
                servers
            }
            Err(error) => {
                self.problems.push(format!("{} cannot be read: {error}", file.display()));
                earlier.files.get(file).cloned().unwrap_or_default()
            }
        };
        self.files.insert(file.to_owned(), servers.clone());
        servers
    }

    fn upstream(
        &mut self,
        server: Server,
        earlier: &Self,
        field: &dyn Fn() -> String,
    ) -> Result<Arc<Upstream>, SettingsError> {
        let refused = |reason: String| SettingsError::Field { field: field(), reason };
        let read = |file: &PathBuf| {
            std::fs::read(file)
                .map_err(|error| refused(format!("{} cannot be read: {error}", file.display())))
        };
        let authorities = server.ca_file.as_ref().map(read).transpose()?;
        let known = Known { server: server.clone(), authorities };
        if let Some(upstream) = self.upstreams.get(&known).or_else(|| earlier.upstreams.get(&known)) {
            let upstream = upstream.clone();
            self.upstreams.insert(known, upstream.clone());
            return Ok(upstream);
        }
        let tls = match server.transport {
            Transport::Tls => Some(tls::config(known.authorities.as_deref()).map_err(refused)?),
            Transport::Udp | Transport::Tcp => None,
        };
        let upstream = Arc::new(Upstream::new(server, Line::new(tls)));
        self.upstreams.insert(known, upstream.clone());
        Ok(upstream)
    }

    fn add_zones(&mut self, forward: &Forward, group: &Arc<Group>) {
        let wire = |text: &String| domain_name(text).map(|name| wire_name(&name));
        let except: HashSet<_> = forward.except.iter().filter_map(wire).collect();
        for name in forward.zones.iter().filter_map(|text| domain_name(text)) {
            let zone = Zone {
                group: group.clone(),
                timeout: Duration::from_millis(forward.timeout_milliseconds),
                except: except.clone(),
                name,
            };
            self.zones.insert(wire_name(&zone.name), Arc::new(zone));
        }
    }
}

/// A name and those above it, as on the wire, down to the root.
fn suffixes(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(name);
    std::iter::from_fn(move || {
        let current = rest?;
        rest = match current.first() {
            None | Some(0) => None,
            Some(label) => current.get(1 + usize::from(*label)..),
        };
        Some(current)
    })
}

/// Names with fixed addresses, and the way back.
#[derive(Default)]
struct Hosts {
    ttl: u32,
    addresses: HashMap<Box<[u8]>, Vec<IpAddr>>,
    names: HashMap<Box<[u8]>, Vec<Name>>,
}

impl Hosts {
    fn new(hosts: &[Host], ttl: u32) -> Self {
        let mut all = Self { ttl, ..Self::default() };
        for host in hosts {
            for name in host.names.iter().filter_map(|text| domain_name(text)) {
                all.addresses.entry(wire_name(&name)).or_default().push(host.address);
                let back = Name::from(host.address);
                all.names.entry(wire_name(&back)).or_default().push(name);
            }
        }
        all
    }

    fn answer(&self, key: &Key) -> Option<Accepted> {
        let wire = wire_name(&key.name.to_lowercase());
        let data: Vec<RData> = match (self.addresses.get(&wire), self.names.get(&wire)) {
            (None, None) => return None,
            (Some(addresses), _) => {
                addresses.iter().filter_map(|address| of_kind(*address, key.kind)).collect()
            }
            (None, Some(names)) if matches!(key.kind, RecordType::PTR | RecordType::ANY) => {
                names.iter().map(|name| RData::PTR(PTR(name.clone()))).collect()
            }
            (None, Some(_)) => Vec::new(),
        };
        let record = |data| Record::from_rdata(key.name.clone(), self.ttl, data);
        Some(Accepted {
            code: ResponseCode::NoError,
            answers: data.into_iter().map(record).collect(),
            authorities: Vec::new(),
            explanation: None,
            authenticated: false,
        })
    }

    fn of(&self, name: &[u8]) -> (Option<&Vec<IpAddr>>, Option<&Vec<Name>>) {
        (self.addresses.get(name), self.names.get(name))
    }
}

fn of_kind(address: IpAddr, kind: RecordType) -> Option<RData> {
    match (address, kind) {
        (IpAddr::V4(address), RecordType::A | RecordType::ANY) => Some(RData::A(A(address))),
        (IpAddr::V6(address), RecordType::AAAA | RecordType::ANY) => Some(RData::AAAA(AAAA(address))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::tests::{key, name};

    fn settings(text: &str) -> Settings {
        Settings::parse(text).unwrap()
    }

    fn table(text: &str) -> Table {
        Table::new(&settings(text), &[], &Table::default()).unwrap()
    }

    fn servers(table: &Table, asked: &str) -> Vec<String> {
        let zone = table.find(&wire_name(&name(asked)));
        let servers =
            zone.map(|zone| zone.group.upstreams.iter().map(|upstream| upstream.server.to_string()));
        servers.map(Iterator::collect).unwrap_or_default()
    }

    const STUBS: &str = "
forward:
- zones: [.]
  servers: [{address: 192.0.2.1}]
  except: [internal.]
- zones: [corp.example, Other.Test.]
  servers: [{address: 192.0.2.2, transport: tcp}, {address: '192.0.2.3:5353'}]
- zones: [lab.corp.example]
  servers: [{address: '2001:db8::1'}]
  except: [deep.lab.corp.example]
";

    #[test]
    fn the_longest_zone_that_does_not_except_a_name_decides() {
        let table = table(STUBS);
        let corp = vec!["tcp://192.0.2.2:53".to_owned(), "192.0.2.3:5353".to_owned()];
        assert_eq!(servers(&table, "example."), ["192.0.2.1:53"]);
        assert_eq!(servers(&table, "."), ["192.0.2.1:53"]);
        assert_eq!(servers(&table, "corp.example."), corp);
        assert_eq!(servers(&table, "a.corp.example."), corp);
        assert_eq!(servers(&table, "notcorp.example."), ["192.0.2.1:53"]);
        assert_eq!(servers(&table, "x.other.test."), corp);
        assert_eq!(servers(&table, "a.lab.corp.example."), ["[2001:db8::1]:53"]);
        assert_eq!(servers(&table, "a.deep.lab.corp.example."), corp);
        assert!(servers(&table, "a.internal.").is_empty());
    }

    #[test]
    fn the_server_never_asks_itself_and_says_so() {
        let own = ["192.0.2.1:53".parse().unwrap()];
        let table = Table::new(&settings(STUBS), &own, &Table::default()).unwrap();
        assert!(servers(&table, "example.").is_empty());
        assert!(table.problems[0].contains("192.0.2.1:53 is not asked"), "{:?}", table.problems);
        assert!(table.problems[1].contains("no upstream name servers"), "{:?}", table.problems);
    }

    #[test]
    fn what_is_known_of_servers_survives_a_change_and_only_changed_names_differ() {
        let before = table(STUBS);
        let changed = STUBS.replace("192.0.2.3:5353", "192.0.2.4");
        let after = Table::new(&settings(&changed), &[], &before).unwrap();
        let first = |table: &Table| {
            table.find(&wire_name(&name("corp.example."))).unwrap().group.upstreams[0].clone()
        };
        assert!(Arc::ptr_eq(&first(&before), &first(&after)));
        let differs = |text| after.differs(&before, &wire_name(&name(text)));
        assert_eq!(["example.", "corp.example.", "lab.corp.example."].map(differs), [false, true, false]);
    }

    #[test]
    fn fixed_names_have_their_addresses_and_the_way_back() {
        let table = table("hosts: [{address: 192.0.2.9, names: [a.Example, b.example.]}]\nttl: 7");
        let ask = |text: &str, kind| table.fixed(&Key { kind, ..key(text) });
        let rows = |accepted: Accepted| -> Vec<_> {
            accepted
                .answers
                .iter()
                .map(|record| format!("{} {} {}", record.name, record.ttl, record.data))
                .collect()
        };
        assert_eq!(rows(ask("A.example.", RecordType::A).unwrap()), ["A.example. 7 192.0.2.9"]);
        assert!(ask("a.example.", RecordType::AAAA).unwrap().answers.is_empty());
        let back = ask("9.2.0.192.in-addr.arpa.", RecordType::PTR).unwrap();
        let owner = "9.2.0.192.in-addr.arpa. 7";
        assert_eq!(rows(back), [format!("{owner} a.example."), format!("{owner} b.example.")]);
        assert!(ask("c.example.", RecordType::A).is_none());
    }

    #[test]
    fn a_file_that_went_away_leaves_its_servers_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let given = settings(&format!("forward: [{{zones: [.], resolvConf: {}}}]", file.display()));
        std::fs::write(&file, "# c\nsearch x\nnameserver 192.0.2.1\nnameserver 2001:db8::1 \nnameserver 192.0.2.1\nnameserver no\n").unwrap();
        let before = Table::new(&given, &[], &Table::default()).unwrap();
        assert_eq!(servers(&before, "a.example."), ["192.0.2.1:53", "[2001:db8::1]:53"]);
        assert!(before.problems[0].contains("nameserver no"), "{:?}", before.problems);
        std::fs::remove_file(&file).unwrap();
        let after = Table::new(&given, &[], &before).unwrap();
        assert_eq!(servers(&after, "a.example."), servers(&before, "a.example."));
        assert!(after.problems[0].contains("cannot be read"), "{:?}", after.problems);
    }
}
