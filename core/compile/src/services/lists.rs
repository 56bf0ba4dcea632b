//! Which endpoints stand behind a service's port for one family and scope.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_model::{
    Addr, Endpoint, EndpointCondition, EndpointSlice, Family, NodeName, Pod, PodKey, Port, Service,
    ServicePort, Snapshot, TrafficPolicy, Weight,
};
use weft_plan::{Backend, BackendList, ListId};

use super::SharedList;
use crate::ids::{Digest, Space, numbers};

/// The node for which lists are made, and what weighs on its choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    node: Option<NodeName>,
    zone: Option<String>,
    /// Pods that ask for another share than their slices give them.
    weights: BTreeMap<PodKey, Weight>,
}

impl Place {
    pub fn of(snapshot: &Snapshot, node: Option<&NodeName>) -> Self {
        let weighted = snapshot.pods.values().filter_map(|pod| Some((pod.key.clone(), pod.weight?)));
        Self { node: node.cloned(), zone: zone(snapshot, node), weights: weighted.collect() }
    }

    /// Whether another snapshot of the same node would give the same.
    pub fn holds_for(&self, before: &Snapshot, after: &Snapshot) -> bool {
        let same_weights = after.pods.is_same(&before.pods)
            || after.pods.changes(&before.pods).all(|change| {
                let weight = |pod: Option<&Pod>| pod.and_then(|pod| pod.weight);
                weight(change.before) == weight(change.after)
            });
        same_weights && self.zone == zone(after, self.node.as_ref())
    }

    fn is_here(&self, endpoint: &Endpoint) -> bool {
        self.node.is_some() && endpoint.node == self.node
    }

    fn weight(&self, endpoint: &Endpoint) -> Weight {
        let of_pod = endpoint.target.as_ref().and_then(|pod| self.weights.get(pod));
        of_pod.copied().unwrap_or(endpoint.weight)
    }
}

fn zone(snapshot: &Snapshot, node: Option<&NodeName>) -> Option<String> {
    snapshot.nodes.get(node?)?.zone().map(str::to_owned)
}

/// One service's lists, each made when it is first asked for.
pub(super) struct Lists<'a> {
    service: &'a Service,
    slices: Vec<&'a EndpointSlice>,
    place: &'a Place,
    numbers: &'a Numbers,
    made: BTreeMap<(String, u8, Family, TrafficPolicy), SharedList>,
}

impl<'a> Lists<'a> {
    pub fn new(
        service: &'a Service,
        slices: Vec<&'a EndpointSlice>,
        place: &'a Place,
        numbers: &'a Numbers,
    ) -> Self {
        Self { service, slices, place, numbers, made: BTreeMap::new() }
    }

    pub fn get(&mut self, port: &ServicePort, family: Family, scope: TrafficPolicy) -> SharedList {
        let key = (port.name.clone(), port.protocol.0, family, scope);
        if let Some(made) = self.made.get(&key) {
            return made.clone();
        }
        let list = Arc::new(self.make(port, family, scope));
        self.made.insert(key, list.clone());
        list
    }

    /// Endpoints of this node that are ready, whatever their ports and families.
    pub fn ready_here(&self) -> usize {
        let endpoints = self.slices.iter().flat_map(|slice| &slice.endpoints);
        let ready = endpoints.filter(|endpoint| {
            endpoint.condition == EndpointCondition::Ready && self.place.is_here(endpoint)
        });
        // A dual-stack pod has an endpoint in a slice of each family.
        let mut distinct: Vec<_> =
            ready.map(|endpoint| (endpoint.target.as_ref(), endpoint.addresses.first())).collect();
        distinct.sort();
        distinct.dedup_by(|one, other| one.0.is_some() && one.0 == other.0 || one == other);
        distinct.len()
    }

    fn make(&self, port: &ServicePort, family: Family, scope: TrafficPolicy) -> BackendList {
        let candidates = self.candidates(port, family);
        let anywhere = usable(&candidates);
        let chosen = match scope {
            TrafficPolicy::Cluster => self.hinted(&anywhere),
            TrafficPolicy::Local => {
                let here: Vec<_> = candidates
                    .iter()
                    .filter(|candidate| self.place.is_here(candidate.endpoint))
                    .copied()
                    .collect();
                usable(&here)
            }
        };
        BackendList {
            id: self.numbers.get(self.service, port, family, scope),
            elsewhere: chosen.is_empty() && !anywhere.is_empty(),
            backends: self.backends(&chosen),
        }
    }

