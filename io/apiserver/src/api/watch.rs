//! Watching a collection: initial state, events through selectors, bookmarks, expiry.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::read::{Shape, partial_metadata, revision_option, selection, table};
use super::{Api, Call, meta};
use crate::http::reply::{self, Reply};
use crate::http::request::{Query, Target};
use crate::select::Selection;
use crate::status::{ApiError, Result};
use crate::store::{self, Entry, Event, EventKind, Revision, Watcher};
use crate::tables::Columns;

const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);
/// Upstream's range for watches that set no limit themselves.
const SHORTEST_DEFAULT_SECONDS: u64 = 1800;
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Initial {
    /// The client has the state already.
    Nothing,
    Objects,
    /// A streaming list: the state, then a bookmark that says it is complete.
    ObjectsThenBookmark,
}

/// Answers at once with a stream that a task of its own fills.
pub async fn watch(api: &Arc<Api>, call: Call, target: Target) -> Result<Reply> {
    let selection = selection(&call, &target)?;
    let options = Options::parse(&call.query)?;
    let session = Session { api: Arc::clone(api), call, target, selection, options, rows_sent: 0 };
    let content_type = match Shape::of(&session.call.accept) {
        Shape::Objects => "application/json",
        Shape::Table | Shape::Metadata => "application/json;stream=watch",
    };
    let (sender, reply) = reply::stream(content_type);
    tokio::spawn(session.run(sender));
    Ok(reply)
}

struct Options {
    initial: Initial,
    from: Option<Revision>,
    bookmarks: bool,
    lifetime: Duration,
}

