//! This node's part in each address, in words: for `weft status`, and for Leases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use weft_decide::announce::{Announcer, Claim, LinkAddr, Obstacle, Phase};
use weft_model::{Addr, NodeName};

/// An address and this node's part in it, for `weft status`.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct AddressStatus {
    pub address: String,
    /// `holding`, `waiting`, `probing`, ...
    pub state: String,
    pub holder: Option<String>,
    pub obstacle: Option<String>,
}

#[derive(Default)]
pub struct Announcing {
    status: Mutex<BTreeMap<Addr, AddressStatus>>,
}

impl Announcing {
    pub fn status(&self) -> Vec<AddressStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub fn tell(&self, announcer: &Announcer, touched: &BTreeSet<Addr>) {
        if touched.is_empty() {
            return;
        }
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        for addr in touched {
            match announcer.phase(*addr) {
                Some((phase, claim)) => status.insert(*addr, row(*addr, phase, claim)),
                None => status.remove(addr),
            };
        }
    }
}

fn row(addr: Addr, phase: &Phase, claim: Option<&Claim>) -> AddressStatus {
    AddressStatus {
        address: addr.to_string(),
        state: state(phase).to_owned(),
        holder: claim.and_then(|claim| claim.holder.as_ref()).map(NodeName::to_string),
        obstacle: match phase {
            Phase::Blocked { obstacle, .. } => Some(word(obstacle)),
            _ => claim.and_then(|claim| claim.obstacle.as_ref()).map(word),
        },
    }
}

fn state(phase: &Phase) -> &'static str {
    match phase {
        Phase::Idle => "idle",
        Phase::Waiting { .. } => "waiting",
        Phase::Probing { .. } => "probing",
        Phase::Claiming => "claiming",
        Phase::Retaking | Phase::Holding { .. } => "holding",
        Phase::Aside => "cut-off",
        Phase::Returning { .. } => "returning",
        Phase::Blocked { .. } => "blocked",
    }
}

/// As Leases have it; read back by `obstacle`.
pub fn word(obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::InUse(mac) => format!("in-use {mac}"),
        Obstacle::HolderAnswers(mac) => format!("holder-answers {mac}"),
        Obstacle::Contested(mac) => format!("contested {mac}"),
    }
}

pub fn obstacle(text: &str) -> Option<Obstacle> {
    let (word, mac) = text.split_once(' ')?;
    let bytes: Vec<u8> = mac.split(':').filter_map(|hex| u8::from_str_radix(hex, 16).ok()).collect();
    let mac = LinkAddr(bytes.try_into().ok()?);
    match word {
        "in-use" => Some(Obstacle::InUse(mac)),
        "holder-answers" => Some(Obstacle::HolderAnswers(mac)),
        "contested" => Some(Obstacle::Contested(mac)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn obstacles_are_read_as_they_are_written() {
        let mac = LinkAddr([2, 0, 0, 0xab, 0, 0xff]);
        for given in [Obstacle::InUse(mac), Obstacle::HolderAnswers(mac), Obstacle::Contested(mac)] {
            assert_eq!(obstacle(&word(&given)), Some(given));
        }
        assert_eq!(obstacle("in-use 02:00"), None);
    }
}
