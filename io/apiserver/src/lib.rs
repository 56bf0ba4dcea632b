//! The embedded Kubernetes API on an embedded store: configuration and start-up. Each part has a module of its own.

pub mod admission;
pub mod api;
pub mod apply;
pub mod auth;
pub mod defaults;
pub mod discovery;
pub mod http;
pub mod kinds;
pub mod openapi;
pub mod patch;
pub mod schema;
pub mod select;
pub mod status;
pub mod store;
pub mod tables;
pub mod tasks;
pub mod wire;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use admission::{Admission, ServiceRanges};
use api::{Api, KubeletSockets, router};
use auth::Authenticator;
use auth::rbac::Rbac;
use auth::tokens::Tokens;
pub use http::listen::NamespaceListener;
use http::listen::{bind, bind_in_namespace, serve, tls};
use kinds::Registry;
use openapi::OpenApi;
use store::{Event, HistoryLength, Store};

/// Everything the server needs to know. Certificates and keys are PEM text.
#[derive(Clone)]
pub struct Config {
    pub listen: SocketAddr,
    /// Further listeners inside network namespaces.
    pub namespace_listeners: Vec<NamespaceListener>,
    /// Where the store's file lives.
    pub data_dir: PathBuf,
    pub tls_cert: String,
    pub tls_key: String,
    /// Signs the client certificates this server believes; also handed to pods as the cluster's CA.
    pub client_ca: String,
    pub service_account_key: String,
    pub service_account_public: String,
    /// One range per family; the first is the primary family.
    pub service_ranges: Vec<IpNet>,
    /// Ports that services get on every node.
    pub node_ports: RangeInclusive<u16>,
    pub cluster_domain: String,
    /// Path of a node's kubelet socket, with `{node}` for its name.
    pub kubelet_socket: String,
    /// Where pods reach this server: the endpoints of the `kubernetes` Service.
    pub kubernetes_endpoints: Vec<SocketAddr>,
    /// YAML applied before the first request is served.
    pub bootstrap_manifests: Vec<String>,
    /// Events kept per resource for watchers that resume.
    pub history: usize,
}

/// How many events of each resource are kept unless configured otherwise.
pub const DEFAULT_HISTORY: usize = 8192;

/// The node ports of services unless configured otherwise.
pub const DEFAULT_NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {place}: {source}")]
    Listen { place: String, source: std::io::Error },
    #[error("TLS {what}: {reason}")]
    Tls { what: String, reason: String },
    #[error("service-account signing: {reason}")]
    SigningKey { reason: String },
    #[error("service ranges: {reason}")]
    ServiceRanges { reason: String },
    #[error("node ports: {reason}")]
    NodePorts { reason: String },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("cannot set up {what}: {reason}")]
    Bootstrap { what: String, reason: String },
}

/// A started server. Dropping it stops it.
pub struct Server {
    address: SocketAddr,
    api: Arc<Api>,
    work: JoinSet<()>,
}

impl Server {
    /// The address of the main listener, with the port the system chose if none was given.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn api(&self) -> &Arc<Api> {
        &self.api
    }

    /// Serves until a part of the server ends, which none does by itself.
    pub async fn wait(mut self) {
        if let Some(Err(error)) = self.work.join_next().await {
            tracing::error!(%error, "a part of the API server failed");
        }
    }
}

/// Starts the server and serves for ever.
pub async fn run(config: Config) -> Result<(), Error> {
    let server = start(config).await?;
    tracing::info!(address = %server.address(), "API server ready");
    server.wait().await;
    Ok(())
}

