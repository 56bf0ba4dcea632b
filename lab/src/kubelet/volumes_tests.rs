//! What volumes hold and how they change under a reader.
use super::*;
use serde_json::json;

fn pod(volumes: serde_json::Value, mounts: serde_json::Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web-0", "namespace": "shop", "uid": "u-1", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "volumeMounts": mounts}], "volumes": volumes},
    }))
    .expect("a pod")
}

fn gathered(colour: &str) -> Gathered {
    let mut gathered = Gathered::default();
    let map = json!({"data": {"colour": colour, "size": "9"}});
    gathered.sources.config_maps.insert("settings".into(), serde_json::from_value(map).expect("a map"));
    let secret = json!({"data": {"word": "aHVzaA=="}});
    gathered.sources.secrets.insert("hidden".into(), serde_json::from_value(secret).expect("a secret"));
    gathered
}

fn container(pod: &Pod) -> Container {
    pod.spec.as_ref().expect("a spec").containers[0].clone()
}

#[test]
fn files_are_written_refreshed_at_once_and_cleaned() {
    let dir = tempfile::tempdir().expect("a directory");
    let pod = pod(json!([{"name": "v", "configMap": {"name": "settings"}}]), json!([]));
    let facts = PodFacts::default();
    prepare(dir.path(), &pod, &facts, &gathered("red")).expect("written");
    let colour = dir.path().join("v/colour");
    assert_eq!(fs::read_to_string(&colour).expect("reads"), "red");
    let first = fs::read_link(dir.path().join("v/..data")).expect("a link");
    prepare(dir.path(), &pod, &facts, &gathered("red")).expect("unchanged");
    assert_eq!(
        fs::read_link(dir.path().join("v/..data")).expect("a link"),
        first,
        "nothing changed, nothing moved"
    );
    let mut changed = gathered("blue");
    let map = changed.sources.config_maps.get_mut("settings").expect("the map");
    map.data.as_mut().expect("data").remove("size");
    prepare(dir.path(), &pod, &facts, &changed).expect("refreshed");
    assert_eq!(fs::read_to_string(&colour).expect("reads"), "blue");
    assert!(fs::symlink_metadata(dir.path().join("v/size")).is_err());
    assert!(!dir.path().join("v").join(first).exists());
}

#[test]
fn projected_volumes_join_their_sources() {
    let dir = tempfile::tempdir().expect("a directory");
    let volume = json!([{"name": "v", "projected": {"defaultMode": 256, "sources": [
        {"configMap": {"name": "settings", "items": [{"key": "size", "path": "a/size", "mode": 448}]}},
        {"secret": {"name": "hidden"}},
        {"secret": {"name": "none", "optional": true}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]}}]);
    prepare(dir.path(), &pod(volume, json!([])), &PodFacts::default(), &gathered("red")).expect("written");
    let read = |name: &str| fs::read_to_string(dir.path().join("v").join(name)).expect(name);
    assert_eq!((read("a/size").as_str(), read("word").as_str()), ("9", "hush"));
    assert_eq!(read("labels"), "app=\"web\"\n");
    let mode =
        |name: &str| fs::metadata(dir.path().join("v").join(name)).expect(name).permissions().mode() & 0o777;
    assert_eq!((mode("a/size"), mode("word")), (0o700, 0o400));
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let error = |volume: serde_json::Value| {
        let pod = pod(json!([volume]), json!([]));
        prepare(dir.path(), &pod, &PodFacts::default(), &gathered("red")).expect_err("refused").to_string()
    };
    assert_eq!(
        error(json!({"name": "v", "secret": {"secretName": "no"}})),
        "volume \"v\": secret \"no\" not found"
    );
    let key = json!({"name": "v", "configMap": {"name": "settings", "items": [{"key": "no", "path": "p"}]}});
    assert_eq!(error(key), "volume \"v\": configmap \"settings\" has no key no");
    let out =
        json!({"name": "v", "configMap": {"name": "settings", "items": [{"key": "size", "path": "../p"}]}});
    assert!(error(out).contains("without `..`"));
    let host = json!({"name": "v", "hostPath": {"path": "/no/such", "type": "Directory"}});
    assert!(error(host).contains("/no/such"));
}

#[test]
fn mounts_follow_sub_paths_and_stay_inside() {
    let dir = tempfile::tempdir().expect("a directory");
    let mount = |extra: serde_json::Value| {
        let mut mount = json!({"name": "v", "mountPath": "/data"});
        mount.as_object_mut().expect("object").extend(extra.as_object().expect("object").clone());
        let pod = pod(json!([{"name": "v", "emptyDir": {}}]), json!([mount]));
        let volumes = prepare(dir.path(), &pod, &PodFacts::default(), &gathered("red")).expect("written");
        volumes.mounts(&container(&pod), &[("N".to_owned(), "7".to_owned())]).map(|mounts| mounts[0].clone())
    };
    let plain = mount(json!({"readOnly": true})).expect("mounted");
    assert_eq!((plain.target, plain.access), (PathBuf::from("/data"), Access::ReadOnly));
    assert!(mount(json!({"subPathExpr": "x/$(N)"})).expect("mounted").source.ends_with("v/x/7"));
    assert!(
        mount(json!({"subPath": "../.."})).expect_err("leaves").to_string().contains("leaves the volume")
    );
}

#[test]
fn a_volume_nobody_can_provide_is_an_empty_directory_and_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let volume = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
    let volumes = prepare(dir.path(), &pod(volume, json!([])), &PodFacts::default(), &Gathered::default())
        .expect("made");
    assert_eq!(volumes.unprovided, ["v (persistentVolumeClaim)"]);
    assert!(dir.path().join("v").is_dir());
}
