//! Schemas of the built-in kinds: generated from the Kubernetes types on first use, completed by `facts`.
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, RwLock};

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

use super::model::Schema;
use super::parse;

pub(super) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// How to generate the schema of one built-in type and all it refers to.
#[derive(Clone, Copy)]
pub struct Define(fn(&mut SchemaGenerator));

impl Define {
    pub fn of<T: JsonSchema>() -> Self {
        Self(|generator| {
            generator.subschema_for::<T>();
        })
    }
}

/// How to generate the kind a subresource speaks, when it is not the resource's own.
pub(crate) fn subresource_define(kind: &str) -> Option<Define> {
    use k8s_openapi::api;
    Some(match kind {
        "Scale" => Define::of::<api::autoscaling::v1::Scale>(),
        "Binding" => Define::of::<api::core::v1::Binding>(),
        "Eviction" => Define::of::<api::policy::v1::Eviction>(),
        "TokenRequest" => Define::of::<api::authentication::v1::TokenRequest>(),
        _ => return None,
    })
}

struct Catalog {
    generator: Mutex<SchemaGenerator>,
    parsed: RwLock<HashMap<String, Schema>>,
}

fn catalog() -> &'static Catalog {
    static CATALOG: OnceLock<Catalog> = OnceLock::new();
    CATALOG.get_or_init(|| {
        let mut generator = SchemaGenerator::default();
        generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>();
        Catalog { generator: Mutex::new(generator), parsed: RwLock::default() }
    })
}

/// The schema of one built-in kind.
pub(super) fn schema(define: Define, name: &str) -> Schema {
    if let Some(schema) = already_parsed(name) {
        return schema;
    }
    (define.0)(&mut catalog().generator.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    by_name(name)
}

/// The schema of a definition that some generated schema refers to.
pub(super) fn by_name(name: &str) -> Schema {
    if let Some(schema) = already_parsed(name) {
        return schema;
    }
    let generator = catalog().generator.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let schema = match generator.definitions().get(name) {
        Some(definition) => parse::parse_definition(name, definition),
        None => Schema::anything(),
    };
    drop(generator);
    let mut parsed = catalog().parsed.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    parsed.entry(name.to_owned()).or_insert(schema).clone()
}

fn already_parsed(name: &str) -> Option<Schema> {
    catalog().parsed.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(name).cloned()
}

/// The JSON of every definition these types and what they refer to need, by upstream name.
pub fn definitions(defines: &[Define]) -> Map<String, Value> {
    let mut generator = SchemaGenerator::default();
    for define in defines {
        (define.0)(&mut generator);
    }
    generator.take_definitions(false)
}