impl Options {
    fn parse(query: &Query) -> Result<Self> {
        let from = revision_option(query)?;
        let bookmarks = query.flag("allowWatchBookmarks");
        let streaming = query.get("sendInitialEvents");
        if streaming.is_some() && query.get("resourceVersionMatch") != Some("NotOlderThan") {
            return Err(ApiError::bad_request(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        if streaming.is_none() && query.get("resourceVersionMatch").is_some() {
            return Err(ApiError::bad_request(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ));
        }
        let initial = match (streaming, from) {
            (Some("true" | "1"), _) if bookmarks => Initial::ObjectsThenBookmark,
            (Some("true" | "1"), _) => Initial::Objects,
            (Some(_), _) | (None, Some(_)) => Initial::Nothing,
            (None, None) => Initial::Objects,
        };
        Ok(Self { initial, from, bookmarks, lifetime: lifetime(query)? })
    }
}

fn lifetime(query: &Query) -> Result<Duration> {
    match query.get("timeoutSeconds").map(str::parse::<u64>) {
        None | Some(Ok(0)) => {
            let jitter = u64::from(u16::from_le_bytes(meta::random_bytes())) % SHORTEST_DEFAULT_SECONDS;
            Ok(Duration::from_secs(SHORTEST_DEFAULT_SECONDS + jitter))
        }
        Some(Ok(seconds)) => Ok(Duration::from_secs(seconds)),
        Some(Err(_)) => {
            Err(ApiError::bad_request("timeoutSeconds: Invalid value: must be a non-negative integer"))
        }
    }
}

struct Session {
    api: Arc<Api>,
    call: Call,
    target: Target,
    selection: Selection,
    options: Options,
    /// Tables name their columns only in the first event.
    rows_sent: usize,
}

/// The client has gone.
struct Gone;

impl Session {
    async fn run(mut self, out: mpsc::Sender<Bytes>) {
        // Either the client has gone or the stream's time is over; both end the task.
        let _ = self.stream(&out).await;
    }

    async fn stream(&mut self, out: &mpsc::Sender<Bytes>) -> std::result::Result<(), Gone> {
        let deadline = Instant::now() + self.options.lifetime;
        let mut watcher = match self.start(out).await? {
            Ok(watcher) => watcher,
            Err(error) => return self.send_error(out, &error).await,
        };
        let mut bookmark_at = Instant::now() + BOOKMARK_PERIOD;
        loop {
            tokio::select! {
                () = out.closed() => return Err(Gone),
                () = tokio::time::sleep_until(deadline) => {
                    return self.bookmark(out, watcher.position()).await;
                }
                () = tokio::time::sleep_until(bookmark_at) => {
                    bookmark_at = Instant::now() + BOOKMARK_PERIOD;
                    // What is not handed out yet must go first, or the bookmark would skip it.
                    self.forward(out, &mut watcher).await?;
                    self.bookmark(out, watcher.position()).await?;
                }
                changed = watcher.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.forward(out, &mut watcher).await?;
                }
            }
        }
    }

    /// Sends the initial state and opens the watcher just behind it.
    async fn start(
        &mut self,
        out: &mpsc::Sender<Bytes>,
    ) -> std::result::Result<std::result::Result<Watcher, ApiError>, Gone> {
        let resource = self.api.resource(&self.target.kind);
        let latest = self.api.store.revision();
        if let Some(asked) = self.options.from.filter(|asked| *asked > latest) {
            return Ok(Err(store::Error::Future { asked, latest }.into()));
        }
        if self.options.initial == Initial::Nothing {
            let from = self.options.from.unwrap_or(latest);
            return Ok(self.api.store.watch(&resource, from).map_err(|error| match error {
                store::Error::Expired { asked, oldest } => {
                    ApiError::expired(format!("too old resource version: {asked} ({oldest})"))
                }
                other => other.into(),
            }));
        }
        let listing = self.api.store.list(&resource, self.target.namespace.as_deref());
        let watcher = match self.api.store.watch(&resource, listing.revision) {
            Ok(watcher) => watcher,
            Err(error) => return Ok(Err(error.into())),
        };
        for (_, entry) in &listing.items {
            if self.selects(entry) {
                let line = self.line("ADDED", entry);
                out.send(line).await.map_err(|_| Gone)?;
            }
        }
        if self.options.initial == Initial::ObjectsThenBookmark {
            let line = self.bookmark_line(listing.revision, &json!({INITIAL_EVENTS_END: "true"}));
            out.send(line).await.map_err(|_| Gone)?;
        }
        Ok(Ok(watcher))
    }

    async fn forward(
        &mut self,
        out: &mpsc::Sender<Bytes>,
        watcher: &mut Watcher,
    ) -> std::result::Result<(), Gone> {
        loop {
            let events = match watcher.take() {
                Ok(events) => events,
                Err(_) => {
                    let error = ApiError::expired("too old resource version: the watch fell too far behind");
                    self.send_error(out, &error).await?;
                    return Err(Gone);
                }
            };
            if events.is_empty() {
                return Ok(());
            }
            for event in &events {
                if let Some(line) = self.event_line(event) {
                    out.send(line).await.map_err(|_| Gone)?;
                }
            }
        }
    }

    /// How this client sees an event: by its selector, a change may be an arrival or a departure.
    fn event_line(&mut self, event: &Event) -> Option<Bytes> {
        if let Some(namespace) = &self.target.namespace
            && event.key.namespace() != Some(namespace)
        {
            return None;
        }
        let before = event.previous.as_ref().is_some_and(|previous| self.selects(previous));
        let after = event.kind != EventKind::Deleted && self.selects(&event.entry);
        match (before, after) {
            (false, true) => Some(self.line("ADDED", &event.entry)),
            (true, true) => Some(self.line("MODIFIED", &event.entry)),
            (true, false) if event.kind == EventKind::Deleted => Some(self.line("DELETED", &event.entry)),
            (true, false) => {
                let mut last = event.previous.as_ref()?.value.as_ref().clone();
                meta::metadata(&mut last)
                    .insert("resourceVersion".into(), event.revision().to_string().into());
                let last = Entry::new(event.revision(), Arc::new(last));
                Some(self.line("DELETED", &last))
            }
            (false, false) => None,
        }
    }

    /// The deprecated `/watch/` paths can name one object.
    fn selects(&self, entry: &Entry) -> bool {
        let named = &self.target.name;
        (named.is_empty() || meta::text(&entry.value, "name") == named)
            && self.selection.matches(&entry.value)
    }

    fn line(&mut self, event: &str, entry: &Entry) -> Bytes {
        let kind = &self.target.kind;
        let shape = Shape::of(&self.call.accept);
        if matches!(shape, Shape::Objects) && self.api.is_stored_version(kind) {
            return stored_line(event, &entry.json);
        }
        let served = self.api.to_served(kind, &entry.value);
        let object = match shape {
            Shape::Objects => served,
            Shape::Metadata => partial_metadata(&served),
            Shape::Table => {
                let columns = if self.rows_sent == 0 { Columns::Show } else { Columns::Omit };
                self.rows_sent += 1;
                let list_meta = json!({"resourceVersion": entry.revision.to_string()});
                table(&self.api, &self.call, kind, &[served], list_meta, columns)
            }
        };
        value_line(event, &object)
    }

    async fn bookmark(&self, out: &mpsc::Sender<Bytes>, at: Revision) -> std::result::Result<(), Gone> {
        if !self.options.bookmarks {
            return Ok(());
        }
        out.send(self.bookmark_line(at, &Value::Null)).await.map_err(|_| Gone)
    }

    fn bookmark_line(&self, at: Revision, annotations: &Value) -> Bytes {
        let kind = &self.target.kind;
        let mut metadata = json!({"resourceVersion": at.to_string(), "creationTimestamp": null});
        if !annotations.is_null() {
            metadata["annotations"] = annotations.clone();
        }
        let mut object = json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata});
        match Shape::of(&self.call.accept) {
            Shape::Objects => {}
            Shape::Metadata => object = partial_metadata(&object),
            Shape::Table => {
                object = json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1", "columnDefinitions": null, "rows": [],
                    "metadata": {"resourceVersion": at.to_string()},
                });
            }
        }
        value_line("BOOKMARK", &object)
    }

    async fn send_error(&self, out: &mpsc::Sender<Bytes>, error: &ApiError) -> std::result::Result<(), Gone> {
        out.send(value_line("ERROR", &error.to_value())).await.map_err(|_| Gone)
    }
}

fn stored_line(event: &str, json: &[u8]) -> Bytes {
    let head = format!("{{\"type\":\"{event}\",\"object\":");
    let mut line = Vec::with_capacity(head.len() + json.len() + 2);
    line.extend_from_slice(head.as_bytes());
    line.extend_from_slice(json);
    line.extend_from_slice(b"}\n");
    line.into()
}

fn value_line(event: &str, object: &Value) -> Bytes {
    format!("{{\"type\":\"{event}\",\"object\":{object}}}\n").into()
}
