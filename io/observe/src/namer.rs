//! Kernel events to flows with the names of the moment: pure, built anew for each published plan.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use weft_abi::{Event, EventKind, Hook};
use weft_model::{
    Addr, Cidr, Direction, NodeName, PodKey, PodPhase, Port, Protocol, Reason, Snapshot, Verdict,
};
use weft_plan::{Frontend, NodePlan, RuleCause, RuleId, ServiceId};

use crate::flows::{Flow, FlowKind, Party, ServiceRef, Who};

pub struct Namer {
    node: NodeName,
    addresses: HashMap<Addr, Arc<Who>>,
    /// Pods by the cookie of their network namespace: sockets have no address when they connect.
    sockets: HashMap<u64, Arc<Who>>,
    rules: HashMap<RuleId, RuleCause>,
    services: HashMap<ServiceId, ServiceRef>,
    cluster: Vec<Cidr>,
}

impl Namer {
    pub fn new(snapshot: &Snapshot, plan: &NodePlan) -> Self {
        let settings = &plan.settings;
        let cluster = settings.cluster_pod_cidrs.iter().chain(&settings.service_cidrs);
        Self {
            node: settings.node.clone(),
            addresses: addresses(snapshot, plan),
            sockets: HashMap::new(),
            rules: plan.rules.iter().map(|(id, cause)| (*id, cause.clone())).collect(),
            services: plan
                .services
                .iter()
                .map(|(at, service)| (service.id, service_ref(at, service)))
                .collect(),
            cluster: cluster.copied().collect(),
        }
    }

    /// Whose namespaces the cookies of socket events are.
    pub fn with_sockets(
        mut self,
        pods: impl IntoIterator<Item = (u64, PodKey)>,
        snapshot: &Snapshot,
    ) -> Self {
        self.sockets = pods
            .into_iter()
            .map(|(cookie, key)| {
                let known = snapshot.pods.get(&key).map(pod);
                let unlabelled = || Who::Pod {
                    namespace: key.namespace.clone(),
                    name: key.name.to_string(),
                    labels: Default::default(),
                    node: Some(self.node.clone()),
                };
                (cookie, Arc::new(known.unwrap_or_else(unlabelled)))
            })
            .collect();
        self
    }

    pub fn flow(&self, event: &Event, time: SystemTime) -> Flow {
        let service = event.service.and_then(|id| self.services.get(&id)).cloned();
        let destination = match event.backend {
            Some((addr, port)) => self.party(addr, port, event.protocol),
            None => self.party(event.destination, event.destination_port, event.protocol),
        };
        Flow {
            time: Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH),
            node: self.node.clone(),
            kind: kind(event.kind),
            verdict: verdict(event),
            reason: event.reason,
            direction: direction(event),
            source: self.source(event),
            destination,
            cause: self.cause(event, service.as_ref()),
            service,
            protocol: event.protocol,
            packets: if event.kind == EventKind::Ended { total(event.packets) } else { 1 },
            bytes: if event.kind == EventKind::Ended { total(event.bytes) } else { event.length.into() },
        }
    }

    fn source(&self, event: &Event) -> Party {
        if event.hook != Hook::Socket {
            return self.party(event.source, event.source_port, event.protocol);
        }
        let ip = event.source.to_ip();
        let addr = (!ip.is_unspecified()).then_some(event.source);
        let port = (event.source_port.0 != 0).then_some(event.source_port);
        let by_address = || addr.map(|addr| self.who(addr));
        // A socket in no pod's namespace is a process of the node.
        let who = self.sockets.get(&event.netns_cookie).map(|who| (**who).clone()).or_else(by_address);
        Party { addr, port, who: who.unwrap_or_else(|| Who::Node { name: self.node.clone() }) }
    }

    fn party(&self, addr: Addr, port: Port, protocol: Protocol) -> Party {
        Party { addr: Some(addr), port: protocol.has_ports().then_some(port), who: self.who(addr) }
    }

    fn who(&self, addr: Addr) -> Who {
        if let Some(known) = self.addresses.get(&addr) {
            return (**known).clone();
        }
        if self.cluster.iter().any(|cidr| cidr.contains(addr)) { Who::Unknown } else { Who::World }
    }

    fn cause(&self, event: &Event, service: Option<&ServiceRef>) -> String {
        let rule = |id: &RuleId| match self.rules.get(id) {
            Some(cause) => cause.to_string(),
            // The policy changed between the verdict and now.
            None => format!("rule {:08x}, no longer in force", id.0),
        };
        let deciding: Vec<String> = match (&event.egress_rule, &event.ingress_rule) {
            // Egress is judged first: a denied flow with an ingress rule passed egress.
            (_, Some(ingress)) if event.kind == EventKind::Denied => vec![rule(ingress)],
            (egress, ingress) => egress.iter().chain(ingress).map(rule).collect(),
        };
        if !deciding.is_empty() {
            return deciding.join("; ");
        }
        match (event.reason, service) {
            (Some(Reason::NoReadyBackends), Some(service)) => {
                format!("service {} has no ready endpoints", service.key())
            }
            (Some(reason), _) => reason.text().to_owned(),
            (None, _) => String::new(),
        }
    }
}

