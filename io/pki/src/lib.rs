//! Certificates and keys: issue, sign, and write the kubeconfig that carries them. No sockets, no rotation loop.

mod ca;
mod files;
mod kubeconfig;

pub use ca::{Ca, KeyPem, Pair, SigningKeys, signing_key};
pub use files::{write_private, write_public};
pub use kubeconfig::Kubeconfig;

/// What went wrong while issuing or storing a certificate or key, worded for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot issue {what}: {source}")]
    Issue { what: String, source: rcgen::Error },
    #[error("cannot read {what}: {source}")]
    Parse { what: String, source: rcgen::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: String, source: std::io::Error },
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: std::io::Error },
}
