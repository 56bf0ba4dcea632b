//! Which node answers for a load balancer's address: one node's part in it, as a pure state machine. What it knows comes
//! in by methods, `step` says what to do; leases, sockets and the clock are the shell's (docs/design/announcing.md).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use weft_model::{Addr, NodeName};

/// A link address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkAddr(pub [u8; 6]);

impl std::fmt::Display for LinkAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// Between two heartbeats of a node that holds an address.
    pub heartbeat: Duration,
    /// A node not heard of for this long is asked for on the network.
    pub expiry: Duration,
    /// RFC 5227 and RFC 4862 have longer waits; these fit into a failover of under two seconds.
    pub probes: u32,
    pub probe_gap: Duration,
    /// The next candidate in line waits this much longer.
    pub stagger: Duration,
    /// After a claim: when the address is announced, counted from the claim.
    pub announcements: [Duration; 4],
    /// An address that somebody answers for is probed again after this.
    pub recheck: Duration,
    /// RFC 5227, 2.4: who was contradicted twice within this time does not defend again.
    pub defence: Duration,
}

impl Times {
    /// `nodes`: in a large cluster nodes are heard of less often, so that the API server is not flooded.
    pub fn for_cluster(nodes: usize) -> Self {
        let millis = |count: u64| Duration::from_millis(count);
        let heartbeat = millis(400.max(4 * nodes as u64));
        Self {
            heartbeat,
            expiry: heartbeat * 3,
            probes: 3,
            probe_gap: millis(100),
            stagger: millis(400),
            announcements: [millis(0), millis(200), millis(1000), millis(3000)],
            recheck: Duration::from_secs(5),
            defence: Duration::from_secs(10),
        }
    }
}

/// Who holds an address, as its Lease says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// `None`: given up.
    pub holder: Option<NodeName>,
    /// The Lease's version: a claim is made on the one that was seen.
    pub version: String,
    pub transitions: u32,
    /// What the Lease says about who keeps the address from its candidates.
    pub obstacle: Option<Obstacle>,
}

/// Why an address is not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// No node holds it, and a machine answers for it.
    InUse(LinkAddr),
    /// Its holder's agent is silent, and a machine, most likely the holder, still answers: nothing is lost.
    HolderAnswers(LinkAddr),
    /// Its holder announces it, and so does another machine.
    Contested(LinkAddr),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Ask the network who has the address.
    Probe(Addr),
    /// Tell the network that this node has it.
    Announce(Addr),
    /// Take the Lease on the version that was seen; `after`: whose heartbeat must not have come meanwhile.
    Claim { addr: Addr, seen: Option<Claim>, after: Option<NodeName> },
    /// The address is withdrawn: let the next candidate have it.
    HandOver { addr: Addr, version: String },
    /// The address is withdrawn and nobody's: the Lease goes.
    Delete { addr: Addr, version: String },
    /// Say in the Lease what keeps the address from being taken or held; `None`: nothing any more.
    Report { addr: Addr, seen: Option<Claim>, obstacle: Option<Obstacle> },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Api {
    Reachable,
    Away,
}

/// How the write of a claim ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Taken,
    /// Somebody was faster, or its holder lives.
    Refused,
    /// Nobody knows: the server did not answer.
    Failed,
}

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
}

struct Heart {
    text: String,
    seen: Instant,
}

#[derive(Default)]
struct Entry {
    /// Candidates in the order of preference; `None`: nobody is to announce it.
    wanted: Option<Vec<NodeName>>,
    claim: Option<Claim>,
    /// Since when the Lease has this holder, or none, as seen here.
    since: Option<Instant>,
    phase: Phase,
}

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
        defended: Option<Instant>,
    },
    /// Somebody answers for the address.
    Blocked {
        obstacle: Obstacle,
        until: Instant,
    },
}

impl Announcer {
    /// `held`: what this node answered for before; it goes on until a Lease says otherwise.
    pub fn new(me: NodeName, held: BTreeSet<Addr>, times: Times, now: Instant) -> Self {
        let holding = |addr| {
            let announced = times.announcements.len();
            let phase = Phase::Holding { since: now, announced, defended: None };
            (addr, Entry { phase, ..Entry::default() })
        };
        let entries = held.into_iter().map(holding).collect();
        Self {
            me,
            times,
            api: Api::Away,
            knows_wanted: false,
            knows_leases: false,
            hearts: BTreeMap::new(),
            entries,
        }
    }

