//! What becomes of a socket's connect or unconnected send: the cgroup hooks as code. Packets live in `journey`.

use weft_model::{Addr, Port, Protocol, Reason};
use weft_plan::{Backend, Frontend, NodePlan, ServicePlan};

use crate::journey::{Place, place};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connect<'a> {
    /// No service address: it goes where it was going.
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

/// The node's own addresses, the name server's among them, are never a service's. `entropy` chooses among the backends; the kernel draws a random number.
pub fn connect(plan: &NodePlan, protocol: Protocol, addr: Addr, port: Port, entropy: u32) -> Connect<'_> {
    let own = plan.settings.host_addresses.contains(&addr);
    if own || !matches!(protocol, Protocol::TCP | Protocol::UDP) {
        return Connect::Unchanged;
    }
    let Some(service) = plan.services.get(&Frontend { addr, protocol, port }) else {
        return match place(plan, addr) {
            Place::Services => Connect::Refused { reason: Reason::NotTranslated, service: None },
            _ => Connect::Unchanged,
        };
    };
    let count = service.backends().len().max(1);
    match service.backends().get(entropy as usize % count) {
        Some(backend) => Connect::To { service, backend },
        None => Connect::Refused { reason: Reason::NoReadyBackends, service: Some(service) },
    }
}
