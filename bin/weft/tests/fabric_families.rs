//! Clusters of one address family: pods come up, names resolve, services are reached and policy is enforced, without
//! an address of the other family anywhere.

mod support;

use support::{Fabric, skip, text};

const APP: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: example.com/web
        ports: [{containerPort: 8080}, {containerPort: 5300, protocol: UDP}]
        readinessProbe: {httpGet: {path: /, port: 8080}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: udp, port: 53, targetPort: 5300, protocol: UDP}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  nodeName: node1
  containers: [{name: client, image: example.com/client}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec:
  nodeName: node2
  containers: [{name: stranger, image: example.com/stranger}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]
";

#[derive(Clone, Copy, PartialEq)]
enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    fn has(self, address: &str) -> bool {
        address.contains(':') == (self == Self::Ipv6)
    }
}

fn a_cluster_of_one_family(test: &str, family: Family, routing: &str) {
    let curl = std::process::Command::new("curl").arg("--version").output();
    if curl.is_err() {
        return skip::skip(test, "curl is not installed (make setup-tests)");
    }
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), APP).unwrap();
    let flag = if family == Family::Ipv4 { "ipv4" } else { "ipv6" };
    let fabric = Fabric::up(
        flag,
        &["--families", flag, "--nodes", "2", "--routing", routing, "--apply", file.path().to_str().unwrap()],
    );
    let printed = fabric.printed();
    assert!(!printed.contains("is not ready"), "{printed}{}", fabric.logs());
    has_addresses_of_one_family(&fabric, family);

    // Readiness came through the node's own stack; the name, the service and the policy are the client's.
    for url in ["http://web/", "http://web.default.svc.cluster.local/"] {
        let answer = fabric.exec("client", &["curl", "-sS", "-m", "10", url]);
        assert!(answer.status.success() && text(&answer.stdout).contains("web-"), "{url}: {answer:?}");
    }
    let denied = fabric.exec("stranger", &["curl", "-sS", "-m", "2", "http://web/"]);
    assert!(!denied.status.success() && denied.stdout.is_empty(), "{denied:?}");
    assert!(text(&denied.stderr).contains("28"), "curl's word for no answer in time: {denied:?}");

    let matrix = fabric.json(&["policy", "matrix", "--probe"]);
    let cells = matrix["cells"].as_array().unwrap();
    let differing: Vec<_> = cells.iter().filter(|cell| cell["agrees"] != true).collect();
    assert!(differing.is_empty() && cells.len() >= 20, "of {} cells: {differing:#?}", cells.len());
    fabric.down();
}

fn has_addresses_of_one_family(fabric: &Fabric, family: Family) {
    let status = fabric.json(&["status"]);
    let mut seen = 0;
    for node in status.as_array().unwrap() {
        assert_eq!(node["agent"]["differences"], serde_json::json!([]), "{node:#}");
        for pod in node["agent"]["pods"].as_array().unwrap() {
            let addresses = pod["addresses"].as_array().unwrap();
            assert_eq!(addresses.len(), 1, "{pod:#}");
            assert!(family.has(addresses[0].as_str().unwrap()), "{pod:#}");
            seen += 1;
        }
    }
    assert_eq!(seen, 5, "{status:#}");
    let links =
        text(&fabric.exec("client", &["ip", "-o", "addr", "show", "dev", "eth0", "scope", "global"]).stdout);
    let addresses: Vec<&str> = links.lines().filter_map(|line| line.split_whitespace().nth(3)).collect();
    assert!(addresses.len() == 1 && family.has(addresses[0]), "{links}");
}

#[test]
fn ipv6_alone() {
    a_cluster_of_one_family("ipv6_alone", Family::Ipv6, "direct");
}

#[test]
fn ipv4_alone() {
    a_cluster_of_one_family("ipv4_alone", Family::Ipv4, "vxlan");
}
