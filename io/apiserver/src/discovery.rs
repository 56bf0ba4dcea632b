//! Discovery documents: which groups, versions and resources are served, in the plain and the aggregated form.
//! Schemas are published by `openapi`.
use std::sync::Arc;

use serde_json::{Value, json};

use crate::kinds::{Kind, Registry, version_priority};

const PLAIN: &str = "application/json";

/// The document at a discovery path (`/api`, `/apis`, `/apis/GROUP/VERSION`, `/version`, ...) and its content type.
pub fn respond(registry: &Registry, path: &str, accept: &str) -> Option<(String, Value)> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let plain = |document| Some((PLAIN.to_owned(), document));
    match parts.as_slice() {
        ["version"] => plain(server_version()),
        ["api"] | ["apis"] => {
            let legacy = parts[0] == "api";
            match aggregated_form(accept) {
                Some(form) => Some((form.content_type(), aggregated(registry, legacy, form))),
                None if legacy => plain(core_versions()),
                None => plain(group_list(registry)),
            }
        }
        ["api", version] => resource_list(registry, "", version).and_then(plain),
        ["apis", group] => {
            let groups = groups(registry);
            groups.iter().find(|g| g.name == *group).and_then(|g| plain(g.document(true)))
        }
        ["apis", group, version] => resource_list(registry, group, version).and_then(plain),
        _ => None,
    }
}

/// What `/version` says. Clients choose features by it.
pub fn server_version() -> Value {
    json!({
        "major": "1",
        "minor": "32",
        "gitVersion": format!("v1.32.0+weft-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    })
}

/// The processor's name as Kubernetes has it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn core_versions() -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [],
    })
}

struct Group {
    name: String,
    versions: Vec<String>,
}

impl Group {
    fn document(&self, alone: bool) -> Value {
        let entry = |version: &String| {
            let group_version =
                if self.name.is_empty() { version.clone() } else { format!("{}/{version}", self.name) };
            json!({"groupVersion": group_version, "version": version})
        };
        let versions: Vec<Value> = self.versions.iter().map(entry).collect();
        let preferred = versions.first().cloned().unwrap_or_default();
        let body = json!({"name": self.name, "versions": versions, "preferredVersion": preferred});
        if !alone {
            return body;
        }
        let mut document = json!({"kind": "APIGroup", "apiVersion": "v1"});
        if let (Some(document), Value::Object(body)) = (document.as_object_mut(), body) {
            document.extend(body);
        }
        document
    }
}

/// Groups in the order they were first served, each with its versions by preference.
fn groups(registry: &Registry) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for kind in registry.all() {
        let at = groups.iter().position(|g| g.name == kind.group).unwrap_or_else(|| {
            groups.push(Group { name: kind.group.clone(), versions: Vec::new() });
            groups.len() - 1
        });
        if !groups[at].versions.contains(&kind.version) {
            groups[at].versions.push(kind.version.clone());
        }
    }
    for group in &mut groups {
        group.versions.sort_by_key(|version| std::cmp::Reverse(version_priority(version)));
    }
    groups
}

fn group_list(registry: &Registry) -> Value {
    let groups: Vec<Value> =
        groups(registry).iter().filter(|g| !g.name.is_empty()).map(|g| g.document(false)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn kinds_of(registry: &Registry, group: &str, version: &str) -> Vec<Arc<Kind>> {
    registry.all().into_iter().filter(|k| k.group == group && k.version == version).collect()
}

fn resource_list(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let kinds = kinds_of(registry, group, version);
    let group_version = kinds.first()?.api_version();
    let mut resources: Vec<Value> = kinds.iter().flat_map(|kind| resources(kind)).collect();
    resources.sort_by_key(|r| r["name"].as_str().unwrap_or_default().to_owned());
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    }))
}

fn resources(kind: &Kind) -> Vec<Value> {
    let mut main = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": kind.verbs,
    });
    for (key, list) in [("shortNames", &kind.short_names), ("categories", &kind.categories)] {
        if !list.is_empty() {
            main[key] = json!(list);
        }
    }
    let subresources = kind.subresources.iter().map(|sub| {
        let mut entry = json!({
            "name": format!("{}/{}", kind.plural, sub.name),
            "singularName": "",
            "namespaced": kind.namespaced,
            "kind": sub.kind,
            "verbs": sub.verbs,
        });
        if (&sub.group, &sub.version) != (&kind.group, &kind.version) {
            entry["group"] = json!(sub.group);
            entry["version"] = json!(sub.version);
        }
        entry
    });
    std::iter::once(main).chain(subresources).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    V2,
    V2Beta1,
}

