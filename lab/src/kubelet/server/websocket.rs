//! The WebSocket handshake on the kubelet's socket. What is then said is in channels.rs and port_forward.rs.
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{Body, Refusal};

pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Agrees on the first of `known` that the client offers, answers 101, and hands the socket to `talk`.
pub fn upgrade<P, T, F>(
    mut request: Request<Incoming>,
    known: &[(&'static str, P)],
    talk: T,
) -> Result<Response<Body>, Refusal>
where
    P: Copy + Send + 'static,
    T: FnOnce(P, Socket) -> F + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let key = websocket_key(request.headers())?;
    let (name, protocol) = choose(request.headers(), known)?;
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrading.await {
            Ok(upgraded) => {
                let socket =
                    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
                talk(protocol, socket).await;
            }
            Err(error) => tracing::debug!("upgrade: {error}"),
        }
    });
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    let accept = HeaderValue::try_from(derive_accept_key(&key)).map_err(Refusal::internal)?;
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

fn websocket_key(headers: &HeaderMap) -> Result<Vec<u8>, Refusal> {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !upgrade.eq_ignore_ascii_case("websocket") {
        let asked = if upgrade.is_empty() { "no upgrade" } else { upgrade };
        return Err(Refusal::bad(format!(
            "this kubelet speaks WebSocket only, the client asked for {asked}: use kubectl 1.31 or newer"
        )));
    }
    let key =
        headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| Refusal::bad("Sec-WebSocket-Key is missing"))?;
    Ok(key.as_bytes().to_vec())
}

fn choose<P: Copy>(headers: &HeaderMap, known: &[(&'static str, P)]) -> Result<(&'static str, P), Refusal> {
    let offered =
        headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offered: Vec<_> = offered.flat_map(|value| value.split(',')).map(str::trim).collect();
    let chosen = offered.iter().find_map(|name| known.iter().find(|(known, _)| known == name));
    chosen.copied().ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        Refusal::bad(format!("none of the offered protocols {offered:?} is spoken here: {names:?}"))
    })
}
