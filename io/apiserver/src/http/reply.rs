//! Replies: JSON objects, raw bytes, streams, and their headers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as HttpBody, Frame};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::status::ApiError;

/// Why a reply's body could not be completed.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BodyError>;
pub type Reply = Response<Body>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// How JSON is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Compact,
    Pretty,
}

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

pub fn json(code: StatusCode, value: &Value, layout: Layout) -> Reply {
    let bytes = match layout {
        Layout::Compact => serde_json::to_vec(value),
        Layout::Pretty => serde_json::to_vec_pretty(value).map(|mut bytes| {
            bytes.push(b'\n');
            bytes
        }),
    };
    json_bytes(code, bytes.unwrap_or_default())
}

pub fn json_bytes(code: StatusCode, bytes: impl Into<Bytes>) -> Reply {
    with_type(code, JSON, full(bytes))
}

pub fn text(code: StatusCode, text: impl Into<String>) -> Reply {
    with_type(code, HeaderValue::from_static("text/plain; charset=utf-8"), full(text.into()))
}

pub fn bytes_of(content_type: &str, bytes: Bytes) -> Reply {
    let content_type = HeaderValue::from_str(content_type).unwrap_or(JSON);
    with_type(StatusCode::OK, content_type, full(bytes))
}

pub fn error(error: &ApiError, layout: Layout) -> Reply {
    let mut reply = json(error.code, &error.to_value(), layout);
    if let Some(seconds) = error.retry_after_seconds {
        reply.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    reply
}

pub fn with_type(code: StatusCode, content_type: HeaderValue, body: Body) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = code;
    reply.headers_mut().insert(CONTENT_TYPE, content_type);
    reply
}

/// The head of a reply, as HEAD asks for: over HTTP/2 a body would break the connection's rules.
pub fn without_body(reply: Reply) -> Reply {
    let (mut parts, body) = reply.into_parts();
    if let Some(length) = body.size_hint().exact() {
        parts.headers.insert(http::header::CONTENT_LENGTH, length.into());
    }
    Response::from_parts(parts, full(Bytes::new()))
}

/// A body that is produced while it is sent; ends when the sender is dropped.
pub fn stream(content_type: &'static str) -> (mpsc::Sender<Bytes>, Reply) {
    let (sender, receiver) = mpsc::channel(16);
    let reply = with_type(
        StatusCode::OK,
        HeaderValue::from_static(content_type),
        ChannelBody(receiver).boxed_unsync(),
    );
    (sender, reply)
}

struct ChannelBody(mpsc::Receiver<Bytes>);

impl HttpBody for ChannelBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Adds `Warning: 299` headers, as kubectl prints them.
pub fn add_warnings(reply: &mut Reply, warnings: &[String]) {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            reply.headers_mut().append(http::header::WARNING, value);
        }
    }
}
