//! Random clusters in a small world, where labels, ports and prefixes meet often, and packets that hit them.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;
use proptest::{collection::vec, option, sample::select};

use super::frames::{FragmentPlace, Frame, FrameBody};
use super::{Cluster, Probe, objects};
use crate::{Addr, ClusterSettings, Port, Protocol, Routing};

const NAMESPACES: [&str; 3] = ["red", "green", "blue"];
const LABELS: [(&str, &[&str]); 3] =
    [("app", &["web", "db", "api"]), ("tier", &["f", "b"]), ("zone", &["x", "y"])];
const PORT_NAMES: [&str; 3] = ["http", "dns", "admin"];
const PORTS: [i32; 6] = [53, 80, 443, 8080, 8081, 9090];
/// TCP more often, so that names, rules and probes meet.
const PROTOCOLS: [&str; 6] = ["TCP", "TCP", "TCP", "UDP", "UDP", "SCTP"];
const POLICY_TYPES: [&[&str]; 4] = [&[], &["Ingress"], &["Egress"], &["Ingress", "Egress"]];
const BLOCKS: [&str; 14] = [
    "0.0.0.0/0",
    "10.244.0.0/16",
    "10.244.1.0/24",
    "10.244.2.0/25",
    "10.244.1.10/32",
    "10.0.0.1/8",
    "172.30.0.0/24",
    "203.0.113.0/24",
    "203.0.113.7/32",
    "::/0",
    "fd00:10:244::/56",
    "fd00:10:244:1::/64",
    "2001:db8::/32",
    "::/16",
];
const OUTSIDE: [&str; 4] = ["203.0.113.7", "198.51.100.1", "2001:db8::1", "10.9.9.9"];
const NAME_SERVER: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];

/// A cluster of up to three nodes with a few pods, policies and services.
pub fn clusters() -> impl Strategy<Value = Cluster> {
    let routing = prop_oneof![Just(Routing::Direct), Just(Routing::Vxlan { vni: 7, port: 4789 })];
    (routing, 1usize..=3, vec(labels(), 3), vec(pod(), 0..8), vec(policy(), 0..5), vec(service(), 0..3))
        .prop_map(|(routing, nodes, namespaces, pods, policies, services)| {
            let mut cluster = Cluster { settings: settings(routing), ..Cluster::default() };
            cluster.nodes = (1..=nodes).map(node).collect();
            for (name, mut labels) in NAMESPACES.iter().zip(namespaces) {
                labels.insert("kubernetes.io/metadata.name".to_owned(), (*name).to_owned());
                let mut namespace = objects::namespace(name, &[]);
                namespace.metadata.labels = Some(labels);
                cluster.namespaces.push(namespace);
            }
            cluster.pods =
                pods.into_iter().enumerate().map(|(index, pod)| pod.object(index, nodes)).collect();
            let policies = policies.into_iter().enumerate();
            cluster.policies = policies.map(|(index, policy)| policy.object(index)).collect();
            for (index, service) in services.into_iter().enumerate() {
                service.add(index, &mut cluster);
            }
            cluster
        })
}

fn settings(routing: Routing) -> ClusterSettings {
    let cidrs = |list: [&str; 2]| list.map(|cidr| cidr.parse().expect("a prefix")).to_vec();
    ClusterSettings {
        pod_cidrs: cidrs(["10.244.0.0/16", "fd00:10:244::/56"]),
        service_cidrs: cidrs(["10.96.0.0/16", "fd00:10:96::/112"]),
        node_cidrs: cidrs(["172.30.0.0/24", "fd00:172:30::/64"]),
        routing,
        dns_addresses: NAME_SERVER.map(addr).to_vec(),
        ..ClusterSettings::default()
    }
}

fn addr(text: &str) -> Addr {
    text.parse().expect("an address")
}