    pub fn set_times(&mut self, times: Times) {
        self.times = times;
    }

    /// What this node answers for.
    pub fn held(&self) -> BTreeSet<Addr> {
        let holds = |phase: &Phase| matches!(phase, Phase::Holding { .. } | Phase::Retaking);
        self.entries.iter().filter(|(_, entry)| holds(&entry.phase)).map(|(addr, _)| *addr).collect()
    }

    /// Others watch this node's heartbeat while it holds something, or is about to.
    pub fn beats(&self) -> bool {
        let live =
            |entry: &Entry| matches!(entry.phase, Phase::Holding { .. } | Phase::Retaking | Phase::Claiming);
        self.entries.values().any(live)
    }

    pub fn phases(&self) -> impl Iterator<Item = (Addr, &Phase, Option<&Claim>)> {
        self.entries.iter().map(|(addr, entry)| (*addr, &entry.phase, entry.claim.as_ref()))
    }

    /// Addresses that answers on the network are of interest for.
    pub fn watched(&self) -> BTreeSet<Addr> {
        let quiet = |phase: &Phase| matches!(phase, Phase::Idle | Phase::Waiting { .. });
        self.entries.iter().filter(|(_, entry)| !quiet(&entry.phase)).map(|(addr, _)| *addr).collect()
    }

    /// Every address to announce, with its candidates in order of preference.
    pub fn want(&mut self, wanted: BTreeMap<Addr, Vec<NodeName>>, now: Instant) {
        self.knows_wanted = true;
        for entry in self.entries.values_mut() {
            entry.wanted = None;
        }
        for (addr, candidates) in wanted {
            self.entries.entry(addr).or_default().wanted = Some(candidates);
        }
        self.mark_unclaimed(now);
    }

    /// Every Lease was seen: addresses without one are nobody's.
    pub fn listed(&mut self, now: Instant) {
        self.knows_leases = true;
        self.mark_unclaimed(now);
    }

    fn mark_unclaimed(&mut self, now: Instant) {
        if self.knows_leases {
            self.entries.values_mut().for_each(|entry| entry.since = entry.since.or(Some(now)));
        }
    }

    /// The Lease of an address was seen; `None`: it is gone.
    pub fn claim_seen(&mut self, addr: Addr, claim: Option<Claim>, now: Instant) {
        let entry = self.entries.entry(addr).or_default();
        let holder = |claim: &Option<Claim>| claim.as_ref().and_then(|claim| claim.holder.clone());
        if entry.since.is_none() || holder(&entry.claim) != holder(&claim) {
            entry.since = Some(now);
            // Whatever was prepared was prepared against another holder.
            if matches!(entry.phase, Phase::Waiting { .. } | Phase::Probing { .. } | Phase::Blocked { .. }) {
                entry.phase = Phase::Idle;
            }
        }
        entry.claim = claim;
    }

    pub fn heartbeat_seen(&mut self, node: &NodeName, text: &str, now: Instant) {
        let heart =
            self.hearts.entry(node.clone()).or_insert_with(|| Heart { text: String::new(), seen: now });
        if heart.text != text {
            *heart = Heart { text: text.to_owned(), seen: now };
        }
    }

    pub fn heartbeat_gone(&mut self, node: &NodeName) {
        self.hearts.remove(node);
    }

    /// What was not heard while the server was away says nothing about anybody.
    pub fn api(&mut self, api: Api, now: Instant) {
        if api == Api::Reachable && self.api == Api::Away {
            self.hearts.values_mut().for_each(|heart| heart.seen = now);
            self.entries.values_mut().for_each(|entry| entry.since = entry.since.map(|_| now));
        }
        self.api = api;
    }

    pub fn claimed(&mut self, addr: Addr, outcome: Outcome, now: Instant) {
        let Some(entry) = self.entries.get_mut(&addr) else { return };
        let announced = self.times.announcements.len();
        entry.phase = match (&entry.phase, outcome) {
            (Phase::Claiming, Outcome::Taken) => Phase::Holding { since: now, announced: 0, defended: None },
            (Phase::Claiming, _) => Phase::Waiting { until: now + self.times.expiry },
            (Phase::Retaking, Outcome::Refused) => Phase::Idle,
            (Phase::Retaking, _) => Phase::Holding { since: now, announced, defended: None },
            _ => return,
        };
    }

