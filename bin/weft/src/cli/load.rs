//! A steady stream of requests, or of datagrams, from where it runs: what tests use to see that nothing is lost meanwhile.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, MissedTickBehavior};

const PATIENCE: Duration = Duration::from_secs(5);
/// Failures told in full; all are counted.
const TOLD: usize = 20;

#[derive(clap::Args)]
pub struct Args {
    /// Where to send HTTP requests; several take turns
    #[arg(required = true)]
    address: Vec<SocketAddr>,
    /// Requests per second
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Connections kept open for each address; 0 opens one for each request
    #[arg(long, default_value_t = 0)]
    keep: usize,
    /// Send numbered datagrams over one connected socket for each address instead, and tell when who answered
    #[arg(long, conflicts_with = "keep")]
    datagrams: bool,
}

#[derive(Serialize, Deserialize, Default, Debug)]
pub struct Outcome {
    pub sent: u32,
    pub answered: u32,
    pub failed: u32,
    /// The first few, with when they happened.
    pub failures: Vec<String>,
    pub connections: u32,
    /// Answers by pod.
    pub pods: BTreeMap<String, u32>,
    pub elapsed_millis: u64,
}

type Answer = Result<String, String>;

pub async fn run(args: Args) -> Result<()> {
    if args.datagrams {
        return datagrams(args).await;
    }
    let started = Instant::now();
    let outcome = Arc::new(Mutex::new(Outcome::default()));
    let targets: Vec<Target> =
        args.address.iter().map(|address| Target::start(*address, args.keep, started, &outcome)).collect();
    let mut ticks = ticks(args.rate);
    let mut requests = tokio::task::JoinSet::new();
    let total = args.rate * args.seconds;
    for number in 0..total {
        ticks.tick().await;
        targets[number as usize % targets.len()].send(&mut requests, started, &outcome);
        while requests.try_join_next().is_some() {}
    }
    while requests.join_next().await.is_some() {}
    for target in targets {
        target.finish().await;
    }
    let mut outcome = std::mem::take(&mut *outcome.lock().await);
    outcome.sent = total;
    outcome.elapsed_millis = started.elapsed().as_millis() as u64;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// Open loop: a slow answer delays no other request.
fn ticks(rate: u32) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks
}

impl Outcome {
    fn count(&mut self, at: Duration, answer: Answer) {
        match answer {
            Ok(pod) => {
                self.answered += 1;
                *self.pods.entry(pod).or_default() += 1;
            }
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < TOLD {
                    self.failures.push(format!("after {:.3} s: {error}", at.as_secs_f64()));
                }
            }
        }
    }
}

/// One address, with connections that are kept or one for each request.
enum Target {
    Fresh(SocketAddr),
    Kept { queue: mpsc::UnboundedSender<()>, workers: tokio::task::JoinSet<()> },
}

impl Target {
    fn start(address: SocketAddr, keep: usize, started: Instant, outcome: &Arc<Mutex<Outcome>>) -> Self {
        if keep == 0 {
            return Self::Fresh(address);
        }
        let (queue, requests) = mpsc::unbounded_channel();
        let requests = Arc::new(Mutex::new(requests));
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..keep {
            workers.spawn(keep_connection(address, requests.clone(), started, outcome.clone()));
        }
        Self::Kept { queue, workers }
    }

    fn send(&self, requests: &mut tokio::task::JoinSet<()>, started: Instant, outcome: &Arc<Mutex<Outcome>>) {
        match self {
            Self::Fresh(address) => {
                let (address, outcome) = (*address, outcome.clone());
                requests.spawn(async move {
                    let answer = fresh(address).await;
                    let mut outcome = outcome.lock().await;
                    outcome.connections += 1;
                    outcome.count(started.elapsed(), answer);
                });
            }
            // The workers live as long as the queue.
            Self::Kept { queue, .. } => drop(queue.send(())),
        }
    }

    async fn finish(self) {
        if let Self::Kept { queue, mut workers } = self {
            drop(queue);
            while workers.join_next().await.is_some() {}
        }
    }
}

async fn fresh(address: SocketAddr) -> Answer {
    let exchange = async {
        let mut connection = connect(address).await?;
        request(&mut connection, address, "close").await.map(|(pod, _)| pod)
    };
    patiently(exchange).await
}

