//! Whom to trust behind DNS over TLS (RFC 7858). Connections live in `exchange`.

use std::sync::{Arc, OnceLock};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// For servers whose certificate is signed by one of `authorities`, in PEM, or by whom the system trusts. The error
/// says what is wrong with them.
pub fn config(authorities: Option<&[u8]>) -> Result<Arc<ClientConfig>, String> {
    let roots = match authorities {
        Some(pem) => Arc::new(from_pem(pem)?),
        None => system()?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"dot".to_vec()];
    Ok(Arc::new(config))
}

fn from_pem(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("the file is not PEM: {error}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("a certificate in the file cannot be used: {error}"))?;
    }
    if roots.is_empty() { Err("there is no certificate in the file".to_owned()) } else { Ok(roots) }
}

/// Read once: it takes long.
fn system() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    if roots.is_empty() {
        return Err("the system trusts nobody (no certificates were found): give caFile".to_owned());
    }
    Ok(roots.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_authority_is_refused_with_the_reason() {
        let reason = |pem: &str| config(Some(pem.as_bytes())).unwrap_err();
        assert_eq!(reason("nothing"), "there is no certificate in the file");
        let torn = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(reason(torn).starts_with("a certificate in the file cannot be used"), "{}", reason(torn));
        assert!(reason("-----BEGIN CERTIFICATE-----\nAA").starts_with("the file is not PEM"));
    }
}
