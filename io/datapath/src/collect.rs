//! Flows and translated connections: listing them, and removing the ones whose time is over. How long one lives is core/abi's
//! to say.

use std::collections::HashMap;

use nix::time::{ClockId, clock_gettime};
use weft_abi::{AffinityKey, Flow, FlowKey, NatKey, NatValue, TcpProgress, lifetime};
use weft_model::Protocol;

use crate::datapath::Datapath;
use crate::error::ReadError;

/// The longest session affinity that the API accepts, in nanoseconds.
const LONGEST_AFFINITY: u64 = 86_400 * 1_000_000_000;

impl Datapath {
    pub fn flows(&self) -> Result<Vec<Flow>, ReadError> {
        let entries = self.maps().flows.read_many()?;
        Ok(entries.iter().filter_map(|(key, value)| Flow::new(key, value)).collect())
    }

    /// Removes what has been silent longer than it may, and returns the flows among it. To be called every few seconds.
    pub fn collect_expired(&self) -> Result<Vec<Flow>, ReadError> {
        let now = monotonic_now();
        self.collect_connections(now)?;
        self.collect_affinities(now)?;
        self.collect_flows(now)
    }

    /// Translated connections: how many.
    pub fn connections(&self) -> Result<usize, ReadError> {
        Ok(self.maps().nat.read_many()?.len())
    }

    fn collect_connections(&self, now: u64) -> Result<(), ReadError> {
        let nat = &self.maps().nat;
        let entries: HashMap<NatKey, NatValue> = nat.read_many()?.into_iter().collect();
        for (key, entry) in entries.iter().filter(|(key, entry)| is_over(&entries, key, entry, now)) {
            // Either direction may have come back to life since it was read, and the one that is left would then lack this.
            let is_unused = |key: &NatKey| -> Result<bool, ReadError> {
                let last_seen = entries.get(key).map(|value| value.last_seen);
                Ok(nat.get(key)?.is_none_or(|value| Some(value.last_seen) == last_seen))
            };
            if is_unused(key)? && is_unused(&entry.other_key(key.protocol))? {
                // What cannot be removed now is tried again the next time.
                let _ = nat.remove(&[*key], &|_| "translated connection".to_owned());
            }
        }
        Ok(())
    }

    /// Younger ones may be of no use any more, too: then nobody reads them.
    fn collect_affinities(&self, now: u64) -> Result<(), ReadError> {
        let affinities = &self.maps().affinities;
        let old = affinities.read_many()?.into_iter();
        let old: Vec<AffinityKey> = old
            .filter(|(_, value)| now.saturating_sub(value.last_used) > LONGEST_AFFINITY)
            .map(|(key, _)| key)
            .collect();
        let _ = affinities.remove(&old, &|_| "session affinity".to_owned());
        Ok(())
    }

    fn collect_flows(&self, now: u64) -> Result<Vec<Flow>, ReadError> {
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

/// Both directions live and end together, unless a datagram's connection has moved on to another backend meanwhile.
fn is_over(entries: &HashMap<NatKey, NatValue>, key: &NatKey, entry: &NatValue, now: u64) -> bool {
    let other = entries.get(&entry.other_key(key.protocol));
    let other = other.filter(|other| other.other_key(key.protocol) == *key);
    let last_seen = entry.last_seen.max(other.map(|other| other.last_seen).unwrap_or_default());
    let tcp = TcpProgress(entry.tcp | other.map(|other| other.tcp).unwrap_or_default());
    u128::from(now.saturating_sub(last_seen)) > lifetime(Protocol(key.protocol), tcp).as_nanos()
}

/// The clock of `bpf_ktime_get_ns`.
fn monotonic_now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has this clock");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}
