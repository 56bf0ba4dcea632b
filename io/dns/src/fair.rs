//! Who may have costly work done: everybody in turn, nobody without bound. Time is an argument.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Work that waits, by client; clients take turns.
pub struct FairQueue<T> {
    lanes: HashMap<IpAddr, VecDeque<T>>,
    turns: VecDeque<IpAddr>,
    length: usize,
    most: usize,
}

impl<T> FairQueue<T> {
    pub fn new(most: usize) -> Self {
        Self { lanes: HashMap::new(), turns: VecDeque::new(), length: 0, most }
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Gives the work back when the client has its share waiting already: as much as is still free for the others.
    pub fn push(&mut self, client: IpAddr, work: T) -> Result<(), T> {
        if self.lanes.get(&client).map_or(0, VecDeque::len) >= self.most - self.length {
            return Err(work);
        }
        let lane = self.lanes.entry(client).or_default();
        if lane.is_empty() {
            self.turns.push_back(client);
        }
        lane.push_back(work);
        self.length += 1;
        Ok(())
    }

    pub fn pop(&mut self) -> Option<(IpAddr, T)> {
        let client = self.turns.pop_front()?;
        let lane = self.lanes.get_mut(&client)?;
        let work = lane.pop_front()?;
        self.length -= 1;
        if lane.is_empty() {
            self.lanes.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        Some((client, work))
    }
}

/// Why work was not taken on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shed {
    /// The client has its share of questions waiting for upstream servers.
    Waiting,
    /// Much is asked upstream at the moment, and the client has had its share.
    Rate,
    /// The client has its share of questions waiting to be worked on.
    Queue,
    /// More connections than are kept open.
    Connections,
}

/// What questions to upstream servers may cost, over all clients and for each.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Waiting at one time.
    pub waiting: usize,
    /// Begun in a second, before clients are held to their shares.
    pub rate: u32,
    /// One client's share of `rate`, when it comes to that.
    pub client_rate: u32,
}

/// Counts questions that wait for upstream servers. Clients are remembered as long as they matter.
pub struct Admission {
    limits: Limits,
    state: Mutex<State>,
}

struct State {
    waiting: usize,
    all: Bucket,
    clients: HashMap<IpAddr, ClientState>,
    swept: Instant,
}

struct ClientState {
    waiting: usize,
    bucket: Bucket,
}

const SWEEP: Duration = Duration::from_secs(10);
const MOST_CLIENTS: usize = 4096;

impl Admission {
    pub fn new(limits: Limits, now: Instant) -> Arc<Self> {
        let all = Bucket { level: f64::from(limits.rate), at: now };
        let state = State { waiting: 0, all, clients: HashMap::new(), swept: now };
        Arc::new(Self { limits, state: Mutex::new(state) })
    }

    /// Its place is the client's until the permit is dropped.
    pub fn enter(self: &Arc<Self>, client: IpAddr, now: Instant) -> Result<Permit, Shed> {
        let Limits { waiting: most, rate, client_rate } = self.limits;
        let mut state = self.lock();
        state.sweep(now, client_rate);
        let (waiting, clients) = (state.waiting, state.clients.len());
        if !state.clients.contains_key(&client) && clients >= MOST_CLIENTS {
            return Err(Shed::Waiting);
        }
        let all_low = {
            state.all.refill(rate, now);
            state.all.level < f64::from(rate) / 2.0
        };
        let own = state.clients.entry(client).or_insert_with(|| ClientState {
            waiting: 0,
            bucket: Bucket { level: f64::from(client_rate), at: now },
        });
        own.bucket.refill(client_rate, now);
        // As much as is still free for others: one client alone gets half, and there is always a place for another.
        if own.waiting >= most - waiting {
            return Err(Shed::Waiting);
        }
        // A client that asks a lot alone uses up its tokens; while there is enough for all, nobody minds.
        if own.bucket.level < 1.0 && all_low {
            return Err(Shed::Rate);
        }
        own.bucket.level = (own.bucket.level - 1.0).max(0.0);
        own.waiting += 1;
        state.all.level = (state.all.level - 1.0).max(0.0);
        state.waiting += 1;
        drop(state);
        Ok(Permit { admission: self.clone(), client })
    }

    pub fn waiting(&self) -> usize {
        self.lock().waiting
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn sweep(&mut self, now: Instant, client_rate: u32) {
        if now.saturating_duration_since(self.swept) < SWEEP && self.clients.len() < MOST_CLIENTS {
            return;
        }
        self.swept = now;
        self.clients.retain(|_, client| {
            client.bucket.refill(client_rate, now);
            client.waiting > 0 || client.bucket.level < f64::from(client_rate)
        });
    }
}

/// A place among the questions that wait.
pub struct Permit {
    admission: Arc<Admission>,
    client: IpAddr,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.admission.lock();
        state.waiting -= 1;
        if let Some(client) = state.clients.get_mut(&self.client) {
            client.waiting -= 1;
        }
    }
}

/// Fills up at a rate, and holds what comes in a second.
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, rate: u32, now: Instant) {
        let rate = f64::from(rate);
        self.level = (self.level + now.saturating_duration_since(self.at).as_secs_f64() * rate).min(rate);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> IpAddr {
        [10, 244, 0, last].into()
    }

    #[test]
    fn a_flood_leaves_others_their_turn_and_their_place() {
        let mut queue = FairQueue::new(100);
        let taken = (0..1000).filter(|number| queue.push(client(1), *number).is_ok()).count();
        assert_eq!(taken, 50);
        queue.push(client(2), 7).unwrap();
        assert_eq!(queue.pop().unwrap().0, client(1));
        assert_eq!(queue.pop(), Some((client(2), 7)));
        assert_eq!(std::iter::from_fn(|| queue.pop()).count(), 49);
        assert!(queue.is_empty() && queue.lanes.is_empty() && queue.turns.is_empty());
    }

    #[test]
    fn one_client_never_takes_all_places() {
        let now = Instant::now();
        let limits = Limits { waiting: 300, rate: 1_000_000, client_rate: 100_000 };
        let admission = Admission::new(limits, now);
        let mut flood = Vec::new();
        let refused = loop {
            match admission.enter(client(1), now) {
                Ok(permit) => flood.push(permit),
                Err(shed) => break shed,
            }
        };
        assert_eq!((refused, flood.len()), (Shed::Waiting, 150));
        let others: Vec<_> = (2..12).filter_map(|last| admission.enter(client(last), now).ok()).collect();
        assert_eq!(others.len(), 10);
        drop((flood, others));
        assert_eq!(admission.waiting(), 0);
    }

    #[test]
    fn under_load_clients_are_held_to_their_rate_and_the_quiet_are_not() {
        let start = Instant::now();
        let limits = Limits { waiting: 100_000, rate: 1000, client_rate: 100 };
        let admission = Admission::new(limits, start);
        let asked =
            |last, now, times| (0..times).filter(|_| admission.enter(client(last), now).is_ok()).count();
        // Alone it may have what nobody else wants, then its share.
        let first = asked(1, start, 10_000);
        assert!((500..=600).contains(&first), "{first}");
        assert_eq!(asked(2, start, 50), 50, "a client that asks little is not held up");
        let later = start + Duration::from_millis(100);
        assert!(asked(1, later, 10_000) <= 110);
        assert_eq!(asked(3, later, 50), 50);
        let much_later = later + Duration::from_secs(60);
        assert_eq!(asked(4, much_later, 1), 1);
        assert_eq!(admission.lock().clients.len(), 1, "the others have long been quiet");
    }
}
