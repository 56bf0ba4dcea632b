//! What was acknowledged survives `kill -9`; how many writes a second that allows.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams};
use serde_json::json;
use weft_apiserver::start;
use weft_pki::{Ca, Kubeconfig};

use crate::support::{Fixture, config, config_map};

const DIR: &str = "WEFT_TEST_SERVER_DIR";
const ROUNDS: usize = 3;
const WRITERS: usize = 16;

/// Not a test of its own: the server that the test below starts in a child process and kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the durability test as a child process"]
async fn child_server() {
    let dir = std::env::var(DIR).expect("the parent test names the directory");
    let dir = Path::new(&dir);
    let ca = Ca::load_or_create(&dir.join("ca.crt"), &dir.join("ca.key")).unwrap();
    let server = start(config(&ca, dir)).await.unwrap();
    let client = ca.client_cert("admin", Some("system:masters")).unwrap();
    let url = format!("https://{}", server.address());
    Kubeconfig { cluster: "test", server: &url, ca_cert: ca.cert_pem(), user: "admin", client: &client }
        .write(&dir.join("kubeconfig"))
        .unwrap();
    eprintln!("serving");
    server.wait().await;
}

fn spawn(dir: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "durability::child_server", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut others = Vec::new();
    for line in lines.map_while(Result::ok) {
        if line == "serving" {
            return child;
        }
        others.push(line);
    }
    let status = child.wait().unwrap();
    panic!("the child did not serve but ended with {status}: {others:#?}");
}

async fn client(dir: &Path) -> kube::Client {
    let text = std::fs::read_to_string(dir.join("kubeconfig")).unwrap();
    let parsed = kube::config::Kubeconfig::from_yaml(&text).unwrap();
    let config = kube::Config::from_custom_kubeconfig(parsed, &Default::default()).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

/// Creates maps as fast as the server takes them, and returns the names it acknowledged.
async fn write_until_killed(
    client: kube::Client,
    round: usize,
    acknowledged: Arc<AtomicUsize>,
) -> Vec<String> {
    let writers = (0..WRITERS).map(|writer| {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        let acknowledged = Arc::clone(&acknowledged);
        tokio::spawn(async move {
            let mut names = Vec::new();
            loop {
                let name = format!("r{round}-w{writer}-{}", names.len());
                let map = serde_json::from_value(config_map(&name, json!({"k": "v"}))).unwrap();
                if maps.create(&PostParams::default(), &map).await.is_err() {
                    return names;
                }
                acknowledged.fetch_add(1, Ordering::Relaxed);
                names.push(name);
            }
        })
    });
    let lists = futures::future::join_all(writers.collect::<Vec<_>>()).await;
    lists.into_iter().flat_map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_write_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let mut child = spawn(dir.path());
        let count = Arc::new(AtomicUsize::new(0));
        let writing = tokio::spawn(write_until_killed(client(dir.path()).await, round, Arc::clone(&count)));
        while count.load(Ordering::Relaxed) < 150 {
            assert!(!writing.is_finished(), "the writers stopped before the server was killed");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(writing.await.unwrap());
    }
    let mut child = spawn(dir.path());
    let maps: Api<ConfigMap> = Api::namespaced(client(dir.path()).await, "default");
    let kept = maps.list(&ListParams::default()).await.unwrap();
    let kept: std::collections::HashSet<String> =
        kept.items.into_iter().filter_map(|map| map.metadata.name).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    let lost: Vec<&String> = acknowledged.iter().filter(|name| !kept.contains(*name)).collect();
    assert!(acknowledged.len() >= 150 * ROUNDS);
    assert!(
        lost.is_empty(),
        "{} of {} acknowledged writes are lost: {lost:?}",
        lost.len(),
        acknowledged.len()
    );
}

/// Prints the rate; how fast a machine is, is no test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_share_commits() {
    const WRITES: usize = 1500;
    let fixture = Fixture::start().await;
    let client = fixture.kube().await;
    let begun = Instant::now();
    let creations = (0..WRITES).map(|i| {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        async move {
            let map = serde_json::from_value(config_map(&format!("m{i}"), json!({"k": "v"}))).unwrap();
            maps.create(&PostParams::default(), &map).await.unwrap();
        }
    });
    futures::future::join_all(creations).await;
    let rate = WRITES as f64 / begun.elapsed().as_secs_f64();
    eprintln!("{WRITES} acknowledged creations over TLS at {rate:.0} a second");
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), WRITES + 1);
}
