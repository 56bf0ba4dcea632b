//! Which node answers for a load balancer's address: one node's part in it, as a pure state machine. What it knows comes
//! in by methods, `step` says what to do; leases, sockets and the clock are the shell's (docs/design/announcing.md).

mod conflict;
mod entry;
mod standing;
mod terms;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use weft_model::{Addr, NodeName};

use conflict::{Conflict, Look};
pub use entry::Phase;
use entry::{Entry, contradicted, give_up, report, take_back, wakes};
use standing::Standing;
pub use standing::Trust;
pub use terms::{Api, Claim, Effect, LinkAddr, Obstacle, Outcome, Times};

pub struct Announcer {
    me: NodeName,
    times: Times,
    api: Api,
    /// `want` was called: before, nothing held is given up.
    knows_wanted: bool,
    /// Every Lease was seen once: an address without one has none.
    knows_leases: bool,
    hearts: BTreeMap<NodeName, Heart>,
    entries: BTreeMap<Addr, Entry>,
    standing: Standing,
    /// Entries to look at in the next step, and when the others want to be looked at: a step costs what happened.
    dirty: BTreeSet<Addr>,
    timers: BTreeSet<(Instant, Addr)>,
    /// What follows from the entries' phases.
    held: BTreeSet<Addr>,
    live: BTreeSet<Addr>,
    touched: BTreeSet<Addr>,
    looks: u64,
    relist: bool,
}

struct Heart {
    text: String,
    seen: Instant,
}

impl Announcer {
    /// `held`: what this node answered for before; it goes on until a Lease says otherwise.
    pub fn new(me: NodeName, held: BTreeSet<Addr>, times: Times, now: Instant) -> Self {
        let mut announcer = Self {
            me,
            times,
            api: Api::Away,
            knows_wanted: false,
            knows_leases: false,
            hearts: BTreeMap::new(),
            entries: BTreeMap::new(),
            standing: Standing::default(),
            dirty: BTreeSet::new(),
            timers: BTreeSet::new(),
            held: BTreeSet::new(),
            live: BTreeSet::new(),
            touched: BTreeSet::new(),
            looks: 0,
            relist: false,
        };
        let announced = times.announcements.len();
        for addr in held {
            let phase = Phase::Holding { since: now, announced, conflict: None };
            announcer.settle(addr, Entry { phase, ..Entry::default() });
        }
        announcer
    }

    pub fn set_times(&mut self, times: Times) {
        self.times = times;
    }

    /// Addresses of the other nodes on the link: while this node is in doubt it asks for them.
    pub fn set_peers(&mut self, peers: impl IntoIterator<Item = Addr>) {
        self.standing.set_peers(peers);
    }

    /// What this node answers for.
    pub fn held(&self) -> &BTreeSet<Addr> {
        &self.held
    }

    /// Others watch this node's heartbeat while it holds something, or is about to.
    pub fn beats(&self) -> bool {
        !self.live.is_empty()
    }

    pub fn trust(&self) -> Trust {
        self.standing.trust(&self.times)
    }

    pub fn phases(&self) -> impl Iterator<Item = (Addr, &Phase, Option<&Claim>)> {
        self.entries.iter().map(|(addr, entry)| (*addr, &entry.phase, entry.claim.as_ref()))
    }

    pub fn phase(&self, addr: Addr) -> Option<(&Phase, Option<&Claim>)> {
        self.entries.get(&addr).map(|entry| (&entry.phase, entry.claim.as_ref()))
    }

    /// Addresses that were looked at since this was asked last.
    pub fn take_touched(&mut self) -> BTreeSet<Addr> {
        std::mem::take(&mut self.touched)
    }

    /// How often an address was looked at.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    /// Answers on the network are of interest for this address.
    pub fn is_watched(&self, addr: Addr) -> bool {
        let quiet = |phase: &Phase| matches!(phase, Phase::Idle | Phase::Waiting { .. } | Phase::Aside);
        self.entries.get(&addr).is_some_and(|entry| !quiet(&entry.phase))
    }

