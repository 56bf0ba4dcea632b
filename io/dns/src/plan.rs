//! The plan in force and its copy on disk. Where plans come from lives in `control`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use weft_plan::NamePlan;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Agent,
    Disk,
}

/// A plan, since when it is in force, and who it came from.
#[derive(Debug)]
pub struct Loaded {
    pub plan: NamePlan,
    pub source: Source,
    pub since: SystemTime,
    /// The zone's serial number: the time of the plan in seconds.
    pub serial: u32,
}

pub struct PlanHolder {
    /// The cluster's domain as configured: what must not be asked upstream while there is no plan.
    domain: String,
    file: PathBuf,
    current: RwLock<Option<Arc<Loaded>>>,
}

impl PlanHolder {
    pub fn new(domain: &str, file: PathBuf) -> Self {
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        Self { domain, file, current: RwLock::new(None) }
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub fn current(&self) -> Option<Arc<Loaded>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes up what an earlier process left. A file that cannot be read is the same as none, and said.
    pub fn load_from_disk(&self) {
        let read = fs::read(&self.file).and_then(|bytes| Ok(serde_json::from_slice::<NamePlan>(&bytes)?));
        match read {
            Ok(plan) => {
                tracing::info!(file = %self.file.display(), names = plan.names.len(), "names taken from disk");
                self.set(plan, Source::Disk);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(
                file = %self.file.display(), %error,
                "the plan kept on disk cannot be used; cluster names get SERVFAIL until the agent sends one"
            ),
        }
    }

    /// Puts a plan in force, then keeps it. A plan that cannot be kept is in force all the same.
    pub fn replace(&self, plan: NamePlan, bytes: &[u8]) {
        self.set(plan, Source::Agent);
        if let Err(error) = write_atomically(&self.file, bytes) {
            tracing::error!(
                file = %self.file.display(), %error,
                "the plan is in force and cannot be kept on disk; a restart would answer from the one before"
            );
        }
    }

    fn set(&self, plan: NamePlan, source: Source) {
        let since = SystemTime::now();
        let seconds = since.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        // RFC 1982: serial numbers wrap, so the low half is what counts.
        let loaded = Loaded { plan, source, since, serial: seconds as u32 };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(loaded));
    }
}

fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = fs::File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_survives_its_process_and_a_torn_file_is_no_plan() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("names.json");
        let holder = PlanHolder::new("Cluster.Local.", file.clone());
        holder.load_from_disk();
        assert!(holder.current().is_none());
        let plan = NamePlan { domain: "cluster.local".to_owned(), ..NamePlan::default() };
        let bytes = serde_json::to_vec(&plan).unwrap();
        holder.replace(plan.clone(), &bytes);
        let next = PlanHolder::new("cluster.local", file.clone());
        next.load_from_disk();
        let loaded = next.current().unwrap();
        assert_eq!((&loaded.plan, loaded.source), (&plan, Source::Disk));
        fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
        let torn = PlanHolder::new("cluster.local", file);
        torn.load_from_disk();
        assert!(torn.current().is_none());
    }
}
