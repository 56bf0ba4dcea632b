//! Asking upstream servers for names that are not the cluster's: bounded, shared by equal questions, checked
//! against the question. What is kept of the answers lives in `cache`.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::cache::{Cache, Key, Stored};
use crate::metrics::Metrics;
use crate::reply::{Explanation, upstream_query};

/// Resolvers in pods give up after 5 s: all attempts together must end before.
const ALL_ATTEMPTS: Duration = Duration::from_millis(4500);
const ONE_ATTEMPT: Duration = Duration::from_millis(1500);
const ROUNDS: usize = 2;
/// After this many failures in a row a server is asked last for a while.
const FAILURES_TO_REST: u32 = 2;
const REST: Duration = Duration::from_secs(5);
const LONGEST_CHAIN: usize = 16;

pub struct Forwarder {
    upstreams: Vec<Upstream>,
    metrics: Arc<Metrics>,
    cache: Mutex<Cache>,
    /// Questions under way, and who waits for each.
    waiting: Mutex<HashMap<Key, Vec<oneshot::Sender<Arc<Stored>>>>>,
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
    pub fn new(servers: Vec<SocketAddr>, metrics: Arc<Metrics>) -> Arc<Self> {
        let upstream =
            |address| Upstream { address, failures: AtomicU32::new(0), rests_until: AtomicU64::new(0) };
        Arc::new(Self {
            upstreams: servers.into_iter().map(upstream).collect(),
            metrics,
            cache: Mutex::default(),
            waiting: Mutex::default(),
            started: Instant::now(),
        })
    }

    pub fn cached(&self, key: &Key) -> Option<Arc<Stored>> {
        lock(&self.cache).get(key, Instant::now())
    }