    /// True once after it became unsure of what the Leases say: they have to be listed anew.
    pub fn take_relist(&mut self) -> bool {
        std::mem::take(&mut self.relist)
    }

    /// Every address to announce, with its candidates in order of preference.
    pub fn want(&mut self, mut wanted: BTreeMap<Addr, Vec<NodeName>>, now: Instant) {
        if !std::mem::replace(&mut self.knows_wanted, true) {
            self.dirty.extend(self.entries.keys());
        }
        for (addr, entry) in &mut self.entries {
            let wanted = wanted.remove(addr);
            if entry.wanted != wanted {
                entry.wanted = wanted;
                self.dirty.insert(*addr);
            }
        }
        for (addr, candidates) in wanted {
            self.entries.insert(addr, Entry { wanted: Some(candidates), ..Entry::default() });
            self.dirty.insert(addr);
        }
        self.mark_unclaimed(now);
    }

    /// Every Lease was seen: addresses without one are nobody's.
    pub fn listed(&mut self, now: Instant) {
        self.knows_leases = true;
        self.mark_unclaimed(now);
    }

    fn mark_unclaimed(&mut self, now: Instant) {
        if !self.knows_leases {
            return;
        }
        for (addr, entry) in self.entries.iter_mut().filter(|(_, entry)| entry.since.is_none()) {
            entry.since = Some(now);
            self.dirty.insert(*addr);
        }
    }

    /// The Lease of an address was seen; `None`: it is gone.
    pub fn claim_seen(&mut self, addr: Addr, claim: Option<Claim>, now: Instant) {
        let entry = self.entries.entry(addr).or_default();
        let holder = |claim: &Option<Claim>| claim.as_ref().and_then(|claim| claim.holder.clone());
        if entry.since.is_none() || holder(&entry.claim) != holder(&claim) {
            entry.since = Some(now);
            entry.left_alone = None;
            // Whatever was prepared was prepared against another holder.
            if matches!(entry.phase, Phase::Waiting { .. } | Phase::Probing { .. } | Phase::Blocked { .. }) {
                entry.phase = Phase::Idle;
            }
        }
        entry.claim = claim;
        self.dirty.insert(addr);
    }

    pub fn heartbeat_seen(&mut self, node: &NodeName, text: &str, now: Instant) {
        let expiry = self.times.expiry;
        let heart =
            self.hearts.entry(node.clone()).or_insert_with(|| Heart { text: String::new(), seen: now });
        if heart.text == text {
            return;
        }
        let silent = now.saturating_duration_since(heart.seen) >= expiry;
        *heart = Heart { text: text.to_owned(), seen: now };
        // Otherwise nothing was under way that this could change: timers look at it when they are due.
        if silent {
            let its =
                |entry: &Entry| entry.claim.as_ref().is_some_and(|claim| claim.holder.as_ref() == Some(node));
            let held = self.entries.iter().filter(|(_, entry)| its(entry)).map(|(addr, _)| *addr);
            self.dirty.extend(held);
        }
    }

    pub fn heartbeat_gone(&mut self, node: &NodeName) {
        self.hearts.remove(node);
    }

    /// This node's own heartbeat, sent then, got through.
    pub fn beaten(&mut self, sent: Instant, now: Instant) {
        let before = self.trust();
        if self.standing.beaten(sent, now, &self.times) {
            self.lose_track(now);
        }
        self.trusted_anew(before);
    }

    /// Reachable: every Lease was listed since. What was not heard while the server was away says nothing about anybody.
    pub fn api(&mut self, api: Api, now: Instant) {
        if api == Api::Reachable && self.api == Api::Away {
            self.hearts.values_mut().for_each(|heart| heart.seen = now);
            self.entries.values_mut().for_each(|entry| entry.since = entry.since.map(|_| now));
        }
        if std::mem::replace(&mut self.api, api) != api {
            self.dirty.extend(self.entries.keys());
        }
    }

