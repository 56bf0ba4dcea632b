//! The registry with built-in kinds, with small definitions, and with every definition in the test data.
use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
#[path = "../../../../tests/skip.rs"]
mod skip;
use crate::defaults;
use crate::schema::{decode, is_dns1123_label};

fn definition(group: &str, plural: &str, kind: &str, schema: Value) -> Value {
    let mut definition = json!({
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"plural": plural, "kind": kind, "shortNames": ["sh"]},
            "versions": [
                {"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": schema.clone()}},
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                 "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
                                                          "statusReplicasPath": ".status.replicas"}}},
            ],
        },
    });
    let crd = Registry::new().find_by_kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
    defaults::apply(&crd, &mut definition);
    definition
}

fn shirts(schema: Value) -> Value {
    definition("stable.example.com", "shirts", "Shirt", schema)
}

fn object_schema(spec: Value) -> Value {
    json!({"type": "object", "properties": {"spec": spec, "status": {"type": "object",
        "x-kubernetes-preserve-unknown-fields": true}}})
}

#[test]
fn built_in_kinds_are_consistent() {
    let registry = Registry::new();
    let all = registry.all();
    assert!(all.len() > 55, "{}", all.len());
    for kind in &all {
        assert_eq!(registry.find(&kind.group, &kind.version, &kind.plural).unwrap().kind, kind.kind);
        assert_eq!(
            registry.find_by_kind(&kind.group, &kind.version, &kind.kind).unwrap().plural,
            kind.plural
        );
        assert!(is_dns1123_label(&kind.plural), "{}", kind.plural);
        let schema = crate::schema::root(kind);
        assert!(schema.is_known() && schema.find_field("apiVersion").is_some(), "{}", kind.schema_name);
        assert!(registry.storage_of(kind).storage, "{}", kind.group_resource());
    }
    let short =
        |name: &str| all.iter().find(|k| k.short_names.iter().any(|s| s == name)).unwrap().plural.clone();
    for (name, plural) in
        [("po", "pods"), ("svc", "services"), ("deploy", "deployments"), ("netpol", "networkpolicies")]
    {
        assert_eq!(short(name), plural);
    }
    let events = registry.find("events.k8s.io", "v1", "events").unwrap();
    assert_eq!(registry.storage_of(&events).group, "");
}

#[test]
fn lists_merge_as_upstream_says() {
    use crate::schema::ListType;
    let pod = Registry::new().find("", "v1", "pods").unwrap();
    let spec = crate::schema::root(&pod).field("spec");
    let keys = |list: &[&str]| ListType::Map(list.iter().map(|k| (*k).to_owned()).collect());
    let containers = spec.field("containers");
    assert_eq!(containers.list_type(), keys(&["name"]));
    assert_eq!(containers.patch_merge_key(), Some("name"));
    assert!(containers.patch_strategy().merge);
    let ports = containers.items().field("ports");
    assert_eq!(ports.list_type(), keys(&["containerPort", "protocol"]));
    assert_eq!(ports.default_for_key("protocol"), Some(json!("TCP")));
    assert_eq!(containers.items().field("command").list_type(), ListType::Atomic);
    assert!(spec.field("nodeSelector").is_atomic_map());
    let affinity = spec.field("affinity").field("nodeAffinity");
    assert!(affinity.field("requiredDuringSchedulingIgnoredDuringExecution").is_atomic_map());
    let metadata = crate::schema::root(&pod).field("metadata");
    assert_eq!(metadata.field("finalizers").list_type(), ListType::Set);
    assert_eq!(metadata.field("ownerReferences").list_type(), keys(&["uid"]));
    assert!(!metadata.field("labels").is_atomic_map());
    assert!(spec.field("volumes").patch_strategy().retain_keys);
}

