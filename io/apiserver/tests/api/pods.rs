//! What only pods have: binding, eviction, and streams that end at the kubelet.

use std::path::Path;
use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use crate::support::{Fixture, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";

/// A kubelet that notes what it is asked, answers logs, and echoes upgraded streams.
pub async fn fake_kubelet(socket: &Path) -> Arc<Mutex<Vec<String>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let listener = UnixListener::bind(socket).unwrap();
    let asked = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let asked = Arc::clone(&asked);
            let service = service_fn(move |request| answer(request, Arc::clone(&asked)));
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            tokio::spawn(connection);
        }
    });
    seen
}

async fn answer(
    mut request: Request<Incoming>,
    asked: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<bytes::Bytes>>, std::convert::Infallible> {
    asked.lock().unwrap().push(request.uri().to_string());
    if !request.headers().contains_key(http::header::UPGRADE) {
        return Ok(Response::new(Full::from("line one\nline two\n")));
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgraded.await.unwrap());
        let mut buffer = [0; 64];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..read]).await.unwrap();
        }
    });
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(http::header::UPGRADE, "weft-echo".parse().unwrap());
    response.headers_mut().insert(http::header::CONNECTION, "upgrade".parse().unwrap());
    Ok(response)
}

#[tokio::test]
async fn a_service_account_must_be_there_before_its_pods() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let mut robot = pod("web");
    robot["spec"]["serviceAccountName"] = json!("robot");
    let refused = admin.post(PODS, robot.clone()).await.expect(403);
    assert_eq!(
        refused["message"],
        "pods \"web\" is forbidden: error looking up service account default/robot: serviceaccount \"robot\" \
         not found"
    );
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}});
    admin.post("/api/v1/namespaces/default/serviceaccounts", account).await.expect(201);
    admin.post(PODS, robot).await.expect(201);
    admin.post(PODS, pod("plain")).await.expect(201);
}

#[tokio::test]
async fn binding_places_a_pod_once() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let created = admin.post(PODS, pod("web")).await.expect(201);
    assert_eq!(
        (&created["status"]["phase"], &created["status"]["qosClass"]),
        (&json!("Pending"), &json!("BestEffort"))
    );
    let binding = |node: &str| json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web"}, "target": {"name": node}});
    admin.post(&format!("{PODS}/web/binding"), binding("node1")).await.expect(201);
    let bound = admin.get(&format!("{PODS}/web")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "node1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let again = admin.post(&format!("{PODS}/web/binding"), binding("node2")).await.expect(409);
    assert!(again["message"].as_str().unwrap().contains("already assigned to node \"node1\""), "{again}");
}

#[tokio::test]
async fn eviction_respects_a_spent_budget() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    admin.post(PODS, pod("web")).await.expect(201);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}},
    });
    admin.post(budgets, budget).await.expect(201);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "web"}});
    let refused = admin.post(&format!("{PODS}/web/eviction"), eviction.clone()).await.expect(429);
    assert_eq!(refused["details"]["causes"][0]["reason"], "DisruptionBudget");
    admin.delete(&format!("{budgets}/b"), json!({})).await.expect(200);
    admin.post(&format!("{PODS}/web/eviction"), eviction).await.expect(201);
    assert_eq!(admin.get(&format!("{PODS}/web")).await.code, 404);
}

#[tokio::test]
async fn logs_come_from_the_kubelet_under_its_own_path() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let seen = fake_kubelet(&fixture.dir.path().join("node1.sock")).await;
    let mut two = pod("web");
    two["spec"]["nodeName"] = "node1".into();
    two["spec"]["containers"] = json!([{"name": "a", "image": "x"}, {"name": "b", "image": "x"}]);
    admin.post(PODS, two).await.expect(201);
    let unclear = admin.get(&format!("{PODS}/web/log")).await.expect(400);
    assert_eq!(unclear["message"], "a container name must be specified for pod web, choose one of: [a b]");
    let log = admin.get(&format!("{PODS}/web/log?container=b&tailLines=2")).await.expect(200);
    assert_eq!(log, "line one\nline two\n");
    assert_eq!(*seen.lock().unwrap(), ["/containerLogs/default/web/b?container=b&tailLines=2"]);
    let wrong = admin.get(&format!("{PODS}/web/log?container=c")).await.expect(400);
    assert_eq!(wrong["message"], "container c is not valid for pod web");
    admin.post(PODS, pod("nowhere")).await.expect(201);
    assert_eq!(admin.get(&format!("{PODS}/nowhere/log")).await.expect(200), "");
    let mut lost = pod("lost");
    lost["spec"]["nodeName"] = "node9".into();
    admin.post(PODS, lost).await.expect(201);
    let dead = admin.get(&format!("{PODS}/lost/log")).await.expect(500);
    assert!(dead["message"].as_str().unwrap().contains("the kubelet of node \"node9\""), "{dead}");
}

#[tokio::test]
async fn exec_is_tunnelled_both_ways_after_the_upgrade() {
    let fixture = Fixture::start().await;
    let seen = fake_kubelet(&fixture.dir.path().join("node1.sock")).await;
    let mut placed = pod("web");
    placed["spec"]["nodeName"] = "node1".into();
    fixture.admin().post(PODS, placed).await.expect(201);
    let path = format!("{PODS}/web/exec?command=sh&command=-c&stdin=true&stdout=true&tty=false");
    let mut stream = fixture.admin().upgrade(&path, "weft-echo").await;
    stream.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"hello");
    assert_eq!(
        *seen.lock().unwrap(),
        ["/exec/default/web/main?command=sh&command=-c&input=1&output=1&tty=0"]
    );
}

#[tokio::test]
async fn scale_reads_and_writes_replicas() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "x"}]}},
        },
    });
    let path = "/apis/apps/v1/namespaces/default/replicasets";
    admin.post(path, set).await.expect(201);
    let mut scale = admin.get(&format!("{path}/web/scale")).await.expect(200);
    assert_eq!((&scale["kind"], &scale["status"]["selector"]), (&json!("Scale"), &json!("app=web")));
    scale["spec"]["replicas"] = 4.into();
    admin.put(&format!("{path}/web/scale"), scale.clone()).await.expect(200);
    let set: Value = admin.get(&format!("{path}/web")).await.expect(200);
    assert_eq!((&set["spec"]["replicas"], &set["metadata"]["generation"]), (&json!(4), &json!(2)));
    scale["spec"]["replicas"] = json!(-1);
    admin.patch(&format!("{path}/web/scale"), "merge", json!({"spec": {"replicas": -1}})).await.expect(422);
}
