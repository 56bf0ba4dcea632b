//! The agent's socket: paths under /cni/ become calls of the service. Other paths are handed back to whoever serves them.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
use hyper::{Method, Request, Response, StatusCode, header};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::net::UnixListener;

use crate::wire::{self, MAX_BODY};
use crate::{CniError, CniService, PodNetwork, code};

/// Answers a request for CNI, or gives it back.
pub async fn handle<N, B>(
    service: &Arc<CniService<N>>,
    request: Request<B>,
) -> Result<Response<Full<Bytes>>, Request<B>>
where
    N: PodNetwork,
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = request.uri().path().to_owned();
    if ![wire::ADD, wire::DEL, wire::CHECK, wire::STATUS, wire::GC].contains(&path.as_str()) {
        return Err(request);
    }
    if request.method() != Method::POST {
        let error = CniError::decode(format!("{path} takes POST, not {}", request.method()));
        return Ok(refusal(&error));
    }
    let answer = match read(request.into_body()).await {
        Ok(body) => dispatch(service, &path, &body).await,
        Err(error) => Err(error),
    };
    Ok(match answer {
        Ok(body) => response(StatusCode::OK, body),
        Err(error) => refusal(&error),
    })
}

/// Listens at `path`, for the owner of this process only. A socket nobody listens on any more is replaced.
pub fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    if is_served(path) {
        let message = format!("{}: another process listens here", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    }
    // Bound beside its place and moved there, so that nobody can connect before the mode is set.
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    match std::fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(new)?;
    std::fs::set_permissions(new, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(new, path)?;
    Ok(listener)
}

/// An agent that was killed a moment ago may not have let go of its socket yet, so a live one must answer for a while.
fn is_served(path: &Path) -> bool {
    (0..40).all(|attempt| {
        if attempt > 0 {
            std::thread::sleep(Duration::from_millis(25));
        }
        std::os::unix::net::UnixStream::connect(path).is_ok()
    })
}

async fn dispatch<N: PodNetwork>(
    service: &Arc<CniService<N>>,
    path: &str,
    body: &[u8],
) -> Result<Bytes, CniError> {
    match path {
        wire::ADD => service.add(decode(body)?).await.map(encode),
        wire::DEL => service.del(decode(body)?).await.map(|()| encode(json!({}))),
        wire::CHECK => service.check(decode(body)?).await.map(encode),
        wire::GC => service.gc(decode(body)?).await.map(|()| encode(json!({}))),
        _ => service.status().await.map(|()| encode(json!({}))),
    }
}

async fn read<B>(body: B) -> Result<Bytes, CniError>
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let collected = Limited::new(body, MAX_BODY).collect().await;
    Ok(collected.map_err(|error| CniError::decode("cannot read the request").with_details(error))?.to_bytes())
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CniError> {
    serde_json::from_slice(body)
        .map_err(|error| CniError::decode("the request is not understood").with_details(error))
}

fn encode(answer: impl Serialize) -> Bytes {
    serde_json::to_vec(&answer).expect("keys are strings and no value refuses to be written").into()
}

fn refusal(error: &CniError) -> Response<Full<Bytes>> {
    let status = match error.code {
        code::INVALID_ENVIRONMENT | code::DECODE | code::INVALID_CONFIG => StatusCode::BAD_REQUEST,
        code::UNKNOWN_CONTAINER => StatusCode::NOT_FOUND,
        code::TRY_LATER | code::NOT_READY | code::LIMITED => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    response(status, encode(error))
}

fn response(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .expect("status and header are constants")
}