fn node(number: usize) -> core::Node {
    let addresses = [format!("172.30.0.{}", 10 + number), format!("fd00:172:30::{}", 10 + number)];
    let cidrs = [format!("10.244.{number}.0/24"), format!("fd00:10:244:{number}::/64")];
    objects::node(
        &format!("node{number}"),
        &[addresses[0].as_str(), addresses[1].as_str()],
        &[cidrs[0].as_str(), cidrs[1].as_str()],
    )
}

type LabelMap = std::collections::BTreeMap<String, String>;

fn labels() -> impl Strategy<Value = LabelMap> {
    LABELS.map(|(key, values)| option::of(select(values)).prop_map(move |value| (key, value))).prop_map(
        |pairs| {
            let given =
                pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())));
            given.collect()
        },
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PodForm {
    DualStack,
    Ipv4,
    HostNetwork,
    Pending,
    Finished,
}

#[derive(Clone, Debug)]
struct RandomPod {
    namespace: &'static str,
    node: usize,
    labels: LabelMap,
    form: PodForm,
    ports: Vec<(Option<&'static str>, &'static str, i32)>,
}

fn pod() -> impl Strategy<Value = RandomPod> {
    let form = prop_oneof![
        6 => Just(PodForm::DualStack),
        2 => Just(PodForm::Ipv4),
        1 => Just(PodForm::HostNetwork),
        1 => Just(PodForm::Pending),
        1 => Just(PodForm::Finished),
    ];
    let port = (option::of(select(&PORT_NAMES[..])), select(&PROTOCOLS[..]), select(&PORTS[..]));
    (select(&NAMESPACES[..]), 0usize..3, labels(), form, vec(port, 0..4))
        .prop_map(|(namespace, node, labels, form, ports)| RandomPod { namespace, node, labels, form, ports })
}

fn pod_addresses(node: usize, index: usize) -> [String; 2] {
    [format!("10.244.{node}.{}", 10 + index), format!("fd00:10:244:{node}::{:x}", 10 + index)]
}

impl RandomPod {
    fn object(self, index: usize, nodes: usize) -> core::Pod {
        let number = self.node % nodes + 1;
        let mut addresses = pod_addresses(number, index).to_vec();
        match self.form {
            PodForm::DualStack | PodForm::Finished => {}
            PodForm::Ipv4 => addresses.truncate(1),
            PodForm::Pending => addresses.clear(),
            PodForm::HostNetwork => addresses = vec![format!("172.30.0.{}", 10 + number)],
        }
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let name = format!("pod{index}");
        let mut pod = objects::pod(self.namespace, &name, &format!("node{number}"), &[], &addresses);
        pod.metadata.labels = Some(self.labels);
        let spec = pod.spec.get_or_insert_default();
        spec.host_network = Some(self.form == PodForm::HostNetwork);
        let ports =
            self.ports.iter().map(|(name, protocol, port)| objects::container_port(*name, protocol, *port));
        spec.containers[0].ports = Some(ports.collect());
        pod.status.get_or_insert_default().phase = Some(
            match self.form {
                PodForm::Pending => "Pending",
                PodForm::Finished => "Succeeded",
                _ => "Running",
            }
            .to_owned(),
        );
        pod
    }
}

#[derive(Clone, Debug)]
struct RandomPolicy {
    namespace: &'static str,
    spec: networking::NetworkPolicySpec,
}

fn policy() -> impl Strategy<Value = RandomPolicy> {
    let types = select(&POLICY_TYPES[..]);
    let ingress = option::of(vec((peers(), ports()), 0..3));
    let egress = option::of(vec((peers(), ports()), 0..3));
    (select(&NAMESPACES[..]), option::of(selector()), option::of(types), ingress, egress).prop_map(
        |(namespace, pod_selector, types, ingress, egress)| {
            let ingress = ingress.map(|rules| {
                let rule = |(from, ports)| networking::NetworkPolicyIngressRule { from, ports };
                rules.into_iter().map(rule).collect()
            });
            let egress = egress.map(|rules| {
                let rule = |(to, ports)| networking::NetworkPolicyEgressRule { to, ports };
                rules.into_iter().map(rule).collect()
            });
            let policy_types = types.map(|types| types.iter().map(|name| (*name).to_owned()).collect());
            let spec = networking::NetworkPolicySpec { pod_selector, policy_types, ingress, egress };
            RandomPolicy { namespace, spec }
        },
    )
}

