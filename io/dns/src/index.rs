//! Names in little memory: each entry is one run of bytes, found by its name. What questions get is decided in core/decide, on
//! this as on a plan.

use std::borrow::{Borrow, Cow};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, Ipv6Addr};

use weft_decide::names::Names;
use weft_model::{Addr, Cidr};
use weft_plan::{Absence, NameClient, NameHead, NameRecords, NameRow, SrvRecord};

/// Pods that walk the same search list from the same namespace; zero is for everybody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClientClass(pub u32);

#[derive(Debug, Default)]
pub struct Index {
    domain: String,
    set_domain: String,
    reverse: BTreeSet<Cidr>,
    names: HashSet<Entry>,
    pointers: BTreeMap<Addr, Box<[u8]>>,
    absent: BTreeMap<String, Absence>,
    clients: BTreeMap<Addr, (ClientClass, NameClient)>,
}

impl Index {
    /// Zones without names.
    pub fn new(head: &NameHead) -> Self {
        let mut index = Self::default();
        index.set_zones(head);
        index
    }

    pub fn has_zones(&self, head: &NameHead) -> bool {
        self.domain == head.domain && self.set_domain == head.set_domain && self.reverse == head.reverse
    }

    pub fn set_zones(&mut self, head: &NameHead) {
        self.domain = head.domain.clone();
        self.set_domain = head.set_domain.clone();
        self.reverse = head.reverse.clone();
    }

    /// Names, and pointers.
    pub fn counts(&self) -> (usize, usize) {
        (self.names.len(), self.pointers.len())
    }

    pub fn class(&self, client: Addr) -> ClientClass {
        self.clients.get(&client).map_or(ClientClass::default(), |(class, _)| *class)
    }

    /// Whether anything is another than before.
    pub fn put(&mut self, row: NameRow) -> bool {
        match row {
            NameRow::Name(name, Some(records)) => {
                let entry = Entry::new(&name, &records, &self.domain);
                if self.names.get(name.as_bytes()).is_some_and(|before| before.0 == entry.0) {
                    return false;
                }
                self.names.replace(entry);
                true
            }
            NameRow::Name(name, None) => self.names.remove(name.as_bytes()),
            NameRow::Pointer(addr, Some(names)) => {
                let mut bytes = Vec::new();
                names.iter().for_each(|name| put_name(&mut bytes, name, &self.domain));
                let bytes = bytes.into_boxed_slice();
                self.pointers.insert(addr, bytes.clone()) != Some(bytes)
            }
            NameRow::Pointer(addr, None) => self.pointers.remove(&addr).is_some(),
            NameRow::Absent(name, Some(why)) => self.absent.insert(name, why.clone()) != Some(why),
            NameRow::Absent(name, None) => self.absent.remove(&name).is_some(),
            NameRow::Client(addr, Some(client)) => {
                let entry = (class(&client), client);
                self.clients.insert(addr, entry.clone()) != Some(entry)
            }
            NameRow::Client(addr, None) => self.clients.remove(&addr).is_some(),
        }
    }

    /// Removes what is not among `kept`, and tells of each.
    pub fn retain(&mut self, kept: &Kept, mut gone: impl FnMut(&NameRow)) {
        self.names.retain(|entry| {
            let stays = kept.names.contains(&digest(entry.name()));
            if !stays && let Ok(name) = std::str::from_utf8(entry.name()) {
                gone(&NameRow::Name(name.to_owned(), None));
            }
            stays
        });
        self.pointers.retain(|addr, _| {
            let stays = kept.addrs.contains(addr);
            if !stays {
                gone(&NameRow::Pointer(*addr, None));
            }
            stays
        });
        self.absent.retain(|name, _| {
            let stays = kept.absent.contains(name);
            if !stays {
                gone(&NameRow::Absent(name.clone(), None));
            }
            stays
        });
        self.clients.retain(|addr, _| kept.clients.contains(addr));
        self.names.shrink_to(self.names.len() * 5 / 4);
    }
}

/// What a whole plan names.
#[derive(Default)]
pub struct Kept {
    /// Digests of names: two names of one plan with the same one are too unlikely to matter, and then one stays too long.
    names: HashSet<u64>,
    addrs: HashSet<Addr>,
    absent: HashSet<String>,
    clients: HashSet<Addr>,
}

impl Kept {
    pub fn add(&mut self, row: &NameRow) {
        match row {
            NameRow::Name(name, Some(_)) => _ = self.names.insert(digest(name.as_bytes())),
            NameRow::Pointer(addr, Some(_)) => _ = self.addrs.insert(*addr),
            NameRow::Absent(name, Some(_)) => _ = self.absent.insert(name.clone()),
            NameRow::Client(addr, Some(_)) => _ = self.clients.insert(*addr),
            _ => {}
        }
    }
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn class(client: &NameClient) -> ClientClass {
    let Some(searching) = &client.searching else { return ClientClass::default() };
    let mut hasher = DefaultHasher::new();
    client.pod.namespace.hash(&mut hasher);
    searching.domains.hash(&mut hasher);
    searching.ndots.hash(&mut hasher);
    ClientClass(hasher.finish() as u32 | 1)
}

impl Names for Index {
    fn domain(&self) -> &str {
        &self.domain
    }

