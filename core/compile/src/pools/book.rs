//! Which pool gives which address: ranges without what another pool, the cluster's own prefixes or a node has.

use std::collections::BTreeMap;

use weft_model::{Addr, AddressPool, AddressRange, Cidr, Family, Finding, PoolName, Severity, Snapshot};

pub(super) struct Book<'a> {
    snapshot: &'a Snapshot,
    /// In the order of the object, disjoint over all pools.
    ranges: BTreeMap<&'a PoolName, Vec<AddressRange>>,
    /// All of them by their first address, for look-ups.
    sorted: BTreeMap<Addr, (Addr, &'a AddressPool)>,
}

impl<'a> Book<'a> {
    pub fn open(snapshot: &'a Snapshot) -> (Self, Vec<Finding>) {
        let mut book = Self { snapshot, ranges: BTreeMap::new(), sorted: BTreeMap::new() };
        let mut findings = Vec::new();
        for pool in snapshot.pools.values() {
            let mut ranges = Vec::new();
            for (index, range) in pool.ranges.iter().enumerate() {
                let free = book.without_others(pool, index, *range, &mut findings);
                for range in free {
                    book.sorted.insert(range.first, (range.last, pool));
                    ranges.push(range);
                }
            }
            book.ranges.insert(&pool.name, ranges);
        }
        (book, findings)
    }

    fn without_others(
        &self,
        pool: &AddressPool,
        index: usize,
        range: AddressRange,
        findings: &mut Vec<Finding>,
    ) -> Vec<AddressRange> {
        let mut left = vec![range];
        let mut taken: Vec<(AddressRange, String)> = Vec::new();
        for (first, (last, other)) in &self.sorted {
            let whose = match other.name == pool.name {
                true => "an earlier entry of this pool".to_owned(),
                false => format!("pool {}", other.name),
            };
            taken.push((AddressRange { first: *first, last: *last }, whose));
        }
        taken.extend(self.own().map(|(cidr, what)| (AddressRange::of(cidr), what)));
        for node in self.snapshot.nodes.values() {
            let hosts = node.addresses.iter().map(|addr| AddressRange { first: *addr, last: *addr });
            taken.extend(hosts.map(|host| (host, format!("node {}", node.name))));
        }
        for (other, whose) in taken {
            let Some(both) = intersection(range, other) else { continue };
            left = left.into_iter().flat_map(|part| subtract(part, other)).collect();
            findings.push(Finding {
                severity: Severity::Error,
                object: format!("AddressPool {}", pool.name),
                field: format!("spec.addresses[{index}]"),
                message: format!("{both} belongs to {whose} and is not given out by this pool"),
            });
        }
        left
    }

    /// What the cluster uses itself.
    fn own(&self) -> impl Iterator<Item = (Cidr, String)> {
        let settings = &self.snapshot.settings;
        let pods = settings.pod_cidrs.iter().map(|cidr| (*cidr, "pod"));
        let prefixes = pods.chain(settings.service_cidrs.iter().map(|cidr| (*cidr, "service")));
        let prefixes = prefixes.map(|(cidr, what)| (cidr, format!("the cluster's {what} prefix {cidr}")));
        let servers = settings.dns_addresses.iter();
        prefixes.chain(servers.map(|addr| (Cidr::host(*addr), "the cluster's name server".to_owned())))
    }

    pub fn pool_of(&self, addr: Addr) -> Option<&'a AddressPool> {
        let (_, (last, pool)) = self.sorted.range(..=addr).next_back()?;
        (addr <= *last).then_some(*pool)
    }

    /// Who has an address that pools list and may not give.
    pub fn reserved(&self, addr: Addr) -> Option<String> {
        let node = self.snapshot.nodes.values().find(|node| node.addresses.contains(&addr));
        let own = self.own().find(|(cidr, _)| cidr.contains(addr));
        node.map(|node| format!("node {}", node.name)).or_else(|| own.map(|(_, what)| what))
    }

    pub fn total(&self, pool: &PoolName, family: Family) -> u128 {
        let ranges = self.ranges.get(pool).into_iter().flatten();
        let sizes = ranges
            .filter(|range| range.family() == family)
            .map(|range| (number(range.last) - number(range.first)).saturating_add(1));
        sizes.fold(0, u128::saturating_add)
    }

    /// The first address of the family that is not taken, in the order of the pool's entries, from `from` on.
    pub fn next(
        &self,
        pool: &AddressPool,
        family: Family,
        from: Option<Addr>,
        taken: impl Fn(Addr) -> bool,
    ) -> Option<Addr> {
        let ranges = self.ranges.get(&pool.name)?.iter().filter(|range| range.family() == family);
        let mut ranges = ranges.skip_while(|range| from.is_some_and(|from| !range.contains(from))).peekable();
        let mut at = from.or_else(|| ranges.peek().map(|range| range.first))?;
        for range in ranges {
            if !range.contains(at) {
                at = range.first;
            }
            loop {
                if !taken(at) {
                    return Some(at);
                }
                if at == range.last {
                    break;
                }
                at = address(number(at) + 1);
            }
        }
        None
    }
}

fn number(addr: Addr) -> u128 {
    u128::from_be_bytes(addr.octets())
}

fn address(number: u128) -> Addr {
    Addr::from_octets(number.to_be_bytes())
}

fn intersection(one: AddressRange, other: AddressRange) -> Option<AddressRange> {
    let both = AddressRange { first: one.first.max(other.first), last: one.last.min(other.last) };
    (one.family() == other.family() && both.first <= both.last).then_some(both)
}

fn subtract(range: AddressRange, taken: AddressRange) -> Vec<AddressRange> {
    let Some(both) = intersection(range, taken) else { return vec![range] };
    let mut left = Vec::new();
    if range.first < both.first {
        left.push(AddressRange { first: range.first, last: address(number(both.first) - 1) });
    }
    if both.last < range.last {
        left.push(AddressRange { first: address(number(both.last) + 1), last: range.last });
    }
    left
}
