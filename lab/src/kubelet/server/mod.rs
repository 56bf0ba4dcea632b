//! The kubelet's HTTP API on its Unix socket, with the real kubelet's paths: routing and plain answers.
//! Each long conversation has its own file.
mod channels;
mod logs;
mod port_forward;
mod query;
mod session;
mod spdy;
mod websocket;

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{UnixListener, UnixStream};

use super::shared::{PodSnapshot, Shared};
use query::Query;

pub(super) type Body = BoxBody<Bytes, io::Error>;

/// Opens the socket, in place of one that an earlier kubelet left.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Serves for ever.
pub async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, shared.clone()))),
            Err(error) => {
                // Out of descriptors: the next one may do better.
                tracing::warn!("kubelet socket: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(shared, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!("kubelet socket: {error}");
    }
}

/// A request that is refused, in words for whoever typed the command.
pub(super) struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    pub fn bad(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into() }
    }
    pub fn missing(message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, message: message.into() }
    }
    pub fn internal(message: impl ToString) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, message: message.to_string() }
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    route(shared, request).await.unwrap_or_else(|refusal| {
        tracing::debug!(path, status = refusal.status.as_u16(), "{}", refusal.message);
        text(refusal.status, refusal.message)
    })
}

async fn route(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let path = request.uri().path().to_owned();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["healthz" | "livez" | "readyz"] => Ok(text(StatusCode::OK, "ok".to_owned())),
        ["pods"] => Ok(pods(&shared)),
        ["containerLogs", namespace, pod, container] if request.method() == Method::GET => {
            logs::answer(&shared, &find(&shared, namespace, pod)?, container, &query).await
        }
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            session::exec(&shared, &find(&shared, namespace, pod)?, container, &query, request)
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            session::attach(&shared, &find(&shared, namespace, pod)?, container, &query, request).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            port_forward::answer(&find(&shared, namespace, pod)?, &query, request)
        }
        _ => Err(Refusal::missing(format!("no such path: {path}"))),
    }
}

fn find(shared: &Shared, namespace: &str, name: &str) -> Result<PodSnapshot, Refusal> {
    let missing = || Refusal::missing(format!("pod {namespace}/{name} is not on node {}", shared.node));
    shared.pods.find(namespace, name).ok_or_else(missing)
}

fn pods(shared: &Shared) -> Response<Body> {
    let items: Vec<_> = shared.pods.all().into_iter().map(|snapshot| json!(*snapshot.pod)).collect();
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    let mut response = text(StatusCode::OK, list.to_string());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn text(status: StatusCode, message: String) -> Response<Body> {
    let mut response = Response::new(Full::from(message).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}
