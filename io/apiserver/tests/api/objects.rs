//! Creating, reading, changing and listing objects; what each refusal says.

use serde_json::{Value, json};

use crate::support::{Fixture, config_map, eventually, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn deployment(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "main", "image": "nginx"}]},
            },
        },
    })
}

#[tokio::test]
async fn created_objects_get_identity_defaults_and_generation() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let created = admin.post(DEPLOYMENTS, deployment("web")).await.expect(201);
    let metadata = &created["metadata"];
    assert_eq!(metadata["uid"].as_str().unwrap().len(), 36);
    assert_eq!((&metadata["generation"], &metadata["namespace"]), (&json!(1), &json!("default")));
    assert_eq!(created["spec"]["strategy"]["type"], "RollingUpdate");
    assert_eq!(metadata["managedFields"][0]["manager"], "weft-test");
    let again = admin.post(DEPLOYMENTS, deployment("web")).await;
    assert_eq!((again.code, &again.body["reason"]), (409, &json!("AlreadyExists")));
    assert_eq!(again.body["message"], "deployments.apps \"web\" already exists");
    let missing = admin.get(&format!("{DEPLOYMENTS}/other")).await.expect(404);
    assert_eq!(missing["details"], json!({"kind": "deployments", "name": "other", "group": "apps"}));
}

#[tokio::test]
async fn generation_follows_the_specification_and_status_has_its_own_door() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let mut object = admin.post(DEPLOYMENTS, deployment("web")).await.expect(201);
    object["status"] = json!({"replicas": 7});
    object["metadata"]["labels"] = json!({"a": "b"});
    let path = format!("{DEPLOYMENTS}/web");
    let labelled = admin.put(&path, object.clone()).await.expect(200);
    assert_eq!(labelled["metadata"]["generation"], 1);
    assert!(labelled["status"].get("replicas").is_none(), "{}", labelled["status"]);
    let mut report = labelled.clone();
    report["status"] = json!({"replicas": 7});
    report["spec"]["replicas"] = 50.into();
    let reported = admin.put(&format!("{path}/status"), report).await.expect(200);
    assert_eq!((&reported["status"]["replicas"], &reported["spec"]["replicas"]), (&json!(7), &json!(2)));
    let scaled = admin.patch(&path, "merge", json!({"spec": {"replicas": 3}})).await.expect(200);
    assert_eq!((&scaled["metadata"]["generation"], &scaled["status"]["replicas"]), (&json!(2), &json!(7)));
    let stale = admin.put(&path, object).await;
    assert_eq!((stale.code, &stale.body["reason"]), (409, &json!("Conflict")));
    assert!(
        stale.body["message"]
            .as_str()
            .unwrap()
            .contains("the object has been modified; please apply your changes")
    );
}

#[tokio::test]
async fn writing_nothing_new_changes_no_revision() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let created = admin.post(MAPS, config_map("a", json!({"k": "v"}))).await.expect(201);
    let patched = admin.patch(&format!("{MAPS}/a"), "merge", json!({"data": {"k": "v"}})).await.expect(200);
    assert_eq!(created["metadata"]["resourceVersion"], patched["metadata"]["resourceVersion"]);
}

#[tokio::test]
async fn each_patch_format_does_what_it_is_for() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    admin.post(DEPLOYMENTS, deployment("web")).await.expect(201);
    let path = format!("{DEPLOYMENTS}/web");
    let image = |object: &Value| object["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    let strategic = json!({"spec": {"template": {"spec": {"containers": [{"name": "main", "image": "a"}]}}}});
    assert_eq!(image(&admin.patch(&path, "strategic", strategic).await.expect(200)), "a");
    let operations =
        json!([{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "b"}]);
    assert_eq!(image(&admin.patch(&path, "json", operations).await.expect(200)), "b");
    let failing = json!([{"op": "test", "path": "/spec/replicas", "value": 99}]);
    assert_eq!(admin.patch(&path, "json", failing).await.code, 422);
    let merged = admin.patch(&path, "merge", json!({"metadata": {"labels": {"x": "y"}}})).await.expect(200);
    assert_eq!(merged["metadata"]["labels"]["x"], "y");
    let unknown = admin.patch(&path, "odd", json!({})).await;
    assert_eq!((unknown.code, &unknown.body["reason"]), (415, &json!("UnsupportedMediaType")));
}