fn kind(kind: EventKind) -> FlowKind {
    match kind {
        EventKind::NewFlow => FlowKind::New,
        EventKind::Denied => FlowKind::Denied,
        EventKind::Translated => FlowKind::Translated,
        EventKind::Refused => FlowKind::Refused,
        EventKind::Ended => FlowKind::Ended,
    }
}

fn verdict(event: &Event) -> Verdict {
    match event.kind {
        EventKind::Denied | EventKind::Refused => Verdict::Denied,
        EventKind::Translated => Verdict::Forwarded,
        EventKind::NewFlow | EventKind::Ended => event.reason.map_or(Verdict::Forwarded, Reason::verdict),
    }
}

fn direction(event: &Event) -> Direction {
    match (event.egress_rule, event.ingress_rule, event.hook) {
        (_, Some(_), _) => Direction::Ingress,
        (Some(_), None, _) => Direction::Egress,
        (None, None, Hook::FromPod | Hook::Socket | Hook::ToNet) => Direction::Egress,
        (None, None, Hook::ToPod | Hook::FromNet) => Direction::Ingress,
    }
}

fn total(both: [u64; 2]) -> u64 {
    both[0].saturating_add(both[1])
}

fn service_ref(frontend: &Frontend, service: &weft_plan::ServicePlan) -> ServiceRef {
    ServiceRef {
        namespace: service.service.namespace.clone(),
        name: service.service.name.to_string(),
        port_name: service.port_name.clone(),
        addr: frontend.addr,
        port: frontend.port,
    }
}

/// Later insertions win: what is surest comes last.
fn addresses(snapshot: &Snapshot, plan: &NodePlan) -> HashMap<Addr, Arc<Who>> {
    let mut found = HashMap::new();
    for service in snapshot.services.values() {
        let key = &service.key;
        let who = Arc::new(Who::Service { namespace: key.namespace.clone(), name: key.name.to_string() });
        found.extend(service.cluster_ips.iter().map(|addr| (*addr, who.clone())));
    }
    for addr in &snapshot.settings.dns_addresses {
        found.insert(*addr, Arc::new(Who::NameServer));
    }
    // A finished pod's address may already belong to another.
    for finished in [true, false] {
        let pods = snapshot.pods.values().filter(|pod| !pod.host_network);
        for of_phase in pods.filter(|pod| (pod.phase == PodPhase::Finished) == finished) {
            let who = Arc::new(pod(of_phase));
            found.extend(of_phase.addresses.iter().map(|addr| (*addr, who.clone())));
        }
    }
    for local in snapshot.local.values() {
        if let Some(known) = snapshot.pods.get(&local.pod).filter(|pod| pod.uid == local.uid) {
            let who = Arc::new(pod(known));
            found.extend(local.addresses.iter().map(|addr| (*addr, who.clone())));
        }
    }
    for node in snapshot.nodes.values() {
        let who = Arc::new(Who::Node { name: node.name.clone() });
        found.extend(node.addresses.iter().map(|addr| (*addr, who.clone())));
    }
    let own = Arc::new(Who::Node { name: plan.settings.node.clone() });
    for addr in &plan.settings.host_addresses {
        found.entry(*addr).or_insert_with(|| own.clone());
    }
    found
}

fn pod(pod: &weft_model::Pod) -> Who {
    Who::Pod {
        namespace: pod.key.namespace.clone(),
        name: pod.key.name.to_string(),
        labels: pod.labels.clone(),
        node: pod.node.clone(),
    }
}
