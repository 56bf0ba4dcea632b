//! Watching a server that misbehaves: it refuses streaming lists, lists in pages, serves objects nobody can read,
//! and expires resource versions.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use weft_kube::{Cluster, Link, client_from_kubeconfig, list_once};
use weft_model::{ClusterSettings, PodKey, Severity};

type Body = BoxBody<Bytes, Infallible>;

#[derive(Default)]
struct Fake {
    streams_refused: AtomicUsize,
    lists: AtomicUsize,
    watches: AtomicUsize,
}

impl Fake {
    async fn start(self: &Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let fake = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = fake.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| {
                        let fake = fake.clone();
                        async move { Ok::<_, Infallible>(fake.handle(request)) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        format!("http://{address}")
    }

    fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        // What a server says of a group that nobody has installed.
        if request.uri().path().starts_with("/apis/weft.dev/") {
            let mut response = Response::new(Full::new(Bytes::from("404 page not found\n")).boxed());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        if query.contains("sendInitialEvents=true") {
            self.streams_refused.fetch_add(1, Ordering::SeqCst);
            let message =
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "reason": "Invalid", "code": 422, "message": message,
            });
            return reply(StatusCode::UNPROCESSABLE_ENTITY, &status);
        }
        let pods = request.uri().path() == "/api/v1/pods";
        if query.contains("watch=true") {
            return if pods { self.watch_pods() } else { open_watch(Vec::new()) };
        }
        let page = match (pods, query.contains("continue=second")) {
            (false, _) => (vec![], ""),
            (true, false) => (vec![pod("a", "10.244.0.1"), unreadable("broken")], "second"),
            (true, true) => (vec![pod("b", "10.244.0.2")], ""),
        };
        if pods {
            self.lists.fetch_add(1, Ordering::SeqCst);
        }
        reply(
            StatusCode::OK,
            &json!({
                "kind": "List", "apiVersion": "v1",
                "metadata": {"resourceVersion": "10", "continue": page.1}, "items": page.0,
            }),
        )
    }

    /// The first watch says that its version is too old; the next brings a pod that breaks and one that goes.
    fn watch_pods(&self) -> Response<Body> {
        if self.watches.fetch_add(1, Ordering::SeqCst) == 0 {
            let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "reason": "Expired", "code": 410, "message": "too old resource version"});
            return open_watch(vec![json!({"type": "ERROR", "object": gone})]);
        }
        open_watch(vec![
            json!({"type": "MODIFIED", "object": unreadable("a")}),
            json!({"type": "DELETED", "object": pod("b", "10.244.0.2")}),
            json!({"type": "ADDED", "object": pod("c", "10.244.0.3")}),
        ])
    }
}

fn reply(code: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed());
    *response.status_mut() = code;
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

fn open_watch(events: Vec<Value>) -> Response<Body> {
    let lines = stream::iter(events).map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(lines.chain(stream::pending()))));
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "uid": name, "resourceVersion": "11"},
        "spec": {"nodeName": "node1", "containers": []},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

fn unreadable(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "uid": name, "resourceVersion": "12"},
        "spec": {"containers": "none"},
    })
}

async fn client(url: &str) -> kube::Client {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": url}}],
        "users": [{"name": "it", "user": {}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
    });
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    client_from_kubeconfig(&path).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_lists_where_streaming_is_refused_and_lives_with_bad_objects_and_old_versions() {
    let fake = Arc::new(Fake::default());
    let url = fake.start().await;
    let cluster = Cluster::start(client(&url).await, ClusterSettings::default());
    let mut views = cluster.subscribe();
    let (a, b, c) = (PodKey::new("shop", "a"), PodKey::new("shop", "b"), PodKey::new("shop", "c"));
    let settled = views.wait_for(|view| {
        let pods = &view.snapshot.pods;
        view.synced && pods.contains_key(&c) && !pods.contains_key(&b)
    });
    let view =
        tokio::time::timeout(Duration::from_secs(30), settled).await.expect("it settles").unwrap().clone();
    assert_eq!(view.link, Link::Connected, "a kind that is not installed is no lost watch");
    assert!(view.snapshot.pods.contains_key(&a), "a pod that cannot be read keeps its last good state");
    let broken: Vec<_> = view.findings.iter().map(|finding| finding.object.as_str()).collect();
    assert_eq!(broken, ["Pod shop/a", "Pod shop/broken"]);
    assert!(view.findings.iter().all(|finding| finding.severity == Severity::Error));
    assert_eq!(fake.streams_refused.load(Ordering::SeqCst), 6, "each installed kind tries once");
    assert_eq!(fake.lists.load(Ordering::SeqCst), 4, "two pages, again after the version expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn listing_once_goes_through_every_page() {
    let fake = Arc::new(Fake::default());
    let client = client(&fake.start().await).await;
    let (snapshot, findings) = list_once(&client, ClusterSettings::default()).await.unwrap();
    assert_eq!((snapshot.pods.len(), findings.len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_said_to_be_lost_and_named() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = client(&format!("http://{closed}")).await;
    let error = list_once(&client, ClusterSettings::default()).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot list namespaces: "), "{error}");
    let cluster = Cluster::start(client, ClusterSettings::default());
    let mut views = cluster.subscribe();
    let lost = views.wait_for(|view| matches!(view.link, Link::Lost { .. }));
    let view =
        tokio::time::timeout(Duration::from_secs(30), lost).await.expect("it is lost").unwrap().clone();
    assert!(!view.synced);
    let reconnected = views.wait_for(|later| !matches!(later.link, Link::Lost { .. }));
    let waited = tokio::time::timeout(Duration::from_secs(2), reconnected).await;
    assert!(waited.is_err(), "further attempts that fail are no connection");
}