#[test]
fn definitions_come_and_go() {
    let registry = Registry::new();
    let before = registry.all().len();
    let schema = object_schema(json!({"type": "object", "properties": {
        "replicas": {"type": "integer", "default": 1}, "color": {"type": "string", "enum": ["red", "blue"]}}}));
    let outcome = registry.install_crd(&shirts(schema)).unwrap();
    assert_eq!(outcome.status["acceptedNames"]["singular"], "shirt");
    assert_eq!(outcome.status["storedVersions"], json!(["v1"]));
    let established = &outcome.status["conditions"][1];
    assert_eq!((&established["type"], &established["status"]), (&json!("Established"), &json!("True")));
    assert_eq!(registry.all().len(), before + 2);
    let beta = registry.find("stable.example.com", "v1beta1", "shirts").unwrap();
    assert_eq!(registry.storage_of(&beta).version, "v1");
    let kind = registry.find("stable.example.com", "v1", "shirts").unwrap();
    let mut shirt = json!({"apiVersion": "stable.example.com/v1", "kind": "Shirt",
        "metadata": {"name": "a", "namespace": "default"}, "spec": {"color": "red", "size": 3}});
    assert_eq!(decode(&kind, &mut shirt).unknown, ["unknown field \"spec.size\""]);
    defaults::apply(&kind, &mut shirt);
    assert_eq!(shirt["spec"], json!({"color": "red", "replicas": 1}));
    assert_eq!(defaults::validate_create(&kind, &shirt), vec![]);
    let scale = scale::read(&kind, &shirt).unwrap();
    assert_eq!(scale["spec"]["replicas"], 1);
    scale::write(&kind, &mut shirt, &json!({"spec": {"replicas": 5}})).unwrap();
    assert_eq!(shirt["spec"]["replicas"], 5);
    assert_eq!(convert(&kind, &beta, shirt)["apiVersion"], "stable.example.com/v1beta1");
    registry.remove_crd("shirts.stable.example.com");
    assert_eq!(registry.all().len(), before);
}

#[test]
fn taken_names_are_refused() {
    let registry = Registry::new();
    let schema = object_schema(json!({"type": "object"}));
    registry.install_crd(&shirts(schema.clone())).unwrap();
    let rival = definition("stable.example.com", "blouses", "Shirt", schema);
    assert_eq!(registry.names_conflict(&rival).as_deref(), Some("\"shirt\" is already in use"));
    let outcome = registry.install_crd(&rival).unwrap();
    assert_eq!(outcome.status["conditions"][0]["reason"], "SingularConflict");
    assert_eq!(outcome.status["conditions"][1]["status"], "False");
    assert!(registry.find("stable.example.com", "v1", "blouses").is_none());
}

#[test]
fn values_are_checked_as_upstream_words_it() {
    let registry = Registry::new();
    let schema = object_schema(json!({"type": "object", "required": ["color"], "properties": {
        "color": {"type": "string", "enum": ["red", "blue"], "maxLength": 4},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "host": {"type": "string", "pattern": "^[a-z]+$"},
        "tags": {"type": "array", "maxItems": 2, "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "rows": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                 "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}},
        "min": {"type": "integer"}, "max": {"type": "integer"}},
        "x-kubernetes-validations": [{"rule": "!has(self.min) || self.min <= self.max", "message": "min above max"}]}));
    registry.install_crd(&shirts(schema)).unwrap();
    let kind = registry.find("stable.example.com", "v1", "shirts").unwrap();
    let cases = [
        (json!({}), "spec.color: Required value"),
        (
            json!({"color": "pink"}),
            "spec.color: Unsupported value: \"pink\": supported values: \"red\", \"blue\"",
        ),
        (
            json!({"color": 1}),
            "spec.color: Invalid value: \"integer\": spec.color in body must be of type string: \"integer\"",
        ),
        (
            json!({"color": "red", "port": 0}),
            "spec.port: Invalid value: 0: spec.port in body should be greater than or equal to 1",
        ),
        (
            json!({"color": "red", "host": "A"}),
            "spec.host: Invalid value: \"A\": spec.host in body should match '^[a-z]+$'",
        ),
        (
            json!({"color": "red", "tags": ["a", "b", "c"]}),
            "spec.tags: Too many: 3: must have at most 2 items",
        ),
        (json!({"color": "red", "tags": ["a", "a"]}), "spec.tags[1]: Duplicate value: \"a\""),
        (
            json!({"color": "red", "rows": [{"name": "a"}, {"name": "a"}]}),
            "spec.rows[1]: Duplicate value: {\"name\":\"a\"}",
        ),
        (json!({"color": "red", "min": 2, "max": 1}), "spec: Invalid value: \"object\": min above max"),
        (json!({"color": "red", "min": 2}), "spec: Invalid value: \"object\": rule evaluation error"),
    ];
    for (spec, expected) in cases {
        let object = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": spec});
        let found: Vec<String> =
            defaults::validate_create(&kind, &object).iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|e| e.starts_with(expected)), "{spec}\nwant {expected}\ngot  {found:#?}");
    }
}

