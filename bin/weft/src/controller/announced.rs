//! What services say about the announcement of their addresses, from the Leases; and the Leases that nobody else
//! deletes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::Client;
use tokio::sync::{mpsc, watch};
use weft_compile::announce::{Announced, announced};
use weft_kube::claims::{AddressLease, LeaseNews, delete_abandoned};
use weft_kube::status::{ANNOUNCED, Saying, Truth};
use weft_model::{Addr, ServiceKey, Snapshot};

/// How long a Lease may outlive what it was for.
pub const SWEEP: Duration = Duration::from_secs(10);

/// The Leases of addresses as last seen.
#[derive(Clone, Default)]
pub struct Leases(Arc<Mutex<BTreeMap<Addr, AddressLease>>>);

impl Leases {
    pub fn current(&self) -> BTreeMap<Addr, AddressLease> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts changes that services have something to say about; heartbeats are none.
    pub async fn follow(self, mut news: mpsc::Receiver<LeaseNews>, changes: watch::Sender<u64>) {
        while let Some(news) = news.recv().await {
            let mut leases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = match news {
                LeaseNews::Address(lease) => {
                    let told = |lease: &AddressLease| (lease.holder.clone(), lease.obstacle.clone());
                    let before = leases.get(&lease.addr).map(told);
                    let changed = before != Some(told(&lease));
                    leases.insert(lease.addr, lease);
                    changed
                }
                LeaseNews::AddressGone(addr) => leases.remove(&addr).is_some(),
                _ => false,
            };
            drop(leases);
            if changed {
                changes.send_modify(|count| *count += 1);
            }
        }
    }
}

/// Leases whose address is nobody's and whose holder is gone, and those of nodes that are gone.
pub async fn sweep(client: &Client, snapshot: &Snapshot) {
    let wanted = announced(snapshot);
    let swept =
        delete_abandoned(client, |addr| wanted.contains_key(&addr), |node| snapshot.nodes.contains_key(node));
    match swept.await {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "abandoned leases deleted"),
        Err(error) => tracing::warn!("{error}"),
    }
}

/// One condition for each service that has addresses to announce; none before there is anything to say.
pub fn sayings(snapshot: &Snapshot, leases: &BTreeMap<Addr, AddressLease>) -> BTreeMap<ServiceKey, Saying> {
    let mut said: BTreeMap<ServiceKey, Vec<Word>> = BTreeMap::new();
    for (addr, wanted) in announced(snapshot) {
        let Some(word) = word(addr, &wanted, leases.get(&addr)) else { continue };
        for service in wanted.services {
            said.entry(service).or_default().push(word.clone());
        }
    }
    let saying = |words: Vec<Word>| {
        let bad = words.iter().find(|word| word.truth == Truth::False);
        let messages: Vec<&str> = words.iter().map(|word| word.message.as_str()).collect();
        Saying {
            kind: ANNOUNCED,
            truth: bad.map_or(Truth::True, |_| Truth::False),
            reason: bad.map_or("Announced", |word| word.reason).to_owned(),
            message: messages.join("; "),
        }
    };
    said.into_iter().map(|(service, words)| (service, saying(words))).collect()
}

#[derive(Clone)]
struct Word {
    truth: Truth,
    reason: &'static str,
    message: String,
}

fn word(addr: Addr, wanted: &Announced, lease: Option<&AddressLease>) -> Option<Word> {
    let holder = lease.and_then(|lease| lease.holder.as_ref());
    let obstacle = lease.and_then(|lease| lease.obstacle.as_deref()).and_then(|text| text.split_once(' '));
    let no = |reason, message| Some(Word { truth: Truth::False, reason, message });
    let yes = |message| Some(Word { truth: Truth::True, reason: "Announced", message });
    match (obstacle, holder) {
        (Some(("in-use", mac)), _) => no(
            "AddressInUse",
            format!(
                "{addr} is not announced: the machine with link address {mac} answers for it; free it there, or give the service another address"
            ),
        ),
        (Some(("contested", mac)), Some(node)) => no(
            "AddressContested",
            format!(
                "{addr} is announced by node {node}, and by the machine with link address {mac} too; free it there"
            ),
        ),
        (Some(("holder-answers", _)), Some(node)) => {
            yes(format!("{addr} by node {node}, whose agent is silent while its machine still answers"))
        }
        (_, Some(node)) => yes(format!("{addr} by node {node}")),
        (_, None) if wanted.candidates.is_empty() => no(
            "NoNode",
            format!(
                "{addr} is not announced: no node is both chosen by its pool and, for externalTrafficPolicy Local, has a ready endpoint"
            ),
        ),
        (_, None) => None,
    }
}