#[tokio::test]
async fn what_has_no_effect_here_is_said() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {}});
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "p"}, "spec": {"validations": [{"expression": "true"}]},
    });
    for (path, object) in [
        ("/api/v1/namespaces/default/resourcequotas", quota),
        ("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies", policy),
    ] {
        let answer = admin.post(path, object).await;
        assert_eq!(answer.code, 201, "{}", answer.body);
        let warning = answer.headers["warning"].to_str().unwrap();
        assert!(warning.contains("is stored and not enforced here"), "{warning}");
    }
}

#[tokio::test]
async fn heads_have_no_body_and_only_json_is_offered() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    for path in [MAPS, "/api/v1/namespaces/default", "/version", "/nowhere"] {
        let (head, whole) =
            (admin.send(http::Method::HEAD, path, "", Vec::new()).await, admin.get(path).await);
        assert_eq!((head.code, &head.body), (whole.code, &json!("")), "{path}");
        assert_eq!(head.headers["content-type"], whole.headers["content-type"]);
    }
    let refused = admin.clone().with_header("accept", "application/xml").get(MAPS).await;
    assert_eq!((refused.code, &refused.body["reason"]), (406, &json!("NotAcceptable")));
    for accept in ["application/vnd.kubernetes.protobuf, application/json", "*/*", "application/*;q=0.8"] {
        assert_eq!(admin.clone().with_header("accept", accept).get(MAPS).await.code, 200, "{accept}");
    }
}

#[tokio::test]
async fn no_patch_makes_an_object_into_another() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    admin.post(DEPLOYMENTS, deployment("web")).await.expect(201);
    admin.post(MAPS, config_map("web", json!({"k": "v"}))).await.expect(201);
    let identity = |object: &Value| (object["kind"].clone(), object["apiVersion"].clone());
    for path in [format!("{DEPLOYMENTS}/web"), format!("{DEPLOYMENTS}/web/status"), format!("{MAPS}/web")] {
        let before = admin.get(&path).await.expect(200);
        for (field, value) in [
            ("/kind", json!("Service")),
            ("/kind", json!(7)),
            ("/kind", Value::Null),
            ("/apiVersion", json!("v2")),
            ("/apiVersion", Value::Null),
            ("/metadata/name", json!("other")),
            ("/metadata/namespace", json!("kube-system")),
        ] {
            let mut merged = value.clone();
            for name in field.rsplit('/').filter(|name| !name.is_empty()) {
                merged = json!({ name: merged });
            }
            let operations = match &value {
                Value::Null => json!([{"op": "remove", "path": field}]),
                value => json!([{"op": "replace", "path": field, "value": value}]),
            };
            for (format, patch) in [("merge", &merged), ("strategic", &merged), ("json", &operations)] {
                let answer = admin.patch(&path, format, patch.clone()).await;
                assert_eq!(answer.code, 400, "{path} {format} {patch}: {}", answer.body);
            }
        }
        let after = admin.get(&path).await.expect(200);
        assert_eq!(identity(&after), identity(&before));
        assert_eq!(after["metadata"]["resourceVersion"], before["metadata"]["resourceVersion"]);
    }
    let repeated = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "web"}});
    admin.patch(&format!("{MAPS}/web"), "merge", repeated).await.expect(200);
}

#[tokio::test]
async fn apply_creates_then_conflicts_with_others_unless_forced() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let path = format!("{MAPS}/a");
    let config = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": value}});
    admin.patch(&format!("{path}?fieldManager=one"), "apply", config("1")).await.expect(201);
    let conflict = admin.patch(&format!("{path}?fieldManager=two"), "apply", config("2")).await.expect(409);
    assert_eq!(conflict["details"]["causes"][0]["field"], ".data.k");
    admin.patch(&format!("{path}?fieldManager=two&force=true"), "apply", config("2")).await.expect(200);
    let given_up = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let left = admin.patch(&format!("{path}?fieldManager=two"), "apply", given_up).await.expect(200);
    assert!(left.get("data").is_none(), "{left}");
    let unnamed = admin.patch(&path, "apply", config("3")).await;
    assert_eq!(unnamed.code, 422, "{}", unnamed.body);
}

#[tokio::test]
async fn unknown_fields_are_refused_warned_of_or_dropped_as_asked() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let mut object = deployment("web");
    object["spec"]["replica"] = 1.into();
    let strict =
        admin.post(&format!("{DEPLOYMENTS}?fieldValidation=Strict"), object.clone()).await.expect(400);
    assert_eq!(
        strict["message"],
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \"spec.replica\""
    );
    let warned = admin.post(&format!("{DEPLOYMENTS}?fieldValidation=Warn&dryRun=All"), object.clone()).await;
    assert_eq!(warned.code, 201);
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"spec.replica\\\"\"");
    assert_eq!(admin.get(&format!("{DEPLOYMENTS}/web")).await.code, 404, "a dry run stores nothing");
    let ignored = admin.post(&format!("{DEPLOYMENTS}?fieldValidation=Ignore"), object).await;
    assert!(ignored.headers.get("warning").is_none());
    assert!(ignored.expect(201)["spec"].get("replica").is_none());
}

