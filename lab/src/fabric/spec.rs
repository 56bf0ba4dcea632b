//! What a fabric should be, and whether that is possible: pure validation of names, counts and ranges.
//! Not here: whether this machine can run it (`preflight`) and where its files are (`paths`).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use weft_model::Forwarding;

use super::tables::{TableSizeError, TableSizes};

/// First node's host number in the node ranges; those below are the underlay's own.
const FIRST_NODE_HOST: u32 = 11;
/// First outside machine's host number; the bridge is 1.
const FIRST_OUTSIDE_HOST: u32 = 2;
const MOST_OUTSIDE: u16 = 9;
/// How long a node may be silent: long enough for a busy machine, short enough for a stopped cluster to be noticed.
const NODE_GRACE: RangeInclusive<u32> = 2..=600;
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
pub const REGION_LABEL: &str = "topology.kubernetes.io/region";
const DNS_HOST: u32 = 10;
const MAX_NAME: usize = 20;
/// `sun_path` holds 108 bytes with the closing zero.
const MAX_SOCKET_PATH: usize = 107;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Routing {
    /// Nodes route each other's pod ranges over the shared link.
    Direct,
    /// Pod traffic between nodes is wrapped in VXLAN.
    Vxlan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Families {
    Dual,
    Ipv4,
    Ipv6,
}

impl Families {
    pub fn has_v4(self) -> bool {
        self != Self::Ipv6
    }

    pub fn has_v6(self) -> bool {
        self != Self::Ipv4
    }
}

/// One range per family; `Families` says which of them are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cidrs {
    pub v4: Ipv4Net,
    pub v6: Ipv6Net,
}

impl Cidrs {
    pub fn of(&self, families: Families) -> Vec<IpNet> {
        let v4 = families.has_v4().then_some(IpNet::V4(self.v4));
        let v6 = families.has_v6().then_some(IpNet::V6(self.v6));
        v4.into_iter().chain(v6).collect()
    }
}

/// The prefix length of one node's share of the pod ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMask {
    pub v4: u8,
    pub v6: u8,
}

/// What the operator asks for. `Spec::default()` is the three-node fabric `weft`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub name: String,
    pub nodes: u16,
    pub routing: Routing,
    pub families: Families,
    pub pods: Cidrs,
    pub services: Cidrs,
    pub node_net: Cidrs,
    pub node_mask: NodeMask,
    pub cluster_domain: String,
    /// Port of the API server on the machine's loopback; 0 takes a free one.
    pub api_port: u16,
    /// MTU of the links between nodes.
    pub mtu: u32,
    /// The settings of names as the name servers read them; empty means that nothing is set.
    pub names: String,
    /// Zones the nodes are spread over in turn; without any, nodes have neither zone nor region.
    pub zones: Vec<String>,
    /// The region all zones are in.
    pub region: String,
    /// Machines on the nodes' network that are no nodes.
    pub outside: u16,
    /// Ports that services get on every node.
    pub node_ports: RangeInclusive<u16>,
    /// Node ports answer on the loopback address too, for processes of the node.
    pub localhost_node_ports: bool,
    /// How connections from outside get to backends on other nodes, for services that do not say.
    pub forwarding: Forwarding,
    /// Room in the kernel's tables of each node.
    #[serde(default)]
    pub tables: TableSizes,
    /// How many seconds a node may be silent before its pods count as not ready.
    pub node_grace_seconds: u32,
    /// Where all fabrics keep their state.
    pub state_root: PathBuf,
    /// Where the named network namespaces are bound.
    pub netns_root: PathBuf,
    /// The program that runs the children; `None` is the running one.
    pub exe: Option<PathBuf>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            name: "weft".to_owned(),
            nodes: 3,
            routing: Routing::Direct,
            families: Families::Dual,
            pods: cidrs(("10.244.0.0", 16), ("fd00:10:244::", 56)),
            services: cidrs(("10.96.0.0", 16), ("fd00:10:96::", 112)),
            node_net: cidrs(("172.30.0.0", 24), ("fd00:172:30::", 64)),
            node_mask: NodeMask { v4: 24, v6: 64 },
            cluster_domain: "cluster.local".to_owned(),
            api_port: 0,
            mtu: 1500,
            names: String::new(),
            zones: Vec::new(),
            region: "lab".to_owned(),
            outside: 0,
            node_ports: 30_000..=32_767,
            localhost_node_ports: false,
            forwarding: Forwarding::Snat,
            tables: TableSizes::default(),
            node_grace_seconds: 4,
            state_root: PathBuf::from("/run/weft"),
            netns_root: PathBuf::from("/run/netns"),
            exe: None,
        }
    }
}

