//! The data plane outlives the control plane: agents are killed under load and nothing is lost.

mod support;

use std::time::Duration;

use serde_json::Value;
use support::{Fabric, signal, wait_until, weft};

const APP: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: example.com/web, ports: [{containerPort: 8080}], readinessProbe: {httpGet: {path: /, port: 8080}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  containers: [{name: client, image: example.com/client}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 8080}]
";

/// The kernel's tables of every node, as text: what must be the same after an agent's death.
fn tables(fabric: &Fabric, nodes: &[&str]) -> Vec<String> {
    nodes.iter().map(|node| fabric.ok(&["status", "--tables", node])).collect()
}

fn service_address(fabric: &Fabric) -> String {
    let plan = fabric.ok(&["status", "--plan", "node1"]);
    let row = plan
        .lines()
        .find(|line| line.contains("default/web") && line.contains("10.96."))
        .expect("the service");
    let address = row.split_whitespace().find(|word| word.starts_with("10.96.")).expect("its address");
    address.split('/').next().expect("an address").to_owned()
}

#[test]
fn killing_every_agent_under_load_loses_nothing() {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), APP).unwrap();
    let fabric = Fabric::up("kill", &["--apply", file.path().to_str().unwrap()]);
    let nodes = ["node1", "node2", "node3"];
    let before = tables(&fabric, &nodes);
    let address = service_address(&fabric);
    let name = fabric.name.clone();
    let load = std::thread::spawn(move || {
        let command = [weft(), "lab", "load", &address, "--rate", "1000", "--seconds", "6"];
        let mut weft = std::process::Command::new(weft());
        weft.args(["lab", "exec", "--name", &name, "default/client", "--"]).args(command).output().unwrap()
    });
    std::thread::sleep(Duration::from_secs(1));
    for node in nodes {
        let killed = fabric.pids(node, "agent");
        assert_eq!(killed.len(), 1, "one agent on {node}");
        signal(killed[0] as u32, libc::SIGKILL);
        let back = || fabric.pids(node, "agent").iter().any(|pid| !killed.contains(pid));
        assert!(wait_until(Duration::from_secs(20), back), "the agent of {node} was not started again");
    }
    let output = load.join().unwrap();
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}{}", support::text(&output.stdout), support::text(&output.stderr))
    });
    assert_eq!(outcome["sent"], 6000, "{outcome}");
    assert_eq!(outcome["answered"], 6000, "{outcome}");
    let healthy = || {
        let output = fabric.run(&["status"]);
        output.status.success()
    };
    assert!(
        wait_until(Duration::from_secs(30), healthy),
        "{}",
        support::text(&fabric.run(&["status"]).stdout)
    );
    for (node, (before, after)) in nodes.iter().zip(before.iter().zip(tables(&fabric, &nodes))) {
        assert_eq!(*before, after, "{node}: the new agent's tables differ");
    }
    fabric.down();
}