/// Sends one request after the other over its connection, and opens another when the server has asked for that.
async fn keep_connection(
    address: SocketAddr,
    requests: Arc<Mutex<mpsc::UnboundedReceiver<()>>>,
    started: Instant,
    outcome: Arc<Mutex<Outcome>>,
) {
    let mut open: Option<SendRequest<Empty<Bytes>>> = None;
    while requests.lock().await.recv().await.is_some() {
        let exchange = async {
            // A server may close between two requests; what was not sent is not lost.
            let mut usable = None;
            if let Some(mut connection) = open.take() {
                usable = connection.ready().await.is_ok().then_some(connection);
            }
            let mut connection = match usable {
                Some(connection) => connection,
                None => {
                    outcome.lock().await.connections += 1;
                    connect(address).await?
                }
            };
            let (pod, stays) = request(&mut connection, address, "keep-alive").await?;
            open = stays.then_some(connection);
            Ok(pod)
        };
        let answer = patiently(exchange).await;
        outcome.lock().await.count(started.elapsed(), answer);
    }
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Empty<Bytes>>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    stream.set_nodelay(true).map_err(|error| format!("connect: {error}"))?;
    let (sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("connect: {error}"))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Which pod answered, and whether the connection may be used again.
async fn request(
    connection: &mut SendRequest<Empty<Bytes>>,
    address: SocketAddr,
    persistence: &str,
) -> Result<(String, bool), String> {
    let request = Request::get("/")
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, persistence)
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let answer = connection.send_request(request).await.map_err(|error| format!("request: {error}"))?;
    let text = |name: &str| {
        answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (status, pod) = (answer.status(), text("weft-pod"));
    let stays = !text("connection").eq_ignore_ascii_case("close");
    answer.into_body().collect().await.map_err(|error| format!("answer: {error}"))?;
    if status.is_success() { Ok((pod, stays)) } else { Err(format!("status {status}")) }
}

async fn patiently(exchange: impl Future<Output = Answer>) -> Answer {
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
    }
}

/// What one connected socket saw.
#[derive(Serialize, Deserialize, Default, Debug)]
pub struct Stream {
    pub address: String,
    pub sent: u32,
    pub answered: u32,
    /// Runs of answers: the pod, the first datagram it answered and the last.
    pub runs: Vec<(String, u32, u32)>,
    pub errors: Vec<String>,
}

async fn datagrams(args: Args) -> Result<()> {
    let total = args.rate * args.seconds;
    let mut streams = tokio::task::JoinSet::new();
    for address in args.address {
        streams.spawn(stream(address, args.rate, total));
    }
    while let Some(stream) = streams.join_next().await {
        println!("{}", serde_json::to_string(&stream??)?);
    }
    Ok(())
}

async fn stream(address: SocketAddr, rate: u32, total: u32) -> Result<Stream> {
    let any: SocketAddr = if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    let mut seen = Stream { address: address.to_string(), ..Stream::default() };
    let mut ticks = ticks(rate);
    let mut answer = vec![0; 2048];
    let end =
        Instant::now() + Duration::from_secs_f64(f64::from(total) / f64::from(rate)) + Duration::from_secs(1);
    loop {
        tokio::select! {
            _ = ticks.tick(), if seen.sent < total => {
                seen.sent += 1;
                if let Err(error) = socket.send(format!("{:>8}", seen.sent).as_bytes()).await {
                    seen.errors.push(format!("datagram {}: {error}", seen.sent));
                }
            }
            received = socket.recv(&mut answer) => match received {
                Ok(length) => seen.answer(&answer[..length]),
                Err(error) => seen.errors.push(format!("after datagram {}: {error}", seen.sent)),
            },
            () = tokio::time::sleep_until(end) => return Ok(seen),
        }
    }
}

impl Stream {
    /// The stand-in's answer names the pod; which datagram it answers is the newest one sent, give or take those on the way.
    fn answer(&mut self, bytes: &[u8]) {
        self.answered += 1;
        let answer: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
        let pod = answer["pod"].as_str().unwrap_or("?").to_owned();
        match self.runs.last_mut() {
            Some((last, _, to)) if *last == pod => *to = self.sent,
            _ => self.runs.push((pod, self.sent, self.sent)),
        }
    }
}
