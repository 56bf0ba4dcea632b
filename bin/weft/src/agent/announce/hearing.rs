//! A thread that listens on the link for machines that say they have an address.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use weft_datapath::{Heard, Neighbours};
use weft_model::Addr;

const PATIENCE: Duration = Duration::from_secs(1);

/// Only what is said about `watched` addresses comes through.
pub fn start(
    neighbours: Arc<Neighbours>,
    watched: Arc<Mutex<BTreeSet<Addr>>>,
) -> Result<mpsc::Receiver<Heard>> {
    let (send, receive) = mpsc::channel(256);
    std::thread::Builder::new()
        .name("neighbours".to_owned())
        .spawn(move || {
            while !send.is_closed() {
                match neighbours.poll(PATIENCE) {
                    Ok(heard) => forward(heard, &watched, &send),
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

fn forward(heard: Vec<Heard>, watched: &Mutex<BTreeSet<Addr>>, send: &mpsc::Sender<Heard>) {
    if heard.is_empty() {
        return;
    }
    let watched = watched.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for said in heard.into_iter().filter(|said| watched.contains(&said.addr)) {
        // A flood is cut: what it says more is the same.
        send.try_send(said).ok();
    }
}
