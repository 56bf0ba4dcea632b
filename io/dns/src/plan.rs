//! The plan in force, how messages of names change it, and its copy on disk. Where messages come from lives in `control`, how
//! names are held in `index`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use weft_decide::names::Names;
use weft_plan::{NameEvent, NameHead, NameMessageError, NameMessages, NameRow, NameVersion};

use crate::index::{ClientClass, Index, Kept};

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

/// Counts changes of the plan. What was made under one may be given out while nothing it is made of has changed since.
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
/// Of names that are not the cluster's, and of names of addresses.
const OUTSIDE: u16 = 0;
const POINTERS: u16 = 1;
const FIRST_NAMESPACE: u16 = 2;
/// Rows of a whole plan put in force at a time: questions are answered in between.
const ROWS_AT_ONCE: usize = 256;
/// Changes kept behind a whole plan on disk; then a whole one is wanted anew.
const LONGEST_JOURNAL: u64 = 8 << 20;

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
        let state = RwLock::new(State { loaded: None, generation: Generation(0) });
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
        let place = match dependency.place {
            Some(place) => &self.changed.places[usize::from(place)],
            None => &self.changed.last,
        };
        dependency.generation.0 >= place.load(Ordering::Acquire)
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
    fn new(index: Index, version: NameVersion, origin: Origin) -> Self {
        let since = SystemTime::now();
        Self { index, version, origin, since, serial: serial(since) }
    }

    fn touch(&mut self, version: NameVersion) {
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

/// The whole plan at the start of a copy on disk, and the changes behind it that are whole too.
fn read_copy(mut copy: impl BufRead) -> io::Result<Loaded> {
    let mut messages = NameMessages::default();
    let mut line = Vec::new();
    let invalid = |error: Refused| io::Error::new(io::ErrorKind::InvalidData, error);
    let NameEvent::Head(head) = next(&mut copy, &mut messages, &mut line).map_err(invalid)? else {
        return Err(invalid(Refused::BrokenOff));
    };
    if head.from.is_some() {
        return Err(invalid(Refused::OtherPlan));
    }
    let mut index = Index::new(&head);
    loop {
        match next(&mut copy, &mut messages, &mut line).map_err(invalid)? {
            NameEvent::Row(row) => _ = index.put(row),
            NameEvent::End => break,
            NameEvent::Head(_) => {}
        }
    }
    let mut loaded = Loaded::new(index, head.to, Origin::Disk);
    while let Ok(NameEvent::Head(head)) = next(&mut copy, &mut messages, &mut line) {
        let Ok(rows) = read_rows(&mut copy, &mut messages, |_| {}) else { break };
        if head.from != Some(loaded.version) {
            break;
        }
        rows.into_iter().for_each(|row| _ = loaded.index.put(row));
        loaded.touch(head.to);
    }
    Ok(loaded)
}

/// The rows of the whole plan in a file that was checked.
fn rows_of(file: &mut File) -> impl Iterator<Item = io::Result<NameRow>> {
    let mut messages = NameMessages::default();
    let mut copy = BufReader::new(file);
    let mut line = Vec::new();
    std::iter::from_fn(move || {
        loop {
            match next(&mut copy, &mut messages, &mut line) {
                Ok(NameEvent::Row(row)) => return Some(Ok(row)),
                Ok(NameEvent::Head(_)) => {}
                Ok(NameEvent::End) => return None,
                Err(error) => return Some(Err(io::Error::new(io::ErrorKind::InvalidData, error))),
            }
        }
    })
}

fn next(
    message: &mut impl BufRead,
    messages: &mut NameMessages,
    line: &mut Vec<u8>,
) -> Result<NameEvent, Refused> {
    line.clear();
    match message.read_until(b'\n', line) {
        Ok(0) => Err(Refused::BrokenOff),
        Ok(_) => Ok(messages.read(line)?),
        Err(error) => Err(Refused::Receiving(error)),
    }
}

/// The rows up to the end; `seen` gets each line.
fn read_rows(
    message: &mut impl BufRead,
    messages: &mut NameMessages,
    seen: impl FnMut(&[u8]),
) -> Result<Vec<NameRow>, Refused> {
    let mut rows = Vec::new();
    each_row(message, messages, seen, |row| rows.push(row))?;
    Ok(rows)
}

fn check_rows(
    message: &mut impl BufRead,
    messages: &mut NameMessages,
    seen: impl FnMut(&[u8]),
) -> Result<(), Refused> {
    each_row(message, messages, seen, drop)
}

fn each_row(
    message: &mut impl BufRead,
    messages: &mut NameMessages,
    mut seen: impl FnMut(&[u8]),
    mut take: impl FnMut(NameRow),
) -> Result<(), Refused> {
    let mut line = Vec::new();
    loop {
        let event = next(message, messages, &mut line)?;
        seen(&line);
        match event {
            NameEvent::Row(row) => take(row),
            NameEvent::End => return Ok(()),
            NameEvent::Head(_) => {}
        }
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    beside.into()
}

impl State {
    /// What an answer about `name` (lower case, no trailing dot) is made of, unless it leads on to other names.
    pub fn dependency(&self, name: &str) -> Dependency {
        let domain = self.loaded.as_ref().map_or("", |loaded| loaded.index.domain());
        Dependency { place: place(name, domain), generation: self.generation }
    }

    pub fn everything(&self) -> Dependency {
        Dependency::everything(self.generation)
    }
}

/// `None`: names that others depend on.
fn place(name: &str, domain: &str) -> Option<u16> {
    let relative = match name.strip_suffix(domain) {
        Some("") => return None,
        Some(relative) => relative.strip_suffix('.'),
        None => None,
    };
    let Some(relative) = relative else {
        return Some(if name.ends_with(".arpa") { POINTERS } else { OUTSIDE });
    };
    let mut labels = relative.rsplit('.');
    match (labels.next(), labels.next()) {
        (Some("svc" | "pod"), Some(namespace)) => Some(hashed(namespace)),
        _ => None,
    }
}

/// FNV-1a.
fn hashed(text: &str) -> u16 {
    let mut hash = 0x811c_9dc5_u32;
    for byte in text.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    FIRST_NAMESPACE + (hash % (PLACES as u32 - u32::from(FIRST_NAMESPACE))) as u16
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

    /// Nothing that was made of these rows before holds any longer.
    fn mark<'a>(&self, rows: impl Iterator<Item = &'a NameRow>, domain: &str) -> Generation {
        let last = self.last.load(Ordering::Relaxed);
        let mut any = false;
        for row in rows {
            let place = match row {
                NameRow::Name(name, _) | NameRow::Absent(name, _) => place(name, domain),
                NameRow::Pointer(..) => Some(POINTERS),
                // Ready answers that depend on the client are found by what it searches.
                NameRow::Client(..) => continue,
            };
            any = true;
            match place {
                Some(place) if place != OUTSIDE => {
                    self.places[usize::from(place)].store(last + 1, Ordering::Release);
                }
                _ => return self.all(),
            }
        }
        if any {
            self.last.store(last + 1, Ordering::Release);
        }
        Generation(self.last.load(Ordering::Relaxed))
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
