//! Whether a pod's connection arrives, judged over the plans of every node it passes. One packet on one node lives in `journey`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use weft_model::{Addr, NodeName, Pod, PodKey, PodPhase, Port, Protocol, Reason, Snapshot, Verdict};
use weft_plan::{Backend, NextHop, NodePlan, RuleCause, ServicePlan};

use crate::journey::{Place, is_link_local, place};
use crate::policies::{self, Ruling};
use crate::sockets::{Owner, Served, no_backends, served};

/// What an application sees that connects, or sends and awaits an answer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    Connected,
    /// Refused at once. `None`: it may pass, and nobody listens.
    Refused {
        reason: Option<Reason>,
    },
    /// Silence, until it gives up.
    Denied {
        reason: Reason,
        cause: Option<RuleCause>,
    },
    /// A service's backends differ, and the choice is random: these are what may happen.
    Mixed(Vec<Reach>),
    /// The cluster's own names give no address that could be tried.
    Unknown,
}

impl std::fmt::Display for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connected => f.write_str("connected"),
            Self::Refused { reason: None } => f.write_str("refused (nobody listens)"),
            Self::Refused { reason: Some(reason) } => write!(f, "refused ({reason})"),
            Self::Unknown => f.write_str("unknown (no address to try)"),
            Self::Denied { reason, cause: None } => write!(f, "denied ({reason})"),
            Self::Denied { reason, cause: Some(cause) } => write!(f, "denied ({reason}: {cause})"),
            Self::Mixed(list) => {
                let texts = list.iter().map(Reach::to_string).collect::<Vec<_>>();
                write!(f, "by chance: {}", texts.join(" or "))
            }
        }
    }
}

impl Reach {
    /// By no rule.
    fn denied(reason: Reason) -> Self {
        Self::Denied { reason, cause: None }
    }

    /// One for several that may happen.
    pub fn of_any(reaches: impl IntoIterator<Item = Reach>) -> Option<Self> {
        let mut distinct: Vec<Reach> = reaches.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        if distinct.len() > 1 { Some(Self::Mixed(distinct)) } else { distinct.pop() }
    }
}

/// The plans of all nodes, and who listens where.
pub struct Cluster<'a> {
    pub snapshot: &'a Snapshot,
    plans: BTreeMap<&'a NodeName, NodePlan>,
    /// Ports that pods declare, by the address they are reached at. What is declared is taken to be listened on.
    listeners: BTreeMap<Addr, BTreeSet<(Protocol, Port)>>,
}

/// One connection's way after its service address, if any, was translated.
pub(crate) struct Way<'c> {
    pub egress: Option<Judged<'c>>,
    pub route: Route<'c>,
    pub ingress: Option<Judged<'c>>,
    pub reach: Reach,
}

/// A pod's policies asked about a peer.
#[derive(Clone, Copy)]
pub(crate) struct Judged<'c> {
    pub plan: &'c NodePlan,
    pub ruling: Ruling,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route<'c> {
    /// The pod itself: nothing leaves it.
    Loopback,
    SameNode,
    OwnNode,
    Remote(&'c NextHop),
    Outside,
    None(Reason),
}

impl<'c> Judged<'c> {
    pub fn cause(&self) -> Option<&'c RuleCause> {
        self.plan.rules.get(&self.ruling.rule?)
    }

    fn denial(&self) -> Option<Reach> {
        let denied = self.ruling.reason.verdict() == Verdict::Denied;
        denied.then(|| Reach::Denied { reason: self.ruling.reason, cause: self.cause().cloned() })
    }
}

impl<'a> Cluster<'a> {
    pub fn new(snapshot: &'a Snapshot) -> Self {
        let plan = |node| (node, weft_compile::compile_from_api(snapshot, node).plan);
        Self { snapshot, plans: snapshot.nodes.keys().map(plan).collect(), listeners: listeners(snapshot) }
    }

