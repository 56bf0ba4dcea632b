//! The other nodes on this node's link: whom to ask whether anybody hears this node.

use std::collections::BTreeSet;
use std::net::IpAddr;

use weft_model::{Addr, Cidr, NodeName, Snapshot};

/// So many are asked; each node asks others, those after it by name.
const MOST: usize = 8;

/// One address of each ready node that is on the device's own networks: machines behind routers do not answer there.
pub fn peers(snapshot: &Snapshot, me: &NodeName, device: &str) -> BTreeSet<Addr> {
    choose(snapshot, me, &networks(device))
}

fn choose(snapshot: &Snapshot, me: &NodeName, networks: &[Cidr]) -> BTreeSet<Addr> {
    let on_link = |addr: &&Addr| networks.iter().any(|network| network.contains(**addr));
    let others = snapshot.nodes.values().filter(|node| node.ready && node.name != *me);
    let known = others.filter_map(|node| Some((node.name > *me, *node.addresses.iter().find(on_link)?)));
    let (after, before): (Vec<_>, Vec<_>) = known.partition(|(is_after, _)| *is_after);
    after.into_iter().chain(before).map(|(_, addr)| addr).take(MOST).collect()
}

fn networks(device: &str) -> Vec<Cidr> {
    let Ok(addresses) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let its = addresses.filter(|one| one.interface_name == device);
    let networks = its.filter_map(|one| {
        let (address, mask) = (one.address?, one.netmask?);
        let (address, bits) = match (address.as_sockaddr_in(), mask.as_sockaddr_in()) {
            (Some(address), Some(mask)) => (IpAddr::from(address.ip()), mask.ip().to_bits().count_ones()),
            _ => {
                let (address, mask) = (address.as_sockaddr_in6()?, mask.as_sockaddr_in6()?);
                (IpAddr::from(address.ip()), mask.ip().to_bits().count_ones())
            }
        };
        Cidr::around(address.into(), u8::try_from(bits).ok()?)
    });
    networks.collect()
}

#[cfg(test)]
mod tests {
    use weft_model::Node;

    use super::*;

    #[test]
    fn those_after_a_node_are_asked_first_and_never_many() {
        let mut snapshot = Snapshot::default();
        for number in 10..40_u8 {
            let node = Node {
                name: NodeName::new(format!("n{number}")),
                labels: Default::default(),
                addresses: vec![Addr::from(std::net::Ipv4Addr::new(172, 30, number % 2, number))],
                pod_cidrs: BTreeSet::new(),
                ready: number != 38,
                sctp: Default::default(),
            };
            snapshot.nodes.insert(node.name.clone(), node);
        }
        let network = Cidr::around("172.30.0.0".parse().unwrap(), 24).unwrap();
        let asked = choose(&snapshot, &NodeName::new("n34"), &[network]);
        let expected =
            [36, 10, 12, 14, 16, 18, 20, 22].map(|host| format!("172.30.0.{host}").parse().unwrap());
        assert_eq!(asked, expected.into(), "n34 is itself, n38 is not ready, odd ones are elsewhere");
    }

    #[test]
    fn networks_of_a_device_are_found() {
        let loopback = networks("lo");
        assert!(
            loopback.iter().any(|network| network.contains("127.0.0.9".parse().unwrap())),
            "{loopback:?}"
        );
    }
}
