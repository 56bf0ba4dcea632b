//! Which pod has which address, cluster-wide, and the endpoints of this node. Their policies are computed in `policies`.

use std::collections::BTreeMap;

use weft_model::{Addr, Finding, NodeName, Pod, PodKey, PodPhase, Severity, Snapshot};
use weft_plan::{EndpointPlan, PolicySetId};

/// The pods of this node.
pub(crate) struct Locals<'a>(BTreeMap<&'a PodKey, Local<'a>>);

pub(crate) struct Local<'a> {
    pub pod: &'a Pod,
    pub addresses: Vec<Addr>,
    pub device: &'a str,
}

impl<'a> Locals<'a> {
    pub fn attached(snapshot: &'a Snapshot) -> Self {
        let locals = snapshot.local.iter().filter_map(|(key, endpoint)| {
            // A namesake with another uid is another pod, whose labels this interface must not get.
            let pod = snapshot.pods.get(key).filter(|pod| pod.uid == endpoint.uid && has_own_address(pod))?;
            let addresses = endpoint.addresses.iter().copied().collect();
            Some((key, Local { pod, addresses, device: &endpoint.device }))
        });
        Self(locals.collect())
    }

    pub fn from_api(snapshot: &'a Snapshot, node: &NodeName) -> Self {
        let here =
            snapshot.pods.iter().filter(|(_, pod)| pod.node.as_ref() == Some(node) && has_own_address(pod));
        let locals = here.map(|(key, pod)| {
            (key, Local { pod, addresses: pod.addresses.iter().copied().collect(), device: "" })
        });
        Self(locals.collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = &Local<'a>> {
        self.0.values()
    }
}

/// A pod on the host's network has its node's address, and a finished one's may be another's already.
fn has_own_address(pod: &Pod) -> bool {
    !pod.host_network && pod.phase != PodPhase::Finished
}

/// The one pod that each pod address belongs to.
pub(crate) struct Owners<'a>(BTreeMap<Addr, &'a Pod>);

/// Later is stronger: this node's own interfaces, then running pods, then the newer, then by name.
type Claim<'a> = (bool, bool, i64, &'a PodKey);

impl<'a> Owners<'a> {
    pub fn of(snapshot: &'a Snapshot, locals: &Locals<'a>, findings: &mut Vec<Finding>) -> Self {
        let mut owners: BTreeMap<Addr, (Claim<'a>, &'a Pod)> = BTreeMap::new();
        for pod in snapshot.pods.values().filter(|pod| has_own_address(pod)) {
            let local = locals.0.get(&pod.key);
            let claim = (local.is_some(), pod.phase == PodPhase::Running, pod.created, &pod.key);
            let own = local.map(|local| local.addresses.iter());
            let listed = own.is_none().then_some(&pod.addresses);
            for addr in own.into_iter().flatten().chain(listed.into_iter().flatten()) {
                let Some(other) = owners.get(addr).copied() else {
                    owners.insert(*addr, (claim, pod));
                    continue;
                };
                let (winner, loser) = if claim > other.0 { ((claim, pod), other.1) } else { (other, pod) };
                owners.insert(*addr, winner);
                findings.push(duplicate(*addr, winner.1, loser));
            }
        }
        Self(owners.into_iter().map(|(addr, (_, pod))| (addr, pod)).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = (Addr, &'a Pod)> {
        self.0.iter().map(|(addr, pod)| (*addr, *pod))
    }

    fn is_owner(&self, addr: Addr, pod: &Pod) -> bool {
        self.0.get(&addr).is_some_and(|owner| owner.key == pod.key)
    }
}

fn duplicate(addr: Addr, winner: &Pod, loser: &Pod) -> Finding {
    Finding {
        severity: Severity::Error,
        object: format!("Pod {}", loser.key),
        field: "status.podIPs".to_owned(),
        message: format!("{addr} is claimed by pod {} too, which is taken to have it", winner.key),
    }
}

/// The policy sets that isolate a pod.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct SubjectSets {
    pub ingress: Option<PolicySetId>,
    pub egress: Option<PolicySetId>,
}

pub(crate) fn endpoints(
    locals: &Locals<'_>,
    owners: &Owners<'_>,
    subjects: &BTreeMap<PodKey, SubjectSets>,
) -> BTreeMap<Addr, EndpointPlan> {
    let mut endpoints = BTreeMap::new();
    for local in locals.iter() {
        let sets = subjects.get(&local.pod.key).copied().unwrap_or_default();
        for addr in local.addresses.iter().filter(|addr| owners.is_owner(**addr, local.pod)) {
            let endpoint = EndpointPlan {
                pod: local.pod.key.clone(),
                uid: local.pod.uid.clone(),
                device: local.device.to_owned(),
                ingress: sets.ingress,
                egress: sets.egress,
            };
            endpoints.insert(*addr, endpoint);
        }
    }
    endpoints
}
