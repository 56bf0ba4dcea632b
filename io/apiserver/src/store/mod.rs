//! The durable object store: optimistic writes, consistent reads, watch history. Knows nothing of HTTP or kinds.
//!
//! All objects live in memory; redb holds the same on disk. A write is checked and numbered in memory, queued,
//! committed together with whatever else is queued (one fsync for all), and only then becomes visible to readers,
//! watchers and its own caller. So nothing anybody has seen can be lost.

mod disk;
mod memory;
mod watcher;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, mpsc};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::{mpsc as tokio_mpsc, oneshot};

use disk::{Job, Writer};
use memory::Memory;
pub use memory::{Entry, Event, EventKind, Listing, Owned};
pub use watcher::{Watcher, WatcherClosed};

/// A resourceVersion: one number line for the whole store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Where objects of one resource live: `group/plural`, the core group being empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource(Arc<str>);

impl Resource {
    pub fn new(group: &str, plural: &str) -> Self {
        Self(format!("{group}/{plural}").into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn group(&self) -> &str {
        self.0.split_once('/').map_or("", |(group, _)| group)
    }

    pub fn plural(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, plural)| plural)
    }
}

/// One object's place: its resource and `namespace/name` (or just `name`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub resource: Resource,
    pub path: Arc<str>,
}

impl Key {
    pub fn new(resource: &Resource, namespace: Option<&str>, name: &str) -> Self {
        let path = match namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        };
        Self { resource: resource.clone(), path: path.into() }
    }

    pub fn namespace(&self) -> Option<&str> {
        self.path.split_once('/').map(|(namespace, _)| namespace)
    }

    pub fn name(&self) -> &str {
        self.path.split_once('/').map_or(&self.path, |(_, name)| name)
    }
}

/// What a writer believes is stored before its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Absent,
    At(Revision),
}

/// A write. A deletion carries the object's last state, which watchers see.
#[derive(Debug)]
pub enum Change {
    Put(Value),
    Delete(Value),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} already exists")]
    Exists(String),
    #[error("{0} is not as expected: it has changed or is gone")]
    Conflict(String),
    #[error("resource version {asked} is too old: the oldest known is {oldest}")]
    Expired { asked: Revision, oldest: Revision },
    #[error("resource version {asked} is in the future: the latest is {latest}")]
    Future { asked: Revision, latest: Revision },
    #[error("cannot write to the store: {0}")]
    Disk(String),
    #[error("cannot open the store at {path}: {reason}")]
    Open { path: String, reason: String },
}

const SETTLE_POLL: Duration = Duration::from_millis(50);

/// How many past events each resource keeps for watchers that resume.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLength(pub usize);

/// Handle to the store; clones share it.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

struct Shared {
    memory: Arc<RwLock<Memory>>,
    pending: Arc<Mutex<Pending>>,
    /// Sent to under the lock of `pending`, so that the queue is in the order of revisions.
    queue: mpsc::Sender<Job>,
}

/// Writes that are numbered but not yet on disk. Later writers must build on these.
struct Pending {
    last: Revision,
    overlay: HashMap<Key, Overlay>,
}

struct Overlay {
    revision: Revision,
    value: Option<Arc<Value>>,
}

/// The state a write should build on, whether or not it is on disk yet.
#[derive(Clone, Debug)]
pub struct Latest {
    pub revision: Revision,
    pub value: Arc<Value>,
}