impl RandomPolicy {
    fn object(self, index: usize) -> networking::NetworkPolicy {
        objects::policy(self.namespace, &format!("policy{index}"), self.spec)
    }
}

fn selector() -> impl Strategy<Value = LabelSelector> {
    let expression = select(&LABELS[..]).prop_flat_map(|(key, values)| {
        let some = vec(select(values), 1..=2);
        (Just(key), select(&["In", "NotIn", "Exists", "DoesNotExist"][..]), some)
    });
    let expression = expression.prop_map(|(key, operator, values)| {
        let wants_values = matches!(operator, "In" | "NotIn");
        LabelSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values: wants_values.then(|| values.into_iter().map(str::to_owned).collect()),
        }
    });
    let sparse = prop_oneof![1 => Just(LabelMap::new()), 3 => labels()];
    (option::of(sparse), option::weighted(0.3, vec(expression, 0..2)))
        .prop_map(|(match_labels, match_expressions)| LabelSelector { match_labels, match_expressions })
}

fn peers() -> impl Strategy<Value = Option<Vec<networking::NetworkPolicyPeer>>> {
    option::weighted(0.8, vec(peer(), 0..3))
}

fn peer() -> impl Strategy<Value = networking::NetworkPolicyPeer> {
    let by_labels =
        (option::of(selector()), selector(), any::<bool>()).prop_map(|(namespaces, pods, with_pods)| {
            networking::NetworkPolicyPeer {
                pod_selector: (with_pods || namespaces.is_none()).then_some(pods),
                namespace_selector: namespaces,
                ip_block: None,
            }
        });
    let by_block = (select(&BLOCKS[..]), vec(select(&BLOCKS[..]), 0..3)).prop_map(|(cidr, except)| {
        let except = except.into_iter().map(str::to_owned).collect();
        let ip_block = networking::IPBlock { cidr: cidr.to_owned(), except: Some(except) };
        networking::NetworkPolicyPeer { ip_block: Some(ip_block), ..Default::default() }
    });
    prop_oneof![3 => by_labels, 2 => by_block]
}

fn ports() -> impl Strategy<Value = Option<Vec<networking::NetworkPolicyPort>>> {
    let number = (select(&PORTS[..]), option::weighted(0.3, 0..2000)).prop_map(|(first, more)| {
        let end_port = more.map(|more| first + more);
        (Some(IntOrString::Int(first)), end_port)
    });
    let named = select(&PORT_NAMES[..]).prop_map(|name| (Some(IntOrString::String(name.to_owned())), None));
    let port = prop_oneof![1 => Just((None, None)), 4 => number, 2 => named];
    let port = (option::of(select(&PROTOCOLS[..])), port).prop_map(|(protocol, (port, end_port))| {
        networking::NetworkPolicyPort { protocol: protocol.map(str::to_owned), port, end_port }
    });
    option::of(vec(port, 0..3))
}

