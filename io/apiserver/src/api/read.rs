//! GET of one object and of collections: selection, paging, and the three shapes clients ask for.

use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::meta::{decode_token, encode_token};
use super::{Api, Call};
use crate::http::reply::{self, Layout, Reply};
use crate::http::request::{Query, Target};
use crate::kinds::Kind;
use crate::select::Selection;
use crate::status::{ApiError, Result};
use crate::store::{self, Entry, Key, Listing, Revision};
use crate::tables;

/// The shape of the answer, from the Accept header.
#[derive(Clone, Debug)]
pub enum Shape {
    Objects,
    Table,
    Metadata,
}

impl Shape {
    pub fn of(accept: &str) -> Self {
        if tables::requested(accept).is_some() {
            return Self::Table;
        }
        if accept.split(',').next().is_some_and(|first| first.contains("as=PartialObjectMetadata")) {
            return Self::Metadata;
        }
        Self::Objects
    }
}

pub async fn get(api: &Api, call: &Call, target: &Target) -> Result<Reply> {
    check_get_revision(api, call)?;
    let entry = api.find(target)?;
    object_reply(api, call, &target.kind, &entry, StatusCode::OK)
}

/// Replies with one stored object in the shape and version asked for.
pub fn object_reply(api: &Api, call: &Call, kind: &Kind, entry: &Entry, code: StatusCode) -> Result<Reply> {
    match Shape::of(&call.accept) {
        Shape::Objects if api.is_stored_version(kind) && call.layout == Layout::Compact => {
            Ok(reply::json_bytes(code, entry.json.clone()))
        }
        _ => value_reply(api, call, kind, &api.to_served(kind, &entry.value), code),
    }
}

/// The same for an object that is not stored as such.
pub fn value_reply(api: &Api, call: &Call, kind: &Kind, value: &Value, code: StatusCode) -> Result<Reply> {
    let shaped = match Shape::of(&call.accept) {
        Shape::Objects => return Ok(reply::json(code, value, call.layout)),
        Shape::Metadata => partial_metadata(value),
        Shape::Table => {
            let list_meta = json!({"resourceVersion": super::meta::text(value, "resourceVersion")});
            let items = std::slice::from_ref(value);
            table(api, call, kind, items, list_meta, tables::Columns::Show)
        }
    };
    Ok(reply::json(code, &shaped, call.layout))
}

pub fn table(
    api: &Api,
    call: &Call,
    kind: &Kind,
    items: &[Value],
    list_meta: Value,
    columns: tables::Columns,
) -> Value {
    let include = tables::Include::parse(call.query.get("includeObject").unwrap_or_default());
    tables::table(&api.registry, kind, items, list_meta, include, columns, Timestamp::now())
}

