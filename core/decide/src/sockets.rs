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
        None => Connect::Refused { reason: Reason::NoReadyBackends, service: Some(service) },
    }
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
            let shares = || backends.iter().flat_map(|one| std::iter::repeat_n(one, one.weight.0.max(1).into()));
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

fn unspecified(family: Family) -> Addr {
    match family {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn is_loopback(addr: Addr) -> bool {
    addr.to_ip() == std::net::Ipv4Addr::LOCALHOST || addr.to_ip() == std::net::Ipv6Addr::LOCALHOST
}
