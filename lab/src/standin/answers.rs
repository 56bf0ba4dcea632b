//! What a stand-in answers to a request or a datagram. Sockets are in serve.rs.
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame};
use serde_json::{Value, json};

use super::options::Options;

pub type AnswerBody = BoxBody<Bytes, Infallible>;

/// Both ends of a connection as the stand-in sees them.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub client: SocketAddr,
    pub local: SocketAddr,
}

impl Ends {
    /// With IPv4 addresses written as such, whatever the socket's family.
    pub fn new(client: SocketAddr, local: SocketAddr) -> Self {
        let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self { client: plain(client), local: plain(local) }
    }
}

fn who(options: &Options, ends: Ends) -> Value {
    json!({
        "pod": options.pod,
        "namespace": options.namespace,
        "node": options.node,
        "container": options.container,
        "client": ends.client.to_string(),
        "local": ends.local.to_string(),
    })
}

/// One line for one datagram.
pub fn datagram(options: &Options, ends: Ends, received: usize) -> Vec<u8> {
    let mut answer = who(options, ends);
    answer["bytes"] = json!(received);
    format!("{answer}\n").into_bytes()
}

/// Answers one HTTP request of either version.
pub async fn request<B: Body>(options: &Options, ends: Ends, request: Request<B>) -> Response<AnswerBody> {
    let is_grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let mut response =
        if is_grpc { grpc(request.uri().path()) } else { plain(options, ends, &request).await };
    for (name, value) in [("weft-pod", &options.pod), ("weft-node", &options.node)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

async fn plain<B>(options: &Options, ends: Ends, request: &Request<B>) -> Response<AnswerBody> {
    let query = request.uri().query().unwrap_or_default();
    match request.uri().path() {
        "/bytes" => match number(query, "n") {
            Ok(count) => respond(StatusCode::OK, "application/octet-stream", zeros(count.unwrap_or(0))),
            Err(message) => bad(message),
        },
        "/status" => match number(query, "code").map(|code| status_code(code.unwrap_or(200))) {
            Ok(Some(status)) => respond(status, "application/json", describe(options, ends, request)),
            Ok(None) => bad("code must be a final HTTP status, 200 to 599".to_owned()),
            Err(message) => bad(message),
        },
        "/delay" => match number(query, "ms") {
            Ok(delay) => {
                tokio::time::sleep(Duration::from_millis(delay.unwrap_or(0))).await;
                respond(StatusCode::OK, "application/json", describe(options, ends, request))
            }
            Err(message) => bad(message),
        },
        _ => respond(StatusCode::OK, "application/json", describe(options, ends, request)),
    }
}

fn number(query: &str, name: &str) -> Result<Option<u64>, String> {
    let value = query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name));
    value.map(|(_, text)| text.parse().map_err(|_| format!("{name}={text} is not a number"))).transpose()
}

fn status_code(code: u64) -> Option<StatusCode> {
    u16::try_from(code)
        .ok()
        .filter(|code| (200..600).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
}

fn bad(message: String) -> Response<AnswerBody> {
    respond(StatusCode::BAD_REQUEST, "text/plain", Full::from(message + "\n").boxed())
}

fn describe<B>(options: &Options, ends: Ends, request: &Request<B>) -> AnswerBody {
    let mut answer = who(options, ends);
    let headers = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), json!(String::from_utf8_lossy(value.as_bytes()))));
    answer["method"] = json!(request.method().as_str());
    answer["path"] = json!(request.uri().path_and_query().map_or("/", |path| path.as_str()));
    answer["version"] = json!(format!("{:?}", request.version()));
    answer["headers"] = Value::Object(headers.collect());
    Full::from(format!("{answer}\n")).boxed()
}

fn respond(status: StatusCode, kind: &'static str, body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

fn zeros(count: u64) -> AnswerBody {
    let stream = futures::stream::unfold(count, |left| async move {
        let next = left.min(ZEROS.len() as u64);
        let chunk = Bytes::from_static(&ZEROS[..usize::try_from(next).unwrap_or_default()]);
        (next > 0).then(|| (Ok(Frame::data(chunk)), left - next))
    });
    BodyExt::boxed(StreamBody::new(stream))
}

/// The health service says "serving"; nothing else is implemented.
fn grpc(path: &str) -> Response<AnswerBody> {
    // A gRPC frame: not compressed, two bytes long, field 1 (status) = 1 (SERVING).
    const SERVING: &[u8] = &[0, 0, 0, 0, 2, 0x08, 0x01];
    let frame = Full::new(Bytes::from_static(SERVING));
    let body = match path {
        "/grpc.health.v1.Health/Check" => frame.with_trailers(async { Some(Ok(grpc_status("0"))) }).boxed(),
        "/grpc.health.v1.Health/Watch" => {
            let updates = futures::stream::once(async { Ok(Frame::data(Bytes::from_static(SERVING))) });
            BodyExt::boxed(StreamBody::new(futures::StreamExt::chain(updates, futures::stream::pending())))
        }
        _ => http_body_util::Empty::new().with_trailers(async { Some(Ok(grpc_status("12"))) }).boxed(),
    };
    respond(StatusCode::OK, "application/grpc", body)
}

fn grpc_status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))])
}
