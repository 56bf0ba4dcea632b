//! Rollouts under load, from pods and from outside: nothing is lost by pods that honour readiness and preStop.

mod support;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{Fabric, text, wait_until, weft};

const ROLLOUTS: usize = 5;
const APP: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 10
  strategy: {rollingUpdate: {maxSurge: 3, maxUnavailable: 2}}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 10
      containers:
      - name: web
        image: example.com/web
        ports: [{containerPort: 8080}, {containerPort: 8080, protocol: UDP}]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 2}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}, {name: echo, protocol: UDP, port: 81, targetPort: 8080, nodePort: 30081}]
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

fn load(fabric: &Fabric, from: &str, args: &[&str]) -> std::process::Child {
    let mut command = Command::new(weft());
    command.args(["lab", "exec", "--name", &fabric.name, from, "--", weft(), "lab", "load"]).args(args);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    command.spawn().expect("weft can be started")
}

fn outcomes(who: &str, child: std::process::Child) -> Vec<Value> {
    let output = child.wait_with_output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{who}: {out}{err}");
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
        .collect()
}

fn service(fabric: &Fabric) -> Value {
    fabric.get("/api/v1/namespaces/default/services/web")
}

#[test]
fn rollouts_under_load_lose_nothing() {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    std::fs::write(file.path(), APP).unwrap();
    let fabric = Fabric::up("storm", &["--outside", "1", "--apply", file.path().to_str().unwrap()]);
    let address =
        || service(&fabric)["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned);
    assert!(wait_until(Duration::from_secs(20), || address().is_some()), "{}", service(&fabric));
    let balancer = address().expect("just seen");
    let cluster_ip = service(&fabric)["spec"]["clusterIP"].as_str().expect("allocated").to_owned();
    let frontends = |port: u16, node_port: u16| {
        let nodes = (11..=13).map(|host| format!("172.30.0.{host}:{node_port}"));
        nodes.chain([format!("{balancer}:{port}")]).collect::<Vec<_>>()
    };
    let (http, echo) = (frontends(80, 30080), frontends(81, 30081));
    let seconds = (ROLLOUTS * 8).to_string();
    let args = |addresses: &[String], rate: &str, more: &[&str]| {
        let mut args: Vec<String> = addresses.to_vec();
        args.extend(["--rate", rate, "--seconds", &seconds].map(str::to_owned));
        args.extend(more.iter().map(|more| (*more).to_owned()));
        args
    };
    let start = |from: &str, args: Vec<String>| {
        load(&fabric, from, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let inside = [format!("{cluster_ip}:80")];
    let loads = [
        ("a pod, cluster IP, connection for each", start("default/client", args(&inside, "500", &[]))),
        ("a pod, cluster IP, kept", start("default/client", args(&inside, "500", &["--keep", "8"]))),
        ("outside, connection for each", start("outside1", args(&http, "500", &[]))),
        ("outside, kept", start("outside1", args(&http, "500", &["--keep", "4"]))),
    ];
    let inside_stream = start("default/client", args(&[format!("{cluster_ip}:81")], "200", &["--datagrams"]));
    let outside_stream = start("outside1", args(&echo, "200", &["--datagrams"]));
    for rollout in 1..=ROLLOUTS {
        fabric.patch(
            "/apis/apps/v1/namespaces/default/deployments/web",
            &serde_json::json!({"spec": {"template": {"metadata": {"annotations": {"rollout": rollout.to_string()}}}}}),
        );
        let done = || {
            let status = fabric.get("/apis/apps/v1/namespaces/default/deployments/web");
            let count = |field: &str| status["status"][field].as_u64().unwrap_or_default();
            status["status"]["observedGeneration"] == status["metadata"]["generation"]
                && count("updatedReplicas") == 10
                && count("replicas") == 10
                && count("availableReplicas") == 10
        };
        assert!(
            wait_until(Duration::from_secs(60), done),
            "rollout {rollout} did not end\n{}",
            fabric.logs()
        );
    }
    for (who, child) in loads {
        let outcome = &outcomes(who, child)[0];
        assert_eq!(outcome["failed"], 0, "{who}: {outcome}");
        assert_eq!(outcome["answered"], outcome["sent"], "{who}: {outcome}");
        // web-TEMPLATE-POD: before the first rollout, and after each.
        let pods = outcome["pods"].as_object().expect("who answered");
        let templates: BTreeSet<&str> = pods.keys().filter_map(|pod| pod.split('-').nth(1)).collect();
        // A connection that is kept leaves its pod only with it, and may skip a rollout then.
        let least = if who.ends_with("kept") { 3 } else { ROLLOUTS + 1 };
        assert!(templates.len() >= least, "{who}: rollouts passed it by: {outcome}");
    }
    for (who, child) in [("datagrams of a pod", inside_stream), ("datagrams from outside", outside_stream)] {
        for stream in outcomes(who, child) {
            let missing = stream["sent"].as_u64().unwrap() - stream["answered"].as_u64().unwrap();
            let moves = stream["runs"].as_array().map_or(0, Vec::len) as u64;
            assert_eq!(stream["errors"], serde_json::json!([]), "{who}");
            // A backend serves until its event arrives, so a move costs at most what is on its way then.
            assert!(missing <= moves, "{who}: {missing} datagrams lost in {moves} moves: {stream}");
        }
    }
    fabric.down();
}
