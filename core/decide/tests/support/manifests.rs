//! YAML manifests to a cluster for tests, with the work of the controllers done on paper: workloads become running
//! pods, services get addresses and slices. Nothing is decided here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::api::discovery::v1::{EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_model::testing::{Cluster, objects};

pub fn documents(yaml: &str) -> Vec<Value> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(yaml).unwrap_or_else(|error| panic!("bad YAML: {error}"));
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// Where an object is in a cluster.
pub fn identity(object: &Value) -> (String, String, String) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

/// A cluster of these objects, in this order; a later one takes the place of an earlier one of the same name.
pub fn cluster(documents: &[Value]) -> Cluster {
    let mut cluster = Cluster::default();
    for document in documents {
        add(&mut cluster, document);
    }
    cluster
}

fn add(cluster: &mut Cluster, document: &Value) {
    let (kind, namespace, name) = identity(document);
    match kind.as_str() {
        "Namespace" => upsert(&mut cluster.namespaces, document, |object| &mut object.metadata),
        "Node" => upsert(&mut cluster.nodes, document, |object| &mut object.metadata),
        "Pod" => upsert(&mut cluster.pods, document, |object| &mut object.metadata),
        "Service" => upsert(&mut cluster.services, document, |object| &mut object.metadata),
        "EndpointSlice" => upsert(&mut cluster.slices, document, |object| &mut object.metadata),
        "NetworkPolicy" => upsert(&mut cluster.policies, document, |object| &mut object.metadata),
        "Deployment" | "StatefulSet" => workload(cluster, document, &namespace, &name),
        "ServiceAccount" => {}
        other => panic!("no use for a {other} here"),
    }
}

fn upsert<T: DeserializeOwned>(list: &mut Vec<T>, document: &Value, meta: fn(&mut T) -> &mut ObjectMeta) {
    let identity = identity(document);
    let mut object: T =
        serde_json::from_value(document.clone()).unwrap_or_else(|e| panic!("{identity:?}: {e}"));
    let (_, namespace, name) = identity;
    let wanted = meta(&mut object);
    // What the API server sets.
    if namespace.is_empty() && document["kind"] != "Namespace" && document["kind"] != "Node" {
        wanted.namespace = Some("default".to_owned());
    }
    wanted.uid.get_or_insert_with(|| format!("uid of {namespace}/{name}"));
    let key = (wanted.namespace.clone(), wanted.name.clone());
    let same = |object: &mut T| {
        let meta = meta(object);
        (meta.namespace.clone(), meta.name.clone()) == key
    };
    match list.iter_mut().position(same) {
        Some(place) => list[place] = object,
        None => list.push(object),
    }
}

/// Pods of a workload on the nodes there are, one after the other.
fn workload(cluster: &mut Cluster, document: &Value, namespace: &str, name: &str) {
    let template: PodTemplateSpec =
        serde_json::from_value(document["spec"]["template"].clone()).expect("a template");
    let replicas = document["spec"]["replicas"].as_u64().unwrap_or(1);
    for replica in 0..replicas {
        let index = cluster.pods.len();
        let node = index % cluster.nodes.len().max(1) + 1;
        let addr = format!("10.244.{node}.{}", 10 + index);
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        let pod_name = format!("{name}-{replica}");
        let mut pod = objects::pod(namespace, &pod_name, &format!("node{node}"), &[], &[addr.as_str()]);
        pod.metadata.labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone());
        let mut spec = template.spec.clone().expect("a pod spec");
        spec.node_name = Some(format!("node{node}"));
        pod.spec = Some(spec);
        cluster.pods.push(pod);
    }
}

/// Nodes and namespaces for manifests that bring none.
pub fn with_nodes(count: usize, manifests: &[Value]) -> Vec<Value> {
    let mut all = Vec::new();
    for number in 1..=count {
        let (addr, cidr) = (format!("172.30.0.{}", 10 + number), format!("10.244.{number}.0/24"));
        let mut node =
            serde_json::to_value(objects::node(&format!("node{number}"), &[addr.as_str()], &[cidr.as_str()]))
                .expect("a node");
        node["kind"] = "Node".into();
        all.push(node);
    }
    for name in ["default", "kube-system"] {
        all.push(serde_json::json!({"kind": "Namespace", "metadata": {"name": name}}));
    }
    all.extend_from_slice(manifests);
    all
}

/// Addresses and slices for services that have none.
pub fn serve(cluster: &mut Cluster) {
    let mut slices: Vec<EndpointSlice> = Vec::new();
    for (index, service) in cluster.services.iter_mut().enumerate() {
        let spec = service.spec.get_or_insert_default();
        if spec.cluster_ip.is_none() && spec.type_.as_deref() != Some("ExternalName") {
            let addr = format!("10.96.1.{}", 1 + index);
            spec.cluster_ip = Some(addr.clone());
            spec.cluster_ips = Some(vec![addr]);
        }
        let ports = spec.ports.iter().flatten();
        for (place, port) in ports.enumerate() {
            let port_name = port.name.clone().unwrap_or_default();
            let protocol = port.protocol.clone().unwrap_or("TCP".to_owned());
            let mut by_number: BTreeMap<i32, Vec<&Pod>> = BTreeMap::new();
            for pod in cluster
                .pods
                .iter()
                .filter(|pod| selects(spec.selector.as_ref(), service.metadata.namespace.as_ref(), pod))
            {
                let number = match port.target_port.clone().unwrap_or(IntOrString::Int(port.port)) {
                    IntOrString::Int(number) => number,
                    IntOrString::String(name) => match named(pod, &name) {
                        Some(number) => number,
                        None => continue,
                    },
                };
                by_number.entry(number).or_default().push(pod);
            }
            for (number, pods) in by_number {
                let ports: Vec<EndpointPort> = vec![objects::endpoint_port(&port_name, &protocol, number)];
                let name = format!("{}-{place}-{number}", service_name(&service.metadata));
                let ready = EndpointConditions { ready: Some(true), ..EndpointConditions::default() };
                let endpoints = pods.iter().filter_map(|pod| {
                    let addr = pod.status.as_ref()?.pod_ip.clone()?;
                    Some(objects::endpoint(&addr, ready.clone()))
                });
                let namespace = service.metadata.namespace.clone().unwrap_or_default();
                let owner = service_name(&service.metadata);
                slices.push(objects::slice(&namespace, owner, &name, "IPv4", ports, endpoints.collect()));
            }
        }
    }
    cluster.slices.extend(slices);
}

fn service_name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

fn selects(selector: Option<&BTreeMap<String, String>>, namespace: Option<&String>, pod: &Pod) -> bool {
    let Some(selector) = selector else { return false };
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    pod.metadata.namespace.as_ref() == namespace
        && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn named(pod: &Pod, name: &str) -> Option<i32> {
    let containers = pod.spec.as_ref()?.containers.iter();
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
}
