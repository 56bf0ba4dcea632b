//! Upstream answers, found by the bytes of a question. Time is an argument; asking lives in `forward`, what an entry
//! holds in `entry`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hash::{BuildHasher, BuildHasherDefault, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::as_is::AsIs;
use crate::entry::{Entry, Freshness, Hit, Lifetimes, WireKey};

/// More than cores, so that two that look up different names seldom meet.
const SHARDS_PER_CORE: usize = 8;
const MOST_SHARDS: usize = 256;
/// What an entry takes besides its own struct, its bytes and its key: places in the table, counts, the allocator's share.
const ENTRY_OVERHEAD: usize = 128;
/// No single answer takes more than this part of its shard.
const LARGEST_PART: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub bytes: usize,
    pub lifetimes: Lifetimes,
    /// How long an answer that is past its time may still serve when no upstream server answers.
    pub stale: Duration,
    /// How often an answer must have been used for it to be asked again before its time is over; 0 is never.
    pub prefetch_hits: u32,
    /// In which last part of its life.
    pub prefetch_percent: u8,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 16 << 20,
            // RFC 2308 5 has negative answers kept for hours at most; in a cluster new names are wanted sooner.
            // RFC 9520 3.2: a failure is remembered for a second at least.
            lifetimes: Lifetimes { longest: 3600, shortest: 0, longest_negative: 300, failure: 1 },
            // RFC 8767 5 suggests one to three days.
            stale: Duration::from_secs(86_400),
            prefetch_hits: 5,
            prefetch_percent: 10,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    pub hits: u64,
    pub stale_hits: u64,
    pub misses: u64,
    pub evictions: u64,
    pub entries: u64,
    pub bytes: u64,
}

/// What a lookup found, and whether the finder should have it asked again.
pub struct Found {
    pub hit: Hit,
    pub wants_refresh: bool,
}

pub struct Cache {
    shards: Box<[Mutex<Shard>]>,
    /// Seeded anew in each process: nobody can choose names that fall into one place.
    hasher: RandomState,
}

impl Cache {
    pub fn new(limits: Limits) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let shards = (cores * SHARDS_PER_CORE).next_power_of_two().min(MOST_SHARDS);
        let shard = || Mutex::new(Shard::new(limits, limits.bytes / shards));
        Self { shards: (0..shards).map(|_| shard()).collect(), hasher: RandomState::new() }
    }

    /// New limits at once; what no longer fits goes.
    pub fn set_limits(&self, limits: Limits, now: Instant) {
        let bytes = limits.bytes / self.shards.len();
        for shard in &self.shards {
            let mut shard = lock(shard);
            (shard.limits, shard.most_bytes) = (limits, bytes);
            shard.make_room(now);
        }
    }

    pub fn limits(&self) -> Limits {
        lock(&self.shards[0]).limits
    }

    /// An answer that may be given out now.
    pub fn get(&self, key: &WireKey, now: Instant) -> Option<Found> {
        let hash = self.hasher.hash_one(key.as_bytes());
        self.shard(hash).get(hash, key.as_bytes(), now)
    }

    /// An answer that is past its time, for when nothing better is to be had.
    pub fn stale(&self, key: &WireKey, now: Instant) -> Option<Arc<Entry>> {
        let hash = self.hasher.hash_one(key.as_bytes());
        let shard = self.shard(hash);
        let entry = shard.find(hash, key.as_bytes())?;
        (!entry.is_failure() && now < entry.until()? + shard.limits.stale).then(|| entry.clone())
    }

    /// Keeps an answer, in place of an earlier one. One that may not be kept, or is too large, is not.
    pub fn put(&self, key: &WireKey, entry: Arc<Entry>, now: Instant) {
        let hash = self.hasher.hash_one(key.as_bytes());
        self.shard(hash).put(hash, key.as_bytes(), entry, now);
    }

    /// Drops what `forgotten` says of the bytes of its key.
    pub fn forget(&self, forgotten: impl Fn(&[u8]) -> bool) {
        for shard in &self.shards {
            lock(shard).remove_all(|slot| forgotten(&slot.key));
        }
    }

    /// Drops what can no longer be given out, not even as stale.
    pub fn sweep(&self, now: Instant) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            let stale = shard.limits.stale;
            shard.remove_all(|slot| slot.entry.until().is_none_or(|until| until + stale <= now));
        }
    }

    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for shard in &self.shards {
            let shard = lock(shard);
            sum.hits += shard.counts.hits;
            sum.stale_hits += shard.counts.stale_hits;
            sum.misses += shard.counts.misses;
            sum.evictions += shard.counts.evictions;
            sum.entries += shard.places.len() as u64;
            sum.bytes += shard.bytes as u64;
        }
        sum
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // The table uses the lowest and the highest bits.
        let index = (hash >> 32) as usize & (self.shards.len() - 1);
        lock(&self.shards[index])
    }
}

struct Shard {
    limits: Limits,
    most_bytes: usize,
    places: HashMap<u64, usize, BuildHasherDefault<AsIs>>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Where the search for room goes on: entries used since it last came by are passed over once.
    hand: usize,
    bytes: usize,
    counts: Counts,
}

