//! Ready answers of one serving thread, found by question. Bounded: what is asked seldom makes room for what is asked more.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, RandomState};

use crate::as_is::AsIs;
use crate::places::Dependency;
use crate::wire::Ready;

const NXDOMAIN: u8 = 3;
/// What an answer takes besides its bytes and its key.
const OVERHEAD: usize = size_of::<Entry>() + size_of::<Option<Box<Entry>>>() + 80;

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

pub struct Answers {
    places: HashMap<u64, usize, BuildHasherDefault<AsIs>>,
    slots: Vec<Option<Box<Entry>>>,
    free: Vec<usize>,
    hasher: Secret,
    bytes: usize,
    most_bytes: usize,
    /// Where the search for room goes on: answers asked for since it last came by are passed over once.
    hand: usize,
    /// Questions about names that do not exist, seen once: most are never asked again.
    door: Box<[u16]>,
}

const DOOR: usize = 4096;

impl Answers {
    pub fn new(most_bytes: usize) -> Self {
        Self {
            places: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            hasher: Secret::new(),
            bytes: 0,
            most_bytes,
            hand: 0,
            door: vec![0; DOOR].into(),
        }
    }

    /// Where the answer to a question is.
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        let place = *self.places.get(&self.hasher.hash(key))?;
        let entry = self.slots.get(place)?.as_ref()?;
        (*entry.key == *key).then_some(place)
    }

    /// Whether it still holds is for the caller to see.
    pub fn at(&mut self, place: usize) -> Option<&Entry> {
        let entry = self.slots.get_mut(place)?.as_mut()?;
        entry.asked = true;
        Some(entry)
    }

    pub fn put(&mut self, key: &[u8], new: New) {
        let hash = self.hasher.hash(key);
        if new.answer.code() == NXDOMAIN && !self.was_seen(hash) {
            return;
        }
        let New { answer, made, until, dependency, source } = new;
        let entry = Entry { hash, key: key.into(), answer, made, until, dependency, source, asked: false };
        let size = entry.size();
        if size > self.most_bytes / 4 {
            return;
        }
        if let Some(place) = self.places.get(&hash).copied() {
            self.remove(place);
        }
        while self.bytes + size > self.most_bytes {
            self.make_room(made);
        }
        let place = self.free.pop().unwrap_or(self.slots.len());
        if place == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[place] = Some(Box::new(entry));
        self.places.insert(hash, place);
        self.bytes += size;
    }

    fn was_seen(&mut self, hash: u64) -> bool {
        let tag = (hash >> 48) as u16 | 1;
        std::mem::replace(&mut self.door[(hash >> 16) as usize % DOOR], tag) == tag
    }

    fn make_room(&mut self, now: Seconds) {
        loop {
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            match &mut self.slots[self.hand] {
                Some(entry) if entry.asked && entry.until > now => entry.asked = false,
                Some(_) => return self.remove(self.hand),
                None => {}
            }
        }
    }

    fn remove(&mut self, place: usize) {
        if let Some(entry) = self.slots[place].take() {
            self.bytes -= entry.size();
            self.places.remove(&entry.hash);
            self.free.push(place);
        }
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
struct Secret {
    secrets: [u64; 2],
}

impl Secret {
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
    use crate::places::Generation;
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
                    answers.find(&often.to_be_bytes()).map(|place| answers.at(place).is_some());
                }
            }
            assert!(answers.bytes <= 256 << 10);
        }
        let kept = (0..100u32).filter(|often| answers.find(&often.to_be_bytes()).is_some()).count();
        assert!(kept > 60, "{kept} of 100");
        let counted: usize = answers.slots.iter().flatten().map(|entry| entry.size()).sum();
        assert_eq!(counted, answers.bytes);
    }
}
