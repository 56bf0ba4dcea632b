//! The node's own object: registered, kept alive through its Lease, ready as long as the network is.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Capacity;
use super::cni::Cni;
use super::events::Severity;
use super::shared::Shared;

/// A lease is renewed this often before it runs out.
const RENEWALS: u32 = 4;
/// The network is asked this often once it is ready, and oftener until then.
const NETWORK_CHECK: Duration = Duration::from_secs(5);
const EAGER_NETWORK_CHECK: Duration = Duration::from_millis(100);
/// How long a network that was ready may fail before the node says so: as long as kubelets rest between two reports.
/// An agent that restarts is back sooner; pods do not notice, so nor does the node.
const OVERLOOKED: Duration = Duration::from_secs(10);
/// A report that takes longer is dropped: what it says may not hold any more when the server wakes up.
const LONGEST_REPORT: Duration = Duration::from_secs(10);

/// What the node is, as opposed to how it fares.
#[derive(Clone, Debug)]
pub struct NodeFacts {
    pub name: String,
    pub ips: Vec<IpAddr>,
    pub capacity: Capacity,
    pub labels: BTreeMap<String, String>,
    pub lease_seconds: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum NetworkState {
    Unknown,
    Ready,
    NotReady(String),
}

/// Registers the node and keeps its status and lease, for ever.
pub async fn keep(shared: Arc<Shared>, facts: NodeFacts, cni: Cni) {
    let api = Api::<Node>::all(shared.client.clone());
    persist("register the node", || register(&api, &facts)).await;
    shared.events.node(&facts.name, Severity::Normal, "Starting", "Starting kubelet.".into());
    tokio::join!(keep_lease(&shared, &api, &facts), keep_status(&shared, &api, &facts, &cni));
}

/// Tries until it succeeds.
async fn persist<F, R>(what: &str, mut act: F)
where
    F: FnMut() -> R,
    R: Future<Output = Result<(), kube::Error>>,
{
    let mut rest = Duration::from_millis(100);
    while let Err(error) = act().await {
        tracing::warn!("cannot {what} yet: {error}");
        tokio::time::sleep(rest).await;
        rest = (rest * 2).min(Duration::from_secs(5));
    }
}

async fn register(api: &Api<Node>, facts: &NodeFacts) -> Result<(), kube::Error> {
    let node = Node {
        metadata: ObjectMeta {
            name: Some(facts.name.clone()),
            labels: Some(labels(facts)),
            ..ObjectMeta::default()
        },
        ..Node::default()
    };
    match api.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let patch = json!({"metadata": {"labels": labels(facts)}});
            api.patch(&facts.name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
        }
        created => created.map(drop),
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn labels(facts: &NodeFacts) -> BTreeMap<String, String> {
    let mut labels = facts.labels.clone();
    for (key, value) in [
        ("kubernetes.io/hostname", facts.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

async fn keep_lease(shared: &Shared, nodes: &Api<Node>, facts: &NodeFacts) {
    let api = Api::<Lease>::namespaced(shared.client.clone(), "kube-node-lease");
    loop {
        persist("renew the node's lease", || renew(&api, nodes, facts)).await;
        tokio::time::sleep(Duration::from_secs(facts.lease_seconds.into()) / RENEWALS).await;
    }
}

async fn renew(api: &Api<Lease>, nodes: &Api<Node>, facts: &NodeFacts) -> Result<(), kube::Error> {
    let (name, seconds) = (facts.name.as_str(), i32::try_from(facts.lease_seconds).unwrap_or(i32::MAX));
    let renewal = json!({"spec": {
        "holderIdentity": name,
        "leaseDurationSeconds": seconds,
        "renewTime": MicroTime(Timestamp::now()),
    }});
    match api.patch(name, &PatchParams::default(), &Patch::Merge(&renewal)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        renewed => return renewed.map(drop),
    }
    let uid = nodes.get(name).await?.metadata.uid.unwrap_or_default();
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: name.to_owned(),
        uid,
        ..OwnerReference::default()
    };
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name.to_owned()),
            lease_duration_seconds: Some(seconds),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    match api.create(&PostParams::default(), &lease).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        created => created.map(drop),
    }
}

async fn keep_status(shared: &Shared, api: &Api<Node>, facts: &NodeFacts, cni: &Cni) {
    let (network, changes) = watch::channel(NetworkState::Unknown);
    tokio::join!(watch_network(cni, network), report_changes(shared, api, facts, changes));
}

async fn watch_network(cni: &Cni, network: watch::Sender<NetworkState>) {
    let mut failing_since = None;
    loop {
        let seen = match cni.status().await {
            Ok(()) => NetworkState::Ready,
            Err(error) => NetworkState::NotReady(error.to_string()),
        };
        let now = Instant::now();
        network.send_if_modified(|known| known.take(seen, &mut failing_since, now));
        let rest = match (&*network.borrow(), failing_since) {
            (NetworkState::Ready, None) => NETWORK_CHECK,
            (NetworkState::Ready, Some(_)) => Duration::from_secs(1),
            (_, Some(since)) if now - since > NETWORK_CHECK => Duration::from_secs(1),
            _ => EAGER_NETWORK_CHECK,
        };
        tokio::time::sleep(rest).await;
    }
}

impl NetworkState {
    /// Takes over what was seen, except for failures too short to matter; whether that changed anything.
    fn take(&mut self, seen: Self, failing_since: &mut Option<Instant>, now: Instant) -> bool {
        if seen == Self::Ready {
            *failing_since = None;
        } else {
            let since = *failing_since.get_or_insert(now);
            if *self == Self::Ready && now - since < OVERLOOKED {
                return false;
            }
        }
        let is_news = *self != seen;
        *self = seen;
        is_news
    }
}

/// Says what holds at the moment of saying it, until it was heard.
async fn report_changes(
    shared: &Shared,
    api: &Api<Node>,
    facts: &NodeFacts,
    mut changes: watch::Receiver<NetworkState>,
) {
    let mut said = NetworkState::Unknown;
    loop {
        let network = changes.borrow_and_update().clone();
        let exchange = async {
            if network == said && !is_contradicted(api, facts, &said).await? {
                return Ok(());
            }
            report(api, facts, &network).await?;
            announce(shared, facts, &said, &network);
            said = network;
            Ok::<_, kube::Error>(())
        };
        let answered = tokio::time::timeout(LONGEST_REPORT, exchange).await;
        let rest = match answered.map_or(Err("no answer".to_owned()), |said| said.map_err(|e| e.to_string()))
        {
            Ok(()) => NETWORK_CHECK,
            Err(why) => {
                tracing::warn!("cannot report the node's status yet: {why}");
                Duration::from_secs(1)
            }
        };
        // The sender lives as long as this.
        let _ = tokio::time::timeout(rest, changes.changed()).await;
    }
}

/// Whether the API says otherwise than this kubelet did: a node whose lease ran out is marked by its controller, and
/// only its kubelet can say that it is back.
async fn is_contradicted(
    api: &Api<Node>,
    facts: &NodeFacts,
    said: &NetworkState,
) -> Result<bool, kube::Error> {
    if *said != NetworkState::Ready {
        return Ok(false);
    }
    let stored = api.get(&facts.name).await?.status.unwrap_or_default();
    Ok(contradicts(&stored, facts))
}

/// Every way to the node's pods leads by its addresses: somebody who changed them is corrected.
fn contradicts(stored: &NodeStatus, facts: &NodeFacts) -> bool {
    let unready = |condition: &NodeCondition| condition.type_ == "Ready" && condition.status != "True";
    stored.conditions.iter().flatten().any(unready) || stored.addresses.as_ref() != Some(&addresses(facts))
}

fn announce(shared: &Shared, facts: &NodeFacts, before: &NetworkState, now: &NetworkState) {
    let name = &facts.name;
    match now {
        NetworkState::Ready => {
            tracing::info!("node {name} is ready");
            shared.events.node(
                name,
                Severity::Normal,
                "NodeReady",
                format!("Node {name} status is now: NodeReady"),
            );
        }
        NetworkState::NotReady(message) => {
            tracing::warn!("node {name} is not ready: {message}");
            if *before == NetworkState::Ready {
                let text = format!("Node {name} status is now: NodeNotReady");
                shared.events.node(name, Severity::Normal, "NodeNotReady", text);
            }
        }
        NetworkState::Unknown => {}
    }
}

async fn report(api: &Api<Node>, facts: &NodeFacts, network: &NetworkState) -> Result<(), kube::Error> {
    let before = api.get(&facts.name).await?.status.unwrap_or_default();
    let status = status(facts, network, &before, Timestamp::now());
    let patch = json!({"status": status});
    api.patch_status(&facts.name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

fn status(facts: &NodeFacts, network: &NetworkState, before: &NodeStatus, now: Timestamp) -> NodeStatus {
    let quantities = facts.capacity.quantities();
    let own = conditions(network, before, now);
    // Others set conditions too, a network plugin for one.
    let foreign =
        before.conditions.iter().flatten().filter(|old| own.iter().all(|new| new.type_ != old.type_));
    let conditions = own.iter().chain(foreign).cloned().collect();
    NodeStatus {
        addresses: Some(addresses(facts)),
        allocatable: Some(quantities.clone()),
        capacity: Some(quantities),
        conditions: Some(conditions),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: 10250 }),
        }),
        node_info: Some(system_info()),
        ..NodeStatus::default()
    }
}

