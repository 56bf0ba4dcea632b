//! Announces load balancer addresses on the local network: the shell around core/decide's announcer. It brings in what
//! the API server and the link say, and carries out what the announcer decides.

mod hearing;
mod link;
mod record;
mod status;
mod writing;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::{mpsc, watch};
use weft_compile::announce::Announcements;
use weft_datapath::{Heard, Neighbours};
use weft_decide::announce::{Announcer, Api, Claim, Effect, LinkAddr, Outcome, Times, Trust};
use weft_kube::View;
use weft_kube::claims::{AddressLease, Claims, LeaseNews};
use weft_model::{Addr, Node, NodeName, SharedMap};

use super::Agent;
use hearing::Interest;
pub use record::held_before;
pub use status::{AddressStatus, Announcing};
use status::{obstacle, word};
use writing::Writer;

/// A plan goes into the kernel within milliseconds; if it does not, the network is told all the same.
const APPLIED_WITHIN: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(3600);

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
    let (sent, beaten) = watch::channel(None);
    let (pace, paced) = watch::channel(Times::for_cluster(1).heartbeat);
    tokio::spawn(writing::beat(claims.clone(), beating, paced, sent));
    let interest = Arc::new(Interest::default());
    let heard = hearing::start(neighbours.clone(), interest.clone())?;
    let (writer, outcomes) = Writer::new(claims.clone());
    Ok(Task {
        announcer: Announcer::new(agent.node.clone(), held.clone(), Times::for_cluster(1), now),
        news: claims.watch(),
        claims,
        neighbours,
        heard,
        interest,
        trust: Trust::Sound,
        announcements: Announcements::default(),
        viewed: false,
        nodes: SharedMap::new(),
        peers: BTreeSet::new(),
        writer,
        outcomes,
        beats,
        beaten,
        pace,
        link_error: None,
        leases: BTreeMap::new(),
        hearts: BTreeMap::new(),
        unlisted: Default::default(),
        groups: held.iter().filter_map(|addr| Neighbours::group(*addr)).collect(),
        held,
        file: record::file(&agent.config.state_dir),
    })
}

