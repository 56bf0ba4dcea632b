//! The node's user-space data plane beside its name server: what services need a listener for. It works from the last
//! plan it was given, so that it outlives the agent. Names are answered in io/dns.

mod control;
mod health;
mod plan;

use std::path::PathBuf;
use std::sync::Arc;

pub use plan::{ProxyPlan, Source};

use health::Listeners;
use plan::PlanStore;

#[derive(Clone, Debug)]
pub struct Config {
    /// The network namespace to listen in; `None` is the one it was started in.
    pub netns: Option<PathBuf>,
    /// The last good plan, kept over restarts.
    pub plan_file: PathBuf,
    /// Where the agent puts plans.
    pub socket: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on control socket {}: {source}", path.display())]
    Control { path: PathBuf, source: std::io::Error },
}

/// Serves until it is dropped.
pub async fn run(config: Config) -> Result<(), Error> {
    let plans = Arc::new(PlanStore::open(config.plan_file));
    let listener = control::listen(&config.socket)?;
    let mut changes = plans.subscribe();
    let mut listeners = Listeners::new(config.netns);
    let follow = async {
        loop {
            let loaded = changes.borrow_and_update().clone();
            let wanted = loaded.map(|loaded| loaded.plan.health_checks.clone()).unwrap_or_default();
            let pause = listeners.follow(wanted).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    };
    tokio::select! {
        () = control::serve(listener, plans.clone()) => {}
        () = follow => {}
    }
    Ok(())
}
