//! One address: what is known of it and this node's part in it, and the changes that concern nothing else.

use std::time::{Duration, Instant};

use weft_model::{Addr, NodeName};

use super::conflict::Conflict;
use super::{Api, Claim, Effect, LinkAddr, Obstacle, Times};

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Phase {
    #[default]
    Idle,
    /// It may be this node's turn then.
    Waiting {
        until: Instant,
    },
    Probing {
        sent: u32,
        next: Instant,
    },
    Claiming,
    /// Held, and its Lease has to be written anew.
    Retaking,
    Holding {
        since: Instant,
        announced: usize,
        conflict: Option<Conflict>,
    },
    /// Withdrawn: this node is cut off, and who does not hear it may have taken the address.
    Aside,
    /// Machines are heard again, the Leases are not: the address is held again if nobody answers for it.
    Returning {
        sent: u32,
        next: Instant,
    },
    /// Somebody answers for the address.
    Blocked {
        obstacle: Obstacle,
        until: Instant,
    },
}

#[derive(Default)]
pub(super) struct Entry {
    /// Candidates in the order of preference; `None`: nobody is to announce it.
    pub wanted: Option<Vec<NodeName>>,
    pub claim: Option<Claim>,
    /// Since when the Lease has this holder, or none, as seen here.
    pub since: Option<Instant>,
    pub phase: Phase,
    /// How long a stranger's address was last left alone.
    pub left_alone: Option<Duration>,
    pub timer: Option<Instant>,
}

/// The writer of Leases tries until it is done, so the Lease counts as written.
pub(super) fn give_up(addr: Addr, entry: &mut Entry, effects: &mut Vec<Effect>) {
    entry.phase = Phase::Idle;
    let Some(claim) = &mut entry.claim else { return };
    let version = claim.version.clone();
    if entry.wanted.is_some() {
        claim.holder = None;
        effects.push(Effect::HandOver { addr, version });
    } else {
        entry.claim = None;
        effects.push(Effect::Delete { addr, version });
    }
}

/// The Lease says of its holder what is so no more.
pub(super) fn take_back(addr: Addr, entry: &mut Entry) -> Option<Effect> {
    let seen = entry.claim.clone().filter(|claim| claim.obstacle.is_some())?;
    if let Some(claim) = &mut entry.claim {
        claim.obstacle = None;
    }
    Some(Effect::Report { addr, seen: Some(seen), obstacle: None })
}

/// Another machine has what this one holds.
pub(super) fn contradicted(
    addr: Addr,
    entry: &mut Entry,
    from: LinkAddr,
    (me, api): (&NodeName, Api),
    now: Instant,
    times: &Times,
) -> Vec<Effect> {
    let claim = entry.claim.as_ref();
    let ours = claim.is_some_and(|claim| claim.holder.as_ref() == Some(me));
    let said = claim.and_then(|claim| claim.obstacle.clone());
    // Without the Leases it most likely is the next holder, unless it was a stranger before.
    let stranger = said == Some(Obstacle::Contested(from));
    if !ours || (api == Api::Away && !stranger) {
        entry.block(Obstacle::Contested(from), now, times);
        return Vec::new();
    }
    let Phase::Holding { conflict, .. } = &mut entry.phase else { return Vec::new() };
    match conflict {
        None => {
            *conflict = Some(Conflict::begin(now, times));
            vec![Effect::Announce(addr)]
        }
        Some(conflict) => {
            conflict.heard();
            // Who else joins in changes nothing about what there is to say.
            match said {
                Some(Obstacle::Contested(_)) => Vec::new(),
                _ => report(addr, entry, Some(Obstacle::Contested(from))),
            }
        }
    }
}

/// When an entry of this phase wants to be looked at.
pub(super) fn wakes(phase: &Phase, times: &Times) -> Option<Instant> {
    match phase {
        Phase::Idle | Phase::Claiming | Phase::Retaking | Phase::Aside => None,
        Phase::Waiting { until } | Phase::Blocked { until, .. } => Some(*until),
        Phase::Probing { next, .. } | Phase::Returning { next, .. } => Some(*next),
        Phase::Holding { since, announced, conflict } => {
            let announcement = times.announcements.get(*announced).map(|after| *since + *after);
            let look = conflict.as_ref().map(Conflict::next);
            announcement.into_iter().chain(look).min()
        }
    }
}

impl Entry {
    /// A stranger is left alone ever longer; a holder's machine may go at any moment.
    pub fn block(&mut self, obstacle: Obstacle, now: Instant, times: &Times) {
        let wait = match (&obstacle, self.left_alone) {
            (Obstacle::InUse(_), Some(before)) => (before * 2).min(times.longest),
            _ => times.recheck,
        };
        self.left_alone = Some(wait).filter(|_| matches!(obstacle, Obstacle::InUse(_)));
        self.phase = Phase::Blocked { obstacle, until: now + wait };
    }
}

/// Said once: what the Lease says already is not written again.
pub(super) fn report(addr: Addr, entry: &Entry, obstacle: Option<Obstacle>) -> Vec<Effect> {
    if entry.claim.as_ref().and_then(|claim| claim.obstacle.as_ref()) == obstacle.as_ref() {
        return Vec::new();
    }
    vec![Effect::Report { addr, seen: entry.claim.clone(), obstacle }]
}
