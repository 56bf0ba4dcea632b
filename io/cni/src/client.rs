//! The plugin's way to the agent: one HTTP/1.1 request over a Unix socket, in bounded time.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::CniError;
use crate::wire::MAX_BODY;

/// Why there is no result: nobody answered (so nobody knows whether it was done), or the agent said no.
#[derive(Debug)]
pub enum CallError {
    Unreachable(String),
    Refused(CniError),
}

/// How long one call may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For an agent that is being restarted to listen again.
    pub connect: Duration,
    /// For the whole call.
    pub total: Duration,
}

const RETRY: Duration = Duration::from_millis(50);

/// Posts `request` to `path` and returns the body of the answer.
pub async fn call(
    socket: &Path,
    path: &str,
    request: &impl Serialize,
    patience: Patience,
) -> Result<Bytes, CallError> {
    let body = serde_json::to_vec(request)
        .map_err(|error| CallError::Refused(CniError::decode("request").with_details(error)))?;
    let exchange = async {
        let stream = connect(socket, patience.connect).await?;
        exchange(stream, path, body).await
    };
    let late = || CallError::Unreachable(format!("no answer within {} s", patience.total.as_secs()));
    let outcome = tokio::time::timeout(patience.total, exchange).await.unwrap_or_else(|_| Err(late()));
    outcome.map_err(|error| match error {
        CallError::Unreachable(reason) => {
            CallError::Unreachable(format!("agent at {}: {reason}", socket.display()))
        }
        refused => refused,
    })
}

async fn connect(socket: &Path, patience: Duration) -> Result<UnixStream, CallError> {
    let end = Instant::now() + patience;
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < end => tokio::time::sleep(RETRY).await,
            Err(error) => return Err(CallError::Unreachable(error.to_string())),
        }
    }
}

async fn exchange(stream: UnixStream, path: &str, body: Vec<u8>) -> Result<Bytes, CallError> {
    let lost = |error: hyper::Error| CallError::Unreachable(error.to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(header::HOST, "agent")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .expect("method, path and headers are constants");
    let response = sender.send_request(request).await.map_err(lost)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY)
        .collect()
        .await
        .map_err(|error| CallError::Unreachable(error.to_string()))?
        .to_bytes();
    driver.abort();
    answer(status, body)
}

fn answer(status: StatusCode, body: Bytes) -> Result<Bytes, CallError> {
    if status.is_success() {
        return Ok(body);
    }
    match serde_json::from_slice::<CniError>(&body) {
        Ok(error) => Err(CallError::Refused(error)),
        // Somebody listens who does not serve CNI: an agent that has only begun to start.
        Err(_) => Err(CallError::Unreachable(format!("it answered {status}"))),
    }
}
