//! What happens to the Leases, in order and without gaps: after every failure all are listed anew before anything counts
//! as known.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use tokio::sync::mpsc;
use weft_model::{Addr, NodeName};

use super::{KIND_LABEL, LeaseNews, address_lease, holder, renewed};
use crate::cluster::Waits;

const WATCH_SECONDS: u32 = 60;
/// A list over a connection that leads nowhere is begun anew over another.
const LIST_PATIENCE: Duration = Duration::from_secs(5);

/// Until the receiver is dropped.
pub(super) async fn follow(api: Api<Lease>, send: mpsc::Sender<LeaseNews>) {
    let mut waits = Waits::default();
    let mut known = Known::default();
    loop {
        // A watch that goes on from where it was would tell of the oldest change first, and what it tells last be long
        // past.
        let error = tokio::select! {
            error = watch(&api, &send, &mut known, &mut waits) => error,
            () = send.closed() => return,
        };
        match error {
            Some(error) if known.listed => {
                known.listed = false;
                tracing::warn!(%error, "leases cannot be watched; they are listed anew");
                if send.send(LeaseNews::Away).await.is_err() {
                    return;
                }
            }
            Some(error) => tracing::debug!(%error, "leases cannot be listed"),
            None => return,
        }
        let wait = waits.next().unwrap_or_default();
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = send.closed() => return,
        }
    }
}

/// Whose Leases were told of.
#[derive(Default)]
struct Known {
    listed: bool,
    addresses: BTreeSet<Addr>,
    nodes: BTreeSet<NodeName>,
}

/// One list and what follows it. `None`: nobody listens any more.
async fn watch(
    api: &Api<Lease>,
    send: &mpsc::Sender<LeaseNews>,
    known: &mut Known,
    waits: &mut Waits,
) -> Option<String> {
    let config = watcher::Config::default().labels(KIND_LABEL).timeout(WATCH_SECONDS);
    let mut events = watcher(api.clone(), config).boxed();
    let mut before = Known::default();
    loop {
        let next = events.next();
        let next = match known.listed {
            true => Ok(next.await),
            false => tokio::time::timeout(LIST_PATIENCE, next).await,
        };
        let event = match next {
            Ok(event) => event?.map_err(|error| error.to_string()),
            Err(_) => Err("the API server does not answer".to_owned()),
        };
        let mut batch = Vec::new();
        match event {
            Ok(watcher::Event::Init) => before = std::mem::take(known),
            Ok(watcher::Event::InitApply(lease) | watcher::Event::Apply(lease)) => {
                batch.extend(news(&lease));
                known.note(&batch);
            }
            Ok(watcher::Event::InitDone) => {
                waits.reset();
                batch = known.gone_since(&std::mem::take(&mut before));
                known.listed = true;
                batch.push(LeaseNews::Listed);
            }
            Ok(watcher::Event::Delete(lease)) => {
                batch.extend(gone(&lease));
                known.note(&batch);
            }
            Err(error) => {
                // A list that was cut short knows less than the one before.
                known.addresses.append(&mut before.addresses);
                known.nodes.append(&mut before.nodes);
                known.listed |= before.listed;
                return Some(error);
            }
        }
        for item in batch {
            send.send(item).await.ok()?;
        }
    }
}

impl Known {
    fn note(&mut self, batch: &[LeaseNews]) {
        for news in batch {
            match news {
                LeaseNews::Address(lease) => drop(self.addresses.insert(lease.addr)),
                LeaseNews::AddressGone(addr) => drop(self.addresses.remove(addr)),
                LeaseNews::Heartbeat(node, _) => drop(self.nodes.insert(node.clone())),
                LeaseNews::HeartbeatGone(node) => drop(self.nodes.remove(node)),
                LeaseNews::Listed | LeaseNews::Away => {}
            }
        }
    }

    fn gone_since(&self, before: &Self) -> Vec<LeaseNews> {
        let addresses = before.addresses.difference(&self.addresses).copied().map(LeaseNews::AddressGone);
        let nodes = before.nodes.difference(&self.nodes).cloned().map(LeaseNews::HeartbeatGone);
        addresses.chain(nodes).collect()
    }
}

fn news(lease: &Lease) -> Option<LeaseNews> {
    match address_lease(lease) {
        Some(lease) => Some(LeaseNews::Address(lease)),
        None => Some(LeaseNews::Heartbeat(holder(lease)?, renewed(lease))),
    }
}

fn gone(lease: &Lease) -> Option<LeaseNews> {
    match address_lease(lease) {
        Some(lease) => Some(LeaseNews::AddressGone(lease.addr)),
        None => Some(LeaseNews::HeartbeatGone(holder(lease)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_new_list_lacks_is_gone() {
        let addr: Addr = "192.0.2.10".parse().unwrap();
        let mut before = Known::default();
        before
            .note(&[LeaseNews::Heartbeat(NodeName::new("a"), "1".to_owned()), LeaseNews::AddressGone(addr)]);
        before.addresses.insert(addr);
        let mut after = Known::default();
        after.note(&[LeaseNews::Heartbeat(NodeName::new("b"), "1".to_owned())]);
        let gone = after.gone_since(&before);
        assert_eq!(gone, [LeaseNews::AddressGone(addr), LeaseNews::HeartbeatGone(NodeName::new("a"))]);
    }
}
