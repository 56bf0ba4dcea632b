//! Ending namespaces: everything in them is deleted, then they are finalised.

use std::collections::{BTreeMap, HashSet};
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
use crate::store::{Entry, Event, EventKind, Key, Resource};

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
        delete_content(api, name).await;
        let left = Remaining::of(api, name);
        if left.is_nothing() {
            break;
        }
        report(api, &target, &left).await;
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

async fn delete_content(api: &Arc<Api>, namespace: &str) {
    for (key, entry) in content(api, namespace) {
        if meta::is_deleting(&entry.value) {
            continue;
        }
        let Some(target) = target_of(api, &key) else { continue };
        log_failure(namespace, delete::delete_object(api, &target, &Options::default()).await.map(drop));
    }
}

fn content(api: &Api, namespace: &str) -> Vec<(Key, Arc<Entry>)> {
    let is_namespaced = |resource: &Resource| api.storage_kind(resource).is_some_and(|kind| kind.namespaced);
    let resources = api.store.resources().into_iter().filter(is_namespaced);
    let of = |resource: Resource| {
        let items = api.store.list(&resource, Some(namespace)).items;
        items.into_iter().map(move |(path, entry)| (Key { resource: resource.clone(), path }, entry))
    };
    resources.flat_map(of).collect()
}

/// What an ending namespace still holds: how many of each resource, and how many each finalizer keeps.
#[derive(Default)]
struct Remaining {
    resources: BTreeMap<String, usize>,
    finalizers: BTreeMap<String, usize>,
}

impl Remaining {
    fn of(api: &Api, namespace: &str) -> Self {
        let mut remaining = Self::default();
        for (key, entry) in content(api, namespace) {
            let name = format!("{}.{}", key.resource.plural(), key.resource.group());
            *remaining.resources.entry(name).or_default() += 1;
            for finalizer in meta::finalizers(&entry.value) {
                *remaining.finalizers.entry(finalizer.to_owned()).or_default() += 1;
            }
        }
        remaining
    }

    fn is_nothing(&self) -> bool {
        self.resources.is_empty()
    }

    /// Type, status, reason and message of each condition.
    fn conditions(&self) -> [(&'static str, &'static str, &'static str, String); 5] {
        let list = |counts: &BTreeMap<String, usize>, word: &str| {
            let texts =
                counts.iter().map(|(name, count)| format!("{name} {word} {count} resource instances"));
            texts.collect::<Vec<_>>().join(", ")
        };
        let held = if self.finalizers.is_empty() {
            ("False", "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_owned())
        } else {
            let text = list(&self.finalizers, "in");
            let text = format!("Some content in the namespace has finalizers remaining: {text}");
            ("True", "SomeFinalizersRemain", text)
        };
        [
            (
                "NamespaceDeletionDiscoveryFailure",
                "False",
                "ResourcesDiscovered",
                "All resources successfully discovered".into(),
            ),
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                "False",
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed".into(),
            ),
            (
                "NamespaceDeletionContentFailure",
                "False",
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".into(),
            ),
            (
                "NamespaceContentRemaining",
                "True",
                "SomeResourcesRemain",
                format!("Some resources are remaining: {}", list(&self.resources, "has")),
            ),
            ("NamespaceFinalizersRemaining", held.0, held.1, held.2),
        ]
    }
}

fn log_failure(namespace: &str, outcome: Result<(), ApiError>) {
    if let Err(error) = outcome
        && error.reason != "NotFound"
    {
        tracing::warn!(namespace, %error, "cannot delete an object of an ending namespace");
    }
}

async fn report(api: &Arc<Api>, target: &Target, left: &Remaining) {
    let reported = adjust(api, target, Part::Status, |namespace| {
        let before = namespace.pointer("/status/conditions").and_then(Value::as_array);
        let before = before.map(Vec::as_slice).unwrap_or_default();
        let now = crate::api::timestamp(jiff::Timestamp::now());
        let conditions = left.conditions().map(|(kind, status, reason, message)| {
            let earlier = before.iter().find(|old| old["type"] == kind && old["status"] == status);
            let since = earlier.map_or_else(|| now.clone().into(), |old| old["lastTransitionTime"].clone());
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastTransitionTime": since,
            })
        });
        if before == conditions {
            return None;
        }
        let mut namespace = namespace.clone();
        namespace["status"]["conditions"] = json!(conditions);
        Some(namespace)
    });
    log_failure(&target.name, reported.await.map(drop));
}
