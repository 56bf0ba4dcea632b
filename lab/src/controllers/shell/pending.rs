//! What was written but not yet seen in the caches: until it is, its owner is not looked at again, lest the same be
//! done twice.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An answer that never shows in a watch must not block its owner for good.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrote {
    Created,
    Deleted,
}

/// What a watch showed of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    There,
    Leaving,
    Gone,
}

#[derive(Default)]
pub struct Pending {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    owners: HashMap<String, HashMap<(String, Wrote), Instant>>,
    /// Owners whose writes are on their way: what a watch shows meanwhile is kept for them.
    writing: HashMap<String, HashSet<(String, Wrote)>>,
}

impl Pending {
    /// Writes for this owner begin. What is seen from here on counts.
    pub fn begin(&self, owner: &str) {
        self.lock().writing.insert(owner.to_owned(), HashSet::new());
    }

    /// The writes ended with these answers.
    pub fn end(&self, owner: &str, wrote: Vec<(String, Wrote)>, now: Instant) {
        let mut state = self.lock();
        let seen = state.writing.remove(owner).unwrap_or_default();
        let missing: HashMap<(String, Wrote), Instant> =
            wrote.into_iter().filter(|entry| !seen.contains(entry)).map(|entry| (entry, now)).collect();
        if !missing.is_empty() {
            state.owners.entry(owner.to_owned()).or_default().extend(missing);
        }
    }

    /// A watch showed an object of this owner.
    pub fn saw(&self, owner: &str, uid: &str, seen: Seen) {
        let shown: &[Wrote] = match seen {
            Seen::There => &[Wrote::Created],
            Seen::Leaving | Seen::Gone => &[Wrote::Created, Wrote::Deleted],
        };
        let mut state = self.lock();
        for wrote in shown {
            let entry = (uid.to_owned(), *wrote);
            if let Some(waiting) = state.owners.get_mut(owner) {
                waiting.remove(&entry);
            }
            if let Some(early) = state.writing.get_mut(owner) {
                early.insert(entry);
            }
        }
        if state.owners.get(owner).is_some_and(HashMap::is_empty) {
            state.owners.remove(owner);
        }
    }

    /// How long to wait until the caches can be trusted for this owner; `None` when they can be now.
    pub fn wait(&self, owner: &str, now: Instant) -> Option<Duration> {
        let mut state = self.lock();
        let waiting = state.owners.get_mut(owner)?;
        waiting.retain(|_, since| now.duration_since(*since) < PATIENCE);
        let oldest = waiting.values().min().copied();
        if oldest.is_none() {
            state.owners.remove(owner);
        }
        oldest.map(|since| PATIENCE.saturating_sub(now.duration_since(since)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_waits_until_every_write_was_seen() {
        let (pending, now) = (Pending::default(), Instant::now());
        pending.begin("o");
        pending.end("o", vec![("a".into(), Wrote::Created), ("b".into(), Wrote::Deleted)], now);
        assert!(pending.wait("o", now).is_some());
        pending.saw("o", "a", Seen::There);
        pending.saw("o", "b", Seen::There);
        assert!(pending.wait("o", now).is_some(), "b is still there");
        pending.saw("o", "b", Seen::Leaving);
        assert_eq!(pending.wait("o", now), None);
    }

    #[test]
    fn a_watch_may_be_faster_than_the_answer() {
        let (pending, now) = (Pending::default(), Instant::now());
        pending.begin("o");
        pending.saw("o", "a", Seen::There);
        pending.end("o", vec![("a".into(), Wrote::Created)], now);
        assert_eq!(pending.wait("o", now), None);
    }

    #[test]
    fn patience_ends() {
        let (pending, now) = (Pending::default(), Instant::now());
        pending.begin("o");
        pending.end("o", vec![("a".into(), Wrote::Created)], now);
        assert_eq!(pending.wait("o", now + Duration::from_secs(2)), Some(Duration::from_secs(3)));
        assert_eq!(pending.wait("o", now + PATIENCE), None);
        assert_eq!(pending.wait("other", now), None);
    }
}