/// Opens the store, sets up what every cluster has, and starts to serve.
pub async fn start(config: Config) -> Result<Server, Error> {
    check_ranges(&config.service_ranges)?;
    check_node_ports(&config.node_ports)?;
    let acceptor = tls(&config.tls_cert, &config.tls_key, &config.client_ca)?;
    let listener = bind(config.listen).await?;
    let address =
        listener.local_addr().map_err(|source| Error::Listen { place: config.listen.to_string(), source })?;
    let mut listeners = vec![listener];
    for place in &config.namespace_listeners {
        listeners.push(bind_in_namespace(place).await?);
    }
    let (feed, events) = mpsc::unbounded_channel();
    let store = Store::open(&config.data_dir, HistoryLength(config.history), feed)?;
    let api = Arc::new(build(&config, store)?);
    tasks::definitions::install_stored(&api);
    tasks::bootstrap::run(
        &api,
        &kubernetes_address(&config.service_ranges).to_string(),
        &config.kubernetes_endpoints,
    )
    .await?;
    tasks::aggregation::settle(&api).await;
    tasks::accounts::settle(&api, &config.client_ca).await;
    let mut work = JoinSet::new();
    spawn_tasks(&mut work, &api, events, config.client_ca.as_str().into());
    tasks::bootstrap::manifests(&api, &config.bootstrap_manifests).await?;
    for listener in listeners {
        let api = Arc::clone(&api);
        let handle = move |request, peer| router::handle(Arc::clone(&api), request, peer);
        work.spawn(serve(listener, acceptor.clone(), handle));
    }
    Ok(Server { address, api, work })
}

fn check_ranges(ranges: &[IpNet]) -> Result<(), Error> {
    let refuse = |reason: &str| Err(Error::ServiceRanges { reason: reason.to_owned() });
    match ranges {
        [] => refuse("at least one is needed"),
        [_] => Ok(()),
        [first, second] if first.addr().is_ipv4() != second.addr().is_ipv4() => Ok(()),
        [_, _] => refuse("two ranges must be of different families"),
        _ => refuse("at most one IPv4 and one IPv6 range are possible"),
    }
}

fn check_node_ports(ports: &RangeInclusive<u16>) -> Result<(), Error> {
    if *ports.start() == 0 || ports.is_empty() {
        let reason = format!("{}-{} holds no usable port", ports.start(), ports.end());
        return Err(Error::NodePorts { reason });
    }
    Ok(())
}

fn build(config: &Config, store: Store) -> Result<Api, Error> {
    let registry = Arc::new(Registry::new());
    let issuer = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
    let tokens = Arc::new(Tokens::new(issuer, &config.service_account_key, &config.service_account_public)?);
    let ranges =
        ServiceRanges { addresses: config.service_ranges.clone(), node_ports: config.node_ports.clone() };
    Ok(Api {
        openapi: OpenApi::new(Arc::clone(&registry)),
        authenticator: Authenticator::new(Arc::clone(&tokens), store.clone()),
        rbac: Rbac::new(store.clone()),
        admission: Admission::new(store.clone(), ranges),
        kubelet_sockets: KubeletSockets(config.kubelet_socket.clone()),
        registry,
        tokens,
        store,
    })
}

/// The first usable address of the primary range is the API's own.
fn kubernetes_address(ranges: &[IpNet]) -> IpAddr {
    match ranges[0] {
        IpNet::V4(net) => (u32::from(net.network()) + 1).to_be_bytes().into(),
        IpNet::V6(net) => (u128::from(net.network()) + 1).to_be_bytes().into(),
    }
}

/// Starts the server's own controllers, each with its copy of the event feed.
fn spawn_tasks(
    work: &mut JoinSet<()>,
    api: &Arc<Api>,
    mut events: mpsc::UnboundedReceiver<Arc<Event>>,
    ca: Arc<str>,
) {
    let mut feeds = Vec::new();
    let mut feed = || {
        let (sender, receiver) = mpsc::unbounded_channel();
        feeds.push(sender);
        receiver
    };
    work.spawn(tasks::definitions::run(Arc::clone(api), feed()));
    work.spawn(tasks::garbage::run(Arc::clone(api), feed()));
    work.spawn(tasks::namespaces::run(Arc::clone(api), feed()));
    work.spawn(tasks::accounts::run(Arc::clone(api), feed(), ca));
    work.spawn(tasks::aggregation::run(Arc::clone(api), feed()));
    work.spawn(tasks::events::run(Arc::clone(api)));
    work.spawn(tasks::compaction::run(api.store.clone()));
    work.spawn(async move {
        while let Some(event) = events.recv().await {
            for feed in &feeds {
                // A controller that has ended takes the whole server down through the JoinSet.
                let _ = feed.send(Arc::clone(&event));
            }
        }
    });
}
