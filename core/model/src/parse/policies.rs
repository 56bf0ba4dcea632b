//! NetworkPolicy (networking.k8s.io/v1) to the model's policy, every default made explicit.
//!
//! Whatever is broken allows nothing: a peer, a port, a rule. A subject selector that is not understood isolates
//! at least the pods that were meant, and then none of the rules counts, for they may be meant for fewer pods.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::labels::selector;
use super::nodes::cidr;
use super::{Findings, Parsed, uid};
use crate::{
    Block, NamespaceMatch, NamespaceName, Peer, Policy, PolicyKey, PolicyKind, Port, PortMatch, Protocol,
    Rule, RuleSet, Selector, Subject,
};

pub fn network_policy(policy: &api::NetworkPolicy) -> Parsed<Policy> {
    let mut findings = Findings::about("NetworkPolicy", &policy.metadata);
    let Some(object) = findings.key(&policy.metadata) else { return findings.with(None) };
    let namespace = object.namespace.clone();
    let spec = policy.spec.clone().unwrap_or_default();
    let subject = match &spec.pod_selector {
        Some(given) => selector(&mut findings, "spec.podSelector", given),
        None => selector(&mut findings, "spec.podSelector", &LabelSelector::default()),
    };
    let isolates = policy_types(&mut findings, &spec);
    let ingress = spec.ingress.iter().flatten().enumerate().map(|(index, rule)| {
        let field = format!("spec.ingress[{index}]");
        Rule {
            peers: peers(&mut findings, &namespace, &format!("{field}.from"), rule.from.as_deref()),
            ports: ports(&mut findings, &field, rule.ports.as_deref()),
        }
    });
    let ingress: Vec<Rule> = ingress.collect();
    let egress = spec.egress.iter().flatten().enumerate().map(|(index, rule)| {
        let field = format!("spec.egress[{index}]");
        Rule {
            peers: peers(&mut findings, &namespace, &format!("{field}.to"), rule.to.as_deref()),
            ports: ports(&mut findings, &field, rule.ports.as_deref()),
        }
    });
    let egress: Vec<Rule> = egress.collect();
    let rules = |isolates: bool, rules: Vec<Rule>| match (isolates, subject.complete) {
        (false, _) => RuleSet::Absent,
        (true, true) => RuleSet::Isolates(rules),
        (true, false) => RuleSet::Isolates(Vec::new()),
    };
    let value = Policy {
        key: PolicyKey { kind: PolicyKind::NetworkPolicy, object },
        uid: uid(&policy.metadata),
        ingress: rules(isolates.ingress, ingress),
        egress: rules(isolates.egress, egress),
        subject: Subject { namespace, pods: subject.selector },
    };
    findings.with(Some(value))
}

struct Isolates {
    ingress: bool,
    egress: bool,
}

/// Without `policyTypes`: ingress always, egress if there are egress rules (API reference, `policyTypes`).
fn policy_types(findings: &mut Findings, spec: &api::NetworkPolicySpec) -> Isolates {
    let given = spec.policy_types.as_deref().unwrap_or_default();
    if given.is_empty() {
        let egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        return Isolates { ingress: true, egress };
    }
    let mut isolates = Isolates { ingress: false, egress: false };
    for (index, name) in given.iter().enumerate() {
        match name.as_str() {
            "Ingress" => isolates.ingress = true,
            "Egress" => isolates.egress = true,
            other => {
                let message =
                    format!("{other:?} is neither Ingress nor Egress; both directions are isolated");
                findings.error(format!("spec.policyTypes[{index}]"), message);
                isolates = Isolates { ingress: true, egress: true };
            }
        }
    }
    isolates
}

/// `None` is everybody; a list whose members are all broken is nobody.
fn peers(
    findings: &mut Findings,
    namespace: &NamespaceName,
    field: &str,
    given: Option<&[api::NetworkPolicyPeer]>,
) -> Option<Vec<Peer>> {
    let given = given.filter(|list| !list.is_empty())?;
    let parse = |(index, given)| peer(findings, namespace, &format!("{field}[{index}]"), given);
    Some(given.iter().enumerate().filter_map(parse).collect())
}

