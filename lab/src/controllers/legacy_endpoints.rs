//! The v1 Endpoints of services, which slices have replaced (KEP-4974) and some programs still read: written for services
//! with a selector, mirrored into slices where they are written by hand. Slices made from pods are `endpoints`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::effect::{Effect, Kind, Outcome, Target, to_value};
use super::endpoints::{self, Family, MANAGED_BY, SERVICE_NAME};
use super::meta::{self, Labels};
use super::pods;

/// On Endpoints that `write` made: whose they are not is mirrored.
const WRITER_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const WRITER: &str = "endpoint-controller";
const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints that serve as a lock and have no endpoints.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MOST_ADDRESSES: usize = 1000;

/// The Endpoints of a service with a selector: its first family only, as they always were.
pub fn write(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Option<Effect> {
    let selector = endpoints::selector(service).filter(|_| !meta::is_terminating(&service.metadata))?;
    let family = endpoints::families(service).into_iter().next()?;
    let early = service.spec.as_ref()?.publish_not_ready_addresses == Some(true);
    let behind = pods.iter().map(AsRef::as_ref).filter(|pod| {
        endpoints::matches(selector, pod)
            && !pods::is_finished(pod)
            && (early || !meta::is_terminating(&pod.metadata))
    });
    let (subsets, over) = subsets(service, family, behind, early);
    let labels = written_labels(service);
    let over = if over { json!("truncated") } else { Value::Null };
    let (namespace, name) = (meta::namespace(&service.metadata), meta::name(&service.metadata));
    let Some(existing) = existing else {
        let object = Endpoints {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                labels: Some(labels),
                annotations: over.as_str().map(|over| [(OVER_CAPACITY.to_owned(), over.to_owned())].into()),
                ..ObjectMeta::default()
            },
            subsets: Some(subsets),
        };
        return Some(Effect::create(Kind::Endpoints, namespace, name, &object));
    };
    let said = meta::annotation(&existing.metadata, OVER_CAPACITY);
    let same = existing.subsets.as_deref().unwrap_or_default() == subsets
        && meta::labels(&existing.metadata) == &labels
        && said == over.as_str();
    let body = json!({
        "metadata": {
            "resourceVersion": existing.metadata.resource_version,
            "labels": relabelled(meta::labels(&existing.metadata), &labels),
            "annotations": {OVER_CAPACITY: over},
        },
        "subsets": subsets,
    });
    (!same).then(|| Effect::Merge { target: Target::new(Kind::Endpoints, namespace, name), body })
}

/// Pods that share their ports are one subset. True where there are more addresses than fit; ready ones come first.
fn subsets<'a>(
    service: &Service,
    family: Family,
    pods: impl Iterator<Item = &'a Pod>,
    early: bool,
) -> (Vec<EndpointSubset>, bool) {
    let is_portless = service.spec.as_ref().is_none_or(|spec| spec.ports.as_ref().is_none_or(Vec::is_empty));
    let mut known: Vec<(bool, IpAddr, String, EndpointAddress)> = Vec::new();
    let mut ports_of: BTreeMap<String, Vec<EndpointPort>> = BTreeMap::new();
    for pod in pods {
        let Some(address) = endpoints::address(pod, family) else { continue };
        let Ok(ip) = address.parse() else { continue };
        let ports = ports(service, pod);
        if ports.is_empty() && !is_portless {
            continue;
        }
        let key = to_value(&ports).to_string();
        ports_of.insert(key.clone(), ports);
        let is_late = !(early || pods::is_ready(pod));
        known.push((is_late, ip, key, endpoint_address(service, pod, address)));
    }
    known.sort_by_key(|(is_late, ip, ..)| (*is_late, *ip));
    let over = known.len() > MOST_ADDRESSES;
    known.truncate(MOST_ADDRESSES);
    let mut subsets: BTreeMap<String, EndpointSubset> = BTreeMap::new();
    for (is_late, _, key, address) in known {
        let ports = ports_of.get(&key).filter(|ports| !ports.is_empty()).cloned();
        let subset =
            subsets.entry(key).or_insert_with(|| EndpointSubset { ports, ..EndpointSubset::default() });
        let list = if is_late { &mut subset.not_ready_addresses } else { &mut subset.addresses };
        list.get_or_insert_default().push(address);
    }
    (subsets.into_values().collect(), over)
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let resolved = endpoints::ports(service, pod).into_iter().filter_map(|port| {
        Some(EndpointPort {
            name: port.name.filter(|name| !name.is_empty()),
            port: port.port?,
            protocol: port.protocol,
            app_protocol: port.app_protocol,
        })
    });
    resolved.collect()
}

