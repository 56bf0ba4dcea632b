//! Who is asking and may they: certificates, tokens, impersonation, RBAC.

pub mod rbac;
pub mod roles;
pub mod tokens;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::status::{ApiError, Result};
use crate::store::{Key, Resource, Store};
use rbac::{Attributes, Rbac};
use tokens::{Claims, Tokens};

const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// An authenticated (or impersonated) client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The API server itself, when it applies what it was configured with.
    pub fn internal() -> Self {
        Self {
            name: "system:apiserver".into(),
            groups: vec!["system:masters".into(), AUTHENTICATED.into()],
            ..Self::default()
        }
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    pub fn to_value(&self) -> Value {
        let mut value = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            value["uid"] = self.uid.clone().into();
        }
        if !self.extra.is_empty() {
            value["extra"] = json!(self.extra);
        }
        value
    }
}

/// Finds out who the client is.
pub struct Authenticator {
    tokens: Arc<Tokens>,
    store: Store,
}

impl Authenticator {
    pub fn new(tokens: Arc<Tokens>, store: Store) -> Self {
        Self { tokens, store }
    }

    /// A bearer token goes before a certificate; neither is 401.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&CertificateDer<'_>>,
    ) -> Result<User> {
        if let Some(header) = headers.get(AUTHORIZATION) {
            let token = header.to_str().ok().and_then(bearer).ok_or_else(ApiError::unauthorized)?;
            return self.check_token(token, &[]).map(|(user, _)| user).map_err(|reason| {
                tracing::debug!(reason, "refused a bearer token");
                ApiError::unauthorized()
            });
        }
        let certificate = certificate.ok_or_else(ApiError::unauthorized)?;
        certificate_user(certificate).ok_or_else(ApiError::unauthorized)
    }

    /// Validates a service-account token and that what it is bound to still exists.
    pub fn check_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> std::result::Result<(User, Vec<String>), String> {
        let claims = self.tokens.verify(token, audiences)?;
        self.check_bound_objects(&claims)?;
        let user = User {
            name: format!("{SERVICE_ACCOUNT_PREFIX}{}:{}", claims.namespace, claims.service_account),
            uid: claims.service_account_uid.clone(),
            groups: service_account_groups(&claims.namespace),
            extra: token_extra(&claims),
        };
        Ok((user, claims.audiences))
    }

    fn check_bound_objects(&self, claims: &Claims) -> std::result::Result<(), String> {
        let exists = |plural: &str, name: &str, uid: &str| {
            let key = Key::new(&Resource::new("", plural), Some(&claims.namespace), name);
            let found = self.store.get(&key);
            found.is_some_and(|entry| {
                entry.value.pointer("/metadata/uid").and_then(Value::as_str) == Some(uid)
            })
        };
        if !exists("serviceaccounts", &claims.service_account, &claims.service_account_uid) {
            return Err(format!(
                "service account {}/{} is gone or was made anew",
                claims.namespace, claims.service_account
            ));
        }
        if let Some((kind, name, uid)) = &claims.bound {
            let plural = if kind == "Secret" { "secrets" } else { "pods" };
            if !exists(plural, name, uid) {
                return Err(format!("the {kind} {}/{name} the token is bound to is gone", claims.namespace));
            }
        }
        Ok(())
    }
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn certificate_user(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let mut groups: Vec<String> =
        parsed.subject().iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    groups.push(AUTHENTICATED.into());
    Some(User { name, groups, ..User::default() })
}

fn service_account_groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}"), AUTHENTICATED.into()]
}

fn token_extra(claims: &Claims) -> BTreeMap<String, Vec<String>> {
    let mut extra = BTreeMap::new();
    extra.insert("authentication.kubernetes.io/credential-id".to_owned(), vec![format!("JTI={}", claims.id)]);
    if let Some((kind, name, uid)) = &claims.bound
        && kind == "Pod"
    {
        extra.insert("authentication.kubernetes.io/pod-name".to_owned(), vec![name.clone()]);
        extra.insert("authentication.kubernetes.io/pod-uid".to_owned(), vec![uid.clone()]);
    }
    extra
}

/// Replaces the user when `Impersonate-*` headers ask for it and RBAC allows it.
pub fn impersonate(user: User, headers: &HeaderMap, rbac: &Rbac) -> Result<User> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .map(str::to_owned)
        .collect();
    let Some(name) = text("impersonate-user") else {
        if groups.is_empty() && text("impersonate-uid").is_none() {
            return Ok(user);
        }
        return Err(ApiError::internal(
            "requested to impersonate groups or a uid without impersonating a user",
        ));
    };
    check_impersonation(&user, &name, &groups, rbac)?;
    let mut groups = groups;
    if let Some((namespace, _)) =
        name.strip_prefix(SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'))
        && groups.is_empty()
    {
        groups = service_account_groups(namespace);
    }
    let anonymous = name == "system:anonymous";
    let implied = if anonymous { UNAUTHENTICATED } else { AUTHENTICATED };
    if !groups.iter().any(|group| group == implied) {
        groups.push(implied.into());
    }
    Ok(User { name, groups, uid: text("impersonate-uid").unwrap_or_default(), extra: BTreeMap::new() })
}

fn check_impersonation(user: &User, name: &str, groups: &[String], rbac: &Rbac) -> Result<()> {
    let service_account = name.strip_prefix(SERVICE_ACCOUNT_PREFIX).and_then(|rest| rest.split_once(':'));
    let first = match service_account {
        Some((namespace, name)) => {
            Attributes::resource("impersonate", "", "serviceaccounts", name).in_namespace(Some(namespace))
        }
        None => Attributes::resource("impersonate", "", "users", name),
    };
    let others = groups.iter().map(|group| Attributes::resource("impersonate", "", "groups", group));
    for attributes in std::iter::once(first).chain(others) {
        rbac.check(user, &attributes)?;
    }
    Ok(())
}
