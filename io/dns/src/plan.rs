//! The plan in force and its copy on disk. Where plans come from lives in `control`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use weft_plan::NamePlan;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    Agent,
    Disk,
}

/// A plan, since when it is in force, and who it came from.
#[derive(Debug)]
pub struct Loaded {
    pub plan: NamePlan,
    pub origin: Origin,
    pub since: SystemTime,
    /// The zone's serial number: the time of the plan in seconds.
    pub serial: u32,
}

/// Counts plans and changes of plans. What was made under one may be given out while nothing it is made of has changed since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

/// What of the plan an answer is made of: one namespace's names, or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dependency {
    place: Option<u16>,
    generation: Generation,
}

impl Dependency {
    pub fn everything(generation: Generation) -> Self {
        Self { place: None, generation }
    }
}

/// Namespaces share places when there are more: an answer is then made anew once too often.
const PLACES: usize = 4096;

/// When the names of each place changed last.
struct Changed {
    last: AtomicU64,
    places: Box<[AtomicU64]>,
}

/// The plan in force, if there is one.
pub struct State {
    pub loaded: Option<Loaded>,
    pub generation: Generation,
}

pub struct PlanHolder {
    /// The cluster's domain as configured: what must not be asked upstream while there is no plan.
    domain: String,
    file: PathBuf,
    state: RwLock<State>,
    changed: Changed,
}

impl PlanHolder {
    pub fn new(domain: &str, file: PathBuf) -> Self {
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        let state = RwLock::new(State { loaded: None, generation: Generation(0) });
        Self { domain, file, state, changed: Changed::new() }
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing has changed of what an answer is made of.
    pub fn holds(&self, dependency: Dependency) -> bool {
        let place = match dependency.place {
            Some(place) => &self.changed.places[usize::from(place)],
            None => &self.changed.last,
        };
        dependency.generation.0 >= place.load(Ordering::Acquire)
    }

    /// Takes up what an earlier process left. A file that cannot be read is the same as none, and said.
    pub fn load_from_disk(&self) {
        let read = fs::read(&self.file).and_then(|bytes| Ok(serde_json::from_slice::<NamePlan>(&bytes)?));
        match read {
            Ok(plan) => {
                tracing::info!(file = %self.file.display(), names = plan.names.len(), "names taken from disk");
                self.set(plan, Origin::Disk);
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
        self.set(plan, Origin::Agent);
        if let Err(error) = write_atomically(&self.file, bytes) {
            tracing::error!(
                file = %self.file.display(), %error,
                "the plan is in force and cannot be kept on disk; a restart would answer from the one before"
            );
        }
    }

    fn set(&self, plan: NamePlan, origin: Origin) {
        let since = SystemTime::now();
        let loaded = Loaded { plan, origin, since, serial: serial(since) };
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.loaded = Some(loaded);
        state.generation = self.changed.all();
    }
}

impl State {
    /// What an answer about `name` (lower case, no trailing dot) is made of, unless it is an alias.
    pub fn dependency(&self, name: &str) -> Dependency {
        let generation = self.generation;
        let domain = self.loaded.as_ref().map_or("", |loaded| &loaded.plan.domain);
        let place = match place(name, domain) {
            Place::Everything => None,
            Place::Outside => Some(0),
            Place::One(place) => Some(place),
        };
        Dependency { place, generation }
    }
}

enum Place {
    Everything,
    /// Somebody else's name: what the cluster has matters only as far as its domain goes.
    Outside,
    One(u16),
}

fn place(name: &str, domain: &str) -> Place {
    let relative = match name.strip_suffix(domain) {
        Some("") => return Place::Everything,
        Some(relative) => relative.strip_suffix('.'),
        None => None,
    };
    let Some(relative) = relative else {
        return if name.ends_with(".arpa") { Place::One(hashed(name)) } else { Place::Outside };
    };
    let mut labels = relative.rsplit('.');
    match (labels.next(), labels.next()) {
        (Some("svc" | "pod"), Some(namespace)) => Place::One(hashed(namespace)),
        _ => Place::Everything,
    }
}

/// FNV-1a; the first place is for names that are not the cluster's.
fn hashed(text: &str) -> u16 {
    let mut hash = 0x811c_9dc5_u32;
    for byte in text.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    1 + (hash % (PLACES as u32 - 1)) as u16
}

impl Changed {
    fn new() -> Self {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        Self { last: AtomicU64::new(0), places }
    }

    /// Nothing that was made before holds any longer.
    fn all(&self) -> Generation {
        let next = self.last.load(Ordering::Relaxed) + 1;
        for place in &self.places {
            place.store(next, Ordering::Release);
        }
        self.last.store(next, Ordering::Release);
        Generation(next)
    }
}

/// RFC 1982: serial numbers wrap, so the low half of the seconds is what counts.
fn serial(time: SystemTime) -> u32 {
    time.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()) as u32
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
        assert!(holder.read().loaded.is_none());
        let plan = NamePlan { domain: "cluster.local".to_owned(), ..NamePlan::default() };
        let bytes = serde_json::to_vec(&plan).unwrap();
        holder.replace(plan.clone(), &bytes);
        let next = PlanHolder::new("cluster.local", file.clone());
        next.load_from_disk();
        let loaded = &next.read().loaded;
        assert_eq!(loaded.as_ref().map(|loaded| (&loaded.plan, loaded.origin)), Some((&plan, Origin::Disk)));
        fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
        let torn = PlanHolder::new("cluster.local", file);
        torn.load_from_disk();
        assert!(torn.read().loaded.is_none());
    }
}
