//! Endpoints from services and pods, and slices from Endpoints.

use super::*;
use crate::controllers::endpoints::HEADLESS;
use crate::controllers::testing::{merge, parse, pod};

fn service(more: Value) -> Service {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "svc-uid", "labels": {"team": "a"}},
        "spec": {"selector": {"app": "web"}, "ipFamilies": ["IPv4", "IPv6"], "clusterIP": "10.96.0.20",
            "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}]},
    });
    merge(&mut object, more);
    parse(object)
}

fn backend(name: &str, number: u8, more: Value) -> Arc<Pod> {
    let mut object = json!({
        "spec": {"nodeName": "node1", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIPs": [{"ip": format!("10.244.0.{number}")}, {"ip": format!("fd00::{number}")}],
            "conditions": [{"type": "Ready", "status": "True"}]},
    });
    merge(&mut object, more);
    pod(name, "app=web", None, object)
}

fn by_hand(more: Value) -> Endpoints {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "ep-uid", "labels": {"team": "b"},
            "annotations": {"note": "kept", LAST_APPLIED: "{}"}},
        "subsets": [{
            "addresses": [{"ip": "192.0.2.7", "nodeName": "node2"}, {"ip": "2001:db8::7"}],
            "notReadyAddresses": [{"ip": "192.0.2.8"}],
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        }],
    });
    merge(&mut object, more);
    parse(object)
}

fn unselected() -> Service {
    service(json!({"spec": {"selector": null}}))
}

fn object<T: serde::de::DeserializeOwned>(effect: &Effect) -> T {
    let Effect::Create { body, .. } = effect else { panic!("{effect:?}") };
    let mut body = body.clone();
    merge(&mut body, json!({"metadata": {"uid": "made"}}));
    parse(body)
}

fn merged<T: serde::Serialize + serde::de::DeserializeOwned>(object: &T, effect: &Effect) -> T {
    let Effect::Merge { body, .. } = effect else { panic!("{effect:?}") };
    let mut value = to_value(object);
    merge(&mut value, body.clone());
    parse(value)
}

#[test]
fn ready_and_other_pods_are_in_their_lists_with_the_first_family_alone() {
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let none = json!({"spec": {"containers": [{"name": "c"}]}});
    let pods = [
        backend("b", 12, json!({})),
        backend("a", 2, json!({})),
        backend("late", 3, unready),
        backend("going", 4, going),
        backend("portless", 5, none),
    ];
    let made: Endpoints = object(&write(&service(json!({})), &pods, None).unwrap());
    let labels = meta::labels(&made.metadata);
    assert_eq!((labels[WRITER_LABEL].as_str(), labels["team"].as_str()), (WRITER, "a"));
    let address = |ip: &str, name: &str| {
        json!({"ip": ip, "nodeName": "node1",
        "targetRef": {"kind": "Pod", "namespace": "shop", "name": name, "uid": format!("uid-{name}")}})
    };
    let expected = json!([{
        "addresses": [address("10.244.0.2", "a"), address("10.244.0.12", "b")],
        "notReadyAddresses": [address("10.244.0.3", "late")],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }]);
    assert_eq!(to_value(&made.subsets), expected);
    assert_eq!(write(&service(json!({})), &pods, Some(&made)), None, "a second look changes nothing");
    let early = service(json!({"spec": {"publishNotReadyAddresses": true}}));
    let after = merged(&made, &write(&early, &pods, Some(&made)).unwrap());
    let subset = &after.subsets.as_ref().unwrap()[0];
    assert_eq!((subset.addresses.as_ref().unwrap().len(), &subset.not_ready_addresses), (4, &None));
}

#[test]
fn what_is_there_follows_labels_and_pods_down_to_none() {
    let made: Endpoints = object(&write(&service(json!({})), &[backend("a", 1, json!({}))], None).unwrap());
    let other =
        service(json!({"metadata": {"labels": {"team": null, "tier": "x"}}, "spec": {"clusterIP": "None"}}));
    let after = merged(&made, &write(&other, &[], Some(&made)).unwrap());
    let labels: Vec<&str> = meta::labels(&after.metadata).keys().map(String::as_str).collect();
    assert_eq!(labels, [WRITER_LABEL, HEADLESS, "tier"]);
    assert_eq!(after.subsets.as_deref().unwrap_or_default(), []);
    assert_eq!(write(&other, &[], Some(&after)), None);
    assert_eq!(write(&unselected(), &[], None), None, "those are written by hand");
    let named = service(json!({"spec": {"type": "ExternalName"}}));
    assert_eq!(write(&named, &[], None), None);
}

