//! One reader's position in a resource's history.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::memory::{Event, Memory};
use super::{Error, Resource, Revision};

const BATCH: usize = 256;

/// Follows one resource. Holds no events itself: it reads shared history from its position, so a slow reader
/// costs nothing and one that falls out of the window learns it.
pub struct Watcher {
    memory: Arc<RwLock<Memory>>,
    resource: Resource,
    position: Revision,
    changed: watch::Receiver<Revision>,
}

/// The store is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("the store has closed")]
pub struct WatcherClosed;

impl Watcher {
    pub(super) fn new(
        memory: Arc<RwLock<Memory>>,
        resource: Resource,
        position: Revision,
        mut changed: watch::Receiver<Revision>,
    ) -> Self {
        changed.mark_changed();
        Self { memory, resource, position, changed }
    }

    /// Everything up to here has been handed out.
    pub fn position(&self) -> Revision {
        self.position
    }

    /// Events since the last call, possibly none. `Expired` when history no longer reaches back to the position.
    pub fn take(&mut self) -> Result<Vec<Arc<Event>>, Error> {
        let memory = self.memory.read().unwrap_or_else(PoisonError::into_inner);
        let (events, complete) = memory.events_after(&self.resource, self.position, BATCH)?;
        self.position = complete.max(self.position);
        Ok(events)
    }

    /// Waits until there may be something to take. Safe to drop half-way.
    pub async fn changed(&mut self) -> Result<(), WatcherClosed> {
        self.changed.changed().await.map_err(|_| WatcherClosed)
    }
}
