//! Load balancer addresses from the pool to the wire: given, announced by one node, taken over when it dies, kept when
//! only its agent does, and gone without a trace.

mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{Fabric, signal, text, wait_until};

const OBJECTS: &str = "
apiVersion: weft.dev/v1alpha1
kind: AddressPool
metadata: {name: edge}
spec: {addresses: ['172.30.0.200-172.30.0.201', 'fd00:172:30::200-fd00:172:30::201']}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80}]
";
const NODES: [&str; 3] = ["node1", "node2", "node3"];
const V4: &str = "172.30.0.200";
const V6: &str = "fd00:172:30::200";
const PATIENCE: Duration = Duration::from_secs(60);

const SERVICE: &str = "/api/v1/namespaces/default/services/web";

fn service(fabric: &Fabric) -> Value {
    fabric.get(SERVICE)
}

fn leases(fabric: &Fabric) -> BTreeMap<String, Value> {
    let list = fabric.get(
        "/apis/coordination.k8s.io/v1/namespaces/weft-system/leases?labelSelector=weft.dev%2Flease%3Daddress",
    );
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items
        .into_iter()
        .map(|lease| {
            (
                lease["metadata"]["annotations"]["weft.dev/address"].as_str().unwrap_or_default().to_owned(),
                lease,
            )
        })
        .collect()
}

fn holder(fabric: &Fabric, address: &str) -> Option<String> {
    let lease = leases(fabric).remove(address)?;
    lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
}

fn in_namespace(fabric: &Fabric, machine: &str, command: &[&str]) -> String {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", fabric.namespace(machine)))
        .args(command)
        .output()
        .expect("nsenter runs");
    text(&output.stdout)
}

/// The link address a machine beside the nodes finds behind an address, after it has forgotten what it knew.
fn resolved(fabric: &Fabric, address: &str) -> Option<String> {
    in_namespace(fabric, "underlay", &["ip", "neigh", "flush", "to", address]);
    // A datagram makes the stack ask; nobody need take it.
    in_namespace(fabric, "underlay", &["bash", "-c", &format!("echo > /dev/udp/{address}/9")]);
    std::thread::sleep(Duration::from_millis(200));
    let shown = in_namespace(fabric, "underlay", &["ip", "neigh", "show", "to", address]);
    let mut words = shown.split_whitespace().skip_while(|word| *word != "lladdr");
    words.nth(1).map(str::to_owned)
}

fn link_address(fabric: &Fabric, node: &str) -> String {
    let shown = in_namespace(fabric, node, &["ip", "-o", "link", "show", "eth0"]);
    let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
    words.nth(1).expect("a link address").to_owned()
}

/// The node's own part in the address, as its agent tells.
fn state(fabric: &Fabric, node: &str) -> Option<String> {
    let status = fabric.json(&["status"]);
    let row = status.as_array()?.iter().find(|row| row["node"] == *node)?.clone();
    let rows = row["agent"]["addresses"].as_array().cloned().unwrap_or_default();
    let row = rows.into_iter().find(|row| row["address"] == V4)?;
    row["state"].as_str().map(str::to_owned)
}

