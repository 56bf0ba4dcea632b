//! Service-account tokens: JSON web tokens signed and verified with the cluster's key (ES256 or RS256).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use x509_parser::oid_registry::OID_KEY_TYPE_EC_PUBLIC_KEY;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};

use crate::Error;

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub id: String,
    pub namespace: String,
    pub service_account: String,
    pub service_account_uid: String,
    /// Kind, name and uid of the object whose end ends the token.
    pub bound: Option<(String, String, String)>,
    pub audiences: Vec<String>,
}

/// What to put into a new token.
#[derive(Clone, Debug)]
pub struct Grant {
    pub claims: Claims,
    pub issued: Timestamp,
    pub expires: Timestamp,
}

/// The signing and verifying keys with the issuer they stand for.
pub struct Tokens {
    issuer: String,
    signer: Signer,
    public: PublicKey,
    random: SystemRandom,
}

enum Signer {
    Ec(Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>),
}

enum PublicKey {
    Ec(Vec<u8>),
    Rsa(Vec<u8>),
}

impl Tokens {
    pub fn new(issuer: String, private_pem: &str, public_pem: &str) -> Result<Self, Error> {
        let failed = |reason: String| Error::SigningKey { reason };
        let random = SystemRandom::new();
        let private = PrivatePkcs8KeyDer::from_pem_slice(private_pem.as_bytes())
            .map_err(|e| failed(format!("the private key is not PKCS#8 PEM: {e}")))?;
        let der = private.secret_pkcs8_der();
        let signer = match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der, &random) {
            Ok(key) => Signer::Ec(Box::new(key)),
            Err(_) => Signer::Rsa(Box::new(
                RsaKeyPair::from_pkcs8(der)
                    .map_err(|e| failed(format!("the private key is neither P-256 nor RSA: {e}")))?,
            )),
        };
        Ok(Self { issuer, signer, public: public_key(public_pem).map_err(failed)?, random })
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The signature algorithm's name in the token's header.
    pub fn algorithm(&self) -> &'static str {
        match self.signer {
            Signer::Ec(_) => "ES256",
            Signer::Rsa(_) => "RS256",
        }
    }

    pub fn issue(&self, grant: &Grant) -> Result<String, Error> {
        let header = json!({"alg": self.algorithm(), "typ": "JWT"});
        let body = self.body(grant);
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(body.to_string())
        );
        let signature = self.sign(signed.as_bytes()).map_err(|reason| Error::SigningKey { reason })?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Checks signature, times, issuer and audience (the issuer itself when none is asked for).
    pub fn verify(&self, token: &str, audiences: &[String]) -> Result<Claims, String> {
        let (signed, signature) = token.rsplit_once('.').ok_or("not a JSON web token")?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| "the signature is not base64url")?;
        self.verify_signature(signed.as_bytes(), &signature)?;
        let body = signed.split_once('.').map(|(_, body)| body).ok_or("not a JSON web token")?;
        let body = URL_SAFE_NO_PAD.decode(body).map_err(|_| "the claims are not base64url")?;
        let body: Value = serde_json::from_slice(&body).map_err(|_| "the claims are not JSON")?;
        self.check_validity(&body)?;
        let mut claims = parse_claims(&body)?;
        let accepted: Vec<String> =
            if audiences.is_empty() { vec![self.issuer.clone()] } else { audiences.to_vec() };
        claims.audiences.retain(|audience| accepted.contains(audience));
        if claims.audiences.is_empty() {
            return Err(format!("the token's audience is none of {accepted:?}"));
        }
        Ok(claims)
    }

    fn body(&self, grant: &Grant) -> Value {
        let claims = &grant.claims;
        let mut private = json!({
            "namespace": claims.namespace,
            "serviceaccount": {"name": claims.service_account, "uid": claims.service_account_uid},
        });
        if let Some((kind, name, uid)) = &claims.bound {
            private[kind.to_lowercase()] = json!({"name": name, "uid": uid});
        }
        json!({
            "aud": claims.audiences,
            "exp": grant.expires.as_second(),
            "iat": grant.issued.as_second(),
            "iss": self.issuer,
            "jti": claims.id,
            "kubernetes.io": private,
            "nbf": grant.issued.as_second(),
            "sub": format!("system:serviceaccount:{}:{}", claims.namespace, claims.service_account),
        })
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, String> {
        match &self.signer {
            Signer::Ec(key) => {
                let signature = key.sign(&self.random, message).map_err(|_| "signing failed".to_owned())?;
                Ok(signature.as_ref().to_vec())
            }
            Signer::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &self.random, message, &mut signature)
                    .map_err(|_| "signing failed".to_owned())?;
                Ok(signature)
            }
        }
    }

    fn verify_signature(&self, message: &[u8], signature: &[u8]) -> Result<(), String> {
        let checked = match &self.public {
            PublicKey::Ec(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            PublicKey::Rsa(key) => {
                UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key).verify(message, signature)
            }
        };
        checked.map_err(|_| "the signature does not verify".to_owned())
    }

    fn check_validity(&self, body: &Value) -> Result<(), String> {
        let now = Timestamp::now().as_second();
        let number = |name: &str| body.get(name).and_then(Value::as_i64);
        if number("exp").is_none_or(|expires| now >= expires) {
            return Err("the token has expired".into());
        }
        if number("nbf").is_some_and(|from| now + 5 < from) {
            return Err("the token is not valid yet".into());
        }
        if body.get("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Err("the token is another cluster's".into());
        }
        Ok(())
    }
}

