//! Watches: order, selectors, resumption, bookmarks, streaming lists, expiry.

use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::support::{Client, Fixture, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Reads a watch line by line.
struct Stream {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Stream {
    async fn open(client: &Client, path: &str) -> Self {
        let response = client.open(Method::GET, path, "", Vec::new()).await;
        assert_eq!(response.status(), 200);
        Self { body: response.into_body(), buffer: Vec::new() }
    }

    /// The next event, `None` when the server has ended the stream.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.buffer.extend_from_slice(frame.data_ref()?);
        }
    }

    async fn brief(&mut self) -> (String, String) {
        let event = self.next().await.unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

fn labelled(name: &str, value: &str) -> Value {
    let mut object = config_map(name, json!({}));
    object["metadata"]["labels"] = json!({"x": value});
    object
}

fn pair(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

#[tokio::test]
async fn events_follow_the_initial_state_and_selectors_turn_changes_into_arrivals_and_departures() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    admin.post(MAPS, labelled("a", "1")).await.expect(201);
    admin.post(MAPS, labelled("b", "2")).await.expect(201);
    let mut watch = Stream::open(&admin, &format!("{MAPS}?watch=1&labelSelector=x%3D1")).await;
    assert_eq!(watch.brief().await, pair("ADDED", "a"));
    admin.patch(&format!("{MAPS}/b"), "merge", json!({"metadata": {"labels": {"x": "1"}}})).await.expect(200);
    assert_eq!(watch.brief().await, pair("ADDED", "b"));
    admin.patch(&format!("{MAPS}/b"), "merge", json!({"data": {"k": "v"}})).await.expect(200);
    assert_eq!(watch.brief().await, pair("MODIFIED", "b"));
    let left = admin
        .patch(&format!("{MAPS}/a"), "merge", json!({"metadata": {"labels": {"x": "9"}}}))
        .await
        .expect(200);
    let departure = watch.next().await.unwrap();
    assert_eq!(departure["type"], "DELETED");
    assert_eq!(departure["object"]["metadata"]["labels"]["x"], "1", "the last state that was selected");
    assert_eq!(departure["object"]["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"]);
    admin.delete(&format!("{MAPS}/b"), json!({})).await.expect(200);
    assert_eq!(watch.brief().await, pair("DELETED", "b"));
}

#[tokio::test]
async fn a_watch_resumes_exactly_where_a_list_ended() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let list = admin.get(MAPS).await.expect(200);
    let from = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    for name in ["a", "b", "c"] {
        admin.post(MAPS, config_map(name, json!({}))).await.expect(201);
    }
    let mut watch = Stream::open(&admin, &format!("{MAPS}?watch=true&resourceVersion={from}")).await;
    for name in ["a", "b", "c"] {
        assert_eq!(watch.brief().await, pair("ADDED", name));
    }
}

#[tokio::test]
async fn compaction_expires_old_positions_and_future_ones_are_too_large() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    let from = admin.get(MAPS).await.expect(200)["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    admin.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let store = &fixture.server.as_ref().unwrap().api().store;
    store.compact(store.revision());
    let mut watch = Stream::open(&admin, &format!("{MAPS}?watch=true&resourceVersion={from}")).await;
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["reason"], "Expired");
    assert!(watch.next().await.is_none());
    let future = admin.get(&format!("{MAPS}?resourceVersion=999999999")).await.expect(504);
    assert_eq!(future["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

#[tokio::test]
async fn streaming_lists_end_with_a_bookmark_and_watches_end_on_time() {
    let fixture = Fixture::start().await;
    let admin = fixture.admin();
    admin.post(MAPS, config_map("a", json!({}))).await.expect(201);
    let path = format!(
        "{MAPS}?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=1&fieldSelector=metadata.name%3Da"
    );
    let mut watch = Stream::open(&admin, &path).await;
    assert_eq!(watch.brief().await, pair("ADDED", "a"));
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let last = watch.next().await.unwrap();
    assert_eq!(last["type"], "BOOKMARK");
    assert!(watch.next().await.is_none(), "the time is over");
    let refused = admin.get(&format!("{MAPS}?watch=1&sendInitialEvents=true")).await;
    assert_eq!(refused.code, 400, "{}", refused.body);
}

#[tokio::test]
async fn tables_name_their_columns_once() {
    let fixture = Fixture::start().await;
    let admin = fixture
        .admin()
        .with_header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
    admin.post(MAPS, config_map("a", json!({}))).await.expect(201);
    admin.post(MAPS, config_map("b", json!({}))).await.expect(201);
    let list = admin.get(MAPS).await.expect(200);
    assert_eq!((&list["kind"], &list["columnDefinitions"][0]["name"]), (&json!("Table"), &json!("Name")));
    let mut watch =
        Stream::open(&admin, &format!("{MAPS}?watch=1&fieldSelector=metadata.name!%3Dkube-root-ca.crt"))
            .await;
    let (first, second) = (watch.next().await.unwrap(), watch.next().await.unwrap());
    assert_eq!(first["object"]["columnDefinitions"][0]["name"], "Name");
    assert!(second["object"]["columnDefinitions"].as_array().is_none_or(Vec::is_empty), "{second}");
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
}

#[tokio::test]
async fn kubes_watcher_goes_on_after_a_restart_of_the_server() {
    use futures::StreamExt;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::{WatchStreamExt, watcher};
    let mut fixture = Fixture::start().await;
    let maps: kube::Api<ConfigMap> = kube::Api::namespaced(fixture.kube().await, "default");
    let config = watcher::Config::default().fields("metadata.name!=kube-root-ca.crt");
    let mut events = Box::pin(watcher(maps, config).applied_objects());
    fixture.admin().post(MAPS, config_map("a", json!({}))).await.expect(201);
    assert_eq!(events.next().await.unwrap().unwrap().metadata.name.unwrap(), "a");
    fixture.restart().await;
    fixture.admin().post(MAPS, config_map("b", json!({}))).await.expect(201);
    let sees_b = async {
        loop {
            // While the server is away the watcher reports errors and tries again.
            if let Some(Ok(map)) = events.next().await
                && map.metadata.name.as_deref() == Some("b")
            {
                return;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), sees_b).await.unwrap();
}
