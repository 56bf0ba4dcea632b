//! Fetches what a pod refers to: config maps, secrets, service-account tokens. What they become is elsewhere.
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodSpec, Secret, ServiceAccount};
use kube::api::{Api, PostParams};

use super::environment::Sources;
use super::status::all_containers;

/// Everything a pod refers to, as fetched at one moment.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    pub sources: Sources,
    pub tokens: BTreeMap<TokenKey, Token>,
}

/// What a token is for; equal wants share one token.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenKey {
    pub audience: Option<String>,
    pub expiration_seconds: i64,
}

#[derive(Clone, Debug)]
pub struct Token {
    pub text: String,
    renew_at: Timestamp,
}

#[derive(Debug, thiserror::Error)]
#[error("{kind} {name:?} cannot be fetched: {error}")]
pub struct GatherError {
    kind: &'static str,
    name: String,
    error: Box<kube::Error>,
}

/// Fetches for `pod`; tokens of `before` that are still fresh are kept. What does not exist is left out.
pub async fn gather(client: &kube::Client, pod: &Pod, before: &Gathered) -> Result<Gathered, GatherError> {
    let (Some(spec), Some(namespace)) = (&pod.spec, pod.metadata.namespace.as_deref()) else {
        return Ok(Gathered::default());
    };
    let wanted = Wanted::of(spec);
    let (config_maps, secrets, tokens) = futures::try_join!(
        fetch_all::<ConfigMap>(client, namespace, "configmap", wanted.config_maps),
        fetch_all::<Secret>(client, namespace, "secret", wanted.secrets),
        fetch_tokens(client, pod, spec, namespace, wanted.tokens, before),
    )?;
    Ok(Gathered { sources: Sources { config_maps, secrets }, tokens })
}

#[derive(Default)]
struct Wanted {
    config_maps: BTreeSet<String>,
    secrets: BTreeSet<String>,
    tokens: BTreeSet<TokenKey>,
}

impl Wanted {
    fn of(spec: &PodSpec) -> Self {
        let mut wanted = Self::default();
        for container in all_containers(spec) {
            for from in container.env_from.iter().flatten() {
                wanted
                    .config_maps
                    .extend(from.config_map_ref.as_ref().map(|reference| reference.name.clone()));
                wanted.secrets.extend(from.secret_ref.as_ref().map(|reference| reference.name.clone()));
            }
            for from in container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
                wanted.config_maps.extend(from.config_map_key_ref.as_ref().map(|key| key.name.clone()));
                wanted.secrets.extend(from.secret_key_ref.as_ref().map(|key| key.name.clone()));
            }
        }
        for volume in spec.volumes.iter().flatten() {
            wanted.config_maps.extend(volume.config_map.as_ref().map(|map| map.name.clone()));
            wanted.secrets.extend(volume.secret.as_ref().and_then(|secret| secret.secret_name.clone()));
            for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
                wanted.config_maps.extend(source.config_map.as_ref().map(|map| map.name.clone()));
                wanted.secrets.extend(source.secret.as_ref().map(|secret| secret.name.clone()));
                wanted.tokens.extend(source.service_account_token.as_ref().map(TokenKey::of));
            }
        }
        wanted
    }
}

impl TokenKey {
    pub fn of(projection: &k8s_openapi::api::core::v1::ServiceAccountTokenProjection) -> Self {
        Self {
            audience: projection.audience.clone().filter(|audience| !audience.is_empty()),
            expiration_seconds: projection.expiration_seconds.unwrap_or(3600),
        }
    }
}

async fn fetch_all<K>(
    client: &kube::Client,
    namespace: &str,
    kind: &'static str,
    names: BTreeSet<String>,
) -> Result<BTreeMap<String, K>, GatherError>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let fetches = names.into_iter().map(|name| {
        let api = &api;
        async move {
            match api.get_opt(&name).await {
                Ok(found) => Ok(found.map(|object| (name, object))),
                Err(error) => Err(GatherError { kind, name, error: Box::new(error) }),
            }
        }
    });
    Ok(futures::future::try_join_all(fetches).await?.into_iter().flatten().collect())
}

async fn fetch_tokens(
    client: &kube::Client,
    pod: &Pod,
    spec: &PodSpec,
    namespace: &str,
    keys: BTreeSet<TokenKey>,
    before: &Gathered,
) -> Result<BTreeMap<TokenKey, Token>, GatherError> {
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    let api = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let mut tokens = BTreeMap::new();
    for key in keys {
        let fresh = before.tokens.get(&key).filter(|token| token.renew_at > Timestamp::now());
        let token = match fresh {
            Some(token) => token.clone(),
            None => request_token(&api, account, pod, &key).await.map_err(|error| GatherError {
                kind: "token of serviceaccount",
                name: account.to_owned(),
                error: Box::new(error),
            })?,
        };
        tokens.insert(key, token);
    }
    Ok(tokens)
}

async fn request_token(
    api: &Api<ServiceAccount>,
    account: &str,
    pod: &Pod,
    key: &TokenKey,
) -> Result<Token, kube::Error> {
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: key.audience.iter().cloned().collect(),
            expiration_seconds: Some(key.expiration_seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
        },
        ..TokenRequest::default()
    };
    let answer: TokenRequest =
        api.create_subresource("token", account, &PostParams::default(), &request).await?;
    let no_token = || kube::Error::Service("the API answered without a token".into());
    let status = answer.status.ok_or_else(no_token)?;
    let now = Timestamp::now();
    // Renewed at four fifths of its life, as documented for projected tokens.
    let life = status.expiration_timestamp.0.duration_since(now);
    Ok(Token { text: status.token, renew_at: now + life * 4 / 5 })
}
