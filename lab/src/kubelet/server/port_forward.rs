//! `/portForward`: connections from inside the pod's network, carried over a WebSocket; either as SPDY streams,
//! as kubectl asks, or as pairs of channels, the older way of other clients.
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::SplitSink;
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::query::Query;
use super::spdy::{self, Fin, Frame, Reader, StreamId, Writer};
use super::websocket::{Socket, upgrade};
use super::{Body, Refusal};
use crate::kubelet::shared::PodSnapshot;

const LONGEST_CONNECT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
enum Protocol {
    SpdyTunnel,
    Channels,
}

const PROTOCOLS: [(&str, Protocol); 2] =
    [("SPDY/3.1+portforward.k8s.io", Protocol::SpdyTunnel), ("v4.channel.k8s.io", Protocol::Channels)];

pub fn answer(
    pod: &PodSnapshot,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let inside = Inside(pod.netns.clone());
    let listed = query.all("port").chain(query.all("ports")).flat_map(|value| value.split(','));
    let ports = listed.map(str::parse).collect::<Result<Vec<u16>, _>>();
    let ports = ports.map_err(|error| Refusal::bad(format!("port: {error}")))?;
    upgrade(request, &PROTOCOLS, move |protocol, socket| async move {
        let talked = match protocol {
            Protocol::SpdyTunnel => tunnel(inside, socket).await,
            Protocol::Channels => channels(inside, &ports, socket).await,
        };
        if let Err(error) = talked {
            tracing::debug!("port-forward: {error}");
        }
    })
}

/// The network a connection is made in; the node's own for a pod that shares it.
#[derive(Clone)]
struct Inside(Option<PathBuf>);

impl Inside {
    async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let netns = self.0.clone();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        // A thread of its own, since it changes its network namespace and then ends.
        std::thread::spawn(move || {
            // Nobody waits any more if the client has gone.
            let _ = sender.send(connect_inside(netns, port));
        });
        let stream = receiver.await.map_err(io::Error::other)??;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }
}

fn connect_inside(netns: Option<PathBuf>, port: u16) -> io::Result<std::net::TcpStream> {
    if let Some(path) = netns {
        nix::sched::setns(File::open(path)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
    }
    let four = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    std::net::TcpStream::connect_timeout(&four, LONGEST_CONNECT).or_else(|first| {
        let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        std::net::TcpStream::connect_timeout(&six, LONGEST_CONNECT).map_err(|_| first)
    })
}

/// Whole messages for the client. One task alone writes them, so that no stream waits for another's reader.
type ToClient = mpsc::Sender<Vec<u8>>;

fn write_messages(mut sink: SplitSink<Socket, Message>) -> ToClient {
    let (sender, mut messages) = mpsc::channel::<Vec<u8>>(64);
    tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            if sink.send(Message::Binary(message.into())).await.is_err() {
                return;
            }
        }
        // The client may have closed first.
        let _ = sink.close().await;
    });
    sender
}

/// The two streams of one connection, as the client pairs them.
#[derive(Default)]
struct Pair {
    error: Option<StreamId>,
    data: Option<(StreamId, u16)>,
}

struct Tunnel {
    inside: Inside,
    out: ToClient,
    pairs: HashMap<String, Pair>,
    /// Where the bytes of each open data stream go.
    inputs: HashMap<StreamId, mpsc::Sender<Bytes>>,
}

async fn tunnel(inside: Inside, socket: Socket) -> io::Result<()> {
    let (sink, mut messages) = socket.split();
    let out = write_messages(sink);
    let mut tunnel = Tunnel { inside, out, pairs: HashMap::new(), inputs: HashMap::new() };
    let (mut reader, mut writer) = (Reader::default(), Writer::default());
    while let Some(Ok(message)) = messages.next().await {
        match message {
            Message::Binary(bytes) => reader.push(&bytes),
            Message::Close(_) => break,
            _ => continue,
        }
        while let Some(frame) = reader.next().map_err(io::Error::other)? {
            if let Some(answer) = tunnel.take(frame, &mut writer).await {
                tunnel.out.send(answer).await.map_err(io::Error::other)?;
            }
        }
    }
    Ok(())
}

