//! The state of one node as its kernel tells it, beside what was planned. Showing it lives in `cli::status`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weft_cni::PoolUsage;
use weft_datapath::{Datapath, ReadError};
use weft_kube::Link;

use super::applier::{Applied, InForce};
use super::{AddressStatus, Agent};

#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    pub node: String,
    /// Whether the whole cluster was listed at least once.
    pub synced: bool,
    /// The Kubernetes API: `connected`, or since when and why not.
    pub api: String,
    pub routing: String,
    /// Plans put into the kernel since the agent started.
    pub applied: u64,
    pub apply_millis: u64,
    /// Why the newest plan is not in force.
    pub apply_error: Option<String>,
    /// Entries in the kernel's tables, counted there.
    pub kernel: BTreeMap<String, usize>,
    /// How full each table is that the agent fills: entries, and how many it takes.
    pub tables: BTreeMap<String, (usize, usize)>,
    /// What is not served because a table is full.
    pub refused: Vec<String>,
    /// Where the kernel differs from the plan in force; empty when they agree.
    pub differences: Vec<String>,
    /// Packets by reason.
    pub packets: BTreeMap<String, u64>,
    pub events_lost: u64,
    pub events_suppressed: u64,
    pub pods: Vec<PodStatus>,
    pub pools: Vec<PoolStatus>,
    /// Load balancer addresses and this node's part in announcing them.
    #[serde(default)]
    pub addresses: Vec<AddressStatus>,
    pub findings: Vec<String>,
}

#[derive(Serialize, Deserialize, Debug)]
pub struct PodStatus {
    pub pod: String,
    pub device: String,
    pub addresses: Vec<String>,
    /// Policies that isolate it, by direction; `-` where none does.
    pub ingress: String,
    pub egress: String,
}

#[derive(Serialize, Deserialize, Debug)]
pub struct PoolStatus {
    pub pool: String,
    pub size: String,
    pub used: usize,
}

pub async fn status(agent: &Agent) -> AgentStatus {
    let view = agent.cluster.subscribe().borrow().clone();
    let (applied, kernel) = read_kernel(agent).await;
    let mut findings: Vec<String> = view.findings.iter().map(ToString::to_string).collect();
    let state = applied.state.as_deref();
    findings.extend(state.iter().flat_map(|state| &state.compiled.findings).map(ToString::to_string));
    AgentStatus {
        node: agent.node.to_string(),
        synced: view.synced,
        api: link(&view.link),
        routing: format!("{:?}", view.snapshot.settings.routing),
        applied: applied.count,
        apply_millis: applied.took.as_millis() as u64,
        apply_error: applied.error.clone(),
        kernel: kernel.counts,
        tables: applied
            .report
            .usage
            .iter()
            .map(|(table, usage)| ((*table).to_owned(), (usage.used, usage.capacity)))
            .collect(),
        refused: applied.report.refused.iter().map(ToString::to_string).collect(),
        differences: kernel.differences,
        packets: kernel.packets,
        events_lost: kernel.events_lost,
        events_suppressed: kernel.events_suppressed,
        pods: state.map(|state| pods(&state.compiled.plan)).unwrap_or_default(),
        addresses: agent.announcing.status(),
        pools: agent.cni.usage().into_iter().map(pool).collect(),
        findings,
    }
}

/// What one look at the kernel found.
#[derive(Default)]
struct Kernel {
    counts: BTreeMap<String, usize>,
    differences: Vec<String>,
    packets: BTreeMap<String, u64>,
    events_lost: u64,
    events_suppressed: u64,
}

/// The kernel beside the plan in force. A plan applied during the look makes it a comparison of two moments: look again.
async fn read_kernel(agent: &Agent) -> (Applied, Kernel) {
    let mut attempts = 0..5;
    loop {
        let applied = agent.applier.subscribe().borrow().clone();
        let (datapath, state) = (agent.datapath.clone(), applied.state.clone());
        let read = tokio::task::spawn_blocking(move || look(&datapath, state.as_deref())).await;
        let kernel = match read {
            Ok(Ok(kernel)) => kernel,
            Ok(Err(error)) => unread(error.to_string()),
            Err(error) => unread(error.to_string()),
        };
        let moved = agent.applier.subscribe().borrow().count != applied.count;
        if kernel.differences.is_empty() || !moved || attempts.next().is_none() {
            return (applied, kernel);
        }
    }
}

fn look(datapath: &Datapath, state: Option<&InForce>) -> Result<Kernel, ReadError> {
    let counters = datapath.counters()?;
    Ok(Kernel {
        counts: datapath
            .read_back()?
            .counts()
            .into_iter()
            .map(|(table, count)| (table.to_owned(), count))
            .collect(),
        differences: match state {
            Some(state) => datapath.differences(&state.compiled.plan)?,
            None => vec!["no plan is in force yet".to_owned()],
        },
        packets: counters.reasons.iter().map(|(reason, count)| (reason.to_string(), count.packets)).collect(),
        events_lost: counters.events_lost,
        events_suppressed: counters.events_suppressed,
    })
}

fn unread(error: String) -> Kernel {
    Kernel { differences: vec![format!("the kernel cannot be read: {error}")], ..Kernel::default() }
}

fn link(link: &Link) -> String {
    match link {
        Link::Connecting => "connecting".to_owned(),
        Link::Connected => "connected".to_owned(),
        Link::Lost { since, error } => {
            let ago = since.elapsed().map(|ago| ago.as_secs()).unwrap_or(0);
            format!("lost {ago} s ago: {error}")
        }
    }
}

fn pool(usage: PoolUsage) -> PoolStatus {
    PoolStatus { pool: usage.pool.to_string(), size: usage.size.to_string(), used: usage.used }
}

fn pods(plan: &weft_plan::NodePlan) -> Vec<PodStatus> {
    let isolated = |set: Option<weft_plan::PolicySetId>| {
        let policies = set.and_then(|set| plan.policy_sets.get(&set)).map(|set| &set.policies);
        policies.map_or("-".to_owned(), |policies| {
            policies.iter().map(|policy| policy.object.name.to_string()).collect::<Vec<_>>().join(",")
        })
    };
    let mut pods: BTreeMap<&weft_model::PodKey, PodStatus> = BTreeMap::new();
    for (addr, endpoint) in &plan.endpoints {
        let entry = pods.entry(&endpoint.pod).or_insert_with(|| PodStatus {
            pod: endpoint.pod.to_string(),
            device: endpoint.device.clone(),
            addresses: Vec::new(),
            ingress: isolated(endpoint.ingress),
            egress: isolated(endpoint.egress),
        });
        entry.addresses.push(addr.to_string());
    }
    pods.into_values().collect()
}
