//! Watching a cluster: one watch for each kind, one store, snapshots out at most every few milliseconds.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::StreamExt;
use kube::Client;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use weft_model::{ClusterSettings, Finding, Snapshot};

use crate::kinds::{self, Kind, Presence};
use crate::store::{Effect, Store};

/// Changes that come within this time of the last snapshot go into one.
const COALESCE: Duration = Duration::from_millis(5);
const SHORTEST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// A server that silently went away is noticed after this time and 5 s more.
const WATCH_TIMEOUT_SECONDS: u32 = 100;
const PROBE: Duration = Duration::from_millis(500);

/// The cluster as last seen.
#[derive(Clone, Debug)]
pub struct View {
    pub snapshot: Arc<Snapshot>,
    pub findings: Arc<Vec<Finding>>,
    /// Every kind was listed once; before that the snapshot is empty.
    pub synced: bool,
    pub link: Link,
    /// Counts the snapshots, so that a reader can tell a change of the link from one of the cluster.
    pub generation: u64,
}

/// Whether what is seen is still current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    Connecting,
    Connected,
    /// The last snapshot stays; changes after `since` may be missing.
    Lost {
        since: SystemTime,
        error: String,
    },
}

/// A watched cluster. Dropping it ends the watches.
pub struct Cluster {
    views: watch::Receiver<View>,
    _tasks: JoinSet<()>,
}

impl Cluster {
    pub fn start(client: Client, settings: ClusterSettings) -> Self {
        let first = View {
            snapshot: Arc::new(Snapshot { settings: settings.clone(), ..Snapshot::default() }),
            findings: Arc::default(),
            synced: false,
            link: Link::Connecting,
            generation: 0,
        };
        let (send, views) = watch::channel(first);
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new(settings)),
            links: Mutex::default(),
            dirty: Notify::new(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_kind::<kinds::Namespaces>(client.clone(), shared.clone()));
        tasks.spawn(watch_kind::<kinds::Nodes>(client.clone(), shared.clone()));
        tasks.spawn(watch_kind::<kinds::Pods>(client.clone(), shared.clone()));
        tasks.spawn(watch_kind::<kinds::Services>(client.clone(), shared.clone()));
        tasks.spawn(watch_kind::<kinds::EndpointSlices>(client.clone(), shared.clone()));
        tasks.spawn(watch_kind::<kinds::NetworkPolicies>(client.clone(), shared.clone()));
        tasks.spawn(watch_kind::<kinds::AddressPools>(client.clone(), shared.clone()));
        tasks.spawn(probe(client, shared.clone()));
        tasks.spawn(publish(send, shared));
        Self { views, _tasks: tasks }
    }

    pub fn subscribe(&self) -> watch::Receiver<View> {
        self.views.clone()
    }

    /// The first view in which every kind was listed.
    pub async fn synced(&self) -> View {
        let mut views = self.views.clone();
        match views.wait_for(|view| view.synced).await {
            Ok(view) => view.clone(),
            // The publisher runs as long as `self` does.
            Err(_) => std::future::pending().await,
        }
    }
}

struct Shared {
    store: Mutex<Store>,
    links: Mutex<[KindLink; kinds::COUNT]>,
    dirty: Notify,
}

/// The state of one watch.
#[derive(Clone, Default)]
enum KindLink {
    #[default]
    Connecting,
    Connected,
    Lost {
        since: SystemTime,
        last: Instant,
        error: String,
    },
}

impl Shared {
    fn recovered(&self, index: usize) {
        let mut links = lock(&self.links);
        if let KindLink::Lost { .. } = &links[index] {
            tracing::info!(kind = kinds::PLURALS[index], "watching again");
            self.dirty.notify_one();
        }
        links[index] = KindLink::Connected;
    }

    fn failed(&self, index: usize, error: String) {
        let mut links = lock(&self.links);
        let now = Instant::now();
        match &mut links[index] {
            KindLink::Lost { last, error: kept, .. } => {
                *last = now;
                *kept = error;
            }
            link => {
                tracing::warn!(
                    kind = kinds::PLURALS[index],
                    error,
                    "watch lost; the last state stays in force"
                );
                *link = KindLink::Lost { since: SystemTime::now(), last: now, error };
            }
        }
        self.dirty.notify_one();
    }

    /// The worst of all watches; the longest lost one first.
    fn link(&self) -> Link {
        let links = lock(&self.links);
        let lost = links.iter().enumerate().filter_map(|(index, link)| match link {
            KindLink::Lost { since, error, .. } => {
                Some((*since, format!("{}: {error}", kinds::PLURALS[index])))
            }
            _ => None,
        });
        if let Some((since, error)) = lost.min_by_key(|(since, _)| *since) {
            return Link::Lost { since, error };
        }
        let connecting = links.iter().any(|link| matches!(link, KindLink::Connecting));
        if connecting { Link::Connecting } else { Link::Connected }
    }
}

