//! Pods on their way in: their first status and their service account.

use serde_json::{Value, json};

use crate::api::{Api, meta};
use crate::http::request::Target;
use crate::status::{ApiError, Result};
use crate::store::{Key, Resource};

const RESOURCES: [&str; 2] = ["cpu", "memory"];
/// Every namespace is given this account, if perhaps a moment after its first pod.
const DEFAULT_ACCOUNT: &str = "default";

pub(super) fn create(api: &Api, target: &Target, pod: &mut Value) -> Result<()> {
    initialise(pod);
    let account = pod.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or_default();
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let key = Key::new(&Resource::new("", "serviceaccounts"), Some(namespace), account);
    if account == DEFAULT_ACCOUNT || api.store.latest(&key).is_some() {
        return Ok(());
    }
    let why = format!(
        "error looking up service account {namespace}/{account}: serviceaccount {account:?} not found"
    );
    Err(ApiError::object_forbidden(&target.kind, meta::text(pod, "name"), &why))
}

fn initialise(pod: &mut Value) {
    let class = quality_of_service(pod);
    pod["status"] = json!({"phase": "Pending", "qosClass": class});
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        let named =
            spec.get("serviceAccountName").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
        if !named {
            spec.insert("serviceAccountName".into(), DEFAULT_ACCOUNT.into());
            spec.insert("serviceAccount".into(), DEFAULT_ACCOUNT.into());
        }
    }
}

/// Guaranteed when every container limits cpu and memory to its requests, BestEffort when none asks for anything.
fn quality_of_service(pod: &Value) -> &'static str {
    let lists = ["/spec/containers", "/spec/initContainers"];
    let containers: Vec<&Value> =
        lists.iter().filter_map(|pointer| pod.pointer(pointer).and_then(Value::as_array)).flatten().collect();
    let amount = |container: &Value, which: &str, resource: &str| {
        container.pointer(&format!("/resources/{which}/{resource}")).cloned()
    };
    let asks = |container: &&Value| {
        RESOURCES.iter().any(|resource| {
            amount(container, "requests", resource).is_some()
                || amount(container, "limits", resource).is_some()
        })
    };
    let bound = |container: &Value| {
        RESOURCES.iter().all(|resource| {
            let limit = amount(container, "limits", resource);
            let request = amount(container, "requests", resource).or_else(|| limit.clone());
            limit.is_some() && limit == request
        })
    };
    if !containers.iter().any(asks) {
        "BestEffort"
    } else if containers.iter().all(|container| bound(container)) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}
