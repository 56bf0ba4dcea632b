//! The paths of the documents: enough of every operation for clients that look for verbs and parameters.
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::schemas::{gvk, list_name, meta_name};
use crate::kinds::Kind;

const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
    "application/strategic-merge-patch+json",
];

#[derive(Clone, Copy, PartialEq)]
enum Version {
    V2,
    V3,
}

pub(super) fn v3(kinds: &[Arc<Kind>]) -> Map<String, Value> {
    all(kinds, Version::V3)
}

pub(super) fn v2(kinds: &[Arc<Kind>]) -> Map<String, Value> {
    all(kinds, Version::V2)
}

fn all(kinds: &[Arc<Kind>], version: Version) -> Map<String, Value> {
    let mut paths = Map::new();
    for kind in kinds {
        let writer = Writer { kind, version };
        writer.kind_paths(&mut paths);
    }
    paths
}

struct Writer<'a> {
    kind: &'a Kind,
    version: Version,
}

impl Writer<'_> {
    fn kind_paths(&self, paths: &mut Map<String, Value>) {
        let root = format!("/{}", self.kind.root_path());
        let base = match self.kind.namespaced {
            true => format!("{root}/namespaces/{{namespace}}/{}", self.kind.plural),
            false => format!("{root}/{}", self.kind.plural),
        };
        let mut collection = Map::new();
        self.verb(&mut collection, "get", "list", "list");
        self.verb(&mut collection, "post", "create", "create");
        self.verb(&mut collection, "delete", "deletecollection", "deletecollection");
        self.insert(paths, base.clone(), collection, &["namespace"]);
        let mut one = Map::new();
        for (method, verb) in [("get", "get"), ("put", "update"), ("patch", "patch"), ("delete", "delete")] {
            self.verb(&mut one, method, verb, verb);
        }
        self.insert(paths, format!("{base}/{{name}}"), one, &["name", "namespace"]);
        if self.kind.namespaced && self.kind.has_verb("list") {
            let everywhere = [("get".to_owned(), self.operation("get", "list"))].into_iter().collect();
            self.insert(paths, format!("{root}/{}", self.kind.plural), everywhere, &[]);
        }
        for sub in &self.kind.subresources {
            let methods = sub.verbs.iter().filter_map(|verb| match *verb {
                "get" => Some(("get", "get")),
                "create" => Some(("post", "create")),
                "update" => Some(("put", "update")),
                "patch" => Some(("patch", "patch")),
                "delete" => Some(("delete", "delete")),
                _ => None,
            });
            let operations: Map<String, Value> = methods
                .map(|(method, verb)| {
                    let mut operation = self.operation(method, verb);
                    operation["x-kubernetes-group-version-kind"] =
                        json!({"group": sub.group, "kind": sub.kind, "version": sub.version});
                    (method.to_owned(), operation)
                })
                .collect();
            self.insert(paths, format!("{base}/{{name}}/{}", sub.name), operations, &["name", "namespace"]);
        }
    }

    fn insert(
        &self,
        paths: &mut Map<String, Value>,
        path: String,
        mut item: Map<String, Value>,
        within: &[&str],
    ) {
        if item.is_empty() {
            return;
        }
        let named = within.iter().filter(|name| **name != "namespace" || self.kind.namespaced);
        let parameters: Vec<Value> = named.map(|name| self.parameter(name, "path", "string")).collect();
        if !parameters.is_empty() {
            item.insert("parameters".into(), Value::Array(parameters));
        }
        paths.insert(path, Value::Object(item));
    }

    fn verb(&self, item: &mut Map<String, Value>, method: &str, verb: &str, action: &str) {
        if self.kind.has_verb(verb) {
            item.insert(method.to_owned(), self.operation(method, action));
        }
    }

    fn parameter(&self, name: &str, place: &str, kind: &str) -> Value {
        let mut parameter = match self.version {
            Version::V3 => json!({"name": name, "in": place, "schema": {"type": kind, "uniqueItems": true}}),
            Version::V2 => json!({"name": name, "in": place, "type": kind, "uniqueItems": true}),
        };
        if place == "path" {
            parameter["required"] = Value::Bool(true);
        }
        parameter
    }

    fn query(&self, action: &str) -> Vec<Value> {
        let names: &[(&str, &str)] = match action {
            "list" => &[
                ("allowWatchBookmarks", "boolean"),
                ("continue", "string"),
                ("fieldSelector", "string"),
                ("labelSelector", "string"),
                ("limit", "integer"),
                ("resourceVersion", "string"),
                ("resourceVersionMatch", "string"),
                ("sendInitialEvents", "boolean"),
                ("timeoutSeconds", "integer"),
                ("watch", "boolean"),
            ],
            "create" | "update" => {
                &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")]
            }
            "patch" => &[
                ("dryRun", "string"),
                ("fieldManager", "string"),
                ("fieldValidation", "string"),
                ("force", "boolean"),
            ],
            "delete" => &[
                ("dryRun", "string"),
                ("gracePeriodSeconds", "integer"),
                ("orphanDependents", "boolean"),
                ("propagationPolicy", "string"),
            ],
            "deletecollection" => &[
                ("dryRun", "string"),
                ("fieldSelector", "string"),
                ("gracePeriodSeconds", "integer"),
                ("labelSelector", "string"),
                ("propagationPolicy", "string"),
            ],
            _ => &[],
        };
        names.iter().map(|(name, kind)| self.parameter(name, "query", kind)).collect()
    }

    fn reference(&self, name: &str) -> Value {
        let prefix = match self.version {
            Version::V3 => "#/components/schemas/",
            Version::V2 => "#/definitions/",
        };
        json!({ "$ref": format!("{prefix}{name}") })
    }

    fn operation(&self, method: &str, action: &str) -> Value {
        let kind = self.kind;
        let answer = match action {
            "list" => list_name(kind),
            "delete" | "deletecollection" => meta_name("Status"),
            _ => kind.schema_name.clone(),
        };
        let request = match action {
            "create" | "update" => Some(kind.schema_name.clone()),
            "patch" => Some(meta_name("Patch")),
            "delete" | "deletecollection" => Some(meta_name("DeleteOptions")),
            _ => None,
        };
        let action_word = match action {
            "create" => "post",
            "update" => "put",
            other => other,
        };
        let mut operation = json!({
            "description": format!("{action} {}", kind.kind),
            "operationId": format!("{action_word}{}{}", operation_group(kind), kind.kind),
            "parameters": self.query(action),
            "responses": {"200": self.answer(&answer)},
            "x-kubernetes-action": action_word,
            "x-kubernetes-group-version-kind": gvk(kind, &kind.kind),
        });
        if let Some(request) = request {
            self.body(&mut operation, &request, method);
        }
        operation
    }

    fn answer(&self, name: &str) -> Value {
        let schema = self.reference(name);
        match self.version {
            Version::V3 => json!({"description": "OK", "content": {"application/json": {"schema": schema}}}),
            Version::V2 => json!({"description": "OK", "schema": schema}),
        }
    }

    fn body(&self, operation: &mut Value, name: &str, method: &str) {
        let schema = self.reference(name);
        let patches = PATCHES.iter().filter(|media| !(self.kind.is_custom() && media.contains("strategic")));
        let media: Vec<&str> = match method {
            "patch" => patches.copied().collect(),
            _ => vec!["application/json"],
        };
        match self.version {
            Version::V3 => {
                let content: Map<String, Value> =
                    media.iter().map(|media| ((*media).to_owned(), json!({ "schema": schema }))).collect();
                operation["requestBody"] = json!({ "content": content, "required": method != "delete" });
            }
            Version::V2 => {
                operation["consumes"] = json!(media);
                let body =
                    json!({"name": "body", "in": "body", "required": method != "delete", "schema": schema});
                if let Some(parameters) = operation["parameters"].as_array_mut() {
                    parameters.push(body);
                }
            }
        }
    }
}

/// `AppsV1Namespaced`, the middle of an operation's id.
fn operation_group(kind: &Kind) -> String {
    let group = if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap_or_default() };
    let capital = |text: &str| {
        let mut chars = text.chars();
        chars.next().map(|c| c.to_uppercase().chain(chars).collect::<String>()).unwrap_or_default()
    };
    let scope = if kind.namespaced { "Namespaced" } else { "" };
    format!("{}{}{scope}", capital(group), capital(&kind.version))
}
