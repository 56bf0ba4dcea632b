//! One question to one upstream server, over its sockets: UDP, then TCP for what does not fit, or a connection kept
//! open. Which server is asked, and what of the answer is kept, is decided elsewhere.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use crate::believe::{self, Match};
use crate::entry::Key;
use crate::pipe::Pipe;
use crate::reply::upstream_query;
use crate::settings::{Server, Transport};
use crate::upstreams::Upstream;

/// After so many messages to a question's port that do not answer it, somebody may be guessing: a connection is not
/// to be guessed.
const MOST_MISMATCHES: u32 = 16;
/// A query says 1232; servers that do not listen may send more.
const LARGEST_DATAGRAM: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("sent what is no answer to the question over a connection")]
    Mismatch,
    #[error("the name cannot be asked for")]
    Unaskable,
}

pub type Asking<'a> = Pin<Box<dyn Future<Output = Result<Message, Problem>> + Send + 'a>>;

/// Whoever can ask an upstream server. The message that comes back answers the question; it may be a refusal.
pub trait Exchange: Send + Sync + 'static {
    fn ask<'a>(&'a self, upstream: &'a Upstream, key: &'a Key) -> Asking<'a>;
}

/// Asks over real sockets, in the network namespace of the process.
pub struct Sockets;

impl Exchange for Sockets {
    fn ask<'a>(&'a self, upstream: &'a Upstream, key: &'a Key) -> Asking<'a> {
        Box::pin(ask(upstream, key))
    }
}

async fn ask(upstream: &Upstream, key: &Key) -> Result<Message, Problem> {
    let with_edns = upstream.speaks_edns();
    let reply = once(upstream, key, with_edns).await?;
    let code = reply.metadata.response_code;
    if !(with_edns && reply.edns.is_none() && matches!(code, ResponseCode::FormErr | ResponseCode::NotImp)) {
        return Ok(reply);
    }
    // RFC 6891 7: it may not know EDNS.
    let plain = once(upstream, key, false).await?;
    if matches!(plain.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
        upstream.does_not_speak_edns();
    }
    Ok(plain)
}

async fn once(upstream: &Upstream, key: &Key, with_edns: bool) -> Result<Message, Problem> {
    if upstream.server.transport != Transport::Udp {
        return over_line(upstream, key, with_edns).await;
    }
    match over_udp(upstream, key, with_edns).await? {
        Datagram::Whole(reply) => Ok(*reply),
        Datagram::Suspect => {
            let asked = over_line(upstream, key, with_edns).await;
            let no_tcp =
                matches!(&asked, Err(Problem::Io(error)) if error.kind() == io::ErrorKind::ConnectionRefused);
            if no_tcp && upstream.keeps_case() {
                upstream.does_not_keep_case();
                if let Datagram::Whole(reply) = over_udp(upstream, key, with_edns).await? {
                    return Ok(*reply);
                }
            }
            asked
        }
        Datagram::Truncated => over_line(upstream, key, with_edns).await,
    }
}

enum Datagram {
    Whole(Box<Message>),
    Truncated,
    /// Right but for the spelling, or one of many that are not right.
    Suspect,
}

fn query(upstream: &Upstream, key: &Key, with_edns: bool) -> Message {
    let mut name = key.name.to_lowercase();
    if upstream.keeps_case() {
        name.randomize_label_case();
    }
    let mut query = upstream_query(name, key.kind, key.dnssec_ok, key.checking_disabled);
    // RFC 6840 5.7: whether it checked signatures is of interest also without the signatures.
    query.metadata.authentic_data = true;
    if !with_edns {
        query.edns = None;
    }
    query
}

async fn over_udp(upstream: &Upstream, key: &Key, with_edns: bool) -> Result<Datagram, Problem> {
    let server = upstream.server.address;
    let query = query(upstream, key, with_edns);
    let bytes = query.to_vec().map_err(|_| Problem::Unaskable)?;
    // A fresh socket for each question: the kernel picks a random port, and a guess must hit it and the id.
    let socket = UdpSocket::bind((any_address(server), 0)).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = [0; LARGEST_DATAGRAM];
    for _ in 0..MOST_MISMATCHES {
        let length = socket.recv(&mut buffer).await?;
        match believe::read(&mut buffer[..length], &query) {
            (Match::Answers, Some(reply)) => return Ok(whole_or_not(reply)),
            (Match::OtherSpelling, Some(reply)) if !upstream.keeps_case() => return Ok(whole_or_not(reply)),
            (Match::OtherSpelling, _) => {
                upstream.mismatches.add();
                return Ok(Datagram::Suspect);
            }
            _ => upstream.mismatches.add(),
        }
    }
    Ok(Datagram::Suspect)
}

fn whole_or_not(reply: Message) -> Datagram {
    if reply.metadata.truncation { Datagram::Truncated } else { Datagram::Whole(Box::new(reply)) }
}

fn any_address(server: SocketAddr) -> IpAddr {
    if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

async fn over_line(upstream: &Upstream, key: &Key, with_edns: bool) -> Result<Message, Problem> {
    upstream.tcp.add();
    let mut retried = false;
    loop {
        let query = query(upstream, key, with_edns);
        let bytes = query.to_vec().map_err(|_| Problem::Unaskable)?;
        let (pipe, age) = upstream.line.pipe(&upstream.server).await?;
        let mut reply = match pipe.ask(bytes).await {
            Ok(reply) => reply,
            // A server may close a connection just when it is used again, and two questions may have the same id.
            Err(_) if age == Age::Reused && !retried => {
                retried = true;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let (matches, reply) = believe::read(&mut reply, &query);
        match (matches, reply) {
            (Match::Answers, Some(reply)) => return Ok(reply),
            // Nobody else can have said it over a connection.
            (Match::OtherSpelling, Some(reply)) => {
                upstream.does_not_keep_case();
                return Ok(reply);
            }
            _ => {
                upstream.mismatches.add();
                return Err(Problem::Mismatch);
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    Fresh,
    Reused,
}

/// The connection to a server, opened when it is needed and shared while it lasts.
#[derive(Default)]
pub struct Line {
    tls: Option<Arc<ClientConfig>>,
    pipe: Mutex<Option<Pipe>>,
}

impl Line {
    pub fn new(tls: Option<Arc<ClientConfig>>) -> Self {
        Self { tls, pipe: Mutex::default() }
    }

    async fn pipe(&self, server: &Server) -> io::Result<(Pipe, Age)> {
        let mut current = self.pipe.lock().await;
        if let Some(pipe) = current.as_ref().filter(|pipe| pipe.is_open()) {
            return Ok((pipe.clone(), Age::Reused));
        }
        let pipe = self.open(server).await?;
        *current = Some(pipe.clone());
        Ok((pipe, Age::Fresh))
    }

    async fn open(&self, server: &Server) -> io::Result<Pipe> {
        let stream = TcpStream::connect(server.address).await?;
        stream.set_nodelay(true)?;
        let Some(config) = &self.tls else { return Ok(Pipe::new(stream)) };
        let name = match &server.server_name {
            Some(name) => ServerName::try_from(name.clone()).map_err(io::Error::other)?,
            None => ServerName::IpAddress(server.address.ip().into()),
        };
        let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
        Ok(Pipe::new(stream))
    }
}
