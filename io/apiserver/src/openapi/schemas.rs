//! The schemas of the documents: built-in definitions with upstream's names and annotations, custom ones, lists.
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::{Map, Value, json};

use crate::kinds::{Kind, SchemaSource};
use crate::schema::{self, Define, facts};

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";

/// Keywords that OpenAPI v2 does not have.
const NOT_IN_V2: &[&str] = &["oneOf", "anyOf", "not", "nullable"];

/// `components.schemas` of a v3 document.
pub(super) fn components(kinds: &[Arc<Kind>]) -> Map<String, Value> {
    let mut all = collect(kinds);
    all.values_mut().for_each(|schema| point_to(schema, "#/components/schemas/", Siblings::Wrap));
    all
}

/// `definitions` of a v2 document.
pub(super) fn definitions(kinds: &[Arc<Kind>]) -> Map<String, Value> {
    let mut all = collect(kinds);
    for schema in all.values_mut() {
        strip(schema);
        point_to(schema, "#/definitions/", Siblings::Keep);
    }
    all
}

pub(super) fn list_name(kind: &Kind) -> String {
    format!("{}List", kind.schema_name)
}

pub(super) fn meta_name(name: &str) -> String {
    format!("{META}.{name}")
}

fn collect(kinds: &[Arc<Kind>]) -> Map<String, Value> {
    let mut defines = vec![
        Define::of::<meta::ObjectMeta>(),
        Define::of::<meta::ListMeta>(),
        Define::of::<meta::DeleteOptions>(),
        Define::of::<meta::Status>(),
    ];
    for kind in kinds {
        if let SchemaSource::BuiltIn(define) = &kind.schema {
            defines.push(*define);
        }
        defines.extend(kind.subresources.iter().filter_map(|sub| schema::subresource_define(&sub.kind)));
    }
    let mut all = schema::definitions(&defines);
    all.iter_mut().for_each(|(name, definition)| facts::annotate(name, definition));
    all.insert(meta_name("Patch"), json!({"description": "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body.", "type": "object"}));
    for kind in kinds {
        if let Some(json) = &kind.custom_json {
            all.insert(kind.schema_name.clone(), custom(json));
        }
        if let Some(definition) = all.get_mut(&kind.schema_name) {
            definition["x-kubernetes-group-version-kind"] = json!([gvk(kind, &kind.kind)]);
        }
        if kind.persisted {
            all.insert(list_name(kind), list(kind));
        }
    }
    all
}

pub(super) fn gvk(kind: &Kind, name: &str) -> Value {
    json!({"group": kind.group, "kind": name, "version": kind.version})
}

/// A custom kind's schema with the fields every object has.
fn custom(json: &Value) -> Value {
    let mut schema = json.clone();
    let text = |description: &str| json!({"description": description, "type": "string"});
    let common = [
        ("apiVersion", text("APIVersion defines the versioned schema of this representation of an object.")),
        ("kind", text("Kind is a string value representing the REST resource this object represents.")),
        (
            "metadata",
            json!({
                "description": "Standard object's metadata.",
                "$ref": format!("#/$defs/{}", meta_name("ObjectMeta")),
            }),
        ),
    ];
    if schema["properties"].is_null() {
        schema["properties"] = json!({});
    }
    if let Some(properties) = schema["properties"].as_object_mut() {
        for (name, value) in common {
            properties.insert(name.to_owned(), value);
        }
    }
    schema
}

fn list(kind: &Kind) -> Value {
    json!({
        "description": format!("{} is a list of {}", kind.list_kind, kind.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": "APIVersion defines the versioned schema of this representation of an object."},
            "items": {
                "description": "List of items.",
                "type": "array",
                "items": {"$ref": format!("#/$defs/{}", kind.schema_name)},
            },
            "kind": {"type": "string", "description": "Kind is a string value representing the REST resource this object represents."},
            "metadata": {
                "description": "Standard list metadata.",
                "$ref": format!("#/$defs/{}", meta_name("ListMeta")),
            },
        },
        "x-kubernetes-group-version-kind": [gvk(kind, &kind.list_kind)],
    })
}

/// What becomes of keywords beside a reference: v3 allows none, so they move around it.
#[derive(Clone, Copy, PartialEq)]
enum Siblings {
    Wrap,
    Keep,
}

/// Points every reference to where the document keeps its schemas.
fn point_to(schema: &mut Value, prefix: &str, siblings: Siblings) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(|item| point_to(item, prefix, siblings)),
        Value::Object(fields) => {
            let target = fields.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/"));
            if let Some(target) = target.map(|name| format!("{prefix}{name}")) {
                if siblings == Siblings::Wrap && fields.len() > 1 {
                    fields.shift_remove("$ref");
                    fields.insert("allOf".into(), json!([{ "$ref": target }]));
                } else {
                    fields.insert("$ref".into(), Value::String(target));
                }
                return;
            }
            fields.values_mut().for_each(|value| point_to(value, prefix, siblings));
        }
        _ => {}
    }
}

fn strip(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    fields.retain(|key, _| !NOT_IN_V2.contains(&key.as_str()));
    if fields.shift_remove("x-kubernetes-int-or-string").is_some() {
        fields.insert("type".into(), json!("string"));
        fields.insert("format".into(), json!("int-or-string"));
    } else if fields.get("format").is_some_and(|f| f == "int-or-string") {
        fields.insert("type".into(), json!("string"));
    }
    for key in ["properties", "items", "additionalProperties", "allOf"] {
        match fields.get_mut(key) {
            Some(Value::Object(children)) if key == "properties" => children.values_mut().for_each(strip),
            Some(Value::Array(children)) => children.iter_mut().for_each(strip),
            Some(child) => strip(child),
            None => {}
        }
    }
}
