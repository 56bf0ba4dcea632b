//! Refuses objects a real cluster would refuse, with the same words. Shapes are `schema`'s part.
mod config;
mod endpoints;
mod list;
mod metadata;
mod network;
mod pod;
mod pod_update;
mod service;
mod service_addresses;
mod volumes;
mod workload;

use serde_json::Value;

use crate::kinds::{Kind, SchemaSource};
use crate::schema::{self, Budget, FieldError, Schema, Type};
use list::{At, Errors};

/// What is wrong with an object about to be created.
pub fn validate_create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    validate_object(kind, object, None)
}

/// What is wrong with a change to an object.
pub fn validate_update(kind: &Kind, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = validate_object(kind, new, Some(old));
    metadata::check_update(old, new, &mut errors);
    if !kind.is_custom() {
        immutable(kind, old, new, &mut errors);
    }
    errors
}

/// What is wrong with a change to an object's status. The rest of the object is the old one.
pub fn validate_status(kind: &Kind, old: &Value, new: &Value) -> Vec<FieldError> {
    match &kind.schema {
        SchemaSource::Custom(schema) => custom(schema, new, Some(old)),
        SchemaSource::BuiltIn(_) if kind.group.is_empty() && kind.kind == "Service" => {
            let mut errors = Errors::new();
            service::status(new, &mut errors);
            errors
        }
        SchemaSource::BuiltIn(_) => Vec::new(),
    }
}

/// Whether the addresses, families and policy that a service asks for fit together.
pub fn validate_cluster_ips(service: &Value) -> Vec<FieldError> {
    let mut errors = Errors::new();
    service_addresses::check(&service["spec"], &At::root().field("spec"), &mut errors);
    errors
}

/// What is valid but deserves a warning to the client.
pub fn warnings(kind: &Kind, object: &Value) -> Vec<String> {
    let mut warnings: Vec<String> = kind.deprecation.iter().cloned().collect();
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => warnings.extend(pod::warnings(&object["spec"], "spec")),
        ("apps" | "batch", _) => {
            warnings.extend(pod::warnings(&object["spec"]["template"]["spec"], "spec.template.spec"));
        }
        _ => {}
    }
    warnings.extend(without_effect(kind, object));
    warnings
}

/// What this server keeps for those who ask, and nobody acts on.
fn without_effect(kind: &Kind, object: &Value) -> Option<String> {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("admissionregistration.k8s.io", _) | ("", "ResourceQuota" | "LimitRange") => {
            Some(format!("this {} is stored and not enforced here", kind.kind))
        }
        ("batch", "Job") if object["spec"]["podFailurePolicy"].is_object() => {
            Some("spec.podFailurePolicy: is stored and not followed here; every failed pod counts".into())
        }
        _ => None,
    }
}

fn validate_object(kind: &Kind, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::new();
    metadata::check(kind, object, &mut errors);
    match &kind.schema {
        SchemaSource::Custom(schema) => errors.extend(custom(schema, object, old)),
        SchemaSource::BuiltIn(_) => {
            required(&schema::root(kind), object, &At::root(), &mut errors);
            built_in(kind, object, &mut errors);
        }
    }
    let mut seen = std::collections::HashSet::new();
    errors.retain(|error| seen.insert((error.field.clone(), error.message.clone())));
    errors
}

/// The shape first; rules only run on well-formed values, as their authors assume.
fn custom(schema: &Schema, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let errors = schema::validate(schema, object, "");
    if errors.is_empty() {
        return schema::validate_rules(schema, object, old, "", &mut Budget::default());
    }
    errors
}

fn built_in(kind: &Kind, object: &Value, errors: &mut Errors) {
    let spec = At::root().field("spec");
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod::spec(&object["spec"], &spec, pod::Use::Pod, errors),
        ("", "Service") => service::service(object, errors),
        ("", "Endpoints") => endpoints::endpoints(object, errors),
        ("", "Node") => config::node(&object["spec"], &spec, errors),
        ("", "ConfigMap") => config::config_map(object, errors),
        ("", "Secret") => config::secret(object, errors),
        ("", "PersistentVolume" | "PersistentVolumeClaim") => config::storage(kind, object, errors),
        ("", "ReplicationController") | ("apps" | "batch", _) => workload::check(kind, object, errors),
        ("discovery.k8s.io", "EndpointSlice") => endpoints::endpoint_slice(object, errors),
        ("networking.k8s.io", "NetworkPolicy") => network::policy(&object["spec"], &spec, errors),
        ("networking.k8s.io", "Ingress") => network::ingress(&object["spec"], &spec, errors),
        ("networking.k8s.io", "ServiceCIDR") => network::service_cidr(&object["spec"], &spec, errors),
        ("policy", "PodDisruptionBudget") => config::disruption_budget(&object["spec"], &spec, errors),
        ("autoscaling", _) => config::autoscaler(&object["spec"], &spec, errors),
        ("rbac.authorization.k8s.io", _) => config::access(kind, object, errors),
        ("coordination.k8s.io", "Lease") => config::lease(&object["spec"], &spec, errors),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => {
            errors.extend(schema::check_definition(object))
        }
        _ => {}
    }
}

fn immutable(kind: &Kind, old: &Value, new: &Value, errors: &mut Errors) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod_update::check(&old["spec"], &new["spec"], errors),
        ("", "Service") => service::check_update(&old["spec"], &new["spec"], errors),
        ("", "Node") => config::node_update(&old["spec"], &new["spec"], errors),
        ("apps" | "batch", _) => workload::check_update(kind, old, new, errors),
        ("discovery.k8s.io", "EndpointSlice") => list::unchanged(old, new, &["addressType"], errors),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            if old["roleRef"] != new["roleRef"] {
                errors.push(FieldError::invalid("roleRef", &new["roleRef"], "cannot change roleRef"));
            }
        }
        ("apiextensions.k8s.io", "CustomResourceDefinition") => config::definition_update(old, new, errors),
        _ => config::check_update(kind, old, new, errors),
    }
}

/// Required by the OpenAPI documents, yet accepted when missing: Go reads them as empty.
const OPTIONAL_AFTER_ALL: &[&str] = &["serviceName", "drivers", "value", "lun", "revision"];

/// Missing fields that the built-in types declare required. Status is the controllers' business.
fn required(schema: &Schema, value: &Value, at: &At, errors: &mut Errors) {
    match value {
        Value::Object(fields) => {
            for name in schema.required() {
                let missing = match fields.get(name) {
                    None | Some(Value::Null) => true,
                    Some(Value::String(text)) => text.is_empty() && schema.field(name).is_plain_text(),
                    Some(_) => false,
                };
                let optional =
                    OPTIONAL_AFTER_ALL.contains(&name.as_str()) || (at.is_root() && name == "endpoints");
                if missing && !optional {
                    errors.push(FieldError::required(at.field(name).as_str(), ""));
                }
            }
            for (name, value) in fields {
                let skip = at.is_root() && matches!(name.as_str(), "status" | "metadata");
                if let Some(field) = schema.find_field(name).filter(|_| !skip) {
                    required(&field, value, &at.field(name), errors);
                }
            }
        }
        Value::Array(items) if schema.kind_of_value() == Some(Type::Array) => {
            let schema = schema.items();
            for (index, item) in items.iter().enumerate() {
                required(&schema, item, &at.index(index), errors);
            }
        }
        _ => {}
    }
}
