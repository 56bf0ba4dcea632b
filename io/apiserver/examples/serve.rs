//! Serves a Kubernetes API from a directory, with a fresh CA and an admin kubeconfig: for trying things by hand.
//!
//! `cargo run -p weft-apiserver --example serve -- DIR [ADDRESS:PORT]`

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use weft_apiserver::{Config, DEFAULT_HISTORY, start};
use weft_pki::{Ca, Kubeconfig, signing_key, write_private, write_public};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .init();
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().context("usage: serve DIR [ADDRESS:PORT]")?);
    let listen: SocketAddr = args.next().unwrap_or_else(|| "127.0.0.1:6443".into()).parse()?;
    let pki = dir.join("pki");
    let ca = Ca::load_or_create(&pki.join("ca.crt"), &pki.join("ca.key"))?;
    let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
    let server_cert = ca.server_cert(&names, &[listen.ip(), "10.96.0.1".parse()?])?;
    if !pki.join("sa.key").exists() {
        let keys = signing_key()?;
        write_public(&pki.join("sa.pub"), &keys.public)?;
        write_private(&pki.join("sa.key"), keys.private.as_str())?;
    }
    let server = start(Config {
        listen,
        namespace_listeners: Vec::new(),
        data_dir: dir.join("api"),
        tls_cert: server_cert.cert,
        tls_key: server_cert.key.as_str().to_owned(),
        client_ca: ca.cert_pem().to_owned(),
        service_account_key: std::fs::read_to_string(pki.join("sa.key"))?,
        service_account_public: std::fs::read_to_string(pki.join("sa.pub"))?,
        service_ranges: vec!["10.96.0.0/16".parse()?, "fd00:10:96::/112".parse()?],
        node_ports: weft_apiserver::DEFAULT_NODE_PORTS,
        cluster_domain: "cluster.local".into(),
        kubelet_socket: dir.join("nodes/{node}/kubelet.sock").display().to_string(),
        kubernetes_endpoints: vec![listen],
        bootstrap_manifests: Vec::new(),
        history: DEFAULT_HISTORY,
    })
    .await?;
    let admin = ca.client_cert("kubernetes-admin", Some("system:masters"))?;
    let kubeconfig = dir.join("kubeconfig");
    let url = format!("https://{}", server.address());
    Kubeconfig {
        cluster: "weft",
        server: &url,
        ca_cert: ca.cert_pem(),
        user: "kubernetes-admin",
        client: &admin,
    }
    .write(&kubeconfig)?;
    println!("export KUBECONFIG={}", kubeconfig.display());
    server.wait().await;
    Ok(())
}
