//! Asking upstream servers for names that are not the cluster's: bounded, shared by equal questions. What of their
//! answers is believed lives in `believe`, what is kept in `cache`.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::believe::{self, Match};
use crate::cache::{Cache, Counts, Limits};
use crate::entry::{Accepted, Entry, Freshness, Hit, Key, WireKey};
use crate::metrics::Metrics;
use crate::reply::{Explanation, upstream_query};

/// Resolvers in pods give up after 5 s: all attempts together must end before.
const ALL_ATTEMPTS: Duration = Duration::from_millis(4500);
const ONE_ATTEMPT: Duration = Duration::from_millis(1500);
/// RFC 8767 5: a client is given what is past its time rather than let wait longer than this.
const CLIENT_WAIT: Duration = Duration::from_millis(1800);
/// For how long after a failure what is past its time is given out without asking again.
const RECHECK: Duration = Duration::from_secs(10);
const ROUNDS: usize = 2;
/// After this many failures in a row a server is asked last for a while.
const FAILURES_TO_REST: u32 = 2;
const REST: Duration = Duration::from_secs(5);
const MOST_REFRESHES: usize = 256;
const SWEEP: Duration = Duration::from_secs(60);

pub struct Forwarder {
    upstreams: Vec<Upstream>,
    metrics: Arc<Metrics>,
    cache: Cache,
    /// Questions under way, and who waits for each.
    waiting: Mutex<HashMap<WireKey, Vec<oneshot::Sender<Hit>>>>,
    /// Popular answers near the end of their time.
    refresh: mpsc::Sender<WireKey>,
    started: Instant,
}

struct Upstream {
    address: SocketAddr,
    failures: AtomicU32,
    /// Milliseconds after `Forwarder::started` until which it is asked last.
    rests_until: AtomicU64,
}

/// One upstream server as `weft status` shows it.
#[derive(serde::Serialize)]
pub struct UpstreamStatus {
    pub address: SocketAddr,
    pub failures_in_a_row: u32,
    pub resting: bool,
}

impl Forwarder {
    /// Needs a runtime around it: refreshing what is popular goes on beside.
    pub fn new(servers: Vec<SocketAddr>, metrics: Arc<Metrics>) -> Arc<Self> {
        let upstream =
            |address| Upstream { address, failures: AtomicU32::new(0), rests_until: AtomicU64::new(0) };
        let (refresh, wanted) = mpsc::channel(MOST_REFRESHES);
        let forwarder = Arc::new(Self {
            upstreams: servers.into_iter().map(upstream).collect(),
            metrics,
            cache: Cache::new(Limits::default()),
            waiting: Mutex::default(),
            refresh,
            started: Instant::now(),
        });
        tokio::spawn(keep_fresh(Arc::downgrade(&forwarder), wanted));
        forwarder
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
        let now = self.millis();
        let status = |upstream: &Upstream| UpstreamStatus {
            address: upstream.address,
            failures_in_a_row: upstream.failures.load(Ordering::Relaxed),
            resting: upstream.rests_until.load(Ordering::Relaxed) > now,
        };
        self.upstreams.iter().map(status).collect()
    }

