//! The control socket: plans in from the agent, status and metrics out. HTTP/1.1 over a Unix socket.

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use weft_decide::names::Names;

use crate::Error;
use crate::forward::Forwarder;
use crate::metrics::Metrics;
use crate::plan::{Accepted, PlanHolder, Refused};
use crate::watch::SettingsFile;
use crate::watch_queries::Watchers;

/// Parts of a message that wait to be worked on.
const CHUNKS: usize = 16;

#[derive(Clone)]
pub struct Control {
    pub node: String,
    pub plans: Arc<PlanHolder>,
    pub forwarder: Arc<Forwarder>,
    pub settings_file: Arc<SettingsFile>,
    pub metrics: Arc<Metrics>,
    pub listen: Vec<SocketAddr>,
    pub watchers: Arc<Watchers>,
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

    async fn handle(&self, request: Request<Incoming>) -> Result<Response<Reply>, Infallible> {
        let path = request.uri().path().to_owned();
        Ok(match (request.method(), path.as_str()) {
            (&Method::PUT, "/plan") => self.put_plan(request.into_body()).await,
            (&Method::GET, "/status") => {
                respond(StatusCode::OK, "application/json", self.status().to_string())
            }
            (&Method::GET, "/ready") => match self.plans.read().loaded.is_some() {
                true => text(StatusCode::OK, "ready\n".to_owned()),
                false => text(StatusCode::SERVICE_UNAVAILABLE, "no names were received yet\n".to_owned()),
            },
            (&Method::GET, "/queries") => match self.watchers.watch() {
                Some(rows) => reply(StatusCode::OK, "application/x-ndjson", Reply::Rows(rows)),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "too many watch already\n".to_owned()),
            },
            (&Method::GET, "/metrics") => {
                respond(StatusCode::OK, "text/plain; version=0.0.4", self.prometheus())
            }
            (_, "/plan" | "/status" | "/ready" | "/queries" | "/metrics") => text(
                StatusCode::METHOD_NOT_ALLOWED,
                format!("{} is not a method of {path}\n", request.method()),
            ),
            _ => text(
                StatusCode::NOT_FOUND,
                "there are PUT /plan, GET /status, GET /ready, GET /queries and GET /metrics\n".to_owned(),
            ),
        })
    }

    /// The message is worked on as it comes: it is never in memory as a whole.
    async fn put_plan(&self, mut body: Incoming) -> Response<Reply> {
        let (send, receive) = mpsc::channel(CHUNKS);
        let plans = self.plans.clone();
        let working = tokio::task::spawn_blocking(move || {
            plans.receive(BufReader::new(Chunks { receive, chunk: Bytes::new() }))
        });
        while let Some(frame) = body.frame().await {
            let chunk = frame.map(|frame| frame.into_data().unwrap_or_default()).map_err(io::Error::other);
            if send.send(chunk).await.is_err() {
                break;
            }
        }
        drop(send);
        match working.await {
            Ok(Ok(accepted)) => {
                self.metrics.plans.add();
                // The sender need not know why: it keeps what it sent, and sends it whole the next time.
                let code = match accepted {
                    Accepted::InForce => StatusCode::NO_CONTENT,
                    Accepted::WantsWhole => StatusCode::ACCEPTED,
                };
                respond(code, "text/plain", String::new())
            }
            Ok(Err(refused)) => {
                self.metrics.plans_refused.add();
                tracing::warn!(%refused, "names were refused; those before stay in force");
                let code = match refused {
                    Refused::OtherPlan => StatusCode::CONFLICT,
                    Refused::Disk(_) => StatusCode::SERVICE_UNAVAILABLE,
                    Refused::Message(_) | Refused::BrokenOff | Refused::Receiving(_) => {
                        StatusCode::BAD_REQUEST
                    }
                };
                text(code, format!("{refused}\n"))
            }
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
                "domain": loaded.index.domain(),
                "version": loaded.version,
                "names": loaded.index.counts().0,
                "pointers": loaded.index.counts().1,
            })),
            "listen": self.listen,
            "upstreams": self.forwarder.status(),
            "forwardProblems": self.forwarder.table().problems,
            "settings": json!({"file": self.settings_file.path, "problem": self.settings_file.problem()}),
            "cache": self.forwarder.cache_counts(),
            "counters": self.metrics.to_json(),
        })
    }

    fn prometheus(&self) -> String {
        let state = self.plans.read();
        let plan = &state.loaded;
        let names = plan.as_ref().map_or(0, |loaded| loaded.index.counts().0);
        let cache = self.forwarder.cache_counts();
        let mut text = self.metrics.to_prometheus(&[
            ("weft_dns_ready", "Whether a plan of names is in force.", u64::from(plan.is_some())),
            ("weft_dns_plan_names", "Names in the plan in force.", names as u64),
            ("weft_dns_cache_entries", "Upstream answers kept.", cache.entries),
            ("weft_dns_cache_bytes", "What they take in memory.", cache.bytes),
        ]);
        self.forwarder.write_metrics(&mut text);
        text
    }
}

/// The body of a request, read where waiting is allowed.
struct Chunks {
    receive: mpsc::Receiver<io::Result<Bytes>>,
    chunk: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.receive.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let length = self.chunk.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.chunk.split_to(length));
        Ok(length)
    }
}

fn text(code: StatusCode, body: String) -> Response<Reply> {
    respond(code, "text/plain", body)
}

fn respond(code: StatusCode, kind: &'static str, body: String) -> Response<Reply> {
    reply(code, kind, Reply::Whole(Full::new(Bytes::from(body))))
}

fn reply(code: StatusCode, kind: &'static str, body: Reply) -> Response<Reply> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

/// A body at hand, or rows as they come until the client goes.
enum Reply {
    Whole(Full<Bytes>),
    Rows(mpsc::Receiver<Bytes>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context),
            Self::Rows(rows) => rows.poll_recv(context).map(|row| row.map(|row| Ok(Frame::data(row)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Rows(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Rows(_) => SizeHint::default(),
        }
    }
}
