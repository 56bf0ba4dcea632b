//! The serving threads as a whole: started, bounded together, ended. What one does lives in `reader`.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::Error;
use crate::fair::Limits;
use crate::reader::{Bounds, DRAIN, Mailbox, Port, Reader, Serving};
use crate::sockets::{Listening, Sockets, is_bound_to_all};

/// Ready answers of all threads together.
const READY_BYTES: usize = 12 << 20;
const MOST_CONNECTIONS: usize = 1024;
/// Questions that wait for upstream servers, over all clients.
const MOST_WAITING: usize = 4096;
/// Questions to upstream servers that a core can ask in a second with most of its time left for answers.
const RATE_PER_CORE: u32 = 2000;
/// Of all that is asked upstream, what one client may ask when there is not enough for everybody.
const CLIENT_PART: u32 = 8;

/// How often it is looked whether the last question has its answer.
const LOOK: Duration = Duration::from_millis(20);

pub struct Threads {
    serving: Arc<Serving>,
    threads: Vec<(Arc<Mailbox>, JoinHandle<()>)>,
}

/// What upstream work is taken on.
pub fn limits() -> Limits {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(64) as u32);
    let rate = RATE_PER_CORE * cores;
    Limits { waiting: MOST_WAITING, rate, client_rate: rate / CLIENT_PART }
}

impl Threads {
    pub fn start(serving: Arc<Serving>, listening: Listening) -> Result<Self, Error> {
        let count = listening.readers.len().max(1);
        let bounds =
            Bounds { ready_bytes: READY_BYTES / count, connections: MOST_CONNECTIONS.div_ceil(count) };
        let mut threads = Vec::new();
        for (number, Sockets { udp, tcp }) in listening.readers.into_iter().enumerate() {
            let port = |socket| Port { bound_to_all: is_bound_to_all(&socket), socket: Arc::new(socket) };
            let ports = udp.into_iter().map(port).collect();
            let reader = Reader::new(serving.clone(), ports, tcp, bounds).map_err(Error::Thread)?;
            let mailbox = reader.mailbox();
            let name = format!("names-{number}");
            let thread = std::thread::Builder::new().name(name).spawn(|| reader.run());
            threads.push((mailbox, thread.map_err(Error::Thread)?));
        }
        Ok(Self { serving, threads })
    }

    /// Answers what was taken, and ends.
    pub async fn end(self) {
        for (mailbox, _) in &self.threads {
            mailbox.end();
        }
        let since = Instant::now();
        for (_, thread) in self.threads {
            let ended = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(ended, Ok(Ok(()))) {
                tracing::error!("a serving thread has failed");
            }
        }
        while self.serving.admission.waiting() > 0 && since.elapsed() < DRAIN {
            tokio::time::sleep(LOOK).await;
        }
    }
}