    /// The answer to a question that is not in the cache; equal questions under way share one.
    pub async fn resolve(self: &Arc<Self>, key: Key) -> Hit {
        let wire = key.wire();
        let stale = self.cache.stale(&wire, now());
        let answer = self.join(key, wire);
        let Some(entry) = stale else { return answered(answer.await) };
        match timeout(CLIENT_WAIT, answer).await {
            Ok(answer) => answered(answer),
            Err(_) => Hit { entry, freshness: Freshness::Stale },
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

    async fn ask(&self, key: &Key) -> Accepted {
        if self.upstreams.is_empty() {
            return failure("this node has no upstream name servers");
        }
        let mut last = None;
        let asking = async {
            for _ in 0..ROUNDS {
                for upstream in self.in_order() {
                    match self.attempt(upstream, key).await {
                        Ok(accepted) => return Some(accepted),
                        Err(problem) => last = Some(problem),
                    }
                }
            }
            None
        };
        let answered = timeout(ALL_ATTEMPTS, asking).await.ok().flatten();
        answered.unwrap_or_else(|| {
            failure(&last.map_or_else(
                || "no upstream name server answered in time".to_owned(),
                |problem| format!("no upstream name server answered; the last: {problem}"),
            ))
        })
    }

    /// As configured, those that failed lately last.
    fn in_order(&self) -> Vec<&Upstream> {
        let now = self.millis();
        let mut upstreams: Vec<_> = self.upstreams.iter().collect();
        upstreams.sort_by_key(|upstream| upstream.rests_until.load(Ordering::Relaxed) > now);
        upstreams
    }

    async fn attempt(&self, upstream: &Upstream, key: &Key) -> Result<Accepted, String> {
        self.metrics.upstream_queries.add();
        let outcome = match timeout(ONE_ATTEMPT, self.exchange(upstream.address, key)).await {
            Ok(Ok(message)) => believe::accept(message, key).map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        match outcome {
            Ok(accepted) => {
                upstream.failures.store(0, Ordering::Relaxed);
                upstream.rests_until.store(0, Ordering::Relaxed);
                Ok(accepted)
            }
            Err(problem) => {
                self.metrics.upstream_failures.add();
                if upstream.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_TO_REST {
                    let until = self.millis() + u64::try_from(REST.as_millis()).unwrap_or(u64::MAX);
                    upstream.rests_until.store(until, Ordering::Relaxed);
                }
                Err(format!("{}: {problem}", upstream.address))
            }
        }
    }

    async fn exchange(&self, server: SocketAddr, key: &Key) -> io::Result<Message> {
        let query = upstream_query(key.name.clone(), key.kind, key.dnssec_ok, key.checking_disabled);
        let bytes = query.to_vec().map_err(io::Error::other)?;
        let reply = self.over_udp(server, &bytes, &query).await?;
        if !reply.metadata.truncation {
            return Ok(reply);
        }
        self.metrics.upstream_tcp.add();
        over_tcp(server, &bytes, &query).await
    }

    async fn over_udp(&self, server: SocketAddr, bytes: &[u8], query: &Message) -> io::Result<Message> {
        let any: IpAddr =
            if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // A fresh socket for each question: the kernel picks a random port, and a guess must hit it and the id.
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        socket.send(bytes).await?;
        let mut buffer = [0; 4096];
        loop {
            let length = socket.recv(&mut buffer).await?;
            match believe::decode(&buffer[..length]) {
                Some(reply) if believe::matches(&reply, query) != Match::No => return Ok(reply),
                _ => self.metrics.upstream_mismatches.add(),
            }
        }
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

async fn over_tcp(server: SocketAddr, bytes: &[u8], query: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await?;
    match believe::decode(&reply) {
        Some(reply) if believe::matches(&reply, query) != Match::No => Ok(reply),
        _ => Err(io::Error::other("answered another question")),
    }
}

fn failure(text: &str) -> Accepted {
    Accepted::failure(Explanation::NO_REACHABLE_AUTHORITY, text)
}

/// Also when whoever asked has come to an end.
fn answered(answer: Result<Hit, oneshot::error::RecvError>) -> Hit {
    answer.unwrap_or_else(|_| {
        let key = Key { name: Name::root(), kind: RecordType::A, dnssec_ok: false, checking_disabled: false };
        let lifetimes = Limits::default().lifetimes;
        let entry = Entry::new(&key, failure("the name server is ending"), now(), &lifetimes);
        Hit { entry: Arc::new(entry), freshness: Freshness::Fresh }
    })
}

/// One question under way. However it ends, nobody is left waiting for it.
struct InFlight {
    forwarder: Arc<Forwarder>,
    key: Key,
    wire: WireKey,
}

impl InFlight {
    async fn run(self) {
        let accepted = self.forwarder.ask(&self.key).await;
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
            && let Some(stale) = cache.stale(&self.wire, now)
        {
            let freshness = if stale.until().is_some_and(|until| now < until) {
                Freshness::Fresh
            } else {
                Freshness::Stale
            };
            stale.refresh_failed();
            stale.hold(now + RECHECK);
            return Hit { entry: stale, freshness };
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

/// Asks again for what is popular before its time is over, and drops what is long past it.
async fn keep_fresh(forwarder: Weak<Forwarder>, mut wanted: mpsc::Receiver<WireKey>) {
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        let key = tokio::select! {
            key = wanted.recv() => key,
            _ = sweep.tick() => None,
        };
        let Some(forwarder) = forwarder.upgrade() else { return };
        match key.and_then(|wire| Some((wire.key()?, wire))) {
            Some((key, wire)) => {
                forwarder.metrics.prefetched.add();
                drop(forwarder.join(key, wire));
            }
            None => forwarder.cache.sweep(now()),
        }
    }
}

/// The runtime's clock, so that tests can hold it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
