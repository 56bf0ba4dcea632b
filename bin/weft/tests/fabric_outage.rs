//! The control plane goes away under load from inside and outside: what worked keeps working, and changes arrive after.

mod support;

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Fabric, signal, text, wait_until, weft};

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
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  containers: [{name: client, image: example.com/client}]
";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/web";
const AWAY: Duration = Duration::from_secs(8);

/// Pids of the fabric's API server.
fn api_server(fabric: &Fabric) -> Vec<u32> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> = command.split(|byte| *byte == 0).map(text).collect();
        let ours = words.iter().any(|word| word.starts_with(fabric.root().to_str().unwrap()));
        if ours && words.get(1).is_some_and(|verb| verb == "apiserver") {
            found.extend(process.file_name().to_string_lossy().parse::<u32>());
        }
    }
    found
}

/// Lets a process go on again, whatever the test did meanwhile.
struct Stopped(u32);

impl Stopped {
    fn new(pid: u32) -> Self {
        signal(pid, libc::SIGSTOP);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        signal(self.0, libc::SIGCONT);
    }
}

fn load(fabric: &Fabric, from: &str, addresses: &[&str], seconds: &str) -> std::process::Child {
    let mut command = Command::new(weft());
    command.args(["lab", "exec", "--name", &fabric.name, from, "--", weft(), "lab", "load"]);
    command.args(addresses).args(["--rate", "200", "--seconds", seconds]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command.spawn().expect("weft can be started")
}

fn lost_nothing(who: &str, child: std::process::Child) -> Value {
    let output = child.wait_with_output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{who}: {out}{err}");
    let outcome: Value =
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{who}: {error}: {out}{err}"));
    assert_eq!(outcome["failed"], 0, "{who}: {outcome}");
    assert_eq!(outcome["answered"], outcome["sent"], "{who}: {outcome}");
    outcome
}

#[test]
fn without_api_server_and_agents_services_go_on() {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), APP).unwrap();
    let fabric = Fabric::up("outage", &["--outside", "1", "--apply", file.path().to_str().unwrap()]);
    let service = fabric.get("/api/v1/namespaces/default/services/web");
    let cluster_ip = format!("{}:80", service["spec"]["clusterIP"].as_str().unwrap());
    let node_ports = ["172.30.0.11:30080", "172.30.0.12:30080", "172.30.0.13:30080"];
    // `weft lab exec` asks the API where a pod is, so both are under way before it goes.
    let inside = load(&fabric, "default/client", &[&cluster_ip], "14");
    let outside = load(&fabric, "outside1", &node_ports, "14");
    std::thread::sleep(Duration::from_secs(2));
    {
        let pids = api_server(&fabric);
        assert_eq!(pids.len(), 1, "one API server");
        let _away = Stopped::new(pids[0]);
        for node in ["node1", "node2", "node3"] {
            fabric.pids(node, "agent").iter().for_each(|pid| signal(*pid as u32, libc::SIGKILL));
        }
        std::thread::sleep(AWAY);
    }
    lost_nothing("a pod through the cluster IP", inside);
    lost_nothing("outside through node ports", outside);
    fabric.patch(DEPLOYMENT, &json!({"spec": {"replicas": 1}}));
    let one = || fabric.get(DEPLOYMENT)["status"]["replicas"] == 1;
    assert!(wait_until(Duration::from_secs(60), one), "the change did not arrive\n{}", fabric.logs());
    let healthy = || fabric.run(&["status"]).status.success();
    assert!(wait_until(Duration::from_secs(30), healthy), "{}", text(&fabric.run(&["status"]).stdout));
    let outcome = lost_nothing("outside, after", load(&fabric, "outside1", &node_ports, "2"));
    let pods = outcome["pods"].as_object().map_or(0, |pods| pods.len());
    assert_eq!(pods, 1, "endpoints that are gone are used no more: {outcome}");
    fabric.down();
}
