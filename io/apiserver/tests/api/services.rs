//! Service addresses and node ports: given, asked for, refused, kept, freed, remembered.

use serde_json::{Value, json};

use crate::support::{Client, Fixture};

pub const SERVICES: &str = "/api/v1/namespaces/default/services";

pub fn service(name: &str, spec: Value) -> Value {
    let mut full = json!({"selector": {"app": name}, "ports": [{"port": 80, "protocol": "TCP"}]});
    for (field, value) in spec.as_object().unwrap() {
        full[field] = value.clone();
    }
    // Null leaves a field out.
    full.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": full})
}

pub async fn create(admin: &Client, name: &str, spec: Value) -> Value {
    admin.post(SERVICES, service(name, spec)).await.expect(201)["spec"].clone()
}

pub async fn refusal(admin: &Client, spec: Value) -> String {
    let refused = admin.post(SERVICES, service("refused", spec)).await.expect(422);
    refused["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn families_follow_policy_and_request() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let single = create(&admin, "single", json!({})).await;
    assert!(single["clusterIP"].as_str().unwrap().starts_with("10.96."), "{single}");
    assert_eq!((&single["ipFamilies"], &single["ipFamilyPolicy"]), (&json!(["IPv4"]), &json!("SingleStack")));
    let dual = create(&admin, "dual", json!({"ipFamilyPolicy": "PreferDualStack"})).await;
    assert_eq!(dual["ipFamilies"], json!(["IPv4", "IPv6"]));
    assert!(dual["clusterIPs"][1].as_str().unwrap().starts_with("fd00:10:96::"), "{dual}");
    let six = create(&admin, "six", json!({"ipFamilies": ["IPv6"]})).await;
    assert_eq!(six["clusterIPs"].as_array().unwrap().len(), 1);
    assert!(six["clusterIP"].as_str().unwrap().starts_with("fd00:"), "{six}");
    let headless = create(&admin, "headless", json!({"clusterIP": "None"})).await;
    assert_eq!(headless["clusterIPs"], json!(["None"]));
    let external = json!({"type": "ExternalName", "externalName": "example.org"});
    assert!(create(&admin, "external", external).await.get("clusterIP").is_none());
    let kubernetes = admin.get(&format!("{SERVICES}/kubernetes")).await.expect(200);
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test]
async fn requested_addresses_are_checked_and_freed_on_deletion() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let spec = json!({"clusterIP": "10.96.0.10"});
    assert_eq!(create(&admin, "dns", spec.clone()).await["clusterIPs"], json!(["10.96.0.10"]));
    assert!(refusal(&admin, spec.clone()).await.contains("provided IP is already allocated"));
    let outside = refusal(&admin, json!({"clusterIP": "192.168.0.1"})).await;
    assert!(outside.contains("not in the valid range. The range of valid IPs is 10.96.0.0/16"), "{outside}");
    admin.delete(&format!("{SERVICES}/dns"), json!({})).await.expect(200);
    create(&admin, "again", spec).await;
    let moved = json!({"spec": {"clusterIP": "10.96.0.11", "clusterIPs": ["10.96.0.11"]}});
    let refused = admin.patch(&format!("{SERVICES}/again"), "merge", moved).await.expect(422);
    assert!(refused["message"].as_str().unwrap().contains("may not change once set"), "{refused}");
}

#[tokio::test]
async fn updates_keep_what_they_leave_out() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let before = create(&admin, "web", json!({"type": "NodePort"})).await;
    let port = before["ports"][0]["nodePort"].as_u64().unwrap();
    assert!((30000..=32767).contains(&port), "{port}");
    let after =
        admin.put(&format!("{SERVICES}/web"), service("web", json!({"type": "NodePort"}))).await.expect(200);
    assert_eq!(
        (&after["spec"]["clusterIP"], &after["spec"]["ports"]),
        (&before["clusterIP"], &before["ports"])
    );
    let plain =
        admin.put(&format!("{SERVICES}/web"), service("web", json!({"type": "ClusterIP"}))).await.expect(200);
    assert!(plain["spec"]["ports"][0].get("nodePort").is_none(), "{plain}");
    let both = json!({"spec": {"ipFamilyPolicy": "RequireDualStack"}});
    let grown = admin.patch(&format!("{SERVICES}/web"), "merge", both).await.expect(200);
    assert_eq!(grown["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
    assert_eq!(grown["spec"]["clusterIPs"][0], before["clusterIP"]);
    // The port is free again.
    let ports = json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": port}]});
    create(&admin, "taker", ports.clone()).await;
    assert!(refusal(&admin, ports).await.contains("provided port is already allocated"));
    let low = json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 80}]});
    assert!(refusal(&admin, low).await.contains("The range of valid ports is 30000-32767"));
}

#[tokio::test]
async fn concurrent_creations_never_share_an_address() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let spec = json!({"type": "NodePort"});
    let names: Vec<String> = (0..40).map(|i| format!("s{i}")).collect();
    let creations = names.iter().map(|name| create(&admin, name, spec.clone()));
    let specs = futures::future::join_all(creations).await;
    let distinct = |pointer: &str| {
        specs
            .iter()
            .map(|spec| spec.pointer(pointer).unwrap().to_string())
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    };
    assert_eq!((distinct("/clusterIP"), distinct("/ports/0/nodePort")), (40, 40));
}

#[tokio::test]
async fn allocations_are_remembered_over_a_restart() {
    let mut fixture = Fixture::start().await;
    create(&fixture.admin(), "dns", json!({"clusterIP": "10.96.0.10"})).await;
    fixture.restart().await;
    assert!(
        refusal(&fixture.admin(), json!({"clusterIP": "10.96.0.10"})).await.contains("already allocated")
    );
}
