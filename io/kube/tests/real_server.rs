//! Against the embedded API server as a process of its own: watching, its death and return, status, events, elections.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::events::v1::Event;
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;
use weft_kube::lease::LeaseTimes;
use weft_kube::{
    Cluster, EventRecorder, Leadership, Link, Subject, View, client_from_kubeconfig, lead, list_once,
    set_network_available,
};
use weft_model::{ClusterSettings, NodeName, ServiceKey};

#[path = "../../../tests/skip.rs"]
mod skip;

const LONG: Duration = Duration::from_secs(30);

struct Server {
    child: Child,
    dir: PathBuf,
    address: String,
}

impl Server {
    /// `None`: the server's example program is not built.
    fn start(dir: &Path, address: &str) -> Option<Self> {
        let test = std::env::current_exe().unwrap();
        let program = test.parent()?.parent()?.join("examples/serve");
        if !program.exists() {
            return None;
        }
        let mut child = Command::new(program)
            .arg(dir)
            .arg(address)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("export KUBECONFIG="), "the server did not start: {line}");
        Some(Self { child, dir: dir.to_owned(), address: address.to_owned() })
    }

    async fn client(&self) -> Client {
        client_from_kubeconfig(&self.dir.join("kubeconfig")).await.unwrap()
    }

    fn kill(mut self) -> (PathBuf, String) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.dir.clone(), self.address.clone())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_address() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

async fn until(views: &mut watch::Receiver<View>, what: &str, wanted: impl FnMut(&View) -> bool) -> View {
    match tokio::time::timeout(LONG, views.wait_for(wanted)).await {
        Ok(view) => view.unwrap().clone(),
        Err(_) => panic!("never seen: {what}"),
    }
}

async fn create_service(client: &Client, name: &str) {
    let service: Service = object(json!({
        "metadata": {"name": name, "namespace": "default"}, "spec": {"ports": [{"port": 80}]},
    }));
    Api::<Service>::default_namespaced(client.clone())
        .create(&PostParams::default(), &service)
        .await
        .unwrap();
}

macro_rules! server_or_skip {
    ($dir:expr, $test:literal) => {
        match Server::start($dir.path(), &free_address()) {
            Some(server) => server,
            None => {
                return skip::skip(
                    $test,
                    "the API server's example is not built (cargo build -p weft-apiserver --example serve)",
                );
            }
        }
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn it_follows_the_cluster_through_the_servers_death() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_or_skip!(dir, "it_follows_the_cluster_through_the_servers_death");
    let client = server.client().await;
    let cluster = Cluster::start(client.clone(), ClusterSettings::default());
    let first = tokio::time::timeout(LONG, cluster.synced()).await.expect("it syncs");
    assert!(first.snapshot.namespaces.keys().any(|name| name.as_str() == "default"));
    let mut views = cluster.subscribe();
    create_service(&client, "before").await;
    let before = ServiceKey::new("default", "before");
    let view = until(&mut views, "a new service", |view| view.snapshot.services.contains_key(&before)).await;
    assert_eq!(view.link, Link::Connected);
    assert!(!view.snapshot.services[&before].cluster_ips.is_empty());
    let (snapshot, _) = list_once(&client, ClusterSettings::default()).await.unwrap();
    assert_eq!(snapshot, *view.snapshot, "watching and listing see the same");

    let (path, address) = server.kill();
    let lost = until(&mut views, "the loss", |view| matches!(view.link, Link::Lost { .. })).await;
    assert_eq!(lost.snapshot, view.snapshot, "the last state stays");
    let server = Server::start(&path, &address).unwrap();
    let client = server.client().await;
    create_service(&client, "after").await;
    let after = ServiceKey::new("default", "after");
    until(&mut views, "what came after", |view| {
        view.link == Link::Connected && view.snapshot.services.contains_key(&after)
    })
    .await;
    Api::<Service>::default_namespaced(client).delete("before", &Default::default()).await.unwrap();
    until(&mut views, "a deletion", |view| !view.snapshot.services.contains_key(&before)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_events_are_written_and_not_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_or_skip!(dir, "status_and_events_are_written_and_not_repeated");
    let client = server.client().await;
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node = object(json!({"metadata": {"name": "node1"}}));
    nodes.create(&PostParams::default(), &node).await.unwrap();
    set_network_available(&client, "node1", "WeftIsUp", "pods have a network").await.unwrap();
    let written = nodes.get("node1").await.unwrap();
    let conditions = written.status.unwrap().conditions.unwrap();
    let condition = conditions.iter().find(|condition| condition.type_ == "NetworkUnavailable").unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_deref()), ("False", Some("WeftIsUp")));
    set_network_available(&client, "node1", "WeftIsUp", "pods have a network").await.unwrap();
    let again = nodes.get("node1").await.unwrap();
    assert_eq!(
        again.metadata.resource_version, written.metadata.resource_version,
        "nothing new, nothing written"
    );
    let error = set_network_available(&client, "node9", "WeftIsUp", "").await.unwrap_err().to_string();
    assert!(error.contains("node9") && error.contains("404"), "{error}");

    let recorder = EventRecorder::new(client.clone(), "weft-agent", "node1");
    for _ in 0..3 {
        recorder.warning(&Subject::node(&NodeName::new("node1")), "TableFull", "a kernel table is full");
    }
    let events: Api<Event> = Api::all(client);
    let deadline = tokio::time::Instant::now() + LONG;
    loop {
        let found: Vec<Event> = events.list(&ListParams::default()).await.unwrap().items;
        let ours: Vec<_> =
            found.iter().filter(|event| event.reason.as_deref() == Some("TableFull")).collect();
        if let [event] = ours[..]
            && event.series.as_ref().is_some_and(|series| series.count == 3)
        {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "one event, counted three times: {ours:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_leads_and_another_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_or_skip!(dir, "one_leads_and_another_takes_over");
    let client = server.client().await;
    let namespace: Namespace = object(json!({"metadata": {"name": "weft-system"}}));
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await.ok();
    let times = LeaseTimes {
        duration: Duration::from_secs(60),
        renew_deadline: Duration::from_secs(40),
        retry: Duration::from_millis(50),
    };
    let mut first = lead(client.clone(), "weft-system", "weft-controller", "a", times);
    tokio::time::timeout(LONG, first.wait_for(|state| *state == Leadership::Leading)).await.unwrap().unwrap();
    let mut second = lead(client.clone(), "weft-system", "weft-controller", "b", times);
    let follows = Leadership::Following { leader: Some("a".to_owned()) };
    tokio::time::timeout(LONG, second.wait_for(|state| *state == follows)).await.unwrap().unwrap();
    drop(first);
    // Released, so far sooner than the lease's minute.
    tokio::time::timeout(LONG, second.wait_for(|state| *state == Leadership::Leading))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_changes_is_seen_whole() {
    let dir = tempfile::tempdir().unwrap();
    let server = server_or_skip!(dir, "a_burst_of_changes_is_seen_whole");
    let client = server.client().await;
    let cluster = Cluster::start(client.clone(), ClusterSettings::default());
    tokio::time::timeout(LONG, cluster.synced()).await.expect("it syncs");
    let mut views = cluster.subscribe();
    let before = views.borrow().generation;
    let pods: Api<Pod> = Api::default_namespaced(client);
    for number in 0..100 {
        let pod: Pod = object(json!({
            "metadata": {"name": format!("p{number}")},
            "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "i"}]},
        }));
        pods.create(&PostParams::default(), &pod).await.unwrap();
    }
    let view = until(&mut views, "a hundred pods", |view| view.snapshot.pods.len() == 100).await;
    assert!(view.generation > before);
}
