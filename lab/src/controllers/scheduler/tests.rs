//! Where pods go, and what is said when there is no place for one.

use super::*;
use crate::controllers::testing::{merge, now, parse, pod};
use proptest::prelude::*;
use serde_json::Value;

fn node(name: &str, more: Value) -> Arc<Node> {
    let mut object = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "10"}}});
    merge(&mut object, more);
    Arc::new(parse(object))
}

fn three() -> Vec<Arc<Node>> {
    ["node1", "node2", "node3"].map(|name| node(name, json!({}))).to_vec()
}

fn asking(name: &str, cpu: &str, more: Value) -> Arc<Pod> {
    let mut object =
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
    merge(&mut object, more);
    pod(name, "app=web", Some(("ReplicaSet", "web", "rs")), object)
}

fn verdict(nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Verdict {
    schedule(nodes, pods, &Assumed::new()).pop().unwrap().verdict
}

fn nowhere(nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> String {
    match verdict(nodes, pods) {
        Verdict::Nowhere(why) => why,
        Verdict::Node(node) => panic!("went to {node}"),
    }
}

#[test]
fn pods_of_one_owner_are_spread_evenly() {
    let pods: Vec<Arc<Pod>> = (0..6).map(|n| asking(&format!("p{n}"), "100m", json!({}))).collect();
    let mut per_node = BTreeMap::<String, usize>::new();
    for decision in schedule(&three(), &pods, &Assumed::new()) {
        let Verdict::Node(node) = decision.verdict else { panic!("{decision:?}") };
        *per_node.entry(node).or_default() += 1;
    }
    assert_eq!(per_node.into_values().collect::<Vec<_>>(), [2, 2, 2]);
}

#[test]
fn pods_sent_but_not_yet_seen_take_their_room() {
    let pods = [asking("a", "1500m", json!({})), asking("b", "1500m", json!({}))];
    let assumed = Assumed::from([("uid-a".to_owned(), "node1".to_owned())]);
    let decisions = schedule(&three()[..1], &pods, &assumed);
    assert_eq!(decisions.len(), 1, "a is not sent twice");
    assert_eq!(
        decisions[0].verdict,
        Verdict::Nowhere("0/1 nodes are available: 1 Insufficient cpu.".to_owned())
    );
}

#[test]
fn every_refusal_is_told_with_its_count() {
    let taint = json!({"spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}});
    let cordoned = json!({"spec": {"unschedulable": true}});
    let small = json!({"status": {"allocatable": {"cpu": "100m"}}});
    let nodes = [node("a", taint), node("b", cordoned), node("c", small.clone()), node("d", small)];
    assert_eq!(
        nowhere(&nodes, &[asking("p", "1", json!({}))]),
        "0/4 nodes are available: 2 Insufficient cpu, 1 node(s) had untolerated taint {gpu: yes}, 1 node(s) were unschedulable."
    );
    assert_eq!(nowhere(&[], &[asking("p", "1", json!({}))]), "no nodes available to schedule pods");
}

#[test]
fn tolerations_open_tainted_nodes() {
    let nodes =
        [node("a", json!({"spec": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}}))];
    let tolerating = |toleration: Value| asking("p", "1", json!({"spec": {"tolerations": [toleration]}}));
    for good in [
        json!({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}),
        json!({"key": "gpu", "operator": "Exists"}),
        json!({"operator": "Exists"}),
        json!({"key": "gpu", "value": "yes"}),
    ] {
        assert_eq!(verdict(&nodes, &[tolerating(good.clone())]), Verdict::Node("a".into()), "{good}");
    }
    for bad in [
        json!({"key": "gpu", "value": "no"}),
        json!({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}),
    ] {
        nowhere(&nodes, &[tolerating(bad)]);
    }
}

#[test]
fn node_selectors_and_affinity_choose_among_labels_and_names() {
    let nodes =
        [node("a", json!({"metadata": {"labels": {"disk": "ssd", "size": "3"}}})), node("b", json!({}))];
    let affine = |term: Value| json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}});
    let expression = |operator: &str, values: Value| {
        affine(json!({"matchExpressions": [{"key": "size", "operator": operator, "values": values}]}))
    };
    for (more, expected) in [
        (json!({"spec": {"nodeSelector": {"disk": "ssd"}}}), "a"),
        (affine(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]})), "b"),
        (expression("Gt", json!(["2"])), "a"),
        (expression("DoesNotExist", json!([])), "b"),
    ] {
        assert_eq!(
            verdict(&nodes, &[asking("p", "1", more.clone())]),
            Verdict::Node(expected.into()),
            "{more}"
        );
    }
    let why = nowhere(&nodes, &[asking("p", "1", json!({"spec": {"nodeSelector": {"disk": "tape"}}}))]);
    assert_eq!(why, "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.");
}

