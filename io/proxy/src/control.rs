//! The control socket: plans in from the agent, status out. HTTP/1.1 over a Unix socket.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::UnixListener;

use crate::Error;
use crate::plan::{PlanStore, ProxyPlan};

const LARGEST_PLAN: usize = 64 << 20;

pub fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed = |source| Error::Control { path: path.to_owned(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    UnixListener::bind(path).map_err(failed)
}

pub async fn serve(listener: UnixListener, plans: Arc<PlanStore>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let plans = plans.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| {
                let plans = plans.clone();
                async move { Ok::<_, Infallible>(answer(&plans, request).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            if let Err(error) = connection.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "a control connection ended early");
            }
        });
    }
}

async fn answer(plans: &PlanStore, request: Request<Incoming>) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::PUT, "/plan") => put_plan(plans, request.into_body()).await,
        (&Method::GET, "/status") => {
            let current = plans.current();
            let status = json!({
                "source": current.as_ref().map(|loaded| loaded.source),
                "healthChecks": current.as_ref().map_or(0, |loaded| loaded.plan.health_checks.len()),
            });
            respond(StatusCode::OK, status.to_string())
        }
        _ => respond(StatusCode::NOT_FOUND, "there are PUT /plan and GET /status\n".to_owned()),
    }
}

async fn put_plan(plans: &PlanStore, body: Incoming) -> Response<Full<Bytes>> {
    let refused = |reason: String| {
        tracing::warn!(reason, "a plan was refused; the one before stays in force");
        respond(StatusCode::BAD_REQUEST, reason + "\n")
    };
    let bytes = match Limited::new(body, LARGEST_PLAN).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return refused(format!("the plan could not be received: {error}")),
    };
    match serde_json::from_slice::<ProxyPlan>(&bytes) {
        Ok(plan) => {
            plans.replace(plan);
            respond(StatusCode::NO_CONTENT, String::new())
        }
        Err(error) => refused(format!("not a plan of the proxy: {error}")),
    }
}

fn respond(code: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response
}
