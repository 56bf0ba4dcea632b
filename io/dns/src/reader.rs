//! One serving thread: questions from its own sockets, ready answers at once, all else by turns of the clients. How an answer
//! is made lives in `serve`.

use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::batch::{self, BATCH, Batch, Client};
use crate::connections::{Connection, Connections, Fate, Frame, frame};
use crate::fair::{Admission, FairQueue, Permit, Shed};
use crate::metrics::Metrics;
use crate::poll::{Bell, Interest, Poll};
use crate::quick::{Look, Quick, Written};
use crate::reply::Transport;
use crate::serve::{Made, Server, Step, Waiting};
use crate::tally::{Sources, Tally};
use crate::watch_queries::{Seen, Watchers};
use crate::wire;

/// Batches of one socket before the others have their turn.
const MOST_BATCHES: usize = 8;
/// How long costly work goes on before sockets are looked at again.
const SLICE: Duration = Duration::from_micros(100);
const MOST_QUEUED: usize = 4096;
const SWEEP: Duration = Duration::from_secs(1);
/// How often a thread that ends looks whether it has ended.
const ENDING: Duration = Duration::from_millis(50);
const SCRATCH: usize = 64 << 10;
const MOST_READS: usize = 4;
/// How long a thread that ends waits for answers under way.
pub const DRAIN: Duration = Duration::from_secs(6);

/// What all threads share.
pub struct Serving {
    pub server: Arc<Server>,
    pub metrics: Arc<Metrics>,
    pub admission: Arc<Admission>,
    pub runtime: Handle,
    pub watchers: Arc<Watchers>,
}

/// A UDP socket of one thread.
pub struct Port {
    pub socket: Arc<UdpSocket>,
    pub bound_to_all: bool,
}

/// How others reach a thread.
pub struct Mailbox {
    bell: Bell,
    letters: Mutex<Vec<Letter>>,
    order: AtomicU8,
}

/// An answer for a connection.
struct Letter {
    index: usize,
    serial: u64,
    answer: Vec<u8>,
}

const GO_ON: u8 = 0;
const END: u8 = 1;

impl Mailbox {
    fn put(&self, letter: Letter) {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).push(letter);
        self.bell.ring();
    }

    /// Takes nothing new, answers what was taken, and ends.
    pub fn end(&self) {
        self.order.store(END, Ordering::Release);
        self.bell.ring();
    }
}

/// A question that needs more than a look.
struct Work {
    message: Box<[u8]>,
    from: From,
    arrived: Instant,
}

#[derive(Clone, Copy)]
enum From {
    Udp { port: usize, client: Client },
    Tcp { index: usize, serial: u64 },
}

impl From {
    fn transport(&self) -> Transport {
        match self {
            Self::Udp { .. } => Transport::Udp,
            Self::Tcp { .. } => Transport::Tcp,
        }
    }
}

pub struct Reader {
    serving: Arc<Serving>,
    mailbox: Arc<Mailbox>,
    ports: Vec<Port>,
    listeners: Vec<TcpListener>,
    connections: Connections,
    poll: Poll,
    batch: Batch,
    quick: Quick,
    queue: FairQueue<Work>,
    tally: Tally,
    scratch: Box<[u8]>,
    out: Vec<u8>,
    swept: Instant,
    /// Since when no new questions are taken.
    ending: Option<Instant>,
}

/// Bounds of one thread.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub ready_bytes: usize,
    pub connections: usize,
}

const BELL: u64 = 0;
const PORT: u64 = 1 << 32;
const LISTENER: u64 = 2 << 32;
const CONNECTION: u64 = 3 << 32;

impl Reader {
    pub fn new(
        serving: Arc<Serving>,
        ports: Vec<Port>,
        listeners: Vec<TcpListener>,
        bounds: Bounds,
    ) -> io::Result<Self> {
        let mailbox = Mailbox { bell: Bell::new()?, letters: Mutex::default(), order: AtomicU8::new(GO_ON) };
        let poll = Poll::new()?;
        poll.add(&mailbox.bell, BELL, Interest::READ)?;
        for (index, port) in ports.iter().enumerate() {
            poll.add(&port.socket, PORT | index as u64, Interest::READ)?;
        }
        for (index, listener) in listeners.iter().enumerate() {
            poll.add(listener, LISTENER | index as u64, Interest::READ)?;
        }
        let now = Instant::now();
        Ok(Self {
            serving,
            mailbox: Arc::new(mailbox),
            ports,
            listeners,
            connections: Connections::new(bounds.connections),
            poll,
            batch: Batch::new(),
            quick: Quick::new(bounds.ready_bytes, now),
            queue: FairQueue::new(MOST_QUEUED),
            tally: Tally::default(),
            scratch: vec![0; SCRATCH].into(),
            out: Vec::with_capacity(4096),
            swept: now,
            ending: None,
        })
    }