    /// Another machine says that it has the address.
    pub fn heard(&mut self, addr: Addr, from: LinkAddr, now: Instant) -> Vec<Effect> {
        let (times, api, me) = (self.times, self.api, self.me.clone());
        let Some(entry) = self.entries.get_mut(&addr) else { return Vec::new() };
        match &mut entry.phase {
            Phase::Probing { .. } => {
                let obstacle = match entry.claim.as_ref().and_then(|claim| claim.holder.as_ref()) {
                    Some(_) => Obstacle::HolderAnswers(from),
                    None => Obstacle::InUse(from),
                };
                entry.phase = Phase::Blocked { obstacle: obstacle.clone(), until: now + times.recheck };
                report(addr, entry, Some(obstacle))
            }
            Phase::Holding { defended, .. } => {
                let ours = entry.claim.as_ref().is_some_and(|claim| claim.holder.as_ref() == Some(&me));
                if !ours || api == Api::Away {
                    let obstacle = Obstacle::Contested(from);
                    entry.phase = Phase::Blocked { obstacle, until: now + times.recheck };
                    return Vec::new();
                }
                let again = defended.is_some_and(|at| now.saturating_duration_since(at) < times.defence);
                if again {
                    return report(addr, entry, Some(Obstacle::Contested(from)));
                }
                *defended = Some(now);
                vec![Effect::Announce(addr)]
            }
            _ => Vec::new(),
        }
    }

    /// What to do now. To be called after everything that came in, and at `next`.
    pub fn step(&mut self, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        let addresses: Vec<Addr> = self.entries.keys().copied().collect();
        for addr in addresses {
            let Some(mut entry) = self.entries.remove(&addr) else { continue };
            self.step_one(addr, &mut entry, now, &mut effects);
            let forgotten = entry.wanted.is_none() && entry.claim.is_none() && entry.phase == Phase::Idle;
            if !forgotten {
                self.entries.insert(addr, entry);
            }
        }
        effects
    }

    /// When `step` has something to do although nothing came in.
    pub fn next(&self) -> Option<Instant> {
        self.entries
            .values()
            .filter_map(|entry| match &entry.phase {
                Phase::Idle | Phase::Claiming | Phase::Retaking => None,
                Phase::Waiting { until } | Phase::Blocked { until, .. } => Some(*until),
                Phase::Probing { next, .. } => Some(*next),
                Phase::Holding { since, announced, .. } => {
                    self.times.announcements.get(*announced).map(|after| *since + *after)
                }
            })
            .min()
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
            Phase::Idle | Phase::Waiting { .. } | Phase::Blocked { .. } => {
                effects.push(Effect::Probe(addr));
                entry.phase = Phase::Probing { sent: 1, next: now + self.times.probe_gap };
            }
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
            Phase::Claiming | Phase::Retaking | Phase::Holding { .. } => {}
        }
    }

    fn hold(
        &self,
        addr: Addr,
        entry: &mut Entry,
        holder: Option<NodeName>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        if self.api == Api::Reachable && entry.since.is_some() && self.knows_wanted {
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
        if let Phase::Holding { since, announced, defended } = &mut entry.phase {
            let due = self.times.announcements.iter().filter(|after| *since + **after <= now).count();
            if due > *announced {
                effects.push(Effect::Announce(addr));
                *announced = due;
            }
            let calm = defended.is_none_or(|at| now.saturating_duration_since(at) >= self.times.defence);
            let reported = entry.claim.as_ref().is_some_and(|claim| claim.obstacle.is_some());
            if calm && reported && self.api == Api::Reachable {
                effects.extend(report(addr, entry, None));
                if let Some(claim) = &mut entry.claim {
                    claim.obstacle = None;
                }
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
        if !matches!(&entry.phase, Phase::Blocked { until, .. } if now < *until) {
            effects.push(Effect::Announce(addr));
            entry.phase = Phase::Holding { since: now, announced: 1, defended: None };
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

/// The writer of Leases tries until it is done, so the Lease counts as written.
fn give_up(addr: Addr, entry: &mut Entry, effects: &mut Vec<Effect>) {
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

/// Said once: what the Lease says already is not written again.
fn report(addr: Addr, entry: &Entry, obstacle: Option<Obstacle>) -> Vec<Effect> {
    if entry.claim.as_ref().and_then(|claim| claim.obstacle.as_ref()) == obstacle.as_ref() {
        return Vec::new();
    }
    vec![Effect::Report { addr, seen: entry.claim.clone(), obstacle }]
}

#[cfg(test)]
mod tests;
