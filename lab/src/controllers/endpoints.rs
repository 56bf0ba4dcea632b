//! EndpointSlices: which addresses are behind a service, ready or not. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::effect::{Effect, Kind, Outcome, Target, Tone, to_value};
use super::meta::{self, Labels};
use super::pods;

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
const TOPOLOGY_MODES: [&str; 2] =
    ["service.kubernetes.io/topology-mode", "service.kubernetes.io/topology-aware-hints"];
const MOST_ENDPOINTS: usize = 100;

/// Decides about one service's slices from the pods of its namespace.
pub fn reconcile(
    service: &Service,
    pods: &[Arc<Pod>],
    nodes: &[Arc<Node>],
    slices: &[Arc<EndpointSlice>],
) -> Outcome {
    let mut outcome = Outcome::default();
    // Without a selector somebody else says what the endpoints are.
    let Some(selector) = selector(service).filter(|_| !meta::is_terminating(&service.metadata)) else {
        return outcome;
    };
    let behind: Vec<&Pod> = pods
        .iter()
        .map(AsRef::as_ref)
        .filter(|pod| matches(selector, pod) && !pods::is_finished(pod))
        .collect();
    let mut owned: Vec<&EndpointSlice> =
        slices.iter().map(AsRef::as_ref).filter(|slice| is_ours(slice, service)).collect();
    owned.sort_by_key(|slice| meta::name(&slice.metadata).to_owned());
    for family in families(service) {
        let wanted = group(service, family, &behind, nodes);
        let (mine, others): (Vec<_>, Vec<_>) =
            owned.into_iter().partition(|slice| slice.address_type == family.name());
        owned = others;
        outcome.effects.extend(arrange(service, family, wanted, &mine));
    }
    outcome.effects.extend(owned.into_iter().map(delete));
    if !outcome.effects.is_empty() {
        outcome.effects.extend(ignored_topology(service));
    }
    outcome
}

/// Hints by the load that each zone can bear are not made here: said as often as the endpoints change.
fn ignored_topology(service: &Service) -> Option<Effect> {
    let annotations = service.metadata.annotations.as_ref()?;
    let asked = TOPOLOGY_MODES
        .iter()
        .find(|name| annotations.get(**name).is_some_and(|mode| mode.eq_ignore_ascii_case("auto")))?;
    let message = format!(
        "annotation {asked} is not acted on: endpoints get no hints by zone; spec.trafficDistribution is"
    );
    Some(Effect::Tell {
        about: meta::reference(Kind::Service, &service.metadata),
        tone: Tone::Warning,
        reason: "TopologyAwareHintsDisabled",
        message,
    })
}

pub fn selector(service: &Service) -> Option<&Labels> {
    service.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())
}

/// Whether a service's selector takes a pod.
pub fn matches(selector: &Labels, pod: &Pod) -> bool {
    let labels = meta::labels(&pod.metadata);
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The service a slice of this controller belongs to.
pub fn service_of(slice: &EndpointSlice) -> Option<&str> {
    meta::labels(&slice.metadata).get(SERVICE_NAME).map(String::as_str)
}

fn is_ours(slice: &EndpointSlice, service: &Service) -> bool {
    meta::labels(&slice.metadata).get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
        && service_of(slice) == Some(meta::name(&service.metadata))
        && !meta::is_terminating(&slice.metadata)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        }
    }

    fn has(self, address: &str) -> bool {
        address.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4() == (self == Self::Ipv4))
    }
}

pub fn families(service: &Service) -> Vec<Family> {
    if service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
        // Its endpoints are whatever the name leads to.
        return Vec::new();
    }
    let named = service.spec.as_ref().and_then(|spec| spec.ip_families.as_deref()).unwrap_or_default();
    let known = |name: &String| [Family::Ipv4, Family::Ipv6].into_iter().find(|family| family.name() == name);
    let found: Vec<Family> = named.iter().filter_map(known).collect();
    if found.is_empty() { vec![Family::Ipv4] } else { found }
}

/// Endpoints that share their ports, by a text that names those.
type Groups = BTreeMap<String, (Vec<EndpointPort>, Vec<Endpoint>)>;

fn group(service: &Service, family: Family, pods: &[&Pod], nodes: &[Arc<Node>]) -> Groups {
    let mut groups = Groups::new();
    for pod in pods {
        let Some(address) = address(pod, family) else { continue };
        let ports = ports(service, pod);
        let key = key(&ports);
        let endpoint = endpoint(service, pod, address, nodes);
        groups.entry(key).or_insert_with(|| (ports, Vec::new())).1.push(endpoint);
    }
    groups
}