fn endpoint_address(service: &Service, pod: &Pod, ip: String) -> EndpointAddress {
    let spec = pod.spec.as_ref();
    let in_subdomain = spec.and_then(|spec| spec.subdomain.as_deref()) == Some(meta::name(&service.metadata));
    EndpointAddress {
        ip,
        hostname: spec.and_then(|spec| spec.hostname.clone()).filter(|name| in_subdomain && !name.is_empty()),
        node_name: pods::node_name(pod).map(str::to_owned),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    }
}

fn written_labels(service: &Service) -> Labels {
    let mut labels = meta::labels(&service.metadata).clone();
    labels.insert(WRITER_LABEL.to_owned(), WRITER.to_owned());
    endpoints::mark_headless(service, &mut labels);
    labels
}

/// A merge patch that leaves these labels and no others.
fn relabelled(before: &Labels, after: &Labels) -> Value {
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    gone.chain(after.iter().map(|(key, value)| (key.clone(), json!(value)))).collect()
}

/// Slices like the Endpoints somebody wrote for a service without selector. Endpoints of a service that is gone go with it
/// if they were made here.
pub fn mirror(
    service: Option<&Service>,
    endpoints: &Endpoints,
    slices: &[Arc<discovery::EndpointSlice>],
) -> Outcome {
    let mut outcome = Outcome::default();
    let own = meta::labels(&endpoints.metadata);
    let written_here = own.get(WRITER_LABEL).is_some_and(|writer| writer == WRITER);
    if service.is_none() && written_here && !meta::is_terminating(&endpoints.metadata) {
        let (namespace, name) = (meta::namespace(&endpoints.metadata), meta::name(&endpoints.metadata));
        let uid = meta::uid(&endpoints.metadata);
        outcome.effects.push(Effect::delete(Kind::Endpoints, namespace, name, uid));
    }
    let by_hand = service.is_some_and(|service| endpoints::selector(service).is_none())
        && !written_here
        && own.get(SKIP_MIRROR).is_none_or(|skip| skip != "true")
        && meta::annotation(&endpoints.metadata, LEADER).is_none()
        && !meta::is_terminating(&endpoints.metadata);
    let mut wanted = if by_hand { mirrored(endpoints) } else { BTreeMap::new() };
    for slice in slices.iter().filter(|slice| is_mirror_of(slice, endpoints)) {
        let name = meta::name(&slice.metadata);
        match wanted.remove(name) {
            Some(wanted) => outcome.effects.extend(update(slice, &wanted)),
            None => outcome.effects.push(Effect::delete(
                Kind::EndpointSlice,
                meta::namespace(&slice.metadata),
                name,
                meta::uid(&slice.metadata),
            )),
        }
    }
    let created = wanted.iter().map(|(name, slice)| {
        Effect::create(Kind::EndpointSlice, meta::namespace(&endpoints.metadata), name, slice)
    });
    outcome.effects.extend(created);
    outcome
}

pub fn is_mirror(slice: &discovery::EndpointSlice) -> bool {
    meta::labels(&slice.metadata).get(MANAGED_BY).is_some_and(|manager| manager == MIRROR)
}

fn is_mirror_of(slice: &discovery::EndpointSlice, endpoints: &Endpoints) -> bool {
    is_mirror(slice)
        && endpoints::service_of(slice) == Some(meta::name(&endpoints.metadata))
        && !meta::is_terminating(&slice.metadata)
}

/// Of one family and one set of ports.
type Group = (Vec<discovery::EndpointPort>, Vec<discovery::Endpoint>);