pub fn partial_metadata(value: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": value.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

fn check_get_revision(api: &Api, call: &Call) -> Result<()> {
    let Some(asked) = revision_option(&call.query)? else { return Ok(()) };
    let latest = api.store.revision();
    if asked > latest { Err(store::Error::Future { asked, latest }.into()) } else { Ok(()) }
}

/// `resourceVersion` of the query: `None` when absent or `0`, which asks for nothing in particular.
pub fn revision_option(query: &Query) -> Result<Option<Revision>> {
    match query.get("resourceVersion") {
        None | Some("0") => Ok(None),
        Some(text) => match text.parse() {
            Ok(number) => Ok(Some(Revision(number))),
            Err(_) => Err(ApiError::bad_request(format!(
                "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
            ))),
        },
    }
}

/// A page of a collection.
struct Page {
    items: Vec<Arc<Entry>>,
    revision: Revision,
    next: Option<Value>,
    remaining: usize,
}

pub async fn list(api: &Api, call: &Call, target: &Target) -> Result<Reply> {
    let page = page(api, call, target)?;
    let mut list_meta = json!({"resourceVersion": page.revision.to_string()});
    if let Some(next) = &page.next {
        list_meta["continue"] = encode_token(next).into();
        if page.remaining > 0 {
            list_meta["remainingItemCount"] = page.remaining.into();
        }
    }
    let kind = &target.kind;
    match Shape::of(&call.accept) {
        Shape::Objects if api.is_stored_version(kind) && call.layout == Layout::Compact => {
            Ok(reply::json_bytes(StatusCode::OK, join_items(kind, &list_meta, &page.items)))
        }
        shape => {
            let items: Vec<Value> =
                page.items.iter().map(|entry| api.to_served(kind, &entry.value)).collect();
            let body = match shape {
                Shape::Table => table(api, call, kind, &items, list_meta, tables::Columns::Show),
                Shape::Metadata => json!({
                    "kind": "PartialObjectMetadataList",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": list_meta,
                    "items": items.iter().map(partial_metadata).collect::<Vec<_>>(),
                }),
                Shape::Objects => json!({
                    "kind": kind.list_kind,
                    "apiVersion": kind.api_version(),
                    "metadata": list_meta,
                    "items": items,
                }),
            };
            Ok(reply::json(StatusCode::OK, &body, call.layout))
        }
    }
}

/// Every object a collection request selects, for deletecollection.
pub fn selected(api: &Api, call: &Call, target: &Target) -> Result<Vec<(Key, Arc<Entry>)>> {
    let selection = selection(call, target)?;
    let resource = api.resource(&target.kind);
    let listing = api.store.list(&resource, target.namespace.as_deref());
    let matching = listing.items.into_iter().filter(|(_, entry)| selection.matches(&entry.value));
    Ok(matching.map(|(path, entry)| (Key { resource: resource.clone(), path }, entry)).collect())
}

pub fn selection(call: &Call, target: &Target) -> Result<Selection> {
    let (labels, fields) = (call.query.get("labelSelector"), call.query.get("fieldSelector"));
    Selection::parse(&target.kind, labels, fields)
}

fn page(api: &Api, call: &Call, target: &Target) -> Result<Page> {
    let selection = selection(call, target)?;
    let limit = limit(&call.query)?;
    let resumed = call.query.get("continue").map(parse_continue).transpose()?;
    let listing = listing(api, call, target, resumed.as_ref())?;
    let after = resumed.as_ref().map(|(_, path)| path.as_str());
    let revision = listing.revision;
    let mut matching = listing
        .items
        .into_iter()
        .filter(|(path, entry)| after.is_none_or(|after| &**path > after) && selection.matches(&entry.value));
    let mut items = Vec::new();
    let mut last = None;
    for (path, entry) in matching.by_ref().take(limit) {
        items.push(entry);
        last = Some(path);
    }
    let remaining = matching.count();
    let next = last.filter(|_| remaining > 0).map(|path| json!({"v": 1, "rv": revision.0, "start": &*path}));
    // As upstream: with a selector, nobody counts what the selector would leave.
    let remaining = if selection.is_everything() { remaining } else { 0 };
    Ok(Page { items, revision, next, remaining })
}

fn limit(query: &Query) -> Result<usize> {
    match query.get("limit").map(str::parse::<usize>) {
        None | Some(Ok(0)) => Ok(usize::MAX),
        Some(Ok(limit)) => Ok(limit),
        Some(Err(_)) => Err(ApiError::bad_request("limit: Invalid value: must be a non-negative integer")),
    }
}

fn parse_continue(token: &str) -> Result<(Revision, String)> {
    let parsed = decode_token(token).and_then(|value| {
        Some((Revision(value.get("rv")?.as_u64()?), value.get("start")?.as_str()?.to_owned()))
    });
    parsed.ok_or_else(|| ApiError::bad_request("continue key is not valid: the token cannot be read"))
}

fn listing(api: &Api, call: &Call, target: &Target, resumed: Option<&(Revision, String)>) -> Result<Listing> {
    let resource = api.resource(&target.kind);
    let namespace = target.namespace.as_deref();
    let exact = call.query.get("resourceVersionMatch");
    let asked = revision_option(&call.query)?;
    if let Some((revision, start)) = resumed {
        // Revision zero continues from whatever is there now.
        if revision.0 == 0 {
            return Ok(api.store.list(&resource, namespace));
        }
        return api.store.list_at(&resource, namespace, *revision).map_err(|error| match error {
            store::Error::Expired { .. } => expired_continue(start),
            other => other.into(),
        });
    }
    match (exact, asked) {
        (Some("Exact"), Some(revision)) => {
            api.store.list_at(&resource, namespace, revision).map_err(|error| match error {
                store::Error::Expired { .. } => {
                    ApiError::expired(format!("The provided resource version is too old: {revision}"))
                }
                other => other.into(),
            })
        }
        (Some("Exact"), None) => Err(ApiError::bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\" or unset",
        )),
        (Some(other), _) if other != "NotOlderThan" => Err(ApiError::bad_request(format!(
            "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""
        ))),
        (_, Some(revision)) if revision > api.store.revision() => {
            Err(store::Error::Future { asked: revision, latest: api.store.revision() }.into())
        }
        _ => Ok(api.store.list(&resource, namespace)),
    }
}

fn expired_continue(start: &str) -> ApiError {
    let mut error = ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new \
         list without the continue parameter, or use the continue token in this response to retrieve the \
         remainder of the results. Continuing with the provided token results in an inconsistent list - objects \
         that were created, modified, or deleted between the time the first chunk was returned and now may show \
         up in the list.",
    );
    error.continue_token = Some(encode_token(&json!({"v": 1, "rv": 0, "start": start})));
    error
}

/// The list's JSON from its items' JSON, without parsing or serialising any of them.
fn join_items(kind: &Kind, list_meta: &Value, items: &[Arc<Entry>]) -> Vec<u8> {
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{list_meta},\"items\":[",
        Value::from(kind.list_kind.as_str()),
        Value::from(kind.api_version())
    );
    let size = head.len() + items.iter().map(|entry| entry.json.len() + 1).sum::<usize>() + 2;
    let mut bytes = Vec::with_capacity(size);
    bytes.extend_from_slice(head.as_bytes());
    for (at, entry) in items.iter().enumerate() {
        if at > 0 {
            bytes.push(b',');
        }
        bytes.extend_from_slice(&entry.json);
    }
    bytes.extend_from_slice(b"]}");
    bytes
}
