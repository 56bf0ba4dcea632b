//! A name server under test, upstream servers with faults, and a client of our own.

#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use weft_dns::{Config, Settings};
use weft_plan::{NamePlan, NameVersion, SrvRecord, write_names};

pub struct Running {
    pub address: SocketAddr,
    pub socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), weft_dns::Error>>,
}

impl Running {
    pub async fn start(dir: &std::path::Path, upstreams: Vec<SocketAddr>) -> Self {
        let mut config = Config::new(
            "node1",
            vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            dir.join("names.json"),
            dir.join("proxy.sock"),
        );
        config.port = 0;
        config.settings = Settings::with_servers(upstreams);
        Self::start_with(config).await
    }

    pub async fn start_with(config: Config) -> Self {
        let socket = config.socket.clone();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(weft_dns::run_until(config, async {
            let _ = stopped.await;
        }));
        let started = async {
            while UnixStream::connect(&socket).await.is_err() {
                assert!(!task.is_finished(), "the server ended early");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), started).await.expect("the server did not start");
        let mut running = Self { address: ([127, 0, 0, 1], 0).into(), socket, stop: Some(stop), task };
        running.address = running.status().await["listen"][0].as_str().unwrap().parse().unwrap();
        running
    }

    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap().unwrap();
        assert!(!self.socket.exists(), "the control socket is left behind");
    }

    /// Until it has ended by itself.
    pub async fn ended(self) {
        self.task.await.unwrap().unwrap();
    }

    pub async fn put_plan(&self, plan: &NamePlan) -> u16 {
        self.http("PUT", "/plan", &message(plan)).await.0
    }

    pub async fn status(&self) -> serde_json::Value {
        let (code, body) = self.http("GET", "/status", b"").await;
        assert_eq!(code, 200);
        serde_json::from_str(&body).unwrap()
    }

    pub async fn counter(&self, name: &str) -> u64 {
        self.status().await["counters"][name].as_u64().unwrap()
    }

    pub async fn http(&self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: weft\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Rows of answered questions from now on.
    pub async fn watch(&self) -> Rows {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(b"GET /queries HTTP/1.1\r\nhost: weft\r\n\r\n").await.unwrap();
        let mut rows = Rows { stream, text: String::new() };
        // The head comes when watching has begun.
        rows.read_past("\r\n\r\n").await;
        rows
    }

    /// Asks over UDP with EDNS.
    pub async fn ask(&self, name: &str, kind: RecordType) -> Message {
        let bytes = self.ask_bytes(&question(name, kind).to_vec().unwrap()).await;
        Message::from_vec(&bytes).unwrap()
    }

    /// As a resolver does, it asks again after a second: a datagram that meets a full buffer is lost (RFC 1035, 4.2.1).
    pub async fn ask_bytes(&self, query: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.address).await.unwrap();
        let mut buffer = vec![0; 65_535];
        for _ in 0..20 {
            socket.send(query).await.unwrap();
            let answer = tokio::time::timeout(Duration::from_secs(1), socket.recv(&mut buffer)).await;
            if let Ok(length) = answer {
                buffer.truncate(length.unwrap());
                return buffer;
            }
        }
        panic!("no response to 20 queries");
    }

    pub async fn tcp(&self) -> Tcp {
        Tcp(TcpStream::connect(self.address).await.unwrap())
    }
}

pub struct Rows {
    stream: UnixStream,
    text: String,
}

impl Rows {
    async fn read_past(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.text.find(end) {
                let rest = self.text.split_off(at + end.len());
                return std::mem::replace(&mut self.text, rest);
            }
            let mut buffer = [0; 4096];
            let read = tokio::time::timeout(Duration::from_secs(20), self.stream.read(&mut buffer));
            let length = read.await.expect("no row").unwrap();
            assert!(length > 0, "no more rows");
            self.text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
    }

    /// Chunks hold whole rows, so what is between is their lengths.
    pub async fn next(&mut self) -> serde_json::Value {
        loop {
            let line = self.read_past("\n").await;
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap();
            }
        }
    }
}

/// A whole plan as an agent sends it.
pub fn message(plan: &NamePlan) -> Vec<u8> {
    let mut bytes = Vec::new();
    let head = plan.head(None, NameVersion { maker: 1, sequence: 1 });
    write_names(&mut bytes, head, plan.rows()).unwrap();
    bytes
}

pub struct Tcp(pub TcpStream);

impl Tcp {
    pub async fn send(&mut self, messages: &[Message]) {
        let mut bytes = Vec::new();
        for message in messages {
            let message = message.to_vec().unwrap();
            bytes.extend((message.len() as u16).to_be_bytes());
            bytes.extend(message);
        }
        self.0.write_all(&bytes).await.unwrap();
    }

    pub async fn receive(&mut self) -> Message {
        let read = async {
            let length = self.0.read_u16().await.unwrap();
            let mut bytes = vec![0; length.into()];
            self.0.read_exact(&mut bytes).await.unwrap();
            Message::from_vec(&bytes).unwrap()
        };
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("no response")
    }
}