/// Proves spec.ipFamilyPolicy: SingleStack, PreferDualStack and RequireDualStack, with the second address allocated and given back.
#[test]
fn an_address_is_given_announced_taken_over_and_withdrawn() {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), OBJECTS).unwrap();
    let fabric = Fabric::up("vip", &["--apply", file.path().to_str().unwrap(), "--wait", "1"]);
    let announced = || holder(&fabric, V4).zip(holder(&fabric, V6));
    assert!(wait_until(PATIENCE, || announced().is_some()), "{}{}", service(&fabric), fabric.logs());
    let given = service(&fabric)["status"]["loadBalancer"]["ingress"].clone();
    let expected = serde_json::json!([{"ip": V4, "ipMode": "VIP"}, {"ip": V6, "ipMode": "VIP"}]);
    assert_eq!(given, expected);
    let (owner, owner_v6) = announced().unwrap();
    let reached = || resolved(&fabric, V4) == Some(link_address(&fabric, &owner));
    assert!(wait_until(PATIENCE, reached), "{owner}: {:?}", resolved(&fabric, V4));
    let reached = || resolved(&fabric, V6) == Some(link_address(&fabric, &owner_v6));
    assert!(wait_until(PATIENCE, reached), "{owner_v6}: {:?}", resolved(&fabric, V6));

    // An agent that hangs loses nothing: its machine answers, and that is said.
    let agent = fabric.pids(&owner, "agent")[0] as u32;
    signal(agent, libc::SIGSTOP);
    let obstacle = || {
        let lease = leases(&fabric).remove(V4)?;
        lease["metadata"]["annotations"]["weft.dev/obstacle"].as_str().map(str::to_owned)
    };
    let said = || obstacle().is_some_and(|text| text.starts_with("holder-answers "));
    assert!(wait_until(PATIENCE, said), "{:?}{}", obstacle(), fabric.logs());
    assert_eq!(holder(&fabric, V4).as_deref(), Some(owner.as_str()));

    // Now the machine is gone, too.
    in_namespace(&fabric, "underlay", &["ip", "link", "set", &owner, "down"]);
    let moved = || holder(&fabric, V4).is_some_and(|now| now != owner);
    assert!(wait_until(PATIENCE, moved), "{:?}{}", leases(&fabric), fabric.logs());
    let next = holder(&fabric, V4).unwrap();
    let reached = || resolved(&fabric, V4) == Some(link_address(&fabric, &next));
    assert!(wait_until(PATIENCE, reached), "{next}: {:?}", resolved(&fabric, V4));
    assert_eq!(leases(&fabric)[V4]["spec"]["leaseTransitions"], 1);

    // The machine is back and finds that it is no longer the holder.
    in_namespace(&fabric, "underlay", &["ip", "link", "set", &owner, "up"]);
    signal(agent, libc::SIGCONT);
    let idle = || state(&fabric, &owner).is_some_and(|state| state != "holding");
    assert!(wait_until(PATIENCE, idle), "{}", fabric.logs());
    assert_eq!(holder(&fabric, V4).as_ref(), Some(&next));

    // A holder that lives, cut off from link and API server, withdraws by itself. So it does not answer beside its
    // successor when the link is back before the way to the API server is.
    let cut = [
        "nft",
        "add table inet cut; add chain inet cut in { type filter hook input priority 0; }; \
        add rule inet cut in tcp dport 6443 drop; add rule inet cut in tcp sport 6443 drop",
    ];
    in_namespace(&fabric, &next, &cut);
    in_namespace(&fabric, "underlay", &["ip", "link", "set", &next, "down"]);
    let withdrawn = || state(&fabric, &next).as_deref() == Some("cut-off");
    assert!(wait_until(PATIENCE, withdrawn), "{:?}{}", state(&fabric, &next), fabric.logs());
    let moved = || holder(&fabric, V4).is_some_and(|now| now != next);
    assert!(wait_until(PATIENCE, moved), "{:?}{}", leases(&fabric), fabric.logs());
    let last = holder(&fabric, V4).unwrap();
    in_namespace(&fabric, "underlay", &["ip", "link", "set", &next, "up"]);
    let reached = || resolved(&fabric, V4) == Some(link_address(&fabric, &last));
    assert!(wait_until(PATIENCE, reached), "{last}: {:?}", resolved(&fabric, V4));
    let heard = || state(&fabric, &next).is_some_and(|state| state != "cut-off");
    assert!(wait_until(PATIENCE, heard), "{}", fabric.logs());
    for _ in 0..5 {
        assert_eq!(resolved(&fabric, V4), Some(link_address(&fabric, &last)), "{:?}", state(&fabric, &next));
        assert_ne!(state(&fabric, &next).as_deref(), Some("holding"));
    }
    in_namespace(&fabric, &next, &["nft", "delete table inet cut"]);
    let knows = || matches!(state(&fabric, &next).as_deref(), Some("waiting"));
    assert!(wait_until(PATIENCE, knows), "{:?}{}", state(&fabric, &next), fabric.logs());
    assert_eq!(holder(&fabric, V4), Some(last));

    // What nobody wants leaves nothing.
    fabric.delete(SERVICE);
    assert!(wait_until(PATIENCE, || leases(&fabric).is_empty()), "{:?}{}", leases(&fabric), fabric.logs());
    let silent = || resolved(&fabric, V4).is_none() && resolved(&fabric, V6).is_none();
    assert!(wait_until(PATIENCE, silent));
    for node in NODES {
        let groups = in_namespace(&fabric, node, &["ip", "maddress", "show", "dev", "eth0"]);
        assert!(!groups.contains("33:33:ff:00:02:00"), "{node}: {groups}");
    }
    fabric.down();
}
