//! The cluster's certificate authority: server and client certificates, and the service-account signing key.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use crate::Error;
use crate::files::{read, write_private, write_public};

const CA_LIFETIME: Duration = Duration::days(3650);
const LEAF_LIFETIME: Duration = Duration::days(365);
/// Certificates are valid a little before their issue, so that peers with slow clocks accept them.
const CLOCK_SKEW: Duration = Duration::minutes(5);

/// A private key in PKCS#8 PEM. Its debug form never shows the key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyPem(String);

impl KeyPem {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPem(..)")
    }
}

/// A certificate and its private key, both PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: String,
    pub key: KeyPem,
}

impl Pair {
    /// Writes the certificate readable to all and the key to its owner only.
    pub fn write(&self, cert: &Path, key: &Path) -> Result<(), Error> {
        write_public(cert, &self.cert)?;
        write_private(key, self.key.as_str())
    }
}

/// The key pair that signs service-account tokens (ES256), both halves PEM.
#[derive(Clone, Debug)]
pub struct SigningKeys {
    pub private: KeyPem,
    pub public: String,
}

/// A certificate authority that issues for one cluster.
pub struct Ca {
    cert: String,
    key: KeyPem,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    /// Makes a new authority with a fresh key.
    pub fn create() -> Result<Self, Error> {
        let what = || "the cluster's certificate authority".to_owned();
        let key = KeyPair::generate().map_err(|source| Error::Issue { what: what(), source })?;
        let params = ca_params();
        let cert = params.self_signed(&key).map_err(|source| Error::Issue { what: what(), source })?.pem();
        let key_pem = KeyPem(key.serialize_pem());
        Ok(Self { cert, key: key_pem, issuer: Issuer::new(params, key) })
    }

    /// Takes up an authority from its certificate and key in PEM.
    pub fn load(cert: &str, key: &str) -> Result<Self, Error> {
        let parsed = KeyPair::from_pem(key)
            .map_err(|source| Error::Parse { what: "the certificate authority's key".into(), source })?;
        let issuer = Issuer::from_ca_cert_pem(cert, parsed).map_err(|source| Error::Parse {
            what: "the certificate authority's certificate".into(),
            source,
        })?;
        Ok(Self { cert: cert.to_owned(), key: KeyPem(key.to_owned()), issuer })
    }

    /// Reads the authority from two files, or makes a new one and writes them when neither exists.
    pub fn load_or_create(cert: &Path, key: &Path) -> Result<Self, Error> {
        if cert.exists() || key.exists() {
            return Self::load(&read(cert)?, &read(key)?);
        }
        let ca = Self::create()?;
        ca.pair().write(cert, key)?;
        Ok(ca)
    }

    pub fn cert_pem(&self) -> &str {
        &self.cert
    }

    pub fn pair(&self) -> Pair {
        Pair { cert: self.cert.clone(), key: self.key.clone() }
    }

    /// A serving certificate for these DNS names and addresses.
    pub fn server_cert(&self, names: &[&str], addresses: &[IpAddr]) -> Result<Pair, Error> {
        let common_name = names.first().map_or_else(
            || addresses.first().map_or_else(|| "server".to_owned(), ToString::to_string),
            ToString::to_string,
        );
        let mut params = leaf_params(&common_name, None, ExtendedKeyUsagePurpose::ServerAuth);
        for name in names {
            let dns = (*name).try_into().map_err(|source| Error::Issue {
                what: format!("a certificate for the name {name:?}"),
                source,
            })?;
            params.subject_alt_names.push(SanType::DnsName(dns));
        }
        params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        self.issue(params, &common_name)
    }

    /// A client certificate as Kubernetes reads it: CN is the user, O its group.
    pub fn client_cert(&self, user: &str, group: Option<&str>) -> Result<Pair, Error> {
        self.issue(leaf_params(user, group, ExtendedKeyUsagePurpose::ClientAuth), user)
    }

    fn issue(&self, params: CertificateParams, subject: &str) -> Result<Pair, Error> {
        let failed = |source| Error::Issue { what: format!("a certificate for {subject:?}"), source };
        let key = KeyPair::generate().map_err(failed)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Pair { cert: cert.pem(), key: KeyPem(key.serialize_pem()) })
    }
}

/// A fresh service-account signing key.
pub fn signing_key() -> Result<SigningKeys, Error> {
    let key = KeyPair::generate()
        .map_err(|source| Error::Issue { what: "the service-account signing key".into(), source })?;
    Ok(SigningKeys { public: key.public_key_pem(), private: KeyPem(key.serialize_pem()) })
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("weft-ca", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, CA_LIFETIME);
    params
}

fn leaf_params(user: &str, group: Option<&str>, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(user, group);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, LEAF_LIFETIME);
    params
}

fn subject(common_name: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn validity(params: &mut CertificateParams, lifetime: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + lifetime;
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, X509Certificate};

    fn der(pem: &str) -> Vec<u8> {
        x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
    }

    #[test]
    fn client_certificate_names_user_and_group_and_chains_to_the_authority() {
        let created = Ca::create().unwrap();
        let ca = Ca::load(created.cert_pem(), created.pair().key.as_str()).unwrap();
        let pair = ca.client_cert("system:node:node1", Some("system:nodes")).unwrap();
        let (leaf_der, ca_der) = (der(&pair.cert), der(ca.cert_pem()));
        let leaf = X509Certificate::from_der(&leaf_der).unwrap().1;
        let authority = X509Certificate::from_der(&ca_der).unwrap().1;
        assert_eq!(leaf.subject().to_string(), "O=system:nodes, CN=system:node:node1");
        assert_eq!(leaf.issuer(), authority.subject());
        assert!(leaf.extended_key_usage().unwrap().unwrap().value.client_auth);
    }

    #[test]
    fn server_certificate_carries_names_and_addresses() {
        let ca = Ca::create().unwrap();
        let pair = ca
            .server_cert(
                &["kubernetes.default.svc"],
                &["127.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            )
            .unwrap();
        let leaf_der = der(&pair.cert);
        let leaf = X509Certificate::from_der(&leaf_der).unwrap().1;
        let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.len();
        assert_eq!(names, 3);
        assert!(ca.server_cert(&["not\u{e9}ascii"], &[]).is_err());
    }

    #[test]
    fn authority_survives_a_restart_and_keys_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("ca.crt"), dir.path().join("ca.key"));
        let first = Ca::load_or_create(&cert, &key).unwrap();
        let second = Ca::load_or_create(&cert, &key).unwrap();
        assert_eq!(first.cert_pem(), second.cert_pem());
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
