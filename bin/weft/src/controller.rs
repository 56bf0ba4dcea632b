//! The cluster's singleton: what exactly one process decides for all nodes.

use std::path::Path;

use anyhow::Result;
use weft_lab::fabric::config::ControllerConfig;

pub async fn run(config: &Path) -> Result<()> {
    let config: ControllerConfig = crate::fabrics::read_json(config)?;
    let client = weft_kube::client_from_kubeconfig(&config.kubeconfig).await?;
    tracing::info!("controller started");
    tokio::select! {
        result = weft_lab::controllers::podcidr::run(client, config.pod_cidrs) => Ok(result?),
        () = crate::fabrics::terminated() => Ok(()),
    }
}
