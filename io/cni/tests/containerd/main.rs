//! Debian's containerd and runc run containers of a hand-made image on a network made through the plugin.

#[path = "../../../../tests/containers/mod.rs"]
mod containers;
mod runtime;
#[path = "../../../../tests/skip.rs"]
mod skip;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/veth.rs"]
mod veth;

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;

use containers::IMAGE;
use runtime::Containerd;
use serde_json::json;
use support::{Call, Node, PLUGIN};
use veth::{Namespace, VethNetwork, run};
use weft_cni::Attachment;

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_real_runtime_are_attached_reachable_and_removed() {
    if let Some(reason) = containers::lacking() {
        return skip::skip("containers_of_a_real_runtime_are_attached_reachable_and_removed", reason);
    }
    let node = Node::new();
    let namespace = Namespace::new("runtime").await;
    let network = Arc::new(VethNetwork { node: namespace.0.clone() });
    let agent = node.agent(Arc::clone(&network)).await;
    let containerd = Containerd::start();
    // libcni of containerd 1.6 knows the specification up to 1.0.0.
    let plugin = json!({"type": "weft", "agentSocket": node.socket()});
    containerd.install_plugin(
        Path::new(PLUGIN),
        &json!({"cniVersion": "1.0.0", "name": "weft", "plugins": [plugin]}),
    );

    let ids = ["one", "two", "three"];
    let mut containers: Vec<Child> = ids.iter().map(|id| start(&containerd, id)).collect();
    for container in &mut containers {
        let mut line = String::new();
        BufReader::new(container.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{}", rest(container));
    }
    // The program runs before ctr calls the plugin; each link is there once the agent says so.
    let mut changes = agent.service.changes();
    changes.wait_for(|_| agent.service.attachments().len() == ids.len()).await.unwrap();
    for attachment in agent.service.attachments() {
        reach(&namespace, &attachment);
        assert!(attachment.sandbox_exists());
    }

    for id in ids {
        containerd.kill_task(id);
    }
    for container in &mut containers {
        container.wait().unwrap();
    }
    assert_eq!(agent.service.attachments(), []);
    let links = run(&["ip", "-n", &namespace.0, "-o", "link", "show", "type", "veth"]).await.unwrap();
    assert_eq!(links, "", "links left");
}

fn start(containerd: &Containerd, id: &str) -> Child {
    let args = ["run", "--rm", "--cni", "--snapshotter", "native", IMAGE, id];
    containerd.ctr(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn rest(container: &mut Child) -> String {
    let _ = container.kill();
    let mut text = String::new();
    container.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text
}

fn reach(namespace: &Namespace, attachment: &Attachment) {
    for addr in &attachment.addresses {
        let to = SocketAddr::new(addr.to_ip(), 8080);
        let answer = namespace.within(move || {
            let mut text = String::new();
            TcpStream::connect(to).unwrap().read_to_string(&mut text).unwrap();
            text
        });
        assert_eq!(answer, "from the container\n", "{to}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn debians_plugins_chain_behind_ours() {
    let name = "debians_plugins_chain_behind_ours";
    let tuning = Path::new("/usr/lib/cni/tuning");
    if !tuning.exists() {
        return skip::skip(name, "/usr/lib/cni/tuning is not installed (make setup-tests)");
    }
    if !nix::unistd::Uid::effective().is_root() {
        return skip::skip(name, "network namespaces need root");
    }
    let node = Node::new();
    let (host, pod) = (Namespace::new("chain").await, Namespace::new("chained-pod").await);
    let agent = node.agent(Arc::new(VethNetwork { node: host.0.clone() })).await;
    let mut conf = node.conf();
    conf["cniVersion"] = "1.0.0".into();
    let in_pod = |verb: &str| Call::new(verb, "c1", &conf).env("CNI_NETNS", &pod.path());

    let result = in_pod("ADD").run().await.ok();
    let chained = in_pod("ADD")
        .conf("type", "tuning".into())
        .conf("mtu", 1400.into())
        .conf("prevResult", result.clone());
    let last = chained.run_with(tuning).await.ok();
    assert_eq!(last["ips"], result["ips"], "the chained plugin read our result and passed it on");
    let shown = run(&["ip", "-n", &pod.0, "-o", "link", "show", "eth0"]).await.unwrap();
    assert!(shown.contains("mtu 1400"), "{shown}");

    in_pod("CHECK").conf("prevResult", last.clone()).run().await.ok();
    run(&["ip", "-n", &pod.0, "addr", "flush", "dev", "eth0"]).await.unwrap();
    let (code, message) = in_pod("CHECK").conf("prevResult", last.clone()).run().await.error();
    assert_eq!(code, 102, "{message}");
    // A repeated ADD repairs.
    in_pod("ADD").run().await.ok();
    in_pod("CHECK").conf("prevResult", last.clone()).run().await.ok();
    in_pod("DEL").conf("prevResult", last).run().await.ok();
    assert_eq!(agent.service.attachments(), []);
    let links = run(&["ip", "-n", &host.0, "-o", "link", "show", "type", "veth"]).await.unwrap();
    assert_eq!(links, "");
}

/// The pod's namespace goes away first, as when a machine kills everything: its link went with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_vanished_namespace_is_collected() {
    if !nix::unistd::Uid::effective().is_root() {
        return skip::skip("a_vanished_namespace_is_collected", "network namespaces need root");
    }
    let node = Node::new();
    let (host, pod) = (Namespace::new("vanish").await, Namespace::new("vanishing-pod").await);
    let agent = node.agent(Arc::new(VethNetwork { node: host.0.clone() })).await;
    Call::new("ADD", "c1", &node.conf()).env("CNI_NETNS", &pod.path()).run().await.ok();
    assert_eq!(agent.service.recover().await, weft_cni::Recovered::default(), "what lives is left alone");
    drop(pod);
    let recovered = agent.service.recover().await;
    assert_eq!((recovered.vanished, recovered.failures), (1, Vec::new()));
    assert_eq!(agent.service.attachments(), []);
    Call::new("DEL", "c1", &node.conf()).env("CNI_NETNS", "").run().await.ok();
}
