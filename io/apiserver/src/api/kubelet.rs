//! Logs, exec, attach and port-forward: handed to the pod's kubelet over its socket, bytes passed both ways.

use http::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::Api;
use crate::http::reply::{self, Reply};
use crate::http::request::{Query, Target};
use crate::kinds::Kind;
use crate::status::{ApiError, Result};

/// Whether a subresource is the kubelet's to answer.
pub fn serves(kind: &Kind, subresource: &str) -> bool {
    kind.group.is_empty()
        && kind.plural == "pods"
        && matches!(subresource, "log" | "exec" | "attach" | "portforward")
}

pub async fn forward(
    api: &Api,
    mut request: Request<Incoming>,
    target: &Target,
    subresource: &str,
) -> Result<Reply> {
    let pod = api.find(target)?;
    let query = Query::parse(request.uri().query());
    let node = pod.value.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if node.is_empty() {
        if subresource == "log" {
            return Ok(reply::text(StatusCode::OK, ""));
        }
        let message = format!("pod {} does not have a host assigned", target.name);
        return Err(ApiError::bad_request(message));
    }
    let uri = kubelet_uri(&pod.value, target, subresource, &query, request.uri())?;
    let stream = connect(api, node).await?;
    let upgraded = request.headers().contains_key(UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let outgoing = outgoing(request, uri);
    let response = send(stream, outgoing, node).await?;
    match upgraded {
        Some(client) if response.status() == StatusCode::SWITCHING_PROTOCOLS => Ok(tunnel(response, client)),
        _ => Ok(relay(response)),
    }
}

async fn connect(api: &Api, node: &str) -> Result<UnixStream> {
    let path = api.kubelet_sockets.of(node);
    UnixStream::connect(&path).await.map_err(|error| {
        ApiError::internal(format!(
            "error dialing the kubelet of node {node:?} at {}: {error}",
            path.display()
        ))
    })
}

/// The path the real kubelet serves this under.
fn kubelet_uri(
    pod: &Value,
    target: &Target,
    subresource: &str,
    query: &Query,
    original: &Uri,
) -> Result<Uri> {
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let name = &target.name;
    let path = match subresource {
        "portforward" => format!("/portForward/{namespace}/{name}"),
        _ => {
            let container = container(pod, name, query)?;
            let verb = if subresource == "log" { "containerLogs" } else { subresource };
            format!("/{verb}/{namespace}/{name}/{container}")
        }
    };
    let options = translate_options(subresource, original.query().unwrap_or_default());
    let text = if options.is_empty() { path } else { format!("{path}?{options}") };
    let path = PathAndQuery::try_from(text)
        .map_err(|error| ApiError::bad_request(format!("the request cannot be forwarded: {error}")))?;
    Ok(Uri::from(path))
}

/// The kubelet's options are `input`, `output`, `error`, `tty` as 0 or 1; the API's are `stdin`, `stdout` ... as booleans.
fn translate_options(subresource: &str, query: &str) -> String {
    if !matches!(subresource, "exec" | "attach") {
        return query.to_owned();
    }
    let parts = query.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let renamed = match name {
            "container" | "" => return None,
            "command" => return Some(pair.to_owned()),
            "stdin" => "input",
            "stdout" => "output",
            "stderr" => "error",
            "tty" => "tty",
            _ => return Some(pair.to_owned()),
        };
        Some(format!("{renamed}={}", u8::from(matches!(value, "true" | "1" | ""))))
    });
    parts.collect::<Vec<_>>().join("&")
}

/// The container asked for, or the only sensible one.
fn container(pod: &Value, name: &str, query: &Query) -> Result<String> {
    let names = |field: &str| -> Vec<String> {
        let list = pod.pointer("/spec").and_then(|spec| spec.get(field)).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|c| c.get("name")?.as_str()).map(str::to_owned).collect()
    };
    let (main, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    if let Some(wanted) = query.get("container") {
        let known = main.iter().chain(&init).chain(&ephemeral).any(|own| own == wanted);
        return if known {
            Ok(wanted.to_owned())
        } else {
            Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {name}")))
        };
    }
    match main.as_slice() {
        [only] => Ok(only.clone()),
        _ => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]{}",
            main.join(" "),
            if init.is_empty() {
                String::new()
            } else {
                format!(" or one of the init containers: [{}]", init.join(" "))
            }
        ))),
    }
}

fn outgoing(request: Request<Incoming>, uri: Uri) -> Request<Incoming> {
    let (mut parts, body) = request.into_parts();
    parts.uri = uri;
    parts.version = http::Version::HTTP_11;
    parts.headers.insert(HOST, HeaderValue::from_static("kubelet"));
    // The kubelet trusts its socket; the client's credentials are not its business.
    parts.headers.remove(http::header::AUTHORIZATION);
    Request::from_parts(parts, body)
}

async fn send(stream: UnixStream, request: Request<Incoming>, node: &str) -> Result<Response<Incoming>> {
    let failed = |error: hyper::Error| ApiError::internal(format!("the kubelet of node {node:?}: {error}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(failed)
}

fn relay(response: Response<Incoming>) -> Reply {
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(CONNECTION);
    parts.headers.remove(http::header::TRANSFER_ENCODING);
    Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
}

fn tunnel(mut response: Response<Incoming>, client: hyper::upgrade::OnUpgrade) -> Reply {
    let kubelet = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        match (client.await, kubelet.await) {
            (Ok(client), Ok(kubelet)) => {
                let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
                // Either side may hang up at any time; that is how these streams end.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut kubelet).await;
            }
            (Err(error), _) | (_, Err(error)) => tracing::debug!(%error, "an upgraded stream did not open"),
        }
    });
    let (parts, _) = response.into_parts();
    Response::from_parts(parts, reply::full(""))
}
