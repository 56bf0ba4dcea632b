//! The kubeconfig file: where the API server is, whom to trust, who we are.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::{Error, Pair, write_private};

/// One cluster, one user, one context; certificates embedded so that the file moves freely.
pub struct Kubeconfig<'a> {
    /// Name of cluster and context.
    pub cluster: &'a str,
    /// For instance `https://127.0.0.1:6443`.
    pub server: &'a str,
    pub ca_cert: &'a str,
    pub user: &'a str,
    pub client: &'a Pair,
}

impl Kubeconfig<'_> {
    pub fn to_yaml(&self) -> String {
        let Self { cluster, server, user, .. } = self;
        let (ca, cert, key) = (
            STANDARD.encode(self.ca_cert),
            STANDARD.encode(&self.client.cert),
            STANDARD.encode(self.client.key.as_str()),
        );
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {cluster}\n\
             clusters:\n- name: {cluster}\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\n\
             users:\n- name: {user:?}\n  user:\n    client-certificate-data: {cert}\n    client-key-data: {key}\n\
             contexts:\n- name: {cluster}\n  context:\n    cluster: {cluster}\n    user: {user:?}\n    namespace: default\n"
        )
    }

    /// Writes the file readable by its owner only: it holds a private key.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        write_private(path, &self.to_yaml())
    }
}
