//! healthCheckNodePort: whether this node has endpoints for a service whose external traffic stays on the node, as
//! load balancers outside ask for it over HTTP. The answers are those of Kubernetes' own proxy.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sched::{CloneFlags, setns};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use weft_model::Port;
use weft_plan::HealthCheck;

const WEIGHT: &str = "x-load-balancing-endpoint-weight";
const RETRY: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(3600);
/// A balancer that says nothing does not keep a connection.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Listeners {
    netns: Option<PathBuf>,
    open: BTreeMap<Port, Listener>,
}

struct Listener {
    check: watch::Sender<HealthCheck>,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listeners {
    pub fn new(netns: Option<PathBuf>) -> Self {
        Self { netns, open: BTreeMap::new() }
    }

    /// Listens on these ports and no others. Returns after how long to try again what did not work.
    pub async fn follow(&mut self, wanted: BTreeMap<Port, HealthCheck>) -> Duration {
        self.open.retain(|port, _| wanted.contains_key(port));
        let mut pause = IDLE;
        for (port, check) in wanted {
            if let Some(listener) = self.open.get(&port) {
                listener.check.send_replace(check);
                continue;
            }
            let service = check.service.clone();
            match self.listen(port).await {
                Ok(sockets) => {
                    let (send, receive) = watch::channel(check);
                    let task = tokio::spawn(serve(sockets, receive));
                    self.open.insert(port, Listener { check: send, task });
                }
                Err(error) => {
                    tracing::error!(
                        "Service {service}: spec.healthCheckNodePort: cannot listen on {port}: {error}"
                    );
                    pause = RETRY;
                }
            }
        }
        pause
    }

    /// On every address of the node, of the families it has.
    async fn listen(&self, port: Port) -> io::Result<Vec<tokio::net::TcpListener>> {
        let netns = self.netns.clone();
        // A thread of its own: a network namespace is a property of the thread, and this one ends with it.
        let opened = tokio::task::spawn_blocking(move || {
            std::thread::spawn(move || bind(netns.as_deref(), port)).join()
        });
        let sockets = opened.await.map_err(io::Error::other)?;
        let sockets = sockets.map_err(|_| io::Error::other("the thread that listens failed"))??;
        sockets.into_iter().map(tokio::net::TcpListener::from_std).collect()
    }
}

fn bind(netns: Option<&Path>, port: Port) -> io::Result<Vec<TcpListener>> {
    if let Some(path) = netns {
        setns(std::fs::File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    }
    // With net.ipv6.bindv6only unset, as it is by default, the first serves both families.
    let listener = match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port.0))) {
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32) => {
            TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.0)))?
        }
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    Ok(vec![listener])
}

async fn serve(sockets: Vec<tokio::net::TcpListener>, check: watch::Receiver<HealthCheck>) {
    let mut tasks = tokio::task::JoinSet::new();
    for socket in sockets {
        tasks.spawn(accept(socket, check.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

async fn accept(socket: tokio::net::TcpListener, check: watch::Receiver<HealthCheck>) {
    loop {
        let stream = match socket.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a health check");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (check, gone) = (check.clone(), check.clone());
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|_| {
                let answer = answer(&check.borrow());
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
            tokio::select! {
                ended = connection.as_mut() => return ended.unwrap_or_default(),
                () = over(gone) => {}
            }
            // What is being answered is answered, and no more asked.
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(PATIENCE, connection).await.ok();
        });
    }
}

/// The service has no health check here any more.
async fn over(mut check: watch::Receiver<HealthCheck>) {
    while check.changed().await.is_ok() {}
}

fn answer(check: &HealthCheck) -> Response<Full<Bytes>> {
    let count = check.local_endpoints;
    let body = json!({
        "service": {"namespace": check.service.namespace.as_str(), "name": &*check.service.name},
        "localEndpoints": count,
        "serviceProxyHealthy": true,
    });
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    if count == 0 {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    headers.insert(WEIGHT, HeaderValue::from(count));
    response
}
