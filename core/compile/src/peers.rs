//! Peer classes: addresses that everything in force on this node treats alike share one number.
//!
//! An address's class is derived from exactly which matchers match it: pod selectors, ipBlocks, and for egress to
//! named ports, how the pod resolves each name in use. Labels that nothing in force asks for cost nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weft_model::{
    Addr, Block, Cidr, Labels, NamedPort, Namespace, NamespaceMatch, NamespaceName, Peer, Port, Protocol,
    Selector, Snapshot,
};
use weft_plan::ClassId;

use crate::endpoints::Owners;
use crate::ids::{Digest, Space, numbers};
use crate::routes::{cluster_pod_cidrs, truncated};
use crate::selectors::SelectorIndex;

/// Everything by which policies in force on the node tell peers apart.
#[derive(Default)]
pub(crate) struct Matchers<'a> {
    pub peers: BTreeSet<&'a Peer>,
    /// Port names that egress rules ask destination pods for.
    pub names: BTreeSet<(Protocol, &'a str)>,
}

pub(crate) struct Classes<'a> {
    pub by_prefix: BTreeMap<Cidr, ClassId>,
    by_peer: BTreeMap<&'a Peer, BTreeSet<ClassId>>,
    by_name: BTreeMap<(Protocol, &'a str), BTreeMap<ClassId, Port>>,
}

impl<'a> Classes<'a> {
    /// The classes a peer of a rule matches.
    pub fn matching(&self, peer: &Peer) -> impl Iterator<Item = ClassId> {
        self.by_peer.get(peer).into_iter().flatten().copied()
    }

    /// What a port name means for each class that has it.
    pub fn resolving(&self, protocol: Protocol, name: &'a str) -> impl Iterator<Item = (ClassId, Port)> {
        self.by_name.get(&(protocol, name)).into_iter().flatten().map(|(class, port)| (*class, *port))
    }
}

/// Which matchers match an address; positions in the sorted matchers.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Content {
    peers: Vec<usize>,
    ports: Vec<(usize, Port)>,
    unknown: bool,
}

pub(crate) fn classes<'a>(
    snapshot: &'a Snapshot,
    owners: &Owners<'a>,
    matchers: &Matchers<'a>,
) -> Classes<'a> {
    let peers: Vec<&Peer> = matchers.peers.iter().copied().collect();
    let names: Vec<(Protocol, &str)> = matchers.names.iter().copied().collect();
    let contents = contents(snapshot, owners, &peers, &names);
    let ids = ids(contents.values(), &peers, &names);
    let mut classes =
        Classes { by_prefix: BTreeMap::new(), by_peer: BTreeMap::new(), by_name: BTreeMap::new() };
    for (content, class) in &ids {
        for peer in &content.peers {
            classes.by_peer.entry(peers[*peer]).or_default().insert(*class);
        }
        for (name, port) in &content.ports {
            classes.by_name.entry(names[*name]).or_default().insert(*class, *port);
        }
    }
    classes.by_prefix = contents.iter().map(|(prefix, content)| (*prefix, ids[content])).collect();
    classes
}

fn contents(
    snapshot: &Snapshot,
    owners: &Owners<'_>,
    peers: &[&Peer],
    names: &[(Protocol, &str)],
) -> BTreeMap<Cidr, Content> {
    let blocks = BlockTable::new(peers, &cluster_pod_cidrs(snapshot));
    let mut pods = PodTable::new(peers);
    let name_server = NameServer::of(snapshot);
    let mut contents = blocks.contents();
    let mut add =
        |addr: Addr, namespace: Option<&Namespace>, name: &NamespaceName, labels, ports: &BTreeSet<_>| {
            let mut matched = pods.matching(namespace, name, labels);
            matched.extend(blocks.matching(addr));
            matched.sort_unstable();
            let content = Content { peers: matched, ports: resolved(ports, names), unknown: false };
            contents.insert(Cidr::host(addr), content);
        };
    for addr in snapshot.settings.name_servers() {
        let NameServer { namespace, labels, ports } = &name_server;
        add(*addr, Some(namespace), &namespace.name, labels, ports);
    }
    for (addr, pod) in owners.iter() {
        let namespace = &pod.key.namespace;
        add(addr, snapshot.namespaces.get(namespace), namespace, &pod.labels, &pod.named_ports);
    }
    contents
}

