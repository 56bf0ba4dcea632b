//! The plan in force and its copy on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use weft_model::Port;
use weft_plan::HealthCheck;

/// The part of a node's plan that needs listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyPlan {
    /// By healthCheckNodePort.
    #[serde(default)]
    pub health_checks: BTreeMap<Port, HealthCheck>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Agent,
    Disk,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Loaded {
    pub plan: ProxyPlan,
    pub source: Source,
}

pub(crate) struct PlanStore {
    file: PathBuf,
    current: watch::Sender<Option<Arc<Loaded>>>,
}

impl PlanStore {
    /// Takes up what an earlier process left. A file that cannot be read is the same as none, and said.
    pub fn open(file: PathBuf) -> Self {
        let read = fs::read(&file).and_then(|bytes| Ok(serde_json::from_slice::<ProxyPlan>(&bytes)?));
        let found = match read {
            Ok(plan) => Some(Arc::new(Loaded { plan, source: Source::Disk })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "the last plan cannot be read; waiting for the agent's");
                None
            }
        };
        Self { file, current: watch::Sender::new(found) }
    }

    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Loaded>>> {
        self.current.subscribe()
    }

    pub fn current(&self) -> Option<Arc<Loaded>> {
        self.current.borrow().clone()
    }

    /// The plan is in force even if it cannot be kept.
    pub fn replace(&self, plan: ProxyPlan) {
        if let Err(error) = save(&self.file, &plan) {
            tracing::warn!(file = %self.file.display(), %error, "the plan cannot be kept for a restart");
        }
        self.current.send_replace(Some(Arc::new(Loaded { plan, source: Source::Agent })));
    }
}

/// Whole or not at all.
fn save(file: &Path, plan: &ProxyPlan) -> io::Result<()> {
    let next = file.with_extension("next");
    let mut written = fs::File::create(&next)?;
    written.write_all(&serde_json::to_vec(plan)?)?;
    written.sync_all()?;
    fs::rename(next, file)
}