impl Tunnel {
    async fn take(&mut self, frame: Frame, writer: &mut Writer) -> Option<Vec<u8>> {
        match frame {
            Frame::Open { id, headers, .. } => {
                let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
                let pair = self.pairs.entry(header("requestid")).or_default();
                match header("streamtype").as_str() {
                    "error" => pair.error = Some(id),
                    _ => pair.data = Some((id, header("port").parse().unwrap_or_default())),
                }
                self.start(&header("requestid"));
                Some(writer.reply(id))
            }
            Frame::Data { id, bytes, fin } => {
                if let Some(input) = self.inputs.get(&id) {
                    // A connection that has ended takes no more; its end is on its way to the client.
                    let _ = input.send(bytes).await;
                }
                if fin == Fin::Closed {
                    self.inputs.remove(&id);
                }
                None
            }
            Frame::Reset { id } => {
                self.inputs.remove(&id);
                None
            }
            Frame::Ping { id } => Some(spdy::pong(id)),
            Frame::GoAway | Frame::Other => None,
        }
    }

    /// Connects once both streams of a request are there.
    fn start(&mut self, request: &str) {
        let Some(Pair { error: Some(error), data: Some((data, port)) }) = self.pairs.get(request) else {
            return;
        };
        let (error, data, port) = (*error, *data, *port);
        self.pairs.remove(request);
        let (input, bytes) = mpsc::channel(64);
        self.inputs.insert(data, input);
        let (inside, out) = (self.inside.clone(), self.out.clone());
        tokio::spawn(async move {
            let complaint = match inside.connect(port).await {
                Ok(stream) => {
                    forward(stream, |bytes| spdy::data(data, bytes, Fin::Open), bytes, &out).await.err()
                }
                Err(failure) => Some(failure),
            };
            let text = complaint
                .map(|failure| format!("error forwarding port {port} to pod: {failure}"))
                .unwrap_or_default();
            // The error stream closes first: a client takes the data stream's end for the end of the connection.
            for (stream, text) in [(error, text), (data, String::new())] {
                // Nobody is left to tell if the socket is gone.
                let _ = out.send(spdy::data(stream, text.as_bytes(), Fin::Closed)).await;
            }
        });
    }
}

/// Copies both ways until the pod's side ends.
async fn forward(
    stream: TcpStream,
    message: impl Fn(&[u8]) -> Vec<u8>,
    mut input: mpsc::Receiver<Bytes>,
    out: &ToClient,
) -> io::Result<()> {
    let (mut from, mut to) = stream.into_split();
    let writing = tokio::spawn(async move {
        while let Some(bytes) = input.recv().await {
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    });
    let mut buffer = vec![0; 32 << 10];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        if out.send(message(&buffer[..length])).await.is_err() {
            break;
        }
    }
    writing.abort();
    Ok(())
}

/// The older way: port number `i` of the request has the channels `2 i` for data and `2 i + 1` for its error.
async fn channels(inside: Inside, ports: &[u16], socket: Socket) -> io::Result<()> {
    let (sink, mut messages) = socket.split();
    let out = write_messages(sink);
    let mut inputs = HashMap::new();
    for (index, port) in ports.iter().enumerate() {
        let Ok(channel) = u8::try_from(index * 2) else { break };
        // Each channel begins with the port's number.
        for channel in [channel, channel + 1] {
            out.send(on_channel(channel, &port.to_le_bytes())).await.map_err(io::Error::other)?;
        }
        let (input, bytes) = mpsc::channel(64);
        inputs.insert(channel, input);
        tokio::spawn(serve_channel(inside.clone(), *port, channel, bytes, out.clone()));
    }
    drop(out);
    while let Some(Ok(message)) = messages.next().await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Close(_) => break,
            _ => continue,
        };
        if let Some(input) = bytes.first().and_then(|channel| inputs.get(channel)) {
            // A connection that has ended takes no more.
            let _ = input.send(bytes.slice(1..)).await;
        }
    }
    Ok(())
}

fn on_channel(channel: u8, bytes: &[u8]) -> Vec<u8> {
    [&[channel], bytes].concat()
}

async fn serve_channel(inside: Inside, port: u16, channel: u8, input: mpsc::Receiver<Bytes>, out: ToClient) {
    let complaint = match inside.connect(port).await {
        Ok(stream) => forward(stream, |bytes| on_channel(channel, bytes), input, &out).await.err(),
        Err(failure) => Some(failure),
    };
    if let Some(failure) = complaint {
        let text = format!("error forwarding port {port} to pod: {failure}");
        // Nobody is left to tell if the socket is gone.
        let _ = out.send(on_channel(channel + 1, text.as_bytes())).await;
    }
}
