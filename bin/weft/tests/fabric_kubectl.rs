//! What kubectl does through API server and kubelet down to a pod: forwarding ports, and attaching to what runs.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use support::{Fabric, skip, text, wait_until};

const APP: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers: [{name: web, image: example.com/web, ports: [{containerPort: 8080}]}]
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
metadata: {name: echo}
spec:
  containers:
  - name: echo
    image: weft.dev/host
    stdin: true
    command: [sh, -c, 'while read line; do echo "heard $line"; done']
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: nobody}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
"#;

fn kubectl(fabric: &Fabric, args: &[&str]) -> Command {
    let mut kubectl = Command::new("kubectl");
    kubectl.arg("--kubeconfig").arg(fabric.root().join("kubeconfig")).args(args);
    kubectl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    kubectl
}

/// A kubectl that runs until it is told to end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// kubectl's output must stay open: it ends when it cannot write.
fn first_line(running: &mut Running) -> (String, impl BufRead) {
    let mut output = BufReader::new(running.0.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    if line.is_empty() {
        let mut errors = String::new();
        running.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        panic!("kubectl ended: {errors}");
    }
    (line, output)
}

/// Forwards a free port of this machine and asks over it, twice over the same forwarding.
fn forward(fabric: &Fabric, what: &str, port: &str) {
    let mut running = Running(kubectl(fabric, &["port-forward", what, port]).spawn().unwrap());
    let (line, _output) = first_line(&mut running);
    let local = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
    let local: u16 = local.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(("127.0.0.1", local)).unwrap();
        stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.") && answer.contains("web"), "{what}: {answer}");
    }
}

fn attach(fabric: &Fabric) {
    let mut child = kubectl(fabric, &["attach", "-i", "echo"]).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"one\ntwo\n").unwrap();
    let mut running = Running(child);
    let mut output = BufReader::new(running.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let heard: Vec<String> = output.by_ref().filter(|line| line.starts_with("heard")).take(2).collect();
    if heard != ["heard one", "heard two"] {
        running.0.kill().ok();
        let mut errors = String::new();
        running.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        panic!("{heard:?}: {errors}");
    }
    drop(input);
    drop(running);
    let logged = || text(&kubectl(fabric, &["logs", "echo"]).output().unwrap().stdout);
    let wanted = "heard one\nheard two\n";
    assert!(wait_until(support::PATIENCE, || logged() == wanted), "not logged: {:?}", logged());
}

/// Policy forbids everybody everything: what the node's kubelet does inside the pod is no traffic.
#[test]
fn ports_are_forwarded_and_streams_attached() {
    let test = "ports_are_forwarded_and_streams_attached";
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        return skip::skip(test, "kubectl is not installed");
    }
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), APP).unwrap();
    let fabric = Fabric::up("kubectl", &["--nodes", "2", "--apply", file.path().to_str().unwrap()]);
    assert!(!fabric.printed().contains("is not ready"), "{}{}", fabric.printed(), fabric.logs());
    forward(&fabric, "pod/web", ":8080");
    forward(&fabric, "service/web", ":80");
    attach(&fabric);

    let nothing = kubectl(&fabric, &["attach", "nobody"]).output().unwrap();
    assert!(!nothing.status.success() && text(&nothing.stderr).contains("not found"), "{nothing:?}");
    fabric.down();
}