fn resolved(ports: &BTreeSet<NamedPort>, names: &[(Protocol, &str)]) -> Vec<(usize, Port)> {
    let mut resolved = Vec::new();
    for port in ports {
        if let Ok(index) = names.binary_search(&(port.protocol, port.name.as_str())) {
            resolved.push((index, port.port));
        }
    }
    resolved.sort_unstable();
    resolved
}

fn ids<'c>(
    contents: impl Iterator<Item = &'c Content>,
    peers: &[&Peer],
    names: &[(Protocol, &str)],
) -> HashMap<&'c Content, ClassId> {
    let text = |value: &Peer| serde_json::to_vec(value).expect("a peer has only string keys");
    let peers: Vec<Digest> = peers.iter().map(|peer| Digest::of("peer", [text(peer)])).collect();
    let digest = |content: &Content| {
        let matched = content.peers.iter().map(|index| peers[*index].bytes().to_vec());
        let ports = content.ports.iter().map(|(index, port)| {
            let (protocol, name) = names[*index];
            [&[protocol.0][..], &port.0.to_be_bytes(), name.as_bytes()].concat()
        });
        Digest::of("class", matched.chain(ports))
    };
    let digests: HashMap<&Content, Digest> = contents.map(|content| (content, digest(content))).collect();
    let matched = digests.iter().filter(|(content, _)| !content.is_world()).map(|(_, digest)| *digest);
    let space = Space { first: ClassId::WORLD.0 + 1, last: ClassId::UNKNOWN_BIT - 1 };
    let numbers = numbers(matched, space);
    let id = |content: &Content, digest: &Digest| {
        let number = if content.is_world() { ClassId::WORLD.0 } else { numbers[digest] };
        ClassId(if content.unknown { number | ClassId::UNKNOWN_BIT } else { number })
    };
    digests.iter().map(|(content, digest)| (*content, id(content, digest))).collect()
}

impl Content {
    fn is_world(&self) -> bool {
        self.peers.is_empty() && self.ports.is_empty()
    }
}

/// The cluster's name server as a peer. It is no pod here, but manifests everywhere allow DNS by the labels of the
/// usual name server's pods.
pub(crate) struct NameServer {
    pub namespace: Namespace,
    pub labels: Labels,
    ports: BTreeSet<NamedPort>,
}

impl NameServer {
    pub fn of(snapshot: &Snapshot) -> Self {
        let name = NamespaceName::new("kube-system");
        let mut labels = snapshot.namespaces.get(&name).map(|known| known.labels.clone()).unwrap_or_default();
        labels.entry("kubernetes.io/metadata.name".to_owned()).or_insert_with(|| name.to_string());
        let port = |protocol, name: &str| NamedPort { protocol, name: name.to_owned(), port: Port(53) };
        Self {
            namespace: Namespace { name, labels },
            labels: Labels::from([("k8s-app".to_owned(), "kube-dns".to_owned())]),
            ports: BTreeSet::from([port(Protocol::UDP, "dns"), port(Protocol::TCP, "dns-tcp")]),
        }
    }
}

/// Pod peers by the pods they match.
struct PodTable<'a> {
    by_name: HashMap<&'a NamespaceName, SelectorIndex<'a, usize>>,
    by_labels: BTreeMap<&'a Selector, SelectorIndex<'a, usize>>,
    /// Pods of one namespace with the same labels are matched once.
    seen: HashMap<(NamespaceName, Labels), Vec<usize>>,
    namespaces: HashMap<NamespaceName, Vec<&'a Selector>>,
}

