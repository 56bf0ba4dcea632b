//! Defaults and refusals, table by table, with the words clients show their users.
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{apply, validate_create, validate_status, validate_update, warnings};
use crate::kinds::{Kind, Registry};
use crate::schema::{decode, decode_message};

fn kind(name: &str) -> Arc<Kind> {
    let (group, kind) = name.split_once('/').unwrap_or(("", name));
    Registry::new().all().into_iter().find(|k| k.group == group && k.kind == kind).unwrap()
}

/// The object a client sent, with metadata and defaults.
fn prepared(name: &str, mut object: Value) -> Value {
    let kind = kind(name);
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.kind);
    if object["metadata"].is_null() {
        object["metadata"] = json!({"name": "x"});
    }
    if kind.namespaced && object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = json!("default");
    }
    let decoded = decode(&kind, &mut object);
    assert_eq!(decoded, Default::default(), "{name}");
    apply(&kind, &mut object);
    object
}

fn refusals(name: &str, object: Value) -> Vec<String> {
    validate_create(&kind(name), &prepared(name, object)).iter().map(ToString::to_string).collect()
}

fn template() -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn deployment() -> Value {
    json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template()}})
}

fn pod(container: Value) -> Value {
    let mut container = container;
    container["name"] = json!("c");
    if container["image"].is_null() {
        container["image"] = json!("i");
    }
    json!({"spec": {"containers": [container]}})
}

