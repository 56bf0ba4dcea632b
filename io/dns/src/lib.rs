//! The node's name server: sockets around core/decide's name answers, upstream forwarding and its cache.
//! Which names exist is computed in core/compile; what a question gets is decided in core/decide.

mod as_is;
mod batch;
mod believe;
mod cache;
mod connections;
mod control;
mod copy;
pub mod corefile;
#[allow(dead_code, reason = "the wire form is for the fast path")]
mod entry;
mod exchange;
mod fair;
mod forward;
#[cfg(test)]
mod fuzz;
mod handover;
mod index;
mod loops;
mod metrics;
mod pipe;
mod places;
mod plan;
mod poll;
mod quick;
mod reader;
mod ready;
mod reply;
mod serve;
pub mod settings;
mod sockets;
mod tally;
mod threads;
mod tls;
mod upstreams;
mod watch;
mod watch_queries;
mod wire;
mod zones;

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

pub use settings::{Settings, SettingsError};
pub use upstreams::Policy;
pub use watch::SettingsFile;

use exchange::Sockets;
use fair::Admission;
use forward::Forwarder;
use handover::{Handover, Taken};
use metrics::Metrics;
use plan::PlanHolder;
use reader::Serving;
use serve::Server;
use sockets::Listening;
use threads::Threads;
use watch_queries::Watchers;

/// Everything the name server of one node needs to know; the names themselves come over `socket`.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: String,
    /// The network namespace to answer in; `None` is the one it was started in. Upstream servers are always
    /// asked from the one it was started in.
    pub netns: Option<PathBuf>,
    pub listen: Vec<IpAddr>,
    /// Those of `listen` without which the others are served all the same.
    pub optional: Vec<IpAddr>,
    pub port: u16,
    /// Names below it are never asked upstream, also before the first plan is there.
    pub domain: String,
    /// The last good plan, kept over restarts.
    pub plan_file: PathBuf,
    /// Where the agent puts plans and `weft status` asks.
    pub socket: PathBuf,
    pub settings: Settings,
    /// Where the settings came from: changes are taken up while running.
    pub settings_file: Arc<SettingsFile>,
}

impl Config {
    pub fn new(
        node: impl Into<String>,
        listen: Vec<IpAddr>,
        plan_file: impl Into<PathBuf>,
        socket: impl Into<PathBuf>,
    ) -> Self {
        Self {
            node: node.into(),
            netns: None,
            listen,
            optional: Vec::new(),
            port: 53,
            domain: "cluster.local".to_owned(),
            plan_file: plan_file.into(),
            socket: socket.into(),
            settings: Settings::default(),
            settings_file: Arc::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot enter network namespace {}: {source}", path.display())]
    Namespace { path: PathBuf, source: std::io::Error },
    #[error("cannot listen on {address} ({transport}): {source}{}", sockets::hint(source))]
    Listen { address: std::net::SocketAddr, transport: &'static str, source: std::io::Error },
    #[error("no address to listen on is given")]
    NothingToListenOn,
    #[error("cannot listen on control socket {}: {source}", path.display())]
    Control { path: PathBuf, source: std::io::Error },
    #[error("cannot start a serving thread: {0}")]
    Thread(std::io::Error),
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// Answers until SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run_until(config, stop).await
}

/// Answers until `stop` is done, or until a successor has taken the sockets over.
pub async fn run_until(config: Config, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let metrics = Arc::new(Metrics::default());
    let plans = Arc::new(PlanHolder::new(&config.domain, config.plan_file.clone()));
    let taken = take_over(&config).await;
    // A predecessor has put its plan on disk before it handed anything over.
    plans.load_from_disk();
    let (predecessor, listening) = match taken {
        Some(taken) => (Some(taken.stream), Some(taken.listening)),
        None => (None, None),
    };
    let listening = Listening::open(&config, listening).await?;
    let handover = Handover::listen(&config.socket, listening.try_clone().map_err(Error::Thread)?)?;
    let watchers = Arc::new(Watchers::default());
    let own = listening.addresses();
    let settings_file = config.settings_file.clone();
    let forwarder = forwarder(&config.settings, &settings_file, own, &metrics)?;
    let control = control::Control {
        node: config.node.clone(),
        plans: plans.clone(),
        forwarder: forwarder.clone(),
        settings_file: settings_file.clone(),
        metrics: metrics.clone(),
        listen: listening.addresses(),
        watchers: watchers.clone(),
    };
    let control = control.listen(&config.socket)?;
    let serving = Serving {
        server: Arc::new(Server::new(plans.clone(), forwarder.clone())),
        metrics,
        admission: Admission::new(threads::limits(), Instant::now()),
        runtime: Handle::current(),
        watchers,
    };
    tracing::info!(node = config.node, addresses = ?listening.addresses(), "answering names");
    let threads = Threads::start(Arc::new(serving), listening)?;
    if let Some(predecessor) = predecessor {
        handover::tell_serving(predecessor);
    }
    let watched = Arc::downgrade(&forwarder);
    let mut beside = JoinSet::new();
    beside.spawn(control);
    beside.spawn(keep_on_disk(plans.clone()));
    beside.spawn(watch::look_for_loops(watched.clone()));
    beside.spawn(watch::follow_files(watched, settings_file));
    let handed_over = tokio::select! {
        () = stop => false,
        () = handover.handed_over(|| plans.freeze(), || plans.thaw()) => true,
    };
    threads.end().await;
    beside.shutdown().await;
    if handed_over {
        tracing::info!(node = config.node, "a successor answers names now");
        return Ok(());
    }
    handover.close();
    let _ = tokio::task::spawn_blocking(move || plans.sync()).await;
    // A name that nobody listens on would make clients wait instead of fail.
    let _ = std::fs::remove_file(&config.socket);
    tracing::info!(node = config.node, "no longer answering names");
    Ok(())
}

/// Settings that name what is not there now, as a file of authorities, must not keep cluster names from being answered.
fn forwarder(
    settings: &Settings,
    file: &SettingsFile,
    own: Vec<SocketAddr>,
    metrics: &Arc<Metrics>,
) -> Result<Arc<Forwarder>, Error> {
    let with = |settings: Settings| Forwarder::new(settings, own.clone(), Box::new(Sockets), metrics.clone());
    match with(settings.clone()) {
        Ok(forwarder) => {
            file.keep(settings);
            Ok(forwarder)
        }
        Err(error) => {
            file.refused(error.to_string());
            with(file.last_kept()).or_else(|_| with(Settings::default())).map_err(Error::from)
        }
    }
}

async fn take_over(config: &Config) -> Option<Taken> {
    let socket = config.socket.clone();
    tokio::task::spawn_blocking(move || handover::take(&socket)).await.ok().flatten()
}

/// How often what changed is put on disk.
const SYNC: Duration = Duration::from_secs(1);

async fn keep_on_disk(plans: Arc<PlanHolder>) {
    loop {
        tokio::time::sleep(SYNC).await;
        let plans = plans.clone();
        if tokio::task::spawn_blocking(move || plans.sync()).await.is_err() {
            tracing::error!("keeping names on disk has failed");
        }
    }
}
