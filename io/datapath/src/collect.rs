//! Flows: listing them, and removing the ones whose time is over. How long a flow lives is core/abi's to say.

use nix::time::{ClockId, clock_gettime};
use weft_abi::{Flow, FlowKey};

use crate::datapath::Datapath;
use crate::error::ReadError;

impl Datapath {
    pub fn flows(&self) -> Result<Vec<Flow>, ReadError> {
        let entries = self.maps().flows.read_many()?;
        Ok(entries.iter().filter_map(|(key, value)| Flow::new(key, value)).collect())
    }

    /// Removes flows that have been silent longer than they may, and returns them. To be called every few seconds.
    pub fn collect_expired(&self) -> Result<Vec<Flow>, ReadError> {
        let now = monotonic_now();
        let mut expired: Vec<(FlowKey, Flow)> = Vec::new();
        for (key, value) in self.maps().flows.read_many()? {
            // A reason of another version: nobody can say what it was, so it is judged again as a new flow.
            let Some(flow) = Flow::new(&key, &value) else { continue };
            if flow.is_expired(now) {
                expired.push((key, flow));
            }
        }
        let mut removed = Vec::new();
        for (key, flow) in expired {
            // It may have come back to life since it was read.
            let still = self.maps().flows.get(&key)?.is_some_and(|value| value.last_seen == flow.last_seen);
            if still && self.maps().flows.remove(&[key], &|_| flow.to_string()).is_ok() {
                removed.push(flow);
            }
        }
        Ok(removed)
    }
}

/// The clock of `bpf_ktime_get_ns`.
fn monotonic_now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
