//! A pod run by Debian's containerd and runc on a node of a fabric: the node's own agent, its policies and its
//! services, asked through CRI and CNI as on any cluster. The test is the pod's kubelet; the fabric's leaves it alone.

#[path = "containerd/cri.rs"]
mod cri;
#[path = "containerd/node.rs"]
mod node;
mod support;

#[path = "../../../tests/containers/mod.rs"]
mod containers;

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use cri::{ContainerConfig, ContainerMetadata, Cri, ImageSpec};
use node::{ContainerdNode, sandbox_config};
use support::{Fabric, skip, text, wait_until};

const TEST: &str = "containerd_runs_a_pod_on_a_node_of_the_fabric";

/// One friend on each node, one stranger; the guest of containerd may only deal with friends.
const CLUSTER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: friend}}
spec:
  nodeName: node1
  containers: [{name: c, image: example.com/c, ports: [{containerPort: 8080}, {containerPort: 5300, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: friend}}
spec:
  nodeName: node2
  containers: [{name: c, image: example.com/c, ports: [{containerPort: 8080}, {containerPort: 5300, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, labels: {app: stranger}}
spec:
  nodeName: node1
  containers: [{name: c, image: example.com/c, ports: [{containerPort: 8080}, {containerPort: 5300, protocol: UDP}]}]
---
apiVersion: v1
kind: Service
metadata: {name: friends}
spec:
  selector: {app: friend}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guest}
spec:
  podSelector: {matchLabels: {app: guest}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]
  egress: [{to: [{podSelector: {matchLabels: {app: friend}}}]}]
"#;

const GUEST: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: guest
  labels: {app: guest}
  annotations: {kubernetes.io/config.mirror: "containerd"}
spec:
  nodeName: node1
  containers: [{name: guest, image: "weft.test/probe:1"}]
"#;

/// Datagrams that the guest sends to each of its peers before it does anything else.
const FLOOD: u64 = 50;

#[tokio::test(flavor = "multi_thread")]
async fn containerd_runs_a_pod_on_a_node_of_the_fabric() {
    if let Some(reason) = containers::lacking() {
        return skip::skip(TEST, reason);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let fabric = Fabric::up("cri", &["--nodes", "2", "--apply", &file("cluster.yaml", CLUSTER)]);
    let containerd = ContainerdNode::start(&fabric, "node1");
    let mut cri = containerd.cri().await;
    let pods: Api<Pod> = Api::namespaced(fabric.client().await, "default");
    let peers = Peers::find(&pods).await;
    let before = fabric.ok(&["status", "--tables", "node1"]);
    let received = |pod: &str| datagrams(&fabric, pod);
    let counts_before = ["near", "far", "stranger"].map(received);

    fabric.ok(&["apply", &file("guest.yaml", GUEST)]);
    let guest = pods.get("guest").await.unwrap();
    let config = sandbox_config(&guest, &containerd);
    let sandbox =
        cri.run_sandbox(&config).await.unwrap_or_else(|error| panic!("{error}\n{}", containerd.log()));
    let addresses = addresses_of(&mut cri, &sandbox).await;
    assert_eq!(addresses.len(), 2, "one of each family: {addresses:?}");
    report_running(&pods, &addresses).await;
    let flood = FLOOD.to_string();
    let mut command = vec!["/probe", "flood", &flood, "5300"];
    command.extend([&*peers.near, &*peers.far, &*peers.stranger]);
    let container = cri.start_container(&sandbox, &config, container_config(&command)).await;

    listens(&fabric, &addresses);
    let counts = ["near", "far", "stranger"].map(received);
    let grown: Vec<u64> = counts.iter().zip(counts_before).map(|(now, before)| now - before).collect();
    assert_eq!(grown, [FLOOD, FLOOD, 0], "datagrams that reached the friends and the stranger");

    speaks_with_friends_alone(&mut cri, &container, &peers).await;
    is_reached_by_friends_alone(&fabric, &addresses);

    cri.remove_sandbox(&sandbox).await;
    pods.delete("guest", &DeleteParams::default().grace_period(0)).await.unwrap();
    leaves_nothing(&fabric, &containerd, &before);
    drop(containerd);
    fabric.down();
}

struct Peers {
    near: String,
    far: String,
    stranger: String,
    service: String,
}

impl Peers {
    async fn find(pods: &Api<Pod>) -> Self {
        let services: Api<Service> = Api::namespaced(pods.clone().into_client(), "default");
        let service = services.get("friends").await.unwrap().spec.unwrap().cluster_ip.unwrap();
        let address = async |name: &str| {
            let status = pods.get(name).await.unwrap().status.unwrap();
            status.pod_ip.expect("a pod that is ready has an address")
        };
        let (near, far, stranger) = (address("near").await, address("far").await, address("stranger").await);
        Self { near, far, stranger, service }
    }
}

fn container_config(command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "guest".to_owned() }),
        image: Some(ImageSpec { image: containers::IMAGE.to_owned() }),
        command: command.iter().map(ToString::to_string).collect(),
        log_path: "guest.log".to_owned(),
    }
}

async fn addresses_of(cri: &mut Cri, sandbox: &str) -> Vec<String> {
    let status = cri.sandbox_status(sandbox).await;
    assert_eq!(status.state, 0, "the sandbox is ready");
    let network = status.network.expect("a network");
    let more = network.additional_ips.into_iter().map(|address| address.ip);
    std::iter::once(network.ip).chain(more).collect()
}

/// What a kubelet tells of a pod: other nodes learn its addresses from this.
async fn report_running(pods: &Api<Pod>, addresses: &[String]) {
    let ips: Vec<_> = addresses.iter().map(|address| json!({"ip": address})).collect();
    let status = json!({"status": {"phase": "Running", "podIP": addresses[0], "podIPs": ips}});
    pods.patch_status("guest", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// Datagrams that the pod's sockets were given, from the kernel's own count.
fn datagrams(fabric: &Fabric, pod: &str) -> u64 {
    let snmp = text(&fabric.exec(pod, &["cat", "/proc/net/snmp"]).stdout);
    let mut udp = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (udp.next().unwrap(), udp.next().unwrap());
    let at = names.split(' ').position(|name| name == "InDatagrams").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// What a pod of the fabric reads from there within two seconds; nothing is what a dropped packet looks like.
fn read_from(fabric: &Fabric, pod: &str, address: &str) -> String {
    let script = format!("exec 3<>/dev/tcp/{address}/8080 && cat <&3");
    text(&fabric.exec(pod, &["timeout", "2", "bash", "-c", &script]).stdout)
}

fn listens(fabric: &Fabric, addresses: &[String]) {
    for address in addresses {
        let answers = || read_from(fabric, "near", address) == "from the container\n";
        assert!(wait_until(support::PATIENCE, answers), "the guest does not answer at {address}");
    }
}

fn is_reached_by_friends_alone(fabric: &Fabric, addresses: &[String]) {
    for address in addresses {
        assert_eq!(read_from(fabric, "far", address), "from the container\n", "{address}");
        assert_eq!(read_from(fabric, "stranger", address), "", "{address}");
    }
}

async fn speaks_with_friends_alone(cri: &mut Cri, container: &str, peers: &Peers) {
    // What the peer says, or why it says nothing.
    let mut get = async |address: &str, port: &str| {
        let outcome = cri.exec(container, &["/probe", "get", address, port], 2).await?;
        let said = text(&outcome.stdout);
        if outcome.exit_code == 0 { Ok(said) } else { Err(format!("{said}{}", text(&outcome.stderr))) }
    };
    for (pod, address) in [("near", &peers.near), ("far", &peers.far)] {
        let said = get(address, "8080").await;
        assert!(said.as_ref().is_ok_and(|said| said.contains(pod)), "{pod} at {address}: {said:?}");
    }
    let said = get(&peers.service, "80").await;
    let is_friend = |said: &String| said.contains("near") || said.contains("far");
    assert!(said.as_ref().is_ok_and(is_friend), "the service: {said:?}");
    let silence = get(&peers.stranger, "8080").await;
    assert!(
        silence.as_ref().is_err_and(|why| why.contains("deadline") || why.contains("timeout")),
        "{silence:?}"
    );
}

fn leaves_nothing(fabric: &Fabric, containerd: &ContainerdNode, before: &str) {
    let mut tables = String::new();
    let same = || {
        tables = fabric.ok(&["status", "--tables", "node1"]);
        tables == before
    };
    assert!(wait_until(support::PATIENCE, same), "before:\n{before}\nafter:\n{tables}");
    assert_eq!(containerd.network_namespaces(), Vec::<String>::new());
    let status = fabric.json(&["status"]);
    let pods = status[0]["agent"]["pods"].as_array().unwrap();
    assert_eq!(pods.len(), 2, "{pods:#?}");
    assert_eq!(containerd.links(), 2, "one for each pod of the fabric's own kubelet");
}
