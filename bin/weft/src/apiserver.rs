//! The embedded Kubernetes API as a process: settings in the terms of `weft-apiserver`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use weft_apiserver::{Config, DEFAULT_HISTORY, NamespaceListener};
use weft_lab::fabric::config::ApiserverConfig;

pub async fn run(config: &Path) -> Result<()> {
    let config = convert(crate::fabrics::read_json(config)?)?;
    tokio::select! {
        result = weft_apiserver::run(config) => Ok(result?),
        () = crate::fabrics::terminated() => Ok(()),
    }
}

fn convert(config: ApiserverConfig) -> Result<Config> {
    let (inside, outside): (Vec<_>, Vec<_>) =
        config.listen.into_iter().partition(|listen| listen.netns.is_some());
    let listen = outside.first().context("listen: one address outside the nodes is needed")?.address;
    let namespace_listeners = inside
        .into_iter()
        .filter_map(|listen| {
            listen.netns.map(|namespace| NamespaceListener { namespace, address: listen.address })
        })
        .collect();
    Ok(Config {
        listen,
        namespace_listeners,
        data_dir: config.store_dir,
        tls_cert: read(&config.tls_cert)?,
        tls_key: read(&config.tls_key)?,
        client_ca: read(&config.client_ca)?,
        service_account_key: read(&config.service_account_key)?,
        service_account_public: read(&config.service_account_public_key)?,
        service_ranges: config.service_cidrs,
        node_ports: config.node_ports,
        cluster_domain: config.cluster_domain,
        kubelet_socket: config.kubelet_socket,
        kubernetes_endpoints: config.advertise,
        bootstrap_manifests: Vec::new(),
        history: DEFAULT_HISTORY,
    })
}

fn read(path: &PathBuf) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
