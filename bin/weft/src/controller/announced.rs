//! What services say about the announcement of their addresses, from the Leases.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, watch};
use weft_compile::announce::Announced;
use weft_kube::claims::{AddressLease, LeaseNews};
use weft_kube::status::{ANNOUNCED, Saying, Truth};
use weft_model::{Addr, ServiceKey};

/// The Leases of addresses as last seen.
#[derive(Clone, Default)]
pub struct Leases(Arc<Mutex<Known>>);

#[derive(Clone, Default)]
pub struct Known {
    pub by_address: BTreeMap<Addr, AddressLease>,
    /// Every Lease was seen once: before, that there is none says nothing.
    pub listed: bool,
}

impl Leases {
    pub fn current(&self) -> Known {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts changes that services have something to say about; heartbeats are none.
    pub async fn follow(self, mut news: mpsc::Receiver<LeaseNews>, changes: watch::Sender<u64>) {
        while let Some(news) = news.recv().await {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let leases = &mut known.by_address;
            let changed = match news {
                LeaseNews::Address(lease) => {
                    let told = |lease: &AddressLease| (lease.holder.clone(), lease.obstacle.clone());
                    let before = leases.get(&lease.addr).map(told);
                    let changed = before != Some(told(&lease));
                    leases.insert(lease.addr, lease);
                    changed
                }
                LeaseNews::AddressGone(addr) => leases.remove(&addr).is_some(),
                LeaseNews::Listed => !std::mem::replace(&mut known.listed, true),
                _ => false,
            };
            drop(known);
            if changed {
                changes.send_modify(|count| *count += 1);
            }
        }
    }
}

/// One condition for each service that has addresses to announce; none before there is anything to say.
pub fn sayings(
    announced: &BTreeMap<Addr, Announced>,
    leases: &BTreeMap<Addr, AddressLease>,
) -> BTreeMap<ServiceKey, Saying> {
    let mut said: BTreeMap<ServiceKey, Vec<Word>> = BTreeMap::new();
    for (addr, wanted) in announced {
        let Some(word) = word(*addr, wanted, leases.get(addr)) else { continue };
        for service in &wanted.services {
            said.entry(service.clone()).or_default().push(word.clone());
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
