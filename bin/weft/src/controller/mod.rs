//! The cluster's singleton: what exactly one process decides for all nodes. Several may run; the one that holds the
//! Lease works.

mod addresses;
mod announced;
mod say;

use std::path::Path;

use anyhow::Result;
use kube::Client;
use tokio::sync::watch;
use weft_kube::lease::LeaseTimes;
use weft_kube::{EventRecorder, Leadership};
use weft_lab::fabric::config::ControllerConfig;
use weft_model::{Cidr, ClusterSettings};

const NAMESPACE: &str = "weft-system";
const NAME: &str = "weft-controller";

pub async fn run(config: &Path) -> Result<()> {
    let config: ControllerConfig = crate::fabrics::read_json(config)?;
    let client = weft_kube::client_from_kubeconfig(&config.kubeconfig).await?;
    let identity = identity();
    let leadership = weft_kube::lead(client.clone(), NAMESPACE, NAME, &identity, LeaseTimes::default());
    tracing::info!(identity, "controller started");
    tokio::select! {
        result = serve(client, config, identity.clone(), leadership) => result,
        () = crate::fabrics::terminated() => Ok(()),
    }
}

/// A pod's name, which is its host name, tells replicas apart; the same after a restart, so that it leads on at once.
fn identity() -> String {
    let given = std::env::var("POD_NAME").ok().filter(|name| !name.is_empty());
    let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    given.or_else(host).unwrap_or_else(|| NAME.to_owned())
}

/// Works while it leads. Whatever was under way when it stops leading is begun anew by the next leader, who reads
/// everything first.
async fn serve(
    client: Client,
    config: ControllerConfig,
    identity: String,
    mut leadership: watch::Receiver<Leadership>,
) -> Result<()> {
    let events = EventRecorder::new(client.clone(), NAME, &identity);
    loop {
        if leadership.wait_for(|state| *state == Leadership::Leading).await.is_err() {
            return Ok(());
        }
        let settings = settings(&config);
        tokio::select! {
            result = weft_lab::controllers::podcidr::run(client.clone(), config.pod_cidrs.clone()) => return Ok(result?),
            () = addresses::run(client.clone(), settings, events.clone()) => {}
            _ = leadership.wait_for(|state| *state != Leadership::Leading) => {}
        }
    }
}

fn settings(config: &ControllerConfig) -> ClusterSettings {
    let cidrs = |nets: &[ipnet::IpNet]| -> Vec<Cidr> {
        nets.iter().filter_map(|net| Cidr::around(net.addr().into(), net.prefix_len())).collect()
    };
    ClusterSettings {
        pod_cidrs: cidrs(&config.pod_cidrs.ranges),
        service_cidrs: cidrs(&config.service_cidrs),
        ..ClusterSettings::default()
    }
}
