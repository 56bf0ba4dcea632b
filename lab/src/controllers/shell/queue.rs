//! Which objects need a look: each at most once at a time, again when something changed meanwhile, later when it
//! failed. Knows nothing of what a look does.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

pub struct Queue<W> {
    state: Mutex<State<W>>,
    ready: Notify,
}

struct State<W> {
    waiting: VecDeque<W>,
    queued: HashSet<W>,
    running: HashSet<W>,
    /// Asked for while running: to be queued when the run ends.
    again: HashSet<W>,
    failures: HashMap<W, u32>,
    /// When each piece of work that waits for a time will be added: one time each, the soonest asked for.
    due: HashMap<W, Instant>,
}

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Well,
    /// Something was refused or unreachable: try again, ever later.
    Failed,
}

impl<W: Clone + Eq + Hash + Send + 'static> Queue<W> {
    pub fn new() -> Arc<Self> {
        let state = State {
            waiting: VecDeque::new(),
            queued: HashSet::new(),
            running: HashSet::new(),
            again: HashSet::new(),
            failures: HashMap::new(),
            due: HashMap::new(),
        };
        Arc::new(Self { state: Mutex::new(state), ready: Notify::new() })
    }

    pub fn add(&self, work: W) {
        let mut state = self.lock();
        if state.running.contains(&work) {
            state.again.insert(work);
        } else if state.queued.insert(work.clone()) {
            state.waiting.push_back(work);
            self.ready.notify_one();
        }
    }

    /// Adds the work when this time has passed, unless that happens sooner anyway.
    pub fn add_after(self: &Arc<Self>, work: W, after: Duration) {
        let moment = Instant::now() + after;
        {
            let mut state = self.lock();
            if state.due.get(&work).is_some_and(|known| *known <= moment) {
                return;
            }
            state.due.insert(work.clone(), moment);
        }
        let queue = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(moment.into()).await;
            if queue.is_due(&work, moment) {
                queue.add(work);
            }
        });
    }

    /// Whether this is the time the work waits for; a later wish may have put it forward.
    fn is_due(&self, work: &W, moment: Instant) -> bool {
        let mut state = self.lock();
        let due = state.due.get(work) == Some(&moment);
        if due {
            state.due.remove(work);
        }
        due
    }

    /// The next piece of work, when there is one. Every piece taken must be `done`.
    pub async fn take(&self) -> W {
        loop {
            let notified = self.ready.notified();
            if let Some(work) = self.try_take() {
                return work;
            }
            notified.await;
        }
    }

    pub fn try_take(&self) -> Option<W> {
        let mut state = self.lock();
        let work = state.waiting.pop_front()?;
        state.queued.remove(&work);
        state.running.insert(work.clone());
        if !state.waiting.is_empty() {
            self.ready.notify_one();
        }
        Some(work)
    }

    pub fn done(self: &Arc<Self>, work: &W, ended: Ended) {
        let retry = {
            let mut state = self.lock();
            state.running.remove(work);
            match ended {
                Ended::Well => {
                    state.failures.remove(work);
                    None
                }
                Ended::Failed => {
                    let failures = state.failures.entry(work.clone()).or_default();
                    *failures += 1;
                    Some(pause(*failures))
                }
            }
        };
        let again = self.lock().again.remove(work);
        match retry {
            Some(after) => self.add_after(work.clone(), after),
            None if again => self.add(work.clone()),
            None => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pause(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1u32.checked_shl(failures - 1).unwrap_or(u32::MAX)).min(LONGEST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_waits_once_and_runs_once_at_a_time() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("b");
        queue.add("a");
        assert_eq!(queue.try_take(), Some("a"));
        queue.add("a");
        assert_eq!(queue.try_take(), Some("b"));
        assert_eq!(queue.try_take(), None, "a runs already");
        queue.done(&"a", Ended::Well);
        assert_eq!(queue.try_take(), Some("a"), "it was asked for while it ran");
        queue.done(&"a", Ended::Well);
        assert_eq!(queue.try_take(), None);
    }

    #[test]
    fn failures_wait_ever_longer_up_to_a_limit() {
        let pauses: Vec<u128> = [1, 2, 3, 9, 10, 40].iter().map(|n| pause(*n).as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 5120, 10_000, 10_000]);
    }

    #[tokio::test]
    async fn of_several_times_only_the_soonest_counts() {
        let queue = Queue::new();
        for after in [60, 3600, 1, 7200] {
            queue.add_after("a", Duration::from_secs(after));
        }
        let due: Vec<Duration> =
            queue.lock().due.values().map(|due| due.duration_since(Instant::now())).collect();
        assert!(due.len() == 1 && due[0] <= Duration::from_secs(1), "{due:?}");
    }

    #[tokio::test]
    async fn failed_work_comes_back_by_itself() {
        let queue = Queue::new();
        queue.add(1);
        assert_eq!(queue.take().await, 1);
        queue.done(&1, Ended::Failed);
        assert_eq!(queue.try_take(), None);
        assert_eq!(queue.take().await, 1);
    }
}
