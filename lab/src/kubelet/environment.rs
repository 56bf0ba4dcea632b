//! The environment of a container as a pure function of its spec and of the objects it refers to.
use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVar, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret, Service,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity::Amount;

/// The objects a pod's containers may take values from, by name.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, ConfigMap>,
    pub secrets: BTreeMap<String, Secret>,
}

/// What is known of the running pod beside its object.
#[derive(Clone, Debug, Default)]
pub struct PodFacts {
    pub pod_ips: Vec<IpAddr>,
    pub host_ips: Vec<IpAddr>,
    pub allocatable: BTreeMap<String, Quantity>,
}

/// A reference that cannot be followed; the container waits for it with this as the message.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("{kind} {name:?} not found")]
    NoObject { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {name:?}")]
    NoKey { kind: &'static str, name: String, key: String },
    #[error("env {env}: {kind} {name:?}, key {key}: not text")]
    NotText { env: String, kind: &'static str, name: String, key: String },
    #[error("env {env}: field {path:?} cannot be referred to")]
    NoField { env: String, path: String },
    #[error("env {env}: {message}")]
    Resource { env: String, message: String },
}

/// The container's environment: services first, then `envFrom`, then `env`, later ones winning.
pub fn environment(
    pod: &Pod,
    container: &Container,
    facts: &PodFacts,
    sources: &Sources,
    services: &[(String, String)],
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env: BTreeMap<String, String> = services.iter().cloned().collect();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in keys_of(from, sources)? {
            env.insert(format!("{prefix}{key}"), value);
        }
    }
    for var in container.env.iter().flatten() {
        if let Some(value) = value_of(var, pod, container, facts, sources, &env)? {
            env.insert(var.name.clone(), value);
        }
    }
    Ok(env.into_iter().collect())
}

type KeysAndValues = Vec<(String, String)>;

fn keys_of(
    from: &k8s_openapi::api::core::v1::EnvFromSource,
    sources: &Sources,
) -> Result<KeysAndValues, EnvError> {
    let mut keys = Vec::new();
    if let Some(reference) = &from.config_map_ref {
        match sources.config_maps.get(&reference.name) {
            Some(map) => keys.extend(map.data.clone().unwrap_or_default()),
            None if reference.optional == Some(true) => {}
            None => return Err(EnvError::NoObject { kind: "configmap", name: reference.name.clone() }),
        }
    }
    if let Some(reference) = &from.secret_ref {
        match sources.secrets.get(&reference.name) {
            Some(secret) => {
                keys.extend(
                    secret.data.iter().flatten().filter_map(|(key, value)| {
                        Some((key.clone(), String::from_utf8(value.0.clone()).ok()?))
                    }),
                )
            }
            None if reference.optional == Some(true) => {}
            None => return Err(EnvError::NoObject { kind: "secret", name: reference.name.clone() }),
        }
    }
    Ok(keys)
}

fn value_of(
    var: &EnvVar,
    pod: &Pod,
    container: &Container,
    facts: &PodFacts,
    sources: &Sources,
    env: &BTreeMap<String, String>,
) -> Result<Option<String>, EnvError> {
    let Some(from) = &var.value_from else {
        let value = var.value.as_deref().unwrap_or_default();
        return Ok(Some(expand(value, |name| env.get(name).cloned())));
    };
    if let Some(field) = &from.field_ref {
        let no_field = || EnvError::NoField { env: var.name.clone(), path: field.field_path.clone() };
        return pod_field(pod, facts, field).map(Some).ok_or_else(no_field);
    }
    if let Some(resource) = &from.resource_field_ref {
        return resource_field(container, facts, resource)
            .map(Some)
            .map_err(|message| EnvError::Resource { env: var.name.clone(), message });
    }
    if let Some(key) = &from.config_map_key_ref {
        let value = sources.config_maps.get(&key.name).map(|map| map.data.as_ref()?.get(&key.key).cloned());
        return found("configmap", &key.name, &key.key, key.optional, value);
    }
    if let Some(key) = &from.secret_key_ref {
        let value = sources.secrets.get(&key.name).map(|secret| secret.data.as_ref()?.get(&key.key).cloned());
        return found("secret", &key.name, &key.key, key.optional, value)?
            .map(|bytes| String::from_utf8(bytes.0))
            .transpose()
            .map_err(|_| EnvError::NotText {
                env: var.name.clone(),
                kind: "secret",
                name: key.name.clone(),
                key: key.key.clone(),
            });
    }
    Ok(Some(String::new()))
}

fn found<T>(
    kind: &'static str,
    name: &str,
    key: &str,
    optional: Option<bool>,
    value: Option<Option<T>>,
) -> Result<Option<T>, EnvError> {
    match value {
        Some(Some(value)) => Ok(Some(value)),
        _ if optional == Some(true) => Ok(None),
        Some(None) => Err(EnvError::NoKey { kind, name: name.to_owned(), key: key.to_owned() }),
        None => Err(EnvError::NoObject { kind, name: name.to_owned() }),
    }
}

/// A field of the pod that the downward API may expose.
pub fn pod_field(pod: &Pod, facts: &PodFacts, field: &ObjectFieldSelector) -> Option<String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref()?;
    let path = field.field_path.as_str();
    if let Some((map, key)) = subscript(path) {
        let values = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return None,
        };
        return Some(values.as_ref().and_then(|values| values.get(key).cloned()).unwrap_or_default());
    }
    let list = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    let lines = |values: &Option<BTreeMap<String, String>>| {
        values.iter().flatten().map(|(key, value)| format!("{key}={value:?}\n")).collect::<String>()
    };
    Some(match path {
        "metadata.name" => meta.name.clone()?,
        "metadata.namespace" => meta.namespace.clone()?,
        "metadata.uid" => meta.uid.clone()?,
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_else(|| "default".into()),
        "status.hostIP" => list(&facts.host_ips).into_iter().next().unwrap_or_default(),
        "status.hostIPs" => list(&facts.host_ips).join(","),
        "status.podIP" => list(&facts.pod_ips).into_iter().next().unwrap_or_default(),
        "status.podIPs" => list(&facts.pod_ips).join(","),
        _ => return None,
    })
}

