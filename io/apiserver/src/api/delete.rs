//! DELETE: grace periods, finalizers, propagation, preconditions; one object or a collection.

use std::sync::Arc;

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Api, Call, DryRun, body, meta, read, timestamp};
use crate::http::reply::{self, Reply};
use crate::http::request::Target;
use crate::kinds::Kind;
use crate::schema::FieldError;
use crate::status::{self, ApiError, Result};
use crate::store::{self, Change, Entry, Expected, Latest};

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";
const ATTEMPTS: usize = 64;
const DEFAULT_POD_GRACE_SECONDS: i64 = 30;

/// What is to become of an object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// DeleteOptions.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub grace_seconds: Option<i64>,
    /// `None` leaves the choice an earlier deletion made.
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub revision: Option<String>,
    pub rehearse: bool,
}

impl Options {
    /// From the body, or the query for clients that send none.
    pub fn parse(call: &Call) -> Result<Self> {
        let object = if call.body.is_empty() { json!({}) } else { body::parse(call)? };
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let grace_seconds = match object.get("gracePeriodSeconds").and_then(Value::as_i64) {
            Some(seconds) => Some(seconds),
            None => query_grace(call)?,
        };
        if grace_seconds.is_some_and(|seconds| seconds < 0) {
            return Err(ApiError::bad_request(
                "gracePeriodSeconds: Invalid value: must be greater than or equal to 0",
            ));
        }
        let propagation =
            text("/propagationPolicy").or(call.query.get("propagationPolicy").map(str::to_owned));
        let orphan = object.get("orphanDependents").and_then(Value::as_bool);
        let body_dry_run =
            object.get("dryRun").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        Ok(Self {
            grace_seconds,
            propagation: parse_propagation(propagation.as_deref(), orphan)?,
            uid: text("/preconditions/uid"),
            revision: text("/preconditions/resourceVersion"),
            rehearse: body_dry_run || call.dry_run()? == DryRun::All,
        })
    }
}

fn query_grace(call: &Call) -> Result<Option<i64>> {
    let parse = |text: &str| {
        text.parse()
            .map_err(|_| ApiError::bad_request(format!("gracePeriodSeconds: Invalid value: {text:?}")))
    };
    call.query.get("gracePeriodSeconds").map(parse).transpose()
}

fn parse_propagation(policy: Option<&str>, orphan: Option<bool>) -> Result<Option<Propagation>> {
    match policy {
        Some("Background") => Ok(Some(Propagation::Background)),
        Some("Foreground") => Ok(Some(Propagation::Foreground)),
        Some("Orphan") => Ok(Some(Propagation::Orphan)),
        None if orphan == Some(true) => Ok(Some(Propagation::Orphan)),
        None => Ok(None),
        Some(other) => Err(ApiError::bad_request(format!(
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: \
             supported values: \"Background\", \"Foreground\", \"Orphan\""
        ))),
    }
}

pub async fn delete(api: &Api, call: &Call, target: &Target) -> Result<Reply> {
    let options = Options::parse(call)?;
    let outcome = delete_object(api, target, &options).await?;
    match outcome {
        Outcome::Marked(entry) => read::object_reply(api, call, &target.kind, &entry, StatusCode::OK),
        Outcome::Gone(entry) if returns_object(&target.kind) => {
            read::object_reply(api, call, &target.kind, &entry, StatusCode::OK)
        }
        Outcome::Gone(entry) => {
            let uid = meta::text(&entry.value, "uid");
            let status = status::deleted(&target.kind, &target.name, uid);
            Ok(reply::json(StatusCode::OK, &status, call.layout))
        }
    }
}

/// Upstream answers a finished deletion of these with the object rather than a Status.
fn returns_object(kind: &Kind) -> bool {
    kind.group.is_empty()
        && matches!(
            kind.plural.as_str(),
            "pods"
                | "services"
                | "serviceaccounts"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "podtemplates"
                | "resourcequotas"
        )
}

pub async fn delete_collection(api: &Api, call: &Call, target: &Target) -> Result<Reply> {
    let options = Options::parse(call)?;
    let mut deleted = Vec::new();
    for (key, entry) in read::selected(api, call, target)? {
        let one = Target {
            kind: Arc::clone(&target.kind),
            namespace: key.namespace().map(str::to_owned),
            name: key.name().to_owned(),
        };
        match delete_object(api, &one, &options).await {
            Ok(Outcome::Marked(entry) | Outcome::Gone(entry)) => deleted.push(entry),
            // Somebody else was faster.
            Err(error) if error.reason == "NotFound" => deleted.push(entry),
            Err(error) => return Err(error),
        }
    }
    let items: Vec<Value> = deleted.iter().map(|entry| api.to_served(&target.kind, &entry.value)).collect();
    let list = json!({
        "kind": target.kind.list_kind,
        "apiVersion": target.kind.api_version(),
        "metadata": {"resourceVersion": api.store.revision().to_string()},
        "items": items,
    });
    Ok(reply::json(StatusCode::OK, &list, call.layout))
}

pub enum Outcome {
    /// Still there, waiting for a grace period or finalizers.
    Marked(Arc<Entry>),
    Gone(Arc<Entry>),
}

enum Step {
    Nothing,
    Mark(Value),
    Remove(Value),
}

