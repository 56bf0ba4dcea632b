//! Asking upstream servers for names that are not the cluster's: bounded, shared by equal questions. What of their
//! answers is believed lives in `believe`, what is kept in `cache`, whether servers are well in `upstreams`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RecordType};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::believe;
use crate::cache::{self, Cache, Counts};
use crate::entry::{Accepted, Entry, Freshness, Hit, Key, WireKey};
use crate::exchange::Exchange;
use crate::loops::{self, Loops};
use crate::metrics::Metrics;
use crate::reply::Explanation;
use crate::settings::{Settings, SettingsError, Transport};
use crate::upstreams::{self, LOOP, Upstream, UpstreamStatus};
use crate::watch;
use crate::zones::{Table, Zone};

pub const LONGEST_ATTEMPT: Duration = Duration::from_millis(1500);
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(750);
/// RFC 8767 5: a client is given what is past its time rather than let wait longer than this.
const CLIENT_WAIT: Duration = Duration::from_millis(1800);
/// For how long after a failure what is past its time is given out without asking again.
const RECHECK: Duration = Duration::from_secs(10);
const ROUNDS: usize = 3;
const MOST_REFRESHES: usize = 256;

pub struct Forwarder {
    pub cache: Cache,
    pub loops: Loops,
    pub exchange: Box<dyn Exchange>,
    metrics: Arc<Metrics>,
    /// This name server's own addresses.
    own: Vec<SocketAddr>,
    settings: RwLock<Arc<Settings>>,
    table: RwLock<Arc<Table>>,
    /// Questions under way, and who waits for each.
    waiting: Mutex<HashMap<WireKey, Vec<oneshot::Sender<Hit>>>>,
    /// Popular answers near the end of their time.
    refresh: mpsc::Sender<WireKey>,
}