fn addresses(facts: &NodeFacts) -> Vec<NodeAddress> {
    let own = facts.ips.iter().map(|ip| address("InternalIP", &ip.to_string()));
    own.chain([address("Hostname", &facts.name)]).collect()
}

fn address(kind: &str, address: &str) -> NodeAddress {
    NodeAddress { address: address.to_owned(), type_: kind.to_owned() }
}

fn conditions(network: &NetworkState, before: &NodeStatus, now: Timestamp) -> Vec<NodeCondition> {
    let earlier = before.conditions.as_deref().unwrap_or_default();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        let same = earlier.iter().find(|old| old.type_ == kind && old.status == status);
        NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: same.and_then(|old| old.last_transition_time.clone()).or(Some(Time(now))),
        }
    };
    let ready = match network {
        NetworkState::Ready => condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        NetworkState::NotReady(message) => {
            let text = format!("container runtime network not ready: NetworkReady=false message: {message}");
            condition("Ready", "False", "KubeletNotReady", &text)
        }
        NetworkState::Unknown => {
            condition("Ready", "Unknown", "KubeletStarting", "the network was not asked yet")
        }
    };
    vec![
        condition(
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ready,
    ]
}

fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn system_info() -> NodeSystemInfo {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let os_image = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned());
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: read_line("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("weft-lab://{}", env!("CARGO_PKG_VERSION")),
        kernel_version: read_line("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: format!("v1.32.0+weft-{}", env!("CARGO_PKG_VERSION")),
        machine_id: read_line("/etc/machine-id"),
        operating_system: "linux".to_owned(),
        os_image,
        system_uuid: read_line("/etc/machine-id"),
        ..NodeSystemInfo::default()
    }
}

