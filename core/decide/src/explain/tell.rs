//! The steps of a connection in words, and as text. What is judged comes from `reach`.

use std::fmt;

use weft_model::{
    Addr, Direction, Family, Pod, PodPhase, Port, Protocol, Reason, Service, ServiceKind, Verdict,
};
use weft_plan::{Backend, NodePlan, ServicePlan};

use super::advice::{self, Party};
use super::balance::balanced;
use super::names;
use super::question::PortName;
use super::{Destination, Explanation, NameEnd, Path, Question, QuestionError, Stage, Step};
use crate::masquerade::is_masqueraded;
use crate::reach::{Cluster, Judged, Reach, Route, Sockets};

pub(super) struct Story<'c> {
    cluster: &'c Cluster<'c>,
    question: &'c Question,
    source: &'c Pod,
    plan: &'c NodePlan,
}

impl<'c> Story<'c> {
    pub fn new(cluster: &'c Cluster<'c>, question: &'c Question) -> Result<Self, QuestionError> {
        let key = &question.source;
        let found = cluster.snapshot.pods.get(key);
        let source = found.ok_or_else(|| QuestionError::NoSuchPod(key.to_string()))?;
        let unplaced = |why| Err(QuestionError::Unplaced(key.clone(), why));
        if source.host_network {
            return unplaced("is on its node's network, where no pod policy applies; ask about another pod");
        }
        if source.phase == PodPhase::Finished {
            return unplaced("has finished");
        }
        match cluster.plan_of(source) {
            None => unplaced("is not scheduled to a node of this cluster yet"),
            Some(_) if source.addresses.is_empty() => unplaced("has no address yet"),
            Some(plan) => Ok(Self { cluster, question, source, plan }),
        }
    }

    pub fn tell(&self) -> Result<Explanation, QuestionError> {
        let mut steps = Vec::new();
        let (addresses, protocol, port) = self.addresses(&mut steps)?;
        let mut paths = Vec::new();
        let mut refused = Vec::new();
        for addr in addresses {
            self.follow(addr, protocol, port, &mut steps, &mut paths, &mut refused);
        }
        let reaches = paths.iter().map(|path| path.reach.clone()).chain(refused);
        let reach = Reach::of_any(reaches).unwrap_or(Reach::Unknown);
        let destination = self.destination(port, protocol);
        Ok(Explanation { source: self.source.key.clone(), destination, protocol, reach, steps, paths })
    }

    fn destination(&self, port: Port, protocol: Protocol) -> String {
        let host = match &self.question.destination {
            Destination::Addr(addr) if addr.family() == Family::V6 => format!("[{addr}]"),
            Destination::Addr(addr) => addr.to_string(),
            Destination::Pod(key) => format!("pod {key}"),
            Destination::Service(key) => format!("service {key}"),
            Destination::Name(name) => name.clone(),
        };
        if protocol.has_ports() { format!("{host}:{port}/{protocol}") } else { format!("{host}/{protocol}") }
    }

    /// Where it goes first, in the families that the source has.
    fn addresses(&self, steps: &mut Vec<Step>) -> Result<(Vec<Addr>, Protocol, Port), QuestionError> {
        let snapshot = self.cluster.snapshot;
        let reachable = |addr: &Addr| self.source.addresses.iter().any(|own| own.family() == addr.family());
        let (addresses, (protocol, port)): (Vec<Addr>, _) = match &self.question.destination {
            Destination::Addr(addr) => (vec![*addr], self.numbered(&addr.to_string())?),
            Destination::Pod(key) => {
                let pod = snapshot.pods.get(key).ok_or_else(|| QuestionError::NoSuchPod(key.to_string()))?;
                if pod.addresses.is_empty() {
                    return Err(QuestionError::Unplaced(key.clone(), "has no address yet"));
                }
                (pod.addresses.iter().copied().collect(), self.pod_port(pod)?)
            }
            Destination::Service(key) => {
                let found = snapshot.services.get(key);
                let service = found.ok_or_else(|| QuestionError::NoSuchService(key.clone()))?;
                let port = self.service_port(service)?;
                let name = format!("{}.{}.svc.{}", key.name, key.namespace, self.plan.names.domain);
                match &service.kind {
                    ServiceKind::Headless | ServiceKind::ExternalName(_) => {
                        (self.resolve(&name, steps), port)
                    }
                    _ => (service.cluster_ips.clone(), port),
                }
            }
            Destination::Name(name) => {
                let found = self.resolve(name, steps);
                let port = match self.named_service(&found) {
                    Some(service) => self.service_port(service)?,
                    None => self.numbered(name)?,
                };
                (found, port)
            }
        };
        let usable: Vec<Addr> = addresses.iter().copied().filter(reachable).collect();
        if usable.is_empty() && !addresses.is_empty() {
            let text = format!("{} has no address of that family", self.source.key);
            steps.push(Step::failed(Stage::Route, text));
        }
        Ok((usable, protocol, port))
    }

