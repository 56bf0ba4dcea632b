//! The store's promises: order, conflicts, history, durability across reopening.

use serde_json::json;
use tempfile::TempDir;

use super::*;

fn open(dir: &TempDir) -> Store {
    open_with(dir, HistoryLength(100))
}

fn open_with(dir: &TempDir, history: HistoryLength) -> Store {
    let (feed, _) = tokio_mpsc::unbounded_channel();
    // The writer thread of an earlier handle may still be letting go of the file.
    for _ in 0..200 {
        match Store::open(dir.path(), history, feed.clone()) {
            Ok(store) => return store,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
    Store::open(dir.path(), history, feed).unwrap()
}

fn pods() -> Resource {
    Resource::new("", "pods")
}

fn key(name: &str) -> Key {
    Key::new(&pods(), Some("default"), name)
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}})
}

async fn put(store: &Store, name: &str, expected: Expected) -> Result<Arc<Entry>, Error> {
    store.write(key(name), expected, Change::Put(pod(name))).await
}

#[tokio::test]
async fn create_twice_conflicts_and_stale_update_conflicts() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let first = put(&store, "a", Expected::Absent).await.unwrap();
    assert!(matches!(put(&store, "a", Expected::Absent).await, Err(Error::Exists(_))));
    let second = put(&store, "a", Expected::At(first.revision)).await.unwrap();
    assert!(second.revision > first.revision);
    assert!(matches!(put(&store, "a", Expected::At(first.revision)).await, Err(Error::Conflict(_))));
    assert_eq!(second.value["metadata"]["resourceVersion"], second.revision.to_string());
}

#[tokio::test]
async fn reopened_store_has_every_write_and_continues_the_revisions() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let writes = (0..200).map(|i| {
        let store = store.clone();
        tokio::spawn(async move { put(&store, &format!("p{i}"), Expected::Absent).await.unwrap() })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    let doomed = store.latest(&key("p7")).unwrap();
    store.write(key("p7"), Expected::At(doomed.revision), Change::Delete(pod("p7"))).await.unwrap();
    let revision = store.revision();
    drop(store);
    let store = open(&dir);
    assert_eq!(store.revision(), revision);
    assert_eq!(store.list(&pods(), None).items.len(), 199);
    assert!(store.get(&key("p7")).is_none());
    let next = put(&store, "new", Expected::Absent).await.unwrap();
    assert_eq!(next.revision, Revision(revision.0 + 1));
}

#[tokio::test]
async fn watcher_sees_every_event_once_in_order_from_its_position() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    put(&store, "before", Expected::Absent).await.unwrap();
    let mut watcher = store.watch(&pods(), store.revision()).unwrap();
    let a = put(&store, "a", Expected::Absent).await.unwrap();
    put(&store, "a", Expected::At(a.revision)).await.unwrap();
    watcher.changed().await.unwrap();
    let seen: Vec<_> = watcher.take().unwrap().iter().map(|e| (e.kind, e.key.name().to_owned())).collect();
    assert_eq!(seen, [(EventKind::Added, "a".to_owned()), (EventKind::Modified, "a".to_owned())]);
    assert!(watcher.take().unwrap().is_empty());
}

#[tokio::test]
async fn history_window_expires_old_positions_and_lists_the_past_within_it() {
    let dir = TempDir::new().unwrap();
    let store = open_with(&dir, HistoryLength(5));
    let start = store.revision();
    for i in 0..4 {
        put(&store, &format!("p{i}"), Expected::Absent).await.unwrap();
    }
    let middle = store.revision();
    let gone = store.latest(&key("p0")).unwrap();
    store.write(key("p0"), Expected::At(gone.revision), Change::Delete(pod("p0"))).await.unwrap();
    put(&store, "p9", Expected::Absent).await.unwrap();
    let past: Vec<_> = store
        .list_at(&pods(), None, middle)
        .unwrap()
        .items
        .iter()
        .map(|(path, _)| path.to_string())
        .collect();
    assert_eq!(past, ["default/p0", "default/p1", "default/p2", "default/p3"]);
    assert!(matches!(store.watch(&pods(), start), Err(Error::Expired { .. })));
    store.compact(store.revision());
    assert!(matches!(store.list_at(&pods(), None, middle), Err(Error::Expired { .. })));
    assert!(matches!(store.watch(&pods(), Revision(1 << 40)), Err(Error::Future { .. })));
}

#[tokio::test]
async fn a_watcher_that_missed_nothing_outlives_compaction() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let a = put(&store, "a", Expected::Absent).await.unwrap();
    let (mut idle, mut behind) =
        (store.watch(&pods(), a.revision).unwrap(), store.watch(&pods(), a.revision).unwrap());
    let elsewhere = Key::new(&Resource::new("", "secrets"), Some("default"), "s");
    store.write(elsewhere, Expected::Absent, Change::Put(pod("s"))).await.unwrap();
    store.compact(store.revision());
    assert!(matches!(store.watch(&pods(), a.revision), Err(Error::Expired { .. })));
    put(&store, "b", Expected::Absent).await.unwrap();
    let seen: Vec<_> = idle.take().unwrap().iter().map(|event| event.key.name().to_owned()).collect();
    assert_eq!(seen, ["b"]);
    store.compact(store.revision());
    assert!(matches!(behind.take(), Err(Error::Expired { .. })));
}

#[tokio::test]
async fn owners_and_uids_are_indexed() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir);
    let mut child = pod("child");
    child["metadata"]["ownerReferences"] =
        json!([{"uid": "uid-owner", "kind": "ReplicaSet", "name": "owner"}]);
    let entry = store.write(key("child"), Expected::Absent, Change::Put(child.clone())).await.unwrap();
    assert_eq!(store.dependents("uid-owner"), [key("child")]);
    assert_eq!(store.find_uid("uid-child"), Some(key("child")));
    store.write(key("child"), Expected::At(entry.revision), Change::Delete(child)).await.unwrap();
    assert!(store.dependents("uid-owner").is_empty() && store.find_uid("uid-child").is_none());
}
