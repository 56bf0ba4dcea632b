//! The cluster's singleton: what exactly one process decides for all nodes. Several may run; the one that holds the
//! Lease works.

mod addresses;
mod announced;
mod deciding;
mod leases;
mod say;

use std::convert::Infallible;
use std::path::Path;

use anyhow::Result;
use kube::Client;
use tokio::sync::watch;
use weft_kube::lease::LeaseTimes;
use weft_kube::{EventRecorder, Leadership};
use weft_lab::controllers::podcidr::{self, Pools};
use weft_lab::fabric::config::ControllerConfig;
use weft_model::{Addr, Cidr, ClusterSettings};

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
            never = pod_ranges(client.clone(), config.pod_cidrs.clone()) => match never {},
            () = addresses::run(client.clone(), settings, events.clone()) => {}
            _ = leadership.wait_for(|state| *state != Leadership::Leading) => {}
        }
    }
}

/// Without them nodes keep the ranges they have, or get them from somebody else; addresses are given out all the same.
async fn pod_ranges(client: Client, pools: Pools) -> Infallible {
    match podcidr::run(client, pools).await {
        Ok(()) => tracing::error!("pod ranges are not given to nodes any more: nodes cannot be watched"),
        Err(error) => {
            tracing::error!(
                "{error}; nodes get no pod ranges from this controller, the rest of its work goes on"
            );
        }
    }
    std::future::pending().await
}

fn settings(config: &ControllerConfig) -> ClusterSettings {
    let cidrs = |nets: &[ipnet::IpNet]| -> Vec<Cidr> {
        nets.iter().filter_map(|net| Cidr::around(net.addr().into(), net.prefix_len())).collect()
    };
    ClusterSettings {
        pod_cidrs: cidrs(&config.pod_cidrs.ranges),
        service_cidrs: cidrs(&config.service_cidrs),
        dns_addresses: config.dns_ips.iter().copied().map(Addr::from).collect(),
        ..ClusterSettings::default()
    }
}