fn cidrs(v4: (&str, u8), v6: (&str, u8)) -> Cidrs {
    let v4_address: Ipv4Addr = v4.0.parse().expect("a literal IPv4 address");
    let v6_address: Ipv6Addr = v6.0.parse().expect("a literal IPv6 address");
    Cidrs { v4: Ipv4Net::new_assert(v4_address, v4.1), v6: Ipv6Net::new_assert(v6_address, v6.1) }
}

/// Why a fabric cannot be as asked: the field, what is wrong, and what to give instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error(
        "name: {name:?} cannot name a fabric: {why}; use up to 20 of a-z, 0-9 and '-', starting with a lower-case letter and not ending with '-'"
    )]
    Name { name: String, why: &'static str },
    #[error("nodes: a fabric needs at least one node; give --nodes 1 or more")]
    NoNodes,
    #[error(
        "nodes: {nodes} nodes do not fit into the node range {range}, which has room for {room}; give fewer nodes or a larger range"
    )]
    NodeRangeSmall { nodes: u16, range: IpNet, room: u64 },
    #[error(
        "pods: the range {range} holds {room} node ranges of /{mask}, {nodes} nodes need as many; give a larger pod range or fewer nodes"
    )]
    PodRangeSmall { range: IpNet, mask: u8, room: u64, nodes: u16 },
    #[error(
        "pods: a node's share of /{mask} is larger than the whole pod range {range}; give a larger pod range"
    )]
    NodeMask { range: IpNet, mask: u8 },
    #[error("{first} {first_range} and {second} {second_range} overlap; give each its own range")]
    Overlap { first: &'static str, first_range: IpNet, second: &'static str, second_range: IpNet },
    #[error("{field}: {range} has bits set to the right of its prefix; did you mean {meant}?")]
    HostBits { field: &'static str, range: IpNet, meant: IpNet },
    #[error("{field}: {range} is {why}; give a private range")]
    Unusable { field: &'static str, range: IpNet, why: &'static str },
    #[error(
        "services: {range} has no room for the API server's and the name server's address; give a range of at least 16 addresses"
    )]
    ServiceRangeSmall { range: IpNet },
    #[error(
        "services: {range} has {bits} host bits; the API server gives out at most 20; give a longer prefix"
    )]
    ServiceRangeLarge { range: IpNet, bits: u8 },
    #[error("mtu: {mtu} is not usable: links between nodes need {least} to 65535 bytes")]
    Mtu { mtu: u32, least: u32 },
    #[error(
        "cluster domain: {domain:?} is not a DNS name; use labels of a-z, 0-9 and '-' joined by dots, such as cluster.local"
    )]
    Domain { domain: String },
    #[error(
        "state directory: {path:?} makes socket paths of {length} bytes, the system allows {MAX_SOCKET_PATH}; use a shorter directory or name"
    )]
    StateRoot { path: PathBuf, length: usize },
    #[error(
        "{field}: {given:?} cannot be a label's value; use up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends"
    )]
    Topology { field: &'static str, given: String },
    #[error(
        "outside: {outside} machines are more than the {MOST_OUTSIDE} there are addresses for; give fewer"
    )]
    Outside { outside: u16 },
    #[error("node ports: {first}-{last} is not a range of ports; give FIRST-LAST, such as 30000-32767")]
    NodePorts { first: u16, last: u16 },
    #[error(
        "node grace: {seconds} s is not usable; give {least} to {most} s", least = NODE_GRACE.start(), most = NODE_GRACE.end()
    )]
    NodeGrace { seconds: u32 },
    #[error(transparent)]
    Tables(#[from] TableSizeError),
}

