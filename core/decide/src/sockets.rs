//! What becomes of a socket's connect or send to a service: the cgroup hooks as code. Packets live in `journey`.

use weft_model::{Addr, Balancing, Family, Port, Protocol, Reason};
use weft_plan::{Backend, Frontend, NodePlan, ServicePlan, maglev};

use crate::journey::{Place, place};

/// Whose socket it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    Pod,
    /// A process of the node, or a pod in the host's network.
    Node,
}

/// The socket that asks. Its own address is not known before it is connected, so its network namespace is the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    pub owner: Owner,
    pub netns_cookie: u64,
}

/// What a choice rests on beside the plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Chance {
    /// The kernel draws a random number.
    pub entropy: u32,
    /// Where the client's last connection went, while session affinity holds, or what a datagram socket sent to before.
    pub last: Option<(Addr, Port)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connect<'a> {
    /// It goes where it was going: no service address, or a service whose packets are translated.
    Unchanged,
    To {
        service: &'a ServicePlan,
        backend: &'a Backend,
    },
    /// ECONNREFUSED at once.
    Refused {
        reason: Reason,
        service: Option<&'a ServicePlan>,
    },
}

/// Who serves an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Served<'a> {
    By(&'a ServicePlan),
    /// A service address that no frontend has.
    ByNobody,
    /// No service address.
    Not,
}

pub fn connect<'a>(
    plan: &'a NodePlan,
    asker: Asker,
    protocol: Protocol,
    addr: Addr,
    port: Port,
    chance: Chance,
) -> Connect<'a> {
    let by_packets = protocol == Protocol::UDP && asker.owner == Owner::Pod;
    if by_packets || !matches!(protocol, Protocol::TCP | Protocol::UDP) {
        return Connect::Unchanged;
    }
    let service = match served(plan, asker.owner, protocol, addr, port) {
        Served::Not => return Connect::Unchanged,
        Served::ByNobody => return Connect::Refused { reason: Reason::NotTranslated, service: None },
        Served::By(service) if !service.source_ranges.is_empty() && asker.owner == Owner::Pod => {
            return Connect::Unchanged;
        }
        Served::By(service) => service,
    };
    let connection = maglev::Connection {
        source: (netns_addr(asker.netns_cookie), Port(0)),
        destination: (addr, port),
        protocol,
    };
    match choose(service, &connection, chance) {
        Some(backend) => Connect::To { service, backend },
        None => Connect::Refused { reason: no_backends(service), service: Some(service) },
    }
}

/// Why a service without backends refuses.
pub fn no_backends(service: &ServicePlan) -> Reason {
    if service.list.elsewhere { Reason::NoLocalBackends } else { Reason::NoReadyBackends }
}

/// Exact, then the node port of a node's address.
pub fn served<'a>(
    plan: &'a NodePlan,
    owner: Owner,
    protocol: Protocol,
    addr: Addr,
    port: Port,
) -> Served<'a> {
    if let Some(service) = plan.services.get(&Frontend { addr, protocol, port }) {
        return Served::By(service);
    }
    let node_port = || {
        let frontend = Frontend { addr: unspecified(addr.family()), protocol, port };
        plan.services.get(&frontend).map_or(Served::Not, Served::By)
    };
    if is_loopback(addr) {
        let open = plan.settings.localhost_node_ports && owner == Owner::Node;
        return if open { node_port() } else { Served::Not };
    }
    match place(plan, addr) {
        Place::Host => node_port(),
        Place::Remote(_) if !plan.settings.cluster_pod_cidrs.iter().any(|pods| pods.contains(addr)) => {
            node_port()
        }
        Place::Services => Served::ByNobody,
        _ => Served::Not,
    }
}

fn choose<'a>(
    service: &'a ServicePlan,
    connection: &maglev::Connection,
    chance: Chance,
) -> Option<&'a Backend> {
    let backends = service.backends();
    let last = chance.last.and_then(|last| backends.iter().find(|one| (one.addr, one.port) == last));
    if last.is_some() || backends.is_empty() {
        return last;
    }
    match service.balancing {
        Balancing::Maglev => {
            let table = maglev::table(backends);
            let slot = connection.hash() as usize % table.len();
            backends.get(table[slot] as usize)
        }
        Balancing::Random => {
            let shares =
                || backends.iter().flat_map(|one| std::iter::repeat_n(one, one.weight.0.max(1).into()));
            shares().nth(chance.entropy as usize % shares().count())
        }
    }
}

/// How a network namespace stands for a client's address.
fn netns_addr(cookie: u64) -> Addr {
    let mut octets = [0; 16];
    octets[8..].copy_from_slice(&cookie.to_be_bytes());
    Addr::from_octets(octets)
}

pub(crate) fn unspecified(family: Family) -> Addr {
    match family {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn is_loopback(addr: Addr) -> bool {
    addr.to_ip() == std::net::Ipv4Addr::LOCALHOST || addr.to_ip() == std::net::Ipv6Addr::LOCALHOST
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use weft_model::{ServiceKey, Weight};
    use weft_plan::{BackendList, ListId, ServiceId};

    use super::*;

    fn backend(last: u8, weight: u8) -> Backend {
        let addr = Addr::from(std::net::Ipv4Addr::new(10, 244, 0, last));
        Backend { weight: Weight(weight), ..Backend::at(addr, Port(8080)) }
    }

    fn service(backends: Vec<Backend>) -> ServicePlan {
        ServicePlan::cluster_ip(ServiceId(1), ServiceKey::new("test", "web"), backends)
    }

    fn connection(client: u16) -> maglev::Connection {
        maglev::Connection {
            source: (netns_addr(7), Port(client)),
            destination: ("10.96.0.1".parse().unwrap(), Port(80)),
            protocol: Protocol::TCP,
        }
    }

    fn last(backend: Option<&Backend>) -> Option<u8> {
        backend.map(|backend| backend.addr.octets()[15])
    }

    #[test]
    fn a_random_choice_follows_weights() {
        let service = service(vec![backend(1, 1), backend(2, 3)]);
        let chosen = |entropy| last(choose(&service, &connection(0), Chance { entropy, last: None }));
        assert_eq!((0..5).map(chosen).collect::<Vec<_>>(), [1, 2, 2, 2, 1].map(Some));
    }

    #[test]
    fn the_last_backend_stays_while_it_is_a_member() {
        let service = service(vec![backend(1, 1), backend(2, 1)]);
        let known = |last_octet| {
            let last_one = backend(last_octet, 1);
            Chance { entropy: 0, last: Some((last_one.addr, last_one.port)) }
        };
        assert_eq!(last(choose(&service, &connection(0), known(2))), Some(2));
        assert_eq!(last(choose(&service, &connection(0), known(9))), Some(1));
    }

    #[test]
    fn a_hash_takes_no_chances() {
        let list = BackendList {
            id: ListId(1),
            backends: (1..=9).map(|last| backend(last, 1)).collect(),
            elsewhere: false,
        };
        let service =
            ServicePlan { balancing: Balancing::Maglev, list: Arc::new(list), ..service(Vec::new()) };
        let chosen =
            |client, entropy| last(choose(&service, &connection(client), Chance { entropy, last: None }));
        for client in 0..50 {
            assert_eq!(chosen(client, 1), chosen(client, 2));
        }
        let all: BTreeSet<_> = (0..500).map(|client| chosen(client, 0)).collect();
        assert_eq!(all.len(), 9);
    }
}
