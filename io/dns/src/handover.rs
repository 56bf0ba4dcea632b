//! Sockets from one name server process to the next: the kernel keeps what arrives in between, so nothing is lost. What a
//! process does with sockets lives in `threads`.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixListener;
use tokio::time::timeout;

use crate::Error;
use crate::sockets::{Listening, Sockets};

/// A predecessor that does not answer in this time is left alone; both then share the ports.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a successor may take from sockets to serving; then the predecessor goes on.
const TAKING: Duration = Duration::from_secs(20);
/// More descriptors than one message may carry are never sent: a message holds one reader's.
const MOST_AT_ONCE: usize = 250;
const SERVING: &[u8] = b"serving\n";

/// What one message names: the descriptors that come with it, in their order.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    Reader { udp: Vec<SocketAddr>, tcp: Vec<SocketAddr> },
    End,
}

/// Beside the control socket.
pub fn path(control: &Path) -> PathBuf {
    let mut path = control.as_os_str().to_owned();
    path.push(".handover");
    path.into()
}

/// What a predecessor hands over. It goes on until it is told over the stream that its sockets are served.
pub struct Taken {
    pub listening: Listening,
    pub stream: UnixStream,
}

/// The predecessor may end.
pub fn tell_serving(mut predecessor: UnixStream) {
    if let Err(error) = predecessor.write_all(SERVING) {
        tracing::warn!(%error, "the predecessor ended before it was told to");
    }
}

/// `None`: there is no predecessor, or it hands nothing over.
pub fn take(control: &Path) -> Option<Taken> {
    let path = path(control);
    let stream = UnixStream::connect(&path).ok()?;
    let taking = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| receive(&stream));
    match taking {
        Ok(listening) => Some(Taken { listening, stream }),
        Err(error) => {
            tracing::warn!(socket = %path.display(), %error, "the predecessor handed nothing over");
            None
        }
    }
}

fn receive(stream: &UnixStream) -> io::Result<Listening> {
    let mut text = Vec::new();
    let mut descriptors = VecDeque::new();
    let mut listening = Listening { readers: Vec::new() };
    loop {
        receive_some(stream, &mut text, &mut descriptors)?;
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            match serde_json::from_slice(&line)? {
                Line::End => return Ok(listening),
                Line::Reader { udp, tcp } => {
                    let mut next =
                        || descriptors.pop_front().ok_or_else(|| io::Error::other("a socket is missing"));
                    let udp = udp.iter().map(|_| next().map(UdpSocket::from)).collect::<io::Result<_>>()?;
                    let tcp = tcp.iter().map(|_| next().map(TcpListener::from)).collect::<io::Result<_>>()?;
                    listening.readers.push(Sockets { udp, tcp });
                }
            }
        }
    }
}

fn receive_some(
    stream: &UnixStream,
    text: &mut Vec<u8>,
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    let mut space = cmsg_space!([RawFd; MOST_AT_ONCE]);
    let mut vectors = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut vectors, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just opened these for this process, and nobody else knows them.
            descriptors
                .extend(received.into_iter().map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }));
        }
    }
    let length = message.bytes;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    text.extend_from_slice(&buffer[..length]);
    Ok(())
}

/// Waits for a successor and hands the sockets over.
pub struct Handover {
    listener: UnixListener,
    path: PathBuf,
    sockets: Listening,
}

impl Handover {
    /// `sockets` are others of the same: those that threads serve stay theirs.
    pub fn listen(control: &Path, sockets: Listening) -> Result<Self, Error> {
        let path = path(control);
        let failed = |source| Error::Control { path: path.clone(), source };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        Ok(Self { listener, path, sockets })
    }

    /// Done when a successor serves the sockets. `before` prepares for a successor, `failed` takes that back.
    pub async fn handed_over(&self, before: impl Fn(), failed: impl Fn()) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a successor");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            before();
            match timeout(TAKING, self.hand_over(stream)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a successor did not take over; this process goes on")
                }
                Err(_) => tracing::warn!("a successor took too long to take over; this process goes on"),
            }
            failed();
        }
    }

    async fn hand_over(&self, mut stream: tokio::net::UnixStream) -> io::Result<()> {
        for reader in &self.sockets.readers {
            let descriptors: Vec<RawFd> = reader
                .udp
                .iter()
                .map(AsRawFd::as_raw_fd)
                .chain(reader.tcp.iter().map(AsRawFd::as_raw_fd))
                .collect();
            let udp = reader.udp.iter().map(UdpSocket::local_addr).collect::<io::Result<_>>()?;
            let tcp = reader.tcp.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
            send(&stream, &Line::Reader { udp, tcp }, &descriptors).await?;
        }
        send(&stream, &Line::End, &[]).await?;
        let mut answer = [0; SERVING.len()];
        stream.read_exact(&mut answer).await?;
        if answer == SERVING { Ok(()) } else { Err(io::Error::other("it said something else")) }
    }

    /// Nobody takes over any more.
    pub fn close(self) {
        let _ = fs::remove_file(&self.path);
    }
}

async fn send(stream: &tokio::net::UnixStream, line: &Line, descriptors: &[RawFd]) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    if descriptors.len() > MOST_AT_ONCE {
        return Err(io::Error::other("more sockets than one message can carry"));
    }
    let rights = [ControlMessage::ScmRights(descriptors)];
    let controls = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    loop {
        stream.writable().await?;
        let sent = stream.try_io(Interest::WRITABLE, || {
            let vectors = [IoSlice::new(&text)];
            let flags = MsgFlags::MSG_NOSIGNAL;
            sendmsg::<()>(stream.as_raw_fd(), &vectors, controls, flags, None).map_err(io::Error::from)
        });
        match sent {
            Ok(sent) if sent == text.len() => return Ok(()),
            Ok(_) => return Err(io::Error::other("a message did not go out whole")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