/// `metadata.labels['app']` as its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A container's resource as a whole number of the divisor, rounded up; without a limit, what the node has.
pub fn resource_field(
    container: &Container,
    facts: &PodFacts,
    field: &ResourceFieldSelector,
) -> Result<String, String> {
    let (class, resource) = field.resource.split_once('.').unwrap_or(("", &field.resource));
    let resources = container.resources.as_ref();
    let limit = || resources.and_then(|r| r.limits.as_ref()?.get(resource));
    let request = || resources.and_then(|r| r.requests.as_ref()?.get(resource));
    let quantity = match class {
        "limits" => limit().or_else(|| facts.allocatable.get(resource)),
        "requests" => request().or_else(limit),
        _ => return Err(format!("resource {:?} cannot be referred to", field.resource)),
    };
    let parse =
        |quantity: &Quantity| Amount::parse(&quantity.0).ok_or(format!("{:?} is no quantity", quantity.0));
    let amount = quantity.map(parse).transpose()?.unwrap_or(Amount::ZERO);
    let divisor = match &field.divisor {
        Some(divisor) if divisor.0 != "0" && !divisor.0.is_empty() => parse(divisor)?,
        _ => Amount::ONE,
    };
    amount.divided_up(divisor).map(|whole| whole.to_string()).ok_or_else(|| "the divisor is zero".to_owned())
}

/// Replaces `$(NAME)`; `$$` stands for one `$`; an unknown name stays as it is written.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inside| inside.split_once(')')) {
            out.push_str(&lookup(name).unwrap_or_else(|| format!("$({name})")));
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The variables that describe services: those of the pod's namespace, and the API's from `default`.
pub fn service_variables<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    namespace: &str,
    links: ServiceLinks,
) -> Vec<(String, String)> {
    let mut env = Vec::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let of = service.metadata.namespace.as_deref().unwrap_or_default();
        let is_api = of == "default" && name == "kubernetes";
        if is_api || (of == namespace && links == ServiceLinks::Own) {
            env.extend(variables_of(name, service));
        }
    }
    env
}

/// Whether a pod sees its namespace's services in its environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceLinks {
    Own,
    ApiOnly,
}

fn variables_of(name: &str, service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let (Some(ip), Some(first)) =
        (spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None"), ports.first())
    else {
        return Vec::new();
    };
    let shout = |text: &str| text.to_uppercase().replace(['-', '.'], "_");
    let bracketed = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let prefix = shout(name);
    let mut env = vec![
        (format!("{prefix}_SERVICE_HOST"), ip.to_owned()),
        (format!("{prefix}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in ports.iter().filter(|port| port.name.as_deref().is_some_and(|name| !name.is_empty())) {
        let name = shout(port.name.as_deref().unwrap_or_default());
        env.push((format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string()));
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{bracketed}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            env.push((format!("{prefix}_PORT"), url.clone()));
        }
        let base = format!("{prefix}_PORT_{}_{protocol}", port.port);
        env.push((base.clone(), url));
        env.push((format!("{base}_PROTO"), protocol.to_lowercase()));
        env.push((format!("{base}_PORT"), port.port.to_string()));
        env.push((format!("{base}_ADDR"), ip.to_owned()));
    }
    env
}

#[cfg(test)]
#[path = "environment_tests.rs"]
mod tests;