    pub(crate) fn plan_of(&self, pod: &Pod) -> Option<&NodePlan> {
        self.plans.get(pod.node.as_ref()?)
    }

    pub fn listens(&self, addr: Addr, protocol: Protocol, port: Port) -> bool {
        self.listeners.get(&addr).is_some_and(|ports| ports.contains(&(protocol, port)))
    }

    /// The node's plan that holds the address as a pod's.
    fn home(&self, hop: &NextHop, addr: Addr) -> Option<&NodePlan> {
        self.plans.get(&hop.node).filter(|plan| plan.endpoints.contains_key(&addr))
    }

    /// From a pod's own address to one that is no service's, or not any more.
    pub(crate) fn way<'c>(
        &'c self,
        plan: &'c NodePlan,
        source: Addr,
        to: Addr,
        protocol: Protocol,
        port: Port,
    ) -> Way<'c> {
        // The stack takes both for the pod itself.
        let own = if to.to_ip().is_loopback() || to.to_ip().is_unspecified() { source } else { to };
        if plan.endpoints.get(&source).map(|from| &from.pod) == plan.endpoints.get(&own).map(|to| &to.pod) {
            let reach = self.answer(own, protocol, port);
            return Way { egress: None, route: Route::Loopback, ingress: None, reach };
        }
        if is_link_local(to) && !plan.settings.host_addresses.contains(&to) {
            let (route, reach) = (Route::None(Reason::LinkLocal), Reach::denied(Reason::LinkLocal));
            return Way { egress: None, route, ingress: None, reach };
        }
        let sender = plan.endpoints.get(&source);
        let egress =
            sender.map(|pod| Judged { plan, ruling: policies::egress(plan, pod, to, protocol, port) });
        let (route, home) = match place(plan, to) {
            Place::Pod => (Route::SameNode, Some(plan)),
            Place::Host => (Route::OwnNode, None),
            Place::Remote(hop) => (Route::Remote(hop), self.home(hop, to)),
            Place::OwnPods => (Route::None(Reason::NoSuchPod), None),
            Place::Services => (Route::None(Reason::NotTranslated), None),
            Place::ClusterPods => (Route::None(Reason::RouteMissing), None),
            Place::Elsewhere => (Route::Outside, None),
        };
        let receiver = home.and_then(|plan| Some((plan, plan.endpoints.get(&to)?)));
        let ingress = receiver
            .map(|(plan, pod)| Judged { plan, ruling: policies::ingress(plan, pod, source, protocol, port) });
        let no_pod = matches!(route, Route::Remote(_)) && receiver.is_none() && self.is_pod_address(plan, to);
        let no_route = match route {
            Route::None(reason) => Some(reason),
            _ if no_pod => Some(Reason::NoSuchPod),
            _ => None,
        };
        let no_route = no_route.map(Reach::denied);
        let denied = egress.and_then(|judged| judged.denial()).or(no_route);
        let denied = denied.or_else(|| ingress.and_then(|judged| judged.denial()));
        let reach = denied.unwrap_or_else(|| match route {
            Route::Outside => Reach::Connected,
            _ => self.answer(to, protocol, port),
        });
        Way { egress, route, ingress, reach }
    }

    fn is_pod_address(&self, plan: &NodePlan, addr: Addr) -> bool {
        plan.settings.cluster_pod_cidrs.iter().any(|cidr| cidr.contains(addr))
    }

    /// ICMP is answered by the pod's own stack.
    fn answer(&self, addr: Addr, protocol: Protocol, port: Port) -> Reach {
        if !protocol.has_ports() || self.listens(addr, protocol, port) {
            Reach::Connected
        } else {
            Reach::Refused { reason: None }
        }
    }

    /// What a connection to an address gets, and through which backends it may go.
    pub(crate) fn connect<'c>(
        &'c self,
        plan: &'c NodePlan,
        to: Addr,
        protocol: Protocol,
        port: Port,
    ) -> Sockets<'c> {
        if !matches!(protocol, Protocol::TCP | Protocol::UDP) {
            return Sockets::Unchanged;
        }
        match served(plan, Owner::Pod, protocol, to, port) {
            Served::Not => Sockets::Unchanged,
            Served::ByNobody => Sockets::Refused { reason: Reason::NotTranslated, service: None },
            Served::By(service) if service.backends().is_empty() => {
                Sockets::Refused { reason: no_backends(service), service: Some(service) }
            }
            Served::By(service) => Sockets::Balanced { service, backends: service.backends() },
        }
    }

    /// What an application in a pod sees that connects to `to`.
    pub fn reach(&self, pod: &Pod, to: Addr, protocol: Protocol, port: Port) -> Option<Reach> {
        let plan = self.plan_of(pod)?;
        match self.connect(plan, to, protocol, port) {
            Sockets::Refused { reason, .. } => Some(Reach::Refused { reason: Some(reason) }),
            Sockets::Unchanged => {
                let source = self.source(plan, pod, to)?;
                Some(self.way(plan, source, to, protocol, port).reach)
            }
            Sockets::Balanced { backends, .. } => Reach::of_any(backends.iter().filter_map(|backend| {
                let source = self.source(plan, pod, backend.addr)?;
                Some(self.way(plan, source, backend.addr, protocol, backend.port).reach)
            })),
        }
    }

    /// The address a pod sends from: its own of the destination's family.
    pub(crate) fn source(&self, plan: &NodePlan, pod: &Pod, to: Addr) -> Option<Addr> {
        let own = pod.addresses.iter().copied().filter(|addr| addr.family() == to.family());
        own.filter(|addr| plan.endpoints.get(addr).is_some_and(|endpoint| endpoint.pod == pod.key)).min()
    }

    /// Pods that can be asked about, as sources of connections.
    pub fn senders(&self) -> impl Iterator<Item = &'a Pod> {
        let running = self.snapshot.pods.values().filter(|pod| pod.phase == PodPhase::Running);
        running.filter(|pod| !pod.host_network && !pod.addresses.is_empty())
    }

    /// Who has a pod address.
    pub(crate) fn owner(&self, addr: Addr) -> Option<&PodKey> {
        self.plans.values().find_map(|plan| Some(&plan.endpoints.get(&addr)?.pod))
    }
}

