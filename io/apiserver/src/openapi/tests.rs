//! Documents hold what clients look up: every kind, every reference resolvable, verbs with their parameters.
use std::sync::Arc;

use serde_json::Value;

use super::*;

fn open_api() -> OpenApi {
    OpenApi::new(Arc::new(Registry::new()))
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| references(value, found));
        }
        _ => {}
    }
}

#[test]
fn v3_documents_are_complete() {
    let open_api = open_api();
    let index = open_api.v3_index();
    let paths: Vec<&String> = index["paths"].as_object().unwrap().keys().collect();
    assert!(paths.contains(&&"api/v1".to_owned()) && paths.contains(&&"apis/apps/v1".to_owned()));
    for path in paths {
        let document = open_api.v3(path, None).unwrap();
        let spec: Value = serde_json::from_slice(&document.body).unwrap();
        let schemas = spec["components"]["schemas"].as_object().unwrap();
        let mut found = Vec::new();
        references(&spec, &mut found);
        for reference in found {
            let name = reference.strip_prefix("#/components/schemas/").unwrap();
            assert!(schemas.contains_key(name), "{path}: {name} is missing");
        }
    }
    assert!(open_api.v3("apis/nowhere/v1", None).is_none());
}

#[test]
fn kinds_are_found_by_their_names() {
    let document = open_api().v3("apis/apps/v1", Some("old")).unwrap();
    let spec: Value = serde_json::from_slice(&document.body).unwrap();
    let deployment = &spec["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
    assert_eq!(deployment["x-kubernetes-group-version-kind"][0]["kind"], "Deployment");
    let containers = &spec["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(containers["x-kubernetes-list-type"], "map");
    let patch = &spec["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let parameters = patch["parameters"].as_array().unwrap();
    assert!(parameters.iter().any(|p| p["name"] == "fieldValidation"), "{parameters:?}");
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_some());
}

#[test]
fn v2_in_both_forms() {
    let open_api = open_api();
    let json = open_api.v2("application/json");
    let spec: Value = serde_json::from_slice(&json.body).unwrap();
    assert_eq!(spec["swagger"], "2.0");
    let mut found = Vec::new();
    references(&spec, &mut found);
    for reference in found {
        let name = reference.strip_prefix("#/definitions/").unwrap();
        assert!(spec["definitions"].get(name).is_some(), "{name} is missing");
    }
    let binary = open_api.v2("application/com.github.proto-openapi.spec.v2.v1.0+protobuf,application/json");
    assert!(binary.content_type.ends_with("protobuf"));
    assert_eq!(&binary.body[..5], b"\x0a\x032.0");
}
