//! Ownership through sequences of applies and updates.

use serde_json::{Value, json};

use super::*;
use crate::kinds::Registry;

fn deployment() -> std::sync::Arc<Kind> {
    Registry::new().find("apps", "v1", "deployments").unwrap()
}

fn base(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

fn request(manager: &str, force: bool) -> Request<'_> {
    Request { manager, subresource: "", force }
}

fn applied(live: &Value, config: &Value, manager: &str) -> Value {
    apply(&deployment(), live, config, &request(manager, false), Timestamp::now()).unwrap().object
}

fn owners(object: &Value) -> Vec<(String, Value)> {
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    list.into_iter()
        .map(|entry| (entry["manager"].as_str().unwrap().to_owned(), entry["fieldsV1"].clone()))
        .collect()
}

fn container(name: &str, image: &str) -> Value {
    json!({"template": {"spec": {"containers": [{"name": name, "image": image}]}}})
}

#[test]
fn giving_up_a_field_removes_it_and_keyed_items_with_it() {
    let mut first = base(container("a", "one"));
    first["metadata"]["labels"] = json!({"x": "1", "y": "2"});
    let live = applied(&base(json!({})), &first, "me");
    let mut second = base(container("b", "two"));
    second["metadata"]["labels"] = json!({"x": "1"});
    let live = applied(&live, &second, "me");
    assert_eq!(live["metadata"]["labels"], json!({"x": "1"}));
    assert_eq!(live["spec"]["template"]["spec"]["containers"], json!([{"name": "b", "image": "two"}]));
}

#[test]
fn a_field_two_managers_apply_stays_until_both_give_it_up() {
    let config = base(json!({"replicas": 3, "paused": true}));
    let live = applied(&base(json!({})), &config, "one");
    let live = applied(&live, &config, "two");
    let live = applied(&live, &base(json!({"paused": true})), "one");
    assert_eq!(live["spec"]["replicas"], 3);
    let live = applied(&live, &base(json!({"paused": true})), "two");
    assert_eq!(live["spec"], json!({"paused": true}));
}

#[test]
fn changing_anothers_field_conflicts_unless_forced() {
    let live = applied(&base(json!({})), &base(json!({"replicas": 3})), "one");
    let wanted = base(json!({"replicas": 5}));
    let error = apply(&deployment(), &live, &wanted, &request("two", false), Timestamp::now()).unwrap_err();
    assert_eq!(error.reason, "Conflict");
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"one\" using apps/v1: .spec.replicas"
    );
    let forced =
        apply(&deployment(), &live, &wanted, &request("two", true), Timestamp::now()).unwrap().object;
    assert_eq!(forced["spec"]["replicas"], 5);
    assert_eq!(owners(&forced), [("two".to_owned(), json!({"f:spec": {"f:replicas": {}}}))]);
}

#[test]
fn updates_take_fields_over_and_are_conflicted_with() {
    let kind = deployment();
    let live = applied(&base(json!({})), &base(json!({"replicas": 3, "paused": true})), "one");
    let mut edited = live.clone();
    edited["spec"]["replicas"] = 4.into();
    managed::track(
        &kind,
        Some(&live),
        &mut edited,
        &managed::Write { manager: "editor", subresource: "", now: Timestamp::now() },
    );
    let expected = [
        ("one".to_owned(), json!({"f:spec": {"f:paused": {}}})),
        ("editor".to_owned(), json!({"f:spec": {"f:replicas": {}}})),
    ];
    assert_eq!(owners(&edited), expected);
    let again = base(json!({"replicas": 3, "paused": true}));
    assert!(apply(&kind, &edited, &again, &request("one", false), Timestamp::now()).is_err());
}

#[test]
fn ports_are_told_apart_by_port_and_protocol_with_its_default() {
    let ports =
        |list: Value| base(json!({"template": {"spec": {"containers": [{"name": "a", "ports": list}]}}}));
    let live = applied(&base(json!({})), &ports(json!([{"containerPort": 53}])), "one");
    let live = applied(&live, &ports(json!([{"containerPort": 53, "protocol": "UDP"}])), "two");
    let list = live["spec"]["template"]["spec"]["containers"][0]["ports"].as_array().unwrap().clone();
    assert_eq!(list.len(), 2, "{list:?}");
}

#[test]
fn fields_survive_their_text_form() {
    let set = fields::collect(
        &schema::root(&deployment()),
        &json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "i"}]}}}}),
    );
    let text = set.to_json();
    assert_eq!(FieldSet::from_json(&text), set);
    assert_eq!(
        text["f:spec"]["f:template"]["f:spec"]["f:containers"]["k:{\"name\":\"a\"}"],
        json!({".": {}, "f:name": {}, "f:image": {}})
    );
}