#[derive(Clone, Debug)]
struct RandomService {
    namespace: &'static str,
    /// (protocol, port, target port), the first two different among the ports of one service.
    ports: Vec<(&'static str, i32, i32)>,
    /// Which pods, by index, and how they are.
    endpoints: Vec<(usize, Condition)>,
}

#[derive(Clone, Copy, Debug)]
enum Condition {
    Ready,
    Terminating,
    NotReady,
}

fn service() -> impl Strategy<Value = RandomService> {
    let condition = prop_oneof![
        3 => Just(Condition::Ready),
        1 => Just(Condition::Terminating),
        1 => Just(Condition::NotReady),
    ];
    let ports = vec((select(&["TCP", "UDP"][..]), select(&PORTS[..]), select(&PORTS[..])), 1..3);
    (select(&NAMESPACES[..]), ports, vec((0usize..8, condition), 0..4)).prop_map(
        |(namespace, ports, endpoints)| {
            let mut seen = std::collections::BTreeSet::new();
            let ports =
                ports.into_iter().filter(|(protocol, port, _)| seen.insert((*protocol, *port))).collect();
            RandomService { namespace, ports, endpoints }
        },
    )
}

impl RandomService {
    fn add(self, index: usize, cluster: &mut Cluster) {
        let name = format!("service{index}");
        let port_name = |place: usize| format!("port{place}");
        let ports = self.ports.iter().enumerate();
        let ports = ports
            .map(|(place, (protocol, port, _))| objects::service_port(&port_name(place), protocol, *port));
        let cluster_ips = [format!("10.96.0.{}", 20 + index), format!("fd00:10:96::{:x}", 20 + index)];
        let cluster_ips: Vec<&str> = cluster_ips.iter().map(String::as_str).collect();
        cluster.services.push(objects::service(self.namespace, &name, &cluster_ips, ports.collect()));
        for (place, address_type) in ["IPv4", "IPv6"].into_iter().enumerate() {
            let endpoints = self.endpoints.iter().filter_map(|(pod, condition)| {
                let ips = cluster.pods.get(*pod)?.status.as_ref()?.pod_ips.as_ref()?;
                Some(objects::endpoint(&ips.get(place)?.ip, condition.object()))
            });
            let ports = self.ports.iter().enumerate();
            let ports = ports.map(|(place, (protocol, _, target))| {
                objects::endpoint_port(&port_name(place), protocol, *target)
            });
            let slice = format!("{name}-{}", address_type.to_lowercase());
            let object = objects::slice(
                self.namespace,
                &name,
                &slice,
                address_type,
                ports.collect(),
                endpoints.collect(),
            );
            cluster.slices.push(object);
        }
    }
}

impl Condition {
    fn object(self) -> discovery::EndpointConditions {
        let (ready, serving, terminating) = match self {
            Self::Ready => (true, true, false),
            Self::Terminating => (false, true, true),
            Self::NotReady => (false, false, false),
        };
        discovery::EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }
    }
}

/// Addresses of every kind the cluster knows, and some it does not, of one family.
fn places(cluster: &Cluster) -> (Vec<Addr>, Vec<Addr>) {
    let snapshot = cluster.snapshot();
    let mut all: Vec<Addr> = snapshot.pods.values().flat_map(|pod| pod.addresses.iter().copied()).collect();
    // Pods are what most packets are for.
    all.extend(all.clone());
    all.extend(snapshot.nodes.values().flat_map(|node| node.addresses.iter().copied()));
    all.extend(snapshot.services.values().flat_map(|service| service.cluster_ips.iter().copied()));
    all.extend(NAME_SERVER.iter().chain(&OUTSIDE).map(|text| addr(text)));
    all.extend(["10.244.1.200", "10.244.3.200", "10.244.77.1", "10.96.0.99"].map(addr));
    all.extend(["fd00:10:244:1::200", "fd00:10:244:77::1", "fd00:10:96::99"].map(addr));
    all.into_iter().partition(|addr| addr.family() == crate::Family::V4)
}

fn pairs(cluster: &Cluster) -> impl Strategy<Value = (Addr, Addr)> + Clone + use<> {
    let (v4, v6) = places(cluster);
    prop_oneof![3 => (select(v4.clone()), select(v4)), 2 => (select(v6.clone()), select(v6))]
}

fn port_numbers() -> impl Strategy<Value = u16> {
    prop_oneof![6 => select(&PORTS[..]).prop_map(|port| port as u16), 1 => any::<u16>()]
}

/// First packets between addresses of the cluster, to ports its policies speak of.
pub fn probes(cluster: &Cluster) -> impl Strategy<Value = Probe> + use<> {
    let protocol = prop_oneof![
        4 => Just(Protocol::TCP),
        2 => Just(Protocol::UDP),
        1 => Just(Protocol::SCTP),
        1 => Just(Protocol::ICMP),
    ];
    (pairs(cluster), protocol, port_numbers()).prop_map(|((source, destination), protocol, port)| {
        let port = if protocol.has_ports() { Port(port) } else { Port(0) };
        Probe { source, destination, protocol, port }
    })
}

