//! Whether a node may go on answering for addresses while its heartbeat does not get through: it asks on the link for
//! the nodes that might take them. Who takes what is decided in `announce`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use weft_model::Addr;

use super::Times;

/// What a node knows about how it looks to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trust {
    /// Its heartbeat gets through, or nobody waits for one.
    Sound,
    /// Its heartbeat is late; machines on the link hear it.
    Doubtful,
    /// Its heartbeat is late and nobody on the link answers: others can neither hear it answer nor see it live.
    CutOff,
}

/// What is to be asked of the link now.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Round {
    pub peers: Vec<Addr>,
    /// The node's own addresses too: whoever has taken one answers.
    pub own: bool,
}

#[derive(Default)]
pub(super) struct Standing {
    /// Other nodes on the link, and whether each answered when it was last asked.
    peers: BTreeMap<Addr, Answer>,
    /// When the last heartbeat that got through was sent; before the first, since when one is due.
    fresh: Option<Instant>,
    doubt: Option<Doubt>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Awaited,
    Given,
    Missing,
}

struct Doubt {
    next: Instant,
    rounds: u32,
    /// Rounds in a row after which nobody was heard.
    silent: u32,
    heard: bool,
    /// Rounds that ask for the own addresses, and when that begins anew.
    own: u32,
    own_again: Instant,
    overdue: bool,
}

impl Standing {
    pub fn set_peers(&mut self, peers: impl IntoIterator<Item = Addr>) {
        let known = std::mem::take(&mut self.peers);
        let answer = |peer| known.get(&peer).copied().unwrap_or(Answer::Given);
        self.peers = peers.into_iter().map(|peer| (peer, answer(peer))).collect();
    }

    /// A heartbeat that was sent then got through. True if it came so late that others may have counted this node as
    /// silent, and that was not known yet.
    pub fn beaten(&mut self, sent: Instant, now: Instant, times: &Times) -> bool {
        let known = self.doubt.as_ref().is_some_and(|doubt| doubt.overdue);
        let late = !known && self.fresh.is_some_and(|fresh| sent >= fresh + times.expiry);
        self.fresh = self.fresh.max(Some(sent));
        if self.fresh.is_some_and(|fresh| now < fresh + times.doubt()) {
            self.doubt = None;
        }
        late
    }

    /// A machine on the link was heard.
    pub fn heard_any(&mut self) {
        if let Some(doubt) = &mut self.doubt {
            doubt.heard = true;
        }
    }

    /// A peer that is heard again may have been taking addresses while it was not.
    pub fn heard(&mut self, from: Addr, now: Instant, times: &Times) {
        let Some(answer) = self.peers.get_mut(&from) else { return };
        let back = std::mem::replace(answer, Answer::Given) == Answer::Missing;
        if let Some(doubt) = self.doubt.as_mut().filter(|_| back) {
            (doubt.own, doubt.next) = (times.probes, now);
        }
    }

    pub fn trust(&self, times: &Times) -> Trust {
        match &self.doubt {
            None => Trust::Sound,
            Some(doubt) if doubt.silent >= times.probes && !doubt.heard && !self.peers.is_empty() => {
                Trust::CutOff
            }
            Some(_) => Trust::Doubtful,
        }
    }

    /// Others may count this node as silent; true once for each doubt.
    pub fn became_overdue(&mut self, now: Instant, times: &Times) -> bool {
        let Some(fresh) = self.fresh else { return false };
        match &mut self.doubt {
            Some(doubt) if now >= fresh + times.expiry => !std::mem::replace(&mut doubt.overdue, true),
            _ => false,
        }
    }

    /// `beats`: whether others wait for its heartbeat at all.
    pub fn step(&mut self, beats: bool, now: Instant, times: &Times) -> Option<Round> {
        if !beats {
            (self.fresh, self.doubt) = (None, None);
            return None;
        }
        let fresh = *self.fresh.get_or_insert(now);
        if now < fresh + times.doubt() {
            return None;
        }
        let doubt = self.doubt.get_or_insert_with(|| Doubt {
            next: now,
            rounds: 0,
            silent: 0,
            heard: false,
            own: times.probes,
            own_again: now + times.recheck,
            overdue: false,
        });
        if now < doubt.next {
            return None;
        }
        let first = doubt.rounds == 0;
        for answer in self.peers.values_mut() {
            let awaited = if first { Answer::Given } else { Answer::Missing };
            *answer = if *answer == Answer::Awaited { awaited } else { *answer };
        }
        if !first {
            doubt.silent = if std::mem::take(&mut doubt.heard) { 0 } else { doubt.silent.saturating_add(1) };
        }
        doubt.rounds = doubt.rounds.saturating_add(1);
        doubt.next = now + doubt.pause(times);
        if doubt.own == 0 && now >= doubt.own_again {
            doubt.own = times.probes;
            doubt.own_again = now + times.recheck;
        }
        let own = doubt.own > 0;
        doubt.own = doubt.own.saturating_sub(1);
        for answer in self.peers.values_mut().filter(|answer| **answer == Answer::Given) {
            *answer = Answer::Awaited;
        }
        Some(Round { peers: self.peers.keys().copied().collect(), own })
    }

    /// When `step` has something to do although nothing came in.
    pub fn next(&self, times: &Times) -> Option<Instant> {
        let fresh = self.fresh?;
        let Some(doubt) = &self.doubt else { return Some(fresh + times.doubt()) };
        let overdue = (!doubt.overdue).then(|| fresh + times.expiry);
        Some(overdue.map_or(doubt.next, |overdue| overdue.min(doubt.next)))
    }
}

impl Doubt {
    fn pause(&self, times: &Times) -> Duration {
        let unsure = self.rounds <= times.probes || (1..=times.probes).contains(&self.silent);
        if unsure || self.own > 1 { times.probe_gap } else { times.heartbeat }
    }
}
