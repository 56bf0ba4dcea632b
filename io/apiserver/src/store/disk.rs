//! The redb file and the one thread that writes it. Many callers' writes share one commit.

use std::collections::BTreeSet;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use serde_json::Value;
use tokio::sync::{mpsc as tokio_mpsc, oneshot};

use super::memory::{Entry, Event, EventKind, Memory};
use super::{Error, HistoryLength, Key, Pending, Resource, Revision, lock};

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const LAST_REVISION: &str = "revision";
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;
const FILE: &str = "objects.redb";
/// An upper bound for one commit, so that a flood cannot delay its first writer without end.
const MAX_BATCH: usize = 1024;

/// A numbered write on its way to disk.
pub(super) struct Job {
    pub(super) key: Key,
    pub(super) revision: Revision,
    pub(super) kind: EventKind,
    pub(super) value: Arc<Value>,
    pub(super) done: oneshot::Sender<Result<Arc<Entry>, Error>>,
}

pub(super) fn open(dir: &Path, history: HistoryLength) -> Result<(Database, Memory), Error> {
    let path = dir.join(FILE);
    let failed = |reason: String| Error::Open { path: path.display().to_string(), reason };
    // Secrets are in there.
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| failed(e.to_string()))?;
    let database = Database::create(&path).map_err(|e| failed(e.to_string()))?;
    let memory = load(&database, history).map_err(failed)?;
    Ok((database, memory))
}

fn load(database: &Database, history: HistoryLength) -> Result<Memory, String> {
    let read = database.begin_read().map_err(|e| e.to_string())?;
    let objects = match read.open_table(OBJECTS) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(Memory::new(Revision::default(), history)),
        Err(e) => return Err(e.to_string()),
    };
    let meta = read.open_table(META).map_err(|e| e.to_string())?;
    let number = |name: &str| -> Result<u64, String> {
        Ok(meta.get(name).map_err(|e| e.to_string())?.map(|found| found.value()).unwrap_or_default())
    };
    let format = number(FORMAT)?;
    if format != FORMAT_VERSION {
        return Err(format!("its format is {format}, this program reads {FORMAT_VERSION}"));
    }
    let mut memory = Memory::new(Revision(number(LAST_REVISION)?), history);
    for row in objects.iter().map_err(|e| e.to_string())? {
        let (name, bytes) = row.map_err(|e| e.to_string())?;
        let (key, entry) = decode(name.value(), bytes.value())?;
        memory.load(key, entry);
    }
    Ok(memory)
}

fn decode(name: &str, bytes: &[u8]) -> Result<(Key, Entry), String> {
    let mut parts = name.splitn(3, '/');
    let (Some(group), Some(plural), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("the key {name:?} is not group/resource/path"));
    };
    let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("object {name:?}: {e}"))?;
    let revision = value
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("object {name:?} has no metadata.resourceVersion"))?;
    let key = Key { resource: Resource::new(group, plural), path: path.into() };
    Ok((key, Entry::new(Revision(revision), Arc::new(value))))
}

/// Owns the database; ends when every handle to the store is gone.
pub(super) struct Writer {
    pub(super) database: Database,
    pub(super) memory: Arc<RwLock<Memory>>,
    pub(super) pending: Arc<Mutex<Pending>>,
    pub(super) jobs: mpsc::Receiver<Job>,
    pub(super) feed: tokio_mpsc::UnboundedSender<Arc<Event>>,
}

type Prepared = (Job, Arc<Entry>);

impl Writer {
    pub(super) fn run(self) {
        while let Ok(first) = self.jobs.recv() {
            let batch: Vec<Prepared> =
                std::iter::once(first).chain(self.jobs.try_iter().take(MAX_BATCH - 1)).map(prepare).collect();
            match self.commit(&batch) {
                Ok(()) => self.publish(batch),
                Err(reason) => self.fail(batch, &reason),
            }
        }
    }

    fn commit(&self, batch: &[Prepared]) -> Result<(), String> {
        let write = self.database.begin_write().map_err(|e| e.to_string())?;
        {
            let mut objects = write.open_table(OBJECTS).map_err(|e| e.to_string())?;
            let mut meta = write.open_table(META).map_err(|e| e.to_string())?;
            for (job, entry) in batch {
                let name = format!("{}/{}", job.key.resource.as_str(), job.key.path);
                match job.kind {
                    EventKind::Deleted => objects.remove(name.as_str()).map_err(|e| e.to_string())?,
                    EventKind::Added | EventKind::Modified => {
                        objects.insert(name.as_str(), &entry.json[..]).map_err(|e| e.to_string())?
                    }
                };
            }
            if let Some((job, _)) = batch.last() {
                meta.insert(LAST_REVISION, job.revision.0).map_err(|e| e.to_string())?;
                meta.insert(FORMAT, FORMAT_VERSION).map_err(|e| e.to_string())?;
            }
        }
        write.commit().map_err(|e| e.to_string())
    }

    fn publish(&self, batch: Vec<Prepared>) {
        let mut touched = BTreeSet::new();
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        for (job, entry) in &batch {
            let event = memory.apply(job.kind, job.key.clone(), Arc::clone(entry));
            touched.insert(job.key.resource.clone());
            // Nobody listening to the feed is no reason to stop: it is only there for in-process controllers.
            let _ = self.feed.send(event);
        }
        drop(memory);
        let mut pending = lock(&self.pending);
        for (job, _) in &batch {
            if pending.overlay.get(&job.key).is_some_and(|overlay| overlay.revision == job.revision) {
                pending.overlay.remove(&job.key);
            }
        }
        drop(pending);
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        for resource in &touched {
            memory.announce(resource);
        }
        drop(memory);
        for (job, entry) in batch {
            // The caller may have gone away; its write stands.
            let _ = job.done.send(Ok(entry));
        }
    }

    /// Fails the batch and all that is queued behind it, since that may build on it.
    fn fail(&self, batch: Vec<Prepared>, reason: &str) {
        tracing::error!(reason, "cannot commit to the store");
        let mut pending = lock(&self.pending);
        let queued = self.jobs.try_iter().collect::<Vec<_>>();
        pending.overlay.clear();
        drop(pending);
        for job in batch.into_iter().map(|(job, _)| job).chain(queued) {
            let _ = job.done.send(Err(Error::Disk(reason.to_owned())));
        }
    }
}

fn prepare(job: Job) -> Prepared {
    let entry = Arc::new(Entry::new(job.revision, Arc::clone(&job.value)));
    (job, entry)
}
