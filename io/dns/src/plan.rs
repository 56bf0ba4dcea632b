//! The plan in force, how messages of names change it, and its copy on disk. Where messages come from lives in `control`, how
//! names are held in `index`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use weft_decide::names::Names;
use weft_plan::{NameEvent, NameHead, NameMessageError, NameMessages, NameRow, NameVersion};

use crate::copy::{beside, check_rows, next, read_copy, read_rows, rows_of};
use crate::index::{ClientClass, Index, Kept};
use crate::places::{Changed, Dependency, Generation};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    Agent,
    Disk,
}

/// A plan, since when it is in force, and who it came from.
#[derive(Debug)]
pub struct Loaded {
    pub index: Index,
    pub version: NameVersion,
    pub origin: Origin,
    pub since: SystemTime,
    /// The zone's serial number: the time of its last change in seconds.
    pub serial: u32,
}

/// Rows of a whole plan put in force at a time: questions are answered in between.
const ROWS_AT_ONCE: usize = 256;
/// Changes kept behind a whole plan on disk; then a whole one is wanted anew.
const LONGEST_JOURNAL: u64 = 8 << 20;

/// The plan in force, if there is one.
pub struct State {
    pub loaded: Option<Loaded>,
    pub generation: Generation,
}

/// What the sender of a message should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    InForce,
    /// In force; the next message should hold a whole plan, to begin the copy on disk anew.
    WantsWhole,
}

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("not a plan of names: {0}")]
    Message(#[from] NameMessageError),
    #[error("not a plan of names: it ends before its end")]
    BrokenOff,
    #[error("the plan could not be received: {0}")]
    Receiving(io::Error),
    #[error("the changes are of another plan than the one in force; send a whole one")]
    OtherPlan,
    #[error("the plan cannot be put on disk: {0}; sent again, it is taken without")]
    Disk(io::Error),
}

pub struct PlanHolder {
    /// The cluster's domain as configured: what must not be asked upstream while there is no plan.
    domain: String,
    file: PathBuf,
    state: RwLock<State>,
    changed: Changed,
    /// One message at a time; holds the copy on disk, open for what follows.
    journal: Mutex<Option<Journal>>,
    /// The disk failed the last whole plan: the next goes without.
    disk_failed: AtomicBool,
    /// The copy on disk is another process's.
    frozen: AtomicBool,
}

struct Journal {
    out: BufWriter<File>,
    length: u64,
    unwritten: bool,
}

impl PlanHolder {
    pub fn new(domain: &str, file: PathBuf) -> Self {
        let domain = domain.trim_end_matches('.').to_ascii_lowercase();
        let state = RwLock::new(State { loaded: None, generation: Generation::default() });
        Self {
            domain,
            file,
            state,
            changed: Changed::new(),
            journal: Mutex::new(None),
            disk_failed: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
        }
    }

