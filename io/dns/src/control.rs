//! The control socket: plans in from the agent, status and metrics out. HTTP/1.1 over a Unix socket.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use weft_plan::NamePlan;

use crate::Error;
use crate::forward::Forwarder;
use crate::metrics::Metrics;
use crate::plan::PlanHolder;

/// 150,000 endpoints with their names take about a fifth of this.
const LARGEST_PLAN: usize = 256 << 20;

#[derive(Clone)]
pub struct Control {
    pub node: String,
    pub plans: Arc<PlanHolder>,
    pub forwarder: Arc<Forwarder>,
    pub metrics: Arc<Metrics>,
    pub listen: Vec<SocketAddr>,
}

impl Control {
    /// Binds at once, so that a failure is the caller's; the returned future serves.
    pub fn listen(self, path: &Path) -> Result<impl Future<Output = ()> + use<>, Error> {
        let failed = |source| Error::Control { path: path.to_owned(), source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        Ok(self.serve(listener))
    }

    async fn serve(self, listener: UnixListener) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let control = self.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(|request| control.handle(request));
                let connection = hyper::server::conn::http1::Builder::new();
                if let Err(error) = connection.serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "a control connection ended early");
                }
            });
        }
    }

    async fn handle(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path().to_owned();
        Ok(match (request.method(), path.as_str()) {
            (&Method::PUT, "/plan") => self.put_plan(request.into_body()).await,
            (&Method::GET, "/status") => {
                respond(StatusCode::OK, "application/json", self.status().to_string())
            }
            (&Method::GET, "/metrics") => {
                respond(StatusCode::OK, "text/plain; version=0.0.4", self.prometheus())
            }
            (_, "/plan" | "/status" | "/metrics") => text(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{} is not a method of {path}\n", request.method()),
            ),
            _ => {
                text(StatusCode::NOT_FOUND, "there are PUT /plan, GET /status and GET /metrics\n".to_owned())
            }
        })
    }

    async fn put_plan(&self, body: Incoming) -> Response<Full<Bytes>> {
        let refused = |code, reason: String| {
            self.metrics.plans_refused.add();
            tracing::warn!(reason, "a plan was refused; the one before stays in force");
            text(code, reason + "\n")
        };
        let bytes = match Limited::new(body, LARGEST_PLAN).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                return refused(StatusCode::BAD_REQUEST, format!("the plan could not be received: {error}"));
            }
        };
        let plan: NamePlan = match serde_json::from_slice(&bytes) {
            Ok(plan) => plan,
            Err(error) => return refused(StatusCode::BAD_REQUEST, format!("not a plan of names: {error}")),
        };
        if plan.domain.is_empty() {
            return refused(StatusCode::BAD_REQUEST, "not a plan of names: domain is empty".to_owned());
        }
        self.metrics.plans.add();
        let plans = self.plans.clone();
        // The disk may be slow; names are answered meanwhile.
        let done = tokio::task::spawn_blocking(move || plans.replace(plan, &bytes)).await;
        match done {
            Ok(()) => respond(StatusCode::NO_CONTENT, "text/plain", String::new()),
            Err(error) => {
                text(StatusCode::INTERNAL_SERVER_ERROR, format!("the plan is not in force: {error}\n"))
            }
        }
    }

    fn status(&self) -> Value {
        let state = self.plans.read();
        let plan = &state.loaded;
        json!({
            "node": self.node,
            "ready": plan.is_some(),
            "plan": plan.as_ref().map(|loaded| json!({
                "source": loaded.origin,
                "since": loaded.since.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()),
                "domain": loaded.plan.domain,
                "names": loaded.plan.names.len(),
                "pointers": loaded.plan.pointers.len(),
            })),
            "listen": self.listen,
            "upstreams": self.forwarder.status(),
            "cache": self.forwarder.cache_counts(),
            "counters": self.metrics.to_json(),
        })
    }

    fn prometheus(&self) -> String {
        let state = self.plans.read();
        let plan = &state.loaded;
        let names = plan.as_ref().map_or(0, |loaded| loaded.plan.names.len());
        let cache = self.forwarder.cache_counts();
        self.metrics.to_prometheus(&[
            ("weft_dns_ready", "Whether a plan of names is in force.", u64::from(plan.is_some())),
            ("weft_dns_plan_names", "Names in the plan in force.", names as u64),
            ("weft_dns_cache_entries", "Upstream answers kept.", cache.entries),
            ("weft_dns_cache_bytes", "What they take in memory.", cache.bytes),
        ])
    }
}

fn text(code: StatusCode, body: String) -> Response<Full<Bytes>> {
    respond(code, "text/plain", body)
}

fn respond(code: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
