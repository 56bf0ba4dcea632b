//! The plugin as a runtime runs it, against an agent whose links are imaginary: verbs, codes, order, faults.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};
use support::{Call, FakeNetwork, Node, OWN_NETNS, PLUGIN};

const MULTI: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_in_every_version() {
    let node = Node::new();
    let agent = node.agent(FakeNetwork::new()).await;
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut conf = node.conf();
        conf["cniVersion"] = version.into();
        let id = format!("c-{version}");
        let call = |verb: &str| Call::new(verb, &id, &conf);

        let versions = Call::new("VERSION", "", &conf).run().await.ok();
        assert_eq!(versions["cniVersion"], version);
        assert_eq!(versions["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));

        let result = call("ADD").run().await.ok();
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["interfaces"][1]["sandbox"], OWN_NETNS);
        assert_eq!(call("ADD").run().await.ok(), result, "a repeated ADD answers the same");

        let check = call("CHECK").conf("prevResult", result);
        if version == "0.3.1" {
            assert_eq!(check.run().await.error().0, 1);
            assert_eq!(Call::new("STATUS", "", &conf).run().await.error().0, 1);
            assert_eq!(Call::new("GC", "", &conf).run().await.error().0, 1);
        } else {
            assert_eq!(check.run().await.ok(), Value::Null);
        }
        assert_eq!(call("DEL").run().await.ok(), Value::Null);
        assert_eq!(call("DEL").run().await.ok(), Value::Null, "a repeated DEL is success");
    }
    assert_eq!(Call::new("STATUS", "", &node.conf()).run().await.ok(), Value::Null);
    assert_eq!(agent.network.count(), 0);
    assert!(agent.service.usage().iter().all(|usage| usage.used == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_has_the_code_the_specification_gives_it() {
    let node = Node::new();
    let _agent = node.agent(FakeNetwork::new()).await;
    let conf = node.conf();
    let add = || Call::new("ADD", "c1", &conf);
    let unset = |key: &str| {
        let mut call = add();
        call.env.remove(key);
        call
    };
    let check = || Call::new("CHECK", "c1", &conf);
    for (code, names, call) in [
        (1, "cniVersion", add().conf("cniVersion", "0.2.0".into())),
        (2, "ipam", add().conf("ipam", json!({"type": "host-local"}))),
        (3, "c1", check().conf("prevResult", json!({}))),
        (4, "CNI_CONTAINERID", unset("CNI_CONTAINERID")),
        (4, "CNI_NETNS", unset("CNI_NETNS")),
        (4, "CNI_COMMAND", unset("CNI_COMMAND")),
        (4, "CNI_COMMAND", add().env("CNI_COMMAND", "PUT")),
        (4, "/etc/passwd", add().env("CNI_NETNS", "/etc/passwd")),
        (7, "agentSocket", add().conf("agentSocket", Value::Null)),
        (7, "prevResult", check()),
        (7, "prevResult.ips", add().conf("prevResult", json!({"ips": 1}))),
        (7, "cni.dev/valid-attachments", Call::new("GC", "", &conf)),
    ] {
        let (got, message) = call.run().await.error();
        assert_eq!(got, code, "{message}");
        assert!(message.contains(names), "{message:?} does not name {names}");
    }
    let raw = Call { conf: Value::String("not an object".into()), ..add() };
    assert_eq!(raw.run().await.error().0, 6);
    // Nothing of all this may have left a trace.
    assert_eq!(_agent.network.count(), 0);
    assert!(_agent.service.usage().iter().all(|usage| usage.used == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_what_changed() {
    let node = Node::new();
    let agent = node.agent(FakeNetwork::new()).await;
    let result = Call::new("ADD", "c1", &node.conf()).run().await.ok();
    let check = Call::new("CHECK", "c1", &node.conf()).conf("prevResult", result);
    check.run().await.ok();
    let (code, message) = check.clone().env("CNI_NETNS", "/run/other").run().await.error();
    assert_eq!(code, 102, "{message}");
    agent.network.links.lock().unwrap().clear();
    let (code, message) = check.run().await.error();
    assert_eq!(code, 102);
    assert!(message.contains("wf"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_pool_is_named_and_heals() {
    let node = Node::with_pods(&["10.244.1.0/30", "fd00::/64"]);
    let agent = node.agent(FakeNetwork::new()).await;
    Call::new("ADD", "c1", &node.conf()).run().await.ok();
    let (code, message) = Call::new("ADD", "c2", &node.conf()).run().await.error();
    assert_eq!(code, 101);
    assert!(message.contains("10.244.1.0/30: 1 of 1 in use"), "{message}");
    Call::new("DEL", "c1", &node.conf()).run().await.ok();
    Call::new("ADD", "c2", &node.conf()).run().await.ok();
    assert_eq!(agent.service.attachments().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_pod_cidr_the_node_is_not_ready_yet() {
    let node = Node::with_pods(&[]);
    let agent = node.agent(FakeNetwork::new()).await;
    assert_eq!(Call::new("STATUS", "", &node.conf()).run().await.error().0, 50);
    assert_eq!(Call::new("ADD", "c1", &node.conf()).run().await.error().0, 11);
    agent.service.set_pod_cidrs(&["10.0.0.0/24".parse().unwrap()]).unwrap();
    Call::new("STATUS", "", &node.conf()).run().await.ok();
    Call::new("ADD", "c1", &node.conf()).run().await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_agent_is_away_deletions_wait_and_additions_are_told_to_come_back() {
    let node = Node::new();
    let agent = node.agent(FakeNetwork::new()).await;
    for id in ["c1", "c2", "c3"] {
        Call::new("ADD", id, &node.conf()).run().await.ok();
    }
    let network = agent.kill().await;

    assert_eq!(Call::new("STATUS", "", &node.conf()).run().await.error().0, 50);
    assert_eq!(Call::new("ADD", "c4", &node.conf()).run().await.error().0, 11);
    for id in ["c1", "c2", "never-was"] {
        Call::new("DEL", id, &node.conf()).run().await.ok();
    }
    assert_eq!((network.count(), node.queued()), (3, 3));

    let agent = node.agent(network).await;
    // The runtime comes back with c2 before the queue was read: the old one must still go first.
    let result = Call::new("ADD", "c2", &node.conf()).run().await.ok();
    assert_eq!(result["ips"][0]["address"], "10.244.1.5/32");
    let recovered = agent.service.recover().await;
    assert_eq!((recovered.deletions, recovered.failures.len()), (2, 0));
    assert_eq!(node.queued(), 0);
    let left: Vec<String> =
        agent.service.attachments().into_iter().map(|found| found.owner.container_id).collect();
    assert_eq!(left, ["c2", "c3"]);
    assert_eq!(agent.network.count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_has_nothing_to_delete() {
    let mut conf = Node::new().conf();
    conf["agentSocket"] = "/nowhere/agent.sock".into();
    assert_eq!(Call::new("DEL", "c1", &conf).run().await.ok(), Value::Null);
    assert!(!Path::new("/nowhere").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_containers_at_once_each_called_twice() {
    let node = Node::new();
    let agent = node.agent(FakeNetwork::new()).await;
    let all = |verb: &'static str| {
        let calls = (0..MULTI * 2).map(|n| {
            let call = Call::new(verb, &format!("c{}", n % MULTI), &node.conf());
            async move { call.run().await.ok() }
        });
        futures::future::join_all(calls)
    };
    let results = all("ADD").await;
    let addresses: BTreeSet<String> = results.iter().map(|result| result["ips"].to_string()).collect();
    assert_eq!(addresses.len(), MULTI, "one pair of addresses for each container");
    assert_eq!(agent.network.count(), MULTI);
    all("DEL").await;
    assert_eq!(agent.network.count(), 0);
    assert!(agent.service.usage().iter().all(|usage| usage.used == 0));
    assert_eq!(agent.network.overlaps.load(Ordering::SeqCst), 0, "calls for one container overlapped");
}

#[tokio::test(flavor = "multi_thread")]
async fn additions_and_deletions_of_the_same_containers_at_once_leave_nothing() {
    let node = Node::new();
    let agent = node.agent(FakeNetwork::new()).await;
    let calls = (0..MULTI * 2).map(|n| {
        let verb = if n % 2 == 0 { "ADD" } else { "DEL" };
        let call = Call::new(verb, &format!("c{}", n / 2 % 10), &node.conf());
        async move { call.run().await.ok() }
    });
    futures::future::join_all(calls).await;
    assert_eq!(agent.network.overlaps.load(Ordering::SeqCst), 0);
    let used = agent.service.usage()[0].used;
    assert_eq!((agent.network.count(), agent.service.attachments().len()), (used, used));
    for n in 0..10 {
        Call::new("DEL", &format!("c{n}"), &node.conf()).run().await.ok();
    }
    assert_eq!(agent.network.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_killed_half_way_leaves_nothing() {
    let node = Node::new();
    let agent = node.agent(FakeNetwork::with_gate(0)).await;
    let mut plugin = Call::new("ADD", "c1", &node.conf()).spawn(Path::new(PLUGIN)).await;
    agent.network.waiting.acquire().await.unwrap().forget();
    assert_eq!(agent.network.count(), 1);
    plugin.kill().await.unwrap();
    agent.ended.acquire().await.unwrap().forget();
    agent.network.gate.add_permits(1);
    agent.network.detached.acquire().await.unwrap().forget();
    // Queues behind the one under way.
    Call::new("DEL", "c1", &node.conf()).run().await.ok();
    assert_eq!(agent.network.count(), 0);
    assert!(agent.service.usage().iter().all(|usage| usage.used == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_half_way_leaves_nothing() {
    let node = Node::new();
    let agent = node.agent(FakeNetwork::with_gate(0)).await;
    let waiting = Arc::clone(&agent.network);
    let plugin = Call::new("ADD", "c1", &node.conf()).spawn(Path::new(PLUGIN)).await;
    waiting.waiting.acquire().await.unwrap().forget();
    // The task that attaches stays in the gate for ever, as in a process that is dead.
    let network = agent.kill().await;
    let output = plugin.wait_with_output().await.unwrap();
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 11, "{error}");

    let agent = node.agent(network).await;
    assert_eq!(agent.service.attachments(), []);
    let recovered = agent.service.recover().await;
    assert_eq!((recovered.unfinished, recovered.failures), (1, Vec::new()));
    assert_eq!(agent.network.count(), 0);
    assert!(agent.service.usage().iter().all(|usage| usage.used == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_half_way_is_undone_and_what_cannot_be_undone_is_retried() {
    let node = Node::new();
    let agent = node.agent(FakeNetwork::new()).await;
    let network = &agent.network;
    network.fail_attach.store(true, Ordering::SeqCst);
    let (code, message) = Call::new("ADD", "c1", &node.conf()).run().await.error();
    assert_eq!((code, message.as_str()), (100, "attach was made to fail"));
    assert_eq!(network.count(), 0);

    network.fail_detach.store(true, Ordering::SeqCst);
    Call::new("ADD", "c1", &node.conf()).run().await.error();
    assert_eq!(network.count(), 1);
    assert_eq!(agent.service.attachments(), [], "a half made attachment is not shown");
    assert_eq!(Call::new("DEL", "c1", &node.conf()).run().await.error().0, 100);
    assert_eq!(agent.service.recover().await.failures.len(), 1);

    network.fail_detach.store(false, Ordering::SeqCst);
    let recovered = agent.service.recover().await;
    assert_eq!((recovered.unfinished, recovered.failures), (1, Vec::new()));
    assert_eq!(network.count(), 0);
    assert!(agent.service.usage().iter().all(|usage| usage.used == 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn collection_deletes_what_the_runtime_does_not_know_and_only_in_its_network() {
    let node = Node::new();
    let agent = node.agent(FakeNetwork::new()).await;
    let mut other = node.conf();
    other["name"] = "other".into();
    for id in ["keep", "stray"] {
        Call::new("ADD", id, &node.conf()).run().await.ok();
    }
    Call::new("ADD", "foreign", &other).run().await.ok();
    let valid =
        json!([{"containerID": "keep", "ifname": "eth0"}, {"containerID": "stray", "ifname": "eth9"}]);
    Call::new("GC", "", &node.conf()).conf("cni.dev/valid-attachments", valid).run().await.ok();
    let left: Vec<String> =
        agent.service.attachments().into_iter().map(|found| found.owner.container_id).collect();
    assert_eq!(left, ["foreign", "keep"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_comes_back_elsewhere_is_made_anew() {
    let node = Node::new();
    let agent = node.agent(FakeNetwork::new()).await;
    let first = Call::new("ADD", "c1", &node.conf()).run().await.ok();
    let moved =
        Call::new("ADD", "c1", &node.conf()).env("CNI_NETNS", "/proc/self/ns/../ns/net").run().await.ok();
    assert_eq!(moved["interfaces"][1]["sandbox"], "/proc/self/ns/../ns/net");
    assert_ne!(moved["ips"], first["ips"], "its old connections must not reach it under the old address");
    assert_eq!(agent.network.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_stops_listening_leaves_nothing() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let node = Node::new();
    let agent = node.agent(FakeNetwork::new()).await;
    let call = Call::new("ADD", "c1", &node.conf());
    let exit = tokio::task::spawn_blocking(move || {
        weft_cni::plugin_main(call.env, call.conf.to_string().as_bytes(), Closed)
    });
    assert_eq!(exit.await.unwrap(), 1);
    assert_eq!(agent.network.count(), 0);
    assert_eq!(agent.service.attachments(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_agent_per_socket_and_a_dead_ones_socket_is_replaced() {
    let node = Node::new();
    let agent = node.agent(FakeNetwork::new()).await;
    let error = weft_cni::bind_socket(&node.socket()).unwrap_err();
    assert!(error.to_string().contains("another process listens here"), "{error}");
    agent.kill().await;
    let _agent = node.agent(FakeNetwork::new()).await;
    Call::new("STATUS", "", &node.conf()).run().await.ok();
}