struct Task {
    announcer: Announcer,
    news: mpsc::Receiver<LeaseNews>,
    claims: Claims,
    neighbours: Arc<Neighbours>,
    heard: mpsc::Receiver<Heard>,
    interest: Arc<Interest>,
    trust: Trust,
    announcements: Announcements,
    viewed: bool,
    /// What the peers were chosen from.
    nodes: SharedMap<NodeName, Node>,
    peers: BTreeSet<Addr>,
    writer: Writer,
    outcomes: mpsc::Receiver<(Addr, Outcome, Option<AddressLease>)>,
    beats: watch::Sender<bool>,
    beaten: watch::Receiver<Option<Instant>>,
    pace: watch::Sender<Duration>,
    leases: BTreeMap<Addr, AddressLease>,
    hearts: BTreeMap<NodeName, String>,
    /// Leases known from before a new list that were not seen in it so far.
    unlisted: (BTreeSet<Addr>, BTreeSet<NodeName>),
    /// Link-layer groups this node is a member of for its addresses.
    groups: BTreeSet<weft_abi::Mac>,
    held: BTreeSet<Addr>,
    /// What the link said last, so that one that is down is told of once.
    link_error: Option<String>,
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
                Ok(()) = self.beaten.changed() => {
                    if let Some(sent) = *self.beaten.borrow_and_update() {
                        self.announcer.beaten(sent, Instant::now());
                    }
                }
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
            if self.interest.anybody.swap(false, Ordering::Relaxed) {
                self.announcer.heard_any();
            }
            effects.extend(self.announcer.step(Instant::now()));
            if self.announcer.take_relist() {
                tracing::warn!("the heartbeat of this node was late: leases are listed anew");
                self.news = self.claims.watch();
                self.unlisted =
                    (self.leases.keys().copied().collect(), self.hearts.keys().cloned().collect());
            }
            let touched = self.announcer.take_touched();
            self.listen(&touched);
            self.hold(&agent, &touched).await;
            effects.into_iter().for_each(|effect| self.carry_out(effect));
            agent.announcing.tell(&self.announcer, &touched);
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
        if !view.snapshot.nodes.is_same(&self.nodes) {
            self.nodes = view.snapshot.nodes.clone();
            self.peers = link::peers(&view.snapshot, &agent.node, uplink);
            self.announcer.set_peers(self.peers.iter().copied());
        }
        let first = !std::mem::replace(&mut self.viewed, true);
        if !self.announcements.follow(&view.snapshot) && !first {
            return;
        }
        let wanted = self.announcements.all().iter().map(|(addr, wanted)| {
            let mut candidates = wanted.candidates.clone();
            // Programs answer on the uplink only.
            if !wanted.interfaces.is_empty() && !wanted.interfaces.contains(uplink) {
                candidates.retain(|node| *node != agent.node);
            }
            (*addr, candidates)
        });
        self.announcer.want(wanted.collect(), Instant::now());
    }

    fn lease(&mut self, news: LeaseNews) {
        let now = Instant::now();
        match news {
            LeaseNews::Address(lease) => {
                self.unlisted.0.remove(&lease.addr);
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
                self.unlisted.1.remove(&node);
                self.announcer.heartbeat_seen(&node, &text, now);
                self.hearts.insert(node, text);
            }
            LeaseNews::HeartbeatGone(node) => {
                self.announcer.heartbeat_gone(&node);
                self.hearts.remove(&node);
            }
            LeaseNews::Listed => {
                let (addresses, nodes) = std::mem::take(&mut self.unlisted);
                addresses.into_iter().for_each(|addr| self.lease(LeaseNews::AddressGone(addr)));
                nodes.into_iter().for_each(|node| self.lease(LeaseNews::HeartbeatGone(node)));
                self.announcer.listed(now);
                self.announcer.api(Api::Reachable, now);
            }
            LeaseNews::Away => self.announcer.api(Api::Away, now),
        }
    }

    fn listen(&mut self, touched: &BTreeSet<Addr>) {
        let trust = self.announcer.trust();
        if touched.is_empty() && trust == self.trust {
            return;
        }
        match (self.trust, trust) {
            (Trust::CutOff, Trust::Sound | Trust::Doubtful) => {
                tracing::info!("machines on the link are heard again")
            }
            (Trust::Sound | Trust::Doubtful, Trust::CutOff) => {
                tracing::warn!(
                    "neither the API server nor a machine on the link answers: addresses are withdrawn"
                );
            }
            _ => {}
        }
        self.trust = trust;
        let mut watched = self.interest.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for addr in touched {
            if self.announcer.is_watched(*addr) {
                watched.insert(*addr);
            } else {
                watched.remove(addr);
            }
        }
        for peer in &self.peers {
            if trust == Trust::Sound {
                watched.remove(peer);
            } else {
                watched.insert(*peer);
            }
        }
    }

    /// What is held goes into the kernel before the network hears of it, and out of it before the Lease is given up.
    async fn hold(&mut self, agent: &Agent, touched: &BTreeSet<Addr>) {
        self.beats.send_if_modified(|beats| {
            std::mem::replace(beats, self.announcer.beats()) != self.announcer.beats()
        });
        let now = self.announcer.held();
        let moved = |addr: &&Addr| now.contains(addr) != self.held.contains(addr);
        if !touched.iter().any(|addr| moved(&addr)) {
            return;
        }
        let held = now.clone();
        for addr in held.difference(&self.held) {
            tracing::info!(%addr, "announcing the address");
        }
        for addr in self.held.difference(&held) {
            tracing::info!(%addr, "withdrawing the address");
        }
        if let Err(error) = record::write(&self.file, &held) {
            tracing::warn!(%error, "{}: a restart will not know what was announced", self.file.display());
        }
        self.join(&held);
        let generation = agent.applier.announce(held.clone());
        self.held = held;
        match tokio::time::timeout(APPLIED_WITHIN, agent.applier.reached(generation)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error, "announced addresses are not in the kernel"),
            Err(_) => tracing::warn!("announced addresses are not in the kernel yet"),
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
        let error = sent.err().map(|error| error.to_string());
        if let Some(error) = error.as_ref().filter(|_| self.link_error != error) {
            tracing::warn!("{error}");
        }
        self.link_error = error;
    }
}

/// Versions of one kind grow (KEP-5504).
fn is_older(version: &str, than: &str) -> bool {
    matches!((version.parse::<u64>(), than.parse::<u64>()), (Ok(version), Ok(than)) if version < than)
}