fn key(ports: &[EndpointPort]) -> String {
    to_value(&ports).to_string()
}

pub fn address(pod: &Pod, family: Family) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    all.chain(status.pod_ip.as_ref()).find(|address| family.has(address)).cloned()
}

pub fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let named = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let resolved = named.iter().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(target_port(port, pod)?),
            protocol: Some(protocol(port.protocol.as_ref()).to_owned()),
            app_protocol: port.app_protocol.clone(),
        })
    });
    resolved.collect()
}

/// The number behind a service port on this pod; a named one only if the pod has a port of that name.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let spec = pod.spec.as_ref()?;
    let sidecars =
        spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let container_ports =
        spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let fits = |candidate: &&k8s_openapi::api::core::v1::ContainerPort| {
        candidate.name.as_ref() == Some(name)
            && protocol(candidate.protocol.as_ref()) == protocol(port.protocol.as_ref())
    };
    container_ports.into_iter().find(fits).map(|port| port.container_port)
}

fn protocol(given: Option<&String>) -> &str {
    given.map_or("TCP", String::as_str)
}

fn endpoint(service: &Service, pod: &Pod, address: String, nodes: &[Arc<Node>]) -> Endpoint {
    let spec = service.spec.as_ref();
    let terminating = meta::is_terminating(&pod.metadata);
    let serving = pods::is_ready(pod);
    let announced_early = spec.is_some_and(|spec| spec.publish_not_ready_addresses == Some(true));
    let pod_spec = pod.spec.as_ref();
    let in_subdomain =
        pod_spec.and_then(|spec| spec.subdomain.as_deref()) == Some(meta::name(&service.metadata));
    let node = pods::node_name(pod);
    let zone = node
        .and_then(|name| nodes.iter().find(|node| meta::name(&node.metadata) == name))
        .and_then(|node| meta::labels(&node.metadata).get(ZONE));
    let ready = announced_early || (serving && !terminating);
    let distribution = spec.and_then(|spec| spec.traffic_distribution.as_deref()).filter(|_| ready);
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: pod_spec
            .and_then(|spec| spec.hostname.clone())
            .filter(|name| in_subdomain && !name.is_empty()),
        node_name: node.map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone: zone.cloned(),
        hints: distribution.and_then(|distribution| hints(distribution, node, zone)),
        deprecated_topology: None,
    }
}

/// Who should use a ready endpoint first: those of its zone, or of its node and then of its zone (KEP-4444, KEP-3015).
fn hints(distribution: &str, node: Option<&str>, zone: Option<&String>) -> Option<EndpointHints> {
    let for_zones = zone.map(|name| vec![ForZone { name: name.clone() }]);
    let for_nodes = node.map(|name| vec![ForNode { name: name.to_owned() }]);
    match distribution {
        "PreferClose" | "PreferSameZone" if for_zones.is_some() => {
            Some(EndpointHints { for_zones, for_nodes: None })
        }
        "PreferSameNode" if for_nodes.is_some() => Some(EndpointHints { for_zones, for_nodes }),
        _ => None,
    }
}

/// Fits the wanted endpoints into the slices there are, touching as few as possible.
fn arrange(
    service: &Service,
    family: Family,
    mut wanted: Groups,
    existing: &[&EndpointSlice],
) -> Vec<Effect> {
    if wanted.is_empty() {
        // A service that nothing serves says so with one empty slice.
        wanted.insert(key(&[]), (Vec::new(), Vec::new()));
    }
    let mut effects = Vec::new();
    let mut names: Vec<String> =
        existing.iter().map(|slice| meta::name(&slice.metadata).to_owned()).collect();
    let mut unused: Vec<&EndpointSlice> = existing.to_vec();
    for (key_text, (ports, endpoints)) in wanted {
        let (reusable, others): (Vec<_>, Vec<_>) =
            unused.into_iter().partition(|slice| key(slice.ports.as_deref().unwrap_or_default()) == key_text);
        unused = others;
        let (bins, surplus) = distribute(&reusable, endpoints);
        for (slice, endpoints) in bins {
            effects.extend(update(service, slice, endpoints));
        }
        let empty = Vec::new();
        let chunks: Vec<&[Endpoint]> = match (surplus.is_empty(), reusable.is_empty()) {
            (true, true) => vec![&empty],
            _ => surplus.chunks(MOST_ENDPOINTS).collect(),
        };
        for chunk in chunks {
            let name = free_name(service, family, &key_text, &names);
            effects.push(create(service, family, &name, &ports, chunk.to_vec()));
            names.push(name);
        }
    }
    effects.extend(unused.into_iter().map(delete));
    effects
}

