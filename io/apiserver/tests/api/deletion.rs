//! Deletion: grace, finalizers, preconditions, owners, namespaces.

use serde_json::{Value, json};

use crate::support::{Client, Fixture, config_map, eventually, pod};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn owned(admin: &Client, name: &str, owner: &Value, blocks: bool) -> Value {
    let mut object = config_map(name, json!({}));
    object["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"],
        "blockOwnerDeletion": blocks,
    }]);
    admin.post(MAPS, object).await.expect(201)
}

#[tokio::test]
async fn running_pods_get_time_which_only_shrinks() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let mut running = pod("web");
    running["spec"]["nodeName"] = "node1".into();
    running["spec"]["terminationGracePeriodSeconds"] = 20.into();
    admin.post(PODS, running).await.expect(201);
    let path = format!("{PODS}/web");
    let marked = admin.delete(&path, json!({})).await.expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 20);
    let longer = admin.delete(&path, json!({"gracePeriodSeconds": 100})).await.expect(200);
    assert_eq!(longer["metadata"]["deletionGracePeriodSeconds"], 20);
    let shorter = admin.delete(&path, json!({"gracePeriodSeconds": 5})).await.expect(200);
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    // The kubelet confirms.
    admin.delete(&path, json!({"gracePeriodSeconds": 0})).await.expect(200);
    assert_eq!(admin.get(&path).await.code, 404);
    admin.post(PODS, pod("unscheduled")).await.expect(201);
    admin.delete(&format!("{PODS}/unscheduled"), json!({})).await.expect(200);
    assert_eq!(admin.get(&format!("{PODS}/unscheduled")).await.code, 404, "nobody has to stop it");
}

#[tokio::test]
async fn finalizers_hold_and_cannot_be_added_late() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let mut object = config_map("a", json!({}));
    object["metadata"]["finalizers"] = json!(["weft.dev/hold"]);
    admin.post(MAPS, object).await.expect(201);
    let path = format!("{MAPS}/a");
    let marked = admin.delete(&path, json!({})).await.expect(200);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["weft.dev/hold", "weft.dev/more"]}});
    let refused = admin.patch(&path, "merge", more).await.expect(422);
    assert!(refused["message"].as_str().unwrap().contains("no new finalizers can be added"), "{refused}");
    admin.patch(&path, "merge", json!({"metadata": {"finalizers": null}})).await.expect(200);
    assert_eq!(admin.get(&path).await.code, 404);
}

#[tokio::test]
async fn preconditions_guard_against_deleting_another_object() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let created = admin.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let path = format!("{MAPS}/a");
    assert_eq!(admin.delete(&path, json!({"preconditions": {"uid": "other"}})).await.code, 409);
    assert_eq!(admin.delete(&path, json!({"preconditions": {"resourceVersion": "1"}})).await.code, 409);
    assert_eq!(admin.delete(&format!("{path}?dryRun=All"), json!({})).await.code, 200);
    let status =
        admin.delete(&path, json!({"preconditions": {"uid": created["metadata"]["uid"]}})).await.expect(200);
    assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Success")));
    assert_eq!(status["details"]["uid"], created["metadata"]["uid"]);
}

#[tokio::test]
async fn dependents_follow_their_owner_in_each_way() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    for policy in ["Background", "Foreground", "Orphan"] {
        let owner = admin.post(MAPS, config_map("owner", json!({}))).await.expect(201);
        owned(&admin, "child", &owner, true).await;
        let deleted =
            admin.delete(&format!("{MAPS}/owner"), json!({"propagationPolicy": policy})).await.expect(200);
        if policy == "Foreground" {
            assert_eq!(deleted["metadata"]["finalizers"], json!(["foregroundDeletion"]));
        }
        eventually(&admin, &format!("{MAPS}/owner"), |answer| answer.code == 404).await;
        if policy == "Orphan" {
            let child = admin.get(&format!("{MAPS}/child")).await.expect(200);
            assert!(child["metadata"].get("ownerReferences").is_none(), "{child}");
            continue;
        }
        eventually(&admin, &format!("{MAPS}/child"), |answer| answer.code == 404).await;
    }
}

