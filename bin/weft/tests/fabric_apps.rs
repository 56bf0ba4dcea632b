//! Real applications on a real fabric: they come up unmodified, and what the kernel lets through is what was computed.

mod support;

use support::{Fabric, sample_apps};

fn app_with(test: &str, app: &str, policies: bool, routing: &str) {
    let Some(apps) = sample_apps(test) else { return };
    let app = apps.join(app);
    let (manifest, policy) = (app.join("app.yaml"), app.join("network-policies.yaml"));
    let mut args = vec!["--routing", routing, "--apply", manifest.to_str().unwrap()];
    if policies {
        args.extend(["--apply", policy.to_str().unwrap()]);
    }
    let fabric = Fabric::up("app", &args);
    let printed = fabric.printed();
    assert!(!printed.contains("is not ready"), "{printed}{}", fabric.logs());
    assert!(!printed.contains("cannot"), "{printed}");
    every_node_is_as_planned(&fabric);
    measured_equals_computed(&fabric);
    every_node_is_as_planned(&fabric);
    fabric.down();
}

fn every_node_is_as_planned(fabric: &Fabric) {
    for node in fabric.json(&["status"]).as_array().unwrap() {
        assert_eq!(node["agent"]["differences"], serde_json::json!([]), "{node:#}");
        assert_eq!(node["agent"]["applyError"], serde_json::Value::Null, "{node:#}");
        assert_eq!(node["names"]["ready"], true, "{node:#}");
    }
}

fn measured_equals_computed(fabric: &Fabric) {
    let matrix = fabric.json(&["policy", "matrix", "--probe"]);
    let cells = matrix["cells"].as_array().unwrap();
    assert!(cells.len() > 300, "only {} cells", cells.len());
    let differing: Vec<_> = cells.iter().filter(|cell| cell["agrees"] != true).collect();
    assert!(differing.is_empty(), "{} of {} cells differ: {differing:#?}", differing.len(), cells.len());
}

#[test]
fn online_boutique() {
    app_with("online_boutique", "online-boutique", false, "direct");
}

#[test]
fn online_boutique_under_policies() {
    app_with("online_boutique_under_policies", "online-boutique", true, "vxlan");
}

#[test]
fn sock_shop() {
    app_with("sock_shop", "sock-shop", false, "vxlan");
}

#[test]
fn sock_shop_under_policies() {
    app_with("sock_shop_under_policies", "sock-shop", true, "direct");
}
