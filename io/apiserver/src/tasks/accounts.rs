//! What every namespace has from the start: its default service account and the cluster's CA certificate.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::MANAGER;
use crate::api::create::{self, Credit};
use crate::api::{Api, Call, meta};
use crate::http::request::Target;
use crate::status::{ApiError, Result};
use crate::store::{Event, EventKind, Resource};

/// Follows namespaces for ever. `ca` is what pods need to trust this server.
pub async fn run(api: Arc<Api>, mut events: mpsc::UnboundedReceiver<Arc<Event>>, ca: Arc<str>) {
    settle(&api, &ca).await;
    let namespaces = Resource::new("", "namespaces");
    let (accounts, maps) = (Resource::new("", "serviceaccounts"), Resource::new("", "configmaps"));
    while let Some(event) = events.recv().await {
        let key = &event.key;
        let deleted = event.kind == EventKind::Deleted;
        let made = key.resource == namespaces && event.kind == EventKind::Added;
        let account = key.resource == accounts && deleted && key.name() == "default";
        let map = key.resource == maps && deleted && key.name() == "kube-root-ca.crt";
        let namespace = if made { Some(key.name()) } else { key.namespace() };
        if let (true, Some(namespace)) = (made || account || map, namespace) {
            ensure(&api, namespace, &ca).await;
        }
    }
}

/// Gives every namespace what it lacks.
pub async fn settle(api: &Api, ca: &str) {
    for (path, _) in api.store.list(&Resource::new("", "namespaces"), None).items {
        ensure(api, &path, ca).await;
    }
}

async fn ensure(api: &Api, namespace: &str, ca: &str) {
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace},
    });
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "kube-root-ca.crt", "namespace": namespace},
        "data": {"ca.crt": ca},
    });
    for (plural, object) in [("serviceaccounts", account), ("configmaps", map)] {
        match create_in(api, plural, namespace, object).await {
            Err(error) if !matches!(error.reason, "AlreadyExists" | "NotFound" | "Forbidden") => {
                tracing::warn!(namespace, plural, %error, "cannot create what every namespace has");
            }
            _ => {}
        }
    }
}

async fn create_in(api: &Api, plural: &str, namespace: &str, object: Value) -> Result<()> {
    let kind = api.registry.find("", "v1", plural).ok_or_else(ApiError::path_not_found)?;
    let target = Target { kind, namespace: Some(namespace.to_owned()), name: String::new() };
    let existing = Target { name: meta::text(&object, "name").to_owned(), ..target.clone() };
    if api.find(&existing).is_ok() {
        return Ok(());
    }
    create::create_object(api, &mut Call::internal(MANAGER), &target, object, Credit::Caller).await.map(drop)
}
