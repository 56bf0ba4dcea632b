//! Nothing a cluster or a wire can hold makes the parsers, the compiler or the judges panic.
//!
//! Manifests are valid ones with parts replaced; packets are good ones with bytes changed, and noise. Bounded by a
//! number of cases: `WEFT_FUZZ_CASES` (10,000 if absent).

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_decide::{
    Arrival, Asker, Chance, Epoch, MemoryFlows, Moment, Owner, Packet, Time, connect, from_net, from_pod,
    matrix, to_pod,
};
use weft_model::testing::{Cluster, clusters, frames_for};
use weft_model::{Finding, NodeName, Protocol, Severity};

fn runner() -> TestRunner {
    let given = std::env::var("WEFT_FUZZ_CASES").ok();
    let cases = given.map_or(10_000, |text| text.parse().expect("WEFT_FUZZ_CASES is a number"));
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// Values that are wrong in their own ways.
fn replacement() -> impl Strategy<Value = Value> {
    const TEXTS: [&str; 22] = [
        "",
        " ",
        "-",
        "/",
        "0",
        "65536",
        "::",
        "::/0",
        "0.0.0.0/0",
        "10.0.0.0/33",
        "fe80::1%eth0",
        "TCP",
        "tcp",
        "None",
        "In",
        "Exists",
        "a/b/c",
        "\u{0}",
        "ÅÄÖ",
        "10.244.1.10",
        "::ffff:10.0.0.1",
        "kubernetes.io/service-name",
    ];
    prop_oneof![
        3 => prop::sample::select(&TEXTS[..]).prop_map(Value::from).boxed(),
        2 => prop_oneof![Just(-1i64), Just(0), Just(1), Just(65535), Just(65536), any::<i64>()].prop_map(Value::from),
        1 => Just(Value::Null),
        1 => Just(json!([])),
        1 => Just(json!({})),
        1 => any::<bool>().prop_map(Value::from),
        1 => ".{0,12}".prop_map(Value::from),
    ]
}

type Change = (prop::sample::Index, Value);

/// Replaces the part of `value` that comes at `place` when all parts are counted.
fn replace(value: &mut Value, place: usize, with: &Value) {
    fn walk(value: &mut Value, left: &mut usize, with: &Value) -> bool {
        if *left == 0 {
            *value = with.clone();
            return true;
        }
        *left -= 1;
        match value {
            Value::Array(list) => list.iter_mut().any(|item| walk(item, left, with)),
            Value::Object(map) => map.values_mut().any(|item| walk(item, left, with)),
            _ => false,
        }
    }
    walk(value, &mut place.clone(), with);
}

fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(size).sum(),
        Value::Object(map) => map.values().map(size).sum(),
        _ => 0,
    }
}

/// The list with one object changed, if it still is an object of its kind.
fn mutate<T: Serialize + DeserializeOwned>(list: &mut [T], changes: &[Change]) {
    if list.is_empty() {
        return;
    }
    for (place, with) in changes {
        let at = place.index(list.len());
        let mut value = serde_json::to_value(&list[at]).expect("an object serializes");
        let part = place.index(size(&value));
        replace(&mut value, part, with);
        if let Ok(changed) = serde_json::from_value(value) {
            list[at] = changed;
        }
    }
}

fn mutated(cluster: &Cluster, changes: &[Change]) -> Cluster {
    let mut cluster = cluster.clone();
    mutate::<core::Namespace>(&mut cluster.namespaces, changes);
    mutate::<core::Node>(&mut cluster.nodes, changes);
    mutate::<core::Pod>(&mut cluster.pods, changes);
    mutate::<core::Service>(&mut cluster.services, changes);
    mutate::<discovery::EndpointSlice>(&mut cluster.slices, changes);
    mutate::<networking::NetworkPolicy>(&mut cluster.policies, changes);
    cluster
}