impl Capacity {
    /// What this machine has; every node of a lab claims all of it.
    pub fn of_machine() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse::<u64>().ok())
            .unwrap_or(1 << 20);
        Self { cpu: Quantity(cpus.to_string()), memory: Quantity(format!("{kib}Ki")), pods: 110 }
    }

    pub(super) fn quantities(&self) -> BTreeMap<String, Quantity> {
        BTreeMap::from([
            ("cpu".to_owned(), self.cpu.clone()),
            ("memory".to_owned(), self.memory.clone()),
            ("pods".to_owned(), Quantity(self.pods.to_string())),
            ("ephemeral-storage".to_owned(), Quantity("100Gi".to_owned())),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> NodeFacts {
        NodeFacts {
            name: "node1".into(),
            ips: vec!["172.30.0.11".parse().unwrap(), "fd00:172:30::11".parse().unwrap()],
            capacity: Capacity::of_machine(),
            labels: BTreeMap::new(),
            lease_seconds: 40,
        }
    }

    fn ready_of(status: &NodeStatus) -> &NodeCondition {
        status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready").expect("Ready")
    }

    #[test]
    fn the_network_decides_readiness_and_the_transition_time_stays() {
        let (early, late) = (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH + Duration::from_secs(60));
        let refused = NetworkState::NotReady("error 50: no agent".into());
        let first = status(&facts(), &refused, &NodeStatus::default(), early);
        assert_eq!(ready_of(&first).status, "False");
        assert!(ready_of(&first).message.as_deref().is_some_and(|text| text.contains("error 50: no agent")));
        let second = status(&facts(), &refused, &first, late);
        assert_eq!(ready_of(&second).last_transition_time, Some(Time(early)));
        let third = status(&facts(), &NetworkState::Ready, &second, late);
        assert_eq!(
            (ready_of(&third).status.as_str(), &ready_of(&third).last_transition_time),
            ("True", &Some(Time(late)))
        );
    }

    #[test]
    fn a_short_failure_is_overlooked_and_a_long_one_is_not() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let refused = || NetworkState::NotReady("no agent".into());
        let (mut known, mut failing) = (NetworkState::Unknown, None);
        assert!(known.take(refused(), &mut failing, at(0)), "at the start nothing is overlooked");
        assert!(known.take(NetworkState::Ready, &mut failing, at(1)));
        assert!(!known.take(refused(), &mut failing, at(2)));
        assert!(!known.take(refused(), &mut failing, at(11)));
        assert!(!known.take(NetworkState::Ready, &mut failing, at(11)), "it was ready all the while");
        assert!(!known.take(refused(), &mut failing, at(12)), "another failure has its own time");
        assert!(known.take(refused(), &mut failing, at(22)));
        assert_eq!(known, refused());
    }

    #[test]
    fn what_others_made_of_the_status_is_noticed() {
        let said = status(&facts(), &NetworkState::Ready, &NodeStatus::default(), Timestamp::UNIX_EPOCH);
        assert!(!contradicts(&said, &facts()));
        for addresses in [None, Some(vec![]), Some(vec![address("InternalIP", "zz")])] {
            assert!(contradicts(&NodeStatus { addresses, ..said.clone() }, &facts()));
        }
        let refused = NetworkState::NotReady("no agent".into());
        assert!(contradicts(&status(&facts(), &refused, &said, Timestamp::UNIX_EPOCH), &facts()));
    }

    #[test]
    fn conditions_of_others_are_kept() {
        let mut before = NodeStatus::default();
        let foreign = NodeCondition {
            type_: "NetworkUnavailable".into(),
            status: "False".into(),
            ..Default::default()
        };
        before.conditions = Some(vec![foreign.clone()]);
        let now = status(&facts(), &NetworkState::Ready, &before, Timestamp::UNIX_EPOCH);
        assert!(now.conditions.iter().flatten().any(|condition| *condition == foreign));
        assert_eq!(now.addresses.map(|addresses| addresses.len()), Some(3));
    }
}