    pub fn claimed(&mut self, addr: Addr, outcome: Outcome, now: Instant) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        let announced = self.times.announcements.len();
        entry.phase = match (&entry.phase, outcome) {
            (Phase::Claiming, Outcome::Taken) => Phase::Holding { since: now, announced: 0, conflict: None },
            (Phase::Claiming, _) => Phase::Waiting { until: now + self.times.expiry },
            (Phase::Retaking, Outcome::Refused) => Phase::Idle,
            (Phase::Retaking, _) => Phase::Holding { since: now, announced, conflict: None },
            _ => return,
        };
        if outcome == Outcome::Taken {
            entry.left_alone = None;
        }
        self.derive(addr);
        self.dirty.insert(addr);
    }

    /// A machine on the link was heard, whatever it said.
    pub fn heard_any(&mut self) {
        let before = self.trust();
        self.standing.heard_any();
        self.trusted_anew(before);
    }

    /// Another machine says that it has the address.
    pub fn heard(&mut self, addr: Addr, from: LinkAddr, now: Instant) -> Vec<Effect> {
        let before = self.trust();
        self.standing.heard_any();
        self.standing.heard(addr, now, &self.times);
        self.trusted_anew(before);
        let (times, api) = (self.times, self.api);
        let Some(entry) = self.entries.get_mut(&addr) else { return Vec::new() };
        let effects = match &entry.phase {
            Phase::Probing { .. } => {
                let obstacle = match entry.claim.as_ref().and_then(|claim| claim.holder.as_ref()) {
                    Some(_) => Obstacle::HolderAnswers(from),
                    None => Obstacle::InUse(from),
                };
                entry.block(obstacle.clone(), now, &times);
                report(addr, entry, Some(obstacle))
            }
            Phase::Returning { .. } => {
                entry.block(Obstacle::Contested(from), now, &times);
                Vec::new()
            }
            Phase::Holding { .. } => contradicted(addr, entry, from, (&self.me, api), now, &times),
            _ => return Vec::new(),
        };
        self.derive(addr);
        self.dirty.insert(addr);
        effects
    }

    /// What to do now. To be called after everything that came in, and at `next`.
    pub fn step(&mut self, now: Instant) -> Vec<Effect> {
        let mut effects = self.stand(now);
        while let Some((due, addr)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            self.timers.remove(&(due, addr));
            self.dirty.insert(addr);
        }
        for addr in std::mem::take(&mut self.dirty) {
            let Some(mut entry) = self.entries.remove(&addr) else { continue };
            self.looks += 1;
            self.step_one(addr, &mut entry, now, &mut effects);
            self.settle(addr, entry);
        }
        effects
    }

    /// When `step` has something to do although nothing came in.
    pub fn next(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(due, _)| *due);
        let standing = self.standing.next(&self.times).filter(|_| self.beats());
        timer.into_iter().chain(standing).min()
    }

    /// Whether it may go on although its heartbeat does not get through, and whom it asks for that.
    fn stand(&mut self, now: Instant) -> Vec<Effect> {
        let before = self.trust();
        let round = self.standing.step(self.beats(), now, &self.times);
        if self.standing.became_overdue(now, &self.times) {
            self.lose_track(now);
        }
        self.trusted_anew(before);
        let round = round.unwrap_or_default();
        let own = self.held.iter().copied().filter(|_| round.own);
        round.peers.into_iter().chain(own).map(Effect::Probe).collect()
    }

    /// Others may have acted on this node's silence: what the Leases say is to be read anew.
    fn lose_track(&mut self, now: Instant) {
        self.relist = true;
        self.api(Api::Away, now);
    }

    fn trusted_anew(&mut self, before: Trust) {
        if self.trust() != before {
            self.dirty.extend(&self.live);
        }
    }

    /// Puts an entry back, and what follows from it.
    fn settle(&mut self, addr: Addr, entry: Entry) {
        let forgotten = entry.wanted.is_none() && entry.claim.is_none() && entry.phase == Phase::Idle;
        if forgotten {
            if let Some(timer) = entry.timer {
                self.timers.remove(&(timer, addr));
            }
        } else {
            self.entries.insert(addr, entry);
        }
        self.derive(addr);
    }

    fn derive(&mut self, addr: Addr) {
        let put = |set: &mut BTreeSet<Addr>, is: bool| if is { set.insert(addr) } else { set.remove(&addr) };
        let phase = self.entries.get(&addr).map(|entry| &entry.phase);
        let holds = matches!(phase, Some(Phase::Holding { .. } | Phase::Retaking));
        let live = matches!(phase, Some(Phase::Claiming | Phase::Aside | Phase::Returning { .. }));
        put(&mut self.held, holds);
        put(&mut self.live, holds || live);
        self.touched.insert(addr);
        let next = phase.and_then(|phase| wakes(phase, &self.times));
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        if let Some(timer) = std::mem::replace(&mut entry.timer, next) {
            self.timers.remove(&(timer, addr));
        }
        self.timers.extend(next.map(|next| (next, addr)));
    }

    fn step_one(&self, addr: Addr, entry: &mut Entry, now: Instant, effects: &mut Vec<Effect>) {
        let holder = entry.claim.as_ref().and_then(|claim| claim.holder.clone());
        let holds = holder.as_ref() == Some(&self.me);
        if let Phase::Holding { .. } = entry.phase {
            return self.hold(addr, entry, holder, now, effects);
        }
        if matches!(entry.phase, Phase::Claiming | Phase::Retaking) {
            return;
        }
        if matches!(entry.phase, Phase::Aside | Phase::Returning { .. }) && !self.knows(entry) {
            return self.come_back(addr, entry, now, effects);
        }
        if !self.knows_wanted {
            return entry.phase = Phase::Idle;
        }
        if holds {
            return self.resume(addr, entry, now, effects);
        }
        let due = match self.turn(entry, &holder) {
            Some(due) if self.api == Api::Reachable => due,
            _ => return entry.phase = Phase::Idle,
        };
        match entry.phase.clone() {
            Phase::Idle | Phase::Waiting { .. } if now < due => entry.phase = Phase::Waiting { until: due },
            Phase::Waiting { until } if now < until => {}
            Phase::Blocked { .. } if now < due => {
                effects.extend(report(addr, entry, None));
                entry.phase = Phase::Waiting { until: due };
            }
            Phase::Blocked { until, .. } if now < until => {}
            Phase::Probing { next, .. } if now < next => {}
            // The holder was heard of while it was probed for.
            Phase::Probing { .. } if now < due => entry.phase = Phase::Waiting { until: due },
            Phase::Probing { sent, .. } if sent < self.times.probes => {
                effects.push(Effect::Probe(addr));
                entry.phase = Phase::Probing { sent: sent + 1, next: now + self.times.probe_gap };
            }
            Phase::Probing { .. } => {
                effects.push(Effect::Claim { addr, seen: entry.claim.clone(), after: holder });
                entry.phase = Phase::Claiming;
            }
            // Leases are known again, and this node is not the holder.
            Phase::Aside | Phase::Returning { .. } => entry.phase = Phase::Waiting { until: due },
            Phase::Idle | Phase::Waiting { .. } | Phase::Blocked { .. } => {
                effects.push(Effect::Probe(addr));
                entry.phase = Phase::Probing { sent: 1, next: now + self.times.probe_gap };
            }
            Phase::Claiming | Phase::Retaking | Phase::Holding { .. } => {}
        }
    }

    /// Whether it is certain who is to have the address.
    fn knows(&self, entry: &Entry) -> bool {
        self.api == Api::Reachable && entry.since.is_some() && self.knows_wanted
    }

    fn hold(
        &self,
        addr: Addr,
        entry: &mut Entry,
        holder: Option<NodeName>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if self.knows(entry) {
            match (&entry.claim, holder) {
                (_, Some(holder)) if holder != self.me => return entry.phase = Phase::Idle,
                _ if !self.is_candidate(entry) => return give_up(addr, entry, effects),
                // Somebody took the Lease away: it is taken anew, and the address meanwhile held.
                (claim, None) => {
                    effects.push(Effect::Claim { addr, seen: claim.clone(), after: None });
                    return entry.phase = Phase::Retaking;
                }
                _ => {}
            }
        }
        if self.trust() == Trust::CutOff {
            return entry.phase = Phase::Aside;
        }
        let Phase::Holding { since, announced, conflict } = &mut entry.phase else { return };
        let due = self.times.announcements.iter().filter(|after| *since + **after <= now).count();
        if due > *announced {
            effects.push(Effect::Announce(addr));
            *announced = due;
        }
        let reachable = self.api == Api::Reachable;
        let said = entry.claim.as_ref().and_then(|claim| claim.obstacle.as_ref());
        match (conflict.as_mut().map(|conflict| conflict.step(now, &self.times)), said) {
            (Some(Look::Ask), _) => effects.push(Effect::Probe(addr)),
            (Some(Look::Defend), _) => effects.push(Effect::Announce(addr)),
            (Some(Look::Wait), _) => {}
            (Some(Look::Over), _) => {
                *conflict = None;
                effects.extend(take_back(addr, entry).filter(|_| reachable));
            }
            // Said before this agent was started: whether it still is so is asked first.
            (None, Some(Obstacle::Contested(_))) => *conflict = Some(Conflict::resume(now, &self.times)),
            (None, Some(_)) if reachable => effects.extend(take_back(addr, entry)),
            (None, _) => {}
        }
    }

    /// Withdrawn while it was cut off, and the Leases are not to be read yet: without an answer from who may have taken
    /// the address meanwhile nobody has.
    fn come_back(&self, addr: Addr, entry: &mut Entry, now: Instant, effects: &mut Vec<Effect>) {
        let gap = self.times.probe_gap;
        match entry.phase {
            _ if self.trust() == Trust::CutOff => entry.phase = Phase::Aside,
            Phase::Returning { next, .. } if now < next => {}
            Phase::Returning { sent, .. } if sent >= self.times.probes => {
                effects.push(Effect::Announce(addr));
                entry.phase = Phase::Holding { since: now, announced: 1, conflict: None };
            }
            Phase::Returning { sent, .. } => {
                effects.push(Effect::Probe(addr));
                entry.phase = Phase::Returning { sent: sent + 1, next: now + gap };
            }
            _ => {
                effects.push(Effect::Probe(addr));
                entry.phase = Phase::Returning { sent: 1, next: now + gap };
            }
        }
    }

    /// The Lease names this node, which does not hold the address: it started anew, or gave way while it was cut off.
    fn resume(&self, addr: Addr, entry: &mut Entry, now: Instant, effects: &mut Vec<Effect>) {
        if self.api == Api::Away {
            return entry.phase = Phase::Idle;
        }
        if !self.is_candidate(entry) {
            return give_up(addr, entry, effects);
        }
        if self.trust() == Trust::CutOff {
            return entry.phase = Phase::Aside;
        }
        if !matches!(&entry.phase, Phase::Blocked { until, .. } if now < *until) {
            effects.push(Effect::Announce(addr));
            entry.phase = Phase::Holding { since: now, announced: 1, conflict: None };
        }
    }

    fn is_candidate(&self, entry: &Entry) -> bool {
        entry.wanted.as_ref().is_some_and(|candidates| candidates.contains(&self.me))
    }

    /// From when on this node may try to take the address.
    fn turn(&self, entry: &Entry, holder: &Option<NodeName>) -> Option<Instant> {
        let candidates = entry.wanted.as_ref()?;
        let mut others = candidates.iter().filter(|node| Some(*node) != holder.as_ref());
        let rank = others.position(|node| *node == self.me)?;
        let since = entry.since?;
        let free = match holder {
            None => since,
            Some(holder) => {
                let seen = self.hearts.get(holder).map_or(since, |heart| heart.seen.max(since));
                seen + self.times.expiry
            }
        };
        Some(free + self.times.stagger * u32::try_from(rank).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests;
