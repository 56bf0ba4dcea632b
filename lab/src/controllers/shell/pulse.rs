//! Whether the API server can be heard: asked all the time, because a server that hangs breaks no watch. What a silence
//! of the nodes means while it cannot is `nodes`' to say.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;

/// Shorter than a node may be silent at the least, so that a server that hangs is noticed before its nodes seem lost.
const PATIENCE: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_millis(300);

/// When the server answered, without a gap that is longer than it may be.
#[derive(Default)]
pub struct Pulse(Mutex<Option<Answered>>);

#[derive(Clone, Copy)]
struct Answered {
    first: Timestamp,
    last: Timestamp,
}

impl Pulse {
    /// Asks for as long as it is polled.
    pub async fn follow(&self, client: Client) {
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a literal request");
            if let Ok(Ok(_)) = tokio::time::timeout(PATIENCE, client.request_text(request)).await {
                self.answered(Timestamp::now());
            }
            tokio::time::sleep(REST).await;
        }
    }

    /// Since when the server has answered every time; `None` if it does not now.
    pub fn since(&self, now: Timestamp) -> Option<Timestamp> {
        self.lock().filter(|answered| is_recent(answered.last, now)).map(|answered| answered.first)
    }

    fn answered(&self, now: Timestamp) {
        let mut answered = self.lock();
        let first = answered.filter(|before| is_recent(before.last, now)).map_or(now, |before| before.first);
        *answered = Some(Answered { first, last: now });
    }

    fn lock(&self) -> MutexGuard<'_, Option<Answered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A clock that was set back proves nothing either.
fn is_recent(last: Timestamp, now: Timestamp) -> bool {
    (last..=last + (PATIENCE + REST)).contains(&now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_ends_what_was_heard_and_the_next_answer_begins_anew() {
        let at = |millis: u64| Timestamp::UNIX_EPOCH + Duration::from_millis(millis);
        let pulse = Pulse::default();
        assert_eq!(pulse.since(at(0)), None);
        for beat in [0, 400, 1600] {
            pulse.answered(at(beat));
        }
        assert_eq!(pulse.since(at(2900)), Some(at(0)));
        assert_eq!(pulse.since(at(2901)), None, "it hangs");
        assert_eq!(pulse.since(at(1599)), None, "the clock was set back");
        pulse.answered(at(9000));
        assert_eq!(pulse.since(at(9100)), Some(at(9000)));
    }
}