    pub fn mailbox(&self) -> Arc<Mailbox> {
        self.mailbox.clone()
    }

    /// Serves until it is told to end and has answered what it took.
    pub fn run(mut self) {
        let mut tokens = Vec::new();
        loop {
            let time = match self.ending {
                _ if !self.queue.is_empty() => Duration::ZERO,
                Some(_) => ENDING,
                None => SWEEP,
            };
            if let Err(error) = self.poll.wait(time, &mut tokens) {
                tracing::error!(%error, "cannot wait for questions");
                std::thread::sleep(Duration::from_millis(10));
            }
            for token in &tokens {
                let index = (token & u64::from(u32::MAX)) as usize;
                match token & !u64::from(u32::MAX) {
                    PORT => self.serve_udp(index),
                    LISTENER => self.accept(index),
                    CONNECTION => self.serve_connection(index),
                    _ => self.open_mailbox(),
                }
            }
            self.work();
            self.serving.metrics.serving.add(&mut self.tally);
            if self.sweep() {
                return;
            }
        }
    }

    fn serve_udp(&mut self, index: usize) {
        for _ in 0..MOST_BATCHES {
            let port = &self.ports[index];
            let received = match self.batch.receive(&port.socket, port.bound_to_all) {
                Ok(received) => received,
                Err(error) => {
                    // Also how the kernel reports that an earlier answer was refused: not this socket's end.
                    tracing::debug!(%error, "cannot receive");
                    return;
                }
            };
            if received == 0 {
                return;
            }
            self.serve_batch(index, received);
            if received < BATCH {
                return;
            }
        }
    }

    fn serve_batch(&mut self, port: usize, received: usize) {
        let arrived = Instant::now();
        let mut counts = Sources::default();
        for index in 0..received {
            let client = self.batch.clients[index];
            let from = (client.address(), Transport::Udp);
            let (message, room) = self.batch.both(index);
            match self.quick.look(&self.serving.server, message, from, arrived, room) {
                Look::Written(written) => {
                    self.serving.watch(from, message, &written, arrived);
                    self.batch.answered(index, written.length);
                    counts.count(&mut self.tally, Transport::Udp, &written);
                }
                Look::Unknown => {
                    self.tally.question(Transport::Udp, wire::kind(message));
                    let message = message.into();
                    let work = Work { message, from: From::Udp { port, client }, arrived };
                    self.enqueue(from.0, work);
                }
            }
        }
        self.tally.dropped += self.batch.send(&self.ports[port].socket) as u64;
        counts.took(&mut self.tally, arrived.elapsed());
    }

    fn enqueue(&mut self, client: IpAddr, work: Work) {
        if let Err(work) = self.queue.push(client, work) {
            self.shed(client, &work, Shed::Queue);
        }
    }

    /// Costly work, client by client, for a while.
    fn work(&mut self) {
        let start = Instant::now();
        while let Some((client, work)) = self.queue.pop() {
            self.make(client, work);
            if start.elapsed() >= SLICE {
                return;
            }
        }
    }

    fn make(&mut self, client: IpAddr, work: Work) {
        let from = (client, work.from.transport());
        // The same question may have been answered since this one came.
        let look =
            self.quick.look(&self.serving.server, &work.message, from, Instant::now(), &mut self.scratch);
        if let Look::Written(written) = look {
            let answer = self.scratch[..written.length].to_vec();
            self.serving.watch(from, &work.message, &written, work.arrived);
            self.tally.answer(written.source, written.code.into());
            self.tally.truncated += u64::from(written.truncated);
            self.tally.took(written.source, work.arrived.elapsed(), 1);
            return self.reply(&work.from, &answer);
        }
        let mut out = std::mem::take(&mut self.out);
        match self.serving.server.step(&work.message, from, &mut out) {
            Step::Made(made) => {
                self.quick.remember(&self.serving.server, &work.message, client, &made, &out);
                self.made(client, &work, &made, &out);
            }
            Step::Ignored => {
                self.tally.dropped += 1;
                self.reply(&work.from, &[]);
            }
            Step::Waits(waiting) => match self.serving.admission.enter(client, Instant::now()) {
                Ok(permit) => self.wait(client, work, waiting, permit),
                Err(reason) => self.shed(client, &work, reason),
            },
        }
        self.out = out;
    }

    fn made(&mut self, client: IpAddr, work: &Work, made: &Made, answer: &[u8]) {
        made.count(&mut self.tally);
        let from = (client, work.from.transport());
        self.serving.saw(from, &work.message, made, work.arrived);
        self.reply(&work.from, answer);
        self.tally.took(made.source, work.arrived.elapsed(), 1);
    }

