//! CustomResourceDefinitions: installing what they define, reporting it, and clearing up when they go.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{adjust, target_of};
use crate::api::Api;
use crate::api::delete::{self, Options};
use crate::api::meta;
use crate::api::update::Part;
use crate::http::request::Target;
use crate::store::{Event, EventKind, Key, Resource};

const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
const RETRY: Duration = Duration::from_millis(100);

pub fn resource() -> Resource {
    Resource::new("apiextensions.k8s.io", "customresourcedefinitions")
}

/// Makes sure that the objects of a definition go before it does.
pub fn guard(definition: &mut Value) {
    let mut finalizers: Vec<String> = meta::finalizers(definition).into_iter().map(str::to_owned).collect();
    if !finalizers.iter().any(|name| name == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    meta::metadata(definition).insert("finalizers".into(), json!(finalizers));
}

/// Installs what the store holds, before the first request is served.
pub fn install_stored(api: &Api) {
    for (path, entry) in api.store.list(&resource(), None).items {
        if let Err(errors) = api.registry.install_crd(&entry.value) {
            tracing::error!(definition = &*path, ?errors, "cannot install a stored definition");
        }
    }
}

/// Follows the definitions for ever.
pub async fn run(api: Arc<Api>, mut events: mpsc::UnboundedReceiver<Arc<Event>>) {
    for (path, _) in api.store.list(&resource(), None).items {
        settle(&api, &Key { resource: resource(), path }).await;
    }
    while let Some(event) = events.recv().await {
        if event.key.resource != resource() {
            continue;
        }
        match event.kind {
            EventKind::Deleted => api.registry.remove_crd(event.key.name()),
            EventKind::Added | EventKind::Modified => settle(&api, &event.key).await,
        }
    }
}

async fn settle(api: &Arc<Api>, key: &Key) {
    let Some(entry) = api.store.get(key) else { return };
    let Some(target) = target_of(api, key) else { return };
    if meta::is_deleting(&entry.value) {
        if meta::finalizers(&entry.value).contains(&FINALIZER) {
            tokio::spawn(clear(Arc::clone(api), target, Arc::clone(&entry.value)));
        }
        return;
    }
    let status = match api.registry.install_crd(&entry.value) {
        Ok(outcome) => outcome.status,
        Err(errors) => {
            tracing::warn!(definition = key.name(), ?errors, "cannot install a definition");
            return;
        }
    };
    let written = adjust(api, &target, Part::Status, |definition| {
        let mut definition = definition.clone();
        let status = keep_transition_times(definition.get("status"), status.clone());
        definition["status"] = status;
        Some(definition)
    });
    if let Err(error) = written.await {
        tracing::warn!(definition = key.name(), %error, "cannot report a definition's status");
    }
}

/// A condition that has not changed keeps the time it last did.
fn keep_transition_times(old: Option<&Value>, mut new: Value) -> Value {
    let old =
        old.and_then(|old| old.get("conditions")).and_then(Value::as_array).cloned().unwrap_or_default();
    for condition in new.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        let same = old.iter().find(|o| o["type"] == condition["type"] && o["status"] == condition["status"]);
        if let Some(time) = same.and_then(|same| same.get("lastTransitionTime")) {
            condition["lastTransitionTime"] = time.clone();
        }
    }
    new
}

/// Deletes every object of a definition that is going, then lets it go.
async fn clear(api: Arc<Api>, definition: Target, value: Arc<Value>) {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let resource = Resource::new(text("/spec/group"), text("/spec/names/plural"));
    loop {
        let items = api.store.list(&resource, None).items;
        if items.is_empty() {
            break;
        }
        for (path, entry) in items {
            let key = Key { resource: resource.clone(), path };
            if meta::is_deleting(&entry.value) {
                continue;
            }
            if let Some(target) = target_of(&api, &key)
                && let Err(error) = delete::delete_object(&api, &target, &Options::default()).await
                && error.reason != "NotFound"
            {
                tracing::warn!(object = &*key.path, %error, "cannot delete an object of a going definition");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
    let released =
        adjust(&api, &definition, Part::Whole, |definition| Some(without_finalizer(definition, FINALIZER)));
    if let Err(error) = released.await
        && error.reason != "NotFound"
    {
        tracing::warn!(definition = definition.name, %error, "cannot release a definition");
    }
}

/// The object without one of its finalizers.
pub(super) fn without_finalizer(object: &Value, finalizer: &str) -> Value {
    let left: Vec<&str> = meta::finalizers(object).into_iter().filter(|name| *name != finalizer).collect();
    let left = json!(left);
    let mut object = object.clone();
    let metadata = meta::metadata(&mut object);
    if left.as_array().is_some_and(Vec::is_empty) {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), left);
    }
    object
}