#[test]
fn what_is_filled_in() {
    let pod = prepared(
        "Pod",
        pod(json!({
            "image": "nginx:1.27", "ports": [{"containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": 80}},
            "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
        })),
    );
    let container = &pod["spec"]["containers"][0];
    for (value, expected) in [
        (&container["imagePullPolicy"], json!("IfNotPresent")),
        (&container["ports"][0]["protocol"], json!("TCP")),
        (&container["readinessProbe"]["httpGet"], json!({"port": 80, "path": "/", "scheme": "HTTP"})),
        (&container["readinessProbe"]["periodSeconds"], json!(10)),
        (&container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], json!("v1")),
        (&container["resources"]["requests"], json!({"cpu": "1", "memory": "1Gi"})),
        (&container["terminationMessagePath"], json!("/dev/termination-log")),
        (&pod["spec"]["restartPolicy"], json!("Always")),
        (&pod["spec"]["dnsPolicy"], json!("ClusterFirst")),
        (&pod["spec"]["terminationGracePeriodSeconds"], json!(30)),
        (&pod["spec"]["securityContext"], json!({})),
        (&pod["spec"]["serviceAccountName"], json!("default")),
        (&pod["status"], json!({"phase": "Pending", "qosClass": "Guaranteed"})),
    ] {
        assert_eq!(*value, expected);
    }
    let deployment = prepared("apps/Deployment", deployment());
    let rolling =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}});
    assert_eq!(deployment["spec"]["replicas"], 1);
    assert_eq!(deployment["spec"]["strategy"], rolling);
    assert_eq!(deployment["spec"]["template"]["spec"]["schedulerName"], "default-scheduler");
    let service = prepared("Service", json!({"spec": {"ports": [{"port": 80}]}}));
    assert_eq!(service["spec"]["type"], "ClusterIP");
    assert_eq!(service["spec"]["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
    assert_eq!(service["spec"]["internalTrafficPolicy"], "Cluster");
}

#[test]
fn what_is_filled_in_elsewhere() {
    let policy = prepared(
        "networking.k8s.io/NetworkPolicy",
        json!({"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}}),
    );
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(policy["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
    let secret = prepared("Secret", json!({"stringData": {"a": "hello"}}));
    assert_eq!((&secret["type"], &secret["data"]), (&json!("Opaque"), &json!({"a": "aGVsbG8="})));
    assert!(secret.get("stringData").is_none());
    let metadata = json!({"name": "j", "namespace": "default", "uid": "u1"});
    let job = json!({"metadata": metadata, "spec": {"template":
        {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}});
    let job = prepared("batch/Job", job);
    assert_eq!(job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"], "u1");
    assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
    let stateful = prepared(
        "apps/StatefulSet",
        json!({"spec": {"serviceName": "s",
        "selector": {"matchLabels": {"a": "b"}}, "template": template(),
        "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]}}),
    );
    assert_eq!(stateful["spec"]["updateStrategy"]["rollingUpdate"]["partition"], 0);
    assert_eq!(stateful["spec"]["volumeClaimTemplates"][0]["spec"]["volumeMode"], "Filesystem");
    let quantity = prepared("Pod", pod(json!({"resources": {"requests": {"cpu": 0.5, "memory": "1024Mi"}}})));
    assert_eq!(
        quantity["spec"]["containers"][0]["resources"]["requests"],
        json!({"cpu": "500m", "memory": "1Gi"})
    );
}

#[test]
fn good_objects_pass() {
    let cases = [
        ("Pod", pod(json!({}))),
        ("apps/Deployment", deployment()),
        ("apps/DaemonSet", deployment()),
        ("Service", json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}], "selector": {"a": "b"}}})),
        ("Service", json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}})),
        ("Service", json!({"spec": {"type": "ExternalName", "externalName": "example.com"}})),
        ("ConfigMap", json!({"data": {"a.conf": "x"}})),
        ("networking.k8s.io/NetworkPolicy", json!({"spec": {"podSelector": {}}})),
        (
            "networking.k8s.io/NetworkPolicy",
            json!({"spec": {"podSelector": {}, "ingress": [{"from": [
            {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}, {"podSelector": {}}]}]}}),
        ),
        (
            "discovery.k8s.io/EndpointSlice",
            json!({"addressType": "IPv6", "endpoints": [{"addresses": ["fd00::1"]}],
            "ports": [{"name": "http", "port": 80}]}),
        ),
        (
            "rbac.authorization.k8s.io/ClusterRole",
            json!({"metadata": {"name": "system:x"},
            "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
                      {"verbs": ["get"], "nonResourceURLs": ["/healthz"]}]}),
        ),
        ("Node", json!({"spec": {"podCIDRs": ["10.244.0.0/24", "fd00::/64"]}})),
        (
            "coordination.k8s.io/Lease",
            json!({"spec": {"leaseDurationSeconds": 15,
            "renewTime": "2030-01-01T00:00:00.000000Z"}}),
        ),
        (
            "batch/CronJob",
            json!({"spec": {"schedule": "*/5 0-6 * jan mon-fri", "jobTemplate": {"spec": {"template":
            {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": "i"}]}}}}}}),
        ),
        (
            "networking.k8s.io/Ingress",
            json!({"spec": {"rules": [{"host": "*.example.com", "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}),
        ),
    ];
    for (name, object) in cases {
        assert_eq!(refusals(name, object), Vec::<String>::new(), "{name}");
    }
}

fn assert_refused(cases: &[(&str, Value, &str)]) {
    for (name, object, expected) in cases {
        let found = refusals(name, object.clone());
        assert!(
            found.iter().any(|e| e.starts_with(expected)),
            "{name} {object}\nwant {expected}\ngot  {found:#?}"
        );
    }
}

#[test]
fn bad_pods_and_workloads() {
    let with = |path: &str, value: Value| {
        let mut object = deployment();
        *object.pointer_mut(path).unwrap() = value;
        object
    };
    assert_refused(&[
        (
            "Pod",
            json!({"metadata": {"name": "Bad_Name"}, "spec": {"containers": []}}),
            "metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain must",
        ),
        ("Pod", json!({"spec": {"containers": []}}), "spec.containers: Required value"),
        ("Pod", json!({"spec": {"containers": [{"name": "c"}]}}), "spec.containers[0].image: Required value"),
        (
            "Pod",
            json!({"spec": {"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]}}),
            "spec.containers[1].name: Duplicate value: \"c\"",
        ),
        (
            "Pod",
            pod(json!({"ports": [{"containerPort": 70000}]})),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            "Pod",
            pod(json!({"ports": [{"containerPort": 80, "protocol": "ICMP"}]})),
            "spec.containers[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            "Pod",
            pod(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            "Pod",
            pod(json!({"livenessProbe": {}})),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            "Pod",
            pod(json!({"env": [{"name": "a=b"}]})),
            "spec.containers[0].env[0].name: Invalid value: \"a=b\"",
        ),
        (
            "Pod",
            pod(json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}})),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            "apps/Deployment",
            with("/spec/template/metadata/labels/a", json!("c")),
            "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`",
        ),
        ("apps/Deployment", json!({"spec": {"template": template()}}), "spec.selector: Required value"),
        (
            "apps/Deployment",
            with("/spec/selector", json!({})),
            "spec.selector: Invalid value: {}: empty selector",
        ),
        (
            "batch/Job",
            json!({"spec": {"template": template()}}),
            "spec.template.spec.restartPolicy: Unsupported value: \"Always\": supported values: \"OnFailure\", \"Never\"",
        ),
        (
            "batch/CronJob",
            json!({"spec": {"schedule": "61 * * * *", "jobTemplate": {}}}),
            "spec.schedule: Invalid value: \"61 * * * *\"",
        ),
    ]);
}

#[test]
fn bad_network_objects() {
    let policy = |ingress: Value| json!({"spec": {"podSelector": {}, "ingress": [ingress]}});
    let slice =
        |kind: &str, address: &str| json!({"addressType": kind, "endpoints": [{"addresses": [address]}]});
    assert_refused(&[
        ("Service", json!({"spec": {}}), "spec.ports: Required value"),
        (
            "Service",
            json!({"metadata": {"name": "1x"}, "spec": {"ports": [{"port": 1}]}}),
            "metadata.name: Invalid value: \"1x\": a DNS-1035 label must",
        ),
        (
            "Service",
            json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}}),
            "spec.ports[0].name: Required value",
        ),
        (
            "Service",
            json!({"spec": {"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 1}]}}),
            "spec.ports[1]: Duplicate value: {\"protocol\":\"TCP\",\"port\":1}",
        ),
        (
            "Service",
            json!({"spec": {"type": "Wrong", "ports": [{"port": 1}]}}),
            "spec.type: Unsupported value: \"Wrong\"",
        ),
        (
            "Service",
            json!({"spec": {"clusterIP": "10.0.0", "clusterIPs": ["10.0.0"], "ports": [{"port": 1}]}}),
            "spec.clusterIPs[0]: Invalid value: \"10.0.0\": must be a valid IP address",
        ),
        (
            "networking.k8s.io/NetworkPolicy",
            policy(json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/33"}}]})),
            "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.0/33\": must be a valid CIDR value",
        ),
        (
            "networking.k8s.io/NetworkPolicy",
            policy(json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]})),
            "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
        ),
        (
            "networking.k8s.io/NetworkPolicy",
            policy(json!({"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]})),
            "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
        ),
        (
            "networking.k8s.io/NetworkPolicy",
            policy(json!({"from": [{}]})),
            "spec.ingress[0].from[0]: Required value: must specify a peer",
        ),
        (
            "networking.k8s.io/NetworkPolicy",
            policy(json!({"ports": [{"port": 90, "endPort": 80}]})),
            "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
        ),
        (
            "networking.k8s.io/NetworkPolicy",
            policy(json!({"ports": [{"port": "http", "endPort": 80}]})),
            "spec.ingress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is non-numeric",
        ),
        (
            "discovery.k8s.io/EndpointSlice",
            slice("IPv4", "fd00::1"),
            "endpoints[0].addresses[0]: Invalid value: \"fd00::1\": must be a valid IPv4 address",
        ),
        (
            "discovery.k8s.io/EndpointSlice",
            slice("IPv4", "127.0.0.1"),
            "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range",
        ),
        (
            "Node",
            json!({"spec": {"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}}),
            "spec.podCIDRs: Invalid value",
        ),
        ("networking.k8s.io/Ingress", json!({"spec": {}}), "spec: Invalid value"),
    ]);
}

#[test]
fn bad_objects_of_other_kinds() {
    assert_refused(&[
        ("ConfigMap", json!({"data": {"a/b": "x"}}), "data[a/b]: Invalid value: \"a/b\": a valid config key"),
        (
            "ConfigMap",
            json!({"metadata": {"name": "x", "labels": {"-a": "b"}}}),
            "metadata.labels: Invalid value: \"-a\"",
        ),
        (
            "ConfigMap",
            json!({"metadata": {"name": "x", "labels": {"a": "b c"}}}),
            "metadata.labels: Invalid value: \"b c\": a valid label must be",
        ),
        (
            "Namespace",
            json!({"metadata": {"name": "x.y"}}),
            "metadata.name: Invalid value: \"x.y\": a lowercase RFC 1123 label",
        ),
        (
            "rbac.authorization.k8s.io/Role",
            json!({"rules": [{"verbs": [], "apiGroups": [""], "resources": ["pods"]}]}),
            "rules[0].verbs: Required value: verbs must contain at least one value",
        ),
        (
            "rbac.authorization.k8s.io/RoleBinding",
            json!({"roleRef": {"kind": "Thing", "name": "x"}}),
            "roleRef.kind: Unsupported value: \"Thing\"",
        ),
        ("Secret", json!({"type": "kubernetes.io/tls", "data": {}}), "data[tls.crt]: Required value"),
        ("PersistentVolumeClaim", json!({"spec": {}}), "spec.accessModes: Required value"),
    ]);
}

#[test]
fn what_must_not_change() {
    let cases = [
        (
            "apps/Deployment",
            deployment(),
            "/spec/selector/matchLabels/a",
            json!("c"),
            "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"c\"}}: field is immutable",
        ),
        (
            "Pod",
            pod(json!({})),
            "/spec/dnsPolicy",
            json!("Default"),
            "spec: Forbidden: pod updates may not change fields other than",
        ),
        (
            "Service",
            json!({"spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [{"port": 80}]}}),
            "/spec/clusterIPs/0",
            json!("10.96.0.10"),
            "spec.clusterIPs[0]: Invalid value: [\"10.96.0.10\"]: may not change once set",
        ),
        (
            "ConfigMap",
            json!({"immutable": true, "data": {"a": "b"}}),
            "/data/a",
            json!("c"),
            "data: Forbidden: field is immutable when `immutable` is set",
        ),
        (
            "rbac.authorization.k8s.io/ClusterRoleBinding",
            json!({"roleRef": {"kind": "ClusterRole", "name": "x"}}),
            "/roleRef/name",
            json!("y"),
            "roleRef: Invalid value",
        ),
        (
            "ConfigMap",
            json!({}),
            "/metadata/name",
            json!("other"),
            "metadata.name: Invalid value: \"other\": field is immutable",
        ),
    ];
    for (name, object, path, value, expected) in cases {
        let old = prepared(name, object);
        let mut new = old.clone();
        assert_eq!(validate_update(&kind(name), &old, &new), vec![], "{name}");
        *new.pointer_mut(path).unwrap() = value;
        let found: Vec<String> =
            validate_update(&kind(name), &old, &new).iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|e| e.starts_with(expected)), "{name}: {found:#?}");
    }
    let old = prepared("Pod", pod(json!({})));
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = json!("other");
    assert_eq!(validate_update(&kind("Pod"), &old, &new), vec![]);
}

#[test]
fn decoding_reports_what_go_would() {
    let cases = [
        (
            "apps/Deployment",
            json!({"spec": {"replicas": "three"}}),
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go \
          struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            "Pod",
            json!({"metadata": {"labels": {"a": 1}}}),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field \
          ObjectMeta.metadata.labels.a of type string",
        ),
    ];
    for (name, mut object, expected) in cases {
        let decoded = decode(&kind(name), &mut object);
        assert_eq!(decode_message(&kind(name), &decoded.errors), expected);
    }
    let mut object =
        json!({"spec": {"containers": [{"name": "c", "imag": "x"}], "foo": {"bar": 1}}, "status": null});
    let decoded = decode(&kind("Pod"), &mut object);
    assert_eq!(decoded.unknown, ["unknown field \"spec.containers[0].imag\"", "unknown field \"spec.foo\""]);
    assert_eq!(object, json!({"spec": {"containers": [{"name": "c"}]}}));
}

#[test]
fn what_is_warned_of() {
    let mut object = deployment();
    object["spec"]["template"]["spec"]["nodeSelector"] = json!({"beta.kubernetes.io/os": "linux"});
    let expected = "spec.template.spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use \"kubernetes.io/os\" instead";
    assert_eq!(warnings(&kind("apps/Deployment"), &prepared("apps/Deployment", object)), [expected]);
    let env = json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]});
    assert!(
        warnings(&kind("Pod"), &prepared("Pod", pod(env)))[0].contains("hides previous definition of \"A\"")
    );
    assert_eq!(warnings(&kind("Pod"), &prepared("Pod", pod(json!({})))), Vec::<String>::new());
}

/// JSON that looks like an object of some kind, with anything in any place.
fn any_json() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec![
        "metadata",
        "spec",
        "status",
        "template",
        "containers",
        "ports",
        "name",
        "labels",
        "selector",
        "ingress",
        "from",
        "ipBlock",
        "cidr",
        "except",
        "rules",
        "versions",
        "names",
        "schema",
        "openAPIV3Schema",
        "type",
        "properties",
        "limits",
        "resources",
        "data",
        "env",
        "valueFrom",
        "roleRef",
        "jobTemplate",
        "conditions",
        "clusterIPs",
        "addresses",
        "endpoints",
        "subsets",
        "volumes",
        "strategy",
        "tolerations",
        "x",
        "metrics",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z0-9./:%*-]{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["object", "array", "TCP", "10.0.0.0/8", "None", "25%", "100Mi"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(7, 96, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..6).prop_map(|fields| Value::Object(
                fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
            )),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn no_json_makes_anything_panic(object in any_json(), other in any_json()) {
        let registry = Registry::new();
        for kind in registry.all() {
            let mut raw = object.clone();
            apply(&kind, &mut raw);
            validate_create(&kind, &raw);
            let mut decoded = object.clone();
            decode(&kind, &mut decoded);
            apply(&kind, &mut decoded);
            validate_update(&kind, &other, &decoded);
            validate_status(&kind, &other, &decoded);
            warnings(&kind, &decoded);
            crate::kinds::scale::read(&kind, &decoded);
            crate::tables::table(&registry, &kind, &[decoded], Value::Null, crate::tables::Include::Object,
                crate::tables::Columns::Show, jiff::Timestamp::UNIX_EPOCH);
        }
        let _ = registry.install_crd(&object);
    }
}