impl Forwarder {
    /// Needs a runtime around it: refreshing and probing go on beside, until it is dropped.
    pub fn new(
        settings: Settings,
        own: Vec<SocketAddr>,
        exchange: Box<dyn Exchange>,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, SettingsError> {
        let (refresh, wanted) = mpsc::channel(MOST_REFRESHES);
        let table = Table::new(&settings, &own, &Table::default())?;
        table.report();
        let forwarder = Arc::new(Self {
            cache: Cache::new(settings.cache.limits()),
            loops: Loops::default(),
            exchange,
            metrics,
            own,
            settings: RwLock::new(Arc::new(settings)),
            table: RwLock::new(Arc::new(table)),
            waiting: Mutex::default(),
            refresh,
        });
        tokio::spawn(watch::keep_fresh(Arc::downgrade(&forwarder), wanted));
        Ok(forwarder)
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn table(&self) -> Arc<Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other settings in force, keeping answers they do not change and what is known of servers. On an error
    /// those before stay in force.
    pub fn apply(&self, settings: Settings) -> Result<(), SettingsError> {
        settings.check()?;
        let earlier = self.table();
        let table = Arc::new(Table::new(&settings, &self.own, &earlier)?);
        table.report();
        let limits = settings.cache.limits();
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table.clone();
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
        self.cache.set_limits(limits, now());
        self.cache.forget(|key| table.differs(&earlier, crate::entry::name_of(key)));
        Ok(())
    }

    /// An answer that is there already, from the bytes of a question. Needs no runtime and waits for nobody.
    pub fn lookup(&self, key: &WireKey, now: Instant) -> Option<Hit> {
        let found = self.cache.get(key, now)?;
        if found.wants_refresh && self.refresh.try_send(key.clone()).is_err() {
            found.hit.entry.refresh_failed();
        }
        Some(found.hit)
    }

    pub fn cached(&self, key: &Key) -> Option<Hit> {
        self.lookup(&key.wire(), now())
    }

    pub fn cache_counts(&self) -> Counts {
        self.cache.counts()
    }

    pub fn status(&self) -> Vec<UpstreamStatus> {
        self.table().status()
    }

    /// Counters of the cache and of each upstream server, as Prometheus text.
    pub fn write_metrics(&self, out: &mut String) {
        upstreams::write_metrics(&self.status(), out);
        cache::write_metrics(&self.cache.counts(), out);
    }

    /// The answer to a question that is not in the cache; equal questions under way share one.
    pub async fn resolve(self: &Arc<Self>, key: Key) -> Hit {
        if let Some(upstream) = self.loops.catch(&key.name) {
            upstream.set_looping(true);
            let code = Explanation::OTHER;
            return self.at_once(&key, Accepted::failure(code, "this name server asked it: there is a loop"));
        }
        let wire = key.wire();
        let stale = self.cache.stale(&wire, now());
        let nobody = || self.table().find(wire.name()).is_none_or(|zone| zone.group.nobody_is_up());
        let patience = if stale.is_some() && nobody() { Duration::ZERO } else { CLIENT_WAIT };
        let lost = Accepted::failure(Explanation::OTHER, "the name server is ending");
        let answer = self.join(key.clone(), wire);
        let Some(entry) = stale else {
            return answer.await.unwrap_or_else(|_| self.at_once(&key, lost));
        };
        match timeout(patience, answer).await {
            Ok(Ok(hit)) => hit,
            Ok(Err(_)) | Err(_) => Hit { entry, freshness: Freshness::Stale },
        }
    }

    fn at_once(&self, key: &Key, accepted: Accepted) -> Hit {
        let entry = Entry::new(key, accepted, now(), &self.cache.limits().lifetimes);
        Hit { entry: Arc::new(entry), freshness: Freshness::Fresh }
    }

    /// Asks again for an answer that is popular, though it is still good.
    pub fn prefetch(self: &Arc<Self>, wire: WireKey) {
        if let Some(key) = wire.key() {
            self.metrics.prefetched.add();
            drop(self.join(key, wire));
        }
    }

    /// Waits for a question, which is asked unless it is under way.
    fn join(self: &Arc<Self>, key: Key, wire: WireKey) -> oneshot::Receiver<Hit> {
        let (send, receive) = oneshot::channel();
        let first = {
            let mut waiting = lock(&self.waiting);
            let waiters = waiting.entry(wire.clone()).or_default();
            waiters.push(send);
            waiters.len() == 1
        };
        if first {
            tokio::spawn(InFlight { forwarder: self.clone(), key, wire }.run());
        } else {
            self.metrics.upstream_shared.add();
        }
        receive
    }

    async fn ask(self: &Arc<Self>, key: &Key, name: &[u8]) -> Accepted {
        let table = self.table();
        if let Some(accepted) = table.fixed(key) {
            return accepted;
        }
        let Some(zone) = table.find(name) else {
            let text = "no upstream name server is set for this name";
            let refused = Accepted::failure(Explanation::NOT_AUTHORITATIVE, text);
            return Accepted { code: ResponseCode::Refused, ..refused };
        };
        let mut tried = Tried::default();
        match timeout(zone.timeout, self.rounds(zone, key, &mut tried)).await {
            Ok(Some(accepted)) => accepted,
            Ok(None) | Err(_) => tried.failure(zone),
        }
    }

    /// Everybody in turn, more than once: a datagram may be lost. Who refused is not asked again.
    async fn rounds(self: &Arc<Self>, zone: &Arc<Zone>, key: &Key, tried: &mut Tried) -> Option<Accepted> {
        let servers = zone.group.upstreams.len();
        let share = zone.timeout / u32::try_from(servers + 1).unwrap_or(u32::MAX);
        let patience = share.clamp(SHORTEST_ATTEMPT, LONGEST_ATTEMPT).min(zone.timeout);
        let deadline = now() + zone.timeout;
        for _ in 0..ROUNDS {
            for upstream in zone.group.order(loops::random()) {
                if now() >= deadline {
                    return None;
                }
                if tried.refused.iter().any(|refused| Arc::ptr_eq(refused, upstream)) {
                    continue;
                }
                match self.attempt(upstream, zone, key, patience).await {
                    Ok(accepted) => return Some(accepted),
                    Err(Unanswered::Refused(text)) => {
                        tried.refused.push(upstream.clone());
                        tried.last = Some(format!("{}: {text}", upstream.server));
                    }
                    Err(Unanswered::Silent(text)) => {
                        tried.last = Some(format!("{}: {text}", upstream.server))
                    }
                }
            }
        }
        None
    }

    async fn attempt(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        zone: &Arc<Zone>,
        key: &Key,
        patience: Duration,
    ) -> Result<Accepted, Unanswered> {
        self.metrics.upstream_queries.add();
        upstream.queries.add();
        let started = now();
        let problem = match timeout(patience, self.exchange.ask(upstream, key)).await {
            Ok(Ok(message)) => {
                upstream.succeeded(now() - started);
                let mut accepted =
                    believe::accept(message, key).map_err(|error| Unanswered::Refused(error.to_string()))?;
                // Over UDP anybody on the way can set the bit (RFC 4035 4.9.3).
                let safe =
                    upstream.server.transport == Transport::Tls || upstream.server.address.ip().is_loopback();
                accepted.authenticated &= safe;
                return Ok(accepted);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} ms", patience.as_millis()),
        };
        self.metrics.upstream_failures.add();
        if upstream.failed(&problem, now()) {
            tokio::spawn(watch::until_it_answers(
                Arc::downgrade(self),
                Arc::downgrade(upstream),
                zone.name.clone(),
            ));
        }
        Err(Unanswered::Silent(problem))
    }
}

/// Why an attempt gave no answer.
enum Unanswered {
    /// It is well and does not want to, or cannot.
    Refused(String),
    Silent(String),
}

/// What happened to the attempts at one question.
#[derive(Default)]
struct Tried {
    refused: Vec<Arc<Upstream>>,
    last: Option<String>,
}

impl Tried {
    fn failure(self, zone: &Zone) -> Accepted {
        let none = zone.group.upstreams.is_empty();
        let code = if self.refused.is_empty() {
            Explanation::NO_REACHABLE_AUTHORITY
        } else {
            Explanation::NETWORK_ERROR
        };
        let text = match self.last {
            Some(last) => format!("no upstream name server answered; the last: {last}"),
            None if none => "this node has no upstream name servers for this name".to_owned(),
            None if zone.group.all_loop() => LOOP.to_owned(),
            None => "no upstream name server answered in time".to_owned(),
        };
        Accepted::failure(code, text)
    }
}

/// One question under way. However it ends, nobody is left waiting for it.
struct InFlight {
    forwarder: Arc<Forwarder>,
    key: Key,
    wire: WireKey,
}

impl InFlight {
    async fn run(self) {
        let accepted = self.forwarder.ask(&self.key, self.wire.name()).await;
        let hit = self.keep(accepted);
        let waiters = lock(&self.forwarder.waiting).remove(&self.wire).unwrap_or_default();
        for waiter in waiters {
            let _ = waiter.send(hit.clone());
        }
    }

    /// A failure does not take the place of an answer that may still serve.
    fn keep(&self, accepted: Accepted) -> Hit {
        let (cache, now) = (&self.forwarder.cache, now());
        let entry = Arc::new(Entry::new(&self.key, accepted, now, &cache.limits().lifetimes));
        if entry.is_failure()
            && let Some(earlier) = cache.stale(&self.wire, now)
        {
            let fresh = earlier.until().is_some_and(|until| now < until);
            earlier.refresh_failed();
            earlier.hold(now + RECHECK);
            let freshness = if fresh { Freshness::Fresh } else { Freshness::Stale };
            return Hit { entry: earlier, freshness };
        }
        cache.put(&self.wire, entry.clone(), now);
        Hit { entry, freshness: Freshness::Fresh }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.forwarder.waiting).remove(&self.wire);
        }
    }
}

/// The runtime's clock, so that tests can hold it.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a server is asked to see whether it is well: what it is there for, answered from its own memory.
pub fn health_question(zone: &Name) -> Key {
    let kind = if zone.is_root() { RecordType::NS } else { RecordType::SOA };
    Key { name: zone.clone(), kind, dnssec_ok: false, checking_disabled: false }
}

#[cfg(test)]
mod tests;
