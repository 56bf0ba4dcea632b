//! Which service has which load balancer address: pure, whole, and stable. Writing it into objects lives in io/kube,
//! announcing the addresses in `announce`.
//!
//! What a service has, it keeps while it is allowed to. Then those that ask for certain addresses come, then the
//! rest, the older first. So the outcome depends on the objects and on nothing else, and nobody's address moves
//! because of somebody else's.

mod book;
mod say;

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    Addr, AddressGiver, AddressPool, Assignment, Family, FamilyPolicy, Finding, PoolName, Port, Protocol,
    Selector, Service, ServiceKey, ServiceKind, Snapshot, TrafficPolicy, Uid,
};

use book::Book;
use say::Refusal;
pub use say::{Assigned, Outcome, PoolOutcome};

/// Services of this spec.loadBalancerClass are ours, like those without one.
pub const LOAD_BALANCER_CLASS: &str = "weft.dev/l2";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// Every service of type LoadBalancer that is ours to serve.
    pub services: BTreeMap<ServiceKey, ServiceAddresses>,
    pub pools: BTreeMap<PoolName, PoolUse>,
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddresses {
    pub uid: Uid,
    /// At most one of each family, in the order of the service's families.
    pub addresses: Vec<Addr>,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUse {
    pub v4: Capacity,
    pub v6: Capacity,
    pub outcome: PoolOutcome,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    pub total: u128,
    pub used: u128,
}

/// The pool that gives an address: the first by name of those that list it.
pub fn pool_of(snapshot: &Snapshot, addr: Addr) -> Option<&AddressPool> {
    snapshot.pools.values().find(|pool| pool.ranges.iter().any(|range| range.contains(addr)))
}

pub fn allocate(snapshot: &Snapshot) -> Allocation {
    let (book, mut findings) = Book::open(snapshot);
    let mut desk = Desk { snapshot, book, holders: BTreeMap::new(), cursors: BTreeMap::new() };
    let services = ours(snapshot, &desk.book);
    let mut given: BTreeMap<&ServiceKey, Given> = BTreeMap::new();
    for service in &services {
        given.insert(&service.key, desk.keep(service));
    }
    for service in services.iter().filter(|service| !service.request.addresses.is_empty()) {
        desk.grant_requested(service, given.entry(&service.key).or_default());
    }
    for service in &services {
        desk.grant_any(service, given.entry(&service.key).or_default());
    }
    let outcomes = services.iter().map(|service| {
        let given = given.remove(&service.key).unwrap_or_default();
        let addresses: Vec<Addr> =
            families(service).iter().filter_map(|family| given.addresses.get(family)).copied().collect();
        let outcome = say::outcome(service, &desk.book, &addresses, &given.refusals);
        (service.key.clone(), ServiceAddresses { uid: service.uid.clone(), addresses, outcome })
    });
    let services = outcomes.collect();
    let pools = snapshot.pools.keys().map(|name| (name.clone(), desk.usage(name, &findings))).collect();
    findings.sort();
    Allocation { services, pools, findings }
}

/// The older first, so that a newcomer never takes what somebody waits for longer.
fn ours<'a>(snapshot: &'a Snapshot, book: &Book<'_>) -> Vec<&'a Service> {
    let mut services: Vec<&Service> =
        snapshot.services.values().filter(|service| is_ours(service, book)).collect();
    services.sort_by_key(|service| (service.request.created, &service.uid, &service.key));
    services
}

fn is_ours(service: &Service, book: &Book<'_>) -> bool {
    if service.kind != ServiceKind::LoadBalancer {
        return false;
    }
    match service.load_balancer_class.as_deref() {
        Some(class) => class == LOAD_BALANCER_CLASS,
        // Somebody else serves services without a class in this cluster.
        None if service.request.giver == AddressGiver::Other && !service.load_balancer_ips.is_empty() => {
            service.load_balancer_ips.iter().any(|ip| book.pool_of(ip.addr).is_some())
        }
        None => true,
    }
}

/// The API server fills in spec.ipFamilies; objects made without it are of their cluster IPs' families.
fn families(service: &Service) -> Vec<Family> {
    let mut families = service.ip_families.clone();
    if families.is_empty() {
        families = service.cluster_ips.iter().map(|addr| addr.family()).collect();
    }
    if families.is_empty() {
        families.push(Family::V4);
    }
    families.dedup();
    families
}

#[derive(Default)]
struct Given {
    addresses: BTreeMap<Family, Addr>,
    refusals: BTreeMap<Family, Refusal>,
}

/// Who holds which address so far.
struct Desk<'a> {
    snapshot: &'a Snapshot,
    book: Book<'a>,
    holders: BTreeMap<Addr, Vec<&'a Service>>,
    /// Where the search for a free address goes on: before it, all were taken.
    cursors: BTreeMap<(&'a PoolName, Family), Addr>,
}

impl<'a> Desk<'a> {
    /// What the service has and may keep.
    fn keep(&mut self, service: &'a Service) -> Given {
        let mut given = Given::default();
        for family in families(service) {
            let has = service.load_balancer_ips.iter().map(|ip| ip.addr);
            let kept = has.filter(|addr| addr.family() == family).find(|addr| {
                let pool = self.book.pool_of(*addr);
                let allowed = pool.is_some_and(|pool| self.admits(pool, service));
                allowed && self.conflict(*addr, service).is_none()
            });
            if let Some(addr) = kept {
                self.hold(addr, service);
                given.addresses.insert(family, addr);
            }
        }
        given
    }

    /// A request that cannot be met leaves the service what it has.
    fn grant_requested(&mut self, service: &'a Service, given: &mut Given) {
        let families = families(service);
        for addr in service.request.addresses.iter().copied() {
            let family = addr.family();
            if !families.contains(&family) {
                given.refusals.insert(family, Refusal::OtherFamily(addr));
                continue;
            }
            let has = given.addresses.get(&family).copied();
            if has == Some(addr) {
                continue;
            }
            match self.refusal(addr, service) {
                Some(refusal) => {
                    given.refusals.insert(family, refusal);
                }
                None => {
                    if let Some(old) = has {
                        self.release(old, service);
                    }
                    self.hold(addr, service);
                    given.addresses.insert(family, addr);
                }
            }
        }
    }

    fn grant_any(&mut self, service: &'a Service, given: &mut Given) {
        for family in families(service) {
            if given.addresses.contains_key(&family) || given.refusals.contains_key(&family) {
                continue;
            }
            let shared = self.shared(service, family);
            match shared.map_or_else(|| self.free(service, family), Ok) {
                Ok(addr) => {
                    self.hold(addr, service);
                    given.addresses.insert(family, addr);
                }
                Err(refusal) => {
                    given.refusals.insert(family, refusal);
                }
            }
        }
        if service.request.families == FamilyPolicy::RequireDual {
            self.both_or_none(service, given);
        }
    }

    /// One family alone is not what RequireDualStack asked for. What the service has already, it keeps.
    fn both_or_none(&mut self, service: &'a Service, given: &mut Given) {
        if families(service).iter().all(|family| given.addresses.contains_key(family)) {
            return;
        }
        let has: Vec<Addr> = service.load_balancer_ips.iter().map(|ip| ip.addr).collect();
        let new: Vec<Addr> = given.addresses.values().copied().filter(|addr| !has.contains(addr)).collect();
        for addr in new {
            given.addresses.remove(&addr.family());
            self.release(addr, service);
            self.cursors.clear();
        }
    }

    fn hold(&mut self, addr: Addr, service: &'a Service) {
        self.holders.entry(addr).or_default().push(service);
    }

    fn release(&mut self, addr: Addr, service: &Service) {
        if let Some(holders) = self.holders.get_mut(&addr) {
            holders.retain(|holder| holder.key != service.key);
            if holders.is_empty() {
                self.holders.remove(&addr);
            }
        }
    }

    /// Whether the pool is for this service at all.
    fn admits(&self, pool: &AddressPool, service: &Service) -> bool {
        let named = service.request.pool.as_ref();
        named.is_none_or(|name| *name == pool.name) && self.selects(pool, service)
    }

    fn selects(&self, pool: &AddressPool, service: &Service) -> bool {
        let matches = |selector: &Option<Selector>, labels| {
            selector.as_ref().is_none_or(|selector| selector.matches(labels))
        };
        let nothing = BTreeMap::new();
        let namespace = self.snapshot.namespaces.get(&service.key.namespace);
        matches(&pool.services, &service.request.labels)
            && matches(&pool.namespaces, namespace.map_or(&nothing, |namespace| &namespace.labels))
    }

    /// A holder the service cannot share the address with.
    fn conflict(&self, addr: Addr, service: &Service) -> Option<&'a Service> {
        let holders = self.holders.get(&addr)?;
        holders.iter().find(|holder| holder.key != service.key && !may_share(holder, service)).copied()
    }

    fn refusal(&self, addr: Addr, service: &Service) -> Option<Refusal> {
        let Some(pool) = self.book.pool_of(addr) else {
            return Some(match self.book.reserved(addr) {
                Some(by) => Refusal::Reserved(addr, by),
                None => Refusal::InNoPool(addr),
            });
        };
        if !self.admits(pool, service) {
            return Some(Refusal::NotForService(addr, pool.name.clone()));
        }
        let holder = self.conflict(addr, service)?;
        Some(Refusal::Taken(addr, holder.key.clone()))
    }

    /// The address of a service with the same sharing key.
    fn shared(&self, service: &Service, family: Family) -> Option<Addr> {
        service.request.share.as_ref()?;
        let mut held = self.holders.iter().filter(|(addr, _)| addr.family() == family);
        let found = held.find(|(addr, holders)| {
            let pool = self.book.pool_of(**addr);
            let same = holders.iter().any(|holder| holder.request.share == service.request.share);
            same && pool.is_some_and(|pool| self.admits(pool, service))
                && self.conflict(**addr, service).is_none()
        });
        found.map(|(addr, _)| *addr)
    }

    /// The lowest free address of the first pool that has one: those that select services come before those for all.
    fn free(&mut self, service: &Service, family: Family) -> Result<Addr, Refusal> {
        if let Some(name) = &service.request.pool
            && !self.snapshot.pools.contains_key(name)
        {
            return Err(Refusal::NoSuchPool(name.clone()));
        }
        let named = service.request.pool.is_some();
        let open = |pool: &&AddressPool| {
            (named || pool.assignment == Assignment::Automatic) && self.admits(pool, service)
        };
        let mut pools: Vec<&'a AddressPool> = self.snapshot.pools.values().filter(open).collect();
        pools.sort_by_key(|pool| (pool.services.is_none() && pool.namespaces.is_none(), &pool.name));
        let mut full = Vec::new();
        for pool in pools {
            let from = self.cursors.get(&(&pool.name, family)).copied();
            let holders = &self.holders;
            match self.book.next(pool, family, from, |addr| holders.contains_key(&addr)) {
                Some(addr) => {
                    self.cursors.insert((&pool.name, family), addr);
                    return Ok(addr);
                }
                None if self.book.total(&pool.name, family) > 0 => full.push(pool.name.clone()),
                None => {}
            }
        }
        Err(match full.is_empty() {
            true if self.snapshot.pools.is_empty() => Refusal::NoPools,
            true => Refusal::NoPoolFor(family),
            false => Refusal::Exhausted(family, full),
        })
    }

    fn usage(&self, name: &PoolName, findings: &[Finding]) -> PoolUse {
        let capacity = |family| {
            let used = self.holders.keys().filter(|addr| {
                addr.family() == family && self.book.pool_of(**addr).is_some_and(|pool| pool.name == *name)
            });
            Capacity { total: self.book.total(name, family), used: used.count() as u128 }
        };
        let (v4, v6) = (capacity(Family::V4), capacity(Family::V6));
        PoolUse { v4, v6, outcome: say::pool_outcome(name, v4, v6, findings) }
    }
}

/// One address serves two services that say so with one key, whose ports do not clash, and whose traffic a node either
/// spreads over the cluster or keeps for the same pods.
fn may_share(one: &Service, other: &Service) -> bool {
    let keys = one.request.share.is_some() && one.request.share == other.request.share;
    let ports = |service: &Service| -> BTreeSet<(Protocol, Port)> {
        service.ports.iter().map(|port| (port.protocol, port.port)).collect()
    };
    let both_cluster =
        one.external_policy == TrafficPolicy::Cluster && other.external_policy == TrafficPolicy::Cluster;
    let same_pods = one.key.namespace == other.key.namespace
        && one.selector.is_some()
        && one.selector == other.selector
        && one.external_policy == other.external_policy;
    keys && ports(one).is_disjoint(&ports(other)) && (both_cluster || same_pods)
}

#[cfg(test)]
mod tests;
