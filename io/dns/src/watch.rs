//! What goes on beside questions: refreshing popular answers, probing servers that are down, looking for loops, and
//! taking up changed settings. Everything ends when the forwarder is dropped.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use hickory_proto::rr::{Name, RecordType};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::entry::{Key, WireKey};
use crate::forward::{Forwarder, LONGEST_ATTEMPT, health_question, now};
use crate::settings::Settings;
use crate::upstreams::{Health, LOOP, Upstream, probe_wait};

const SWEEP: Duration = Duration::from_secs(60);
/// How often servers that led back here are tried again.
const LOOP_CHECK: Duration = Duration::from_secs(30);
/// Of these checks, every one so many asks every server.
const FULL_CHECK: u64 = 10;
const FILE_CHECK: Duration = Duration::from_secs(1);

/// Asks again for what is popular before its time is over, and drops what is long past it.
pub async fn keep_fresh(forwarder: Weak<Forwarder>, mut wanted: mpsc::Receiver<WireKey>) {
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        let wire = tokio::select! {
            wire = wanted.recv() => wire,
            _ = sweep.tick() => None,
        };
        let Some(forwarder) = forwarder.upgrade() else { return };
        match wire {
            Some(wire) => forwarder.prefetch(wire),
            None => forwarder.cache.sweep(now()),
        }
    }
}

/// Probes a server that is down, less and less often, until it answers or is no longer there.
pub async fn until_it_answers(forwarder: Weak<Forwarder>, upstream: Weak<Upstream>, zone: Name) {
    for nth in 0.. {
        tokio::time::sleep(probe_wait(nth)).await;
        let (Some(forwarder), Some(upstream)) = (forwarder.upgrade(), upstream.upgrade()) else { return };
        if upstream.health() != Health::Down {
            return;
        }
        let started = now();
        let question = health_question(&zone);
        match timeout(LONGEST_ATTEMPT, forwarder.exchange.ask(&upstream, &question)).await {
            Ok(Ok(_)) => return upstream.succeeded(now() - started),
            Ok(Err(error)) => _ = upstream.failed(&error.to_string(), now()),
            Err(_) => _ = upstream.failed("no answer", now()),
        }
    }
}

/// Looks for servers whose questions come back here, at once and from time to time. For when this server listens.
pub async fn look_for_loops(forwarder: Weak<Forwarder>) {
    for round in 0u64.. {
        let Some(strong) = forwarder.upgrade() else { return };
        let mut checks = tokio::task::JoinSet::new();
        let table = strong.table();
        for zone in table.zones() {
            for upstream in &zone.group.upstreams {
                if round.is_multiple_of(FULL_CHECK) || upstream.health() == Health::Loop {
                    checks.spawn(check_loop(strong.clone(), upstream.clone(), zone.name.clone()));
                }
            }
        }
        drop((strong, table));
        while checks.join_next().await.is_some() {}
        tokio::time::sleep(LOOP_CHECK).await;
    }
}

async fn check_loop(forwarder: Arc<Forwarder>, upstream: Arc<Upstream>, zone: Name) {
    let Some(name) = forwarder.loops.start(&upstream, &zone) else { return };
    let kind = RecordType::HINFO;
    let question = Key { name: name.clone(), kind, dnssec_ok: false, checking_disabled: false };
    let answer = timeout(LONGEST_ATTEMPT, forwarder.exchange.ask(&upstream, &question)).await;
    if let Ok(Err(error)) = &answer {
        tracing::debug!(server = %upstream.server, %error, "a question that looks for loops was not answered");
    }
    let came_back = forwarder.loops.end(&name);
    let news = upstream.set_looping(came_back);
    match (came_back, news) {
        (true, _) => tracing::error!(server = %upstream.server, "not asked any more: {LOOP}"),
        (false, true) => tracing::info!(server = %upstream.server, "no longer leads back here: asked again"),
        (false, false) => {}
    }
}

/// The file with settings, and whether what is in it is in force.
#[derive(Debug, Default)]
pub struct SettingsFile {
    pub path: Option<PathBuf>,
    /// The last that could be used, for a start while the file cannot be.
    kept: Option<PathBuf>,
    /// What was in it when it was opened.
    opened: Option<Vec<u8>>,
    problem: Mutex<Option<String>>,
}

