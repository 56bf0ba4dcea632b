//! Which address goes to whom: pure, in memory. What survives a crash lives in `attachments`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weft_model::{Addr, Cidr, Family, NodeName};

use crate::{CniError, Owner, code};

/// Gives each owner one address of each family the node has pod CIDRs for.
///
/// Addresses are taken round-robin, so one just released is the last to be given again: a peer that still holds its
/// connection, name or neighbour entry does not meet a stranger there.
#[derive(Clone, Debug)]
pub struct Allocator {
    node: NodeName,
    pools: Vec<Pool>,
    used: BTreeMap<Addr, Owner>,
    owners: BTreeMap<Owner, Vec<Addr>>,
    cursors: Cursors,
}

/// The last address given, by family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursors {
    v4: Option<Addr>,
    v6: Option<Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUsage {
    pub pool: Cidr,
    /// Addresses it can give at all.
    pub size: u128,
    pub used: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    #[error("node {node}: pod CIDRs {first} and {second} overlap")]
    Overlap { node: NodeName, first: Cidr, second: Cidr },
    #[error(
        "node {node}: pod CIDR {pool} has no address to give, as the first two (and in IPv4 the last) are kept back; \
         use a larger one"
    )]
    TooSmall { node: NodeName, pool: Cidr },
    #[error("node {0} has no pod CIDR yet")]
    NoPool(NodeName),
    #[error(
        "node {node}: no IP{family} address is left ({pools}); delete pods or give the node another pod CIDR"
    )]
    Exhausted { node: NodeName, family: &'static str, pools: String },
    #[error("address {addr} belongs to {owner} already")]
    Taken { addr: Addr, owner: Owner },
}

impl From<PoolError> for CniError {
    fn from(error: PoolError) -> Self {
        let code = match error {
            PoolError::NoPool(_) => code::TRY_LATER,
            _ => code::POOL_EXHAUSTED,
        };
        CniError::new(code, error.to_string())
    }
}

impl Allocator {
    pub fn new(node: NodeName, pod_cidrs: &[Cidr]) -> Result<Self, PoolError> {
        let pools = pools(&node, pod_cidrs)?;
        Ok(Self { node, pools, used: BTreeMap::new(), owners: BTreeMap::new(), cursors: Cursors::default() })
    }

    /// Owners keep what they have, also outside the new pools.
    pub fn set_pod_cidrs(&mut self, pod_cidrs: &[Cidr]) -> Result<(), PoolError> {
        self.pools = pools(&self.node, pod_cidrs)?;
        Ok(())
    }

    /// The owner's addresses; the same ones when asked again. All families or none.
    pub fn allocate(&mut self, owner: &Owner) -> Result<Vec<Addr>, PoolError> {
        if let Some(addresses) = self.owners.get(owner) {
            return Ok(addresses.clone());
        }
        let families: Vec<Family> = [Family::V4, Family::V6]
            .into_iter()
            .filter(|family| self.pools.iter().any(|pool| pool.cidr.family() == *family))
            .collect();
        if families.is_empty() {
            return Err(PoolError::NoPool(self.node.clone()));
        }
        let addresses = families
            .into_iter()
            .map(|family| self.next_free(family).ok_or_else(|| self.exhausted(family)))
            .collect::<Result<Vec<_>, _>>()?;
        for addr in &addresses {
            *self.cursors.of(addr.family()) = Some(*addr);
        }
        self.take(owner, &addresses);
        Ok(addresses)
    }

    /// Gives an owner the very addresses a record says it has.
    pub fn claim(&mut self, owner: &Owner, addresses: &[Addr]) -> Result<(), PoolError> {
        for addr in addresses {
            match self.used.get(addr) {
                Some(other) if other != owner => {
                    return Err(PoolError::Taken { addr: *addr, owner: other.clone() });
                }
                _ => {}
            }
        }
        self.release(owner);
        self.take(owner, addresses);
        Ok(())
    }

    pub fn release(&mut self, owner: &Owner) {
        for addr in self.owners.remove(owner).unwrap_or_default() {
            self.used.remove(&addr);
        }
    }

