//! The in-memory state readers see: objects, per-resource history, owner index. Only the disk writer changes it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use super::{Error, HistoryLength, Key, Resource, Revision, serialise};

/// One stored object: parsed for selection, serialised once for all readers.
#[derive(Debug)]
pub struct Entry {
    pub revision: Revision,
    pub value: Arc<Value>,
    pub json: Bytes,
}

impl Entry {
    pub fn new(revision: Revision, value: Arc<Value>) -> Self {
        let json = serialise(&value);
        Self { revision, value, json }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

/// One change, with the state before it so that selectors can tell entering from leaving.
#[derive(Debug)]
pub struct Event {
    pub kind: EventKind,
    pub key: Key,
    pub entry: Arc<Entry>,
    pub previous: Option<Arc<Entry>>,
}

impl Event {
    pub fn revision(&self) -> Revision {
        self.entry.revision
    }
}

/// A consistent list of a resource.
#[derive(Debug)]
pub struct Listing {
    pub revision: Revision,
    pub items: Vec<Owned>,
}

/// A listed object with its place.
pub type Owned = (Arc<str>, Arc<Entry>);

pub(super) struct Memory {
    pub(super) revision: Revision,
    history: HistoryLength,
    /// Everything up to here was before this process or has been compacted away.
    floor: Revision,
    buckets: HashMap<Resource, Bucket>,
    by_owner: HashMap<String, BTreeSet<Key>>,
    by_uid: HashMap<String, Key>,
}

struct Bucket {
    items: BTreeMap<Arc<str>, Arc<Entry>>,
    events: VecDeque<Arc<Event>>,
    /// Watching can begin from here on.
    floor: Revision,
    /// The newest event that was forgotten: who has seen it has missed nothing, however long ago that was.
    forgotten: Revision,
    last: Revision,
    changed: watch::Sender<Revision>,
}

impl Memory {
    pub(super) fn new(revision: Revision, history: HistoryLength) -> Self {
        Self {
            revision,
            history,
            floor: revision,
            buckets: HashMap::new(),
            by_owner: HashMap::new(),
            by_uid: HashMap::new(),
        }
    }

    /// Takes in an object found on disk at start.
    pub(super) fn load(&mut self, key: Key, entry: Entry) {
        self.index(&key, &entry.value);
        let revision = entry.revision;
        let bucket = self.bucket(&key.resource);
        bucket.items.insert(key.path, Arc::new(entry));
        bucket.last = bucket.last.max(revision);
    }

    /// Applies a committed change and tells watchers later through [`Memory::announce`].
    pub(super) fn apply(&mut self, kind: EventKind, key: Key, entry: Arc<Entry>) -> Arc<Event> {
        self.revision = entry.revision;
        let limit = self.history.0;
        let bucket = self.bucket(&key.resource);
        let previous = match kind {
            EventKind::Deleted => bucket.items.remove(&key.path),
            EventKind::Added | EventKind::Modified => {
                bucket.items.insert(Arc::clone(&key.path), Arc::clone(&entry))
            }
        };
        bucket.last = entry.revision;
        let event = Arc::new(Event { kind, key: key.clone(), entry, previous });
        bucket.events.push_back(Arc::clone(&event));
        while bucket.events.len() > limit {
            bucket.forget_oldest();
            bucket.floor = bucket.floor.max(bucket.forgotten);
        }
        if let Some(previous) = &event.previous {
            self.unindex(&key, &previous.value);
        }
        if kind != EventKind::Deleted {
            self.index(&key, &event.entry.value);
        }
        event
    }

    pub(super) fn announce(&self, resource: &Resource) {
        if let Some(bucket) = self.buckets.get(resource) {
            bucket.changed.send_replace(bucket.last);
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.buckets.get(&key.resource)?.items.get(&key.path).cloned()
    }

    pub(super) fn list(&self, resource: &Resource, namespace: Option<&str>) -> Listing {
        let items = self.buckets.get(resource).map(|bucket| bucket.select(namespace)).unwrap_or_default();
        Listing { revision: self.revision, items }
    }

    pub(super) fn list_at(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        revision: Revision,
    ) -> Result<Listing, Error> {
        self.check_range(resource, revision)?;
        let Some(bucket) = self.buckets.get(resource) else {
            return Ok(Listing { revision, items: Vec::new() });
        };
        let mut items: BTreeMap<_, _> = bucket.select(namespace).into_iter().collect();
        for event in bucket.events.iter().rev().take_while(|event| event.revision() > revision) {
            if namespace.is_some() && event.key.namespace() != namespace {
                continue;
            }
            match &event.previous {
                Some(previous) => items.insert(Arc::clone(&event.key.path), Arc::clone(previous)),
                None => items.remove(&event.key.path),
            };
        }
        Ok(Listing { revision, items: items.into_iter().collect() })
    }

    pub(super) fn subscribe(
        &mut self,
        resource: &Resource,
        after: Revision,
    ) -> Result<watch::Receiver<Revision>, Error> {
        self.check_range(resource, after)?;
        Ok(self.changes_of(resource))
    }

    /// Tells whenever a resource has changed.
    pub(super) fn changes_of(&mut self, resource: &Resource) -> watch::Receiver<Revision> {
        self.bucket(resource).changed.subscribe()
    }

    /// Events after `after`, at most `limit`, and the revision up to which the answer is complete.
    pub(super) fn events_after(
        &self,
        resource: &Resource,
        after: Revision,
        limit: usize,
    ) -> Result<(Vec<Arc<Event>>, Revision), Error> {
        let Some(bucket) = self.buckets.get(resource) else { return Ok((Vec::new(), self.revision)) };
        if after < bucket.forgotten {
            return Err(Error::Expired { asked: after, oldest: bucket.floor });
        }
        let start = bucket.events.partition_point(|event| event.revision() <= after);
        let events: Vec<_> = bucket.events.range(start..).take(limit).cloned().collect();
        let complete = match events.last() {
            Some(last) if start + events.len() < bucket.events.len() => last.revision(),
            _ => self.revision,
        };
        Ok((events, complete))
    }

    pub(super) fn compact(&mut self, revision: Revision) {
        let revision = revision.min(self.revision);
        self.floor = self.floor.max(revision);
        for bucket in self.buckets.values_mut() {
            bucket.floor = bucket.floor.max(revision);
            while bucket.events.front().is_some_and(|event| event.revision() <= revision) {
                bucket.forget_oldest();
            }
        }
    }

    pub(super) fn dependents(&self, uid: &str) -> Vec<Key> {
        self.by_owner.get(uid).map(|keys| keys.iter().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn find_uid(&self, uid: &str) -> Option<Key> {
        self.by_uid.get(uid).cloned()
    }

    pub(super) fn resources(&self) -> Vec<Resource> {
        let held = self.buckets.iter().filter(|(_, bucket)| !bucket.items.is_empty());
        held.map(|(resource, _)| resource.clone()).collect()
    }

    pub(super) fn resource_revision(&self, resource: &Resource) -> Revision {
        self.buckets.get(resource).map(|bucket| bucket.last).unwrap_or_default()
    }

    fn check_range(&self, resource: &Resource, revision: Revision) -> Result<(), Error> {
        let floor = self.buckets.get(resource).map_or(self.floor, |bucket| bucket.floor);
        if revision < floor {
            return Err(Error::Expired { asked: revision, oldest: floor });
        }
        if revision > self.revision {
            return Err(Error::Future { asked: revision, latest: self.revision });
        }
        Ok(())
    }

    fn bucket(&mut self, resource: &Resource) -> &mut Bucket {
        let floor = self.floor;
        self.buckets.entry(resource.clone()).or_insert_with(|| Bucket {
            items: BTreeMap::new(),
            events: VecDeque::new(),
            floor,
            forgotten: Revision::default(),
            last: Revision::default(),
            changed: watch::Sender::new(Revision::default()),
        })
    }

    fn index(&mut self, key: &Key, value: &Value) {
        for uid in owner_uids(value) {
            self.by_owner.entry(uid.to_owned()).or_default().insert(key.clone());
        }
        if let Some(uid) = value.pointer("/metadata/uid").and_then(Value::as_str) {
            self.by_uid.insert(uid.to_owned(), key.clone());
        }
    }

    fn unindex(&mut self, key: &Key, value: &Value) {
        for uid in owner_uids(value) {
            if let Some(keys) = self.by_owner.get_mut(uid) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_owner.remove(uid);
                }
            }
        }
        if let Some(uid) = value.pointer("/metadata/uid").and_then(Value::as_str) {
            self.by_uid.remove(uid);
        }
    }
}

impl Bucket {
    fn forget_oldest(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.forgotten = event.revision();
        }
    }

    fn select(&self, namespace: Option<&str>) -> Vec<Owned> {
        let copy = |(path, entry): (&Arc<str>, &Arc<Entry>)| (Arc::clone(path), Arc::clone(entry));
        let Some(namespace) = namespace else { return self.items.iter().map(copy).collect() };
        let prefix = format!("{namespace}/");
        let from: Arc<str> = prefix.as_str().into();
        self.items.range(from..).take_while(|(path, _)| path.starts_with(&prefix)).map(copy).collect()
    }
}

fn owner_uids(value: &Value) -> impl Iterator<Item = &str> {
    let references = value.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    references.into_iter().flatten().filter_map(|reference| reference.get("uid")?.as_str())
}
