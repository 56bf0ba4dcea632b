//! The OpenAPI documents clients read: v3 per group and version, v2 as a whole, with custom kinds included.
//! They are made on first request and kept until the registry changes.
mod paths;
mod protobuf;
mod schemas;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::discovery::server_version;
use crate::kinds::{Kind, Registry};

/// What kubectl and client-go ask for when they want the v2 document.
const V2_PROTOBUF: &[&str] = &[
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
    "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
];

/// A document ready to send.
#[derive(Debug, Clone)]
pub struct Document {
    pub content_type: &'static str,
    /// Changes exactly when the content may have changed.
    pub etag: String,
    pub body: Bytes,
}

/// The documents of one registry.
pub struct OpenApi {
    registry: Arc<Registry>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    generation: u64,
    v2: HashMap<&'static str, Document>,
    v3: HashMap<String, Document>,
}

impl OpenApi {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry, cache: Mutex::default() }
    }

    /// The v2 document, in the first form the client accepts.
    pub fn v2(&self, accept: &str) -> Document {
        let wanted = accept.split(',').map(|range| range.split(';').next().unwrap_or_default().trim());
        let protobuf = wanted.into_iter().find_map(|media| match media {
            "application/json" | "*/*" => Some(None),
            media => V2_PROTOBUF.iter().find(|known| **known == media).map(|known| Some(*known)),
        });
        // The older name is no media type Go can parse, so both names are answered with the newer.
        let content_type = protobuf.flatten().map_or("application/json", |_| V2_PROTOBUF[0]);
        if let Some(document) = self.cached(|cache| cache.v2.get(content_type).cloned()) {
            return document;
        }
        let kinds = self.registry.all();
        let spec = v2_document(&kinds);
        let body = match content_type {
            "application/json" => spec.to_string().into(),
            _ => Bytes::from(protobuf::encode(&spec)),
        };
        let document = Document { content_type, etag: fingerprint(&kinds), body };
        self.cached(|cache| cache.v2.insert(content_type, document.clone()));
        document
    }

    /// Which v3 documents there are and where.
    pub fn v3_index(&self) -> Value {
        let mut paths = Map::new();
        for (path, kinds) in by_root_path(&self.registry) {
            let url = format!("/openapi/v3/{path}?hash={}", fingerprint(&kinds));
            paths.insert(path, json!({ "serverRelativeURL": url }));
        }
        json!({ "paths": paths })
    }

    /// The v3 document of one group and version (`api/v1`, `apis/apps/v1`); None when it is not served.
    /// A hash of an older document gets the current one.
    pub fn v3(&self, path: &str, _hash: Option<&str>) -> Option<Document> {
        let path = path.trim_matches('/');
        if let Some(document) = self.cached(|cache| cache.v3.get(path).cloned()) {
            return Some(document);
        }
        let (_, kinds) = by_root_path(&self.registry).into_iter().find(|(known, _)| known == path)?;
        let body = v3_document(&kinds).to_string().into();
        let document = Document { content_type: "application/json", etag: fingerprint(&kinds), body };
        self.cached(|cache| cache.v3.insert(path.to_owned(), document.clone()));
        Some(document)
    }

    fn cached<T>(&self, then: impl FnOnce(&mut Cache) -> T) -> T {
        let mut cache = self.cache.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let generation = self.registry.generation();
        if cache.generation != generation {
            *cache = Cache { generation, ..Cache::default() };
        }
        then(&mut cache)
    }
}

/// The served kinds of each group and version, in discovery order.
fn by_root_path(registry: &Registry) -> Vec<(String, Vec<Arc<Kind>>)> {
    let mut groups: Vec<(String, Vec<Arc<Kind>>)> = Vec::new();
    for kind in registry.all() {
        let path = kind.root_path();
        match groups.iter_mut().find(|(known, _)| *known == path) {
            Some((_, kinds)) => kinds.push(kind),
            None => groups.push((path, vec![kind])),
        }
    }
    groups
}

/// A hash of what a document is made from, which is much cheaper than making it.
fn fingerprint(kinds: &[Arc<Kind>]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(env!("CARGO_PKG_VERSION").as_bytes());
    for kind in kinds {
        context.update(kind.schema_name.as_bytes());
        let names = format!("{:?}{:?}{:?}", kind.plural, kind.verbs, kind.subresources);
        context.update(names.as_bytes());
        if let Some(json) = &kind.custom_json {
            context.update(json.to_string().as_bytes());
        }
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": server_version()["gitVersion"]})
}

fn v3_document(kinds: &[Arc<Kind>]) -> Value {
    json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths::v3(kinds),
        "components": {"schemas": schemas::components(kinds)},
    })
}

fn v2_document(kinds: &[Arc<Kind>]) -> Value {
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths::v2(kinds),
        "definitions": schemas::definitions(kinds),
    })
}

#[cfg(test)]
mod tests;