/// By name: one slice for each family, set of ports and thousand of addresses.
fn mirrored(endpoints: &Endpoints) -> BTreeMap<String, discovery::EndpointSlice> {
    let mut groups: BTreeMap<(&str, String), Group> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    // Those that are ready come first: an address is ready if any subset of these ports says so.
    for is_ready in [true, false] {
        for subset in endpoints.subsets.iter().flatten() {
            let ports: Vec<_> = subset.ports.iter().flatten().map(slice_port).collect();
            let addresses = if is_ready { &subset.addresses } else { &subset.not_ready_addresses };
            for address in addresses.iter().flatten() {
                let Ok(ip) = address.ip.parse::<IpAddr>() else { continue };
                let family = if ip.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
                let key = (family.name(), to_value(&ports).to_string());
                if seen.insert((key.clone(), ip)) {
                    let group = groups.entry(key).or_insert_with(|| (ports.clone(), Vec::new()));
                    group.1.push(slice_endpoint(address, is_ready));
                }
            }
        }
    }
    let mut slices = BTreeMap::new();
    for ((family, key), (ports, all)) in groups {
        for (number, chunk) in all.chunks(MOST_ADDRESSES).enumerate() {
            let name = slice_name(endpoints, &json!([family, key, number]));
            let slice = discovery::EndpointSlice {
                metadata: ObjectMeta {
                    name: Some(name.clone()),
                    namespace: endpoints.metadata.namespace.clone(),
                    labels: Some(mirrored_labels(endpoints)),
                    annotations: Some(mirrored_annotations(endpoints)),
                    owner_references: Some(vec![meta::owner_reference(Kind::Endpoints, &endpoints.metadata)]),
                    ..ObjectMeta::default()
                },
                address_type: family.to_owned(),
                endpoints: chunk.to_vec(),
                ports: Some(ports.clone()),
            };
            slices.insert(name, slice);
        }
    }
    slices
}

fn slice_name(endpoints: &Endpoints, about: &Value) -> String {
    let name = meta::name(&endpoints.metadata);
    let hash = meta::hash(&json!([meta::uid(&endpoints.metadata), about]));
    format!("{}-{}", &name[..name.len().min(240)], &hash[..hash.len().min(8)])
}

fn slice_port(port: &EndpointPort) -> discovery::EndpointPort {
    discovery::EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        app_protocol: port.app_protocol.clone(),
    }
}

fn slice_endpoint(address: &EndpointAddress, is_ready: bool) -> discovery::Endpoint {
    discovery::Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(discovery::EndpointConditions { ready: Some(is_ready), ..Default::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..discovery::Endpoint::default()
    }
}

fn mirrored_labels(endpoints: &Endpoints) -> Labels {
    let mut labels = meta::labels(&endpoints.metadata).clone();
    labels.insert(SERVICE_NAME.to_owned(), meta::name(&endpoints.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MIRROR.to_owned());
    labels
}

fn mirrored_annotations(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let annotations = endpoints.metadata.annotations.iter().flatten();
    let own =
        annotations.filter(|(key, _)| *key != LAST_APPLIED && !key.starts_with("endpoints.kubernetes.io/"));
    own.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn update(slice: &discovery::EndpointSlice, wanted: &discovery::EndpointSlice) -> Option<Effect> {
    let (has, wants) = (&slice.metadata, &wanted.metadata);
    let no = BTreeMap::new();
    let (annotations, said) =
        (wants.annotations.as_ref().unwrap_or(&no), has.annotations.as_ref().unwrap_or(&no));
    if slice.endpoints == wanted.endpoints && meta::labels(has) == meta::labels(wants) && said == annotations
    {
        return None;
    }
    let target = Target::new(Kind::EndpointSlice, meta::namespace(has), meta::name(has));
    let body = json!({
        "metadata": {
            "resourceVersion": has.resource_version,
            "labels": relabelled(meta::labels(has), meta::labels(wants)),
            "annotations": relabelled(said, annotations),
        },
        "endpoints": wanted.endpoints,
    });
    Some(Effect::Merge { target, body })
}

#[cfg(test)]
#[path = "legacy_endpoints_tests.rs"]
mod tests;
