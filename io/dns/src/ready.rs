//! Ready answers of one serving thread, found by question. Bounded: what is asked seldom makes room for what is asked more.

use std::hash::{BuildHasher, RandomState};

use crate::plan::Dependency;
use crate::wire::Ready;

const WAYS: usize = 4;
const NXDOMAIN: u8 = 3;
/// What an answer takes besides its bytes and its key.
const OVERHEAD: usize = size_of::<Entry>() + size_of::<Option<Box<Entry>>>() + 48;

/// Seconds of the thread's clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Seconds(pub u32);

pub struct Entry {
    hash: u64,
    key: Box<[u8]>,
    pub answer: Ready,
    pub made: Seconds,
    /// Not given out from then on.
    pub until: Seconds,
    pub dependency: Dependency,
    pub source: Source,
    asked: bool,
}

/// What an answer was made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    Plan,
    Cache,
    Upstream,
    NotReady,
    /// The message itself was wrong.
    Message,
    Shed,
}

/// A hash table of sets of four: a new answer takes the place of one in its set that was not asked for again.
pub struct Answers {
    slots: Vec<Option<Box<Entry>>>,
    hasher: Hasher,
    bytes: usize,
    most_bytes: usize,
    hand: usize,
    /// Questions about names that do not exist, seen once: most are never asked again.
    door: Box<[u16]>,
}

const DOOR: usize = 4096;

impl Answers {
    pub fn new(most_bytes: usize) -> Self {
        // An answer of usual size takes about 400 bytes.
        let sets = (most_bytes / 400 / WAYS).next_power_of_two().max(1);
        let slots = std::iter::repeat_with(|| None).take(sets * WAYS).collect();
        Self { slots, hasher: Hasher::new(), bytes: 0, most_bytes, hand: 0, door: vec![0; DOOR].into() }
    }

    /// Whether it still holds is for the caller to see.
    pub fn get(&mut self, key: &[u8]) -> Option<&mut Entry> {
        let hash = self.hasher.hash(key);
        let set = self.set(hash);
        let found = self.slots[set..set + WAYS]
            .iter_mut()
            .flatten()
            .find(|entry| entry.hash == hash && *entry.key == *key)?;
        found.asked = true;
        Some(found)
    }

    pub fn put(&mut self, key: &[u8], new: New) {
        let hash = self.hasher.hash(key);
        if new.answer.code() == NXDOMAIN && !self.was_seen(hash) {
            return;
        }
        let New { answer, made, until, dependency, source } = new;
        let entry = Entry { hash, key: key.into(), answer, made, until, dependency, source, asked: false };
        let size = entry.size();
        if size > self.most_bytes {
            return;
        }
        let set = self.set(hash);
        let victim = self.victim(set, hash, key, made);
        self.bytes -= self.slots[victim].as_ref().map_or(0, |entry| entry.size());
        self.slots[victim] = Some(Box::new(entry));
        self.bytes += size;
        while self.bytes > self.most_bytes {
            self.make_room(victim, made);
        }
    }

    fn was_seen(&mut self, hash: u64) -> bool {
        let tag = (hash >> 48) as u16 | 1;
        std::mem::replace(&mut self.door[(hash >> 32) as usize % DOOR], tag) == tag
    }

    /// The place of the same question, else an empty one, else of one not asked for since somebody looked for a place.
    fn victim(&mut self, set: usize, hash: u64, key: &[u8], now: Seconds) -> usize {
        let ways = &mut self.slots[set..set + WAYS];
        let same = |slot: &Option<Box<Entry>>| {
            slot.as_ref().is_some_and(|entry| entry.hash == hash && *entry.key == *key)
        };
        let free = |slot: &Option<Box<Entry>>| slot.as_ref().is_none_or(|entry| entry.until <= now);
        if let Some(way) = ways.iter().position(same).or_else(|| ways.iter().position(free)) {
            return set + way;
        }
        let start = hash as usize >> 60;
        for step in 0..2 * WAYS {
            let way = (start + step) % WAYS;
            match &mut ways[way] {
                Some(entry) if entry.asked => entry.asked = false,
                _ => return set + way,
            }
        }
        set + start % WAYS
    }

    /// A clock's hand over all places, past those that were asked for.
    fn make_room(&mut self, spared: usize, now: Seconds) {
        loop {
            self.hand = (self.hand + 1) % self.slots.len();
            if self.hand == spared {
                continue;
            }
            match &mut self.slots[self.hand] {
                Some(entry) if entry.asked && entry.until > now => entry.asked = false,
                slot @ Some(_) => {
                    self.bytes -= slot.take().map_or(0, |entry| entry.size());
                    return;
                }
                None => {}
            }
        }
    }

    fn set(&self, hash: u64) -> usize {
        (hash as usize % (self.slots.len() / WAYS)) * WAYS
    }
}

/// What is put besides the question.
pub struct New {
    pub answer: Ready,
    pub made: Seconds,
    pub until: Seconds,
    pub dependency: Dependency,
    pub source: Source,
}

impl Entry {
    fn size(&self) -> usize {
        OVERHEAD + self.key.len() + self.answer.heap_size()
    }
}

/// Multiplies and folds eight bytes at a time, with a secret of its own: clients choose the questions.
struct Hasher {
    secrets: [u64; 2],
}

impl Hasher {
    fn new() -> Self {
        let random = RandomState::new();
        Self { secrets: [random.hash_one(1) | 1, random.hash_one(2) | 1] }
    }

    fn hash(&self, bytes: &[u8]) -> u64 {
        let [first, second] = self.secrets;
        let mut hash = first ^ bytes.len() as u64;
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut eight = [0; 8];
            eight.copy_from_slice(chunk);
            hash = fold(hash ^ u64::from_le_bytes(eight), second);
        }
        let mut rest = [0; 8];
        rest[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        fold(fold(hash ^ u64::from_le_bytes(rest), second), first)
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Generation;
    use crate::wire::Ages;

    fn put(answers: &mut Answers, number: u32) {
        let wire = [0, 0, 0x84, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1];
        let answer = Ready::new(&wire, Ages::No).unwrap();
        let new = New {
            answer,
            made: Seconds(0),
            until: Seconds(u32::MAX),
            dependency: Dependency::everything(Generation::default()),
            source: Source::Plan,
        };
        answers.put(&number.to_be_bytes(), new);
    }

    #[test]
    fn memory_is_bounded_and_what_is_asked_often_stays() {
        let mut answers = Answers::new(256 << 10);
        for number in 0..100 {
            put(&mut answers, number);
        }
        for number in 100..20_000 {
            put(&mut answers, number);
            // Asked again and again among names that nobody asks for twice.
            for often in 0..100u32 {
                if number % 10 == often % 10 {
                    answers.get(&often.to_be_bytes());
                }
            }
            assert!(answers.bytes <= 256 << 10);
        }
        let kept = (0..100u32).filter(|often| answers.get(&often.to_be_bytes()).is_some()).count();
        assert!(kept > 60, "{kept} of 100");
        let counted: usize = answers.slots.iter().flatten().map(|entry| entry.size()).sum();
        assert_eq!(counted, answers.bytes);
    }
}