/// A node as the fabric lays it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddresses {
    pub name: String,
    /// One address per family in use, IPv4 first, each with the range's prefix length.
    pub addresses: Vec<IpNet>,
    /// Where the node is: its zone and region, if there are any.
    pub labels: BTreeMap<String, String>,
}

/// A machine on the nodes' network that is no node: it reaches what is on that network and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideMachine {
    pub name: String,
    /// One address per family in use, IPv4 first, each with the range's prefix length.
    pub addresses: Vec<IpNet>,
}

impl Spec {
    /// Every reason why this fabric is impossible, in the order of the fields; empty when it is fine.
    pub fn problems(&self) -> Vec<SpecError> {
        let mut found = Vec::new();
        found.extend(name_problem(&self.name));
        if self.nodes == 0 {
            found.push(SpecError::NoNodes);
        }
        found.extend(self.range_problems());
        found.extend(self.capacity_problems());
        found.extend(self.service_problems());
        found.extend(self.topology_problems());
        found.extend(self.other_problems());
        found
    }

    /// The nodes with their addresses on the underlay. Call only when there are no `problems`.
    pub fn node_addresses(&self) -> Vec<NodeAddresses> {
        (0..u32::from(self.nodes))
            .map(|index| NodeAddresses {
                name: format!("node{}", index + 1),
                addresses: self.underlay_addresses(FIRST_NODE_HOST + index),
                labels: self.topology(index as usize),
            })
            .collect()
    }

    /// The outside machines with their addresses on the underlay. Call only when there are no `problems`.
    pub fn outside_machines(&self) -> Vec<OutsideMachine> {
        (0..u32::from(self.outside))
            .map(|index| OutsideMachine {
                name: format!("outside{}", index + 1),
                addresses: self.underlay_addresses(FIRST_OUTSIDE_HOST + index),
            })
            .collect()
    }

    fn topology(&self, index: usize) -> BTreeMap<String, String> {
        let Some(zone) = self.zones.get(index % self.zones.len().max(1)) else { return BTreeMap::new() };
        BTreeMap::from([
            (ZONE_LABEL.to_owned(), zone.clone()),
            (REGION_LABEL.to_owned(), self.region.clone()),
        ])
    }

    /// The bridge's addresses: the nodes' default gateway and the world outside.
    pub fn bridge_addresses(&self) -> Vec<IpNet> {
        self.underlay_addresses(1)
    }

    /// The cluster name server's service addresses.
    pub fn dns_addresses(&self) -> Vec<IpAddr> {
        self.service_hosts(DNS_HOST)
    }

    /// The addresses of the service `default/kubernetes`.
    pub fn api_service_addresses(&self) -> Vec<IpAddr> {
        self.service_hosts(1)
    }

    /// The MTU of pods: the underlay's less what wrapping between nodes takes.
    pub fn pod_mtu(&self) -> u32 {
        self.mtu - self.wrapping()
    }

    fn wrapping(&self) -> u32 {
        match (self.routing, self.families.has_v4()) {
            (Routing::Direct, _) => 0,
            (Routing::Vxlan, true) => 50,
            (Routing::Vxlan, false) => 70,
        }
    }

    fn underlay_addresses(&self, host: u32) -> Vec<IpNet> {
        self.node_net
            .of(self.families)
            .into_iter()
            .map(|range| {
                IpNet::new(nth(range, host), range.prefix_len()).expect("the range's own prefix length")
            })
            .collect()
    }

    fn service_hosts(&self, host: u32) -> Vec<IpAddr> {
        self.services.of(self.families).into_iter().map(|range| nth(range, host)).collect()
    }

    fn ranges(&self) -> Vec<(&'static str, IpNet)> {
        [("pods", &self.pods), ("services", &self.services), ("node range", &self.node_net)]
            .into_iter()
            .flat_map(|(field, cidrs)| cidrs.of(self.families).into_iter().map(move |range| (field, range)))
            .collect()
    }

    fn range_problems(&self) -> Vec<SpecError> {
        let ranges = self.ranges();
        let mut found: Vec<SpecError> =
            ranges.iter().filter_map(|(field, range)| range_problem(field, *range)).collect();
        for (index, (first, first_range)) in ranges.iter().enumerate() {
            for (second, second_range) in &ranges[index + 1..] {
                if overlap(*first_range, *second_range) {
                    let (first_range, second_range) = (*first_range, *second_range);
                    found.push(SpecError::Overlap { first, first_range, second, second_range });
                }
            }
        }
        found
    }

