//! Events and counters from the programs. Giving them names lives in io/observe.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libbpf_rs::{RingBuffer, RingBufferBuilder};
use weft_abi::{Count, Counter, Event};
use weft_model::Reason;

use crate::datapath::Datapath;
use crate::error::{ReadError, io_error};

/// How long a reader sleeps when there is nothing: programs do not wake it.
const NAP: Duration = Duration::from_millis(20);
const TABLE: &str = "events";

/// Packets and bytes by what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub reasons: BTreeMap<Reason, Count>,
    /// Not told because the reader was too slow.
    pub events_lost: u64,
    /// Denials not told because there were too many.
    pub events_suppressed: u64,
}

/// The only reader: what it has read, no other reader sees.
pub struct EventReader {
    ring: RingBuffer<'static>,
    read: Arc<Mutex<Vec<Event>>>,
}

impl EventReader {
    /// Waits until there are events or `timeout` is over.
    pub fn poll(&self, timeout: Duration) -> Result<Vec<Event>, ReadError> {
        let end = Instant::now() + timeout;
        loop {
            self.ring
                .consume()
                .map_err(|error| ReadError::Table { table: TABLE, source: io_error(error) })?;
            let events =
                std::mem::take(&mut *self.read.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
            let left = end.saturating_duration_since(Instant::now());
            if !events.is_empty() || left.is_zero() {
                return Ok(events);
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}

impl Datapath {
    pub fn events(&self) -> Result<EventReader, ReadError> {
        let failed = |error| ReadError::Table { table: TABLE, source: io_error(error) };
        let map = self
            .programs()
            .map(TABLE)
            .map_err(|error| ReadError::Table { table: TABLE, source: std::io::Error::other(error) })?;
        let read = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&read);
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&map, move |bytes| {
                if let Some(event) = Event::from_bytes(bytes) {
                    sink.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(event);
                }
                0
            })
            .map_err(failed)?;
        Ok(EventReader { ring: builder.build().map_err(failed)?, read })
    }

    pub fn counters(&self) -> Result<Counters, ReadError> {
        let total = |slot: u32| self.maps().counters.sum(&slot, sum);
        let mut counters = Counters {
            events_lost: total(Counter::EVENTS_LOST)?.packets,
            events_suppressed: total(Counter::EVENTS_SUPPRESSED)?.packets,
            ..Default::default()
        };
        for reason in Reason::ALL {
            let count = total(u32::from(*reason as u8))?;
            if count.packets > 0 {
                counters.reasons.insert(*reason, count);
            }
        }
        Ok(counters)
    }
}

fn sum(one: Count, other: Count) -> Count {
    Count { packets: one.packets + other.packets, bytes: one.bytes + other.bytes }
}
