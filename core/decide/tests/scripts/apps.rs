//! What check and the matrix say about real applications' manifests, kept outside this repository.

use std::path::{Path, PathBuf};

use weft_decide::{Reach, matrix};
use weft_model::testing::Cluster;
use weft_model::{ClusterSettings, Finding};

use crate::{manifests, skip};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/apps")
}

/// The application on three nodes, each workload's pods running and served.
fn load(name: &str, files: &[&str]) -> Option<Cluster> {
    let mut documents = Vec::new();
    for file in files {
        let path = directory().join(name).join(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => documents.extend(manifests::documents(&text)),
            Err(error) => {
                skip::skip(&format!("apps::{name}"), format!("{}: {error}", path.display()));
                return None;
            }
        }
    }
    let settings = ClusterSettings {
        pod_cidrs: vec!["10.244.0.0/16".parse().expect("a prefix")],
        service_cidrs: vec!["10.96.0.0/16".parse().expect("a prefix")],
        dns_addresses: vec!["10.96.0.10".parse().expect("an address")],
        ..ClusterSettings::default()
    };
    let mut cluster = Cluster { settings, ..manifests::cluster(&manifests::with_nodes(3, &documents)) };
    manifests::serve(&mut cluster);
    Some(cluster)
}

fn findings(cluster: &Cluster) -> Vec<String> {
    let (snapshot, parsed) = cluster.parse();
    let checked = weft_compile::check(&snapshot);
    parsed.iter().chain(&checked).map(Finding::to_string).collect()
}

#[test]
fn sock_shop_selects_a_cart_that_nobody_is() {
    let Some(cluster) = load("sock-shop", &["app.yaml", "network-policies.yaml"]) else { return };
    let found = findings(&cluster);
    eprintln!("{}", found.join("\n"));
    let cart = "warning: NetworkPolicy sock-shop/cart-access: spec.podSelector: \
                name=cart selects no pod of namespace sock-shop; did you mean name=carts?";
    let peer = "warning: NetworkPolicy sock-shop/carts-db-access: spec.ingress[0].from[0].podSelector: \
                name=cart matches no pod of namespace sock-shop; did you mean name=carts?";
    for expected in [cart, peer] {
        assert!(found.iter().any(|finding| finding == expected), "{expected}");
    }
}

#[test]
fn online_boutique_has_nothing_in_error() {
    let Some(cluster) = load("online-boutique", &["app.yaml", "network-policies.yaml"]) else { return };
    let found = findings(&cluster);
    eprintln!("{}", found.join("\n"));
    assert!(!found.iter().any(|finding| finding.starts_with("error")), "{}", found.join("\n"));
}

/// Without policies everything is connected; with them something is not, and denials name what denies.
#[test]
fn policies_are_what_denies() {
    for name in ["sock-shop", "online-boutique"] {
        let Some(open) = load(name, &["app.yaml"]) else { return };
        let Some(closed) = load(name, &["app.yaml", "network-policies.yaml"]) else { return };
        let cells = matrix(&open.snapshot());
        assert!(cells.len() > 100, "{name}: {} cells", cells.len());
        for cell in &cells {
            assert!(!matches!(cell.reach, Reach::Denied { .. }), "{cell}");
        }
        let denied: Vec<_> = matrix(&closed.snapshot())
            .into_iter()
            .filter_map(|cell| match cell.reach {
                Reach::Denied { cause, .. } => Some(cause),
                _ => None,
            })
            .collect();
        assert!(!denied.is_empty() && denied.iter().all(Option::is_some), "{name}");
    }
}
