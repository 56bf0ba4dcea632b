//! One frontend, and one list of backends, as raw map entries. Pure: which of them are put lives in `service_state`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weft_abi::{BackendKey, BackendValue, MemberKey, ServiceFlags, ServiceValue, SourceKey};
use weft_model::{Affinity, Balancing, Family, Forwarding, TrafficPolicy};
use weft_plan::{Backend, BackendList, EdgePlan, Exposure, Frontend, ServicePlan, maglev};

/// Slot numbers in `maglev` have 16 bits.
pub(crate) const MOST_SLOTS: usize = 1 << 16;
const SLOTS_PER_WORD: usize = 4;
const BITS_PER_SLOT: usize = 16;

/// Whether anybody is balanced over a list by hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Hashing {
    Never,
    Used,
}

/// A list's entries in `backends`, `members` and `maglev`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct ListEntries {
    pub slots: Vec<BackendValue>,
    /// `None`: nobody is balanced over it by hash, or it is empty.
    pub table: Option<Arc<[u64]>>,
}

impl ListEntries {
    pub fn of(list: &BackendList, hashing: Hashing) -> Self {
        let backends = within(list);
        let weights = effective_weights(backends);
        let mut slots = Vec::with_capacity(backends.len());
        let mut first_slots = Vec::with_capacity(backends.len());
        for (backend, weight) in backends.iter().zip(weights) {
            first_slots.push(slots.len() as u16);
            let value = BackendValue::new(backend.addr, backend.port);
            slots.extend(std::iter::repeat_n(value, weight));
        }
        let hashed = hashing == Hashing::Used && !backends.is_empty();
        Self { slots, table: hashed.then(|| pack(&maglev::table(backends), &first_slots)) }
    }

    pub fn backends(&self, list: u32) -> impl Iterator<Item = (BackendKey, BackendValue)> {
        self.slots
            .iter()
            .enumerate()
            .map(move |(slot, value)| (BackendKey { list, slot: slot as u32 }, *value))
    }

    /// Each backend with its first slot.
    pub fn members(&self, list: u32) -> BTreeMap<MemberKey, u32> {
        let mut members = BTreeMap::new();
        for (slot, value) in self.slots.iter().enumerate() {
            members.entry(member(list, value)).or_insert(slot as u32);
        }
        members
    }
}

fn member(list: u32, backend: &BackendValue) -> MemberKey {
    MemberKey { list, addr: backend.addr, port: backend.port, reserved: 0 }
}

/// What slot numbers can tell apart.
fn within(list: &BackendList) -> &[Backend] {
    &list.backends[..list.backends.len().min(MOST_SLOTS)]
}

/// How many slots each backend gets: its weight, unless together they were more than slot numbers reach.
fn effective_weights(backends: &[Backend]) -> Vec<usize> {
    let weights = backends.iter().map(|backend| usize::from(backend.weight.0.max(1)));
    let total: usize = weights.clone().sum();
    if total <= MOST_SLOTS {
        return weights.collect();
    }
    let room = MOST_SLOTS - backends.len();
    weights.map(|weight| 1 + weight * room / total).collect()
}

fn pack(table: &[u32], first_slots: &[u16]) -> Arc<[u64]> {
    let word = |indices: &[u32]| {
        let slots = indices.iter().map(|index| u64::from(first_slots[*index as usize]));
        slots.enumerate().fold(0, |word, (at, slot)| word | slot << (at * BITS_PER_SLOT))
    };
    table.chunks(SLOTS_PER_WORD).map(word).collect()
}

/// The lists that a frontend uses, and how.
pub(crate) fn lists_of(service: &ServicePlan) -> impl Iterator<Item = (&Arc<BackendList>, Hashing)> {
    let hashing = match service.balancing {
        Balancing::Random => Hashing::Never,
        Balancing::Maglev => Hashing::Used,
    };
    let edge = service.edge.iter().map(|edge| (&edge.list, Hashing::Used));
    std::iter::once((&service.list, hashing)).chain(edge)
}

/// A frontend's entry in `services`.
pub(crate) fn service_value(
    frontend: &Frontend,
    service: &ServicePlan,
    localhost: Localhost,
) -> ServiceValue {
    let hashed = service.balancing == Balancing::Maglev;
    let edge = service.edge.as_ref();
    ServiceValue {
        id: service.id.0,
        list: service.list.id.0,
        slots: effective_weights(within(&service.list)).iter().sum::<usize>() as u32,
        hashed_slots: if hashed { maglev::size(within(&service.list)) } else { 0 },
        edge_list: edge.map(|edge| edge.list.id.0).unwrap_or_default(),
        edge_hashed_slots: edge.map(|edge| maglev::size(within(&edge.list))).unwrap_or_default(),
        affinity: match service.affinity {
            Affinity::None => 0,
            Affinity::ClientIp { seconds } => seconds,
        },
        flags: flags(frontend, service, localhost),
    }
}

/// Whether node ports answer on 127.0.0.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Localhost {
    Closed,
    Open,
}

