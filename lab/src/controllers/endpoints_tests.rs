//! Slices from services and pods: what is in them, and how little changes.

use super::*;
use crate::controllers::testing::{merge, now, parse, pod};
use proptest::prelude::*;
use serde_json::Value;

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
        "status": {"phase": "Running", "podIP": format!("10.244.0.{number}"),
            "podIPs": [{"ip": format!("10.244.0.{number}")}, {"ip": format!("fd00::{number}")}],
            "conditions": [{"type": "Ready", "status": "True"}]},
    });
    merge(&mut object, more);
    pod(name, "app=web", None, object)
}

fn nodes() -> Vec<Arc<Node>> {
    vec![Arc::new(parse(
        json!({"metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": "z1"}}}),
    ))]
}

/// Applies effects to a set of slices, as the API server would.
fn apply(slices: &mut Vec<Arc<EndpointSlice>>, outcome: &Outcome) {
    for effect in &outcome.effects {
        match effect {
            Effect::Create { target, body } => {
                assert!(
                    !slices.iter().any(|s| meta::name(&s.metadata) == target.name),
                    "{} made twice",
                    target.name
                );
                let mut object = body.clone();
                merge(&mut object, json!({"metadata": {"uid": format!("uid-{}", target.name)}}));
                slices.push(Arc::new(parse(object)));
            }
            Effect::Merge { target, body } => {
                let slice = slices.iter_mut().find(|s| meta::name(&s.metadata) == target.name).unwrap();
                let mut object = to_value(&**slice);
                merge(&mut object, body.clone());
                *slice = Arc::new(parse(object));
            }
            Effect::Delete { target, .. } => slices.retain(|s| meta::name(&s.metadata) != target.name),
            Effect::Tell { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

fn settled(service: &Service, pods: &[Arc<Pod>]) -> Vec<Arc<EndpointSlice>> {
    let mut slices = Vec::new();
    apply(&mut slices, &reconcile(service, pods, &nodes(), &[]));
    let again = reconcile(service, pods, &nodes(), &slices);
    assert_eq!(again, Outcome::default(), "a second look changes nothing");
    slices
}

fn of<'a>(slices: &'a [Arc<EndpointSlice>], family: &str) -> Vec<&'a EndpointSlice> {
    slices.iter().map(AsRef::as_ref).filter(|slice| slice.address_type == family).collect()
}

/// Proves spec.selector: Pods it selects become endpoints, one set of slices for each family.
#[test]
fn one_slice_per_family_with_everything_consumers_read() {
    let slices = settled(&service(json!({})), &[backend("a", 1, json!({}))]);
    assert_eq!(slices.len(), 2);
    let v4 = of(&slices, "IPv4")[0];
    assert_eq!(
        to_value(v4)["endpoints"],
        json!([{"addresses": ["10.244.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": "node1", "zone": "z1",
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "a", "uid": "uid-a"}}])
    );
    assert_eq!(to_value(v4)["ports"], json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
    let labels = meta::labels(&v4.metadata);
    assert_eq!(
        (labels[SERVICE_NAME].as_str(), labels[MANAGED_BY].as_str(), labels["team"].as_str()),
        ("web", MANAGER, "a")
    );
    assert_eq!(meta::controller(&v4.metadata).unwrap().uid, "svc-uid");
    assert_eq!(of(&slices, "IPv6")[0].endpoints[0].addresses, ["fd00::1"]);
}

/// Proves spec.publishNotReadyAddresses: Endpoints count as ready whether or not their pods are.
#[test]
fn conditions_tell_ready_serving_and_terminating_apart() {
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let mut unready_going = unready.clone();
    merge(&mut unready_going, going.clone());
    let publish = json!({"spec": {"publishNotReadyAddresses": true}});
    let cases = [
        (json!({}), json!({}), Some((true, true, false))),
        (json!({}), unready.clone(), Some((false, false, false))),
        (json!({}), going.clone(), Some((false, true, true))),
        (json!({}), unready_going, Some((false, false, true))),
        (publish.clone(), unready, Some((true, false, false))),
        (publish, going, Some((true, true, true))),
        (json!({}), json!({"status": {"phase": "Succeeded"}}), None),
        (json!({}), json!({"status": {"podIP": null, "podIPs": null}}), None),
    ];
    for (more_service, more_pod, expected) in cases {
        let slices = settled(&service(more_service), &[backend("a", 1, more_pod.clone())]);
        let conditions = of(&slices, "IPv4")[0].endpoints.first().map(|e| {
            let c = e.conditions.as_ref().unwrap();
            (c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
        });
        assert_eq!(conditions, expected, "{more_pod}");
    }
}

/// Proves spec.ports.targetPort: A number, or a name that pods may give different numbers.
#[test]
fn pods_whose_named_port_differs_are_in_slices_of_their_own() {
    let other =
        json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 9090}]}]}});
    let none = json!({"spec": {"containers": [{"name": "c"}]}});
    let pods = [backend("a", 1, json!({})), backend("b", 2, other), backend("c", 3, none)];
    let slices = settled(&service(json!({"spec": {"ipFamilies": ["IPv4"]}})), &pods);
    let mut seen: Vec<(Vec<i32>, String)> = slices
        .iter()
        .map(|s| {
            (s.ports.iter().flatten().filter_map(|p| p.port).collect(), s.endpoints[0].addresses[0].clone())
        })
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            (vec![], "10.244.0.3".to_owned()),
            (vec![8080], "10.244.0.1".to_owned()),
            (vec![9090], "10.244.0.2".to_owned())
        ]
    );
}