    pub fn domain(&self) -> &str {
        &self.domain
    }

    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_journal(&self) -> MutexGuard<'_, Option<Journal>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn class(&self, client: IpAddr) -> ClientClass {
        let state = self.read();
        state.loaded.as_ref().map_or(ClientClass::default(), |loaded| loaded.index.class(client.into()))
    }

    /// Whether nothing has changed of what an answer is made of.
    pub fn holds(&self, dependency: Dependency) -> bool {
        self.changed.holds(dependency)
    }

    /// Takes up what an earlier process left. A file without a whole plan is the same as none, and said; of changes behind it,
    /// those that came whole count.
    pub fn load_from_disk(&self) {
        let loaded = File::open(&self.file).and_then(|file| read_copy(BufReader::new(file)));
        match loaded {
            Ok(loaded) => {
                let (names, _) = loaded.index.counts();
                tracing::info!(file = %self.file.display(), names, "names taken from disk");
                self.replace(loaded);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(
                file = %self.file.display(), %error,
                "the plan kept on disk cannot be used; cluster names get SERVFAIL until the agent sends one"
            ),
        }
    }

    /// Puts one message in force. A refused one leaves what is in force as it is.
    pub fn receive(&self, mut message: impl BufRead) -> Result<Accepted, Refused> {
        let mut journal = self.lock_journal();
        let mut messages = NameMessages::default();
        let mut line = Vec::new();
        let head = match next(&mut message, &mut messages, &mut line)? {
            NameEvent::Head(head) => head,
            NameEvent::Row(_) | NameEvent::End => return Err(Refused::BrokenOff),
        };
        match head.from {
            Some(from) => {
                let current = self.read().loaded.as_ref().map(|loaded| loaded.version);
                if current != Some(from) {
                    return Err(Refused::OtherPlan);
                }
                let mut kept = line.clone();
                let rows = read_rows(&mut message, &mut messages, |line| kept.extend_from_slice(line))?;
                self.change(&head, rows);
                Ok(self.keep_change(&mut journal, &kept))
            }
            None => self.receive_whole(&mut journal, head, &line, &mut message, &mut messages),
        }
    }

    fn receive_whole(
        &self,
        journal: &mut Option<Journal>,
        head: NameHead,
        first: &[u8],
        message: &mut impl BufRead,
        messages: &mut NameMessages,
    ) -> Result<Accepted, Refused> {
        if self.frozen.load(Ordering::Relaxed) || self.disk_failed.swap(false, Ordering::Relaxed) {
            *journal = None;
            let rows = read_rows(message, messages, |_| {})?;
            self.replace_by(&head, rows.into_iter().map(Ok)).map_err(Refused::Disk)?;
            return Ok(Accepted::InForce);
        }
        let failed = |error| {
            tracing::error!(file = %self.file.display(), %error, "the plan cannot be kept on disk");
            self.disk_failed.store(true, Ordering::Relaxed);
            Refused::Disk(error)
        };
        let beside = beside(&self.file);
        let mut out = BufWriter::new(
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&beside)
                .map_err(failed)?,
        );
        out.write_all(first).map_err(failed)?;
        let mut written = Ok(());
        check_rows(message, messages, |line| {
            if written.is_ok() {
                written = out.write_all(line);
            }
        })?;
        written.and_then(|()| out.flush()).and_then(|()| fs::rename(&beside, &self.file)).map_err(failed)?;
        let mut file = File::open(&self.file).map_err(failed)?;
        self.replace_by(&head, rows_of(&mut file)).map_err(failed)?;
        let length = out.stream_position().map_err(failed)?;
        *journal = Some(Journal { out, length: 0, unwritten: length > 0 });
        Ok(Accepted::InForce)
    }

    /// Puts what was received on the disk itself; called now and then, away from the path of messages.
    pub fn sync(&self) {
        let file = {
            let mut journal = self.lock_journal();
            let Some(open) = journal.as_mut().filter(|journal| journal.unwritten) else { return };
            open.unwritten = false;
            match open.out.flush().and_then(|()| open.out.get_ref().try_clone()) {
                Ok(file) => file,
                Err(error) => {
                    tracing::error!(file = %self.file.display(), %error, "changes of names cannot be kept on disk");
                    *journal = None;
                    return;
                }
            }
        };
        if let Err(error) = file.sync_data() {
            tracing::error!(file = %self.file.display(), %error, "changes of names cannot be kept on disk");
            *self.lock_journal() = None;
        }
    }

    /// Puts everything on disk for a successor, and writes there no more: the file is the successor's.
    pub fn freeze(&self) {
        self.sync();
        *self.lock_journal() = None;
        self.frozen.store(true, Ordering::Relaxed);
    }

    /// There is no successor after all; the next message begins the copy on disk anew.
    pub fn thaw(&self) {
        self.frozen.store(false, Ordering::Relaxed);
    }

    fn keep_change(&self, journal: &mut Option<Journal>, bytes: &[u8]) -> Accepted {
        let Some(open) = journal else { return Accepted::WantsWhole };
        if let Err(error) = open.out.write_all(bytes) {
            tracing::error!(file = %self.file.display(), %error, "changes of names cannot be kept on disk");
            *journal = None;
            return Accepted::WantsWhole;
        }
        open.unwritten = true;
        open.length += bytes.len() as u64;
        if open.length > LONGEST_JOURNAL { Accepted::WantsWhole } else { Accepted::InForce }
    }

    fn change(&self, head: &NameHead, rows: Vec<NameRow>) {
        let mut state = self.write();
        let State { loaded, generation } = &mut *state;
        let Some(loaded) = loaded else { return };
        *generation = put(&mut loaded.index, rows, &self.changed);
        loaded.touch(head.to);
    }

    /// A whole plan in place of the one in force: at once where nothing is in force yet or its zones are others, else entry by
    /// entry, so that there are never two in memory.
    fn replace_by(&self, head: &NameHead, rows: impl Iterator<Item = io::Result<NameRow>>) -> io::Result<()> {
        let same_zones = self.read().loaded.as_ref().is_some_and(|loaded| loaded.index.has_zones(head));
        if !same_zones {
            let mut index = Index::new(head);
            for row in rows {
                index.put(row?);
            }
            self.replace(Loaded::new(index, head.to, Origin::Agent));
            return Ok(());
        }
        let mut kept = Kept::default();
        let mut some = Vec::with_capacity(ROWS_AT_ONCE);
        for row in rows {
            let row = row?;
            kept.add(&row);
            some.push(row);
            if some.len() == ROWS_AT_ONCE {
                self.put_some(std::mem::take(&mut some));
            }
        }
        self.put_some(some);
        let mut state = self.write();
        let State { loaded, generation } = &mut *state;
        if let Some(loaded) = loaded {
            let mut gone = Vec::new();
            loaded.index.retain(&kept, |row| gone.push(row.clone()));
            let domain = loaded.index.domain().to_owned();
            *generation = self.changed.mark(gone.iter(), &domain);
            loaded.touch(head.to);
            loaded.origin = Origin::Agent;
        }
        Ok(())
    }

    fn put_some(&self, rows: Vec<NameRow>) {
        let mut state = self.write();
        let State { loaded, generation } = &mut *state;
        if let Some(loaded) = loaded {
            *generation = put(&mut loaded.index, rows, &self.changed);
        }
    }

    fn replace(&self, loaded: Loaded) {
        let mut state = self.write();
        state.loaded = Some(loaded);
        state.generation = self.changed.all();
    }
}

