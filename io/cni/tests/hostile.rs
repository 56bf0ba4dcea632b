//! Whatever comes in through environment and stdin: the plugin ends with a code and says why in JSON; it never panics.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};
use weft_cni::{Invocation, NetConf, code, plugin_main};

const KEYS: [&str; 7] =
    ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH", "UNRELATED"];

fn environment() -> impl Strategy<Value = BTreeMap<String, String>> {
    let verb = prop_oneof![
        Just("ADD"),
        Just("DEL"),
        Just("CHECK"),
        Just("STATUS"),
        Just("GC"),
        Just("VERSION"),
        Just("add"),
        Just("")
    ];
    let value = prop_oneof![
        any::<String>(),
        "[a-z0-9./:;=_-]{0,40}",
        Just("eth0".to_owned()),
        Just("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b".to_owned()),
        Just("x".repeat(5000)),
    ];
    (verb, prop::collection::btree_map(prop::sample::select(&KEYS[1..]), value, 0..7)).prop_map(
        |(verb, rest)| {
            let mut env: BTreeMap<String, String> =
                rest.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            env.insert(KEYS[0].to_owned(), verb.to_owned());
            env
        },
    )
}

fn any_json() -> impl Strategy<Value = Value> + Clone {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z0-9./]{0,12}".prop_map(Value::from),
        Just(Value::from("1.1.0")),
        Just(Value::from("/nowhere/agent.sock")),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A good configuration with any field replaced by anything.
fn configuration() -> impl Strategy<Value = Vec<u8>> {
    let field = prop::sample::select(vec![
        "cniVersion",
        "name",
        "type",
        "agentSocket",
        "prevResult",
        "ipam",
        "cni.dev/valid-attachments",
        "dns",
        "args",
    ]);
    let cut = prop_oneof![4 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    let mutated = (prop::collection::vec((field, any_json()), 0..4), cut).prop_map(|(changes, cut)| {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "n", "agentSocket": "/nowhere/agent.sock"});
        for (field, value) in changes {
            conf[field] = value;
        }
        let mut bytes = conf.to_string().into_bytes();
        bytes.truncate(cut.map_or(bytes.len(), |cut| cut.index(bytes.len())));
        bytes
    });
    prop_oneof![4 => mutated, 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 3_000, failure_persistence: None, rng_seed: RngSeed::Fixed(11), ..ProptestConfig::default()
    })]

    #[test]
    fn every_input_gets_an_answer(env in environment(), input in configuration()) {
        // ADD and GC wait a second for an agent that starts; nothing is learnt by waiting here.
        let waits = matches!(env["CNI_COMMAND"].as_str(), "ADD" | "GC" | "CHECK");
        if waits && Invocation::parse(&env).is_ok() && NetConf::parse(&input).is_ok() {
            return Ok(());
        }
        let mut output = Vec::new();
        let exit = plugin_main(env, &input[..], &mut output);
        match exit {
            0 => prop_assert!(output.is_empty() || serde_json::from_slice::<Value>(&output).is_ok()),
            1 => {
                let error: Value = serde_json::from_slice(&output).unwrap();
                prop_assert!(error["code"].as_u64().is_some_and(|code| code > 0), "{error}");
                prop_assert!(error["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{error}");
                prop_assert!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"].contains(&error["cniVersion"].as_str().unwrap()));
            }
            other => prop_assert!(false, "exit code {other}"),
        }
    }
}

#[test]
fn endless_input_is_cut_off() {
    let env = [("CNI_COMMAND".to_owned(), "STATUS".to_owned())];
    let mut output = Vec::new();
    assert_eq!(plugin_main(env, std::io::repeat(b' '), &mut output), 1);
    let error: Value = serde_json::from_slice(&output).unwrap();
    assert_eq!(error["code"], code::INVALID_CONFIG);
}
