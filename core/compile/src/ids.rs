//! Numbers derived from content, so that the same thing has the same number whatever happened before.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

/// What a number is derived from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// Parts are told apart, so ("a", "bc") and ("ab", "c") differ.
    pub fn of(kind: &str, parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        let mut hash = Sha256::new();
        hash.update(kind.as_bytes());
        for part in parts {
            let part = part.as_ref();
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn number(&self, attempt: u32) -> u32 {
        let digest =
            if attempt == 0 { *self } else { Self::of("again", [&self.0[..], &attempt.to_be_bytes()]) };
        u32::from_be_bytes([digest.0[0], digest.0[1], digest.0[2], digest.0[3]])
    }
}

/// The room for numbers of one kind.
#[derive(Clone, Copy)]
pub(crate) struct Space {
    pub first: u32,
    pub last: u32,
}

/// A number for each digest. Two that would share one are told apart in the order of the digests, so the outcome
/// depends on which digests there are and on nothing else.
pub(crate) fn numbers(digests: impl IntoIterator<Item = Digest>, space: Space) -> BTreeMap<Digest, u32> {
    let digests: BTreeSet<Digest> = digests.into_iter().collect();
    let size = u64::from(space.last) - u64::from(space.first) + 1;
    let place = |number: u32| space.first + (u64::from(number) % size) as u32;
    let mut used = BTreeSet::new();
    let mut numbers = BTreeMap::new();
    for digest in digests {
        let free = (0..).map(|attempt| place(digest.number(attempt))).find(|number| used.insert(*number));
        numbers.insert(digest, free.expect("there are more numbers than digests"));
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collisions_are_resolved_alike_in_every_order() {
        let digests: Vec<Digest> =
            (0..60u32).map(|number| Digest::of("test", [number.to_be_bytes()])).collect();
        let space = Space { first: 2, last: 80 };
        let forward = numbers(digests.iter().copied(), space);
        let backward = numbers(digests.iter().rev().copied(), space);
        assert_eq!(forward, backward);
        let distinct: BTreeSet<u32> = forward.values().copied().collect();
        assert_eq!(distinct.len(), 60);
        assert!(distinct.iter().all(|number| (2..=80).contains(number)));
    }
}