#[test]
fn headless_services_say_so_and_name_their_hosts() {
    let headless = json!({"spec": {"clusterIP": "None", "ports": null}});
    let named = json!({"spec": {"hostname": "db-0", "subdomain": "web"}});
    let elsewhere = json!({"spec": {"hostname": "db-1", "subdomain": "other"}});
    let slices = settled(&service(headless), &[backend("a", 1, named), backend("b", 2, elsewhere)]);
    let v4 = of(&slices, "IPv4")[0];
    assert!(meta::labels(&v4.metadata).contains_key(HEADLESS));
    let mut hosts: Vec<Option<&str>> = v4.endpoints.iter().map(|e| e.hostname.as_deref()).collect();
    hosts.sort();
    assert_eq!(hosts, [None, Some("db-0")]);
}

/// Proves spec.trafficDistribution: Becomes hints on ready endpoints.
#[test]
fn traffic_distribution_becomes_hints_on_ready_endpoints() {
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let homeless = json!({"spec": {"nodeName": "node9"}});
    let zone = json!({"forZones": [{"name": "z1"}]});
    let node = json!({"forNodes": [{"name": "node1"}], "forZones": [{"name": "z1"}]});
    for (distribution, pod, expected) in [
        (Value::Null, json!({}), Value::Null),
        (json!("PreferClose"), json!({}), zone.clone()),
        (json!("PreferSameZone"), json!({}), zone),
        (json!("PreferSameNode"), json!({}), node),
        (json!("PreferClose"), unready.clone(), Value::Null),
        (json!("PreferSameNode"), unready, Value::Null),
        (json!("PreferSameZone"), homeless.clone(), Value::Null),
        (json!("PreferSameNode"), homeless, json!({"forNodes": [{"name": "node9"}]})),
    ] {
        let service = service(json!({"spec": {"trafficDistribution": distribution}}));
        let slices = settled(&service, &[backend("a", 1, pod)]);
        assert_eq!(to_value(&slices[0])["endpoints"][0]["hints"], expected, "{distribution}");
    }
}

#[test]
fn hints_follow_the_service_in_place() {
    let pods = [backend("a", 1, json!({}))];
    let mut slices = settled(&service(json!({})), &pods);
    let names: Vec<String> = slices.iter().map(|slice| meta::name(&slice.metadata).to_owned()).collect();
    for distribution in [json!("PreferSameNode"), json!("PreferClose"), Value::Null] {
        let service = service(json!({"spec": {"trafficDistribution": distribution}}));
        let outcome = reconcile(&service, &pods, &nodes(), &slices);
        apply(&mut slices, &outcome);
        assert_eq!(reconcile(&service, &pods, &nodes(), &slices), Outcome::default());
        let hinted = slices.iter().all(|slice| slice.endpoints[0].hints.is_some());
        assert_eq!(hinted, !distribution.is_null());
    }
    assert!(slices.iter().all(|slice| names.contains(&meta::name(&slice.metadata).to_owned())));
}