fn public_key(pem: &str) -> Result<PublicKey, String> {
    let der = rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| format!("the public key is not PEM: {e}"))?;
    let (_, info) = SubjectPublicKeyInfo::from_der(&der).map_err(|e| format!("the public key: {e}"))?;
    let bits = info.subject_public_key.data.to_vec();
    Ok(if info.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        PublicKey::Ec(bits)
    } else {
        PublicKey::Rsa(bits)
    })
}

fn parse_claims(body: &Value) -> Result<Claims, String> {
    let private = body.get("kubernetes.io").ok_or("not a service-account token")?;
    let text = |value: Option<&Value>, what: &str| {
        value.and_then(Value::as_str).map(str::to_owned).ok_or_else(|| format!("the token has no {what}"))
    };
    let reference = |name: &str| -> Option<(String, String)> {
        let found = private.get(name)?;
        Some((found.get("name")?.as_str()?.to_owned(), found.get("uid")?.as_str()?.to_owned()))
    };
    let (service_account, service_account_uid) =
        reference("serviceaccount").ok_or("the token names no service account")?;
    let bound = [("pod", "Pod"), ("secret", "Secret")]
        .into_iter()
        .find_map(|(name, kind)| reference(name).map(|(name, uid)| (kind.to_owned(), name, uid)));
    let audiences = match body.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    Ok(Claims {
        id: text(body.get("jti"), "id").unwrap_or_default(),
        namespace: text(private.get("namespace"), "namespace")?,
        service_account,
        service_account_uid,
        bound,
        audiences,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::ToSpan;

    fn tokens() -> Tokens {
        let keys = weft_pki::signing_key().unwrap();
        Tokens::new("https://issuer".into(), keys.private.as_str(), &keys.public).unwrap()
    }

    fn grant(lifetime_seconds: i64) -> Grant {
        let now = Timestamp::now();
        let claims = Claims {
            id: "1".into(),
            namespace: "default".into(),
            service_account: "robot".into(),
            service_account_uid: "u".into(),
            bound: Some(("Pod".into(), "web".into(), "p".into())),
            audiences: vec!["https://issuer".into()],
        };
        Grant { claims, issued: now, expires: now + lifetime_seconds.seconds() }
    }

    #[test]
    fn issued_token_verifies_and_says_the_same() {
        let tokens = tokens();
        let grant = grant(600);
        let token = tokens.issue(&grant).unwrap();
        assert_eq!(tokens.verify(&token, &[]).unwrap(), grant.claims);
        assert!(tokens.verify(&token, &["other".into()]).is_err());
    }

    #[test]
    fn expired_foreign_and_forged_tokens_are_refused() {
        let own = tokens();
        assert!(own.verify(&own.issue(&grant(-1)).unwrap(), &[]).is_err());
        assert!(own.verify(&tokens().issue(&grant(600)).unwrap(), &[]).is_err());
        let token = own.issue(&grant(600)).unwrap();
        let mut parts: Vec<&str> = token.split('.').collect();
        let forged = URL_SAFE_NO_PAD.encode(own.body(&grant(6000)).to_string());
        parts[1] = &forged;
        assert!(own.verify(&parts.join("."), &[]).is_err());
        assert!(own.verify("abc", &[]).is_err());
    }
}