    fn set_domain(&self) -> &str {
        &self.set_domain
    }

    fn records(&self, name: &str) -> Option<Cow<'_, NameRecords>> {
        self.names.get(name.as_bytes()).map(|entry| Cow::Owned(entry.records(&self.domain)))
    }

    fn exists(&self, name: &str) -> bool {
        self.names.contains(name.as_bytes())
    }

    fn absence(&self, name: &str) -> Option<Absence> {
        self.absent.get(name).cloned()
    }

    fn pointers(&self, addr: Addr) -> Option<Vec<String>> {
        let mut bytes = Bytes(self.pointers.get(&addr)?);
        let mut names = Vec::new();
        while let Some(name) = bytes.name(&self.domain) {
            names.push(name);
        }
        Some(names)
    }

    fn points_into(&self, prefix: Cidr) -> bool {
        self.pointers.range(prefix.addr()..).next().is_some_and(|(addr, _)| prefix.contains(*addr))
    }

    fn own_prefix(&self, prefix: Cidr) -> Option<Cidr> {
        self.reverse.iter().copied().filter(|cidr| cidr.covers(prefix)).min_by_key(|cidr| cidr.bits())
    }

    fn client(&self, addr: Addr) -> Option<&NameClient> {
        self.clients.get(&addr).map(|(_, client)| client)
    }
}

/// A name's length, the name, and its records: counts before lists, names without the cluster's domain.
#[derive(Debug)]
struct Entry(Box<[u8]>);

impl Entry {
    fn new(name: &str, records: &NameRecords, domain: &str) -> Self {
        let mut bytes = Vec::with_capacity(name.len() + 16);
        put_text(&mut bytes, name);
        let count = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        let (a, aaaa, srv) = (count(records.a.len()), count(records.aaaa.len()), count(records.srv.len()));
        [a, aaaa, srv].into_iter().for_each(|count| bytes.extend(count.to_be_bytes()));
        records.a.iter().take(a.into()).for_each(|addr| bytes.extend(addr.octets()));
        records.aaaa.iter().take(aaaa.into()).for_each(|addr| bytes.extend(addr.octets()));
        for record in records.srv.iter().take(srv.into()) {
            for number in [record.priority, record.weight, record.port] {
                bytes.extend(number.to_be_bytes());
            }
            put_name(&mut bytes, &record.target, domain);
        }
        if let Some(target) = &records.cname {
            bytes.push(CNAME);
            put_text(&mut bytes, target);
        }
        if let Some(text) = &records.txt {
            bytes.push(TXT);
            put_text(&mut bytes, text);
        }
        Self(bytes.into())
    }

    fn name(&self) -> &[u8] {
        self.0.split_first().and_then(|(length, rest)| rest.get(..usize::from(*length))).unwrap_or_default()
    }

    fn records(&self, domain: &str) -> NameRecords {
        let mut records = NameRecords::default();
        let mut bytes = Bytes(self.0.get(1 + self.name().len()..).unwrap_or_default());
        let (Some(a), Some(aaaa), Some(srv)) = (bytes.number(), bytes.number(), bytes.number()) else {
            return records;
        };
        records.a.extend((0..a).map_while(|_| bytes.take::<4>().map(Ipv4Addr::from)));
        records.aaaa.extend((0..aaaa).map_while(|_| bytes.take::<16>().map(Ipv6Addr::from)));
        records.srv.extend((0..srv).map_while(|_| bytes.srv(domain)));
        while let Some([kind]) = bytes.take::<1>() {
            let text = bytes.text();
            match kind {
                CNAME => records.cname = text,
                _ => records.txt = text,
            }
        }
        records
    }
}

const CNAME: u8 = 1;
const TXT: u8 = 2;
/// Before a name without the cluster's domain, and before one that is whole.
const RELATIVE: u8 = 1;
const WHOLE: u8 = 0;

/// At most 255 bytes: no name and no text of a record is longer.
fn put_text(bytes: &mut Vec<u8>, text: &str) {
    let end = text.floor_char_boundary(text.len().min(usize::from(u8::MAX)));
    bytes.push(end as u8);
    bytes.extend_from_slice(&text.as_bytes()[..end]);
}

fn put_name(bytes: &mut Vec<u8>, name: &str, domain: &str) {
    match name.strip_suffix(domain).and_then(|relative| relative.strip_suffix('.')) {
        Some(relative) => {
            bytes.push(RELATIVE);
            put_text(bytes, relative);
        }
        None => {
            bytes.push(WHOLE);
            put_text(bytes, name);
        }
    }
}

