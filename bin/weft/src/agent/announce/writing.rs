//! Writing Leases beside the announcer, which must not wait for the API server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use weft_decide::announce::{Claim, Outcome};
use weft_kube::claims::{AddressLease, Claims};
use weft_model::{Addr, NodeName};

const RETRY: Duration = Duration::from_millis(500);

pub struct Writer {
    claims: Claims,
    outcomes: mpsc::Sender<(Addr, Outcome, Option<AddressLease>)>,
    /// Leases that are being given up, until that is done or the address is taken again.
    given_up: BTreeMap<Addr, AbortHandle>,
}

impl Writer {
    pub fn new(claims: Claims) -> (Self, mpsc::Receiver<(Addr, Outcome, Option<AddressLease>)>) {
        let (outcomes, receive) = mpsc::channel(1024);
        (Self { claims, outcomes, given_up: BTreeMap::new() }, receive)
    }

    pub fn take(&mut self, addr: Addr, seen: Option<Claim>, after: Option<(NodeName, String)>) {
        self.stop_giving_up(addr);
        let (claims, outcomes) = (self.claims.clone(), self.outcomes.clone());
        tokio::spawn(async move {
            let version = seen.as_ref().map(|claim| claim.version.as_str());
            let transitions = seen.as_ref().map_or(0, |claim| claim.transitions.saturating_add(1));
            let after = after.as_ref().map(|(node, heartbeat)| (node, heartbeat.as_str()));
            let (outcome, lease) = match claims.take(addr, version, transitions, after).await {
                Ok(Some(lease)) => (Outcome::Taken, Some(lease)),
                Ok(None) => (Outcome::Refused, None),
                Err(error) => {
                    tracing::warn!(%addr, "{error}");
                    // A server that refuses at once is asked again no faster than one that is slow.
                    tokio::time::sleep(RETRY).await;
                    (Outcome::Failed, None)
                }
            };
            outcomes.send((addr, outcome, lease)).await.ok();
        });
    }

    pub fn hand_over(&mut self, addr: Addr) {
        let claims = self.claims.clone();
        self.give_up(addr, async move {
            while let Err(error) = claims.hand_over(addr).await {
                tracing::warn!(%addr, "{error}; trying again");
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    pub fn delete(&mut self, addr: Addr) {
        let claims = self.claims.clone();
        self.give_up(addr, async move {
            while let Err(error) = claims.delete(addr).await {
                tracing::warn!(%addr, "{error}; trying again");
                tokio::time::sleep(RETRY).await;
            }
        });
    }

    /// What fails to be reported is reported at the next occasion.
    pub fn report(&mut self, addr: Addr, seen: Option<AddressLease>, obstacle: Option<String>) {
        let claims = self.claims.clone();
        tokio::spawn(async move {
            if let Err(error) = claims.report(seen.as_ref(), addr, obstacle.as_deref()).await {
                tracing::warn!(%addr, "{error}");
            }
        });
    }

    fn give_up(&mut self, addr: Addr, writing: impl Future<Output = ()> + Send + 'static) {
        self.stop_giving_up(addr);
        self.given_up.insert(addr, tokio::spawn(writing).abort_handle());
        self.given_up.retain(|_, task| !task.is_finished());
    }

    fn stop_giving_up(&mut self, addr: Addr) {
        if let Some(task) = self.given_up.remove(&addr) {
            task.abort();
        }
    }
}

/// The node's heartbeat, while it holds addresses. `beaten` is told when one that got through was sent.
pub async fn beat(
    claims: Claims,
    mut beating: watch::Receiver<bool>,
    pace: watch::Receiver<Duration>,
    beaten: watch::Sender<Option<Instant>>,
) {
    loop {
        if beating.wait_for(|beats| *beats).await.is_err() {
            return;
        }
        while *beating.borrow_and_update() {
            let sent = Instant::now();
            let next = tokio::time::Instant::from_std(sent) + *pace.borrow();
            match claims.beat().await {
                Ok(()) => drop(beaten.send_replace(Some(sent))),
                Err(error) => tracing::warn!("{error}"),
            }
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                changed = beating.changed() => if changed.is_err() { return },
            }
        }
        if let Err(error) = claims.stop_beating().await {
            tracing::debug!("{error}");
        }
    }
}