    fn candidates(&self, port: &ServicePort, family: Family) -> Vec<Candidate<'a>> {
        let slices = self.slices.iter().filter(|slice| slice.family == family);
        let joined = slices.flat_map(|slice| {
            let ports = slice
                .ports
                .iter()
                .filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
            ports.map(move |(_, _, number)| (slice, *number))
        });
        let endpoints = joined.flat_map(|(slice, port)| {
            slice.endpoints.iter().map(move |endpoint| Candidate { endpoint, port })
        });
        endpoints.collect()
    }

    /// KEP-2433 and KEP-3015: hints count when every endpoint has them and one is for us.
    fn hinted(&self, all: &[Candidate<'a>]) -> Vec<Candidate<'a>> {
        let for_us = |named: &dyn Fn(&Endpoint) -> Option<bool>| {
            let answers: Option<Vec<bool>> = all.iter().map(|candidate| named(candidate.endpoint)).collect();
            let answers = answers.filter(|answers| answers.contains(&true))?;
            let chosen = all.iter().zip(answers).filter(|(_, named)| *named);
            Some(chosen.map(|(candidate, _)| *candidate).collect::<Vec<_>>())
        };
        let by_node = self.place.node.as_ref().and_then(|node| {
            for_us(&|endpoint| {
                (!endpoint.hints.nodes.is_empty()).then(|| endpoint.hints.nodes.contains(node))
            })
        });
        let by_zone = || {
            let zone = self.place.zone.as_deref()?;
            for_us(&|endpoint| {
                (!endpoint.hints.zones.is_empty()).then(|| endpoint.hints.zones.contains(zone))
            })
        };
        by_node.or_else(by_zone).unwrap_or_else(|| all.to_vec())
    }

    fn backends(&self, chosen: &[Candidate<'_>]) -> Vec<Backend> {
        let mut backends: BTreeMap<(Addr, Port), Backend> = BTreeMap::new();
        for Candidate { endpoint, port } in chosen {
            for addr in &endpoint.addresses {
                let backend = Backend {
                    addr: *addr,
                    port: *port,
                    weight: self.place.weight(endpoint),
                    pod: endpoint.target.clone(),
                    node: endpoint.node.clone(),
                };
                // Two slices may hold the same endpoint while the controller moves it.
                let entry = backends.entry((*addr, *port)).or_insert_with(|| backend.clone());
                if backend > *entry {
                    *entry = backend;
                }
            }
        }
        backends.into_values().collect()
    }
}

/// The numbers of all lists there can be, known before any is made.
#[derive(Default)]
pub(super) struct Numbers(BTreeMap<Digest, u32>);

impl Numbers {
    pub fn of<'a>(services: impl Iterator<Item = &'a Service>) -> Self {
        let digests = services.flat_map(|service| {
            let ports = service.ports.iter();
            ports.flat_map(move |port| {
                FAMILIES.into_iter().flat_map(move |family| {
                    SCOPES.into_iter().map(move |scope| digest(service, port, family, scope))
                })
            })
        });
        Self(numbers(digests, Space { first: 1, last: u32::MAX }))
    }

    fn get(&self, service: &Service, port: &ServicePort, family: Family, scope: TrafficPolicy) -> ListId {
        ListId(self.0[&digest(service, port, family, scope)])
    }
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
const SCOPES: [TrafficPolicy; 2] = [TrafficPolicy::Cluster, TrafficPolicy::Local];

fn digest(service: &Service, port: &ServicePort, family: Family, scope: TrafficPolicy) -> Digest {
    let key = &service.key;
    let kind = [port.protocol.0, u8::from(family == Family::V6), u8::from(scope == TrafficPolicy::Local)];
    let parts = [key.namespace.as_str().as_bytes(), key.name.as_bytes(), port.name.as_bytes(), &kind];
    Digest::of("backends", parts)
}

/// An endpoint under the number its slice gives the service's port.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    endpoint: &'a Endpoint,
    port: Port,
}

/// Ready ones; if there are none, those that still serve while they terminate (KEP-1669).
fn usable<'a>(candidates: &[Candidate<'a>]) -> Vec<Candidate<'a>> {
    let with =
        |condition| candidates.iter().filter(move |candidate| candidate.endpoint.condition == condition);
    let ready: Vec<_> = with(EndpointCondition::Ready).copied().collect();
    if ready.is_empty() { with(EndpointCondition::ServingTerminating).copied().collect() } else { ready }
}