struct Slot {
    hash: u64,
    key: Box<[u8]>,
    entry: Arc<Entry>,
}

impl Slot {
    fn size(&self) -> usize {
        self.entry.size() + self.key.len() + ENTRY_OVERHEAD
    }
}

impl Shard {
    fn new(limits: Limits, most_bytes: usize) -> Self {
        Self {
            limits,
            most_bytes,
            places: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            hand: 0,
            bytes: 0,
            counts: Counts::default(),
        }
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<&Arc<Entry>> {
        let slot = self.slots.get(*self.places.get(&hash)?)?.as_ref()?;
        (*slot.key == *key).then_some(&slot.entry)
    }

    fn get(&mut self, hash: u64, key: &[u8], now: Instant) -> Option<Found> {
        let found = self.find(hash, key).and_then(|entry| {
            if entry.until().is_some_and(|until| now < until) {
                return Some((entry.clone(), Freshness::Fresh));
            }
            entry.is_held(now).then(|| (entry.clone(), Freshness::Stale))
        });
        let Some((entry, freshness)) = found else {
            self.counts.misses += 1;
            return None;
        };
        let Limits { prefetch_hits, prefetch_percent, .. } = self.limits;
        let hits = entry.touch(prefetch_hits.max(1));
        let popular = prefetch_hits > 0 && hits >= prefetch_hits && freshness == Freshness::Fresh;
        let wants_refresh = popular && !entry.is_failure() && entry.wants_refresh(now, prefetch_percent);
        match freshness {
            Freshness::Fresh => self.counts.hits += 1,
            Freshness::Stale => self.counts.stale_hits += 1,
        }
        Some(Found { hit: Hit { entry, freshness }, wants_refresh })
    }

    fn put(&mut self, hash: u64, key: &[u8], entry: Arc<Entry>, now: Instant) {
        if entry.until().is_none_or(|until| until <= now) {
            return;
        }
        let slot = Slot { hash, key: key.into(), entry };
        let size = slot.size();
        if size > self.most_bytes / LARGEST_PART {
            return;
        }
        self.bytes += size;
        match self.places.get(&hash) {
            Some(place) => {
                if let Some(earlier) = self.slots[*place].replace(slot) {
                    self.bytes -= earlier.size();
                }
            }
            None => {
                let place = self.free.pop().unwrap_or(self.slots.len());
                if place == self.slots.len() {
                    self.slots.push(Some(slot));
                } else {
                    self.slots[place] = Some(slot);
                }
                self.places.insert(hash, place);
            }
        }
        self.make_room(now);
    }

    fn make_room(&mut self, now: Instant) {
        while self.bytes > self.most_bytes && !self.places.is_empty() {
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 0 };
            let keep = self.slots[self.hand].as_ref().is_none_or(|slot| {
                let fresh = slot.entry.until().is_some_and(|until| now < until);
                slot.entry.take_used() && fresh
            });
            if !keep {
                self.remove(self.hand);
                self.counts.evictions += 1;
            }
        }
    }

    fn remove_all(&mut self, gone: impl Fn(&Slot) -> bool) {
        for place in 0..self.slots.len() {
            if self.slots[place].as_ref().is_some_and(&gone) {
                self.remove(place);
            }
        }
        if self.places.is_empty() {
            (self.slots, self.free, self.hand) = (Vec::new(), Vec::new(), 0);
            self.places.shrink_to_fit();
        }
    }

    fn remove(&mut self, place: usize) {
        if let Some(slot) = self.slots[place].take() {
            self.bytes -= slot.size();
            self.places.remove(&slot.hash);
            self.free.push(place);
        }
    }
}

