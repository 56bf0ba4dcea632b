//! Policies that do nothing, allow nobody, name ports nobody has, or cut pods off from names.

use std::collections::BTreeMap;

use weft_model::{
    Addr, Finding, NamespaceMatch, NamespaceName, Peer, Pod, Policy, Port, PortMatch, Protocol, Rule,
    RuleSet, Selector, Snapshot,
};

use super::{Pods, hint, warning};
use crate::peers::NameServer;

const DNS: Port = Port(53);

pub(super) fn check(snapshot: &Snapshot, pods: &Pods<'_>, findings: &mut Vec<Finding>) {
    let checker = Checker { snapshot, pods, name_server: NameServer::of(snapshot) };
    let mut isolating: BTreeMap<&NamespaceName, Vec<&Policy>> = BTreeMap::new();
    for policy in snapshot.policies.values().filter(|policy| matches!(policy.egress, RuleSet::Isolates(_))) {
        isolating.entry(&policy.subject.namespace).or_default().push(policy);
    }
    for policy in snapshot.policies.values() {
        let isolating = isolating.get(&policy.subject.namespace).map(Vec::as_slice).unwrap_or_default();
        checker.policy(policy, isolating, findings);
    }
}

struct Checker<'a> {
    snapshot: &'a Snapshot,
    pods: &'a Pods<'a>,
    name_server: NameServer,
}

impl<'a> Checker<'a> {
    fn policy(&self, policy: &Policy, isolating: &[&Policy], findings: &mut Vec<Finding>) {
        let namespace = &policy.subject.namespace;
        let subjects = self.pods.selected(namespace, &policy.subject.pods);
        if subjects.is_empty() {
            let labels = self.pods.of_namespace(namespace).iter().map(|pod| &pod.labels);
            let hint = hint(&policy.subject.pods, labels);
            let message = format!("{} selects no pod of namespace {namespace}{hint}", policy.subject.pods);
            findings.push(warning(&policy.key, "spec.podSelector", message));
        }
        for (direction, side, rules) in
            [("ingress", "from", &policy.ingress), ("egress", "to", &policy.egress)]
        {
            let RuleSet::Isolates(rules) = rules else { continue };
            for (index, rule) in rules.iter().enumerate() {
                let field = format!("spec.{direction}[{index}]");
                self.peers(policy, rule, &format!("{field}.{side}"), findings);
                let owners =
                    if direction == "ingress" { Some(subjects.clone()) } else { self.destinations(rule) };
                // Without owners, somebody else's finding says why, or it is anybody's port.
                if let Some(owners) = owners.filter(|owners| !owners.is_empty()) {
                    ports(policy, rule, &field, &owners, findings);
                }
            }
        }
        if matches!(policy.egress, RuleSet::Isolates(_)) {
            self.names(policy, &subjects, isolating, findings);
        }
    }

    fn peers(&self, policy: &Policy, rule: &Rule, field: &str, findings: &mut Vec<Finding>) {
        for (index, peer) in rule.peers.iter().flatten().enumerate() {
            let Peer::Pods { namespaces, pods } = peer else { continue };
            let field = format!("{field}[{index}]");
            let candidates = self.namespaces(namespaces);
            if candidates.is_empty() && !self.is_name_server(namespaces, pods) {
                let NamespaceMatch::Labels(selector) = namespaces else { continue };
                let hint =
                    hint(selector, self.snapshot.namespaces.values().map(|namespace| &namespace.labels));
                let message = format!("{selector} matches no namespace{hint}");
                findings.push(warning(&policy.key, format!("{field}.namespaceSelector"), message));
            } else if !self.any_pod(&candidates, pods) && !self.is_name_server(namespaces, pods) {
                let all = candidates.iter().flat_map(|name| self.pods.of_namespace(name));
                let hint = hint(pods, all.map(|pod| &pod.labels));
                let place = match namespaces {
                    NamespaceMatch::Name(name) => format!("namespace {name}"),
                    NamespaceMatch::Labels(selector) if selector.is_everything() => {
                        "any namespace".to_owned()
                    }
                    NamespaceMatch::Labels(selector) => format!("the namespaces with {selector}"),
                };
                let message = format!("{pods} matches no pod of {place}{hint}");
                findings.push(warning(&policy.key, format!("{field}.podSelector"), message));
            }
        }
    }

    fn namespaces<'m>(&'m self, wanted: &'m NamespaceMatch) -> Vec<&'m NamespaceName> {
        match wanted {
            NamespaceMatch::Name(name) => vec![name],
            NamespaceMatch::Labels(selector) => {
                let all = self.snapshot.namespaces.values();
                all.filter(|namespace| selector.matches(&namespace.labels))
                    .map(|namespace| &namespace.name)
                    .collect()
            }
        }
    }

    fn any_pod(&self, namespaces: &[&NamespaceName], selector: &Selector) -> bool {
        let mut pods = namespaces.iter().flat_map(|name| self.pods.of_namespace(name));
        pods.any(|pod| selector.matches(&pod.labels))
    }

