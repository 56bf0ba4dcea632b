//! Rows as kubectl's users know them, and that no JSON makes rendering panic.
use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;

fn now() -> Timestamp {
    "2030-01-01T01:00:00Z".parse().unwrap()
}

fn cells(group: &str, kind: &str, object: Value) -> Vec<String> {
    let registry = Registry::new();
    let kind = registry.all().into_iter().find(|k| k.group == group && k.kind == kind).unwrap();
    let table = table(&registry, &kind, &[object], Value::Null, Include::Metadata, Columns::Show, now());
    let columns = table["columnDefinitions"].as_array().unwrap().len();
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(columns, cells.len(), "{}", kind.kind);
    cells.iter().map(super::cells::plain).collect()
}

fn pod(status: Value) -> Value {
    json!({
        "metadata": {"name": "p", "creationTimestamp": "2030-01-01T00:00:00Z"},
        "spec": {"nodeName": "node1", "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]},
        "status": status,
    })
}

#[test]
fn pod_status_words() {
    let running = json!({"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}});
    let crashing = json!({"name": "b", "ready": false, "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"finishedAt": "2030-01-01T00:58:00Z"}}});
    let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
    let cases = [
        (json!({"phase": "Pending"}), ["0/2", "Pending", "0"]),
        (
            json!({"phase": "Running", "initContainerStatuses": [done], "containerStatuses": [running, running]}),
            ["2/2", "Running", "0"],
        ),
        (
            json!({"phase": "Running", "containerStatuses": [running, crashing]}),
            ["1/2", "CrashLoopBackOff", "3 (2m ago)"],
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
            ["0/2", "Init:0/1", "0"],
        ),
        (
            json!({"phase": "Pending", "initContainerStatuses":
                [{"name": "i", "state": {"terminated": {"exitCode": 2}}}]}),
            ["0/2", "Init:ExitCode:2", "0"],
        ),
        (
            json!({"phase": "Succeeded", "containerStatuses":
                [{"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
            ["0/2", "Completed", "0"],
        ),
        (json!({"phase": "Failed", "reason": "Evicted"}), ["0/2", "Evicted", "0"]),
    ];
    for (status, expected) in cases {
        let row = cells("", "Pod", pod(status.clone()));
        assert_eq!(row[1..4], expected, "{status}");
        assert_eq!(row[4..], ["60m", "<none>", "node1", "<none>", "<none>"], "{status}");
    }
    let mut terminating = pod(json!({"phase": "Running"}));
    terminating["metadata"]["deletionTimestamp"] = json!("2030-01-01T00:59:00Z");
    assert_eq!(cells("", "Pod", terminating)[2], "Terminating");
}

#[test]
fn rows_of_other_kinds() {
    let meta = json!({"name": "x", "creationTimestamp": "2030-01-01T00:59:30Z"});
    let template = json!({"spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    let cases = [
        (
            ("apps", "Deployment"),
            json!({"metadata": meta, "spec": {"replicas": 3, "selector": {"matchLabels": {"a": "b"}}, "template": template},
                   "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2}}),
            "x 2/3 3 2 30s c i:1 a=b",
        ),
        (
            ("", "Service"),
            json!({"metadata": meta, "spec": {"type": "NodePort", "clusterIP": "10.96.0.1",
                   "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
                   "selector": {"app": "x"}}}),
            "x NodePort 10.96.0.1 <none> 80:30080/TCP,53/UDP 30s app=x",
        ),
        (
            ("", "Service"),
            json!({"metadata": meta, "spec": {"type": "LoadBalancer", "clusterIP": "None"}}),
            "x LoadBalancer None <pending> <none> 30s <none>",
        ),
        (
            ("", "Node"),
            json!({"metadata": {"name": "x", "creationTimestamp": "2030-01-01T00:59:30Z",
                     "labels": {"node-role.kubernetes.io/control-plane": ""}},
                   "spec": {"unschedulable": true},
                   "status": {"conditions": [{"type": "Ready", "status": "True"}],
                     "addresses": [{"type": "InternalIP", "address": "172.30.0.11"}],
                     "nodeInfo": {"kubeletVersion": "v1.32.0"}}}),
            "x Ready,SchedulingDisabled control-plane 30s v1.32.0 172.30.0.11 <none> <unknown> <unknown> <unknown>",
        ),
        (
            ("discovery.k8s.io", "EndpointSlice"),
            json!({"metadata": meta, "addressType": "IPv4", "ports": [{"port": 80}],
                   "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]},
                                 {"addresses": ["10.0.0.3"]}, {"addresses": ["10.0.0.4"]}]}),
            "x IPv4 80 10.0.0.1,10.0.0.2,10.0.0.3 + 1 more... 30s",
        ),
        (
            ("networking.k8s.io", "NetworkPolicy"),
            json!({"metadata": meta, "spec": {"podSelector": {}}}),
            "x <none> 30s",
        ),
        (
            ("batch", "Job"),
            json!({"metadata": meta, "spec": {"completions": 2, "template": template},
                   "status": {"startTime": "2030-01-01T00:59:40Z", "succeeded": 1}}),
            "x Running 1/2 20s 30s c i:1 <none>",
        ),
    ];
    for ((group, kind), object, expected) in cases {
        assert_eq!(cells(group, kind, object).join(" "), expected, "{kind}");
    }
}

#[test]
fn every_kind_has_as_many_cells_as_columns() {
    let registry = Registry::new();
    for kind in registry.all() {
        for object in [json!({}), json!({"metadata": {"name": "x"}, "spec": 3, "status": "y"})] {
            let table = table(&registry, &kind, &[object], Value::Null, Include::None, Columns::Show, now());
            let columns = table["columnDefinitions"].as_array().unwrap().len();
            assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), columns, "{}", kind.kind);
        }
    }
}

#[test]
fn accepted_forms() {
    let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
    assert!(requested(kubectl).is_some());
    for plain in
        ["application/json", "*/*", "", "application/json, application/json;as=Table;v=v1;g=meta.k8s.io"]
    {
        assert!(requested(plain).is_none(), "{plain}");
    }
}