/// Reads what was put.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn number(&mut self) -> Option<u16> {
        self.take::<2>().map(u16::from_be_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let [length] = self.take::<1>()?;
        let (text, rest) = self.0.split_at_checked(length.into())?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn name(&mut self, domain: &str) -> Option<String> {
        let [kind] = self.take::<1>()?;
        let mut name = self.text()?;
        if kind == RELATIVE {
            name.push('.');
            name.push_str(domain);
        }
        Some(name)
    }

    fn srv(&mut self, domain: &str) -> Option<SrvRecord> {
        let (priority, weight, port) = (self.number()?, self.number()?, self.number()?);
        Some(SrvRecord { priority, weight, port, target: self.name(domain)? })
    }
}

impl Borrow<[u8]> for Entry {
    fn borrow(&self) -> &[u8] {
        self.name()
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Entry {}

impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use weft_decide::names::{QueryType, answer_to};
    use weft_model::{PodKey, Searching};
    use weft_plan::{NamePlan, NameVersion};

    use super::*;

    fn plan() -> NamePlan {
        let mut plan = NamePlan { domain: "cluster.local".to_owned(), ..NamePlan::default() };
        plan.reverse.insert("10.96.0.0/16".parse().unwrap());
        for name in ["", "svc.", "shop.svc.", "_tcp.db.shop.svc."] {
            plan.names.get_or_default(format!("{name}cluster.local"));
        }
        let db = plan.names.get_or_default("db.shop.svc.cluster.local".to_owned());
        db.a.extend([[10, 96, 0, 1], [10, 96, 0, 2]].map(Ipv4Addr::from));
        db.aaaa.insert("fd00::1".parse().unwrap());
        let srv = |target: &str| SrvRecord { priority: 0, weight: 100, port: 80, target: target.to_owned() };
        let port = plan.names.get_or_default("_http._tcp.db.shop.svc.cluster.local".to_owned());
        port.srv.extend([srv("db.shop.svc.cluster.local"), srv("elsewhere.example.org")]);
        plan.names.get_or_default("out.shop.svc.cluster.local".to_owned()).cname =
            Some("example.org".to_owned());
        plan.names.get_or_default("dns-version.cluster.local".to_owned()).txt = Some("1.1.0".to_owned());
        plan.pointers
            .get_or_default("10.96.0.1".parse().unwrap())
            .extend(["db.shop.svc.cluster.local".to_owned(), "x.example.org".to_owned()]);
        let searching = Searching { domains: vec!["shop.svc.cluster.local".to_owned()], ndots: 5 };
        let client = NameClient { pod: PodKey::new("shop", "a"), searching: Some(searching) };
        plan.clients.insert("10.244.0.1".parse().unwrap(), client);
        let why = Absence::NoReadyEndpoints { service: PodKey::new("shop", "gone"), not_ready: 2 };
        plan.absent.insert("gone.shop.svc.cluster.local".to_owned(), why);
        plan
    }

    fn index(plan: &NamePlan) -> Index {
        let mut index = Index::new(&plan.head(None, NameVersion { maker: 1, sequence: 1 }));
        plan.rows().for_each(|row| assert!(index.put(row)));
        index
    }

    #[test]
    fn it_answers_as_the_plan_does() {
        let plan = plan();
        let index = index(&plan);
        let client = Some("10.244.0.1".parse().unwrap());
        for name in [
            "db.shop.svc.cluster.local",
            "_http._tcp.db.shop.svc.cluster.local",
            "out.shop.svc.cluster.local",
            "gone.shop.svc.cluster.local",
            "dns-version.cluster.local",
            "1.0.96.10.in-addr.arpa",
            "2.0.96.10.in-addr.arpa",
            "0.96.10.in-addr.arpa",
            "example.org.shop.svc.cluster.local",
            "cluster.local",
            "example.org",
        ] {
            for query in [1, 28, 33, 12, 5, 16, 6, 255].map(QueryType::from_number) {
                assert_eq!(
                    answer_to(&index, client, name, query),
                    answer_to(&plan, client, name, query),
                    "{name} {query}"
                );
            }
        }
        assert_ne!(index.class("10.244.0.1".parse().unwrap()), ClientClass::default());
        assert_eq!(index.counts(), (plan.names.len(), plan.pointers.len()));
    }

    #[test]
    fn changes_are_told_from_repetitions_and_what_is_not_kept_goes() {
        let plan = plan();
        let mut index = index(&plan);
        assert!(plan.rows().all(|row| !index.put(row)), "nothing is new");
        let mut kept = Kept::default();
        let smaller = |row: &NameRow| {
            !matches!(row, NameRow::Name(name, _) if name.starts_with("db."))
                && !matches!(row, NameRow::Pointer(..))
        };
        plan.rows().filter(smaller).for_each(|row| kept.add(&row));
        let mut gone = Vec::new();
        index.retain(&kept, |row| gone.push(row.clone()));
        assert_eq!(gone.len(), 2);
        assert!(!index.exists("db.shop.svc.cluster.local") && index.exists("shop.svc.cluster.local"));
        assert!(index.put(NameRow::Absent("gone.shop.svc.cluster.local".to_owned(), None)));
        assert!(!index.put(NameRow::Name("never.there".to_owned(), None)));
    }
}