#[test]
fn more_addresses_than_fit_are_cut_and_that_is_said() {
    let pods: Vec<Arc<Pod>> = (0..1100)
        .map(|number: u32| {
            let ip = std::net::Ipv4Addr::from(0x0af4_0000 + number).to_string();
            let ready = if number < 50 { "False" } else { "True" };
            let status = json!({"status": {"podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": ready}]}});
            backend(&format!("p{number}"), 1, status)
        })
        .collect();
    let made: Endpoints = object(&write(&service(json!({})), &pods, None).unwrap());
    let subset = &made.subsets.as_ref().unwrap()[0];
    assert_eq!((subset.addresses.as_ref().unwrap().len(), &subset.not_ready_addresses), (1000, &None));
    assert_eq!(meta::annotation(&made.metadata, OVER_CAPACITY), Some("truncated"));
    let after = merged(&made, &write(&service(json!({})), &pods[..10], Some(&made)).unwrap());
    assert_eq!(meta::annotation(&after.metadata, OVER_CAPACITY), None);
}

#[test]
fn what_is_written_by_hand_is_mirrored_for_each_family() {
    let outcome = mirror(Some(&unselected()), &by_hand(json!({})), &[]);
    let mut slices: Vec<discovery::EndpointSlice> = outcome.effects.iter().map(object).collect();
    slices.sort_by(|one, other| one.address_type.cmp(&other.address_type));
    let families: Vec<&str> = slices.iter().map(|slice| slice.address_type.as_str()).collect();
    assert_eq!(families, ["IPv4", "IPv6"]);
    assert_eq!(
        to_value(&slices[0].endpoints),
        json!([{"addresses": ["192.0.2.7"], "conditions": {"ready": true}, "nodeName": "node2"},
            {"addresses": ["192.0.2.8"], "conditions": {"ready": false}}])
    );
    assert_eq!(to_value(&slices[1].ports), json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
    let labels = meta::labels(&slices[0].metadata);
    assert_eq!(
        (labels[SERVICE_NAME].as_str(), labels[MANAGED_BY].as_str(), labels["team"].as_str()),
        ("web", MIRROR, "b")
    );
    assert_eq!(to_value(&slices[0].metadata.annotations), json!({"note": "kept"}));
    assert_eq!(meta::controller(&slices[0].metadata).unwrap().uid, "ep-uid");
    let slices: Vec<_> = slices.into_iter().map(Arc::new).collect();
    let again = mirror(Some(&unselected()), &by_hand(json!({})), &slices);
    assert_eq!(again, Outcome::default(), "a second look changes nothing");
}

#[test]
fn mirrors_follow_what_they_mirror_and_go_when_there_is_nothing_to() {
    let outcome = mirror(Some(&unselected()), &by_hand(json!({})), &[]);
    let slices: Vec<Arc<discovery::EndpointSlice>> =
        outcome.effects.iter().map(|effect| Arc::new(object(effect))).collect();
    let less = by_hand(json!({"metadata": {"labels": {"team": null}}, "subsets": [{
        "addresses": [{"ip": "192.0.2.9"}], "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]}]}));
    let effects = mirror(Some(&unselected()), &less, &slices).effects;
    let kinds: Vec<bool> = effects.iter().map(|effect| matches!(effect, Effect::Merge { .. })).collect();
    assert_eq!((effects.len(), kinds.iter().filter(|merge| **merge).count()), (2, 1), "{effects:?}");
    let of_v4 = slices.iter().find(|slice| slice.address_type == "IPv4").unwrap();
    let after =
        merged(&**of_v4, effects.iter().find(|effect| matches!(effect, Effect::Merge { .. })).unwrap());
    assert_eq!(after.endpoints[0].addresses, ["192.0.2.9"]);
    assert!(!meta::labels(&after.metadata).contains_key("team"));
    let deletes = |service: Option<&Service>, endpoints: Endpoints| {
        let effects = mirror(service, &endpoints, &slices).effects;
        effects.iter().filter(|effect| matches!(effect, Effect::Delete { .. })).count() == 2
            && effects.len() == 2
    };
    let skips = json!({"metadata": {"labels": {SKIP_MIRROR: "true"}}});
    let leads = json!({"metadata": {"annotations": {LEADER: "{}"}}});
    assert!(deletes(Some(&service(json!({}))), by_hand(json!({}))), "pods are behind it");
    assert!(deletes(None, by_hand(json!({}))) && deletes(Some(&unselected()), by_hand(skips)));
    assert!(deletes(Some(&unselected()), by_hand(leads)));
}

#[test]
fn endpoints_made_here_go_with_their_service_and_are_never_mirrored() {
    let made = by_hand(json!({"metadata": {"labels": {WRITER_LABEL: WRITER}}}));
    let effects = mirror(None, &made, &[]).effects;
    let [Effect::Delete { target, uid, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!((target.kind, uid.as_str()), (Kind::Endpoints, "ep-uid"));
    assert_eq!(mirror(Some(&unselected()), &made, &[]), Outcome::default());
    assert_eq!(mirror(None, &by_hand(json!({})), &[]), Outcome::default(), "its service may be yet to come");
}