/// How the first state of a kind is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Initial {
    /// As watch events (KEP-3157): the server holds no whole list in memory.
    Stream,
    List,
}

async fn watch_kind<K: Kind>(client: Client, shared: Arc<Shared>) {
    if watch_from::<K>(&client, &shared, Initial::Stream).await == Ended::CannotStream {
        tracing::debug!(kind = K::PLURAL, "the server does not stream lists; listing in pages");
        watch_from::<K>(&client, &shared, Initial::List).await;
    }
}

#[derive(PartialEq, Eq)]
enum Ended {
    CannotStream,
    Stopped,
}

async fn watch_from<K: Kind>(client: &Client, shared: &Shared, initial: Initial) -> Ended {
    let api: Api<DeserializeGuard<K::Object>> = Api::all(client.clone());
    let config = watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS);
    let config = if initial == Initial::Stream { config.streaming_lists() } else { config };
    let mut events = watcher(api, config).backoff(Waits::default()).boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                // The start of a list is announced before the server is asked, and says nothing about it.
                let heard = !matches!(event, watcher::Event::Init);
                let effect = lock(&shared.store).apply::<K>(event);
                if heard {
                    shared.recovered(K::INDEX);
                }
                if effect == Effect::Changed {
                    shared.dirty.notify_one();
                }
            }
            Err(error) if K::PRESENCE == Presence::WhereInstalled && is_unknown(&error) => {
                let effect = lock(&shared.store).absent::<K>();
                shared.recovered(K::INDEX);
                if effect == Effect::Changed {
                    shared.dirty.notify_one();
                }
            }
            Err(error) if initial == Initial::Stream && cannot_stream(&error) => return Ended::CannotStream,
            // Ordinary after a long silence: the watcher lists again.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => {
                tracing::debug!(kind = K::PLURAL, "the watched version expired; listing again");
            }
            Err(error) => shared.failed(K::INDEX, say(&error)),
        }
    }
    Ended::Stopped
}

/// Servers that do not know streaming lists, or have them switched off, refuse their parameters.
fn cannot_stream(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status))
        if matches!(status.code, 400 | 422))
}

/// The server does not know the kind. The watcher asks again, at most `LONGEST_BACKOFF` later.
fn is_unknown(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        watcher::Error::WatchError(status) => status.code == 404,
        _ => false,
    }
}

fn say(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => crate::reason(error),
        watcher::Error::WatchError(status) => format!("{} ({})", status.message, status.code),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

/// Doubling waits with some chance in them, so that many nodes do not come back in step.
pub(crate) struct Waits {
    next: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self { next: SHORTEST_BACKOFF }
    }
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST_BACKOFF);
        let nanos =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
        let chance = f64::from(nanos % 1000) / 1000.0;
        Some(wait.mul_f64(0.75 + chance / 4.0))
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        *self = Self::default();
    }
}

/// A quiet watch says nothing when it is back; the server does when it is asked.
async fn probe(client: Client, shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(PROBE).await;
        let lost = |link: &KindLink| matches!(link, KindLink::Lost { .. });
        if !lock(&shared.links).iter().any(lost) || client.apiserver_version().await.is_err() {
            continue;
        }
        let now = Instant::now();
        let quiet: Vec<usize> = lock(&shared.links)
            .iter()
            .enumerate()
            .filter(|(_, link)| {
                // Had its next attempt failed, it would have said so by now.
                matches!(link, KindLink::Lost { last, .. } if now.duration_since(*last) > LONGEST_BACKOFF + PROBE)
            })
            .map(|(index, _)| index)
            .collect();
        for index in quiet {
            shared.recovered(index);
        }
    }
}

async fn publish(send: watch::Sender<View>, shared: Arc<Shared>) {
    loop {
        shared.dirty.notified().await;
        let link = shared.link();
        let view = {
            let store = lock(&shared.store);
            store.synced().then(|| (store.snapshot().clone(), store.findings()))
        };
        send.send_if_modified(|current| {
            let link_changed = current.link != link;
            current.link = link;
            let Some((snapshot, findings)) = view else { return link_changed };
            let changed = !current.synced || *current.snapshot != snapshot || *current.findings != findings;
            if changed {
                current.snapshot = Arc::new(snapshot);
                current.findings = Arc::new(findings);
                current.synced = true;
                current.generation += 1;
            }
            changed || link_changed
        });
        tokio::time::sleep(COALESCE).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
