//! Announces load balancer addresses on the local network: the shell around core/decide's announcer. It brings in what
//! the API server and the link say, and carries out what the announcer decides.

mod hearing;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use weft_compile::announce::announced;
use weft_datapath::{Heard, Neighbours};
use weft_decide::announce::{Announcer, Api, Claim, Effect, LinkAddr, Obstacle, Outcome, Phase, Times};
use weft_kube::View;
use weft_kube::claims::{AddressLease, Claims, LeaseNews};
use weft_model::{Addr, NodeName};

use super::Agent;
use writing::Writer;

/// A plan goes into the kernel within milliseconds; if it does not, the network is told all the same.
const APPLIED_WITHIN: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(3600);

/// An address and this node's part in it, for `weft status`.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct AddressStatus {
    pub address: String,
    /// `holding`, `waiting`, `probing`, ...
    pub state: String,
    pub holder: Option<String>,
    pub obstacle: Option<String>,
}

#[derive(Default)]
pub struct Announcing {
    status: Mutex<Vec<AddressStatus>>,
}

impl Announcing {
    pub fn status(&self) -> Vec<AddressStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What this node answered for when its agent stopped, if the machine has not started anew since.
pub fn held_before(state_dir: &std::path::Path) -> BTreeSet<Addr> {
    let text = std::fs::read(state_dir.join(FILE)).unwrap_or_default();
    let record: Record = serde_json::from_slice(&text).unwrap_or_default();
    if record.boot == boot() { record.addresses } else { BTreeSet::new() }
}

const FILE: &str = "announced.json";

#[derive(Serialize, Deserialize, Default)]
struct Record {
    boot: String,
    addresses: BTreeSet<Addr>,
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

pub async fn run(agent: Arc<Agent>, held: BTreeSet<Addr>) {
    loop {
        match start(&agent, held.clone()).await {
            Ok(task) => return task.run(agent).await,
            Err(error) => tracing::error!("addresses cannot be announced: {error:#}; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn start(agent: &Arc<Agent>, held: BTreeSet<Addr>) -> Result<Task> {
    let neighbours = Arc::new(Neighbours::open(&agent.config.uplink)?);
    let client = weft_kube::client_from_kubeconfig(&agent.config.kubeconfig).await?;
    let claims = Claims::new(client, agent.node.clone());
    let now = Instant::now();
    let (beats, beating) = watch::channel(false);
    let (pace, paced) = watch::channel(Times::for_cluster(1).heartbeat);
    tokio::spawn(writing::beat(claims.clone(), beating, paced));
    let watched = Arc::new(Mutex::new(BTreeSet::new()));
    let heard = hearing::start(neighbours.clone(), watched.clone())?;
    let (writer, outcomes) = Writer::new(claims.clone());
    Ok(Task {
        announcer: Announcer::new(agent.node.clone(), held.clone(), Times::for_cluster(1), now),
        news: claims.watch(),
        neighbours,
        heard,
        watched,
        writer,
        outcomes,
        beats,
        pace,
        leases: BTreeMap::new(),
        hearts: BTreeMap::new(),
        groups: held.iter().filter_map(|addr| Neighbours::group(*addr)).collect(),
        held,
        file: agent.config.state_dir.join(FILE),
    })
}

struct Task {
    announcer: Announcer,
    news: mpsc::Receiver<LeaseNews>,
    neighbours: Arc<Neighbours>,
    heard: mpsc::Receiver<Heard>,
    watched: Arc<Mutex<BTreeSet<Addr>>>,
    writer: Writer,
    outcomes: mpsc::Receiver<(Addr, Outcome, Option<AddressLease>)>,
    beats: watch::Sender<bool>,
    pace: watch::Sender<Duration>,
    leases: BTreeMap<Addr, AddressLease>,
    hearts: BTreeMap<NodeName, String>,
    /// Link-layer groups this node is a member of for its addresses.
    groups: BTreeSet<weft_abi::Mac>,
    held: BTreeSet<Addr>,
    file: PathBuf,
}

impl Task {
    async fn run(mut self, agent: Arc<Agent>) {
        let mut views = agent.cluster.subscribe();
        self.view(&agent, &views.borrow_and_update().clone());
        loop {
            let sleep =
                self.announcer.next().map_or(IDLE, |next| next.saturating_duration_since(Instant::now()));
            let mut effects = Vec::new();
            tokio::select! {
                changed = views.changed() => {
                    if changed.is_err() { return }
                    let view = views.borrow_and_update().clone();
                    self.view(&agent, &view);
                }
                news = self.news.recv() => match news {
                    Some(news) => self.lease(news),
                    None => return,
                },
                Some(heard) = self.heard.recv() => {
                    let from = LinkAddr(heard.from.0);
                    effects = self.announcer.heard(heard.addr, from, Instant::now());
                }
                Some((addr, outcome, lease)) = self.outcomes.recv() => {
                    self.announcer.claimed(addr, outcome, Instant::now());
                    if let Some(lease) = lease {
                        self.lease(LeaseNews::Address(lease));
                    }
                }
                () = tokio::time::sleep(sleep) => {}
            }
            effects.extend(self.announcer.step(Instant::now()));
            self.hold(&agent).await;
            effects.into_iter().for_each(|effect| self.carry_out(effect));
            self.tell(&agent);
        }
    }

    fn view(&mut self, agent: &Agent, view: &View) {
        if !view.synced {
            return;
        }
        let times = Times::for_cluster(view.snapshot.nodes.len());
        self.announcer.set_times(times);
        self.pace.send_if_modified(|pace| std::mem::replace(pace, times.heartbeat) != times.heartbeat);
        let uplink = &agent.config.uplink;
        let wanted = announced(&view.snapshot).into_iter().map(|(addr, wanted)| {
            let mut candidates = wanted.candidates;
            // Programs answer on the uplink only.
            if !wanted.interfaces.is_empty() && !wanted.interfaces.contains(uplink) {
                candidates.retain(|node| *node != agent.node);
            }
            (addr, candidates)
        });
        self.announcer.want(wanted.collect(), Instant::now());
    }

    fn lease(&mut self, news: LeaseNews) {
        let now = Instant::now();
        match news {
            LeaseNews::Address(lease) => {
                let known = self.leases.get(&lease.addr);
                if known.is_some_and(|known| is_older(&lease.version, &known.version)) {
                    return;
                }
                let claim = Claim {
                    holder: lease.holder.clone(),
                    version: lease.version.clone(),
                    transitions: lease.transitions,
                    obstacle: lease.obstacle.as_deref().and_then(obstacle),
                };
                self.announcer.claim_seen(lease.addr, Some(claim), now);
                self.leases.insert(lease.addr, lease);
            }
            LeaseNews::AddressGone(addr) => {
                self.leases.remove(&addr);
                self.announcer.claim_seen(addr, None, now);
            }
            LeaseNews::Heartbeat(node, text) => {
                self.announcer.heartbeat_seen(&node, &text, now);
                self.hearts.insert(node, text);
            }
            LeaseNews::HeartbeatGone(node) => {
                self.announcer.heartbeat_gone(&node);
                self.hearts.remove(&node);
            }
            LeaseNews::Listed => self.announcer.listed(now),
            LeaseNews::Reachable => self.announcer.api(Api::Reachable, now),
            LeaseNews::Away => self.announcer.api(Api::Away, now),
        }
    }

    /// What is held goes into the kernel before the network hears of it, and out of it before the Lease is given up.
    async fn hold(&mut self, agent: &Agent) {
        self.beats.send_if_modified(|beats| {
            std::mem::replace(beats, self.announcer.beats()) != self.announcer.beats()
        });
        *self.watched.lock().unwrap_or_else(PoisonError::into_inner) = self.announcer.watched();
        let held = self.announcer.held();
        if held == self.held {
            return;
        }
        for addr in held.difference(&self.held) {
            tracing::info!(%addr, "announcing the address");
        }
        for addr in self.held.difference(&held) {
            tracing::info!(%addr, "withdrawing the address");
        }
        self.remember(&held);
        self.join(&held);
        let generation = agent.applier.announce(held.clone());
        self.held = held;
        match tokio::time::timeout(APPLIED_WITHIN, agent.applier.reached(generation)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error, "announced addresses are not in the kernel"),
            Err(_) => tracing::warn!("announced addresses are not in the kernel yet"),
        }
    }

    fn remember(&self, held: &BTreeSet<Addr>) {
        let record = Record { boot: boot(), addresses: held.clone() };
        let text = serde_json::to_vec(&record).unwrap_or_default();
        if let Err(error) = std::fs::write(&self.file, text) {
            tracing::warn!(%error, "{}: a restart will not know what was announced", self.file.display());
        }
    }

    fn join(&mut self, held: &BTreeSet<Addr>) {
        let groups: BTreeSet<_> = held.iter().filter_map(|addr| Neighbours::group(*addr)).collect();
        // Joining is repeated for all: the link may be another than before.
        let joined = groups.iter().map(|group| self.neighbours.join(*group));
        let left = self.groups.difference(&groups).map(|group| self.neighbours.leave(*group));
        for error in joined.chain(left).filter_map(Result::err) {
            tracing::warn!("{error}");
        }
        self.groups = groups;
    }

    fn carry_out(&mut self, effect: Effect) {
        let sent = match effect {
            Effect::Probe(addr) => self.neighbours.probe(addr),
            Effect::Announce(addr) => self.neighbours.announce(addr),
            Effect::Claim { addr, seen, after } => {
                let after = after.map(|node| {
                    let heartbeat = self.hearts.get(&node).cloned().unwrap_or_default();
                    (node, heartbeat)
                });
                self.writer.take(addr, seen, after);
                Ok(())
            }
            Effect::HandOver { addr, .. } => {
                self.writer.hand_over(addr);
                Ok(())
            }
            Effect::Delete { addr, .. } => {
                self.writer.delete(addr);
                Ok(())
            }
            Effect::Report { addr, obstacle, .. } => {
                let text = obstacle.as_ref().map(word);
                tracing::warn!(%addr, obstacle = text, "address");
                self.writer.report(addr, self.leases.get(&addr).cloned(), text);
                Ok(())
            }
        };
        if let Err(error) = sent {
            tracing::warn!("{error}");
        }
    }

    fn tell(&self, agent: &Agent) {
        let rows = self.announcer.phases().map(|(addr, phase, claim)| AddressStatus {
            address: addr.to_string(),
            state: state(phase).to_owned(),
            holder: claim.and_then(|claim| claim.holder.as_ref()).map(NodeName::to_string),
            obstacle: match phase {
                Phase::Blocked { obstacle, .. } => Some(word(obstacle)),
                _ => claim.and_then(|claim| claim.obstacle.as_ref()).map(word),
            },
        });
        *agent.announcing.status.lock().unwrap_or_else(PoisonError::into_inner) = rows.collect();
    }
}

/// Versions of one kind grow (KEP-5504).
fn is_older(version: &str, than: &str) -> bool {
    matches!((version.parse::<u64>(), than.parse::<u64>()), (Ok(version), Ok(than)) if version < than)
}

fn state(phase: &Phase) -> &'static str {
    match phase {
        Phase::Idle => "idle",
        Phase::Waiting { .. } => "waiting",
        Phase::Probing { .. } => "probing",
        Phase::Claiming => "claiming",
        Phase::Retaking | Phase::Holding { .. } => "holding",
        Phase::Blocked { .. } => "blocked",
    }
}

/// As Leases have it; read back by `obstacle`.
fn word(obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::InUse(mac) => format!("in-use {mac}"),
        Obstacle::HolderAnswers(mac) => format!("holder-answers {mac}"),
        Obstacle::Contested(mac) => format!("contested {mac}"),
    }
}

fn obstacle(text: &str) -> Option<Obstacle> {
    let (word, mac) = text.split_once(' ')?;
    let bytes: Vec<u8> = mac.split(':').filter_map(|hex| u8::from_str_radix(hex, 16).ok()).collect();
    let mac = LinkAddr(bytes.try_into().ok()?);
    match word {
        "in-use" => Some(Obstacle::InUse(mac)),
        "holder-answers" => Some(Obstacle::HolderAnswers(mac)),
        "contested" => Some(Obstacle::Contested(mac)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn obstacles_are_read_as_they_are_written() {
        let mac = LinkAddr([2, 0, 0, 0xab, 0, 0xff]);
        for given in [Obstacle::InUse(mac), Obstacle::HolderAnswers(mac), Obstacle::Contested(mac)] {
            assert_eq!(obstacle(&word(&given)), Some(given));
        }
        assert_eq!(obstacle("in-use 02:00"), None);
    }
}
