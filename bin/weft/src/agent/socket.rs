//! What the agent answers on its Unix socket: CNI, status, flows, metrics, the plan and what the kernel holds.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;
use weft_observe::{Filter, Item};

use super::{Agent, pressure, status};

type Body = BoxBody<Bytes, Infallible>;

pub async fn serve(agent: Arc<Agent>, listener: UnixListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "cannot accept on the agent's socket");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let agent = agent.clone();
        let service = service_fn(move |request| {
            let agent = agent.clone();
            async move { Ok::<_, Infallible>(answer(agent, request).await) }
        });
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a client of the agent's socket went away");
            }
        });
    }
}

async fn answer(agent: Arc<Agent>, request: Request<Incoming>) -> Response<Body> {
    let request = match weft_cni::handle(&agent.cni, request).await {
        Ok(response) => return response.map(|body| body.boxed()),
        Err(request) => request,
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/status") => json(status::status(&agent).await),
        (&Method::GET, "/metrics") => {
            let flows = agent.flows.metrics.lock().unwrap_or_else(PoisonError::into_inner).render();
            text(flows + &pressure::metrics(&agent.applier.subscribe().borrow().report))
        }
        (&Method::GET, "/flows") => flows(&agent, request.uri().query().unwrap_or_default()),
        (&Method::GET, "/plan") => match &agent.applier.subscribe().borrow().state {
            Some(state) => text(state.compiled.plan.to_string()),
            None => problem(StatusCode::SERVICE_UNAVAILABLE, "no plan is in force yet"),
        },
        (&Method::GET, "/tables") => tables(&agent).await,
        (method, path) => {
            problem(StatusCode::NOT_FOUND, &format!("{method} {path}: the agent has no such resource"))
        }
    }
}

/// Flows as JSON lines: those kept, then, with `follow`, those to come.
fn flows(agent: &Agent, query: &str) -> Response<Body> {
    let (mut filter, mut follow, mut last) = (String::new(), false, usize::MAX);
    for (key, value) in form(query) {
        match key.as_str() {
            "filter" => filter = value,
            "follow" => follow = true,
            "last" => last = value.parse().unwrap_or(usize::MAX),
            _ => {}
        }
    }
    let filter: Filter = match filter.parse() {
        Ok(filter) => filter,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &format!("filter: {error}")),
    };
    let stream = agent.flows.ring.subscribe();
    let recent: Vec<Bytes> =
        agent.flows.ring.recent(&filter, last).iter().map(|flow| line(&**flow)).collect();
    if !follow {
        return Response::new(Full::new(Bytes::from(recent.concat())).boxed());
    }
    let later = futures::stream::unfold((stream, filter), |(mut stream, filter)| async move {
        loop {
            let row = match stream.next().await? {
                Item::Flow(flow) if filter.matches(&flow) => line(&*flow),
                Item::Flow(_) => continue,
                Item::Lost(count) => line(&serde_json::json!({ "lost": count })),
            };
            return Some((row, (stream, filter)));
        }
    });
    let rows = futures::StreamExt::chain(futures::stream::iter(recent), later);
    let frames = futures::StreamExt::map(rows, |row| Ok::<_, Infallible>(Frame::data(row)));
    Response::new(BodyExt::boxed(StreamBody::new(frames)))
}

fn line(value: &impl serde::Serialize) -> Bytes {
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

/// `application/x-www-form-urlencoded` pairs (WHATWG URL, section 5).
fn form(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    })
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex: Vec<u8> = rest.by_ref().take(2).collect();
                let parsed = std::str::from_utf8(&hex).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok());
                bytes.push(parsed.unwrap_or(b'?'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn tables(agent: &Agent) -> Response<Body> {
    let datapath = agent.datapath.clone();
    match tokio::task::spawn_blocking(move || datapath.read_back()).await {
        Ok(Ok(tables)) => text(tables.to_string()),
        Ok(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn json(value: impl serde::Serialize) -> Response<Body> {
    text(serde_json::to_string(&value).unwrap_or_default())
}

fn text(text: String) -> Response<Body> {
    Response::new(Full::new(Bytes::from(text)).boxed())
}

fn problem(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))).boxed());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded() {
        let pairs: Vec<_> = form("filter=pod%3Dshop%2Fweb+verdict%3Ddenied&follow").collect();
        assert_eq!(pairs[0].1, "pod=shop/web verdict=denied");
        assert_eq!(pairs[1].0, "follow");
    }
}
