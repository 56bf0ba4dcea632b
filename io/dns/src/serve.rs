//! Questions in, responses out, over UDP and TCP. Which answer a cluster name gets is decided in core/decide.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use weft_decide::names::{self, NameAnswer, NameData, NameRecord, QueryType};

use crate::entry::Key;
use crate::forward::Forwarder;
use crate::metrics::Metrics;
use crate::plan::{Loaded, PlanHolder};
use crate::reply::{self, Answer, Explanation, Fit, Parsed, Request, Transport};
use crate::sockets::Listening;

/// How long clients may keep what the cluster's own names say: changes must show soon.
const TTL: u32 = 5;
/// Questions that wait for upstream servers, over all clients.
const MOST_WAITING: usize = 4096;
const MOST_CONNECTIONS: usize = 1024;
const MOST_WAITING_PER_CONNECTION: usize = 64;
const TCP_IDLE: Duration = Duration::from_secs(10);
/// A response that the client does not take in this time ends its connection.
const TCP_WRITE: Duration = Duration::from_secs(5);

pub struct Server {
    plans: Arc<PlanHolder>,
    forwarder: Arc<Forwarder>,
    metrics: Arc<Metrics>,
    waiting: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

/// What became of one message.
enum Step {
    Replied,
    Ignored,
    Waits(Box<Waiting>),
}

/// A question only an upstream server can answer.
struct Waiting {
    request: Request,
    /// ExternalName aliases that led to the name asked upstream.
    chain: Vec<Record>,
    key: Key,
    transport: Transport,
    _permit: OwnedSemaphorePermit,
}

pub fn spawn(server: Arc<Server>, listening: Listening) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for socket in listening.udp {
        let server = server.clone();
        tasks.spawn(async move {
            match UdpSocket::from_std(socket) {
                Ok(socket) => server.serve_udp(Arc::new(socket)).await,
                Err(error) => tracing::error!(%error, "a UDP socket cannot be served"),
            }
        });
    }
    for listener in listening.tcp {
        let server = server.clone();
        tasks.spawn(async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => server.serve_tcp(listener).await,
                Err(error) => tracing::error!(%error, "a TCP listener cannot be served"),
            }
        });
    }
    tasks
}

impl Server {
    pub fn new(plans: Arc<PlanHolder>, forwarder: Arc<Forwarder>, metrics: Arc<Metrics>) -> Self {
        let waiting = Arc::new(Semaphore::new(MOST_WAITING));
        let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        Self { plans, forwarder, metrics, waiting, connections }
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = [0; 4096];
        let mut out = Vec::with_capacity(1500);
        loop {
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::warn!(%error, "cannot receive");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            self.metrics.udp_queries.add();
            match self.step(&buffer[..length], Transport::Udp, &mut out) {
                Step::Replied => self.sent(socket.send_to(&out, client).await),
                Step::Ignored => {}
                Step::Waits(waiting) => {
                    let (server, socket) = (self.clone(), socket.clone());
                    tokio::spawn(async move {
                        let mut out = Vec::new();
                        server.finish(*waiting, &mut out).await;
                        server.sent(socket.send_to(&out, client).await);
                    });
                }
            }
        }
    }