impl Loaded {
    pub fn new(index: Index, version: NameVersion, origin: Origin) -> Self {
        let since = SystemTime::now();
        Self { index, version, origin, since, serial: serial(since) }
    }

    pub fn touch(&mut self, version: NameVersion) {
        self.version = version;
        self.since = SystemTime::now();
        self.serial = serial(self.since);
    }
}

fn put(index: &mut Index, rows: Vec<NameRow>, changed: &Changed) -> Generation {
    let domain = index.domain().to_owned();
    let rows: Vec<NameRow> = rows.into_iter().filter(|row| index.put(row.clone())).collect();
    changed.mark(rows.iter(), &domain)
}

impl State {
    /// What an answer about `name` (lower case, no trailing dot) is made of, unless it leads on to other names.
    pub fn dependency(&self, name: &str) -> Dependency {
        let domain = self.loaded.as_ref().map_or("", |loaded| loaded.index.domain());
        Dependency::of(name, domain, self.generation)
    }

    pub fn everything(&self) -> Dependency {
        Dependency::everything(self.generation)
    }
}

/// RFC 1982: serial numbers wrap, so the low half of the seconds is what counts.
fn serial(time: SystemTime) -> u32 {
    time.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()) as u32
}

#[cfg(test)]
pub(crate) mod tests {
    use weft_plan::{NamePlan, write_names};

    use super::*;

    pub fn version(sequence: u64) -> NameVersion {
        NameVersion { maker: 7, sequence }
    }

    pub fn whole(plan: &NamePlan, sequence: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_names(&mut bytes, plan.head(None, version(sequence)), plan.rows()).unwrap();
        bytes
    }

    pub fn change(before: &NamePlan, after: &NamePlan, sequence: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let head = after.head(Some(version(sequence - 1)), version(sequence));
        write_names(&mut bytes, head, after.rows_since(before).unwrap()).unwrap();
        bytes
    }

    fn plan(names: &[&str]) -> NamePlan {
        let mut plan = NamePlan { domain: "cluster.local".to_owned(), ..NamePlan::default() };
        for name in names {
            plan.names.get_or_default(format!("{name}.cluster.local"));
        }
        plan
    }

