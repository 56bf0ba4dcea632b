//! Policy look-ups in a plan. How policies got there lives in core/compile.

use std::collections::BTreeMap;

use weft_model::{Addr, Cidr, Direction, Family, Port, Protocol, Reason, Verdict};
use weft_plan::{
    ClassId, ClassMatch, Decision, EndpointPlan, NodePlan, PolicyMatch, PolicySet, PolicySetId, PortPrefix,
    RuleId,
};

/// What policy says about a flow, seen from the node that holds `plan`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Judgement {
    pub reason: Reason,
    pub egress_rule: Option<RuleId>,
    pub ingress_rule: Option<RuleId>,
}

impl Judgement {
    pub fn is_denied(&self) -> bool {
        self.reason.verdict() == Verdict::Denied
    }
}

/// What one direction of one pod's policy says, and by which rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ruling {
    pub reason: Reason,
    pub rule: Option<RuleId>,
}

/// The egress policy of the one who opens a flow and the ingress policy of the other, where they are pods of this
/// node. Egress is asked first; a denial ends it.
pub fn judge(plan: &NodePlan, opener: Addr, responder: Addr, protocol: Protocol, port: Port) -> Judgement {
    let sender = plan.endpoints.get(&opener);
    let receiver = plan.endpoints.get(&responder);
    let egress = sender.map(|sender| egress(plan, sender, responder, protocol, port));
    let egress_rule = egress.and_then(|ruling| ruling.rule);
    if let Some(denied) = egress.filter(|ruling| ruling.reason.verdict() == Verdict::Denied) {
        return Judgement { reason: denied.reason, egress_rule, ingress_rule: None };
    }
    let ingress = receiver.map(|receiver| ingress(plan, receiver, opener, protocol, port));
    let reason = match (egress.map(|ruling| ruling.reason), ingress.map(|ruling| ruling.reason)) {
        (_, Some(reason)) if reason != Reason::NotIsolated => reason,
        (Some(reason), _) => reason,
        (None, _) => Reason::NotIsolated,
    };
    Judgement { reason, egress_rule, ingress_rule: ingress.and_then(|ruling| ruling.rule) }
}

/// What the pod's policies say about sending to `peer`.
pub fn egress(plan: &NodePlan, pod: &EndpointPlan, peer: Addr, protocol: Protocol, port: Port) -> Ruling {
    ruling(plan, pod.egress, peer, protocol, port)
}

/// What the pod's policies say about receiving from `peer`. The pod's own node may always reach it.
pub fn ingress(plan: &NodePlan, pod: &EndpointPlan, peer: Addr, protocol: Protocol, port: Port) -> Ruling {
    if plan.settings.host_addresses.contains(&peer) {
        return Ruling { reason: Reason::FromOwnNode, rule: None };
    }
    ruling(plan, pod.ingress, peer, protocol, port)
}

fn ruling(plan: &NodePlan, set: Option<PolicySetId>, peer: Addr, protocol: Protocol, port: Port) -> Ruling {
    match set {
        None => Ruling { reason: Reason::NotIsolated, rule: None },
        Some(set) => policy_lookup(plan, set, class_of(plan, peer), protocol, port),
    }
}

/// The class of a peer: the longest prefix that holds its address.
pub fn class_of(plan: &NodePlan, addr: Addr) -> ClassId {
    longest_match(&plan.classes, addr).copied().unwrap_or(ClassId::WORLD)
}

/// The value of the longest prefix that holds `addr`.
pub(crate) fn longest_match<V>(table: &BTreeMap<Cidr, V>, addr: Addr) -> Option<&V> {
    let family_bits = match addr.family() {
        Family::V4 => 32,
        Family::V6 => 128,
    };
    (0..=family_bits).rev().find_map(|bits| table.get(&Cidr::around(addr, bits)?))
}

/// The longest match among the class's own entries, then among those of any class, then default deny.
pub fn policy_lookup(
    plan: &NodePlan,
    set: PolicySetId,
    class: ClassId,
    protocol: Protocol,
    port: Port,
) -> Ruling {
    let Some(set) = plan.policy_sets.get(&set) else {
        return Ruling { reason: denied(class, Reason::DefaultDeny), rule: None };
    };
    let own = longest(set, ClassMatch::Only(class), protocol, port);
    match own.or_else(|| longest(set, ClassMatch::Any, protocol, port)) {
        None => Ruling { reason: denied(class, Reason::DefaultDeny), rule: Some(set.default_rule) },
        Some(Decision { verdict: Verdict::Forwarded, rule }) => {
            Ruling { reason: Reason::AllowedByRule, rule: Some(rule) }
        }
        Some(Decision { verdict: Verdict::Denied, rule }) => {
            Ruling { reason: denied(class, Reason::DeniedByRule), rule: Some(rule) }
        }
    }
}

/// A pod that is not known yet may be one that a rule allows: the denial says so.
fn denied(class: ClassId, reason: Reason) -> Reason {
    if class.is_unknown_pod() { Reason::IdentityUnknown } else { reason }
}

fn longest(set: &PolicySet, class: ClassMatch, protocol: Protocol, port: Port) -> Option<Decision> {
    let prefix = |bits: u8| PortPrefix { value: (u32::from(port.0) & !(0xffff_u32 >> bits)) as u16, bits };
    let masks = (0..=16).rev().map(|bits| (Some(protocol), prefix(bits))).chain([(None, PortPrefix::ANY)]);
    let mut keys = masks.map(|(protocol, port)| PolicyMatch { class, protocol, port });
    keys.find_map(|key| set.entries.get(&key)).copied()
}

/// The direction's set of an endpoint.
pub fn set_of(pod: &EndpointPlan, direction: Direction) -> Option<PolicySetId> {
    match direction {
        Direction::Ingress => pod.ingress,
        Direction::Egress => pod.egress,
    }
}
