//! Who gets in and what they may do.

use serde_json::{Value, json};

use crate::support::{Client, Fixture, config_map};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn token_client(fixture: &Fixture, token: &str) -> Client {
    fixture.anonymous().with_header("authorization", &format!("Bearer {token}"))
}

async fn allow(admin: &Client, subject: Value, rules: Value) {
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"}, "rules": rules});
    admin.post(&format!("{RBAC}/namespaces/default/roles"), role).await.expect(201);
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "r"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"}, "subjects": [subject],
    });
    admin.post(&format!("{RBAC}/namespaces/default/rolebindings"), binding).await.expect(201);
}

#[tokio::test]
async fn strangers_are_unauthorized_everywhere_but_at_the_health_checks() {
    let fixture = Fixture::start().await;
    let anonymous = fixture.anonymous();
    for path in ["/api/v1/pods", "/version", "/apis", "/openapi/v2"] {
        let refused = anonymous.get(path).await.expect(401);
        assert_eq!((&refused["reason"], &refused["kind"]), (&json!("Unauthorized"), &json!("Status")));
    }
    for path in ["/healthz", "/livez", "/readyz"] {
        assert_eq!(anonymous.get(path).await.expect(200), "ok");
    }
    assert_eq!(token_client(&fixture, "made.up.token").get("/version").await.code, 401);
}

#[tokio::test]
async fn roles_grant_exactly_what_they_say() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let jane = fixture.client("jane", None);
    let maps = "/api/v1/namespaces/default/configmaps";
    let refused = jane.get(maps).await.expect(403);
    assert_eq!(
        refused["message"],
        "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    let rules = json!([{"verbs": ["list", "create"], "apiGroups": [""], "resources": ["configmaps"]}]);
    allow(&admin, json!({"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}), rules)
        .await;
    jane.get(maps).await.expect(200);
    jane.post(maps, config_map("a", json!({}))).await.expect(201);
    jane.delete(&format!("{maps}/a"), json!({})).await.expect(403);
    jane.get("/api/v1/configmaps").await.expect(403);
    jane.get("/api/v1/namespaces/kube-system/configmaps").await.expect(403);
    jane.get("/version").await.expect(200);
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "list", "resource": "configmaps", "namespace": "default"}},
    });
    let answer =
        jane.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review).await.expect(201);
    assert_eq!(answer["status"]["allowed"], true);
}

#[tokio::test]
async fn nobody_hands_out_more_than_they_hold() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let rules = json!([{"verbs": ["*"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"]}]);
    allow(&admin, json!({"kind": "User", "name": "jane"}), rules.clone()).await;
    let jane = fixture.client("jane", None);
    let role = |verbs: Value, resources: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"generateName": "g-"},
            "rules": [{"verbs": verbs, "apiGroups": [""], "resources": resources}],
        })
    };
    let path = format!("{RBAC}/namespaces/default/roles");
    // Every verb on roles includes the verb to escalate.
    jane.post(&path, role(json!(["get"]), json!(["secrets"]))).await.expect(201);
    let narrow = json!([{"op": "replace", "path": "/rules/0/verbs", "value": ["get", "create", "update"]}]);
    admin.patch(&format!("{path}/r"), "json", narrow).await.expect(200);
    let refused = jane.post(&path, role(json!(["get"]), json!(["secrets"]))).await.expect(403);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("is attempting to grant RBAC permissions not currently held"),
        "{refused}"
    );
}

#[tokio::test]
async fn service_account_tokens_work_until_what_they_are_bound_to_is_gone() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    admin.post(accounts, account).await.expect(201);
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}});
    let issued = admin.post(&format!("{accounts}/robot/token"), request.clone()).await.expect(201);
    let token = issued["status"]["token"].as_str().unwrap();
    let robot = token_client(&fixture, token);
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = robot.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", review).await.expect(201);
    assert_eq!(answer["status"]["userInfo"]["username"], "system:serviceaccount:default:robot");
    let groups = answer["status"]["userInfo"]["groups"].as_array().unwrap().clone();
    assert!(groups.contains(&json!("system:serviceaccounts:default")), "{groups:?}");
    let checked =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let answer = admin.post("/apis/authentication.k8s.io/v1/tokenreviews", checked).await.expect(201);
    assert_eq!(answer["status"]["authenticated"], true);
    let short = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 5}});
    admin.post(&format!("{accounts}/robot/token"), short).await.expect(422);
    for nonsense in [json!([]), json!("x"), json!({"spec": 1}), json!({"metadata": 1, "spec": null})] {
        let answer = admin.post(&format!("{accounts}/robot/token"), nonsense.clone()).await;
        assert!(answer.code == 400 || answer.code == 201, "{nonsense}: {answer:?}");
    }
    admin.delete(&format!("{accounts}/robot"), json!({})).await.expect(200);
    robot.get("/version").await.expect(401);
}

#[tokio::test]
async fn impersonation_needs_the_right_to_it() {
    let fixture = Fixture::start().await;
    let as_jane = fixture.admin().with_header("impersonate-user", "jane");
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let answer = as_jane.post(path, review.clone()).await.expect(201);
    assert_eq!(answer["status"]["userInfo"]["username"], "jane");
    as_jane.get("/api/v1/secrets").await.expect(403);
    let refused =
        fixture.client("bob", None).with_header("impersonate-user", "jane").post(path, review).await;
    assert_eq!(refused.code, 403);
    assert!(refused.body["message"].as_str().unwrap().contains("cannot impersonate resource \"users\""));
}

#[tokio::test]
async fn default_roles_aggregate_and_serve_the_clusters_own_users() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let view = admin.get(&format!("{RBAC}/clusterroles/view")).await.expect(200);
    assert!(!view["rules"].as_array().unwrap().is_empty());
    let node = fixture.client("system:node:node1", Some("system:nodes"));
    node.get("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode1").await.expect(200);
    node.get("/apis/apps/v1/deployments").await.expect(403);
    let scheduler = fixture.client("system:kube-scheduler", None);
    scheduler.get("/api/v1/nodes").await.expect(200);
    let extra = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "extra", "labels": {"rbac.authorization.k8s.io/aggregate-to-view": "true"}},
        "rules": [{"verbs": ["get"], "apiGroups": ["sea.dev"], "resources": ["ports"]}],
    });
    admin.post(&format!("{RBAC}/clusterroles"), extra).await.expect(201);
    let has = |answer: &crate::support::Answer| answer.body.to_string().contains("sea.dev");
    crate::support::eventually(&admin, &format!("{RBAC}/clusterroles/admin"), has).await;
}

#[tokio::test]
async fn manifests_given_at_start_are_in_force_from_the_first_request() {
    let manifest = "
apiVersion: v1
kind: Namespace
metadata: {name: weft-system}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: weft-agent, namespace: weft-system}
";
    let fixture = Fixture::start_with(|config| config.bootstrap_manifests = vec![manifest.into()]).await;
    fixture.admin().get("/api/v1/namespaces/weft-system/serviceaccounts/weft-agent").await.expect(200);
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    assert_eq!(
        fixture.admin().get(slices).await.expect(200)["endpoints"][0]["addresses"],
        json!(["172.30.0.11"])
    );
}