impl<'a> PodTable<'a> {
    fn new(peers: &[&'a Peer]) -> Self {
        let (mut by_name, mut by_labels) = (HashMap::<_, SelectorIndex<_>>::new(), BTreeMap::new());
        for (index, peer) in peers.iter().enumerate() {
            let Peer::Pods { namespaces, pods } = peer else { continue };
            let selectors = match namespaces {
                NamespaceMatch::Name(name) => by_name.entry(name).or_default(),
                NamespaceMatch::Labels(selector) => {
                    by_labels.entry(selector).or_insert_with(SelectorIndex::default)
                }
            };
            selectors.insert(pods, index);
        }
        Self { by_name, by_labels, seen: HashMap::new(), namespaces: HashMap::new() }
    }

    /// A namespace that is not known has no labels to be selected by, not even by "everything".
    fn matching(
        &mut self,
        namespace: Option<&Namespace>,
        name: &NamespaceName,
        labels: &Labels,
    ) -> Vec<usize> {
        let profile = (name.clone(), labels.clone());
        if let Some(matched) = self.seen.get(&profile) {
            return matched.clone();
        }
        let namespace_labels = namespace.map(|namespace| &namespace.labels);
        let by_labels = &self.by_labels;
        let selected = self.namespaces.entry(name.clone()).or_insert_with(|| {
            let matches =
                |selector: &&Selector| namespace_labels.is_some_and(|labels| selector.matches(labels));
            by_labels.keys().copied().filter(matches).collect()
        });
        let own = self.by_name.get(name).into_iter();
        let indexes = own.chain(selected.iter().map(|selector| &by_labels[selector]));
        let matched: Vec<usize> = indexes.flat_map(|index| index.matches(labels)).collect();
        self.seen.insert(profile, matched.clone());
        matched
    }
}

/// ipBlocks cut into prefixes within which every address is matched by the same blocks.
struct BlockTable {
    prefixes: BTreeMap<Cidr, (Vec<usize>, InCluster)>,
    lengths: BTreeSet<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum InCluster {
    Pods,
    No,
}

impl BlockTable {
    fn new(peers: &[&Peer], pods: &BTreeSet<Cidr>) -> Self {
        let mut by_cidr: BTreeMap<Cidr, Vec<(usize, &Block)>> = BTreeMap::new();
        let mut cuts: BTreeSet<Cidr> = pods.clone();
        for (index, peer) in peers.iter().enumerate() {
            let Peer::Block(block) = peer else { continue };
            by_cidr.entry(block.cidr).or_default().push((index, block));
            cuts.extend(block.except.iter().copied().chain([block.cidr]));
        }
        // In 16 bytes IPv4 lies inside some IPv6 prefixes: say what it is, so that those do not catch it.
        if cuts.iter().any(|cidr| holds_mapped_ipv4(*cidr)) {
            cuts.extend(Cidr::around(std::net::Ipv4Addr::UNSPECIFIED.into(), 0));
        }
        let lengths: BTreeSet<u8> = cuts.iter().map(|cidr| cidr.bits()).collect();
        let matched = |prefix: Cidr| {
            let outer = lengths.iter().filter_map(|bits| by_cidr.get(&truncated(prefix, *bits)?)).flatten();
            let kept = outer.filter(|(_, block)| !block.except.iter().any(|except| except.covers(prefix)));
            kept.map(|(index, _)| *index).collect::<BTreeSet<_>>().into_iter().collect()
        };
        let place = |prefix: Cidr| {
            let mut outer = lengths.iter().filter_map(|bits| truncated(prefix, *bits));
            if outer.any(|outer| pods.contains(&outer)) { InCluster::Pods } else { InCluster::No }
        };
        let prefixes = cuts.iter().map(|prefix| (*prefix, (matched(*prefix), place(*prefix)))).collect();
        Self { prefixes, lengths }
    }

    fn contents(&self) -> BTreeMap<Cidr, Content> {
        let content = |(prefix, (peers, place)): (&Cidr, &(Vec<usize>, InCluster))| {
            let unknown = *place == InCluster::Pods;
            (*prefix, Content { peers: peers.clone(), ports: Vec::new(), unknown })
        };
        self.prefixes.iter().map(content).collect()
    }

    fn matching(&self, addr: Addr) -> impl Iterator<Item = usize> {
        let host = Cidr::host(addr);
        let longest = self.lengths.iter().rev().find_map(|bits| self.prefixes.get(&truncated(host, *bits)?));
        longest.into_iter().flat_map(|(peers, _)| peers.iter().copied())
    }
}

fn holds_mapped_ipv4(cidr: Cidr) -> bool {
    let mapped = u128::from_be_bytes(Addr::from(std::net::Ipv4Addr::UNSPECIFIED).octets());
    let mask = u128::MAX.checked_shl(128 - u32::from(cidr.bits())).unwrap_or(0);
    cidr.bits() < 96 && mapped & mask == u128::from_be_bytes(cidr.addr().octets())
}