    pub fn cursors(&self) -> Cursors {
        self.cursors
    }

    pub fn resume_from(&mut self, cursors: Cursors) {
        self.cursors = cursors;
    }

    pub fn usage(&self) -> Vec<PoolUsage> {
        self.pools
            .iter()
            .map(|pool| PoolUsage {
                pool: pool.cidr,
                size: pool.last - pool.first + 1,
                used: self.used.range(addr(pool.first)..=addr(pool.last)).count(),
            })
            .collect()
    }

    fn take(&mut self, owner: &Owner, addresses: &[Addr]) {
        for addr in addresses {
            self.used.insert(*addr, owner.clone());
        }
        self.owners.insert(owner.clone(), addresses.to_vec());
    }

    /// The first free address after the cursor, through all pools of the family and around.
    fn next_free(&self, family: Family) -> Option<Addr> {
        let pools: Vec<&Pool> = self.pools.iter().filter(|pool| pool.cidr.family() == family).collect();
        let cursor = { self.cursors }.of(family).map(number);
        let at = cursor.and_then(|at| pools.iter().position(|pool| (pool.first..=pool.last).contains(&at)));
        let (Some(cursor), Some(at)) = (cursor, at) else {
            return pools.iter().find_map(|pool| self.first_free(pool.first, pool.last));
        };
        let after = (cursor + 1, pools[at].last);
        let before = (pools[at].first, cursor);
        let others = pools[at + 1..].iter().chain(&pools[..at]).map(|pool| (pool.first, pool.last));
        [after]
            .into_iter()
            .chain(others)
            .chain([before])
            .find_map(|(first, last)| self.first_free(first, last))
    }

    fn first_free(&self, first: u128, last: u128) -> Option<Addr> {
        if first > last {
            return None;
        }
        let mut free = first;
        for used in self.used.range(addr(first)..=addr(last)).map(|(used, _)| number(*used)) {
            if used > free {
                break;
            }
            free = used + 1;
        }
        (free <= last).then(|| addr(free))
    }

    fn exhausted(&self, family: Family) -> PoolError {
        let pools: Vec<String> = self
            .usage()
            .into_iter()
            .filter(|usage| usage.pool.family() == family)
            .map(|usage| format!("{}: {} of {} in use", usage.pool, usage.used, usage.size))
            .collect();
        let family = match family {
            Family::V4 => "v4",
            Family::V6 => "v6",
        };
        PoolError::Exhausted { node: self.node.clone(), family, pools: pools.join(", ") }
    }
}

