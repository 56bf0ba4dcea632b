//! What a cluster has before its first client: namespaces, roles, the `kubernetes` Service, extra manifests.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::MANAGER;
use crate::Error;
use crate::api::create::{self, Credit};
use crate::api::update::{self, ApplyOptions};
use crate::api::{Api, Call, meta};
use crate::auth::roles;
use crate::http::request::Target;
use crate::status::ApiError;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
const BOOTSTRAP_MANAGER: &str = "weft-bootstrap";

/// Creates what is missing. `endpoints` are where this server can be reached from pods.
pub async fn run(api: &Api, service_address: &str, endpoints: &[SocketAddr]) -> Result<(), Error> {
    for name in NAMESPACES {
        ensure(api, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})).await?;
    }
    for role in
        roles::defaults().map_err(|reason| Error::Bootstrap { what: "default roles".into(), reason })?
    {
        ensure(api, role).await?;
    }
    ensure(api, kubernetes_service(service_address)).await?;
    for slice in kubernetes_slices(endpoints) {
        apply(api, slice).await?;
    }
    Ok(())
}

/// Applies manifests, each possibly of several documents.
pub async fn manifests(api: &Api, texts: &[String]) -> Result<(), Error> {
    for text in texts {
        let documents: Vec<Value> = serde_saphyr::from_multiple(text)
            .map_err(|e| Error::Bootstrap { what: "a manifest".into(), reason: e.to_string() })?;
        for document in documents.into_iter().filter(|document| !document.is_null()) {
            let items = document.get("items").and_then(Value::as_array).cloned();
            for object in items.unwrap_or_else(|| vec![document]) {
                apply(api, object).await?;
            }
        }
    }
    Ok(())
}

fn describe(object: &Value) -> String {
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or("object without kind");
    format!("{kind} {}", meta::text(object, "name"))
}

fn failed(object: &Value, error: &ApiError) -> Error {
    Error::Bootstrap { what: describe(object), reason: error.message.clone() }
}

fn target_for(api: &Api, object: &Value) -> Result<Target, Error> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let (group, version) = text("apiVersion").rsplit_once('/').unwrap_or(("", text("apiVersion")));
    let kind = api.registry.find_by_kind(group, version, text("kind")).ok_or_else(|| Error::Bootstrap {
        what: describe(object),
        reason: format!("the server knows no kind {} in {}", text("kind"), text("apiVersion")),
    })?;
    let namespace = match meta::text(object, "namespace") {
        "" => "default",
        named => named,
    };
    let namespace = kind.namespaced.then(|| namespace.to_owned());
    Ok(Target { kind, namespace, name: meta::text(object, "name").to_owned() })
}

async fn ensure(api: &Api, object: Value) -> Result<(), Error> {
    let target = target_for(api, &object)?;
    if api.find(&target).is_ok() {
        return Ok(());
    }
    let collection = Target { name: String::new(), ..target };
    let mut call = Call::internal(MANAGER);
    match create::create_object(api, &mut call, &collection, object.clone(), Credit::Caller).await {
        Err(error) if error.reason != "AlreadyExists" => Err(failed(&object, &error)),
        _ => Ok(()),
    }
}

async fn apply(api: &Api, object: Value) -> Result<(), Error> {
    let target = target_for(api, &object)?;
    let mut call = Call::internal(BOOTSTRAP_MANAGER);
    let options = ApplyOptions { manager: BOOTSTRAP_MANAGER.into(), force: true };
    update::apply_object(api, &mut call, &target, update::Part::Main, object.clone(), &options)
        .await
        .map(drop)
        .map_err(|error| failed(&object, &error))
}

fn kubernetes_service(address: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": address,
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
        },
    })
}

/// One slice per family, and per port when the addresses differ in it.
fn kubernetes_slices(endpoints: &[SocketAddr]) -> Vec<Value> {
    let mut slices: Vec<Value> = Vec::new();
    // A loopback address leads every pod to itself, so it is nobody's endpoint.
    for endpoint in endpoints.iter().filter(|endpoint| !endpoint.ip().is_loopback()) {
        let family = if endpoint.is_ipv4() { "IPv4" } else { "IPv6" };
        let one = json!({"addresses": [endpoint.ip().to_string()], "conditions": {"ready": true}});
        let same = |slice: &&mut Value| {
            slice["addressType"] == family && slice["ports"][0]["port"] == endpoint.port()
        };
        if let Some(list) = slices.iter_mut().find(same).and_then(|slice| slice["endpoints"].as_array_mut()) {
            list.push(one);
            continue;
        }
        let suffix = if slices.is_empty() { String::new() } else { format!("-{}", slices.len()) };
        slices.push(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("kubernetes{suffix}"),
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": family,
            "endpoints": [one],
            "ports": [{"name": "https", "port": endpoint.port(), "protocol": "TCP"}],
        }));
    }
    slices
}