    fn capacity_problems(&self) -> Vec<SpecError> {
        let mut found = Vec::new();
        let nodes = self.nodes;
        for range in self.node_net.of(self.families) {
            // The last address of an IPv4 range is its broadcast address.
            let room = addresses_in(range).saturating_sub(u64::from(FIRST_NODE_HOST) + 1);
            if u64::from(nodes) > room {
                found.push(SpecError::NodeRangeSmall { nodes, range, room });
            }
        }
        for range in self.pods.of(self.families) {
            let mask = if range.addr().is_ipv4() { self.node_mask.v4 } else { self.node_mask.v6 };
            if mask < range.prefix_len() || mask > range.max_prefix_len() {
                found.push(SpecError::NodeMask { range, mask });
                continue;
            }
            let room = 1u64.checked_shl(u32::from(mask - range.prefix_len())).unwrap_or(u64::MAX);
            if u64::from(nodes) > room {
                found.push(SpecError::PodRangeSmall { range, mask, room, nodes });
            }
        }
        found
    }

    fn service_problems(&self) -> Vec<SpecError> {
        let problem = |range: IpNet| {
            let bits = range.max_prefix_len() - range.prefix_len();
            match bits {
                0..4 => Some(SpecError::ServiceRangeSmall { range }),
                21.. => Some(SpecError::ServiceRangeLarge { range, bits }),
                _ => None,
            }
        };
        self.services.of(self.families).into_iter().filter_map(problem).collect()
    }

    fn topology_problems(&self) -> Vec<SpecError> {
        let zones = self.zones.iter().map(|zone| ("zones", zone));
        let named = zones.chain([("region", &self.region)]);
        let mut found: Vec<SpecError> = named
            .filter(|(_, given)| !is_label_value(given))
            .map(|(field, given)| SpecError::Topology { field, given: given.clone() })
            .collect();
        if self.outside > MOST_OUTSIDE {
            found.push(SpecError::Outside { outside: self.outside });
        }
        let (first, last) = (*self.node_ports.start(), *self.node_ports.end());
        if first == 0 || self.node_ports.is_empty() {
            found.push(SpecError::NodePorts { first, last });
        }
        if !NODE_GRACE.contains(&self.node_grace_seconds) {
            found.push(SpecError::NodeGrace { seconds: self.node_grace_seconds });
        }
        found
    }

    fn other_problems(&self) -> Vec<SpecError> {
        let mut found = Vec::new();
        found.extend(self.tables.check().err().map(SpecError::from));
        // IPv6 needs 1280 inside whatever wraps it.
        let least = 1280 + self.wrapping();
        if !(least..=65535).contains(&self.mtu) {
            found.push(SpecError::Mtu { mtu: self.mtu, least });
        }
        if !is_domain(&self.cluster_domain) {
            found.push(SpecError::Domain { domain: self.cluster_domain.clone() });
        }
        let socket = self.state_root.join(&self.name).join(format!("nodes/node{}/kubelet.sock", self.nodes));
        let length = socket.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            found.push(SpecError::StateRoot { path: self.state_root.clone(), length });
        }
        found
    }
}

/// Whether a name may be a fabric's: it becomes part of paths, namespaces and cgroups.
pub fn name_problem(name: &str) -> Option<SpecError> {
    let bad = |why| Some(SpecError::Name { name: name.to_owned(), why });
    let Some(first) = name.chars().next() else { return bad("it is empty") };
    if name.len() > MAX_NAME {
        return bad("it is too long");
    }
    if !first.is_ascii_lowercase() {
        return bad("it does not start with a lower-case letter");
    }
    if !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
        return bad("it holds characters other than lower-case letters, digits and '-'");
    }
    if name.ends_with('-') { bad("it ends with '-'") } else { None }
}

fn range_problem(field: &'static str, range: IpNet) -> Option<SpecError> {
    if range.trunc() != range {
        return Some(SpecError::HostBits { field, range, meant: range.trunc() });
    }
    let address = range.addr();
    let why = if range.prefix_len() == 0 {
        "everything there is"
    } else if address.is_loopback() {
        "loopback"
    } else if address.is_multicast() {
        "multicast"
    } else if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
        || matches!(address, IpAddr::V4(v4) if v4.is_link_local())
    {
        "link-local"
    } else {
        return None;
    };
    Some(SpecError::Unusable { field, range, why })
}

fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn addresses_in(range: IpNet) -> u64 {
    1u64.checked_shl(u32::from(range.max_prefix_len() - range.prefix_len())).unwrap_or(u64::MAX)
}

/// The range's address number `host`.
fn nth(range: IpNet, host: u32) -> IpAddr {
    match range {
        IpNet::V4(v4) => Ipv4Addr::from_bits(v4.network().to_bits() | host).into(),
        IpNet::V6(v6) => Ipv6Addr::from_bits(v6.network().to_bits() | u128::from(host)).into(),
    }
}

fn is_label_value(value: &str) -> bool {
    let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    value.len() <= 63
        && end(value.chars().next())
        && end(value.chars().next_back())
        && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn is_domain(domain: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    domain.len() <= 200 && domain.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Spec)) -> Vec<SpecError> {
        let mut spec = Spec::default();
        change(&mut spec);
        spec.problems()
    }

    #[test]
    fn the_default_is_possible_and_laid_out_as_documented() {
        let spec = Spec::default();
        assert_eq!(spec.problems(), []);
        let nodes = spec.node_addresses();
        assert_eq!(nodes.len(), 3);
        assert_eq!(nodes[2].name, "node3");
        let text: Vec<String> = nodes[2].addresses.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["172.30.0.13/24", "fd00:172:30::d/64"]);
        assert_eq!(spec.bridge_addresses()[0].to_string(), "172.30.0.1/24");
        let dns: Vec<String> = spec.dns_addresses().iter().map(ToString::to_string).collect();
        assert_eq!(dns, ["10.96.0.10", "fd00:10:96::a"]);
    }

    #[test]
    fn names_that_would_not_work_as_paths_or_namespaces_are_refused() {
        for bad in ["", "Upper", "1st", "a b", "a/b", "..", "ends-", "ümlaut", "a-very-long-name-indeed"] {
            let found = with(|spec| spec.name = bad.to_owned());
            assert!(matches!(found[..], [SpecError::Name { .. }]), "{bad:?}: {found:?}");
        }
        for good in ["a", "weft", "side-by-side-2"] {
            assert_eq!(with(|spec| spec.name = good.to_owned()), [], "{good:?}");
        }
    }

    #[test]
    fn overlapping_ranges_name_both_sides() {
        let found = with(|spec| spec.services.v4 = "10.244.8.0/22".parse().unwrap());
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].to_string(),
            "pods 10.244.0.0/16 and services 10.244.8.0/22 overlap; give each its own range"
        );
        let found = with(|spec| spec.node_net.v6 = "fd00:10::/32".parse().unwrap());
        assert_eq!(found.len(), 2, "pods and services both lie in it: {found:?}");
    }

    #[test]
    fn ranges_of_a_family_not_in_use_are_not_looked_at() {
        let found = with(|spec| {
            spec.families = Families::Ipv4;
            spec.services.v6 = spec.pods.v6;
        });
        assert_eq!(found, []);
    }

    #[test]
    fn ranges_too_small_for_the_nodes_are_refused() {
        let found = with(|spec| spec.pods.v4 = "10.244.0.0/23".parse().unwrap());
        assert!(matches!(found[..], [SpecError::PodRangeSmall { room: 2, nodes: 3, .. }]), "{found:?}");
        let found = with(|spec| spec.pods.v6 = "fd00:10:244::/65".parse().unwrap());
        assert!(matches!(found[..], [SpecError::NodeMask { mask: 64, .. }]), "{found:?}");
        let found = with(|spec| spec.nodes = 245);
        assert!(matches!(found[..], [SpecError::NodeRangeSmall { room: 244, .. }]), "{found:?}");
        assert_eq!(with(|spec| spec.nodes = 244), []);
        assert_eq!(with(|spec| spec.nodes = 0), [SpecError::NoNodes]);
    }

    #[test]
    fn service_ranges_have_room_and_an_end() {
        let found = with(|spec| spec.services.v4 = "10.96.0.0/29".parse().unwrap());
        assert!(matches!(found[..], [SpecError::ServiceRangeSmall { .. }]), "{found:?}");
        let found = with(|spec| spec.services.v6 = "fd00:10:96::/64".parse().unwrap());
        assert!(matches!(found[..], [SpecError::ServiceRangeLarge { bits: 64, .. }]), "{found:?}");
    }

    #[test]
    fn ranges_must_be_ranges_of_ordinary_addresses() {
        let found = with(|spec| spec.pods.v4 = "10.244.3.0/16".parse().unwrap());
        assert_eq!(
            found[0].to_string(),
            "pods: 10.244.3.0/16 has bits set to the right of its prefix; did you mean 10.244.0.0/16?"
        );
        for (range, word) in
            [("127.0.0.0/8", "loopback"), ("224.0.0.0/16", "multicast"), ("169.254.0.0/16", "link-local")]
        {
            let found = with(|spec| spec.pods.v4 = range.parse().unwrap());
            assert!(found[0].to_string().contains(word), "{range}: {found:?}");
        }
    }

    #[test]
    fn mtu_leaves_room_for_ipv6_inside_the_wrapping() {
        assert_eq!(with(|spec| spec.mtu = 1280), []);
        let found = with(|spec| {
            spec.mtu = 1320;
            spec.routing = Routing::Vxlan;
        });
        assert_eq!(found, [SpecError::Mtu { mtu: 1320, least: 1330 }]);
        let vxlan = Spec { routing: Routing::Vxlan, ..Spec::default() };
        assert_eq!(vxlan.pod_mtu(), 1450);
        assert_eq!(Spec { families: Families::Ipv6, ..vxlan }.pod_mtu(), 1430);
        assert_eq!(Spec::default().pod_mtu(), 1500);
    }

    #[test]
    fn nodes_take_turns_with_the_zones_and_have_none_without() {
        assert!(Spec::default().node_addresses().iter().all(|node| node.labels.is_empty()));
        let spec = Spec { zones: vec!["a".into(), "b".into()], region: "r".into(), ..Spec::default() };
        let zones: Vec<String> = spec.node_addresses().iter().map(|n| n.labels[ZONE_LABEL].clone()).collect();
        assert_eq!(zones, ["a", "b", "a"]);
        assert_eq!(spec.node_addresses()[2].labels[REGION_LABEL], "r");
        let found = with(|spec| spec.zones = vec!["ok".into(), "-no".into(), String::new()]);
        assert_eq!(found.len(), 2, "{found:?}");
        let found = with(|spec| spec.region = "a b".into());
        assert!(matches!(found[..], [SpecError::Topology { field: "region", .. }]), "{found:?}");
    }

    #[test]
    fn outside_machines_stay_below_the_nodes() {
        let spec = Spec { outside: 9, ..Spec::default() };
        assert_eq!(spec.problems(), []);
        let last = spec.outside_machines().pop().unwrap();
        let text: Vec<String> = last.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(
            (last.name.as_str(), text),
            ("outside9", vec!["172.30.0.10/24".into(), "fd00:172:30::a/64".into()])
        );
        assert_eq!(with(|spec| spec.outside = 10), [SpecError::Outside { outside: 10 }]);
        for ports in [0..=10, RangeInclusive::new(32_767, 30_000)] {
            let found = with(|spec| spec.node_ports = ports.clone());
            assert!(matches!(found[..], [SpecError::NodePorts { .. }]), "{ports:?}: {found:?}");
        }
        assert_eq!(with(|spec| spec.node_grace_seconds = 1), [SpecError::NodeGrace { seconds: 1 }]);
    }

    #[test]
    fn long_state_directories_and_bad_domains_are_refused() {
        let found = with(|spec| spec.state_root = PathBuf::from(format!("/{}", "d".repeat(90))));
        assert!(matches!(found[..], [SpecError::StateRoot { .. }]), "{found:?}");
        for bad in ["", "a..b", "UPPER.local", "-a.b"] {
            let found = with(|spec| spec.cluster_domain = bad.to_owned());
            assert!(matches!(found[..], [SpecError::Domain { .. }]), "{bad:?}: {found:?}");
        }
    }
}