    fn names(holder: &PlanHolder) -> Option<Vec<&'static str>> {
        let state = holder.read();
        let index = &state.loaded.as_ref()?.index;
        let all = ["a.one.svc", "b.one.svc", "c.two.svc"];
        Some(all.into_iter().filter(|name| index.exists(&format!("{name}.cluster.local"))).collect())
    }

    #[test]
    fn a_plan_survives_its_process_and_a_torn_file_is_no_plan() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("names");
        let holder = PlanHolder::new("Cluster.Local.", file.clone());
        holder.load_from_disk();
        assert!(holder.read().loaded.is_none());
        let (first, second) = (plan(&["a.one.svc"]), plan(&["a.one.svc", "b.one.svc"]));
        let third = plan(&["b.one.svc", "c.two.svc"]);
        holder.receive(&whole(&first, 1)[..]).unwrap();
        holder.receive(&change(&first, &second, 2)[..]).unwrap();
        holder.receive(&change(&second, &third, 3)[..]).unwrap();
        holder.sync();
        let bytes = fs::read(&file).unwrap();
        let after = |length: usize| {
            fs::write(&file, &bytes[..length]).unwrap();
            let next = PlanHolder::new("cluster.local", file.clone());
            next.load_from_disk();
            let origin = next.read().loaded.as_ref().map(|loaded| loaded.origin);
            assert_ne!(origin, Some(Origin::Agent));
            names(&next)
        };
        let first_ends = whole(&first, 1).len();
        let mut seen: Vec<Option<Vec<&str>>> = (0..=bytes.len()).map(after).collect();
        assert!(seen[..first_ends - 1].iter().all(Option::is_none), "a torn plan is none");
        seen.dedup();
        assert_eq!(
            seen,
            [
                None,
                Some(vec!["a.one.svc"]),
                Some(vec!["a.one.svc", "b.one.svc"]),
                Some(vec!["b.one.svc", "c.two.svc"])
            ]
        );
    }

    #[test]
    fn what_is_refused_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let holder = PlanHolder::new("cluster.local", dir.path().join("names"));
        let (first, second) = (plan(&["a.one.svc"]), plan(&["b.one.svc"]));
        assert!(matches!(holder.receive(&change(&first, &second, 2)[..]), Err(Refused::OtherPlan)));
        holder.receive(&whole(&first, 1)[..]).unwrap();
        let generation = holder.read().generation;
        assert!(matches!(holder.receive(&change(&first, &second, 3)[..]), Err(Refused::OtherPlan)));
        for good in [whole(&second, 2), change(&first, &second, 2)] {
            for length in 0..good.len() - 1 {
                assert!(holder.receive(&good[..length]).is_err());
            }
        }
        assert_eq!((names(&holder), holder.read().generation), (Some(vec!["a.one.svc"]), generation));
    }

    #[test]
    fn answers_hold_until_what_they_are_made_of_changes() {
        let dir = tempfile::tempdir().unwrap();
        let holder = PlanHolder::new("cluster.local", dir.path().join("names"));
        let first = plan(&["a.one.svc"]);
        holder.receive(&whole(&first, 1)[..]).unwrap();
        let depend = |name: &str| holder.read().dependency(name);
        let made = ["x.one.svc.cluster.local", "y.two.svc.cluster.local", "example.org", "cluster.local"]
            .map(depend);
        let holds = || made.map(|dependency| holder.holds(dependency));
        assert_eq!(holds(), [true; 4]);
        let second = plan(&["a.one.svc", "b.one.svc"]);
        holder.receive(&change(&first, &second, 2)[..]).unwrap();
        assert_eq!(holds(), [false, true, true, false]);
        // The same plan as a whole changes nothing more.
        let made = ["x.one.svc.cluster.local", "y.two.svc.cluster.local", "cluster.local"].map(depend);
        holder.receive(&whole(&second, 1)[..]).unwrap();
        assert_eq!(made.map(|dependency| holder.holds(dependency)), [true; 3]);
        holder.receive(&whole(&plan(&["a.one.svc", "c.two.svc"]), 2)[..]).unwrap();
        assert_eq!(made.map(|dependency| holder.holds(dependency)), [false; 3]);
        assert_eq!(names(&holder), Some(vec!["a.one.svc", "c.two.svc"]));
    }

    #[test]
    fn a_plan_that_cannot_be_kept_is_in_force_the_second_time() {
        let dir = tempfile::tempdir().unwrap();
        let holder = PlanHolder::new("cluster.local", dir.path().join("nowhere").join("names"));
        let first = plan(&["a.one.svc"]);
        assert!(matches!(holder.receive(&whole(&first, 1)[..]), Err(Refused::Disk(_))));
        holder.receive(&whole(&first, 1)[..]).unwrap();
        assert_eq!(names(&holder), Some(vec!["a.one.svc"]));
        let second = plan(&["b.one.svc"]);
        assert_eq!(holder.receive(&change(&first, &second, 2)[..]).unwrap(), Accepted::WantsWhole);
        assert_eq!(names(&holder), Some(vec!["b.one.svc"]));
    }
}