#[tokio::test]
async fn invalid_objects_name_field_and_reason() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let mut object = deployment("web");
    object["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    let refused = admin.post(DEPLOYMENTS, object).await.expect(422);
    assert_eq!(refused["reason"], "Invalid");
    let causes = refused["details"]["causes"].as_array().unwrap();
    assert!(causes.iter().any(|cause| cause["field"] == "spec.template.metadata.labels"), "{refused}");
    let nameless =
        admin.post(MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}})).await.expect(422);
    assert!(nameless["message"].as_str().unwrap().contains("name or generateName is required"));
    let misplaced =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "other"}});
    assert_eq!(admin.post(MAPS, misplaced).await.code, 400);
    assert_eq!(admin.post(MAPS, deployment("web")).await.code, 400);
    assert_eq!(admin.get("/apis/nothing.dev/v1/things").await.code, 404);
    let elsewhere =
        admin.post("/api/v1/namespaces/nowhere/configmaps", config_map("a", json!({}))).await.expect(404);
    assert_eq!(elsewhere["message"], "namespaces \"nowhere\" not found");
}

#[tokio::test]
async fn generated_names_are_unique() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "job-"}});
    let first = admin.post(MAPS, object.clone()).await.expect(201);
    let second = admin.post(MAPS, object).await.expect(201);
    let name = first["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("job-") && name.len() == 9, "{name}");
    assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
}

#[tokio::test]
async fn lists_page_consistently_and_select() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    for i in 0..5 {
        let mut object = pod(&format!("p{i}"));
        object["metadata"]["labels"] = json!({"parity": if i % 2 == 0 { "even" } else { "odd" }});
        object["spec"]["nodeName"] = format!("node{}", i % 2).into();
        admin.post("/api/v1/namespaces/default/pods", object).await.expect(201);
    }
    let names = |list: &Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| o["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let pods = "/api/v1/namespaces/default/pods";
    let first = admin.get(&format!("{pods}?limit=2")).await.expect(200);
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["p0".into(), "p1".into()], &json!(3))
    );
    // What is created between pages is not in them.
    admin.post(pods, pod("p11")).await.expect(201);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = admin.get(&format!("{pods}?limit=10&continue={token}")).await.expect(200);
    assert_eq!(names(&rest), ["p2", "p3", "p4"]);
    assert_eq!(rest["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let exact = format!(
        "{pods}?resourceVersion={}&resourceVersionMatch=Exact",
        first["metadata"]["resourceVersion"].as_str().unwrap()
    );
    assert_eq!(names(&admin.get(&exact).await.expect(200)).len(), 5);
    fixture
        .server
        .as_ref()
        .unwrap()
        .api()
        .store
        .compact(fixture.server.as_ref().unwrap().api().store.revision());
    let gone = admin.get(&format!("{pods}?limit=10&continue={token}")).await.expect(410);
    assert_eq!(gone["reason"], "Expired");
    let fresh = gone["metadata"]["continue"].as_str().unwrap();
    assert_eq!(
        names(&admin.get(&format!("{pods}?continue={fresh}")).await.expect(200)),
        ["p11", "p2", "p3", "p4"]
    );
    assert_eq!(
        names(&admin.get(&format!("{pods}?labelSelector=parity%3Dodd")).await.expect(200)),
        ["p1", "p3"]
    );
    let on_node = format!("{pods}?fieldSelector=spec.nodeName%3Dnode0,metadata.name!%3Dp0");
    assert_eq!(names(&admin.get(&on_node).await.expect(200)), ["p2", "p4"]);
    assert_eq!(admin.get(&format!("{pods}?fieldSelector=spec.color%3Dred")).await.code, 400);
    assert_eq!(admin.get(&format!("{pods}?labelSelector=a%20b")).await.code, 400);
}

#[tokio::test]
async fn kubes_client_works_as_with_any_server() {
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
    let fixture = Fixture::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(fixture.kube().await, "default");
    let map: ConfigMap = serde_json::from_value(config_map("a", json!({"k": "v"}))).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    let patch = Patch::Apply(config_map("a", json!({"more": "v"})));
    let applied = maps.patch("a", &PatchParams::apply("test"), &patch).await.unwrap();
    assert_eq!(applied.data.unwrap().len(), 2);
    let error = maps.get("none").await.unwrap_err();
    assert!(matches!(error, kube::Error::Api(status) if status.reason == "NotFound"));
    assert_eq!(maps.list(&ListParams::default().fields("metadata.name=a")).await.unwrap().items.len(), 1);
    maps.delete("a", &Default::default()).await.unwrap();
}