    /// An empty answer is none.
    fn reply(&mut self, from: &From, answer: &[u8]) {
        match from {
            From::Udp { .. } if answer.is_empty() => {}
            From::Udp { port, client } => {
                if batch::send(&self.ports[*port].socket, client, answer).is_err() {
                    self.tally.dropped += 1;
                }
            }
            From::Tcp { index, serial } => self.deliver(*index, *serial, answer),
        }
    }

    fn wait(&mut self, client: IpAddr, work: Work, waiting: Box<Waiting>, permit: Permit) {
        let Work { message, from, arrived } = work;
        let asker = (client, from.transport());
        let serving = self.serving.clone();
        match from {
            From::Udp { port, client } => {
                let socket = self.ports[port].socket.clone();
                self.serving.runtime.spawn(async move {
                    let answer = serving.finish(*waiting, asker, &message, arrived).await;
                    if batch::send(&socket, &client, &answer).is_err() {
                        serving.metrics.serving.dropped.add();
                    }
                    drop(permit);
                });
            }
            From::Tcp { index, serial } => {
                let mailbox = self.mailbox.clone();
                self.serving.runtime.spawn(async move {
                    let answer = serving.finish(*waiting, asker, &message, arrived).await;
                    mailbox.put(Letter { index, serial, answer });
                    drop(permit);
                });
            }
        }
    }

    fn shed(&mut self, client: IpAddr, work: &Work, reason: Shed) {
        self.serving.metrics.serving.shed(reason);
        let mut out = Vec::new();
        match self.serving.server.shed(&work.message, work.from.transport(), &mut out) {
            Some(made) => self.made(client, work, &made, &out),
            None => {
                self.tally.dropped += 1;
                self.reply(&work.from, &[]);
            }
        }
    }

