//! How a name resolves for a pod, and why not: its resolv.conf, policy on the way to its name server, then the walk of its search
//! list, name by name. What each name gets comes from `names`.

use std::fmt;

use serde::Serialize;
use weft_model::{
    Addr, ClusterDns, DnsPolicy, Pod, PodKey, PodNetwork, Port, Protocol, ResolvConf, Snapshot,
};
use weft_plan::NamePlan;

use super::question::PortName;
use super::tell::{Story, write_step};
use super::{Destination, Question, QuestionError, Stage, Step, near};
use crate::names::{NameAnswer, NameCause, NameData, NameDecision, QueryType, answer, answer_to};
use crate::reach::{Cluster, Reach};

const DNS: Port = Port(53);

/// The story of one name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NameStory {
    pub source: PodKey,
    pub name: String,
    pub end: NameEnd,
    pub resolv_conf: ResolvConf,
    pub steps: Vec<Step>,
}

/// Where the walk ends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameEnd {
    Addresses(Vec<Addr>),
    /// Upstream servers know; these are asked of them, in order.
    Upstream(Vec<String>),
    /// The pod asks servers that are not the cluster's.
    OtherServers(Vec<String>),
    /// It exists without an address.
    NoAddress,
    Missing,
    /// The pod's questions do not reach a server.
    NoServer,
}

impl NameEnd {
    /// Whether an address is known, or somebody else may know one.
    pub fn may_resolve(&self) -> bool {
        matches!(self, Self::Addresses(_) | Self::Upstream(_) | Self::OtherServers(_))
    }
}

/// Answers from the API's objects alone: `name` as the pod would write it.
pub fn why_name(snapshot: &Snapshot, source: &PodKey, name: &str) -> Result<NameStory, QuestionError> {
    let cluster = Cluster::new(snapshot);
    let found = snapshot.pods.get(source);
    let pod = found.ok_or_else(|| QuestionError::NoSuchPod(source.to_string()))?;
    let unplaced =
        || QuestionError::Unplaced(source.clone(), "is not scheduled to a node of this cluster yet");
    let plan = cluster.plan_of(pod).ok_or_else(unplaced)?;
    let resolv_conf = resolv_conf(snapshot, pod);
    let mut steps = vec![resolver_step(pod, &resolv_conf)];
    let end = match servers(&cluster, pod, &resolv_conf, &mut steps)? {
        Some(end) => end,
        None => {
            let (end, last) = walk(snapshot, &plan.names, pod, name, &resolv_conf, &mut steps);
            steps.extend(collapse(&plan.names, pod, name, &last, &resolv_conf));
            end
        }
    };
    Ok(NameStory { source: source.clone(), name: name.to_owned(), end, resolv_conf, steps })
}

/// The pod's file, as far as the API and the settings tell: the node's own servers are not known here.
pub(super) fn resolv_conf(snapshot: &Snapshot, pod: &Pod) -> ResolvConf {
    let settings = &snapshot.settings;
    let domain = settings.cluster_domain.trim_end_matches('.').to_ascii_lowercase();
    let cluster = ClusterDns { servers: settings.dns_addresses.clone(), domain };
    let node = ResolvConf { search: settings.names.node_search.clone(), ..ResolvConf::default() };
    let network = if pod.host_network { PodNetwork::Node } else { PodNetwork::Own };
    ResolvConf::of_pod(&pod.dns, network, &pod.key.namespace, &cluster, &node)
}

fn resolver_step(pod: &Pod, conf: &ResolvConf) -> Step {
    let policy = match (pod.dns.policy, pod.host_network) {
        (DnsPolicy::ClusterFirst, true) => "ClusterFirst on the node's network, which is Default".to_owned(),
        (policy, _) => format!("{policy:?}"),
    };
    let servers = match conf.servers.as_slice() {
        [] => "the node's own servers".to_owned(),
        servers => format!("nameserver {}", servers.join(" ")),
    };
    let search = if conf.search.is_empty() {
        "no search".to_owned()
    } else {
        format!("search {}", conf.search.join(" "))
    };
    let text = format!("dnsPolicy {policy}: {servers}; {search}; ndots:{}", conf.searching().ndots);
    Step::passed(Stage::Resolver, text)
}

/// Whether the pod's questions reach the cluster's name server; if not, that is the end.
fn servers(
    cluster: &Cluster<'_>,
    pod: &Pod,
    conf: &ResolvConf,
    steps: &mut Vec<Step>,
) -> Result<Option<NameEnd>, QuestionError> {
    let own = &cluster.snapshot.settings.dns_addresses;
    let servers = conf.servers.iter().filter_map(|server| server.parse::<Addr>().ok());
    let servers: Vec<Addr> = servers.filter(|server| own.contains(server)).collect();
    if servers.is_empty() {
        let text = "none of its servers is the cluster's: what they say is not known here, and they do not know the \
            names of the cluster";
        steps.push(Step::passed(Stage::Resolver, text));
        return Ok(Some(NameEnd::OtherServers(conf.servers.clone())));
    }
    // No policy applies to a pod on its node's network.
    if pod.host_network {
        return Ok(None);
    }
    let question = |server| Question {
        source: pod.key.clone(),
        destination: Destination::Addr(server),
        port: Some(PortName::Number(DNS)),
        protocol: None,
    };
    let mut reached = false;
    let mut refusals = Vec::new();
    for server in &servers {
        let question = question(*server);
        let story = Story::new(cluster, &question)?;
        for protocol in [Protocol::UDP, Protocol::TCP] {
            match story.path(*server, protocol, DNS, None) {
                Some(path) if !matches!(path.reach, Reach::Denied { .. }) => reached = true,
                path => {
                    refusals.extend(path.into_iter().flat_map(|path| path.steps).filter(|step| !step.passed))
                }
            }
        }
    }
    refusals.dedup();
    steps.extend(refusals);
    if reached {
        return Ok(None);
    }
    let list = servers.iter().map(Addr::to_string).collect::<Vec<_>>().join(", ");
    steps.push(Step::failed(Stage::Resolver, format!("its questions do not reach {list} at port 53")));
    Ok(Some(NameEnd::NoServer))
}

