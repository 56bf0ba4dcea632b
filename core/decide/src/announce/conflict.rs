//! Another machine has an address that this node holds: defending it, and finding out when that is over. Pure.

use std::time::{Duration, Instant};

use super::Times;

/// What a conflict wants done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    Wait,
    /// Ask whether the other still is there.
    Ask,
    /// It is: say so once more.
    Defend,
    Over,
}

/// A conflict lasts until nobody answers any more; it is looked at ever more seldom, and what is said of it stays said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    next: Instant,
    wait: Duration,
    /// Since the last look the other was heard.
    heard: bool,
    asked: u32,
}

impl Conflict {
    /// After the first contradiction, which was answered.
    pub(super) fn begin(now: Instant, times: &Times) -> Self {
        Self { next: now + times.defence, wait: times.defence, heard: false, asked: 0 }
    }

    /// One that was said before: is it still so?
    pub(super) fn resume(now: Instant, times: &Times) -> Self {
        Self { next: now, wait: times.defence, heard: false, asked: 0 }
    }

    pub(super) fn heard(&mut self) {
        self.heard = true;
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    pub(super) fn step(&mut self, now: Instant, times: &Times) -> Look {
        if now < self.next {
            return Look::Wait;
        }
        if std::mem::take(&mut self.heard) {
            self.wait = (self.wait * 2).min(times.longest);
            self.next = now + self.wait;
            self.asked = 0;
            return Look::Defend;
        }
        if self.asked < times.probes {
            self.asked += 1;
            self.next = now + times.probe_gap;
            return Look::Ask;
        }
        Look::Over
    }
}