/// What the socket makes of a destination.
pub(crate) enum Sockets<'c> {
    Unchanged,
    Refused { reason: Reason, service: Option<&'c ServicePlan> },
    Balanced { service: &'c ServicePlan, backends: &'c [Backend] },
}

/// Every running pod's declared ports; pods on the host's network listen at their node's address. The name server
/// listens where the cluster says.
fn listeners(snapshot: &Snapshot) -> BTreeMap<Addr, BTreeSet<(Protocol, Port)>> {
    let mut listeners: BTreeMap<Addr, BTreeSet<(Protocol, Port)>> = BTreeMap::new();
    for pod in snapshot.pods.values().filter(|pod| pod.phase == PodPhase::Running) {
        for addr in &pod.addresses {
            listeners.entry(*addr).or_default().extend(pod.declared_ports.iter().copied());
        }
    }
    for addr in snapshot.settings.name_servers() {
        listeners.entry(*addr).or_default().extend([(Protocol::UDP, Port(53)), (Protocol::TCP, Port(53))]);
    }
    // Nobody can look into what is no pod: a ready endpoint says of itself that it listens.
    for slice in snapshot.slices.values() {
        for endpoint in slice.endpoints.iter().filter(|endpoint| endpoint.target.is_none()) {
            for addr in &endpoint.addresses {
                let ports = slice.ports.iter().map(|(_, protocol, port)| (*protocol, *port));
                listeners.entry(*addr).or_default().extend(ports);
            }
        }
    }
    listeners
}
