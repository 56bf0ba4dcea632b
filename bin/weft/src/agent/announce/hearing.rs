//! A thread that listens on the link for machines that say they have an address.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use weft_datapath::{Heard, Neighbours};
use weft_model::Addr;

const PATIENCE: Duration = Duration::from_secs(1);

/// What of all that is said on the link is of interest.
#[derive(Default)]
pub struct Interest {
    /// Only what is said about these comes through.
    pub watched: Mutex<BTreeSet<Addr>>,
    /// Whether anybody said anything since this was looked at last.
    pub anybody: AtomicBool,
}

pub fn start(neighbours: Arc<Neighbours>, interest: Arc<Interest>) -> Result<mpsc::Receiver<Heard>> {
    let (send, receive) = mpsc::channel(256);
    std::thread::Builder::new()
        .name("neighbours".to_owned())
        .spawn(move || {
            while !send.is_closed() {
                match neighbours.poll(PATIENCE) {
                    Ok(heard) => forward(heard, &interest, &send),
                    Err(error) => {
                        tracing::error!("{error}");
                        std::thread::sleep(PATIENCE);
                    }
                }
            }
        })
        .context("cannot start the thread that listens to neighbours")?;
    Ok(receive)
}

fn forward(heard: Vec<Heard>, interest: &Interest, send: &mpsc::Sender<Heard>) {
    if heard.is_empty() {
        return;
    }
    interest.anybody.store(true, Ordering::Relaxed);
    let watched = interest.watched.lock().unwrap_or_else(PoisonError::into_inner);
    for said in heard.into_iter().filter(|said| watched.contains(&said.addr)) {
        // A flood is cut: what it says more is the same.
        send.try_send(said).ok();
    }
}