impl SettingsFile {
    /// Reads the settings to start with. Where the file cannot be used, these are the last that could.
    pub fn open(path: PathBuf, kept: PathBuf) -> (Self, Settings) {
        let opened = std::fs::read(&path).ok();
        let file = Self { path: Some(path), kept: Some(kept), opened, problem: Mutex::default() };
        let settings = match file.parse(file.opened.as_deref()) {
            Ok(settings) => settings,
            Err(problem) => {
                file.refused(problem);
                file.last_kept()
            }
        };
        (file, settings)
    }

    pub(crate) fn refused(&self, problem: String) {
        tracing::error!(problem, "the last settings of names that could be used are in force");
        self.set_problem(Some(problem));
    }

    pub(crate) fn last_kept(&self) -> Settings {
        let last = self.kept.as_ref().and_then(|kept| std::fs::read_to_string(kept).ok());
        last.and_then(|text| Settings::parse(&text).ok()).unwrap_or_default()
    }

    fn parse(&self, text: Option<&[u8]>) -> Result<Settings, String> {
        let path = self.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        let text = text.ok_or_else(|| format!("settings of names: {path} cannot be read"))?;
        let text =
            std::str::from_utf8(text).map_err(|_| format!("settings of names: {path} is not UTF-8"))?;
        Settings::parse(text).map_err(|error| error.to_string())
    }

    pub(crate) fn keep(&self, settings: &Settings) {
        let Some(kept) = &self.kept else { return };
        if let Err(error) = write_atomically(kept, &settings.to_yaml()) {
            tracing::warn!(file = %kept.display(), %error, "the settings of names cannot be kept for the next start");
        }
    }

    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_problem(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// In one step, so that nobody reads half of it.
fn write_atomically(path: &Path, text: &str) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}

/// Takes up changes of the settings' file and of the files named in the settings. What cannot be taken up is said and
/// leaves the settings before it in force.
pub async fn follow_files(forwarder: Weak<Forwarder>, file: Arc<SettingsFile>) {
    let mut seen = None;
    loop {
        let Some(strong) = forwarder.upgrade() else { return };
        let contents = contents(&strong.settings(), file.path.as_deref()).await;
        let own = contents.first().and_then(|(_, text)| text.as_deref());
        let changed = match &seen {
            Some(seen) => *seen != contents,
            None => file.path.is_some() && own != file.opened.as_deref(),
        };
        if changed {
            take_up(&strong, &file, own);
        }
        seen = Some(contents);
        drop(strong);
        tokio::time::sleep(FILE_CHECK).await;
    }
}

type Contents = Vec<(PathBuf, Option<Vec<u8>>)>;

/// The settings' own file first, where there is one.
async fn contents(settings: &Settings, own: Option<&Path>) -> Contents {
    let forward = settings.effective_forward();
    let resolv_conf = forward.iter().filter_map(|forward| forward.resolv_conf.as_deref());
    let servers = forward.iter().flat_map(|forward| &forward.servers);
    let authorities = servers.filter_map(|server| server.ca_file.as_deref());
    let paths: Vec<_> = own.into_iter().chain(resolv_conf).chain(authorities).map(Path::to_owned).collect();
    let mut all = Vec::new();
    for path in paths {
        let text = tokio::fs::read(&path).await.ok();
        all.push((path, text));
    }
    all
}

fn take_up(forwarder: &Forwarder, file: &SettingsFile, text: Option<&[u8]>) {
    let earlier = forwarder.settings();
    let settings = if file.path.is_some() { file.parse(text) } else { Ok((*earlier).clone()) };
    let done = settings.and_then(|settings| {
        forwarder.apply(settings.clone()).map_err(|error| error.to_string())?;
        Ok(settings)
    });
    match done {
        Ok(settings) => {
            tracing::info!("the settings of names have changed");
            let moved = settings.link_local_addresses != earlier.link_local_addresses;
            let later = "linkLocalAddresses are listened on from the name server's next start";
            file.set_problem(moved.then(|| later.to_owned()));
            file.keep(&settings);
        }
        Err(problem) => {
            tracing::error!(problem, "the settings of names before stay in force");
            file.set_problem(Some(problem));
        }
    }
}