#[test]
fn no_manifest_makes_anything_panic() {
    let worlds = (clusters(), vec((any::<prop::sample::Index>(), replacement()), 1..4));
    let outcome = runner().run(&worlds, |(cluster, changes)| {
        let cluster = mutated(&cluster, &changes);
        let (snapshot, mut findings) = cluster.parse();
        for node in cluster.node_names().into_iter().chain([NodeName::new("nowhere")]) {
            let compiled = weft_compile::compile(&cluster.snapshot_on(&node), &node);
            prop_assert!(!compiled.plan.to_string().is_empty());
            findings.extend(compiled.findings);
        }
        findings.extend(weft_compile::check(&snapshot));
        matrix(&snapshot);
        for Finding { severity, object, message, .. } in findings {
            prop_assert!(!object.is_empty() && !message.is_empty(), "{:?}", severity);
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// A part of a policy that is told to be in error must never open what the whole policy kept shut: with the policy
/// broken, a pod it isolated is isolated still.
#[test]
fn a_broken_policy_still_isolates() {
    let worlds = (clusters(), vec((any::<prop::sample::Index>(), replacement()), 1..2));
    let outcome = runner().run(&worlds, |(cluster, changes)| {
        let mut broken = cluster.clone();
        mutate::<networking::NetworkPolicy>(&mut broken.policies, &changes);
        let same_place = |one: &networking::NetworkPolicy, other: &networking::NetworkPolicy| {
            let spec = |policy: &networking::NetworkPolicy| policy.spec.clone().unwrap_or_default();
            let (one_spec, other_spec) = (spec(one), spec(other));
            one.metadata == other.metadata
                && one_spec.policy_types == other_spec.policy_types
                && one_spec.egress.is_some() == other_spec.egress.is_some()
        };
        let comparable =
            cluster.policies.iter().zip(&broken.policies).all(|(one, other)| same_place(one, other));
        let (_, findings) = broken.parse();
        let is_policy = |finding: &&Finding| finding.object.starts_with("NetworkPolicy");
        let errors = findings.iter().filter(is_policy).filter(|finding| finding.severity == Severity::Error);
        let errors: Vec<&Finding> = errors.collect();
        if !comparable || errors.is_empty() {
            return Ok(());
        }
        for node in cluster.node_names() {
            let whole = weft_compile::compile(&cluster.snapshot_on(&node), &node).plan;
            let now = weft_compile::compile(&broken.snapshot_on(&node), &node).plan;
            for (addr, endpoint) in &whole.endpoints {
                let after = &now.endpoints[addr];
                prop_assert!(endpoint.ingress.is_none() || after.ingress.is_some(), "{:?}", errors);
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn no_frame_makes_anything_panic() {
    let worlds = clusters().prop_flat_map(|cluster| {
        let frames = prop_oneof![
            4 => frames_for(&cluster),
            1 => vec(any::<u8>(), 0..120),
            1 => (prop::sample::select(&[[8u8, 0], [0x86, 0xdd]][..]), vec(any::<u8>(), 0..120)).prop_map(|(kind, rest)| {
                [&[2u8; 12][..], &kind, &rest].concat()
            }),
        ];
        (Just(cluster), vec(frames, 1..20), any::<u32>())
    });
    let outcome = runner().run(&worlds, |(cluster, frames, entropy)| {
        let node = NodeName::new("node1");
        let plan = weft_compile::compile(&cluster.snapshot_on(&node), &node).plan;
        let mut flows = MemoryFlows::default();
        for (step, frame) in frames.iter().enumerate() {
            let at = Moment { time: Time(step as u64), epoch: Epoch(step as u32 / 5) };
            let packet = Packet::parse(frame);
            for endpoint in plan.endpoints.values() {
                from_pod(&plan, &mut flows, at, &endpoint.pod, &packet);
                to_pod(&plan, &mut flows, at, &endpoint.pod, &packet);
            }
            from_net(&plan, &mut flows, at, Arrival::Uplink, &packet);
            if let Ok(Packet { destination, body: Ok(body), .. }) = packet {
                let port = body.destination_port;
                let chance = Chance { entropy, last: Some((destination, port)) };
                for owner in [Owner::Pod, Owner::Node] {
                    let asker = Asker { owner, netns_cookie: entropy.into() };
                    for protocol in [Protocol::TCP, Protocol::UDP] {
                        connect(&plan, asker, protocol, destination, port, chance);
                    }
                }
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
