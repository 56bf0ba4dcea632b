//! The recent flows of a node and who listens to the coming ones. Bounded: what does not fit is counted as lost.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast::{self, error::RecvError};

use crate::filter::Filter;
use crate::flows::Flow;

/// How far a listener may fall behind before it misses flows.
const BEHIND: usize = 4096;

pub struct FlowRing {
    capacity: usize,
    recent: Mutex<VecDeque<Arc<Flow>>>,
    lost: AtomicU64,
    listeners: broadcast::Sender<Item>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    Flow(Arc<Flow>),
    /// So many flows happened and are not shown: the kernel's ring was full, or this listener too slow.
    Lost(u64),
}

pub struct FlowStream(broadcast::Receiver<Item>);

impl FlowRing {
    pub fn new(capacity: usize) -> Self {
        let (listeners, _) = broadcast::channel(BEHIND);
        Self { capacity, recent: Mutex::default(), lost: AtomicU64::new(0), listeners }
    }

    pub fn push(&self, flow: Flow) {
        let flow = Arc::new(flow);
        let mut recent = lock(&self.recent);
        while recent.len() >= self.capacity.max(1) {
            recent.pop_front();
        }
        recent.push_back(flow.clone());
        // Under the lock, so that nobody sees flows in another order than they are kept in.
        let _ = self.listeners.send(Item::Flow(flow));
    }

    /// Events that were lost before they became flows.
    pub fn lost(&self, count: u64) {
        self.lost.fetch_add(count, Ordering::Relaxed);
        let _ = self.listeners.send(Item::Lost(count));
    }

    pub fn lost_total(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The last `count` kept flows that match, oldest first.
    pub fn recent(&self, filter: &Filter, count: usize) -> Vec<Arc<Flow>> {
        let recent = lock(&self.recent);
        let mut found: Vec<_> =
            recent.iter().rev().filter(|flow| filter.matches(flow)).take(count).cloned().collect();
        found.reverse();
        found
    }

    pub fn subscribe(&self) -> FlowStream {
        FlowStream(self.listeners.subscribe())
    }
}

impl FlowStream {
    /// `None` when the ring is gone.
    pub async fn next(&mut self) -> Option<Item> {
        match self.0.recv().await {
            Ok(item) => Some(item),
            Err(RecvError::Lagged(count)) => Some(Item::Lost(count)),
            Err(RecvError::Closed) => None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