#[test]
fn unstructural_schemas_are_refused() {
    let cases = [
        (json!({"type": "string"}), "type: Invalid value: \"string\": must be object at the root"),
        (
            object_schema(json!({"properties": {}})),
            "properties[spec].type: Required value: must not be empty",
        ),
        (object_schema(json!({"type": "array"})), "properties[spec].items: Required value"),
        (object_schema(json!({"type": "string", "pattern": "("})), "properties[spec].pattern: Invalid value"),
        (object_schema(json!({"type": "string", "default": 3})), "properties[spec].default: Invalid value"),
        (
            object_schema(json!({"type": "object", "anyOf": [{"type": "object", "required": ["a"]}]})),
            "properties[spec].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
    ];
    for (schema, expected) in cases {
        let errors = Registry::new().install_crd(&shirts(schema.clone())).unwrap_err();
        let found: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|e| e.contains(expected)), "{schema}\nwant {expected}\ngot  {found:#?}");
    }
}

#[test]
fn rules_that_do_not_compile_are_told() {
    let schema =
        object_schema(json!({"type": "object", "x-kubernetes-validations": [{"rule": "frob(self)"}]}));
    let outcome = Registry::new().install_crd(&shirts(schema)).unwrap();
    assert!(outcome.warnings[0].contains("frob"), "{:?}", outcome.warnings);
    let condition = &outcome.status["conditions"][2];
    assert_eq!(
        (&condition["type"], &condition["status"]),
        (&json!("ValidationRulesEnforced"), &json!("False"))
    );
}

#[test]
fn autoscalers_and_events_convert_both_ways() {
    let registry = Registry::new();
    let find = |group: &str, version: &str, plural: &str| registry.find(group, version, plural).unwrap();
    let (v1, v2) = (
        find("autoscaling", "v1", "horizontalpodautoscalers"),
        find("autoscaling", "v2", "horizontalpodautoscalers"),
    );
    let old = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
        "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 70}});
    let new = convert(&v1, &v2, old.clone());
    assert_eq!(new["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 70);
    assert_eq!(convert(&v2, &v1, new), old);
    let (core, events) = (find("", "v1", "events"), find("events.k8s.io", "v1", "events"));
    let event = json!({"apiVersion": "v1", "kind": "Event", "message": "m", "involvedObject": {"name": "p"}, "count": 2});
    let other = convert(&core, &events, event.clone());
    assert_eq!((&other["note"], &other["deprecatedCount"]), (&json!("m"), &json!(2)));
    assert_eq!(convert(&events, &core, other), event);
}

/// The definitions of the test data, or None with the reason printed.
fn data(test: &str) -> Option<Vec<Value>> {
    let root = std::env::var_os("WEFT_TEST_DATA").map(PathBuf::from);
    let root = root.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"));
    let Ok(groups) = std::fs::read_dir(root.join("crds")) else {
        skip::skip(test, format!("no definitions in {}", root.join("crds").display()));
        return None;
    };
    let files =
        groups.flatten().flat_map(|group| std::fs::read_dir(group.path()).into_iter().flatten().flatten());
    let mut definitions = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file.path()).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        definitions.extend(documents.into_iter().filter(|d| d["kind"] == "CustomResourceDefinition"));
    }
    Some(definitions)
}

fn installed(test: &str) -> Option<Registry> {
    let registry = Registry::new();
    let crd = registry.find_by_kind("apiextensions.k8s.io", "v1", "CustomResourceDefinition").unwrap();
    for mut definition in data(test)? {
        let name = definition["metadata"]["name"].clone();
        let decoded = decode(&crd, &mut definition);
        assert_eq!(decoded, Default::default(), "{name}");
        defaults::apply(&crd, &mut definition);
        assert_eq!(defaults::validate_create(&crd, &definition), vec![], "{name}");
        let outcome = registry.install_crd(&definition).unwrap();
        assert_eq!(outcome.warnings, Vec::<String>::new(), "{name}");
    }
    Some(registry)
}