fn flags(frontend: &Frontend, service: &ServicePlan, localhost: Localhost) -> u32 {
    let mut flags = service.edge.as_ref().map(edge_flags).unwrap_or_default();
    if service.list.elsewhere {
        flags |= ServiceFlags::LOCAL_ELSEWHERE;
    }
    if !service.source_ranges.is_empty() {
        flags |= ServiceFlags::SOURCE_RANGES;
    }
    if service.balancing == Balancing::Maglev {
        flags |= ServiceFlags::HASHED;
    }
    let is_node_port = service.exposure == Exposure::NodePort && is_unspecified(frontend);
    if is_node_port && localhost == Localhost::Open {
        flags |= ServiceFlags::LOCALHOST;
    }
    flags
}

fn edge_flags(edge: &EdgePlan) -> u32 {
    let mut flags = ServiceFlags::EDGE;
    if edge.policy == TrafficPolicy::Local {
        flags |= ServiceFlags::EDGE_LOCAL;
    }
    if edge.list.elsewhere {
        flags |= ServiceFlags::EDGE_ELSEWHERE;
    }
    if edge.forwarding == Forwarding::Dsr {
        flags |= ServiceFlags::EDGE_DSR;
    }
    flags
}

fn is_unspecified(frontend: &Frontend) -> bool {
    let octets = frontend.addr.octets();
    match frontend.addr.family() {
        Family::V4 => octets[12..] == [0; 4],
        Family::V6 => octets == [0; 16],
    }
}

/// A frontend's entries in `source_ranges`. Ranges of the other family match nobody, and in sixteen bytes a short one
/// would match everybody.
pub(crate) fn source_keys(frontend: &Frontend, service: &ServicePlan) -> BTreeSet<SourceKey> {
    let ranges = service.source_ranges.iter().filter(|range| range.family() == frontend.addr.family());
    ranges
        .map(|range| SourceKey {
            bits: SourceKey::BITS_SERVICE + u32::from(range.bits()),
            service: service.id.0,
            addr: range.addr().into(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use weft_model::{Addr, Port, ServiceKey, Weight};
    use weft_plan::{ListId, ServiceId};

    use super::*;

    fn backend(last: u8, weight: u8) -> Backend {
        let addr = Addr::from(std::net::Ipv4Addr::new(10, 244, 0, last));
        Backend { weight: Weight(weight), ..Backend::at(addr, Port(80)) }
    }

    fn list(backends: Vec<Backend>) -> BackendList {
        BackendList { id: ListId(7), backends, elsewhere: false }
    }

    #[test]
    fn slots_follow_weights_and_tables_name_first_slots() {
        let list = list(vec![backend(1, 1), backend(2, 3), backend(3, 1)]);
        let entries = ListEntries::of(&list, Hashing::Used);
        let lasts: Vec<u8> = entries.slots.iter().map(|slot| Addr::from(slot.addr).octets()[15]).collect();
        assert_eq!(lasts, [1, 2, 2, 2, 3]);
        assert_eq!(entries.members(7).into_values().collect::<Vec<_>>(), [0, 1, 4]);
        let table = entries.table.unwrap();
        let indices = maglev::table(&list.backends);
        assert_eq!(table.len(), indices.len().div_ceil(4));
        for (slot, index) in indices.iter().enumerate() {
            let named = (table[slot / 4] >> (slot % 4 * 16)) & 0xffff;
            assert_eq!(named, [0, 1, 4][*index as usize], "slot {slot}");
        }
        assert_eq!(ListEntries::of(&list, Hashing::Never).table, None);
    }

    #[test]
    fn weights_that_are_more_than_slots_are_scaled_down() {
        let backends: Vec<Backend> = (0..2000u32)
            .map(|number| Backend {
                weight: Weight(255),
                ..Backend::at(Addr::from(std::net::Ipv4Addr::from(0x0af4_0000 + number)), Port(80))
            })
            .collect();
        let list = list(backends);
        let entries = ListEntries::of(&list, Hashing::Never);
        assert!(entries.slots.len() <= MOST_SLOTS && entries.slots.len() > MOST_SLOTS * 9 / 10);
        assert_eq!(entries.members(7).len(), 2000);
        let service = ServicePlan {
            list: Arc::new(list),
            ..ServicePlan::cluster_ip(ServiceId(1), ServiceKey::new("test", "many"), Vec::new())
        };
        let frontend = Frontend {
            addr: "10.96.0.1".parse().unwrap(),
            protocol: weft_model::Protocol::TCP,
            port: Port(80),
        };
        let value = service_value(&frontend, &service, Localhost::Closed);
        assert_eq!(value.slots as usize, entries.slots.len());
    }

    #[test]
    fn ranges_of_the_other_family_are_left_out() {
        let mut service = ServicePlan::cluster_ip(ServiceId(9), ServiceKey::new("test", "web"), Vec::new());
        service.source_ranges = BTreeSet::from(["192.0.2.0/24".parse().unwrap(), "::/0".parse().unwrap()]);
        let frontend = Frontend {
            addr: "203.0.113.1".parse().unwrap(),
            protocol: weft_model::Protocol::TCP,
            port: Port(80),
        };
        let keys = source_keys(&frontend, &service);
        assert_eq!(keys.len(), 1);
        assert_eq!(keys.first().unwrap().bits, 32 + 96 + 24);
        assert_eq!(service_value(&frontend, &service, Localhost::Closed).flags, ServiceFlags::SOURCE_RANGES);
    }
}