    fn named_service(&self, addresses: &[Addr]) -> Option<&'c Service> {
        let services = self.cluster.snapshot.services.values();
        services.into_iter().find(|service| service.cluster_ips.iter().any(|addr| addresses.contains(addr)))
    }

    /// As the pod's resolver does it; of the names asked, only the one that decides is told.
    fn resolve(&self, name: &str, steps: &mut Vec<Step>) -> Vec<Addr> {
        let snapshot = self.cluster.snapshot;
        let conf = names::resolv_conf(snapshot, self.source);
        let mut walked = Vec::new();
        let (end, _) = names::walk(snapshot, &self.plan.names, self.source, name, &conf, &mut walked);
        let depends = end.may_resolve();
        if let NameEnd::Addresses(addresses) = end {
            steps.extend(walked.pop());
            return addresses;
        }
        let last = walked.pop().map_or_else(String::new, |step| format!(": {}", step.text));
        let text = if depends {
            format!("what {name} is depends on servers outside the cluster{last}")
        } else {
            format!("{name} gives no address from the cluster's own names{last}")
        };
        steps.push(Step::failed(Stage::Name, text));
        Vec::new()
    }

    fn wanted_protocol(&self) -> Protocol {
        self.question.protocol.unwrap_or(Protocol::TCP)
    }

    fn numbered(&self, destination: &str) -> Result<(Protocol, Port), QuestionError> {
        let protocol = self.wanted_protocol();
        match &self.question.port {
            Some(PortName::Number(port)) => Ok((protocol, *port)),
            None if !protocol.has_ports() => Ok((protocol, Port(0))),
            None => Err(QuestionError::WhichPort {
                destination: destination.to_owned(),
                ports: "write it after a colon".to_owned(),
            }),
            Some(PortName::Name(name)) => Err(QuestionError::Port(name.clone())),
        }
    }

    fn service_port(&self, service: &Service) -> Result<(Protocol, Port), QuestionError> {
        let ports: Vec<_> =
            service.ports.iter().map(|port| (port.name.as_str(), port.protocol, port.port)).collect();
        self.choose(format!("service {}", service.key), &ports)
    }

    fn pod_port(&self, pod: &Pod) -> Result<(Protocol, Port), QuestionError> {
        let name = |protocol: Protocol, port: Port| {
            let named = pod.named_ports.iter().find(|named| named.protocol == protocol && named.port == port);
            named.map_or("", |named| named.name.as_str())
        };
        let declared = pod.declared_ports.iter();
        let ports: Vec<_> =
            declared.map(|(protocol, port)| (name(*protocol, *port), *protocol, *port)).collect();
        self.choose(format!("pod {}", pod.key), &ports)
    }

    /// A number is asked about as it is; a name, or nothing, must stand for one port.
    fn choose(
        &self,
        of: String,
        ports: &[(&str, Protocol, Port)],
    ) -> Result<(Protocol, Port), QuestionError> {
        let protocol = self.question.protocol;
        if protocol.is_some_and(|protocol| !protocol.has_ports()) {
            return Ok((self.wanted_protocol(), Port(0)));
        }
        let fits = |known: Protocol| protocol.is_none_or(|protocol| protocol == known);
        let list = || {
            let texts = ports.iter().map(|(name, protocol, port)| match *name {
                "" => format!("{port}/{protocol}"),
                name => format!("{name} ({port}/{protocol})"),
            });
            let texts = texts.collect::<Vec<_>>();
            if texts.is_empty() { "no declared port".to_owned() } else { texts.join(", ") }
        };
        let candidates = ports.iter().filter(|(_, known, _)| fits(*known));
        match &self.question.port {
            Some(PortName::Number(number)) => {
                let known = candidates.clone().find(|(_, _, port)| port == number);
                Ok(known.map_or((self.wanted_protocol(), *number), |(_, protocol, port)| (*protocol, *port)))
            }
            Some(PortName::Name(wanted)) => {
                let known = candidates.clone().find(|(name, _, _)| name == wanted);
                let missing =
                    || QuestionError::NoSuchPort { destination: of, port: wanted.clone(), ports: list() };
                known.map(|(_, protocol, port)| (*protocol, *port)).ok_or_else(missing)
            }
            None => match candidates.clone().collect::<Vec<_>>()[..] {
                [(_, protocol, port)] => Ok((*protocol, *port)),
                _ => Err(QuestionError::WhichPort { ports: list(), destination: of }),
            },
        }
    }

    fn follow(
        &self,
        addr: Addr,
        protocol: Protocol,
        port: Port,
        steps: &mut Vec<Step>,
        paths: &mut Vec<Path>,
        refused: &mut Vec<Reach>,
    ) {
        match self.cluster.connect(self.plan, addr, protocol, port) {
            Sockets::Unchanged => paths.extend(self.path(addr, protocol, port, None)),
            Sockets::Refused { reason, service } => {
                steps.push(self.refusal(addr, protocol, port, reason, service));
                refused.push(Reach::Refused { reason: Some(reason) });
            }
            Sockets::Balanced { service, backends } => {
                let text = format!("{addr}:{port}/{protocol} is {}", balanced(service));
                steps.push(Step::passed(Stage::Service, text));
                for backend in backends {
                    paths.extend(self.path(backend.addr, protocol, backend.port, Some(backend)));
                }
            }
        }
    }

    fn refusal(
        &self,
        addr: Addr,
        protocol: Protocol,
        port: Port,
        reason: Reason,
        service: Option<&ServicePlan>,
    ) -> Step {
        let text = match service {
            Some(service) => {
                format!("{addr}:{port}/{protocol} is service {}: {}", service.service, reason.text())
            }
            None => format!("{addr}:{port}/{protocol}: {}", reason.text()),
        };
        Step::failed(Stage::Service, text)
    }

    pub fn path(&self, to: Addr, protocol: Protocol, port: Port, backend: Option<&Backend>) -> Option<Path> {
        let source = self.cluster.source(self.plan, self.source, to)?;
        let way = self.cluster.way(self.plan, source, to, protocol, port);
        let owner = self.cluster.owner(to).and_then(|key| self.cluster.snapshot.pods.get(key));
        let mut steps = Vec::new();
        if let Some(backend) = backend {
            let who = backend
                .pod
                .as_ref()
                .map_or("an address outside the cluster's pods".to_owned(), |pod| format!("pod {pod}"));
            steps.push(Step::passed(Stage::Backend, format!("{who} at {to}:{port}")));
        }
        let peer = match owner {
            Some(pod) => Party::Pod(pod),
            None if self.cluster.snapshot.settings.name_servers().any(|addr| *addr == to) => {
                Party::NameServer
            }
            None => Party::Addr(to),
        };
        if let Some(judged) = way.egress {
            steps.push(self.policy(self.source, Direction::Egress, judged, &peer, protocol, port));
        }
        // A denial is no reason to stop: who mends the one wants to know of the other.
        steps.push(route_step(self.plan, way.route, &way.reach, to));
        if let (Some(judged), Some(subject)) = (way.ingress, owner) {
            let peer = Party::Pod(self.source);
            steps.push(self.policy(subject, Direction::Ingress, judged, &peer, protocol, port));
        }
        if way.reach == (Reach::Refused { reason: None }) {
            let text = format!("no container there declares {port}/{protocol}, so nobody is taken to listen");
            steps.push(Step::failed(Stage::Listener, text));
        }
        Some(Path { address: to, port, pod: owner.map(|pod| pod.key.clone()), reach: way.reach, steps })
    }

    fn policy(
        &self,
        subject: &Pod,
        direction: Direction,
        judged: Judged<'_>,
        peer: &Party<'_>,
        protocol: Protocol,
        port: Port,
    ) -> Step {
        let stage = match direction {
            Direction::Ingress => Stage::IngressPolicy,
            Direction::Egress => Stage::EgressPolicy,
        };
        let reason = judged.ruling.reason;
        let mut step = Step::passed(stage, format!("pod {}: {}", subject.key, reason.text()));
        let Some(cause) = judged.cause() else { return step };
        step.text = format!("pod {}: {} ({cause})", subject.key, reason.text());
        step.rule = advice::rule_text(self.cluster.snapshot, cause);
        if reason.verdict() == Verdict::Denied {
            step.passed = false;
            if let weft_plan::RuleCause::DefaultDeny { policies, .. } = cause {
                step.isolating = policies.clone();
            }
            step.allow_with = advice::allow(subject, direction, peer, protocol, port);
        }
        step.cause = Some(cause.clone());
        step
    }
}