#[test]
fn anti_affinity_holds_both_ways_and_affinity_follows() {
    let term =
        json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    let alone = json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}}});
    let near = json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}}});
    let pods: Vec<Arc<Pod>> = (0..4).map(|n| asking(&format!("p{n}"), "100m", alone.clone())).collect();
    let nodes = three();
    let decisions = schedule(&nodes, &pods, &Assumed::new());
    assert!(decisions[..3].iter().all(|d| matches!(d.verdict, Verdict::Node(_))), "{decisions:?}");
    assert!(
        matches!(&decisions[3].verdict, Verdict::Nowhere(why) if why.contains("anti-affinity")),
        "{decisions:?}"
    );
    let mut there = alone.clone();
    merge(&mut there, json!({"spec": {"nodeName": "node2"}}));
    let why =
        nowhere(&nodes[1..2], &[asking("there", "100m", there.clone()), asking("plain", "100m", json!({}))]);
    assert!(why.contains("existing pods anti-affinity"), "{why}");
    let anchor = asking("anchor", "100m", json!({"spec": {"nodeName": "node3"}}));
    assert_eq!(
        verdict(&nodes, &[anchor, asking("near", "100m", near.clone())]),
        Verdict::Node("node3".into())
    );
    assert_eq!(
        verdict(&nodes, &[asking("first", "100m", near)]),
        Verdict::Node("node1".into()),
        "the first of its group"
    );
}

#[test]
fn spread_constraints_keep_parts_of_the_topology_even() {
    let zone = |zone: &str| json!({"metadata": {"labels": {"zone": zone}}});
    let nodes = [node("a1", zone("a")), node("a2", zone("a")), node("b1", zone("b"))];
    let even = json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]}});
    let pods: Vec<Arc<Pod>> = (0..4).map(|n| asking(&format!("p{n}"), "100m", even.clone())).collect();
    let in_b = schedule(&nodes, &pods, &Assumed::new())
        .iter()
        .filter(|d| d.verdict == Verdict::Node("b1".into()))
        .count();
    assert_eq!(in_b, 2);
}

#[test]
fn host_ports_are_held_by_one_pod_per_node() {
    let port =
        json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}});
    let pods = [asking("a", "1", port.clone()), asking("b", "1", port)];
    assert!(nowhere(&three()[..1], &pods).contains("80/TCP"));
}

#[test]
fn the_reason_is_written_once_and_a_place_is_bound() {
    let mut pod = (*asking("p", "99", json!({}))).clone();
    let effects_now =
        |pod: &Pod| effects(&schedule(&three(), &[Arc::new(pod.clone())], &Assumed::new()), now());
    let [Effect::MergeStatus { body, .. }, Effect::Tell { reason, .. }] = &effects_now(&pod)[..] else {
        panic!()
    };
    assert_eq!(
        (*reason, &body["status"]["conditions"][0]["reason"]),
        ("FailedScheduling", &json!("Unschedulable"))
    );
    pod.status = Some(parse(body["status"].clone()));
    assert_eq!(effects_now(&pod), []);
    let bound = effects(&schedule(&three(), &[asking("p", "1", json!({}))], &Assumed::new()), now());
    assert!(
        matches!(&bound[..], [Effect::Bind { node, .. }, Effect::Tell { .. }] if node == "node1"),
        "{bound:?}"
    );
}

#[test]
fn gated_foreign_and_finished_pods_are_left_alone() {
    let pods = [
        asking("gated", "1", json!({"spec": {"schedulingGates": [{"name": "x"}]}})),
        asking("foreign", "1", json!({"spec": {"schedulerName": "other"}})),
        asking("failed", "1", json!({"status": {"phase": "Failed"}})),
        asking("going", "1", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
    ];
    assert_eq!(schedule(&three(), &pods, &Assumed::new()), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// However pods are listed, each goes to the same place, and no node takes more than it has.
    #[test]
    fn order_of_listing_does_not_matter(sizes in prop::collection::vec(1..20u32, 0..30), seed in any::<u64>()) {
        let pods: Vec<Arc<Pod>> =
            sizes.iter().enumerate().map(|(n, size)| asking(&format!("p{n:02}"), &format!("{}m", size * 100), json!({}))).collect();
        let mut shuffled = pods.clone();
        let count = shuffled.len().max(1);
        for index in 0..shuffled.len() {
            let with = usize::try_from(seed.rotate_left(u32::try_from(index).unwrap()) % (count as u64)).unwrap();
            shuffled.swap(index, with);
        }
        let nodes = three();
        let (one, other) = (schedule(&nodes, &pods, &Assumed::new()), schedule(&nodes, &shuffled, &Assumed::new()));
        prop_assert_eq!(&one, &other);
        let mut used = BTreeMap::<String, u32>::new();
        for decision in one {
            let Verdict::Node(node) = decision.verdict else { continue };
            let at: usize = meta::name(&decision.pod.metadata)[1..].parse().unwrap();
            *used.entry(node).or_default() += sizes[at] * 100;
        }
        prop_assert!(used.values().all(|used| *used <= 2000), "{used:?}");
    }
}