/// The counters as Prometheus text.
pub fn write_metrics(counts: &Counts, out: &mut String) {
    let events = [
        ("hit", counts.hits),
        ("stale", counts.stale_hits),
        ("miss", counts.misses),
        ("evicted", counts.evictions),
    ];
    let name = "weft_dns_cache_total";
    // Writing to a string cannot fail.
    let _ = writeln!(out, "# HELP {name} Lookups in the cache, and what made room.\n# TYPE {name} counter");
    for (event, count) in events {
        let _ = writeln!(out, "{name}{{event=\"{event}\"}} {count}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::ResponseCode;
    use proptest::prelude::*;

    use super::*;
    use crate::entry::tests::{accepted, address, key};

    fn positive(name: &str, ttl: u32, at: Instant) -> Arc<Entry> {
        let answers = vec![address(name, ttl)];
        let answer = accepted(ResponseCode::NoError, answers, vec![]);
        Arc::new(Entry::new(&key(name), answer, at, &Limits::default().lifetimes))
    }

    fn second(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn answers_are_found_until_their_time_is_over_then_only_as_stale() {
        let (cache, start) = (Cache::new(Limits::default()), Instant::now());
        let wire = key("a.example.").wire();
        cache.put(&wire, positive("a.example.", 60, start), start);
        assert!(cache.get(&key("A.Example.").wire(), start + second(59)).is_some());
        assert!(cache.get(&wire, start + second(60)).is_none());
        assert!(cache.stale(&wire, start + second(86_459)).is_some());
        assert!(cache.stale(&wire, start + second(86_460)).is_none());
        let counts = cache.counts();
        assert_eq!((counts.hits, counts.misses, counts.entries), (1, 1, 1));
        cache.sweep(start + second(86_459));
        assert_eq!(cache.counts().entries, 1);
        cache.sweep(start + second(86_460));
        assert_eq!((cache.counts().entries, cache.counts().bytes), (0, 0));
    }

    #[test]
    fn a_held_answer_is_given_out_as_stale_for_as_long_as_it_is_held() {
        let (cache, start) = (Cache::new(Limits::default()), Instant::now());
        let wire = key("a.example.").wire();
        cache.put(&wire, positive("a.example.", 60, start), start);
        cache.stale(&wire, start + second(70)).unwrap().hold(start + second(100));
        let found = cache.get(&wire, start + second(99)).unwrap();
        assert_eq!((found.hit.freshness, found.wants_refresh), (Freshness::Stale, false));
        assert!(cache.get(&wire, start + second(100)).is_none());
        assert_eq!(cache.counts().stale_hits, 1);
    }

    #[test]
    fn a_popular_answer_is_asked_again_once_near_its_end() {
        let (cache, start) = (Cache::new(Limits { prefetch_hits: 3, ..Limits::default() }), Instant::now());
        let wire = key("a.example.").wire();
        cache.put(&wire, positive("a.example.", 100, start), start);
        let wants = |after| cache.get(&wire, start + second(after)).unwrap().wants_refresh;
        assert_eq!([wants(90), wants(90), wants(90), wants(95)], [false, false, true, false]);
        cache.put(&wire, positive("a.example.", 100, start + second(95)), start + second(95));
        assert_eq!(
            [wants(96), wants(97), wants(98), wants(184), wants(185)],
            [false, false, false, false, true]
        );
    }

    #[test]
    fn a_flood_of_names_does_not_push_out_what_is_used() {
        let limits = Limits { bytes: 4 << 20, ..Limits::default() };
        let (cache, start) = (Cache::new(limits), Instant::now());
        let popular = key("popular.example.").wire();
        cache.put(&popular, positive("popular.example.", 600, start), start);
        for number in 0..50_000 {
            let name = format!("n{number}.example.");
            cache.put(&key(&name).wire(), positive(&name, 600, start), start);
            assert!(cache.get(&popular, start).is_some(), "after {number} others");
        }
        let counts = cache.counts();
        assert!(counts.bytes <= 4 << 20 && counts.entries > 1000, "{counts:?}");
        assert_eq!(counts.entries + counts.evictions, 50_001);
    }

    #[test]
    fn new_limits_hold_at_once_and_keep_what_fits() {
        let (cache, start) = (Cache::new(Limits::default()), Instant::now());
        for number in 0..1000 {
            let name = format!("n{number}.example.");
            cache.put(&key(&name).wire(), positive(&name, 600, start), start);
        }
        let before = cache.counts();
        assert_eq!(before.entries, 1000);
        cache.set_limits(Limits { bytes: before.bytes as usize / 2, ..Limits::default() }, start);
        let after = cache.counts();
        assert!(after.bytes <= before.bytes / 2 && after.entries > 100, "{after:?}");
        cache.forget(|key| key.starts_with(b"\x02n1"));
        assert!(cache.get(&key("n1.example.").wire(), start).is_none());
        cache.set_limits(Limits { bytes: 0, ..Limits::default() }, start);
        assert_eq!((cache.counts().entries, cache.counts().bytes), (0, 0));
        cache.put(&key("a.example.").wire(), positive("a.example.", 60, start), start);
        assert_eq!(cache.counts().entries, 0, "a cache of no size keeps nothing");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_is_put_looked_up_and_forgotten_the_count_of_bytes_is_right(
            steps in proptest::collection::vec((0u8..40, 0u32..100, 0u64..200), 1..300),
            bytes in 0usize..200_000,
        ) {
            let (cache, start) = (Cache::new(Limits { bytes, ..Limits::default() }), Instant::now());
            for (name, ttl, after) in steps {
                let name = format!("{}.example.", "x".repeat(name.into()).replace("xx", "xy") + "z");
                let (wire, now) = (key(&name).wire(), start + second(after));
                match ttl {
                    0 => cache.sweep(now),
                    1 => cache.forget(|key| key[0] % 3 == 0),
                    _ => cache.put(&wire, positive(&name, ttl, now), now),
                }
                if let Some(found) = cache.get(&wire, now) {
                    let answer = found.hit.answer(&key(&name).name, now);
                    prop_assert_eq!(answer.answers[0].name.to_ascii(), name);
                }
                let counted: usize = cache
                    .shards
                    .iter()
                    .map(|shard| lock(shard).slots.iter().flatten().map(Slot::size).sum::<usize>())
                    .sum();
                prop_assert_eq!(cache.counts().bytes as usize, counted);
                prop_assert!(counted <= bytes);
            }
        }
    }
}