fn peer(
    findings: &mut Findings,
    namespace: &NamespaceName,
    field: &str,
    given: &api::NetworkPolicyPeer,
) -> Option<Peer> {
    match (&given.ip_block, &given.namespace_selector, &given.pod_selector) {
        (Some(given), None, None) => block(findings, &format!("{field}.ipBlock"), given).map(Peer::Block),
        (Some(_), _, _) => {
            findings
                .error(field, "ipBlock excludes podSelector and namespaceSelector; the peer allows nothing");
            None
        }
        (None, None, None) => {
            findings.error(field, "names no peer; the peer allows nothing");
            None
        }
        (None, namespaces, pods) => {
            let mut part = |name: &str, given: &LabelSelector| {
                let parsed = selector(findings, &format!("{field}.{name}"), given);
                parsed.complete.then_some(parsed.selector)
            };
            let namespaces = match namespaces {
                None => NamespaceMatch::Name(namespace.clone()),
                Some(given) => NamespaceMatch::Labels(part("namespaceSelector", given)?),
            };
            let pods = match pods {
                None => Selector::everything(),
                Some(given) => part("podSelector", given)?,
            };
            Some(Peer::Pods { namespaces, pods })
        }
    }
}

/// A broken exception breaks the block: ignoring it would allow what was excluded.
fn block(findings: &mut Findings, field: &str, given: &api::IPBlock) -> Option<Block> {
    let block = cidr(findings, &format!("{field}.cidr"), &given.cidr)?;
    let mut except = BTreeSet::new();
    for (index, text) in given.except.iter().flatten().enumerate() {
        let field = format!("{field}.except[{index}]");
        let excluded = cidr(findings, &field, text)?;
        if !block.covers(excluded) {
            findings.warning(field, format!("{excluded} is not inside {block}"));
        }
        except.insert(excluded);
    }
    Some(Block { cidr: block, except })
}

fn ports(
    findings: &mut Findings,
    field: &str,
    given: Option<&[api::NetworkPolicyPort]>,
) -> Option<Vec<PortMatch>> {
    let given = given.filter(|list| !list.is_empty())?;
    let parse = |(index, given)| port(findings, &format!("{field}.ports[{index}]"), given);
    Some(given.iter().enumerate().filter_map(parse).collect())
}

fn port(findings: &mut Findings, field: &str, given: &api::NetworkPolicyPort) -> Option<PortMatch> {
    let protocol = findings.protocol(format!("{field}.protocol"), given.protocol.as_deref())?;
    match &given.port {
        None if given.end_port.is_some() => {
            findings.error(format!("{field}.endPort"), "needs port as well; the port allows nothing");
            None
        }
        None => Some(PortMatch::All(protocol)),
        Some(IntOrString::Int(number)) => {
            let first = findings.port(format!("{field}.port"), *number)?;
            let last = match given.end_port {
                None => first,
                Some(number) => last_port(findings, field, first, number)?,
            };
            Some(PortMatch::Range { protocol, first, last })
        }
        Some(IntOrString::String(name)) => named(findings, field, protocol, name, given.end_port),
    }
}

fn last_port(findings: &mut Findings, field: &str, first: Port, number: i32) -> Option<Port> {
    let field = format!("{field}.endPort");
    let last = findings.port(field.as_str(), number)?;
    if last < first {
        findings.error(field, format!("{last} is less than port {first}; the port allows nothing"));
        return None;
    }
    Some(last)
}

fn named(
    findings: &mut Findings,
    field: &str,
    protocol: Protocol,
    name: &str,
    end_port: Option<i32>,
) -> Option<PortMatch> {
    if end_port.is_some() {
        findings.error(format!("{field}.endPort"), "cannot go with a named port; the port allows nothing");
        return None;
    }
    if name.is_empty() {
        findings.error(format!("{field}.port"), "is an empty name; the port allows nothing");
        return None;
    }
    Some(PortMatch::Named { protocol, name: name.to_owned() })
}
