//! The kinds of our own, as `deploy/crds` defines them: installed, defaulted, checked, shown.

use http::Method;
use serde_json::{Value, json};

use crate::support::{Client, Fixture, eventually};

const DEFINITION: &str = include_str!("../../../../deploy/crds/addresspools.yaml");
const POOLS: &str = "/apis/weft.dev/v1alpha1/addresspools";

async fn installed(fixture: &Fixture) -> Client {
    let admin = fixture.admin();
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    admin.send(Method::POST, definitions, "application/yaml", DEFINITION.into()).await.expect(201);
    eventually(&admin, POOLS, |answer| answer.code == 200).await;
    admin
}

fn pool(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "weft.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": name}, "spec": spec})
}

#[tokio::test]
async fn pools_are_completed_checked_and_shown() {
    let fixture = Fixture::start().await;
    let admin = installed(&fixture).await;
    let addresses = json!(["192.0.2.10-192.0.2.50", "198.51.100.0/24", "fd00::10-fd00::20", "192.0.2.7"]);
    let made = admin.post(POOLS, pool("lab", json!({"addresses": addresses}))).await.expect(201);
    assert_eq!(
        made["spec"],
        json!({"addresses": addresses, "autoAssign": true, "announce": {"protocol": "L2"}})
    );
    for (spec, field) in [
        (json!({}), "spec.addresses: Required value"),
        (json!({"addresses": []}), "spec.addresses: Invalid value"),
        (json!({"addresses": ["pool.example"]}), "spec.addresses[0]: Invalid value"),
        (
            json!({"addresses": addresses, "announce": {"protocol": "BGP"}}),
            "spec.announce.protocol: Unsupported value",
        ),
        (
            json!({"addresses": addresses, "serviceSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}),
            "spec.serviceSelector.matchExpressions[0].operator: Unsupported value",
        ),
    ] {
        let refused = admin.post(POOLS, pool("bad", spec.clone())).await.expect(422);
        assert!(refused["message"].as_str().unwrap().contains(field), "{spec}: {refused}");
    }
    let status = json!({"status": {"capacity": {"ipv4": {"total": 298, "used": 3}},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Valid", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    admin.patch(&format!("{POOLS}/lab/status"), "merge", status).await.expect(200);
    let as_table = admin.with_header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table = as_table.get(POOLS).await.expect(200);
    let names: Vec<&str> =
        table["columnDefinitions"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    assert_eq!(names, ["Name", "Addresses", "Auto-Assign", "Used", "Used-IPv6", "Age"]);
    assert_eq!(table["rows"][0]["cells"][3], 3);
}
