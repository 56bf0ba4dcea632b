//! The node's agent: wires the API watch, the compilers, the datapath, CNI and flows together. Each shell's own
//! work lives in its crate; nothing here decides about a packet.

mod announce;
mod applier;
mod flows;
mod kernel;
mod listeners;
mod names;
mod network;
mod pressure;
mod settings;
mod socket;
mod status;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use weft_cni::{CniService, ServiceConfig};
use weft_datapath::Datapath;
use weft_kube::Cluster;
use weft_lab::fabric::config::AgentConfig;
use weft_model::NodeName;

pub use announce::AddressStatus;
pub use settings::cluster as settings;
pub use status::AgentStatus;

use applier::Applier;
use flows::Flows;
use network::Network;

/// How often what only time brings about is looked after: expired flows, sandboxes that vanished.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// The CNI plugin: short-lived, asks the agent.
pub fn plugin() -> ExitCode {
    let code = weft_cni::plugin_main(weft_cni::process_env(), std::io::stdin(), std::io::stdout());
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Everything the agent's parts share.
pub struct Agent {
    pub config: AgentConfig,
    pub node: NodeName,
    pub datapath: Arc<Datapath>,
    pub cluster: Cluster,
    pub applier: Arc<Applier>,
    pub cni: Arc<CniService<Network>>,
    pub flows: Arc<Flows>,
    pub announcing: announce::Announcing,
}

pub async fn run(config: &Path) -> Result<()> {
    let config: AgentConfig = crate::fabrics::read_json(config)?;
    let agent = start(config).await?;
    let listener = weft_cni::bind_socket(&agent.config.socket)
        .with_context(|| format!("cannot listen on {}", agent.config.socket.display()))?;
    tracing::info!(node = %agent.node, socket = %agent.config.socket.display(), "agent started");
    tokio::spawn(socket::serve(agent.clone(), listener));
    tokio::spawn(follow_pod_cidrs(agent.clone()));
    tokio::spawn(names::follow(agent.clone()));
    tokio::spawn(listeners::follow(agent.clone()));
    tokio::spawn(report_ready(agent.clone()));
    tokio::spawn(keep_house(agent.clone()));
    tokio::spawn(announce::run(agent.clone(), announce::held_before(&agent.config.state_dir)));
    tokio::spawn(pressure::follow(agent.clone()));
    tokio::spawn(kernel::report(agent.clone()));
    crate::fabrics::terminated().await;
    tracing::info!("agent stops; programs, links and maps stay as they are");
    Ok(())
}

async fn start(config: AgentConfig) -> Result<Arc<Agent>> {
    let node = NodeName::new(&config.node);
    config.tables.check().context("the agent's configuration")?;
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("cannot create {}", config.state_dir.display()))?;
    let datapath = tokio::task::spawn_blocking({
        let config = settings::datapath(&config);
        move || Datapath::open(config)
    })
    .await
    .context("opening the datapath was interrupted")??;
    let datapath = Arc::new(datapath);
    let client = weft_kube::client_from_kubeconfig(&config.kubeconfig).await?;
    let cluster = Cluster::start(client, settings(&config));
    let applier = Applier::start(node.clone(), datapath.clone(), cluster.subscribe());
    let network = Arc::new(Network::new(datapath.clone(), applier.clone(), cluster.subscribe()));
    let cni = CniService::open(
        ServiceConfig { state_dir: config.state_dir.clone(), node: node.clone(), pod_cidrs: Vec::new() },
        network,
    )
    .context("cannot read the records of pods attached earlier")?;
    applier.restore(cni.attachments().iter().filter_map(|attachment| attachment.local_endpoint()));
    applier.announce(announce::held_before(&config.state_dir));
    let flows = Flows::start(&node, datapath.clone(), applier.clone())?;
    Ok(Arc::new(Agent {
        config,
        node,
        datapath,
        cluster,
        applier,
        cni,
        flows,
        announcing: Default::default(),
    }))
}

/// Addresses can be given out once the node has its pod prefixes; they may also change.
async fn follow_pod_cidrs(agent: Arc<Agent>) {
    let mut views = agent.cluster.subscribe();
    let mut known = Vec::new();
    loop {
        let cidrs: Vec<_> = {
            let view = views.borrow_and_update();
            let node = view.snapshot.nodes.get(&agent.node);
            node.map(|node| node.pod_cidrs.iter().copied().collect()).unwrap_or_default()
        };
        if !cidrs.is_empty() && cidrs != known {
            match agent.cni.set_pod_cidrs(&cidrs) {
                Ok(()) => tracing::info!(?cidrs, "pod prefixes of this node"),
                Err(error) => tracing::error!(%error, "Node {}: spec.podCIDRs cannot be used", agent.node),
            }
            known = cidrs;
        }
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// The node is marked network-ready when the first plan is in its kernel, not before.
async fn report_ready(agent: Arc<Agent>) {
    agent.applier.first_applied().await;
    let recovered = agent.cni.recover().await;
    tracing::info!(?recovered, "attachments recovered");
    sweep_links(&agent).await;
    loop {
        let result = async {
            let client = weft_kube::client_from_kubeconfig(&agent.config.kubeconfig).await?;
            let message = "the node's plan is in its kernel";
            weft_kube::set_network_available(&client, agent.node.as_str(), "WeftIsUp", message).await
        };
        match result.await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%error, "cannot report the node's network condition; trying again"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Links whose record is gone belong to nobody.
async fn sweep_links(agent: &Arc<Agent>) {
    let known: Vec<String> =
        agent.cni.attachments().into_iter().map(|attachment| attachment.device).collect();
    let datapath = agent.datapath.clone();
    let swept = tokio::task::spawn_blocking(move || -> Result<()> {
        for link in datapath.list_pods()? {
            if !known.contains(&link.device) {
                tracing::info!(
                    device = link.device,
                    container = link.container,
                    "removing a link without a record"
                );
                datapath.detach_pod(&link.device)?;
            }
        }
        Ok(())
    });
    match swept.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("cannot sweep links: {error:#}"),
        Err(error) => tracing::error!(%error, "sweeping links failed"),
    }
}

async fn keep_house(agent: Arc<Agent>) {
    agent.applier.first_applied().await;
    loop {
        tokio::time::sleep(HOUSEKEEPING).await;
        let datapath = agent.datapath.clone();
        match tokio::task::spawn_blocking(move || datapath.collect_expired()).await {
            Ok(Ok(expired)) => agent.flows.expired(&expired, &agent.applier),
            Ok(Err(error)) => tracing::warn!(%error, "cannot collect expired flows"),
            Err(error) => tracing::error!(%error, "collecting expired flows failed"),
        }
        agent.cni.recover().await;
    }
}
