//! Consistent hashing of connections to backends (Eisenbud et al., "Maglev", NSDI 2016, 3.4). The same on every node, and in bpf/lib.

use weft_model::{Addr, Port, Protocol};

use crate::Backend;

/// Table sizes are primes, so that every backend's walk reaches every slot.
const SIZES: [u32; 11] = [1, 251, 509, 1021, 2039, 4093, 8191, 16_381, 32_749, 65_521, 131_071];
/// With a hundred slots for each unit of weight, backends' shares differ by about a per cent. What moves when a backend goes,
/// beside what it had, grows with their number: large lists get more slots, so that it stays under a per cent.
const SLOTS_PER_WEIGHT: u32 = 100;
const SLOTS_PER_WEIGHT_OF_MANY: u32 = 600;
const MANY: u32 = 50;

/// What a connection is hashed by: the same packet gives the same number on every node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Connection {
    pub source: (Addr, Port),
    pub destination: (Addr, Port),
    pub protocol: Protocol,
}

impl Connection {
    /// MurmurHash3 (x86, 32 bit) over the ten words of both addresses, the ports and the protocol, all as on the wire.
    pub fn hash(&self) -> u32 {
        let mut hash = 0;
        for addr in [self.source.0, self.destination.0] {
            for word in addr.octets().chunks_exact(4) {
                hash = mix(hash, u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
            }
        }
        hash = mix(hash, u32::from(self.source.1.0) << 16 | u32::from(self.destination.1.0));
        finish(mix(hash, u32::from(self.protocol.0)))
    }
}

/// How many slots the table of these backends has; none without backends.
pub fn size(backends: &[Backend]) -> u32 {
    match backends {
        [] => 0,
        [_] => 1,
        _ => {
            let weights: u32 = backends.iter().map(|backend| u32::from(backend.weight.0)).sum();
            let each = if weights < MANY { SLOTS_PER_WEIGHT } else { SLOTS_PER_WEIGHT_OF_MANY };
            let wanted = weights.saturating_mul(each);
            SIZES.into_iter().find(|size| *size >= wanted).unwrap_or(SIZES[SIZES.len() - 1])
        }
    }
}

/// Slot to index in `backends`. A backend's place depends on its own address and port, not on its neighbours.
pub fn table(backends: &[Backend]) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let size = size(backends);
    let mut slots = vec![FREE; size as usize];
    let mut walks: Vec<Walk> = backends.iter().map(|backend| Walk::of(backend, size)).collect();
    let mut free = slots.len();
    while free > 0 {
        for (index, (walk, backend)) in walks.iter_mut().zip(backends).enumerate() {
            for _ in 0..backend.weight.0.max(1) {
                if free == 0 {
                    return slots;
                }
                let slot = walk.find(|slot| slots[*slot] == FREE).expect("a walk reaches every slot");
                slots[slot] = index as u32;
                free -= 1;
            }
        }
    }
    slots
}

/// The order in which a backend asks for slots.
struct Walk {
    at: u64,
    step: u64,
    size: u64,
}

impl Walk {
    fn of(backend: &Backend, size: u32) -> Self {
        let zero = (Addr::from_octets([0; 16]), Port(0));
        let hash = |salt| {
            let source = (backend.addr, backend.port);
            u64::from(Connection { source, destination: zero, protocol: Protocol(salt) }.hash())
        };
        let size = u64::from(size);
        Self { at: hash(1) % size, step: if size > 1 { hash(2) % (size - 1) + 1 } else { 0 }, size }
    }
}

impl Iterator for Walk {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let slot = self.at;
        self.at = (self.at + self.step) % self.size;
        Some(slot as usize)
    }
}

fn mix(hash: u32, word: u32) -> u32 {
    let word = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (hash ^ word).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

fn finish(hash: u32) -> u32 {
    let hash = hash ^ 40;
    let hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    let hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use weft_model::Weight;

    use super::*;

    fn backends(count: u8) -> Vec<Backend> {
        let addr = |last: u8| Addr::from(std::net::Ipv4Addr::new(10, 244, 1, last));
        (0..count)
            .map(|last| Backend {
                addr: addr(last),
                port: Port(80),
                weight: Weight(1),
                pod: None,
                node: None,
            })
            .collect()
    }

    #[test]
    fn shares_follow_weights() {
        let mut backends = backends(10);
        backends[3].weight = Weight(4);
        let table = table(&backends);
        let mut shares = BTreeMap::new();
        table.iter().for_each(|index| *shares.entry(*index).or_insert(0usize) += 1);
        for (index, share) in shares {
            let fair = table.len() / 13 * if index == 3 { 4 } else { 1 };
            assert!(share.abs_diff(fair) <= fair / 20 + 4, "backend {index} has {share} of {}", table.len());
        }
    }

    #[test]
    fn losing_one_of_a_hundred_moves_at_most_one_in_a_hundred_of_the_others() {
        let all = backends(100);
        let before = table(&all);
        for lost in 0..all.len() {
            let mut rest = all.clone();
            rest.remove(lost);
            let after = table(&rest);
            assert_eq!(before.len(), after.len());
            let moved = before.iter().zip(&after).filter(|(before, after)| {
                **before != lost as u32 && all[**before as usize] != rest[**after as usize]
            });
            let others = before.iter().filter(|index| **index != lost as u32).count();
            let moved = moved.count();
            assert!(moved * 100 <= others, "losing {lost} moved {moved} of {others}");
        }
    }

    #[test]
    fn nobody_and_one_need_no_walk() {
        assert!(table(&[]).is_empty());
        assert_eq!(table(&backends(1)), [0]);
    }
}