    fn sent(&self, result: io::Result<usize>) {
        if let Err(error) = result {
            self.metrics.dropped.add();
            tracing::debug!(%error, "a response could not be sent");
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok(permit) = self.connections.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    self.metrics.tcp_connections.add();
                    let server = self.clone();
                    tokio::spawn(async move {
                        server.serve_connection(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }

    /// Pipelined questions are answered as their answers come (RFC 7766 6.2.1.1).
    async fn serve_connection(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let (read, mut write) = stream.into_split();
        let (send, mut receive) = mpsc::channel::<Vec<u8>>(MOST_WAITING_PER_CONNECTION);
        let writer = tokio::spawn(async move {
            while let Some(framed) = receive.recv().await {
                if !matches!(timeout(TCP_WRITE, write.write_all(&framed)).await, Ok(Ok(()))) {
                    return;
                }
            }
        });
        let mut read = BufReader::new(read);
        while let Ok(Ok(message)) = timeout(TCP_IDLE, read_message(&mut read)).await {
            self.metrics.tcp_queries.add();
            let Ok(place) = send.clone().reserve_owned().await else { break };
            let mut out = Vec::new();
            match self.step(&message, Transport::Tcp, &mut out) {
                Step::Replied => _ = place.send(framed(out)),
                Step::Ignored => {}
                Step::Waits(waiting) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        server.finish(*waiting, &mut out).await;
                        place.send(framed(out));
                    });
                }
            }
        }
        drop(send);
        let _ = writer.await;
    }

    /// Everything that needs no waiting. The response, if there is one, is in `out`.
    fn step(&self, bytes: &[u8], transport: Transport, out: &mut Vec<u8>) -> Step {
        let request = match reply::parse(bytes) {
            Parsed::Question(request) => *request,
            Parsed::Refused(request, code) => {
                let answer = Answer { code, ..Answer::default() };
                self.encode(&request, answer, transport, out);
                return Step::Replied;
            }
            Parsed::Broken(bytes, code) => {
                self.count(code);
                *out = bytes;
                return Step::Replied;
            }
            Parsed::Ignored => {
                self.metrics.dropped.add();
                return Step::Ignored;
            }
        };
        match self.decide(&request) {
            Decided::Answer(answer) => self.encode(&request, *answer, transport, out),
            Decided::Upstream { chain, key } => {
                if let Some(stored) = self.forwarder.cached(&key) {
                    self.metrics.from_cache.add();
                    let answer = join(chain, stored.answer(&key.name, Instant::now()));
                    self.encode(&request, answer, transport, out);
                } else if let Ok(permit) = self.waiting.clone().try_acquire_owned() {
                    return Step::Waits(Box::new(Waiting {
                        request,
                        chain,
                        key,
                        transport,
                        _permit: permit,
                    }));
                } else {
                    self.metrics.shed.add();
                    let text = "too many questions wait for upstream name servers";
                    let answer =
                        Answer::failure(ResponseCode::ServFail, Explanation::NO_REACHABLE_AUTHORITY, text);
                    self.encode(&request, answer, transport, out);
                }
            }
        }
        Step::Replied
    }

    async fn finish(&self, waiting: Waiting, out: &mut Vec<u8>) {
        let Waiting { request, chain, key, transport, _permit } = waiting;
        let stored = self.forwarder.resolve(key.clone()).await;
        self.metrics.from_upstream.add();
        let answer = join(chain, stored.answer(&key.name, Instant::now()));
        self.encode(&request, answer, transport, out);
    }

    fn decide(&self, request: &Request) -> Decided {
        let name = request.query.name().to_ascii();
        let Some(loaded) = self.plans.current() else {
            return self.without_plan(request, &name);
        };
        let query = QueryType::from_number(request.query.query_type().into());
        let decision = names::answer(&loaded.plan, &name, query);
        let to_records = |records: &[NameRecord]| -> Vec<Record> {
            records.iter().filter_map(|record| to_record(record, request, &loaded)).collect()
        };
        let chain = to_records(&decision.chain);
        let (code, answers) = match &decision.answer {
            NameAnswer::NotOurs(target) => return forwarded(request, chain, target),
            NameAnswer::Records(records) => (ResponseCode::NoError, to_records(records)),
            NameAnswer::NoData => (ResponseCode::NoError, Vec::new()),
            NameAnswer::NxDomain => (ResponseCode::NXDomain, Vec::new()),
        };
        self.metrics.from_plan.add();
        let authorities = if answers.is_empty() { soa(&loaded).into_iter().collect() } else { Vec::new() };
        let mut all = chain;
        all.extend(answers);
        let additionals = to_records(&decision.additional);
        let answer =
            Answer { code, authoritative: true, answers: all, authorities, additionals, explanation: None };
        Decided::Answer(Box::new(answer))
    }

    /// Before the first plan nobody knows which cluster names exist, so nothing is said about them.
    fn without_plan(&self, request: &Request, name: &str) -> Decided {
        let lower = name.trim_end_matches('.').to_ascii_lowercase();
        let inside = |zone: &str| {
            lower.strip_suffix(zone).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        if inside(self.plans.domain()) || inside("in-addr.arpa") || inside("ip6.arpa") {
            self.metrics.not_ready.add();
            let text = "the node's agent has not sent the cluster's names yet";
            let answer = Answer::failure(ResponseCode::ServFail, Explanation::NOT_READY, text);
            return Decided::Answer(Box::new(answer));
        }
        forwarded(request, Vec::new(), &lower)
    }

    fn encode(&self, request: &Request, answer: Answer, transport: Transport, out: &mut Vec<u8>) {
        self.count(answer.code);
        if reply::encode(request, answer, transport, out) == Fit::Truncated {
            self.metrics.truncated.add();
        }
    }

    fn count(&self, code: ResponseCode) {
        let counter = match code {
            ResponseCode::NoError => &self.metrics.noerror,
            ResponseCode::NXDomain => &self.metrics.nxdomain,
            ResponseCode::ServFail => &self.metrics.servfail,
            ResponseCode::Refused => &self.metrics.refused,
            ResponseCode::FormErr => &self.metrics.formerr,
            _ => &self.metrics.other_code,
        };
        counter.add();
    }
}

enum Decided {
    Answer(Box<Answer>),
    Upstream { chain: Vec<Record>, key: Key },
}

fn forwarded(request: &Request, chain: Vec<Record>, target: &str) -> Decided {
    if !request.recursion_desired {
        let text = "only names of the cluster are answered without recursion";
        let answer = Answer::failure(ResponseCode::Refused, Explanation::NOT_AUTHORITATIVE, text);
        return Decided::Answer(Box::new(answer));
    }
    let name = if chain.is_empty() { Some(request.query.name().clone()) } else { to_name(target) };
    let Some(name) = name else {
        let text = format!("{target} is not a DNS name: the service's externalName is wrong");
        let answer = Answer::failure(ResponseCode::ServFail, Explanation::NOT_SUPPORTED, text);
        return Decided::Answer(Box::new(Answer { answers: chain, ..answer }));
    };
    let key = Key {
        name,
        kind: request.query.query_type(),
        dnssec_ok: request.dnssec_ok(),
        checking_disabled: request.checking_disabled,
    };
    Decided::Upstream { chain, key }
}

fn join(mut chain: Vec<Record>, mut answer: Answer) -> Answer {
    if !chain.is_empty() {
        chain.append(&mut answer.answers);
        answer.answers = chain;
    }
    answer
}

fn to_name(text: &str) -> Option<Name> {
    Name::from_ascii(format!("{}.", text.trim_end_matches('.'))).ok()
}

/// `None` for names that are too long for the wire: nobody can ask for them either.
fn to_record(record: &NameRecord, request: &Request, loaded: &Loaded) -> Option<Record> {
    let owner = to_name(&record.name)?;
    let asked = request.query.name();
    let owner = if owner == *asked { asked.clone() } else { owner };
    let data = match &record.data {
        NameData::A(addr) => RData::A(A(*addr)),
        NameData::Aaaa(addr) => RData::AAAA(AAAA(*addr)),
        NameData::Srv(srv) => RData::SRV(SRV::new(srv.priority, srv.weight, srv.port, to_name(&srv.target)?)),
        NameData::Ptr(target) => RData::PTR(PTR(to_name(target)?)),
        NameData::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
        NameData::Cname(target) => RData::CNAME(CNAME(to_name(target)?)),
        NameData::Ns(target) => RData::NS(NS(to_name(target)?)),
        NameData::Soa => return soa(loaded),
    };
    Some(Record::from_rdata(owner, TTL, data))
}

fn soa(loaded: &Loaded) -> Option<Record> {
    let domain = &loaded.plan.domain;
    let data = SOA::new(
        to_name(&format!("ns.dns.{domain}"))?,
        to_name(&format!("hostmaster.{domain}"))?,
        loaded.serial,
        7200,
        1800,
        86_400,
        TTL,
    );
    Some(Record::from_rdata(to_name(domain)?, TTL, RData::SOA(data)))
}

async fn read_message(read: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let length = read.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    read.read_exact(&mut message).await?;
    Ok(message)
}

fn framed(message: Vec<u8>) -> Vec<u8> {
    // `encode` never exceeds what a length of 16 bits can say.
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}