impl Form {
    fn version(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2Beta1 => "v2beta1",
        }
    }

    fn content_type(self) -> String {
        let version = self.version();
        format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList")
    }
}

/// The aggregated form a client prefers to the plain one, if any.
fn aggregated_form(accept: &str) -> Option<Form> {
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<&str> = parts.collect();
        let aggregated = parameters.contains(&"as=APIGroupDiscoveryList");
        match (media, aggregated) {
            (PLAIN, true) if parameters.contains(&"v=v2") => return Some(Form::V2),
            (PLAIN, true) if parameters.contains(&"v=v2beta1") => return Some(Form::V2Beta1),
            (PLAIN | "*/*", false) => return None,
            _ => {}
        }
    }
    None
}

fn aggregated(registry: &Registry, legacy: bool, form: Form) -> Value {
    let items: Vec<Value> = groups(registry)
        .iter()
        .filter(|group| group.name.is_empty() == legacy)
        .map(|group| {
            let versions: Vec<Value> = group
                .versions
                .iter()
                .map(|version| {
                    let mut kinds = kinds_of(registry, &group.name, version);
                    kinds.sort_by(|a, b| a.plural.cmp(&b.plural));
                    let resources: Vec<Value> = kinds.iter().map(|kind| aggregated_resource(kind)).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if legacy { json!({}) } else { json!({"name": group.name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{}", form.version()),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| {
            json!({
                "subresource": sub.name,
                "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
                "verbs": sub.verbs,
            })
        })
        .collect();
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    for (key, list) in [("shortNames", &kind.short_names), ("categories", &kind.categories)] {
        if !list.is_empty() {
            resource[key] = json!(list);
        }
    }
    if !subresources.is_empty() {
        resource["subresources"] = json!(subresources);
    }
    resource
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
        application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

    fn get(path: &str, accept: &str) -> Option<(String, Value)> {
        respond(&Registry::new(), path, accept)
    }

    #[test]
    fn plain_documents() {
        let (kind, body) = get("/api", "application/json").unwrap();
        assert_eq!((kind.as_str(), &body["versions"]), (PLAIN, &json!(["v1"])));
        let (_, body) = get("/apis", "*/*").unwrap();
        let autoscaling =
            body["groups"].as_array().unwrap().iter().find(|g| g["name"] == "autoscaling").unwrap().clone();
        assert_eq!(autoscaling["preferredVersion"]["groupVersion"], "autoscaling/v2");
        assert_eq!(autoscaling["versions"].as_array().unwrap().len(), 2);
        let (_, body) = get("/apis/apps/v1", "").unwrap();
        let names: Vec<&str> =
            body["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"deployments") && names.contains(&"deployments/scale"), "{names:?}");
        let (_, group) = get("/apis/batch/", "").unwrap();
        assert_eq!(group["kind"], "APIGroup");
        for missing in ["/apis/nowhere", "/apis/apps/v2", "/api/v2", "/healthz"] {
            assert!(get(missing, "").is_none(), "{missing}");
        }
    }

    #[test]
    fn aggregated_documents() {
        let (content_type, body) = get("/apis", AGGREGATED).unwrap();
        assert!(content_type.contains("v=v2;"), "{content_type}");
        assert_eq!(body["apiVersion"], "apidiscovery.k8s.io/v2");
        let (_, body) = get("/api", AGGREGATED).unwrap();
        let resources = body["items"][0]["versions"][0]["resources"].as_array().unwrap().clone();
        let pods = resources.iter().find(|r| r["resource"] == "pods").unwrap();
        assert_eq!(pods["scope"], "Namespaced");
        let beta = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
        assert_eq!(get("/api", beta).unwrap().1["apiVersion"], "apidiscovery.k8s.io/v2beta1");
        assert_eq!(get("/api", "application/json,*/*").unwrap().0, PLAIN);
    }
}