type Bins<'a> = Vec<(&'a EndpointSlice, Vec<Endpoint>)>;

/// Endpoints stay in the slice they are in; new ones go where there is room; the rest is surplus.
fn distribute<'a>(slices: &[&'a EndpointSlice], endpoints: Vec<Endpoint>) -> (Bins<'a>, Vec<Endpoint>) {
    let mut coming: BTreeMap<String, Endpoint> = endpoints.into_iter().map(|e| (identity(&e), e)).collect();
    let mut bins: Bins<'a> = slices
        .iter()
        .map(|slice| {
            let kept = slice.endpoints.iter().filter_map(|old| coming.remove(&identity(old))).collect();
            (*slice, kept)
        })
        .collect();
    let mut new = coming.into_values();
    for (_, endpoints) in &mut bins {
        let room = MOST_ENDPOINTS.saturating_sub(endpoints.len());
        endpoints.extend(new.by_ref().take(room));
    }
    let surplus = new.collect();
    // Slices that became empty go, but for one.
    let full = bins.iter().any(|(_, endpoints)| !endpoints.is_empty());
    if full {
        let (used, empty): (Bins<'a>, Bins<'a>) =
            bins.into_iter().partition(|(_, endpoints)| !endpoints.is_empty());
        bins = used;
        bins.extend(empty);
    }
    (bins, surplus)
}

/// Who an endpoint is, whatever state it is in.
fn identity(endpoint: &Endpoint) -> String {
    let pod = endpoint.target_ref.as_ref().and_then(|pod| pod.uid.clone()).unwrap_or_default();
    format!("{} {pod}", endpoint.addresses.join(","))
}

fn update(service: &Service, slice: &EndpointSlice, endpoints: Vec<Endpoint>) -> Option<Effect> {
    let is_placeholder = slice.ports.as_ref().is_none_or(Vec::is_empty) && slice.endpoints.is_empty();
    if endpoints.is_empty() && !is_placeholder {
        return Some(delete(slice));
    }
    let labels = labels(service);
    if slice.endpoints == endpoints && slice.metadata.labels.as_ref() == Some(&labels) {
        return None;
    }
    let target =
        Target::new(Kind::EndpointSlice, meta::namespace(&slice.metadata), meta::name(&slice.metadata));
    let body = json!({
        "metadata": {"resourceVersion": slice.metadata.resource_version, "labels": labels},
        "endpoints": endpoints,
    });
    Some(Effect::Merge { target, body })
}

fn create(
    service: &Service,
    family: Family,
    name: &str,
    ports: &[EndpointPort],
    endpoints: Vec<Endpoint>,
) -> Effect {
    let namespace = meta::namespace(&service.metadata);
    let slice = EndpointSlice {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels(service)),
            owner_references: Some(vec![meta::owner_reference(Kind::Service, &service.metadata)]),
            ..ObjectMeta::default()
        },
        address_type: family.name().to_owned(),
        endpoints,
        ports: Some(ports.to_vec()),
    };
    Effect::create(Kind::EndpointSlice, namespace, name, &slice)
}

fn delete(slice: &EndpointSlice) -> Effect {
    let meta = &slice.metadata;
    Effect::delete(Kind::EndpointSlice, meta::namespace(meta), meta::name(meta), meta::uid(meta))
}

fn labels(service: &Service) -> Labels {
    let mut labels = meta::labels(&service.metadata).clone();
    labels.insert(SERVICE_NAME.to_owned(), meta::name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    mark_headless(service, &mut labels);
    labels
}

/// As endpoint controllers do: who reads the objects need not read the service.
pub(super) fn mark_headless(service: &Service, labels: &mut Labels) {
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
}

/// A name that a second look at the same cluster would choose again: it cannot make the slice twice.
fn free_name(service: &Service, family: Family, key: &str, taken: &[String]) -> String {
    let name = meta::name(&service.metadata);
    let candidate = |number: u32| {
        let hash = meta::hash(&json!([meta::uid(&service.metadata), family.name(), key, number]));
        format!("{}-{}", &name[..name.len().min(240)], &hash[..hash.len().min(8)])
    };
    (0..).map(candidate).find(|name| !taken.contains(name)).expect("numbers do not run out")
}

#[cfg(test)]
#[path = "endpoints_tests.rs"]
mod tests;