/// The address that a destination outside sees in place of the pod's.
fn masquerading(plan: &NodePlan, to: Addr) -> Option<Addr> {
    let own = plan.settings.node_addresses.iter().find(|own| own.family() == to.family()).copied();
    own.filter(|_| is_masqueraded(plan, to))
}

fn route_step(plan: &NodePlan, route: Route<'_>, reach: &Reach, to: Addr) -> Step {
    let passed = |text: String| Step::passed(Stage::Route, text);
    match (route, reach) {
        (Route::Remote(hop), Reach::Denied { reason: reason @ Reason::NoSuchPod, .. }) => {
            Step::failed(Stage::Route, format!("{to} is routed to node {}: {}", hop.node, reason.text()))
        }
        (Route::Loopback, _) => passed("the pod itself: nothing leaves it, so no policy applies".to_owned()),
        (Route::SameNode, _) => passed("a pod of the same node".to_owned()),
        (Route::OwnNode, _) => passed(format!("{to} is the pod's own node")),
        (Route::Remote(hop), _) => passed(format!("node {} through {}", hop.node, hop.via)),
        (Route::Outside, _) => passed(match masquerading(plan, to) {
            Some(own) => {
                format!(
                    "outside the cluster, masqueraded as the node's address {own}; what is there is not known here"
                )
            }
            None => {
                "outside the cluster, from the pod's own address; what is there is not known here".to_owned()
            }
        }),
        (Route::None(reason), _) => Step::failed(Stage::Route, format!("{to}: {}", reason.text())),
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Resolver => "resolver",
            Self::Name => "name",
            Self::Service => "service",
            Self::Backend => "backend",
            Self::EgressPolicy => "egress",
            Self::Route => "route",
            Self::IngressPolicy => "ingress",
            Self::Listener => "listener",
        })
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pod {} -> {}: {}", self.source, self.destination, self.reach)?;
        for step in &self.steps {
            write_step(f, step, "  ")?;
        }
        let (told, alike) = distinct(&self.paths);
        for path in told {
            if self.paths.len() > 1 {
                let who = path.pod.as_ref().map_or_else(String::new, |pod| format!(" (pod {pod})"));
                writeln!(f, "  by {}:{}{who}: {}", path.address, path.port, path.reach)?;
            }
            let indent = if self.paths.len() > 1 { "    " } else { "  " };
            for step in &path.steps {
                write_step(f, step, indent)?;
            }
        }
        if alike > 0 {
            writeln!(f, "  and {alike} more with the same outcome")?;
        }
        Ok(())
    }
}

/// The first path of each outcome, and how many were left out.
fn distinct(paths: &[Path]) -> (Vec<&Path>, usize) {
    let mut told: Vec<&Path> = Vec::new();
    for path in paths {
        if !told.iter().any(|other| other.reach == path.reach) {
            told.push(path);
        }
    }
    let alike = paths.len() - told.len();
    (told, alike)
}

pub(super) fn write_step(f: &mut fmt::Formatter<'_>, step: &Step, indent: &str) -> fmt::Result {
    let mark = if step.passed { "ok" } else { "NO" };
    writeln!(f, "{indent}{mark} {:<8} {}", step.stage, step.text)?;
    let more = format!("{indent}            ");
    if let Some(rule) = &step.rule {
        writeln!(f, "{more}rule: {rule}")?;
    }
    if let Some(allow) = &step.allow_with {
        writeln!(f, "{more}the smallest policy that would allow it:")?;
        for line in allow.lines() {
            writeln!(f, "{more}  {line}")?;
        }
    }
    Ok(())
}
