//! The garbage collector: what its owners leave behind goes too, in the order the deletion asked for.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::definitions::without_finalizer;
use super::{adjust, target_of};
use crate::api::delete::{self, FOREGROUND, ORPHAN, Options, Propagation};
use crate::api::update::Part;
use crate::api::{Api, meta};
use crate::status::ApiError;
use crate::store::{Event, EventKind, Key};

/// Reacts to every event for ever; first looks over everything there is.
pub async fn run(api: Arc<Api>, mut events: mpsc::UnboundedReceiver<Arc<Event>>) {
    for resource in api.store.resources() {
        for (path, _) in api.store.list(&resource, None).items {
            review(&api, &Key { resource: resource.clone(), path }).await;
        }
    }
    while let Some(event) = events.recv().await {
        match event.kind {
            EventKind::Deleted => after_deletion(&api, &event).await,
            EventKind::Added | EventKind::Modified if is_interesting(&event) => {
                review(&api, &event.key).await
            }
            EventKind::Added | EventKind::Modified => {}
        }
    }
}

fn is_interesting(event: &Event) -> bool {
    let value = &event.entry.value;
    let owners_changed = match &event.previous {
        Some(previous) => owners(&previous.value) != owners(value),
        None => !owners(value).is_empty(),
    };
    owners_changed || meta::is_deleting(value)
}

fn owners(object: &Value) -> &[Value] {
    let list = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    list.map(Vec::as_slice).unwrap_or_default()
}

async fn after_deletion(api: &Arc<Api>, event: &Event) {
    let uid = meta::text(&event.entry.value, "uid");
    let dependents = api.store.dependents(uid);
    futures::future::join_all(dependents.iter().map(|key| review(api, key))).await;
    // An owner that waits for its dependents may be waiting for this one.
    for owner in owners(&event.entry.value) {
        let uid = owner.get("uid").and_then(Value::as_str).unwrap_or_default();
        if let Some(key) = api.store.find_uid(uid) {
            review(api, &key).await;
        }
    }
}

/// Does what one object's owners and finalizers call for.
async fn review(api: &Arc<Api>, key: &Key) {
    let Some(entry) = api.store.get(key) else { return };
    let object = &entry.value;
    let outcome = if meta::is_deleting(object) {
        let finalizers = meta::finalizers(object);
        if finalizers.contains(&ORPHAN) {
            orphan_dependents(api, key, object).await
        } else if finalizers.contains(&FOREGROUND) {
            delete_dependents_first(api, key, object).await
        } else {
            Ok(())
        }
    } else {
        collect_if_orphaned(api, key, object).await
    };
    match outcome {
        Err(error) if error.reason != "NotFound" && error.reason != "Conflict" => {
            tracing::warn!(resource = key.resource.as_str(), object = &*key.path, %error, "garbage collection failed");
        }
        _ => {}
    }
}

/// An owner reference, sorted by what has become of the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Alive,
    /// Waiting for its dependents to go.
    Waiting,
    Gone,
    /// Of a kind this server does not know, so nothing can be said.
    Unknown,
}

fn fate(api: &Api, key: &Key, owner: &Value) -> Fate {
    let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default();
    let Some(found) = api.store.find_uid(text("uid")).and_then(|key| Some((api.store.get(&key)?, key)))
    else {
        let (group, version) = text("apiVersion").rsplit_once('/').unwrap_or(("", text("apiVersion")));
        let known = api.registry.find_by_kind(group, version, text("kind")).is_some();
        return if known { Fate::Gone } else { Fate::Unknown };
    };
    let (entry, owner_key) = found;
    // An owner in another namespace is no owner.
    if owner_key.namespace().is_some() && owner_key.namespace() != key.namespace() {
        return Fate::Gone;
    }
    let waiting = meta::is_deleting(&entry.value) && meta::finalizers(&entry.value).contains(&FOREGROUND);
    if waiting { Fate::Waiting } else { Fate::Alive }
}

async fn collect_if_orphaned(api: &Arc<Api>, key: &Key, object: &Value) -> Result<(), ApiError> {
    let references = owners(object);
    let fates: Vec<Fate> = references.iter().map(|owner| fate(api, key, owner)).collect();
    let ended = |fate: &Fate| matches!(fate, Fate::Gone | Fate::Waiting);
    if !fates.iter().any(ended) {
        return Ok(());
    }
    let Some(target) = target_of(api, key) else { return Ok(()) };
    let solid = fates.iter().any(|fate| matches!(fate, Fate::Alive | Fate::Unknown));
    if solid {
        let gone: Vec<Value> = references
            .iter()
            .zip(&fates)
            .filter(|(_, fate)| ended(fate))
            .map(|(owner, _)| owner["uid"].clone())
            .collect();
        adjust(api, &target, Part::Whole, |object| Some(without_owners(object, &gone))).await?;
        return Ok(());
    }
    let has_own_dependents = !api.store.dependents(meta::text(object, "uid")).is_empty();
    let wait = fates.contains(&Fate::Waiting) && has_own_dependents;
    let options = Options {
        propagation: Some(if wait { Propagation::Foreground } else { Propagation::Background }),
        uid: Some(meta::text(object, "uid").to_owned()),
        ..Options::default()
    };
    delete::delete_object(api, &target, &options).await.map(drop)
}

async fn orphan_dependents(api: &Arc<Api>, key: &Key, object: &Value) -> Result<(), ApiError> {
    let uid = vec![Value::from(meta::text(object, "uid"))];
    for dependent in api.store.dependents(meta::text(object, "uid")) {
        if let Some(target) = target_of(api, &dependent) {
            match adjust(api, &target, Part::Whole, |object| Some(without_owners(object, &uid))).await {
                Err(error) if error.reason != "NotFound" => return Err(error),
                _ => {}
            }
        }
    }
    release(api, key, ORPHAN).await
}

async fn delete_dependents_first(api: &Arc<Api>, key: &Key, object: &Value) -> Result<(), ApiError> {
    let uid = meta::text(object, "uid");
    let mut blocked = false;
    for dependent in api.store.dependents(uid) {
        let Some(entry) = api.store.get(&dependent) else { continue };
        let blocks = |owner: &Value| {
            owner["uid"] == uid && owner.get("blockOwnerDeletion").and_then(Value::as_bool) == Some(true)
        };
        blocked |= owners(&entry.value).iter().any(blocks);
        if !meta::is_deleting(&entry.value) {
            collect_if_orphaned(api, &dependent, &entry.value).await?;
        }
    }
    if blocked && api.store.dependents(uid).iter().any(|key| api.store.get(key).is_some()) {
        return Ok(());
    }
    release(api, key, FOREGROUND).await
}

async fn release(api: &Arc<Api>, key: &Key, finalizer: &str) -> Result<(), ApiError> {
    let Some(target) = target_of(api, key) else { return Ok(()) };
    adjust(api, &target, Part::Whole, |object| Some(without_finalizer(object, finalizer))).await.map(drop)
}

fn without_owners(object: &Value, uids: &[Value]) -> Value {
    let left: Vec<&Value> = owners(object).iter().filter(|owner| !uids.contains(&owner["uid"])).collect();
    let left = json!(left);
    let mut object = object.clone();
    let metadata = meta::metadata(&mut object);
    if left.as_array().is_some_and(Vec::is_empty) {
        metadata.remove("ownerReferences");
    } else {
        metadata.insert("ownerReferences".into(), left);
    }
    object
}
