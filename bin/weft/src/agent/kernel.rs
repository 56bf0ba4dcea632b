//! Says on the Node what its kernel lacks.

use std::sync::Arc;
use std::time::Duration;

use weft_kube::NodeCondition;
use weft_model::Sctp;

use super::Agent;

const RETRY: Duration = Duration::from_secs(5);

pub async fn report(agent: Arc<Agent>) {
    while let Err(error) = try_report(&agent).await {
        tracing::warn!("cannot say on the Node what its kernel has: {error:#}; trying again");
        tokio::time::sleep(RETRY).await;
    }
}

async fn try_report(agent: &Agent) -> anyhow::Result<()> {
    let wanted = sctp(weft_datapath::kernel_has_sctp()?);
    let client = weft_kube::client_from_kubeconfig(&agent.config.kubeconfig).await?;
    weft_kube::set_node_condition(&client, agent.node.as_str(), &wanted).await?;
    Ok(())
}

fn sctp(has: bool) -> NodeCondition {
    let (status, reason, message) = match has {
        true => ("True", "KernelHasSctp", "the kernel has SCTP"),
        false => ("False", "KernelWithoutSctp", "the kernel has no SCTP (CONFIG_IP_SCTP)"),
    };
    NodeCondition { kind: Sctp::CONDITION, status, reason, message: message.to_owned() }
}