    fn is_name_server(&self, namespaces: &NamespaceMatch, pods: &Selector) -> bool {
        let NameServer { namespace, labels, .. } = &self.name_server;
        let fits = match namespaces {
            NamespaceMatch::Name(name) => *name == namespace.name,
            NamespaceMatch::Labels(selector) => selector.matches(&namespace.labels),
        };
        fits && pods.matches(labels)
    }

    /// The pods a rule allows sending to; `None` where others are meant too.
    fn destinations(&self, rule: &Rule) -> Option<Vec<&'a Pod>> {
        let mut found = Vec::new();
        for peer in rule.peers.as_ref()? {
            let Peer::Pods { namespaces, pods } = peer else { return None };
            if self.is_name_server(namespaces, pods) {
                return None;
            }
            found.extend(
                self.namespaces(namespaces).into_iter().flat_map(|name| self.pods.selected(name, pods)),
            );
        }
        Some(found)
    }

    /// A pod whose egress is isolated and whose policies, taken together, do not let it ask for names.
    fn names(&self, policy: &Policy, subjects: &[&Pod], isolating: &[&Policy], findings: &mut Vec<Finding>) {
        let cut_off = subjects.iter().find(|pod| {
            let selecting = isolating.iter().filter(|policy| policy.subject.pods.matches(&pod.labels));
            let mut rules = selecting.flat_map(|policy| match &policy.egress {
                RuleSet::Isolates(rules) => rules.as_slice(),
                RuleSet::Absent => &[],
            });
            !rules.any(|rule| self.allows_names(rule))
        });
        if let Some(pod) = cut_off {
            let message = format!(
                "no policy lets pod {} ask the name server (UDP port 53), so it cannot resolve names; \
                 allow egress to pods with k8s-app=kube-dns in namespace kube-system",
                pod.key
            );
            findings.push(warning(&policy.key, "spec.egress", message));
        }
    }

    fn allows_names(&self, rule: &Rule) -> bool {
        let port = rule.ports.as_ref().is_none_or(|ports| {
            ports.iter().any(|port| match port {
                PortMatch::All(protocol) => *protocol == Protocol::UDP,
                PortMatch::Range { protocol, first, last } => {
                    *protocol == Protocol::UDP && (*first..=*last).contains(&DNS)
                }
                PortMatch::Named { protocol, name } => *protocol == Protocol::UDP && name == "dns",
            })
        });
        let servers: &[Addr] = &self.snapshot.settings.dns_addresses;
        let peer = rule.peers.as_ref().is_none_or(|peers| {
            peers.iter().any(|peer| match peer {
                Peer::Pods { namespaces, pods } => self.is_name_server(namespaces, pods),
                Peer::Block(block) => servers.iter().any(|addr| {
                    block.cidr.contains(*addr) && !block.except.iter().any(|except| except.contains(*addr))
                }),
            })
        });
        port && peer
    }
}

/// Ports that no pod behind the rule declares.
fn ports(policy: &Policy, rule: &Rule, field: &str, owners: &[&Pod], findings: &mut Vec<Finding>) {
    for (index, port) in rule.ports.iter().flatten().enumerate() {
        let what = match port {
            PortMatch::All(_) => continue,
            PortMatch::Range { protocol, first, last } => {
                let inside =
                    |(of, number): &(Protocol, Port)| of == protocol && (first..=last).contains(&number);
                if owners.iter().any(|pod| pod.declared_ports.iter().any(inside)) {
                    continue;
                }
                if first == last {
                    format!("{first}/{protocol}")
                } else {
                    format!("{first}-{last}/{protocol}")
                }
            }
            PortMatch::Named { protocol, name } => {
                let same = |port: &weft_model::NamedPort| port.protocol == *protocol && port.name == *name;
                if owners.iter().any(|pod| pod.named_ports.iter().any(same)) {
                    continue;
                }
                format!("a {protocol} port named {name}")
            }
        };
        let message = format!("none of the {} declares {what}{}", pods_in_words(owners), declared(owners));
        findings.push(warning(&policy.key, format!("{field}.ports[{index}]"), message));
    }
}

fn pods_in_words(pods: &[&Pod]) -> String {
    match pods {
        [pod] => format!("pods meant (only {})", pod.key),
        _ => format!("{} pods meant", pods.len()),
    }
}

/// "; they declare 80/TCP"
fn declared(pods: &[&Pod]) -> String {
    let ports: std::collections::BTreeSet<_> = pods.iter().flat_map(|pod| &pod.declared_ports).collect();
    if ports.is_empty() || ports.len() > 8 {
        return String::new();
    }
    let texts = ports.iter().map(|(protocol, port)| format!("{port}/{protocol}")).collect::<Vec<_>>();
    format!("; they declare {}", texts.join(", "))
}
