//! Ending namespaces: everything in them is deleted, then they are finalised.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};

use super::{adjust, target_of};
use crate::admission::namespaces::FINALIZER;
use crate::api::delete::{self, Options};
use crate::api::update::Part;
use crate::api::{Api, meta};
use crate::http::request::Target;
use crate::status::ApiError;
use crate::store::{Event, EventKind, Key, Resource};

const RETRY: Duration = Duration::from_millis(100);

/// Follows namespaces for ever; each ending one has a task of its own.
pub async fn run(api: Arc<Api>, mut events: mpsc::UnboundedReceiver<Arc<Event>>) {
    let namespaces = Resource::new("", "namespaces");
    let ending = Arc::new(Mutex::new(HashSet::new()));
    for (path, entry) in api.store.list(&namespaces, None).items {
        if meta::is_deleting(&entry.value) {
            begin(&api, &ending, &path).await;
        }
    }
    while let Some(event) = events.recv().await {
        let marked = event.kind == EventKind::Modified && meta::is_deleting(&event.entry.value);
        if event.key.resource == namespaces && marked {
            begin(&api, &ending, event.key.name()).await;
        }
    }
}

async fn begin(api: &Arc<Api>, ending: &Arc<Mutex<HashSet<String>>>, name: &str) {
    if !ending.lock().await.insert(name.to_owned()) {
        return;
    }
    let (api, ending, name) = (Arc::clone(api), Arc::clone(ending), name.to_owned());
    tokio::spawn(async move {
        end(&api, &name).await;
        ending.lock().await.remove(&name);
    });
}

async fn end(api: &Arc<Api>, name: &str) {
    let key = Key::new(&Resource::new("", "namespaces"), None, name);
    let Some(target) = target_of(api, &key) else { return };
    loop {
        let left = delete_content(api, name).await;
        if left == 0 {
            break;
        }
        report_remaining(api, &target, left).await;
        tokio::time::sleep(RETRY).await;
    }
    let finalised = adjust(api, &target, Part::Whole, |namespace| {
        let mut namespace = namespace.clone();
        let finalizers = namespace.pointer("/spec/finalizers").and_then(Value::as_array).cloned();
        let left: Vec<Value> =
            finalizers.unwrap_or_default().into_iter().filter(|f| f != FINALIZER).collect();
        namespace["spec"]["finalizers"] = Value::Array(left);
        Some(namespace)
    });
    match finalised.await {
        Err(error) if error.reason != "NotFound" => {
            tracing::warn!(namespace = name, %error, "cannot finalise a namespace");
        }
        _ => {}
    }
}

/// Deletes what is in the namespace and says how much is still there.
async fn delete_content(api: &Arc<Api>, namespace: &str) -> usize {
    let mut left = 0;
    for resource in api.store.resources() {
        let items = api.store.list(&resource, Some(namespace)).items;
        let is_namespaced = api.storage_kind(&resource).is_some_and(|kind| kind.namespaced);
        if !is_namespaced {
            continue;
        }
        for (path, entry) in items {
            left += 1;
            if meta::is_deleting(&entry.value) {
                continue;
            }
            let key = Key { resource: resource.clone(), path };
            let Some(target) = target_of(api, &key) else { continue };
            log_failure(namespace, delete::delete_object(api, &target, &Options::default()).await.map(drop));
        }
    }
    left
}

fn log_failure(namespace: &str, outcome: Result<(), ApiError>) {
    if let Err(error) = outcome
        && error.reason != "NotFound"
    {
        tracing::warn!(namespace, %error, "cannot delete an object of an ending namespace");
    }
}

async fn report_remaining(api: &Arc<Api>, target: &Target, left: usize) {
    let reported = adjust(api, target, Part::Status, |namespace| {
        let before = namespace.pointer("/status/conditions/0/message").and_then(Value::as_str);
        let message = format!("Some resources are remaining: {left} resource instances");
        if before == Some(message.as_str()) {
            return None;
        }
        let mut namespace = namespace.clone();
        namespace["status"]["conditions"] = json!([{
            "type": "NamespaceContentRemaining",
            "status": "True",
            "reason": "SomeResourcesRemain",
            "message": message,
            "lastTransitionTime": crate::api::timestamp(jiff::Timestamp::now()),
        }]);
        Some(namespace)
    });
    log_failure(&target.name, reported.await.map(drop));
}
