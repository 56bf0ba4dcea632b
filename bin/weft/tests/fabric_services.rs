//! Services whose fields need the whole fabric to be seen: who may share an address, who answers whether a node has
//! endpoints, what is left to others, and what is said of what cannot be done.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use support::{Fabric, text, wait_until};

const OBJECTS: &str = "
apiVersion: weft.dev/v1alpha1
kind: AddressPool
metadata: {name: edge}
spec: {addresses: ['172.30.0.200']}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: node2
  containers: [{name: c, image: example.com/c, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: one, annotations: {weft.dev/share-address: web}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  ipFamilies: [IPv4]
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: two, annotations: {weft.dev/share-address: web}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  ipFamilies: [IPv4]
  selector: {app: web}
  ports: [{name: http, port: 81, targetPort: 8080}, {name: s, port: 90, protocol: SCTP}]
---
apiVersion: v1
kind: Service
metadata: {name: others}
spec: {type: LoadBalancer, loadBalancerClass: example.com/cloud, ports: [{port: 80}], selector: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: waits}
spec: {ipFamilies: [IPv4], ports: [{port: 82}], selector: {app: web}}
---
apiVersion: v1
kind: Service
metadata: {name: hand}
spec: {ipFamilies: [IPv4], ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: hand, labels: {written: by-hand}}
subsets: [{addresses: [{ip: 172.30.0.12}], ports: [{name: http, port: 10250}]}]
";
const ADDRESS: &str = "172.30.0.200";
const PATIENCE: Duration = Duration::from_secs(60);

fn service(fabric: &Fabric, name: &str) -> Value {
    fabric.get(&format!("/api/v1/namespaces/default/services/{name}"))
}

fn condition(fabric: &Fabric, name: &str, kind: &str) -> Option<Value> {
    let service = service(fabric, name);
    let conditions = service["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind).cloned()
}

/// Answers of curl on a machine of the fabric: what it printed, empty when there was no answer.
fn curl(fabric: &Fabric, place: &str, url: &str) -> String {
    let mut command = std::process::Command::new(support::weft());
    command.args(["lab", "exec", "--name", &fabric.name, place, "--"]);
    command.args(["curl", "-s", "-g", "-i", "--max-time", "2", url]);
    text(&command.output().expect("weft can be started").stdout)
}

/// Proves spec.externalTrafficPolicy: Local keeps traffic from outside on the node it came to, with the client's address.
/// Proves spec.healthCheckNodePort: Answers how many ready endpoints the node has.
/// Proves spec.loadBalancerClass: weft.dev/l2 and none are given addresses; other classes are left to others.
/// Proves spec.selector: Pods it selects become endpoints, one set of slices for each family.
/// Proves spec.ports.protocol: TCP and UDP; SCTP is said not to be served, and which kernels have none.
/// Proves status.conditions: weft.dev/AddressAssigned, weft.dev/Announced and weft.dev/Served say what holds and what cannot be honoured, and why.
#[test]
fn what_services_ask_for_is_done_or_said() {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), OBJECTS).unwrap();
    let args =
        ["--nodes", "2", "--outside", "1", "--max-frontends", "64", "--apply", file.path().to_str().unwrap()];
    let fabric = Fabric::up("ask", &args);
    let announced = |name: &str| {
        let said = condition(&fabric, name, "weft.dev/Announced");
        said.is_some_and(|said| said["message"].as_str().is_some_and(|text| text.contains("by node node2")))
    };
    let both = || announced("one") && announced("two");
    assert!(
        wait_until(PATIENCE, both),
        "{}{}{}",
        service(&fabric, "one"),
        service(&fabric, "two"),
        fabric.logs()
    );
    for name in ["one", "two"] {
        let given = &service(&fabric, name)["status"]["loadBalancer"]["ingress"];
        assert_eq!(*given, serde_json::json!([{"ip": ADDRESS, "ipMode": "VIP"}]), "{name}");
    }
    // Both ports of the shared address lead to the pod, which sees the client itself.
    for port in [80, 81] {
        let answer = || curl(&fabric, "outside1", &format!("http://{ADDRESS}:{port}/"));
        assert!(
            wait_until(PATIENCE, || answer().contains("\"pod\":\"web\"")),
            "{port}: {}{}",
            answer(),
            fabric.logs()
        );
        assert!(answer().contains("\"client\":\"172.30.0."), "{port}: {}", answer());
    }
    health_checks(&fabric);
    said(&fabric);
    endpoints(&fabric);
    fabric.down();
}

/// Only the node with the pod says that it is healthy.
fn health_checks(fabric: &Fabric) {
    let port = &service(fabric, "one")["spec"]["healthCheckNodePort"];
    let ask = |host: u8| curl(fabric, "outside1", &format!("http://172.30.0.{host}:{port}/"));
    assert!(wait_until(PATIENCE, || ask(12).starts_with("HTTP/1.1 200 ")), "{}", ask(12));
    assert!(ask(12).contains("\"localEndpoints\":1"), "{}", ask(12));
    assert!(wait_until(PATIENCE, || ask(11).starts_with("HTTP/1.1 503 ")), "{}", ask(11));
}

fn said(fabric: &Fabric) {
    // Only now: of services made in the same second, chance says which comes first.
    let wanted = serde_json::json!({"spec": {"type": "LoadBalancer"}});
    fabric.patch("/api/v1/namespaces/default/services/waits", &wanted);
    let full = || {
        condition(fabric, "waits", "weft.dev/AddressAssigned")
            .is_some_and(|said| said["reason"] == "PoolExhausted")
    };
    assert!(wait_until(PATIENCE, full), "{}", service(fabric, "waits"));
    let told = || {
        let events = fabric.get("/apis/events.k8s.io/v1/namespaces/default/events");
        let events = events["items"].as_array().cloned().unwrap_or_default();
        events.iter().any(|event| {
            event["regarding"]["name"] == "waits"
                && event["reason"] == "PoolExhausted"
                && event["type"] == "Warning"
        })
    };
    assert!(wait_until(PATIENCE, told), "{}", fabric.get("/apis/events.k8s.io/v1/namespaces/default/events"));
    let others = service(fabric, "others");
    assert_eq!(others["status"]["loadBalancer"], serde_json::json!({}), "{others}");
    assert!(others["status"]["conditions"].as_array().is_none_or(Vec::is_empty), "{others}");
    // SAFETY: a plain system call; the descriptor is closed with the process.
    let kernel_has_it = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP) } >= 0;
    let why = if kernel_has_it { "the datapath balances TCP and UDP" } else { "no node's kernel has SCTP" };
    let expected = format!("spec.ports[1].protocol: SCTP port 90 is not served: {why}");
    let named = || {
        let said = condition(fabric, "two", "weft.dev/Served");
        said.is_some_and(|said| said["message"].as_str().is_some_and(|text| text.contains(&expected)))
    };
    assert!(wait_until(PATIENCE, named), "{expected}: {}", service(fabric, "two"));
    let status = fabric.json(&["status"]);
    assert_eq!(status[0]["agent"]["tables"]["services"][1], 64, "as --max-frontends has it");
}