impl Cursors {
    fn of(&mut self, family: Family) -> &mut Option<Addr> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// A pod CIDR and what of it may be given: not the network's own address (in IPv6 the routers' anycast address, RFC
/// 4291, 2.6.1), not the one after it (a gateway by custom), not IPv4's broadcast address.
#[derive(Clone, Copy, Debug)]
struct Pool {
    cidr: Cidr,
    first: u128,
    last: u128,
}

fn pools(node: &NodeName, cidrs: &[Cidr]) -> Result<Vec<Pool>, PoolError> {
    for (index, first) in cidrs.iter().enumerate() {
        if let Some(second) = cidrs[index + 1..].iter().find(|other| first.overlaps(**other)) {
            return Err(PoolError::Overlap { node: node.clone(), first: *first, second: *second });
        }
    }
    cidrs
        .iter()
        .map(|cidr| pool(*cidr).ok_or_else(|| PoolError::TooSmall { node: node.clone(), pool: *cidr }))
        .collect()
}

fn pool(cidr: Cidr) -> Option<Pool> {
    let base = number(cidr.addr());
    let end = base | u128::MAX.checked_shr(u32::from(cidr.bits())).unwrap_or(0);
    let first = base.checked_add(2)?;
    let last = match cidr.family() {
        Family::V4 => end - 1,
        Family::V6 => end,
    };
    (first <= last).then_some(Pool { cidr, first, last })
}

fn number(addr: Addr) -> u128 {
    u128::from_be_bytes(addr.octets())
}

fn addr(number: u128) -> Addr {
    Addr::from_octets(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(n: usize) -> Owner {
        Owner { container_id: format!("c{n}"), ifname: "eth0".to_owned() }
    }

    fn allocator(cidrs: &[&str]) -> Allocator {
        let cidrs: Vec<Cidr> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        Allocator::new("node1".into(), &cidrs).unwrap()
    }

    fn text(addresses: &[Addr]) -> String {
        addresses.iter().map(Addr::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn both_families_start_after_the_addresses_kept_back() {
        let mut ipam = allocator(&["10.244.1.0/24", "fd00:10:244:1::/64"]);
        assert_eq!(text(&ipam.allocate(&owner(1)).unwrap()), "10.244.1.2 fd00:10:244:1::2");
        assert_eq!(text(&ipam.allocate(&owner(2)).unwrap()), "10.244.1.3 fd00:10:244:1::3");
        assert_eq!(text(&ipam.allocate(&owner(1)).unwrap()), "10.244.1.2 fd00:10:244:1::2");
    }

    #[test]
    fn a_released_address_is_given_last() {
        let mut ipam = allocator(&["10.0.0.0/29"]);
        let first = ipam.allocate(&owner(0)).unwrap();
        ipam.release(&owner(0));
        for n in 1..5 {
            assert_ne!(ipam.allocate(&owner(n)).unwrap(), first);
        }
        assert_eq!(ipam.allocate(&owner(5)).unwrap(), first);
    }

    #[test]
    fn several_pools_of_a_family_are_one_ring() {
        let mut ipam = allocator(&["10.0.0.0/30", "10.0.9.0/30"]);
        assert_eq!(text(&ipam.allocate(&owner(1)).unwrap()), "10.0.0.2");
        assert_eq!(text(&ipam.allocate(&owner(2)).unwrap()), "10.0.9.2");
        ipam.release(&owner(1));
        assert_eq!(text(&ipam.allocate(&owner(3)).unwrap()), "10.0.0.2");
    }

    #[test]
    fn an_exhausted_pool_is_named_with_its_use_and_nothing_is_half_given() {
        let mut ipam = allocator(&["10.0.0.0/29", "fd00::/64"]);
        for n in 0..5 {
            ipam.allocate(&owner(n)).unwrap();
        }
        let error = ipam.allocate(&owner(9)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "node node1: no IPv4 address is left (10.0.0.0/29: 5 of 5 in use); \
             delete pods or give the node another pod CIDR"
        );
        assert_eq!(ipam.usage()[1].used, 5);
        assert_eq!(CniError::from(error).code, code::POOL_EXHAUSTED);
    }

    #[test]
    fn pools_too_small_or_overlapping_are_refused_by_name() {
        let new = |cidrs: &[&str]| {
            let cidrs: Vec<Cidr> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
            Allocator::new("n".into(), &cidrs).unwrap_err().to_string()
        };
        assert!(new(&["10.0.0.0/31"]).contains("pod CIDR 10.0.0.0/31"));
        assert!(new(&["fd00::/127"]).contains("fd00::/127"));
        assert!(new(&["10.0.0.0/16", "10.0.3.0/24"]).contains("10.0.0.0/16 and 10.0.3.0/24 overlap"));
    }

    #[test]
    fn without_a_pool_the_runtime_is_told_to_come_back() {
        let error = allocator(&[]).allocate(&owner(1)).unwrap_err();
        assert_eq!(CniError::from(error).code, code::TRY_LATER);
    }

    #[test]
    fn the_ring_goes_on_where_it_was_left() {
        let mut ipam = allocator(&["10.0.0.0/24"]);
        ipam.allocate(&owner(1)).unwrap();
        let mut next = allocator(&["10.0.0.0/24"]);
        next.resume_from(ipam.cursors());
        assert_eq!(text(&next.allocate(&owner(2)).unwrap()), "10.0.0.3");
    }

    #[test]
    fn a_whole_family_as_pool_does_not_overflow() {
        assert_eq!(text(&allocator(&["::/0"]).allocate(&owner(1)).unwrap()), "::2");
        assert_eq!(text(&allocator(&["0.0.0.0/0"]).allocate(&owner(1)).unwrap()), "0.0.0.2");
    }
}