impl Store {
    /// Opens or creates the store in `dir`. Every published event is also sent to `feed`, in order.
    pub fn open(
        dir: &Path,
        history: HistoryLength,
        feed: tokio_mpsc::UnboundedSender<Arc<Event>>,
    ) -> Result<Self, Error> {
        let (database, memory) = disk::open(dir, history)?;
        let (queue, jobs) = mpsc::channel();
        let last = memory.revision;
        let memory = Arc::new(RwLock::new(memory));
        let pending = Arc::new(Mutex::new(Pending { last, overlay: HashMap::new() }));
        let writer =
            Writer { database, memory: Arc::clone(&memory), pending: Arc::clone(&pending), jobs, feed };
        std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())
            .map_err(|e| Error::Open { path: dir.display().to_string(), reason: e.to_string() })?;
        Ok(Self { shared: Arc::new(Shared { memory, pending, queue }) })
    }

    /// The newest revision readers can see.
    pub fn revision(&self) -> Revision {
        self.read().revision
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.read().get(key)
    }

    /// What the next write to `key` must build on.
    pub fn latest(&self, key: &Key) -> Option<Latest> {
        let pending = lock(&self.shared.pending);
        if let Some(overlay) = pending.overlay.get(key) {
            return overlay.value.clone().map(|value| Latest { revision: overlay.revision, value });
        }
        let entry = self.read().get(key)?;
        Some(Latest { revision: entry.revision, value: Arc::clone(&entry.value) })
    }

    /// All objects of a resource, or of one namespace of it, as of now.
    pub fn list(&self, resource: &Resource, namespace: Option<&str>) -> Listing {
        self.read().list(resource, namespace)
    }

    /// The same as of an earlier revision, reconstructed from history.
    pub fn list_at(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        revision: Revision,
    ) -> Result<Listing, Error> {
        self.read().list_at(resource, namespace, revision)
    }

    /// Objects whose ownerReferences name this uid.
    pub fn dependents(&self, uid: &str) -> Vec<Key> {
        self.read().dependents(uid)
    }

    /// Where the object with this uid lives, if it does.
    pub fn find_uid(&self, uid: &str) -> Option<Key> {
        self.read().find_uid(uid)
    }

    /// Resources that hold at least one object.
    pub fn resources(&self) -> Vec<Resource> {
        self.read().resources()
    }

    /// The revision of the last event of a resource: changes whenever any of its objects does.
    pub fn resource_revision(&self, resource: &Resource) -> Revision {
        self.read().resource_revision(resource)
    }

    /// Follows a resource from just after `after`.
    pub fn watch(&self, resource: &Resource, after: Revision) -> Result<Watcher, Error> {
        let mut memory = self.shared.memory.write().unwrap_or_else(PoisonError::into_inner);
        let changed = memory.subscribe(resource, after)?;
        drop(memory);
        Ok(Watcher::new(Arc::clone(&self.shared.memory), resource.clone(), after, changed))
    }

    /// Forgets watch history up to `revision`, as compaction does.
    pub fn compact(&self, revision: Revision) {
        self.shared.memory.write().unwrap_or_else(PoisonError::into_inner).compact(revision);
    }

    /// Writes and waits until the write is on disk and visible.
    pub async fn write(&self, key: Key, expected: Expected, change: Change) -> Result<Arc<Entry>, Error> {
        let receive = self.enqueue(key, expected, change)?;
        receive.await.map_err(|_| Error::Disk("the writer has stopped".into()))?
    }

    /// Waits until what [`Store::latest`] showed is on disk, or has failed to get there.
    pub async fn settle(&self, key: &Key, revision: Revision) {
        let mut changed = {
            let mut memory = self.shared.memory.write().unwrap_or_else(PoisonError::into_inner);
            memory.changes_of(&key.resource)
        };
        while self.is_pending(key, revision) {
            // A failed commit announces nothing, so look again now and then.
            let _ = tokio::time::timeout(SETTLE_POLL, changed.changed()).await;
        }
    }

    fn is_pending(&self, key: &Key, revision: Revision) -> bool {
        lock(&self.shared.pending).overlay.get(key).is_some_and(|overlay| overlay.revision >= revision)
    }

    fn enqueue(
        &self,
        key: Key,
        expected: Expected,
        change: Change,
    ) -> Result<oneshot::Receiver<Result<Arc<Entry>, Error>>, Error> {
        let mut pending = lock(&self.shared.pending);
        let current = match pending.overlay.get(&key) {
            Some(overlay) => overlay.value.as_ref().map(|_| overlay.revision),
            None => self.read().get(&key).map(|entry| entry.revision),
        };
        match (expected, current) {
            (Expected::Absent, Some(_)) => return Err(Error::Exists(key.path.to_string())),
            (Expected::At(at), Some(now)) if at == now => {}
            (Expected::At(_), _) => return Err(Error::Conflict(key.path.to_string())),
            (Expected::Absent, None) => {}
        }
        let revision = Revision(pending.last.0 + 1);
        pending.last = revision;
        let (kind, mut value) = match (change, current) {
            (Change::Put(value), None) => (EventKind::Added, value),
            (Change::Put(value), Some(_)) => (EventKind::Modified, value),
            (Change::Delete(value), _) => (EventKind::Deleted, value),
        };
        set_revision(&mut value, revision);
        let value = Arc::new(value);
        let kept = (kind != EventKind::Deleted).then(|| Arc::clone(&value));
        pending.overlay.insert(key.clone(), Overlay { revision, value: kept });
        let (done, receive) = oneshot::channel();
        let job = Job { key, revision, kind, value, done };
        self.shared.queue.send(job).map_err(|_| Error::Disk("the writer has stopped".into()))?;
        Ok(receive)
    }

    fn read(&self) -> RwLockReadGuard<'_, Memory> {
        self.shared.memory.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn set_revision(value: &mut Value, revision: Revision) {
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), Value::String(revision.to_string()));
    }
}

fn serialise(value: &Value) -> Bytes {
    serde_json::to_vec(value).map(Bytes::from).unwrap_or_default()
}

#[cfg(test)]
mod tests;
