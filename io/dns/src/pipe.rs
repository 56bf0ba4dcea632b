//! One stream connection to an upstream server, shared by questions that do not wait for each other (RFC 7766 6.2.1).
//! Opening it lives in `exchange`.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// A connection on which nothing came for this long is closed; servers close theirs about then.
const IDLE: Duration = Duration::from_secs(10);
const MOST_QUEUED: usize = 256;
/// Under way at once; the questions' ids tell them apart.
const MOST_PENDING: usize = 1024;

/// The sending side; the connection ends when all of them are gone.
#[derive(Clone)]
pub struct Pipe {
    asks: mpsc::Sender<Ask>,
}

struct Ask {
    query: Vec<u8>,
    reply: oneshot::Sender<Vec<u8>>,
}

impl Pipe {
    /// Needs a runtime around it.
    pub fn new<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        let (asks, receive) = mpsc::channel(MOST_QUEUED);
        tokio::spawn(Connection::default().run(stream, receive));
        Self { asks }
    }

    pub fn is_open(&self) -> bool {
        !self.asks.is_closed()
    }

    /// The message that comes back with the query's id. The error is that the connection ended.
    pub async fn ask(&self, query: Vec<u8>) -> io::Result<Vec<u8>> {
        let (reply, receive) = oneshot::channel();
        let ended = || io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was closed");
        self.asks.send(Ask { query, reply }).await.map_err(|_| ended())?;
        receive.await.map_err(|_| ended())
    }
}

#[derive(Default)]
struct Connection {
    pending: Mutex<HashMap<[u8; 2], oneshot::Sender<Vec<u8>>>>,
}

impl Connection {
    /// Whoever still waits when this returns is told so by the end of its channel.
    async fn run<S: AsyncRead + AsyncWrite>(self, stream: S, asks: mpsc::Receiver<Ask>) {
        let (read, write) = tokio::io::split(stream);
        let ended = tokio::select! {
            ended = self.read(read) => ended,
            ended = self.write(write, asks) => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection to an upstream server ended");
        }
    }

    async fn read(&self, read: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut read = BufReader::new(read);
        loop {
            let Ok(length) = timeout(IDLE, read.read_u16()).await else { return Ok(()) };
            let mut message = vec![0; length?.into()];
            timeout(IDLE, read.read_exact(&mut message)).await??;
            let Some(id) = message.first_chunk::<2>() else { continue };
            if let Some(waiting) = self.pending().remove(id) {
                let _ = waiting.send(message);
            }
        }
    }

    async fn write(
        &self,
        mut write: impl AsyncWrite + Unpin,
        mut asks: mpsc::Receiver<Ask>,
    ) -> io::Result<()> {
        while let Some(Ask { query, reply }) = asks.recv().await {
            let (Some(id), Ok(length)) = (query.first_chunk::<2>(), u16::try_from(query.len())) else {
                continue;
            };
            if !self.expect(*id, reply) {
                continue;
            }
            let mut framed = Vec::with_capacity(query.len() + 2);
            framed.extend_from_slice(&length.to_be_bytes());
            framed.extend_from_slice(&query);
            write.write_all(&framed).await?;
            write.flush().await?;
        }
        Ok(())
    }

    /// False when the id is taken or too many wait: the caller is told by the end of its channel, and asks elsewhere.
    fn expect(&self, id: [u8; 2], reply: oneshot::Sender<Vec<u8>>) -> bool {
        let mut pending = self.pending();
        if pending.len() >= MOST_PENDING {
            pending.retain(|_, waiting| !waiting.is_closed());
        }
        let free = pending.get(&id).is_none_or(oneshot::Sender::is_closed) && pending.len() < MOST_PENDING;
        if free {
            pending.insert(id, reply);
        }
        free
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<[u8; 2], oneshot::Sender<Vec<u8>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    async fn take(server: &mut DuplexStream) -> Vec<u8> {
        let mut message = vec![0; server.read_u16().await.unwrap().into()];
        server.read_exact(&mut message).await.unwrap();
        message
    }

    async fn give(server: &mut DuplexStream, message: &[u8]) {
        server.write_u16(message.len() as u16).await.unwrap();
        server.write_all(message).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn answers_find_their_questions_in_any_order_and_strangers_are_dropped() {
        let (client, mut server) = duplex(4096);
        let pipe = Pipe::new(client);
        let (first, second) = (pipe.ask(b"\x00\x01one".to_vec()), pipe.ask(b"\x00\x02two".to_vec()));
        let serve = async {
            assert_eq!(take(&mut server).await, b"\x00\x01one");
            assert_eq!(take(&mut server).await, b"\x00\x02two");
            for message in [&b"\x00\x09stranger"[..], b"", b"\x00", b"\x00\x02second", b"\x00\x01first"] {
                give(&mut server, message).await;
            }
        };
        let (first, second, ()) = tokio::join!(first, second, serve);
        assert_eq!(
            (first.unwrap(), second.unwrap()),
            (b"\x00\x01first".to_vec(), b"\x00\x02second".to_vec())
        );
        assert!(pipe.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_closed_in_the_middle_of_an_answer_fails_all_that_wait() {
        let (client, mut server) = duplex(4096);
        let pipe = Pipe::new(client);
        let serve = async {
            take(&mut server).await;
            server.write_all(b"\x00\x40\x00\x01half").await.unwrap();
            drop(server);
        };
        let (answer, other, ()) =
            tokio::join!(pipe.ask(b"\x00\x01".to_vec()), pipe.ask(b"\x00\x02".to_vec()), serve);
        assert!(answer.is_err() && other.is_err());
        assert!(pipe.ask(b"\x00\x03".to_vec()).await.is_err());
        assert!(!pipe.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn an_id_under_way_is_not_used_twice_and_silence_ends_the_connection() {
        let (client, mut server) = duplex(4096);
        let pipe = Pipe::new(client);
        let twice = async {
            let second = pipe.ask(b"\x00\x01b".to_vec()).await;
            assert!(second.is_err());
        };
        let (first, ()) = tokio::join!(pipe.ask(b"\x00\x01a".to_vec()), twice);
        assert!(first.is_err() && !pipe.is_open(), "after the idle time");
        assert_eq!(take(&mut server).await, b"\x00\x01a");
    }
}