pub async fn delete_object(api: &Api, target: &Target, options: &Options) -> Result<Outcome> {
    let key = api.key(target);
    let gone = || ApiError::not_found(&target.kind, &target.name);
    for _ in 0..ATTEMPTS {
        let latest = api.store.latest(&key).ok_or_else(gone)?;
        check_preconditions(target, &latest, options)?;
        check_protected(target)?;
        let (change, finished) = match next_step(target, &latest.value, options, Timestamp::now())? {
            Step::Nothing => {
                api.store.settle(&key, latest.revision).await;
                return Ok(Outcome::Marked(entry_of(&latest)));
            }
            Step::Mark(value) => (Change::Put(value), false),
            Step::Remove(value) => (Change::Delete(value), true),
        };
        let outcome = |entry| if finished { Outcome::Gone(entry) } else { Outcome::Marked(entry) };
        if options.rehearse {
            return Ok(outcome(entry_of(&latest)));
        }
        match api.store.write(key.clone(), Expected::At(latest.revision), change).await {
            Ok(entry) => {
                return Ok(outcome(entry));
            }
            Err(store::Error::Conflict(_)) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(ApiError::modified(&target.kind, &target.name))
}

fn entry_of(latest: &Latest) -> Arc<Entry> {
    Arc::new(Entry::new(latest.revision, Arc::clone(&latest.value)))
}

fn check_preconditions(target: &Target, latest: &Latest, options: &Options) -> Result<()> {
    let uid = meta::text(&latest.value, "uid");
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
        return Err(ApiError::conflict(&target.kind, &target.name, &why));
    }
    let revision = latest.revision.to_string();
    if let Some(wanted) = options.revision.as_ref().filter(|wanted| **wanted != revision) {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {revision}"
        );
        return Err(ApiError::conflict(&target.kind, &target.name, &why));
    }
    Ok(())
}

/// The namespaces a cluster cannot do without.
fn check_protected(target: &Target) -> Result<()> {
    let is_namespace = target.kind.group.is_empty() && target.kind.plural == "namespaces";
    let protected = ["default", "kube-system", "kube-public"];
    if is_namespace && protected.contains(&target.name.as_str()) {
        return Err(ApiError::object_forbidden(
            &target.kind,
            &target.name,
            "this namespace may not be deleted",
        ));
    }
    Ok(())
}

fn next_step(target: &Target, old: &Value, options: &Options, now: Timestamp) -> Result<Step> {
    let mut new = old.clone();
    set_propagation_finalizer(&mut new, options.propagation);
    let grace = grace(&target.kind, old, options);
    if meta::is_deleting(old) {
        return Ok(hasten(old, new, grace, now));
    }
    let held = !meta::finalizers(&new).is_empty() || is_held_namespace(&target.kind, old);
    if grace == 0 && !held {
        return Ok(Step::Remove(new));
    }
    let at = now.checked_add(SignedDuration::from_secs(grace)).map_err(|_| {
        let error =
            FieldError::invalid("gracePeriodSeconds", &Value::from(grace), "is too far in the future");
        ApiError::invalid(&target.kind, &target.name, &[error])
    })?;
    let metadata = meta::metadata(&mut new);
    metadata.insert("deletionTimestamp".into(), timestamp(at).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
        metadata.insert("generation".into(), (generation + 1).into());
    }
    if is_namespace(&target.kind) {
        new["status"]["phase"] = "Terminating".into();
    }
    Ok(Step::Mark(new))
}

/// A second deletion can only shorten what the first began.
fn hasten(old: &Value, mut new: Value, grace: i64, now: Timestamp) -> Step {
    let remaining = meta::grace_seconds(old).unwrap_or_default();
    if grace == 0 && meta::finalizers(&new).is_empty() && !held_by_spec(old) {
        return Step::Remove(new);
    }
    if grace < remaining {
        let metadata = meta::metadata(&mut new);
        let at = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
        metadata.insert("deletionTimestamp".into(), timestamp(at).into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    }
    if new == *old { Step::Nothing } else { Step::Mark(new) }
}

/// Only pods are given time; those that run nowhere, or no longer, need none.
fn grace(kind: &Kind, object: &Value, options: &Options) -> i64 {
    if !is_pod(kind) {
        return 0;
    }
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    if text("/spec/nodeName").is_empty() || matches!(text("/status/phase"), "Succeeded" | "Failed") {
        return 0;
    }
    if let Some(seconds) = options.grace_seconds {
        return seconds;
    }
    if let (true, Some(remaining)) = (meta::is_deleting(object), meta::grace_seconds(object)) {
        return remaining;
    }
    let own = object.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    own.unwrap_or(DEFAULT_POD_GRACE_SECONDS)
}

fn set_propagation_finalizer(object: &mut Value, propagation: Option<Propagation>) {
    let wanted = match propagation {
        None => return,
        Some(Propagation::Background) => None,
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Orphan) => Some(ORPHAN),
    };
    let before = meta::finalizers(object);
    let mut finalizers: Vec<String> = before
        .iter()
        .filter(|name| **name != FOREGROUND && **name != ORPHAN)
        .map(|name| (*name).to_owned())
        .collect();
    finalizers.extend(wanted.map(str::to_owned));
    if finalizers.iter().map(String::as_str).eq(before.iter().copied()) {
        return;
    }
    let metadata = meta::metadata(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), json!(finalizers));
    }
}

fn is_pod(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "pods"
}

fn is_namespace(kind: &Kind) -> bool {
    kind.group.is_empty() && kind.plural == "namespaces"
}

fn is_held_namespace(kind: &Kind, object: &Value) -> bool {
    is_namespace(kind) && held_by_spec(object)
}

fn held_by_spec(object: &Value) -> bool {
    object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty())
}