/// Frames of every kind between addresses of the cluster; some have bytes changed or are cut short. Client ports
/// are few, so that some frames belong to one flow.
pub fn frames_for(cluster: &Cluster) -> impl Strategy<Value = Vec<u8>> + use<> {
    let whole = frame(cluster).prop_map(|frame| frame.bytes());
    let damage = prop_oneof![
        8 => Just(None),
        1 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Some((at, Some(byte)))),
        1 => any::<prop::sample::Index>().prop_map(|at| Some((at, None))),
    ];
    (whole, damage).prop_map(|(mut bytes, damage)| {
        match damage {
            None => {}
            Some((at, Some(byte))) => {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            // The kernel's test run takes nothing shorter than an Ethernet header.
            Some((at, None)) => bytes.truncate(14 + at.index(bytes.len() - 13)),
        }
        bytes
    })
}

fn frame(cluster: &Cluster) -> impl Strategy<Value = Frame> + use<> {
    let simple = (pairs(cluster), body(), hop_limit(), extensions(), fragment()).prop_map(
        |((source, destination), body, hop_limit, extensions, fragment)| Frame {
            hop_limit,
            extensions,
            fragment,
            ..Frame::new(source, destination, body)
        },
    );
    let error = (simple.clone(), pairs(cluster), 0usize..60, any::<bool>()).prop_map(
        |(about, (router, other), quoted_bytes, to_sender)| {
            // From the packet's destination back to its sender, as a refusing host does it, or from anywhere.
            let same_family = router.family() == about.source.family();
            let source = if same_family { router } else { about.destination };
            let source = if to_sender { about.destination } else { source };
            let destination = if to_sender || !same_family { about.source } else { other };
            Frame::new(source, destination, FrameBody::Unreachable { about: Box::new(about), quoted_bytes })
        },
    );
    prop_oneof![6 => simple, 1 => error]
}

fn body() -> impl Strategy<Value = FrameBody> + Clone {
    let client = || select(&[40000u16, 40001][..]);
    let ports = || {
        let server = prop_oneof![6 => select(&PORTS[..]).prop_map(|port| port as u16), 1 => any::<u16>()];
        (client(), server, any::<bool>()).prop_map(
            |(client, server, back)| {
                if back { (server, client) } else { (client, server) }
            },
        )
    };
    let flags = select(&[0x02u8, 0x12, 0x10, 0x18, 0x11, 0x04, 0x14][..]);
    prop_oneof![
        5 => (ports(), flags).prop_map(|((source, destination), flags)| FrameBody::Tcp { source, destination, flags }),
        3 => ports().prop_map(|(source, destination)| FrameBody::Udp { source, destination }),
        1 => ports().prop_map(|(source, destination)| FrameBody::Sctp { source, destination }),
        1 => client().prop_map(|id| FrameBody::EchoRequest { id }),
        1 => client().prop_map(|id| FrameBody::EchoReply { id }),
        1 => select(&[47u8, 50, 59, 1, 58, 89][..]).prop_map(|protocol| FrameBody::Other { protocol }),
    ]
}

fn hop_limit() -> impl Strategy<Value = u8> + Clone {
    prop_oneof![8 => Just(64u8), 1 => 0u8..3, 1 => any::<u8>()]
}

fn extensions() -> impl Strategy<Value = Vec<u8>> + Clone {
    prop_oneof![6 => Just(Vec::new()), 1 => vec(select(&[0u8, 43, 51, 60][..]), 1..10)]
}

fn fragment() -> impl Strategy<Value = Option<FragmentPlace>> + Clone {
    let place =
        (1u32..3, 0u16..3, any::<bool>()).prop_map(|(id, offset, more)| FragmentPlace { id, offset, more });
    option::weighted(0.15, place)
}