/// The objects that slices have replaced, in both directions.
fn endpoints(fabric: &Fabric) {
    let written = || {
        let object = fabric.get("/api/v1/namespaces/default/endpoints/one");
        object["subsets"][0]["addresses"][0]["targetRef"]["name"] == "web"
    };
    assert!(wait_until(PATIENCE, written));
    let slices = || {
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dhand";
        fabric.get(path)["items"].as_array().cloned().unwrap_or_default()
    };
    assert!(wait_until(PATIENCE, || slices().len() == 1), "{:?}", slices());
    let slice = &slices()[0];
    let labels: BTreeSet<&str> =
        slice["metadata"]["labels"].as_object().unwrap().keys().map(String::as_str).collect();
    assert!(labels.contains("written"), "{slice}");
    let managed = &slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"];
    assert_eq!(managed, "endpointslicemirroring-controller.k8s.io");
    assert_eq!(slice["endpoints"][0]["addresses"][0], "172.30.0.12");
    fabric.delete("/api/v1/namespaces/default/endpoints/hand");
    assert!(wait_until(PATIENCE, || slices().is_empty()), "{:?}", slices());
    fabric.delete("/api/v1/namespaces/default/services/one");
    let gone = || {
        let list = fabric.get("/api/v1/namespaces/default/endpoints");
        !list["items"]
            .as_array()
            .is_some_and(|items| items.iter().any(|item| item["metadata"]["name"] == "one"))
    };
    assert!(wait_until(PATIENCE, gone));
}
