//! Questions as they are answered, row by row, for whoever watches. Nobody watching costs one look at a number.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::ready::Source;
use crate::reply::Transport;
use crate::tally;
use crate::wire;

/// Rows that wait for one watcher; what is more it misses, and is told.
const MOST_ROWS: usize = 4096;
const MOST_WATCHERS: usize = 16;

#[derive(Default)]
pub struct Watchers {
    count: AtomicUsize,
    missed: AtomicU64,
    senders: Mutex<Vec<mpsc::Sender<Bytes>>>,
}

/// One answered question.
pub struct Seen<'a> {
    pub client: IpAddr,
    pub transport: Transport,
    pub message: &'a [u8],
    pub code: u16,
    pub source: Source,
    pub time: Duration,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    /// Milliseconds since 1970.
    at: u64,
    client: IpAddr,
    transport: &'a str,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    code: String,
    micros: u64,
    source: &'a str,
    /// Rows of this server that no watcher was quick enough for, up to now.
    missed: u64,
}

impl Watchers {
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// `None`: there are enough.
    pub fn watch(&self) -> Option<mpsc::Receiver<Bytes>> {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        senders.retain(|sender| !sender.is_closed());
        if senders.len() >= MOST_WATCHERS {
            return None;
        }
        let (send, receive) = mpsc::channel(MOST_ROWS);
        senders.push(send);
        self.count.store(senders.len(), Ordering::Relaxed);
        Some(receive)
    }

    pub fn saw(&self, seen: &Seen<'_>) {
        if !self.any() {
            return;
        }
        let Some(row) = self.row(seen) else { return };
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        senders.retain(|sender| match sender.try_send(row.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.missed.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Closed(_)) => false,
        });
        self.count.store(senders.len(), Ordering::Relaxed);
    }

    fn row(&self, seen: &Seen<'_>) -> Option<Bytes> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let row = Row {
            at: u64::try_from(since.as_millis()).unwrap_or_default(),
            client: seen.client,
            transport: tally::transport(seen.transport),
            name: wire::name(seen.message).unwrap_or_default(),
            kind: wire::kind(seen.message)
                .map_or_else(String::new, |kind| RecordType::from(kind).to_string()),
            code: ResponseCode::from((seen.code >> 4) as u8, (seen.code & 15) as u8).to_string(),
            micros: u64::try_from(seen.time.as_micros()).unwrap_or(u64::MAX),
            source: tally::source(seen.source),
            missed: self.missed.load(Ordering::Relaxed),
        };
        let mut line = serde_json::to_vec(&row).ok()?;
        line.push(b'\n');
        Some(line.into())
    }
}