#[tokio::test]
async fn an_object_born_to_a_dead_owner_or_with_one_living_is_treated_so() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let dead = json!({"metadata": {"name": "ghost", "uid": "00000000-0000-4000-8000-000000000000"}});
    owned(&admin, "orphan", &dead, false).await;
    eventually(&admin, &format!("{MAPS}/orphan"), |answer| answer.code == 404).await;
    let (a, b) = (
        admin.post(MAPS, config_map("a", json!({}))).await.expect(201),
        admin.post(MAPS, config_map("b", json!({}))).await.expect(201),
    );
    let child = owned(&admin, "child", &a, false).await;
    let mut references = child["metadata"]["ownerReferences"].as_array().unwrap().clone();
    references
        .push(json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "b", "uid": b["metadata"]["uid"]}));
    let both = json!({"metadata": {"ownerReferences": references}});
    admin.patch(&format!("{MAPS}/child"), "merge", both).await.expect(200);
    admin.delete(&format!("{MAPS}/a"), json!({})).await.expect(200);
    let left = |answer: &crate::support::Answer| {
        answer.body["metadata"]["ownerReferences"].as_array().is_some_and(|list| list.len() == 1)
    };
    eventually(&admin, &format!("{MAPS}/child"), left).await;
}

#[tokio::test]
async fn a_namespace_ends_with_its_content_and_takes_nothing_new_meanwhile() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    let created = admin.post("/api/v1/namespaces", namespace).await.expect(201);
    assert_eq!(created["metadata"]["labels"]["kubernetes.io/metadata.name"], "shop");
    assert_eq!(created["status"]["phase"], "Active");
    eventually(&admin, "/api/v1/namespaces/shop/serviceaccounts/default", |answer| answer.code == 200).await;
    let mut held = config_map("held", json!({}));
    held["metadata"]["finalizers"] = json!(["weft.dev/hold"]);
    admin.post("/api/v1/namespaces/shop/configmaps", held).await.expect(201);
    let ending = admin.delete("/api/v1/namespaces/shop", json!({})).await.expect(200);
    assert_eq!(ending["status"]["phase"], "Terminating");
    let late =
        admin.post("/api/v1/namespaces/shop/configmaps", config_map("late", json!({}))).await.expect(403);
    assert_eq!(late["details"]["causes"][0]["reason"], "NamespaceTerminating");
    eventually(&admin, "/api/v1/namespaces/shop/serviceaccounts/default", |answer| answer.code == 404).await;
    let named = |answer: &crate::support::Answer| answer.body["status"]["conditions"].is_array();
    let said = eventually(&admin, "/api/v1/namespaces/shop", named).await;
    let said: Vec<_> = said.body["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|condition| condition["status"] == "True")
        .map(|condition| condition["message"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        said,
        [
            "Some resources are remaining: configmaps. has 1 resource instances",
            "Some content in the namespace has finalizers remaining: weft.dev/hold in 1 resource instances",
        ],
        "its content is still held, and by what"
    );
    let path = "/api/v1/namespaces/shop/configmaps/held";
    admin.patch(path, "merge", json!({"metadata": {"finalizers": null}})).await.expect(200);
    eventually(&admin, "/api/v1/namespaces/shop", |answer| answer.code == 404).await;
    assert_eq!(admin.delete("/api/v1/namespaces/kube-system", json!({})).await.code, 403);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    for name in ["a", "b", "c"] {
        admin.post(PODS, pod(name)).await.expect(201);
    }
    let deleted =
        admin.delete(&format!("{PODS}?labelSelector=app%20in%20(a,b)"), json!({})).await.expect(200);
    assert_eq!(deleted["items"].as_array().unwrap().len(), 2);
    assert_eq!(admin.get(PODS).await.expect(200)["items"].as_array().unwrap().len(), 1);
}