#[tokio::test]
async fn definitions_bring_kinds_that_behave_and_go_with_their_objects() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "ports.sea.dev"},
        "spec": {
            "group": "sea.dev", "scope": "Namespaced",
            "names": {"plural": "ports", "singular": "port", "kind": "Port"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "depth": {"type": "integer", "minimum": 1, "default": 12}, "name": {"type": "string"}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                }}},
            }],
        },
    });
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    admin.post(crds, definition).await.expect(201);
    let established = |value: &Value| {
        let conditions = value["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True")
    };
    eventually(&admin, &format!("{crds}/ports.sea.dev"), |answer| established(&answer.body)).await;
    let ports = "/apis/sea.dev/v1/namespaces/default/ports";
    let port = |spec: Value| json!({"apiVersion": "sea.dev/v1", "kind": "Port", "metadata": {"name": "a"}, "spec": spec});
    let created = admin.post(ports, port(json!({"name": "x", "colour": "red"}))).await.expect(201);
    assert_eq!(created["spec"], json!({"name": "x", "depth": 12}));
    let refused =
        admin.patch(&format!("{ports}/a"), "merge", json!({"spec": {"depth": 0}})).await.expect(422);
    assert!(refused["message"].as_str().unwrap().contains("spec.depth"), "{refused}");
    admin.delete(&format!("{crds}/ports.sea.dev"), json!({})).await.expect(200);
    eventually(&admin, &format!("{crds}/ports.sea.dev"), |answer| answer.code == 404).await;
    eventually(&admin, ports, |answer| answer.code == 404).await;
}

#[tokio::test]
async fn one_object_is_seen_through_each_of_its_groups() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"},
        "eventTime": "2030-01-01T00:00:00.000000Z", "reportingController": "weft.dev/test", "reportingInstance": "i",
        "action": "Testing", "reason": "Because", "type": "Normal", "note": "hello",
        "regarding": {"kind": "Pod", "namespace": "default", "name": "web"},
    });
    let created = admin.post("/apis/events.k8s.io/v1/namespaces/default/events", event).await.expect(201);
    assert_eq!(created["note"], "hello");
    let core = admin
        .get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dweb")
        .await
        .expect(200);
    assert_eq!(core["items"][0]["message"], "hello");
    let absent = admin
        .get("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dx")
        .await
        .expect(200);
    assert_eq!(absent["items"], json!([]));
}

#[tokio::test]
async fn bodies_of_the_wrong_shape_are_refused_not_fatal() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    admin.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let kind = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    for body in
        [json!([]), json!(1), json!("x"), json!(null), kind.clone(), json!({"apiVersion": 1, "kind": []})]
    {
        let created = admin.post(MAPS, body.clone()).await.code;
        let replaced = admin.put(&format!("{MAPS}/a"), body.clone()).await.code;
        assert!(
            (400..500).contains(&created) && (200..500).contains(&replaced),
            "{body}: {created} {replaced}"
        );
    }
    for metadata in [
        json!(1),
        json!([]),
        json!({"labels": 1}),
        json!({"labels": {"a": 1}}),
        json!({"ownerReferences": {}}),
    ] {
        let patch = json!({"metadata": metadata});
        for format in ["merge", "strategic", "apply"] {
            let code = admin.patch(&format!("{MAPS}/a?fieldManager=t"), format, patch.clone()).await.code;
            assert!((200..500).contains(&code), "{format} {patch}: {code}");
        }
    }
    let path = format!("{MAPS}/a");
    for nonsense in ["{", "[", "not json", "{\"a\":1}"] {
        for content_type in ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"] {
            let answer =
                admin.send(http::Method::PUT, &path, content_type, nonsense.as_bytes().to_vec()).await;
            assert_eq!(answer.code, 400, "{content_type} {nonsense}: {answer:?}");
        }
        for content_type in
            ["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"]
        {
            let path = format!("{path}?fieldManager=t");
            let answer =
                admin.send(http::Method::PATCH, &path, content_type, nonsense.as_bytes().to_vec()).await;
            assert!((200..500).contains(&answer.code), "{content_type} {nonsense}: {answer:?}");
        }
    }
    admin.get(&path).await.expect(200);
}