pub fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message
}

pub fn rows(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| format!("{} {}", record.name, record.data)).collect()
}

/// One service with a port, a headless one with `endpoints` endpoints, one that leads outside.
pub fn plan(endpoints: u8) -> NamePlan {
    let mut plan = NamePlan {
        domain: "cluster.local".to_owned(),
        reverse: BTreeSet::from(["10.96.0.0/16".parse().unwrap()]),
        ..NamePlan::default()
    };
    for name in
        ["cluster.local", "svc.cluster.local", "shop.svc.cluster.local", "_tcp.web.shop.svc.cluster.local"]
    {
        plan.names.get_or_default(name.to_owned());
    }
    let web = "web.shop.svc.cluster.local";
    plan.names.get_or_default(web.to_owned()).a.insert(Ipv4Addr::new(10, 96, 0, 5));
    let srv = SrvRecord { priority: 0, weight: 100, port: 80, target: web.to_owned() };
    plan.names.get_or_default(format!("_http._tcp.{web}")).srv.insert(srv);
    plan.pointers.get_or_default("10.96.0.5".parse().unwrap()).insert(web.to_owned());
    plan.names.get_or_default("dns-version.cluster.local".to_owned()).txt = Some("1.1.0".to_owned());
    let many = plan.names.get_or_default("many.shop.svc.cluster.local".to_owned());
    many.a.extend((0..endpoints).map(|last| Ipv4Addr::new(10, 244, 0, last)));
    plan.names.get_or_default("out.shop.svc.cluster.local".to_owned()).cname =
        Some("a.example.test".to_owned());
    plan
}

/// What an upstream server under test does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Answers,
    /// Sends a response with another id and one to another question first.
    LiesFirst,
    /// Says "truncated" over UDP.
    Truncates,
    Silent,
    Refuses,
}

pub struct UpstreamServer {
    pub address: SocketAddr,
    pub asked: Arc<AtomicUsize>,
}

impl UpstreamServer {
    /// Every name has the address 192.0.2.1 for a minute; names that begin with `slow` after half a second,
    /// names that begin with `no` do not exist.
    pub async fn start(behaviour: Behaviour) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (Arc::new(udp), tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                // What looks for loops is nobody's question.
                let looks_for_loops =
                    query.queries[0].name().to_ascii().to_lowercase().starts_with("weft-loop-");
                counter.fetch_add(usize::from(!looks_for_loops), Ordering::SeqCst);
                let udp = udp.clone();
                tokio::spawn(async move { over_udp(&udp, client, query, behaviour).await });
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let length = stream.read_u16().await.unwrap();
                let mut bytes = vec![0; length.into()];
                stream.read_exact(&mut bytes).await.unwrap();
                let reply = answer(&Message::from_vec(&bytes).unwrap()).to_vec().unwrap();
                stream.write_u16(reply.len() as u16).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        });
        Self { address, asked }
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn over_udp(udp: &UdpSocket, client: SocketAddr, query: Message, behaviour: Behaviour) {
    if query.queries[0].name().to_ascii().to_lowercase().starts_with("slow") {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let mut reply = answer(&query);
    match behaviour {
        Behaviour::Silent => return,
        Behaviour::Answers => {}
        Behaviour::Refuses => {
            reply.answers.clear();
            reply.metadata.response_code = ResponseCode::Refused;
        }
        Behaviour::Truncates => {
            reply.answers.clear();
            reply.metadata.truncation = true;
        }
        Behaviour::LiesFirst => {
            let lie = Record::from_rdata(
                query.queries[0].name().clone(),
                600,
                RData::A(A(Ipv4Addr::new(6, 6, 6, 6))),
            );
            let mut wrong_id = reply.clone();
            wrong_id.metadata.id = wrong_id.metadata.id.wrapping_add(1);
            wrong_id.answers = vec![lie.clone()];
            let mut wrong_question = reply.clone();
            wrong_question.queries =
                vec![Query::query(Name::from_ascii("other.test.").unwrap(), RecordType::A)];
            wrong_question.answers = vec![lie];
            for lie in [wrong_id, wrong_question] {
                udp.send_to(&lie.to_vec().unwrap(), client).await.unwrap();
            }
        }
    }
    udp.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
}

fn answer(query: &Message) -> Message {
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    let asked = query.queries[0].clone();
    if asked.name().to_ascii().to_lowercase().starts_with("no") {
        reply.metadata.response_code = ResponseCode::NXDomain;
    } else if asked.query_type() == RecordType::A {
        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
        reply.add_answer(Record::from_rdata(asked.name().clone(), 60, data));
    }
    // Somebody else's name, as a poisoner would slip it in.
    let slipped = RData::A(A(Ipv4Addr::new(6, 6, 6, 6)));
    reply.add_answer(Record::from_rdata(Name::from_ascii("bank.test.").unwrap(), 600, slipped));
    reply.add_query(asked);
    reply
}