    pub fn cache_entries(&self) -> usize {
        lock(&self.cache).len()
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
    pub async fn resolve(self: &Arc<Self>, key: Key) -> Arc<Stored> {
        let (send, receive) = oneshot::channel();
        let first = {
            let mut waiting = lock(&self.waiting);
            let waiters = waiting.entry(key.clone()).or_default();
            waiters.push(send);
            waiters.len() == 1
        };
        if first {
            let entry = InFlight { forwarder: self.clone(), key };
            tokio::spawn(entry.run());
        } else {
            self.metrics.upstream_shared.add();
        }
        receive.await.unwrap_or_else(|_| Arc::new(failure("the name server is ending")))
    }

    async fn ask(&self, key: &Key) -> Stored {
        if self.upstreams.is_empty() {
            return failure("this node has no upstream name servers");
        }
        let mut last = None;
        let asking = async {
            for _ in 0..ROUNDS {
                for upstream in self.in_order() {
                    match self.attempt(upstream, key).await {
                        Ok(stored) => return Some(stored),
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

    async fn attempt(&self, upstream: &Upstream, key: &Key) -> Result<Stored, String> {
        self.metrics.upstream_queries.add();
        let outcome = match timeout(ONE_ATTEMPT, self.exchange(upstream.address, key)).await {
            Ok(Ok(message)) => usable(message, key),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        match outcome {
            Ok(stored) => {
                upstream.failures.store(0, Ordering::Relaxed);
                upstream.rests_until.store(0, Ordering::Relaxed);
                Ok(stored)
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
            match Message::from_vec(&buffer[..length]) {
                Ok(reply) if answers(&reply, query) => return Ok(reply),
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
    let reply = Message::from_vec(&reply).map_err(io::Error::other)?;
    if answers(&reply, query) { Ok(reply) } else { Err(io::Error::other("answered another question")) }
}

/// Whether a message is the response to exactly this query (RFC 5452 9.1).
fn answers(reply: &Message, query: &Message) -> bool {
    reply.metadata.id == query.metadata.id
        && reply.metadata.message_type == MessageType::Response
        && reply.metadata.op_code == query.metadata.op_code
        && reply.queries.len() == 1
        && reply.queries == query.queries
}

/// What of a response may be believed and kept: the records that lead from the question to its answer, and the
/// SOA of a negative one. Everything else could be about somebody else's names.
fn usable(message: Message, key: &Key) -> Result<Stored, String> {
    let code = message.metadata.response_code;
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return Err(format!("answered {code}"));
    }
    let mut names = vec![key.name.clone()];
    while names.len() <= LONGEST_CHAIN {
        let last = names.last().expect("the question's name is there from the start");
        let next = message.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *last && key.kind != RecordType::CNAME => {
                Some(target.0.clone())
            }
            _ => None,
        });
        match next {
            Some(next) if !names.contains(&next) => names.push(next),
            _ => break,
        }
    }
    let last = names.last().cloned().unwrap_or_else(Name::root);
    let answers: Vec<Record> =
        message.answers.into_iter().filter(|record| names.contains(&record.name)).collect();
    let negative = !answers.iter().any(|record| record.name == last && record.record_type() == key.kind);
    let about = |record: &Record| negative && record.name.zone_of(&last);
    let authorities = message.authorities.into_iter().filter(about).filter(is_denial).collect();
    Ok(Stored { code, answers, authorities, explanation: None, at: Instant::now() })
}

/// Records that prove or date a negative answer.
fn is_denial(record: &Record) -> bool {
    matches!(record.record_type(), RecordType::SOA | RecordType::NSEC | RecordType::NSEC3 | RecordType::RRSIG)
}

fn failure(text: &str) -> Stored {
    let explanation = Explanation { code: Explanation::NO_REACHABLE_AUTHORITY, text: text.to_owned() };
    Stored {
        code: ResponseCode::ServFail,
        answers: Vec::new(),
        authorities: Vec::new(),
        explanation: Some(explanation),
        at: Instant::now(),
    }
}

/// One question under way. However it ends, nobody is left waiting for it.
struct InFlight {
    forwarder: Arc<Forwarder>,
    key: Key,
}

impl InFlight {
    async fn run(self) {
        let stored = Arc::new(self.forwarder.ask(&self.key).await);
        lock(&self.forwarder.cache).put(self.key.clone(), stored.clone());
        let waiters = lock(&self.forwarder.waiting).remove(&self.key).unwrap_or_default();
        for waiter in waiters {
            let _ = waiter.send(stored.clone());
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if std::thread::panicking() {
            lock(&self.forwarder.waiting).remove(&self.key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn key(text: &str) -> Key {
        Key { name: name(text), kind: RecordType::A, dnssec_ok: false, checking_disabled: false }
    }

    fn address(owner: &str, last: u8) -> Record {
        Record::from_rdata(name(owner), 60, RData::A(A(Ipv4Addr::new(192, 0, 2, last))))
    }

    fn alias(owner: &str, target: &str) -> Record {
        Record::from_rdata(name(owner), 60, RData::CNAME(CNAME(name(target))))
    }

    #[test]
    fn only_the_questions_own_records_are_believed() {
        let mut message = Message::response(1, hickory_proto::op::OpCode::Query);
        message.add_answers([
            alias("www.example.", "host.example."),
            address("host.example.", 1),
            address("bank.test.", 66),
        ]);
        message.authorities = vec![address("ns.bank.test.", 66)];
        message.additionals = vec![address("bank.test.", 66)];
        let stored = usable(message, &key("www.example.")).unwrap();
        let owners: Vec<_> = stored.answers.iter().map(|record| record.name.to_ascii()).collect();
        assert_eq!(owners, ["www.example.", "host.example."]);
        assert!(stored.authorities.is_empty());
    }

    #[test]
    fn circles_of_aliases_end() {
        let mut message = Message::response(1, hickory_proto::op::OpCode::Query);
        message.add_answers([alias("a.example.", "b.example."), alias("b.example.", "a.example.")]);
        assert_eq!(usable(message, &key("a.example.")).unwrap().answers.len(), 2);
    }

    #[test]
    fn a_response_must_match_the_query_in_everything() {
        let query = upstream_query(name("a.example."), RecordType::A, false, false);
        let mut good = Message::response(query.metadata.id, query.metadata.op_code);
        good.add_query(Query::query(name("A.EXAMPLE."), RecordType::A));
        assert!(answers(&good, &query));
        let mut wrong_id = good.clone();
        wrong_id.metadata.id = wrong_id.metadata.id.wrapping_add(1);
        let mut wrong_name = good.clone();
        wrong_name.queries[0].set_name(name("b.example."));
        let mut wrong_type = good.clone();
        wrong_type.queries[0].set_query_type(RecordType::AAAA);
        let mut echo = good;
        echo.metadata.message_type = MessageType::Query;
        for bad in [wrong_id, wrong_name, wrong_type, echo] {
            assert!(!answers(&bad, &query), "{bad}");
        }
    }
}
