//! What a container's environment holds, case by case.
use super::*;
use serde_json::json;

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web-0", "namespace": "shop", "uid": "u-1", "labels": {"app": "web"}},
        "spec": {"nodeName": "node1", "containers": []},
    }))
    .expect("a pod")
}

fn facts() -> PodFacts {
    PodFacts {
        pod_ips: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        host_ips: vec!["172.30.0.11".parse().unwrap()],
        allocatable: BTreeMap::from([("cpu".to_owned(), Quantity("4".to_owned()))]),
    }
}

fn sources() -> Sources {
    let map = json!({"data": {"colour": "red", "size": "9"}});
    let secret = json!({"data": {"word": "aHVzaA==", "bytes": "/w=="}});
    Sources {
        config_maps: BTreeMap::from([("settings".to_owned(), serde_json::from_value(map).expect("a map"))]),
        secrets: BTreeMap::from([("hidden".to_owned(), serde_json::from_value(secret).expect("a secret"))]),
    }
}

fn env_of(container: serde_json::Value) -> Result<BTreeMap<String, String>, EnvError> {
    let container: Container = serde_json::from_value(container).expect("a container");
    let services = [("DB_SERVICE_HOST".to_owned(), "10.96.0.9".to_owned())];
    environment(&pod(), &container, &facts(), &sources(), &services).map(|env| env.into_iter().collect())
}

#[test]
fn references_are_expanded_in_order() {
    for (text, expected) in [
        ("plain", "plain"),
        ("$(A)-$(B)", "1-2"),
        ("$$(A)", "$(A)"),
        ("$(MISSING)", "$(MISSING)"),
        ("$(A", "$(A"),
        ("$", "$"),
        ("a$b", "a$b"),
        ("$$$(A)", "$1"),
    ] {
        let lookup = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "B" => Some("2".to_owned()),
            _ => None,
        };
        assert_eq!(expand(text, lookup), expected, "{text}");
    }
    let env = env_of(json!({"name": "c", "env": [
        {"name": "LATER", "value": "$(FIRST)"},
        {"name": "FIRST", "value": "x"},
        {"name": "AFTER", "value": "$(FIRST)/$(DB_SERVICE_HOST)"},
    ]}))
    .expect("resolves");
    assert_eq!(env["LATER"], "$(FIRST)");
    assert_eq!(env["AFTER"], "x/10.96.0.9");
}

#[test]
fn fields_and_resources_are_exposed() {
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let resource = |name: &str, what: &str, divisor: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": what, "divisor": divisor}}});
    let env = env_of(json!({
        "name": "c",
        "resources": {"limits": {"memory": "128Mi"}, "requests": {"cpu": "250m"}},
        "env": [
            field("NAME", "metadata.name"), field("IPS", "status.podIPs"), field("HOST", "status.hostIP"),
            field("APP", "metadata.labels['app']"), field("NONE", "metadata.annotations['no']"),
            field("ACCOUNT", "spec.serviceAccountName"),
            resource("MEM", "limits.memory", "1Mi"), resource("CPU", "requests.cpu", "1m"),
            resource("CPUS", "limits.cpu", "0"),
        ],
    }))
    .expect("resolves");
    let expected = [
        ("NAME", "web-0"),
        ("IPS", "10.0.0.7,fd00::7"),
        ("HOST", "172.30.0.11"),
        ("APP", "web"),
        ("NONE", ""),
        ("ACCOUNT", "default"),
        ("MEM", "128"),
        ("CPU", "250"),
        ("CPUS", "4"),
    ];
    for (name, value) in expected {
        assert_eq!(env[name], value, "{name}");
    }
}

#[test]
fn maps_and_secrets_give_keys_or_say_what_is_missing() {
    let key = |kind: &str, name: &str, key: &str, optional: bool| json!({"name": "c", "env": [{"name": "V", "valueFrom": {kind: {"name": name, "key": key, "optional": optional}}}]});
    assert_eq!(env_of(key("configMapKeyRef", "settings", "colour", false)).expect("there")["V"], "red");
    assert_eq!(env_of(key("secretKeyRef", "hidden", "word", false)).expect("there")["V"], "hush");
    assert!(!env_of(key("secretKeyRef", "none", "word", true)).expect("optional").contains_key("V"));
    let error = |container| env_of(container).expect_err("missing").to_string();
    assert_eq!(error(key("configMapKeyRef", "none", "x", false)), "configmap \"none\" not found");
    assert_eq!(error(key("secretKeyRef", "hidden", "x", false)), "couldn't find key x in secret \"hidden\"");
    assert_eq!(
        error(key("secretKeyRef", "hidden", "bytes", false)),
        "env V: secret \"hidden\", key bytes: not text"
    );
    let from = json!({"name": "c", "envFrom": [
        {"prefix": "P_", "configMapRef": {"name": "settings"}}, {"secretRef": {"name": "gone", "optional": true}},
    ]});
    assert_eq!(env_of(from).expect("resolves")["P_size"], "9");
    let missing = json!({"name": "c", "envFrom": [{"secretRef": {"name": "gone"}}]});
    assert_eq!(error(missing), "secret \"gone\" not found");
}

#[test]
fn services_are_described_as_documented() {
    let service = |namespace: &str, name: &str, ip: &str| -> Service {
        serde_json::from_value(json!({
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": ip, "ports": [{"port": 6379, "name": "redis-main"}, {"port": 53, "protocol": "UDP", "name": "dns"}]},
        }))
        .expect("a service")
    };
    let services = [
        service("shop", "my-db", "fd00::1"),
        service("shop", "headless", "None"),
        service("other", "x", "1.2.3.4"),
        service("default", "kubernetes", "10.96.0.1"),
    ];
    let env: BTreeMap<_, _> = service_variables(&services, "shop", ServiceLinks::Own).into_iter().collect();
    for (name, value) in [
        ("MY_DB_SERVICE_HOST", "fd00::1"),
        ("MY_DB_SERVICE_PORT", "6379"),
        ("MY_DB_SERVICE_PORT_REDIS_MAIN", "6379"),
        ("MY_DB_PORT", "tcp://[fd00::1]:6379"),
        ("MY_DB_PORT_53_UDP", "udp://[fd00::1]:53"),
        ("MY_DB_PORT_53_UDP_PROTO", "udp"),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
    ] {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(!env.keys().any(|name| name.starts_with("HEADLESS") || name.starts_with("X_")));
    let api_only = service_variables(&services, "shop", ServiceLinks::ApiOnly);
    assert!(api_only.iter().all(|(name, _)| name.starts_with("KUBERNETES_")));
}