    fn accept(&mut self, index: usize) {
        for _ in 0..BATCH {
            let (stream, client) = match self.listeners[index].accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::debug!(%error, "cannot accept");
                    return;
                }
            };
            self.serving.metrics.serving.tcp_connections.add();
            if stream.set_nonblocking(true).is_err() || stream.set_nodelay(true).is_err() {
                continue;
            }
            let Some(index) = self.connections.add(stream, client.ip(), Instant::now()) else {
                self.serving.metrics.serving.shed(Shed::Connections);
                continue;
            };
            let token = CONNECTION | index as u64;
            let added = self
                .connections
                .get(index)
                .map(|connection| self.poll.add(&connection.stream, token, Interest::READ));
            if !matches!(added, Some(Ok(())))
                && let Some(connection) = self.connections.take(index)
            {
                self.connections.end(index, &connection);
            }
        }
    }

    fn serve_connection(&mut self, index: usize) {
        let Some(mut connection) = self.connections.take(index) else { return };
        let now = Instant::now();
        // Woken although it waits for nothing of the client: the client is gone.
        let mut fate = if connection.interest == Interest::default() { Fate::Ends } else { Fate::Stays };
        for _ in 0..MOST_READS {
            if fate == Fate::Ends {
                break;
            }
            let read = match connection.read(&mut self.scratch, now) {
                Ok(read) => read,
                Err(_) => {
                    fate = Fate::Ends;
                    break;
                }
            };
            fate = self.answer_input(index, &mut connection, now);
            if read < SCRATCH {
                break;
            }
        }
        if fate == Fate::Stays {
            fate = self.answer_and_flush(index, &mut connection, now);
        }
        self.settle(index, connection, fate);
    }

    /// Sends what there is, and goes on with whole questions that had to wait for room among the answers.
    fn answer_and_flush(&mut self, index: usize, connection: &mut Connection, now: Instant) -> Fate {
        loop {
            let was_full = connection.is_full();
            let fate = connection.flush(now);
            if fate == Fate::Ends || !was_full || connection.is_full() {
                return fate;
            }
            if self.answer_input(index, connection, now) == Fate::Ends {
                return Fate::Ends;
            }
        }
    }

    fn settle(&mut self, index: usize, mut connection: Connection, fate: Fate) {
        let wanted = connection.wanted();
        let mut keeps = fate == Fate::Stays;
        if keeps && wanted != connection.interest {
            connection.interest = wanted;
            keeps = self.poll.change(&connection.stream, CONNECTION | index as u64, wanted).is_ok();
        }
        if keeps {
            self.connections.put(index, connection);
        } else {
            self.connections.end(index, &connection);
        }
    }

    /// Answers the questions that have come whole.
    fn answer_input(&mut self, index: usize, connection: &mut Connection, now: Instant) -> Fate {
        let input = connection.take_input();
        let from = (connection.client, Transport::Tcp);
        let mut used = 0;
        let mut counts = Sources::default();
        let mut fate = Fate::Stays;
        while !connection.is_full() {
            let message = match frame(&input[used..]) {
                Frame::Whole(message) => message,
                Frame::Part => break,
                Frame::TooLong => {
                    self.tally.dropped += 1;
                    fate = Fate::Ends;
                    break;
                }
            };
            used += 2 + message.len();
            match self.quick.look(&self.serving.server, message, from, now, &mut self.scratch) {
                Look::Written(written) => {
                    connection.answer(&self.scratch[..written.length]);
                    self.serving.watch(from, message, &written, now);
                    counts.count(&mut self.tally, Transport::Tcp, &written);
                }
                Look::Unknown => {
                    self.tally.question(Transport::Tcp, wire::kind(message));
                    let from = From::Tcp { index, serial: connection.serial };
                    let work = Work { message: message.into(), from, arrived: now };
                    match self.queue.push(connection.client, work) {
                        Ok(()) => connection.waiting += 1,
                        Err(work) => self.shed_here(connection, &work),
                    }
                }
            }
        }
        connection.put_back(input, used);
        counts.took(&mut self.tally, now.elapsed());
        fate
    }

    /// The connection is in hand, so its answer does not go by way of its place.
    fn shed_here(&mut self, connection: &mut Connection, work: &Work) {
        self.serving.metrics.serving.shed(Shed::Queue);
        let mut out = Vec::new();
        if let Some(made) = self.serving.server.shed(&work.message, Transport::Tcp, &mut out) {
            made.count(&mut self.tally);
            connection.answer(&out);
        }
    }

    fn deliver(&mut self, index: usize, serial: u64, answer: &[u8]) {
        // Another client may have its place by now.
        if self.connections.get(index).is_none_or(|connection| connection.serial != serial) {
            return;
        }
        let Some(mut connection) = self.connections.take(index) else { return };
        connection.waiting -= 1;
        if !answer.is_empty() {
            connection.answer(answer);
        }
        let now = Instant::now();
        // There may be questions that had to wait until it had fewer under way.
        let mut fate = self.answer_input(index, &mut connection, now);
        if fate == Fate::Stays {
            fate = self.answer_and_flush(index, &mut connection, now);
        }
        self.settle(index, connection, fate);
    }

    fn open_mailbox(&mut self) {
        self.mailbox.bell.silence();
        let letters = {
            let mut letters = self.mailbox.letters.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *letters)
        };
        for Letter { index, serial, answer } in letters {
            self.deliver(index, serial, &answer);
        }
        if self.mailbox.order.load(Ordering::Acquire) == END && self.ending.is_none() {
            self.take_no_more();
        }
    }

    fn take_no_more(&mut self) {
        for index in 0..self.ports.len() {
            self.serve_udp(index);
            let _ = self.poll.remove(&self.ports[index].socket);
        }
        for listener in std::mem::take(&mut self.listeners) {
            let _ = self.poll.remove(&listener);
        }
        self.ending = Some(Instant::now());
    }

    /// What is due every second; true when the thread has ended.
    fn sweep(&mut self) -> bool {
        if let Some(since) = self.ending {
            self.connections.end_quiet(Instant::now());
            let quiet = self.queue.is_empty() && self.connections.is_empty();
            return quiet || since.elapsed() >= DRAIN;
        }
        if self.swept.elapsed() >= SWEEP {
            self.swept = Instant::now();
            self.connections.sweep(self.swept);
        }
        false
    }
}

impl Serving {
    fn watch(
        &self,
        (client, transport): (IpAddr, Transport),
        message: &[u8],
        written: &Written,
        arrived: Instant,
    ) {
        if self.watchers.any() {
            let (code, source) = (written.code.into(), written.source);
            self.watchers.saw(&Seen { client, transport, message, code, source, time: arrived.elapsed() });
        }
    }

    fn saw(&self, (client, transport): (IpAddr, Transport), message: &[u8], made: &Made, arrived: Instant) {
        if self.watchers.any() {
            let (code, source) = (made.code.into(), made.source);
            self.watchers.saw(&Seen { client, transport, message, code, source, time: arrived.elapsed() });
        }
    }

    async fn finish(
        &self,
        waiting: Waiting,
        from: (IpAddr, Transport),
        message: &[u8],
        arrived: Instant,
    ) -> Vec<u8> {
        let mut answer = Vec::new();
        let made = self.server.finish(waiting, &mut answer).await;
        self.saw(from, message, &made, arrived);
        let mut tally = Tally::default();
        made.count(&mut tally);
        tally.took(made.source, arrived.elapsed(), 1);
        self.metrics.serving.add(&mut tally);
        answer
    }
}
