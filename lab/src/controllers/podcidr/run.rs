//! Watches nodes and writes their pod ranges back.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use tokio::sync::Notify;

use super::{Assumed, Pools, allocate, reconcile};
use crate::controllers::shell::{Cache, Executor};

const RETRY: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("pod range {range}: nodes' shares of /{mask} do not fit; give a mask from {least} to {most}", least = range.prefix_len(), most = range.max_prefix_len())]
    Mask { range: ipnet::IpNet, mask: u8 },
    #[error("pod ranges: none given; give at least one")]
    None,
}

/// Gives out pod ranges for as long as it is polled.
pub async fn run(client: Client, pools: Pools) -> Result<(), RunError> {
    check(&pools)?;
    let nodes = Cache::<Node>::new();
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    let follow = nodes.clone().follow(client.clone(), move |_| notify.notify_one());
    let write = async {
        let executor = Executor::new(client, "weft-controller");
        nodes.wait_synced().await;
        let mut assumed = Assumed::default();
        let mut resend = Vec::new();
        loop {
            let seen = nodes.all();
            assumed.settle(&seen);
            let allocation = allocate(&pools, &seen, &assumed);
            assumed.add(&seen, &allocation);
            let effects = reconcile(&seen, &allocation, Timestamp::now());
            let report = executor.carry_out(resend.drain(..).chain(effects).collect()).await;
            if report.failures.is_empty() {
                changed.notified().await;
            } else {
                tokio::time::sleep(RETRY).await;
                let seen = nodes.all();
                assumed.settle(&seen);
                resend = assumed.again(&seen);
            }
        }
    };
    futures::future::join(follow, write).await;
    Ok(())
}

fn check(pools: &Pools) -> Result<(), RunError> {
    if pools.ranges.is_empty() {
        return Err(RunError::None);
    }
    for range in &pools.ranges {
        let mask = pools.mask(*range);
        if mask < range.prefix_len() || mask > range.max_prefix_len() {
            return Err(RunError::Mask { range: *range, mask });
        }
    }
    Ok(())
}
