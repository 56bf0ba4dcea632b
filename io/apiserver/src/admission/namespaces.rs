//! Namespaces: nothing enters one that does not exist or is ending.

use http::StatusCode;
use serde_json::{Value, json};

use crate::api::{Api, meta};
use crate::http::request::Target;
use crate::status::{ApiError, Result};
use crate::store::{Key, Resource};

const NAME_LABEL: &str = "kubernetes.io/metadata.name";
pub const FINALIZER: &str = "kubernetes";

/// Refuses new objects in a missing or terminating namespace.
pub fn check_open(api: &Api, target: &Target, object: &Value) -> Result<()> {
    let Some(namespace) = &target.namespace else { return Ok(()) };
    let latest = api.store.latest(&Key::new(&Resource::new("", "namespaces"), None, namespace));
    let Some(latest) = latest else {
        let error =
            ApiError::new(StatusCode::NOT_FOUND, "NotFound", format!("namespaces {namespace:?} not found"));
        return Err(error.with_details(json!({"name": namespace, "kind": "namespaces"})));
    };
    if !meta::is_deleting(&latest.value) {
        return Ok(());
    }
    let name = meta::text(object, "name");
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut error = ApiError::object_forbidden(&target.kind, name, &why);
    if let Some(details) = &mut error.details {
        details["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        }]);
    }
    Err(error)
}

pub(super) fn create(object: &mut Value) {
    label(object);
    if !object.get("spec").is_some_and(Value::is_object) {
        object["spec"] = json!({});
    }
    object["spec"]["finalizers"] = json!([FINALIZER]);
    object["status"] = json!({"phase": "Active"});
}

pub(super) fn update(old: &Value, new: &mut Value) {
    label(new);
    // Only the finalize subresource changes these.
    new["spec"] = old.get("spec").cloned().unwrap_or_else(|| json!({}));
}

fn label(object: &mut Value) {
    let name = meta::text(object, "name").to_owned();
    let metadata = meta::metadata(object);
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    if labels.is_null() {
        *labels = json!({});
    }
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(NAME_LABEL.into(), name.into());
    }
}