/// Every name that the pod's resolver asks, in order, until one has an address; the last one asked. The last step tells the end.
pub(super) fn walk(
    snapshot: &Snapshot,
    plan: &NamePlan,
    pod: &Pod,
    written: &str,
    conf: &ResolvConf,
    steps: &mut Vec<Step>,
) -> (NameEnd, String) {
    let (mut upstream, mut empty, mut last) = (Vec::new(), false, String::new());
    for name in conf.searching().walk(written) {
        let decisions = [QueryType::A, QueryType::Aaaa].map(|query| answer(plan, &name, query));
        let addresses: Vec<Addr> = decisions.iter().flat_map(addresses).collect();
        let has_records = |decision: &&NameDecision| matches!(decision.answer, NameAnswer::Records(_));
        let told = decisions.iter().find(has_records).unwrap_or(&decisions[0]);
        let text = match &told.answer {
            NameAnswer::Records(_) => {
                let list = addresses.iter().map(Addr::to_string).collect::<Vec<_>>().join(", ");
                format!("{name} is {list}: {}{}", told.cause, aliases(told))
            }
            NameAnswer::NotOurs(target) => {
                upstream.push(target.clone());
                format!("{name}: {}", told.cause)
            }
            NameAnswer::NxDomain => format!("{name}: NXDOMAIN, {}{}", told.cause, aliases(told)),
            NameAnswer::NoData | NameAnswer::Walk(_) => {
                empty = true;
                format!("{name}: NODATA, {}{}", told.cause, aliases(told))
            }
        };
        steps.push(Step::passed(Stage::Name, text));
        last = name;
        if !addresses.is_empty() {
            let end =
                if upstream.is_empty() { NameEnd::Addresses(addresses) } else { NameEnd::Upstream(upstream) };
            return (end, last);
        }
    }
    let near = near::services(snapshot, &pod.key.namespace, written);
    let hint = if near.is_empty() { String::new() } else { format!("; is {} meant?", near.join(" or ")) };
    if !upstream.is_empty() {
        if !hint.is_empty() {
            steps.push(Step::failed(Stage::Name, format!("{written} is no service{hint}")));
        }
        return (NameEnd::Upstream(upstream), last);
    }
    if empty {
        steps.push(Step::failed(Stage::Name, format!("{written} exists and has no address")));
        return (NameEnd::NoAddress, last);
    }
    steps.push(Step::failed(Stage::Name, format!("{written} does not exist{hint}")));
    (NameEnd::Missing, last)
}

/// That the pod does not see the walk, where it does not.
fn collapse(plan: &NamePlan, pod: &Pod, written: &str, last: &str, conf: &ResolvConf) -> Option<Step> {
    let first = conf.searching().walk(written).into_iter().next().filter(|first| first != last)?;
    let decision = answer_to(plan, pod.addresses.first().copied(), &first, QueryType::A);
    let is_walk = matches!(decision.cause, NameCause::Searched { .. } | NameCause::SearchedOutside { .. });
    is_walk.then(|| {
        let text =
            format!("all in one round trip: the question for {first} gets the answer of the walk's end");
        Step::passed(Stage::Name, text)
    })
}

fn addresses(decision: &NameDecision) -> Vec<Addr> {
    let NameAnswer::Records(records) = &decision.answer else { return Vec::new() };
    let address = |data: &NameData| match data {
        NameData::A(v4) => Some(Addr::from(*v4)),
        NameData::Aaaa(v6) => Some(Addr::from(*v6)),
        _ => None,
    };
    records.iter().filter_map(|record| address(&record.data)).collect()
}

/// The ExternalName services on the way.
fn aliases(decision: &NameDecision) -> String {
    decision.chain.iter().map(|alias| format!(" (by {alias})")).collect()
}

impl fmt::Display for NameEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(list) => {
                f.write_str(&list.iter().map(Addr::to_string).collect::<Vec<_>>().join(", "))
            }
            Self::Upstream(names) => {
                write!(f, "not known in the cluster: as upstream servers say about {}", names.join(", then "))
            }
            Self::OtherServers(servers) if servers.is_empty() => f.write_str("as the node's own servers say"),
            Self::OtherServers(servers) => write!(f, "as {} says", servers.join(" or ")),
            Self::NoAddress => f.write_str("it exists and has no address"),
            Self::Missing => f.write_str("it does not exist"),
            Self::NoServer => f.write_str("no name server is reached"),
        }
    }
}

impl fmt::Display for NameStory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pod {} resolves {}: {}", self.source, self.name, self.end)?;
        self.steps.iter().try_for_each(|step| write_step(f, step, "  "))
    }
}
