//! The data plane outlives the control plane: the API server hangs, every agent dies meanwhile, nothing is lost, and
//! what is changed afterwards arrives.

mod support;

use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::{Fabric, signal, text, wait_until, weft};

const NODES: [&str; 3] = ["node1", "node2", "node3"];
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the loads run: longer than the outage and the changes after it.
const SECONDS: &str = "22";
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
      terminationGracePeriodSeconds: 10
      containers:
      - name: web
        image: example.com/web
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 2}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: weft.dev/v1alpha1
kind: AddressPool
metadata: {name: lab}
spec: {addresses: [172.30.0.200-172.30.0.210]}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  containers: [{name: client, image: example.com/client}]
";
const NEW_SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: new}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30081}]
";

fn applied(manifests: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), manifests).unwrap();
    file
}

fn load(fabric: &Fabric, from: &str, addresses: &[String], more: &[&str]) -> Child {
    let mut command = Command::new(weft());
    command.args(["lab", "exec", "--name", &fabric.name, from, "--", weft(), "lab", "load"]);
    command.args(addresses).args(more).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("weft can be started")
}

fn outcome(who: &str, child: Child) -> Value {
    let output = child.wait_with_output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{who}: {out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{who}: {error}: {out}{err}"))
}

fn service(fabric: &Fabric) -> Value {
    fabric.get("/api/v1/namespaces/default/services/web")
}

/// Kills every agent and waits until its successor answers on its socket.
fn kill_agents(fabric: &Fabric) {
    for node in NODES {
        let killed = fabric.pids(node, "agent");
        assert_eq!(killed.len(), 1, "one agent on {node}");
        signal(killed[0] as u32, libc::SIGKILL);
        let socket = fabric.root().join("nodes").join(node).join("agent.sock");
        let back =
            || !fabric.pids(node, "agent").contains(&killed[0]) && UnixStream::connect(&socket).is_ok();
        assert!(wait_until(PATIENCE, back), "the agent of {node} was not started again");
    }
}

#[test]
fn an_api_server_that_hangs_while_agents_die_is_noticed_by_nobody() {
    let app = applied(APP);
    let more = ["--outside", "1", "--node-grace", "40", "--apply", app.path().to_str().unwrap()];
    let fabric = Fabric::up("outage", &more);
    let balancer =
        || service(&fabric)["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned);
    assert!(wait_until(PATIENCE, || balancer().is_some()), "{}{}", service(&fabric), fabric.logs());
    let cluster_ip = service(&fabric)["spec"]["clusterIP"].as_str().expect("allocated").to_owned();
    let inside = [format!("{cluster_ip}:80")];
    let node_ports = (11..=13).map(|host| format!("172.30.0.{host}:30080"));
    let outside: Vec<String> = node_ports.chain([format!("{}:80", balancer().unwrap())]).collect();
    let fresh = ["--rate", "300", "--seconds", SECONDS];
    let kept = ["--rate", "200", "--seconds", SECONDS, "--keep", "4"];
    let loads = [
        ("a pod, connection for each", load(&fabric, "default/client", &inside, &fresh)),
        ("a pod, kept", load(&fabric, "default/client", &inside, &kept)),
        ("outside, connection for each", load(&fabric, "outside1", &outside, &fresh)),
        ("outside, kept", load(&fabric, "outside1", &outside, &kept)),
    ];
    std::thread::sleep(Duration::from_secs(1));

    let server = fabric.pids(".", "apiserver")[0] as u32;
    signal(server, libc::SIGSTOP);
    kill_agents(&fabric);
    // Long enough for every agent to be wanted for something, and to die once more before it has seen the cluster.
    std::thread::sleep(Duration::from_secs(4));
    kill_agents(&fabric);
    std::thread::sleep(Duration::from_secs(3));
    signal(server, libc::SIGCONT);

    let healthy = || fabric.run(&["status"]).status.success();
    assert!(wait_until(PATIENCE, healthy), "{}", text(&fabric.run(&["status"]).stdout));
    fabric.patch("/apis/apps/v1/namespaces/default/deployments/web", &json!({"spec": {"replicas": 1}}));
    let one_left = || {
        let pods = fabric.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb");
        pods["items"].as_array().is_some_and(|pods| pods.len() == 1)
    };
    assert!(wait_until(PATIENCE, one_left), "{}", fabric.logs());
    let new = applied(NEW_SERVICE);
    fabric.ok(&["apply", new.path().to_str().unwrap()]);
    for (who, child) in loads {
        let outcome = outcome(who, child);
        assert_eq!(outcome["failed"], 0, "{who}: {outcome}\n{}", fabric.logs());
        assert_eq!(outcome["answered"], outcome["sent"], "{who}: {outcome}");
    }
    for node in NODES {
        let arrived = || fabric.ok(&["status", "--plan", node]).contains("default/new");
        assert!(wait_until(PATIENCE, arrived), "{node}: {}", fabric.logs());
    }
    let asked = ["--rate", "50", "--seconds", "1"];
    for (from, addresses) in [
        ("default/client", vec![format!("{}:80", new_address(&fabric)), inside[0].clone()]),
        ("outside1", (11..=13).map(|host| format!("172.30.0.{host}:30081")).collect()),
    ] {
        let outcome = outcome(from, load(&fabric, from, &addresses, &asked));
        assert_eq!(outcome["answered"], 50, "{from}: {outcome}");
        assert_eq!(outcome["pods"].as_object().map(|pods| pods.len()), Some(1), "{from}: {outcome}");
    }
    fabric.down();
}

fn new_address(fabric: &Fabric) -> String {
    let service = fabric.get("/api/v1/namespaces/default/services/new");
    service["spec"]["clusterIP"].as_str().expect("allocated").to_owned()
}