#[test]
fn topology_mode_is_said_to_be_ignored_when_endpoints_change() {
    let asked =
        service(json!({"metadata": {"annotations": {"service.kubernetes.io/topology-mode": "Auto"}}}));
    let told = |outcome: &Outcome| {
        outcome.effects.iter().filter(|effect| matches!(effect, Effect::Tell { .. })).count()
    };
    let mut slices = Vec::new();
    let outcome = reconcile(&asked, &[backend("a", 1, json!({}))], &nodes(), &slices);
    apply(&mut slices, &outcome);
    assert_eq!(told(&outcome), 1);
    assert_eq!(reconcile(&asked, &[backend("a", 1, json!({}))], &nodes(), &slices), Outcome::default());
}

#[test]
fn services_that_become_a_name_lose_their_endpoints() {
    let pods = [backend("a", 1, json!({}))];
    let mut slices = settled(&service(json!({})), &pods);
    let name = service(json!({"spec": {"type": "ExternalName", "ipFamilies": null, "clusterIP": null}}));
    let outcome = reconcile(&name, &pods, &nodes(), &slices);
    apply(&mut slices, &outcome);
    assert!(slices.is_empty(), "{slices:?}");
}

#[test]
fn a_service_nobody_serves_has_one_empty_slice_and_one_without_selector_none() {
    let slices = settled(&service(json!({"spec": {"ipFamilies": ["IPv4"]}})), &[]);
    assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 0));
    assert!(settled(&service(json!({"spec": {"selector": null}})), &[backend("a", 1, json!({}))]).is_empty());
}

#[test]
fn the_empty_slice_is_replaced_when_the_first_pod_comes() {
    let service = service(json!({"spec": {"ipFamilies": ["IPv4"]}}));
    let mut slices = settled(&service, &[]);
    let pods = [backend("a", 1, json!({}))];
    let outcome = reconcile(&service, &pods, &nodes(), &slices);
    apply(&mut slices, &outcome);
    assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 1));
}

#[test]
fn a_readiness_change_touches_one_slice_of_many() {
    let ready = |number: u8, value: &str| {
        backend(
            &format!("p{number:03}"),
            number,
            json!({"status": {"conditions": [{"type": "Ready", "status": value}]}}),
        )
    };
    let service = service(json!({"spec": {"ipFamilies": ["IPv4"]}}));
    let mut pods: Vec<Arc<Pod>> = (0..250).map(|number| ready(number, "True")).collect();
    let slices = settled(&service, &pods);
    let mut sizes: Vec<usize> = slices.iter().map(|slice| slice.endpoints.len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [50, 100, 100]);
    pods[120] = ready(120, "False");
    let outcome = reconcile(&service, &pods, &nodes(), &slices);
    let [Effect::Merge { body, .. }] = &outcome.effects[..] else { panic!("{:?}", outcome.effects.len()) };
    assert_eq!(body["endpoints"].as_array().unwrap().len(), 100);
}

#[test]
fn slices_of_others_are_left_alone() {
    let foreign: EndpointSlice = parse(json!({
        "metadata": {"name": "mine", "namespace": "shop", "labels": {SERVICE_NAME: "web", MANAGED_BY: "somebody"}},
        "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}],
    }));
    let outcome = reconcile(&service(json!({})), &[], &nodes(), &[Arc::new(foreign)]);
    assert!(outcome.effects.iter().all(|effect| matches!(effect, Effect::Create { .. })), "{outcome:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever pods came and went in between, the slices in the end hold exactly the pods there are.
    #[test]
    fn history_leaves_no_trace(steps in prop::collection::vec(prop::collection::vec(0..250u8, 0..230), 1..5)) {
        let _ = now();
        let service = service(json!({"spec": {"ipFamilies": ["IPv4"]}}));
        let mut slices = Vec::new();
        for step in &steps {
            let present: std::collections::BTreeSet<u8> = step.iter().copied().collect();
            let pods: Vec<Arc<Pod>> = present.iter().map(|n| backend(&format!("p{n}"), *n, json!({}))).collect();
            let before = slices.clone();
            apply(&mut slices, &reconcile(&service, &pods, &nodes(), &before));
            let mut held: Vec<String> = slices.iter().flat_map(|s| &s.endpoints).map(|e| e.addresses[0].clone()).collect();
            let mut expected: Vec<String> = present.iter().map(|n| format!("10.244.0.{n}")).collect();
            held.sort();
            expected.sort();
            prop_assert_eq!(held, expected);
            prop_assert!(slices.iter().all(|s| s.endpoints.len() <= 100));
            prop_assert_eq!(reconcile(&service, &pods, &nodes(), &slices), Outcome::default());
        }
    }
}
