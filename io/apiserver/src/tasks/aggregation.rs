//! ClusterRoles that gather the rules of others, by label.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{adjust, target_of};
use crate::api::Api;
use crate::api::update::Part;
use crate::select::label_selector_matches;
use crate::store::{Event, Key, Resource};

fn resource() -> Resource {
    Resource::new("rbac.authorization.k8s.io", "clusterroles")
}

/// Follows the ClusterRoles for ever.
pub async fn run(api: Arc<Api>, mut events: mpsc::UnboundedReceiver<Arc<Event>>) {
    settle(&api).await;
    while let Some(event) = events.recv().await {
        let mut concerned = event.key.resource == resource();
        // A burst of roles, as one manifest brings them, is worth one round.
        while let Ok(next) = events.try_recv() {
            concerned |= next.key.resource == resource();
        }
        if concerned {
            settle(&api).await;
        }
    }
}

/// Brings every aggregated role up to date.
pub async fn settle(api: &Api) {
    let roles = api.store.list(&resource(), None).items;
    for (path, entry) in &roles {
        let selectors =
            entry.value.pointer("/aggregationRule/clusterRoleSelectors").and_then(Value::as_array);
        let Some(selectors) = selectors else { continue };
        let rules = gather(selectors, path, roles.iter().map(|(path, entry)| (&**path, &*entry.value)));
        if entry.value.get("rules") == Some(&rules) {
            continue;
        }
        let key = Key { resource: resource(), path: Arc::clone(path) };
        let Some(target) = target_of(api, &key) else { continue };
        let written = adjust(api, &target, Part::Whole, |role| {
            let mut role = role.clone();
            role["rules"] = rules.clone();
            Some(role)
        });
        if let Err(error) = written.await {
            tracing::warn!(role = &**path, %error, "cannot aggregate a cluster role");
        }
    }
}

fn gather<'a>(selectors: &[Value], own: &str, roles: impl Iterator<Item = (&'a str, &'a Value)>) -> Value {
    let mut rules: Vec<Value> = Vec::new();
    for (name, role) in roles {
        if name == own || !selectors.iter().any(|selector| label_selector_matches(selector, role)) {
            continue;
        }
        for rule in role.get("rules").and_then(Value::as_array).into_iter().flatten() {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    json!(rules)
}