#[test]
fn every_definition_of_the_data_installs_with_all_rules() {
    let Some(registry) = installed("every_definition_of_the_data_installs_with_all_rules") else { return };
    assert!(registry.find("gateway.networking.k8s.io", "v1", "httproutes").is_some());
    assert!(registry.find("multicluster.x-k8s.io", "v1alpha1", "serviceimports").is_some());
    assert!(registry.all().iter().any(|k| k.kind == "ClusterNetworkPolicy"));
}

fn judge(registry: &Registry, group: &str, kind: &str, spec: Value) -> Vec<String> {
    let kind = registry.all().into_iter().find(|k| k.group == group && k.kind == kind).unwrap();
    let mut object =
        json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": "x"}, "spec": spec});
    if kind.namespaced {
        object["metadata"]["namespace"] = json!("default");
    }
    let decoded = decode(&kind, &mut object);
    assert_eq!(decoded.unknown, Vec::<String>::new());
    defaults::apply(&kind, &mut object);
    defaults::validate_create(&kind, &object).iter().map(ToString::to_string).collect()
}

#[test]
fn gateway_objects_are_judged_by_their_rules() {
    let Some(registry) = installed("gateway_objects_are_judged_by_their_rules") else { return };
    let group = "gateway.networking.k8s.io";
    let route = |rule: Value| json!({"parentRefs": [{"name": "gw"}], "rules": [rule]});
    let listener =
        |name: &str, port: i64, protocol: &str| json!({"name": name, "port": port, "protocol": protocol});
    let good = [
        (
            "HTTPRoute",
            route(json!({"matches": [{"path": {"type": "PathPrefix", "value": "/a"}}],
                                   "backendRefs": [{"name": "s", "port": 80}]})),
        ),
        (
            "HTTPRoute",
            route(json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"scheme": "https"}}]})),
        ),
        (
            "Gateway",
            json!({"gatewayClassName": "weft", "listeners": [listener("a", 80, "HTTP"), listener("b", 81, "HTTP")]}),
        ),
        ("GatewayClass", json!({"controllerName": "weft.dev/gateway"})),
    ];
    for (kind, spec) in good {
        assert_eq!(judge(&registry, group, kind, spec), Vec::<String>::new(), "{kind}");
    }
    let bad = [
        (
            "HTTPRoute",
            route(json!({"matches": [{"path": {"type": "PathPrefix", "value": "a"}}]})),
            "must be an absolute path",
        ),
        (
            "HTTPRoute",
            route(json!({"matches": [{"path": {"type": "Exact", "value": "/a//b"}}]})),
            "must not contain '//'",
        ),
        ("HTTPRoute", route(json!({"filters": [{"type": "URLRewrite"}]})), "urlRewrite must be specified"),
        ("HTTPRoute", route(json!({"filters": [{"type": "Wrong"}]})), "Unsupported value: \"Wrong\""),
        ("HTTPRoute", route(json!({"backendRefs": [{"name": "s"}]})), "Must have port for Service reference"),
        (
            "Gateway",
            json!({"gatewayClassName": "weft", "listeners": [listener("a", 80, "HTTP"), listener("a", 81, "HTTP")]}),
            "Duplicate value",
        ),
        (
            "Gateway",
            json!({"gatewayClassName": "weft", "listeners": [listener("a", 80, "HTTP"), listener("b", 80, "HTTP")]}),
            "Combination of port, protocol and hostname must be unique",
        ),
        ("GatewayClass", json!({"controllerName": "nothing"}), "should match"),
    ];
    for (kind, spec, expected) in bad {
        let found = judge(&registry, group, kind, spec.clone());
        assert!(
            found.iter().any(|e| e.contains(expected)),
            "{kind} {spec}\nwant {expected}\ngot  {found:#?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn rules_and_paths_never_panic(rule in "[a-z.()'\"=<>!&|?:0-9\\[\\] ,{}]{0,40}", number in any::<i64>()) {
        let schema = object_schema(json!({"type": "object", "properties": {"a": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": rule}]}));
        let registry = Registry::new();
        if registry.install_crd(&shirts(schema)).is_ok() {
            let kind = registry.find("stable.example.com", "v1", "shirts").unwrap();
            let object = json!({"metadata": {"name": "a", "namespace": "default"}, "spec": {"a": number}});
            defaults::validate_create(&kind, &object);
        }
    }
}
