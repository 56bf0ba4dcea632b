//! Rules as text: the one that decided, and the smallest one that would allow. Nothing is judged here.

use weft_model::{
    Addr, Direction, Labels, NamespaceMatch, Peer, Pod, PodKey, Port, PortMatch, Protocol, Rule, RuleSet,
    Snapshot,
};
use weft_plan::RuleCause;

/// Labels that differ between pods of one workload, so no policy should ask for them.
const PER_POD_LABELS: [&str; 6] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
];

/// The rule a cause speaks of, as it stands in the policy with its defaults.
pub(super) fn rule_text(snapshot: &Snapshot, cause: &RuleCause) -> Option<String> {
    let RuleCause::Rule { policy, direction, index } = cause else { return None };
    let policy = snapshot.policies.get(policy)?;
    let rules = match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    let RuleSet::Isolates(rules) = rules else { return None };
    Some(in_words(rules.get(*index)?, *direction))
}

fn in_words(rule: &Rule, direction: Direction) -> String {
    let side = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let peers = match &rule.peers {
        None => "everyone".to_owned(),
        Some(peers) => peers.iter().map(peer_in_words).collect::<Vec<_>>().join(", or "),
    };
    let ports = match &rule.ports {
        None => "every port".to_owned(),
        Some(ports) => ports.iter().map(port_in_words).collect::<Vec<_>>().join(", "),
    };
    format!("{side} {peers} on {ports}")
}

fn peer_in_words(peer: &Peer) -> String {
    match peer {
        Peer::Block(block) if block.except.is_empty() => block.cidr.to_string(),
        Peer::Block(block) => {
            let except = block.except.iter().map(ToString::to_string).collect::<Vec<_>>();
            format!("{} except {}", block.cidr, except.join(", "))
        }
        Peer::Pods { namespaces, pods } => {
            let pods = if pods.is_everything() { "all pods".to_owned() } else { format!("pods with {pods}") };
            match namespaces {
                NamespaceMatch::Name(name) => format!("{pods} of namespace {name}"),
                NamespaceMatch::Labels(selector) if selector.is_everything() => {
                    format!("{pods} of all namespaces")
                }
                NamespaceMatch::Labels(selector) => format!("{pods} of namespaces with {selector}"),
            }
        }
    }
}

fn port_in_words(port: &PortMatch) -> String {
    match port {
        PortMatch::All(protocol) => format!("every {protocol} port"),
        PortMatch::Range { protocol, first, last } if first == last => format!("{first}/{protocol}"),
        PortMatch::Range { protocol, first, last } => format!("{first}-{last}/{protocol}"),
        PortMatch::Named { protocol, name } => format!("{name}/{protocol}"),
    }
}

/// The other end of a connection, as a rule can name it.
pub(super) enum Party<'a> {
    Pod(&'a Pod),
    NameServer,
    Addr(Addr),
}

/// A policy that lets exactly this connection into (or out of) pods like `subject`.
pub(super) fn allow(
    subject: &Pod,
    direction: Direction,
    peer: &Party<'_>,
    protocol: Protocol,
    port: Port,
) -> Option<String> {
    if !protocol.has_ports() {
        // NetworkPolicy has no word for it but a rule without ports, which allows far more.
        return None;
    }
    let (field, side, kind) = match direction {
        Direction::Ingress => ("ingress", "from", "Ingress"),
        Direction::Egress => ("egress", "to", "Egress"),
    };
    let name =
        format!("allow-{field}-{}-{port}-{}", base_name(&subject.key), protocol.to_string().to_lowercase());
    let mut lines = vec![
        "apiVersion: networking.k8s.io/v1".to_owned(),
        "kind: NetworkPolicy".to_owned(),
        "metadata:".to_owned(),
        format!("  name: {name}"),
        format!("  namespace: {}", subject.key.namespace),
        "spec:".to_owned(),
    ];
    lines.extend(selector("podSelector", &subject.labels, "  "));
    lines.extend([format!("  policyTypes: [{kind}]"), format!("  {field}:"), format!("    - {side}:")]);
    lines.extend(peer_lines(peer, subject));
    lines.extend([
        "      ports:".to_owned(),
        format!("        - protocol: {protocol}"),
        format!("          port: {port}"),
    ]);
    Some(lines.join("\n") + "\n")
}

fn peer_lines(peer: &Party<'_>, subject: &Pod) -> Vec<String> {
    match peer {
        Party::Pod(pod) if pod.key.namespace == subject.key.namespace => {
            as_item(selector("podSelector", &pod.labels, "          "))
        }
        Party::Pod(pod) => {
            let name = ("kubernetes.io/metadata.name".to_owned(), pod.key.namespace.to_string());
            let namespace = selector("namespaceSelector", &Labels::from([name]), "          ");
            let pods = selector("podSelector", &pod.labels, "          ");
            as_item(namespace.into_iter().chain(pods).collect())
        }
        Party::NameServer => {
            let pair = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
            let namespace = pair("kubernetes.io/metadata.name", "kube-system");
            let namespace = selector("namespaceSelector", &namespace, "          ");
            let pods = selector("podSelector", &pair("k8s-app", "kube-dns"), "          ");
            as_item(namespace.into_iter().chain(pods).collect())
        }
        Party::Addr(addr) => {
            let cidr = weft_model::Cidr::host(*addr);
            vec!["        - ipBlock:".to_owned(), format!("            cidr: {cidr}")]
        }
    }
}

/// The first line becomes a list item's.
fn as_item(mut lines: Vec<String>) -> Vec<String> {
    if let Some(first) = lines.first_mut() {
        *first = format!("        - {}", first.trim_start());
    }
    lines
}

fn selector(field: &str, labels: &Labels, indent: &str) -> Vec<String> {
    let lasting: Vec<_> = labels.iter().filter(|(key, _)| !PER_POD_LABELS.contains(&key.as_str())).collect();
    if lasting.is_empty() {
        return vec![format!("{indent}{field}: {{}}")];
    }
    let pairs = lasting.iter().map(|(key, value)| format!("{indent}    {key}: {value:?}"));
    [format!("{indent}{field}:"), format!("{indent}  matchLabels:")].into_iter().chain(pairs).collect()
}

/// A pod's name without the parts its workload's controller gave it.
fn base_name(pod: &PodKey) -> &str {
    let random = |part: &str| {
        part.len() >= 5
            && part.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit())
            && part.chars().any(|letter| letter.is_ascii_digit())
    };
    let mut name = &*pod.name;
    while let Some((front, last)) = name.rsplit_once('-') {
        if !random(last) {
            break;
        }
        name = front;
    }
    name
}
