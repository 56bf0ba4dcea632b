//! A fabric's life: weave it, keep it running, list it, take it down without a trace.
//! Not here: what its processes do.

pub mod bootstrap;
mod cgroup;
pub mod config;
mod credentials;
mod error;
mod mounts;
mod netns;
mod network;
pub mod paths;
pub mod preflight;
mod process;
pub mod spec;
mod supervise;
mod tables;
mod teardown;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub use error::{Error, Reasons};
pub use process::{Program, enter};
pub use spec::{Cidrs, Families, NodeMask, OutsideMachine, Routing, Spec};
pub use tables::{TableSizeError, TableSizes};

use config::Inputs;
use paths::{Paths, UNDERLAY};
use preflight::{Machine, choose_port};
use process::Identity;
use spec::NodeAddresses;
use supervise::Supervisor;

const API_PATIENCE: Duration = Duration::from_secs(30);
const NODES_PATIENCE: Duration = Duration::from_secs(60);
const TAIL_LINES: usize = 12;

/// What happens while a fabric starts and runs, for whoever shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A step began.
    Step(String),
    /// The last step ended.
    Done { took: Duration },
    /// Nodes that are ready, of all.
    Nodes { ready: usize, of: usize },
    /// A process died and is started again.
    Restarting { process: String, why: String },
    /// Something is wrong that does not stop the fabric.
    Warning(String),
}

pub type Report = dyn Fn(Progress) + Send + Sync;

/// What is on disk about a fabric.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    pub spec: Spec,
    pub api_port: u16,
    pub created: jiff::Timestamp,
    /// The machines beside the nodes, for whoever wants to be a client on the local network.
    #[serde(default)]
    pub outside: Vec<OutsideMachine>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    /// It works, but nobody restarts what dies: its `weft up` was killed.
    Unsupervised,
    /// What a broken start or end left.
    Remains,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Unsupervised => "running without its supervisor",
            Self::Remains => "left behind half-made",
        }
    }
}

/// One row of `weft list`.
#[derive(Clone, Debug)]
pub struct Summary {
    pub name: String,
    pub state: State,
    pub record: Option<Record>,
    pub kubeconfig: PathBuf,
}

/// A woven fabric and its processes.
pub struct Fabric {
    record: Record,
    paths: Paths,
    nodes: Vec<NodeAddresses>,
    cgroup: PathBuf,
    exe: PathBuf,
    report: Arc<Report>,
    supervisor: Supervisor,
    signals: Signals,
}

/// Weaves a fabric and starts it. Whatever goes wrong on the way, nothing of it stays.
pub async fn up(spec: Spec, report: Arc<Report>) -> Result<Fabric, Error> {
    let mut fabric = Fabric::weave(spec, report).await?;
    match fabric.start().await {
        Ok(()) => Ok(fabric),
        Err(e) => {
            let report = fabric.report.clone();
            if let Err(left) = fabric.down().await {
                report(Progress::Warning(left.to_string()));
            }
            Err(e)
        }
    }
}

/// Takes down the fabric of this name, whoever started it and whatever state it is in.
pub fn down(name: &str, state_root: &Path, netns_root: &Path) -> Result<(), Error> {
    if let Some(problem) = spec::name_problem(name) {
        return Err(Error::Spec(Reasons(vec![problem])));
    }
    let paths = Paths::new(name, state_root, netns_root);
    teardown::stop_supervisor(&paths).map_err(failed(name, "stop the supervisor"))?;
    remove(&paths)
}

/// What is left of a fabric: one line each, empty when all is gone.
pub fn leftovers(name: &str, state_root: &Path, netns_root: &Path) -> Vec<String> {
    teardown::leftovers(&Paths::new(name, state_root, netns_root))
}

/// The fabrics on this machine, by name.
pub fn list(state_root: &Path, netns_root: &Path) -> Result<Vec<Summary>, Error> {
    let entries = match std::fs::read_dir(state_root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Read { path: state_root.to_owned(), source }),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let fabrics = names.filter(|name| spec::name_problem(name).is_none());
    let mut found: Vec<Summary> =
        fabrics.map(|name| summary(&Paths::new(&name, state_root, netns_root), name)).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

impl Fabric {
    /// Makes everything but the processes: directories, credentials, namespaces, links, groups, mounts.
    pub async fn weave(spec: Spec, report: Arc<Report>) -> Result<Self, Error> {
        let problems = spec.problems();
        if !problems.is_empty() {
            return Err(Error::Spec(Reasons(problems)));
        }
        let problems = Machine::look().problems();
        if !problems.is_empty() {
            return Err(Error::Machine(Reasons(problems)));
        }
        let name = spec.name.clone();
        let paths = Paths::of(&spec);
        let signals = Signals::new().map_err(failed(&name, "listen for signals"))?;
        let api_port = choose_port(spec.api_port).map_err(|e| Error::Machine(Reasons(vec![e])))?;
        claim(&paths, &name)?;
        let outside = spec.outside_machines();
        let record = Record { spec, api_port, created: jiff::Timestamp::now(), outside };
        let (made_record, made_paths, made_report) = (record.clone(), paths.clone(), report.clone());
        let made = tokio::task::spawn_blocking(move || make(&made_record, &made_paths, &*made_report));
        match made.await.unwrap_or_else(|e| Err(failed(&name, "set it up")(io::Error::other(e)))) {
            Ok((nodes, cgroup, exe)) => {
                let supervisor = Supervisor::new(paths.processes(), report.clone());
                Ok(Self { record, paths, nodes, cgroup, exe, report, supervisor, signals })
            }
            Err(e) => {
                let left = tokio::task::spawn_blocking(move || remove(&paths)).await;
                if let Ok(Err(left)) = left {
                    report(Progress::Warning(left.to_string()));
                }
                Err(e)
            }
        }
    }

    /// Starts the processes and returns when all nodes are ready, or says which are not.
    async fn start(&mut self) -> Result<(), Error> {
        let mut signals = std::mem::replace(&mut self.signals, Signals::none());
        let name = self.record.spec.name.clone();
        let result = tokio::select! {
            result = self.start_all() => result,
            () = signals.wait() => Err(Error::Interrupted { name }),
        };
        self.signals = signals;
        result
    }

    pub fn record(&self) -> &Record {
        &self.record
    }

    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    pub fn nodes(&self) -> &[NodeAddresses] {
        &self.nodes
    }

    /// Keeps one more process running.
    pub fn keep(&mut self, program: Program) {
        self.supervisor.keep(program);
    }

    /// A process of this fabric's own binary: started with these verbs and its configuration file.
    pub fn program(&self, name: &str, verbs: &[&str], node: Option<&str>) -> Program {
        let mut args: Vec<String> = verbs.iter().map(ToString::to_string).collect();
        let file = node.map_or_else(|| name.to_owned(), |node| format!("{name}.{node}"));
        args.extend(["--config".to_owned(), self.paths.config(&file).display().to_string()]);
        let cgroup = node.map_or_else(|| self.cgroup.clone(), |node| self.cgroup.join(node));
        // The proxy's work is at the machine's resolvers; its listeners are opened inside the node.
        let netns = node.filter(|_| name != "proxy").map(|node| self.paths.netns(node));
        let log = self.paths.log(&file);
        Program { name: file, exe: self.exe.clone(), args, netns, cgroup: cgroup.join(name), log }
    }

    /// Returns when the operator asks for the end: Ctrl-C, SIGTERM or a closed terminal.
    pub async fn interrupted(&mut self) {
        self.signals.wait().await;
    }

    /// Ends the processes and removes everything.
    pub async fn down(self) -> Result<(), Error> {
        self.supervisor.stop().await;
        let (name, paths) = (self.record.spec.name.clone(), self.paths.clone());
        let removed = tokio::task::spawn_blocking(move || remove(&paths)).await;
        removed.unwrap_or_else(|e| Err(failed(&name, "take it down")(io::Error::other(e))))
    }

    async fn start_all(&mut self) -> Result<(), Error> {
        let (name, report) = (self.record.spec.name.clone(), self.report.clone());
        let step = Step::begin(&*report, "starting the Kubernetes API");
        self.keep(self.program("apiserver", &["apiserver"], None));
        let client = self.api_client().await?;
        bootstrap::create(&name, &client).await?;
        step.end();
        let step = Step::begin(&*report, "starting the nodes");
        self.keep(self.program("controllers", &["lab", "controllers"], None));
        self.keep(self.program("controller", &["controller"], None));
        let nodes: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        for node in &nodes {
            self.keep(self.program("agent", &["agent"], Some(node)));
            self.keep(self.program("proxy", &["proxy"], Some(node)));
            self.keep(self.program("kubelet", &["lab", "kubelet"], Some(node)));
        }
        let waiting = nodes_ready(client, nodes.len(), &*report);
        if tokio::time::timeout(NODES_PATIENCE, waiting).await.is_err() {
            let text = format!(
                "not all nodes are ready after {} s; look into {}",
                NODES_PATIENCE.as_secs(),
                self.paths.root().join("logs").display()
            );
            report(Progress::Warning(text));
        }
        step.end();
        Ok(())
    }

    async fn api_client(&self) -> Result<Client, Error> {
        let name = &self.record.spec.name;
        let process = |what: &str, tail: String| Error::Process {
            name: name.clone(),
            process: "apiserver".to_owned(),
            what: what.to_owned(),
            log: self.paths.log("apiserver"),
            tail,
        };
        let client = bootstrap::client(&self.paths.admin_kubeconfig())
            .await
            .map_err(|e| process("accept its kubeconfig", e))?;
        match tokio::time::timeout(API_PATIENCE, bootstrap::wait_ready(&client)).await {
            Ok(()) => Ok(client),
            Err(_) => Err(process("become ready", tail(&self.paths.log("apiserver")))),
        }
    }
}

/// Takes the name: the directory is made by exactly one of two that try at once.
fn claim(paths: &Paths, name: &str) -> Result<(), Error> {
    let cannot = |source| failed(name, "make its directory")(source);
    std::fs::create_dir_all(paths.state_root()).map_err(cannot)?;
    match std::fs::create_dir(paths.root()) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let state = summary(paths, name.to_owned()).state.word();
            return Err(Error::Exists { name: name.to_owned(), state });
        }
        Err(source) => return Err(cannot(source)),
    }
    let others = teardown::leftovers(paths).iter().any(|left| !left.starts_with("directory "));
    if others {
        return Err(Error::Exists { name: name.to_owned(), state: State::Remains.word() });
    }
    let me = i32::try_from(std::process::id()).ok().and_then(Identity::of);
    let me = me.ok_or_else(|| cannot(io::Error::other("/proc does not show this process")))?;
    me.record(&paths.processes(), teardown::SUPERVISOR).map_err(cannot)
}

type Made = (Vec<NodeAddresses>, PathBuf, PathBuf);

fn make(record: &Record, paths: &Paths, report: &Report) -> Result<Made, Error> {
    let spec = &record.spec;
    let cannot = |what: &'static str| failed(&spec.name, what);
    let step = Step::begin(report, "weaving namespaces and links");
    let exe = match &spec.exe {
        Some(exe) => exe.clone(),
        None => std::env::current_exe().map_err(cannot("find its own program"))?,
    };
    let nodes = spec.node_addresses();
    make_directories(paths, &nodes).map_err(cannot("make its directories"))?;
    write_json(&paths.record(), record).map_err(cannot("write fabric.json"))?;
    credentials::write(spec, paths, &nodes, record.api_port)
        .map_err(|source| Error::Credentials { name: spec.name.clone(), source })?;
    mounts::mount_bpffs(&paths.bpffs()).map_err(cannot("mount a bpf file system"))?;
    let cgroup = make_cgroups(paths, &nodes).map_err(cannot("make its cgroups"))?;
    weave_network(spec, paths, &nodes, &record.outside)?;
    let inputs = Inputs { spec, paths, nodes: &nodes, api_port: record.api_port, cgroup: &cgroup, exe: &exe };
    write_configs(&inputs).map_err(cannot("write its configuration"))?;
    step.end();
    Ok((nodes, cgroup, exe))
}

fn make_directories(paths: &Paths, nodes: &[NodeAddresses]) -> io::Result<()> {
    let mut directories =
        vec![paths.pki(""), paths.api_store(), paths.pod_netns(), paths.log(""), paths.config("")];
    // `log` and `config` name files; their directories are what is needed.
    directories.iter_mut().skip(3).for_each(|file| {
        file.pop();
    });
    for node in nodes {
        directories.extend(["agent", "pods"].map(|sub| paths.node_file(&node.name, sub)));
    }
    directories.iter().try_for_each(std::fs::create_dir_all)
}

fn make_cgroups(paths: &Paths, nodes: &[NodeAddresses]) -> io::Result<PathBuf> {
    let mount = match cgroup::find_mount(&mounts::list()?) {
        Some(mount) => mount,
        None => {
            mounts::mount_cgroup2(&paths.own_cgroup_mount())?;
            paths.own_cgroup_mount()
        }
    };
    let root = paths.cgroup(&mount);
    let shared = ["apiserver", "controllers", "controller"].map(|process| root.join(process));
    let per_node = nodes.iter().flat_map(|node| {
        ["agent", "proxy", "kubelet", "pods"].map(|group| root.join(&node.name).join(group))
    });
    shared.into_iter().chain(per_node).try_for_each(|group| cgroup::create(&group))?;
    Ok(root)
}

fn weave_network(
    spec: &Spec,
    paths: &Paths,
    nodes: &[NodeAddresses],
    outside: &[OutsideMachine],
) -> Result<(), Error> {
    let cannot = |what: String| move |source| Error::Weave { name: spec.name.clone(), what, source };
    let underlay = paths.netns(UNDERLAY);
    let bridge = spec.bridge_addresses();
    let weave = || {
        create_first_netns(paths, &underlay)?;
        network::weave_underlay(&underlay, &bridge, spec.mtu)
    };
    weave().map_err(cannot("weave the underlay".to_owned()))?;
    for node in nodes {
        let netns = paths.netns(&node.name);
        netns::create(&netns)
            .and_then(|()| network::weave_node(&underlay, &netns, node, &bridge, spec.mtu))
            .map_err(cannot(format!("weave {}", node.name)))?;
    }
    for machine in outside {
        let netns = paths.netns(&machine.name);
        netns::create(&netns)
            .and_then(|()| network::weave_outside(&underlay, &netns, machine, spec.mtu))
            .map_err(cannot(format!("weave {}", machine.name)))?;
    }
    Ok(())
}

/// Another fabric's end may take the directory of namespaces away at this moment; then it is made again.
fn create_first_netns(paths: &Paths, first: &Path) -> io::Result<()> {
    let attempt = || {
        if netns::prepare_root(paths.netns_root())? {
            std::fs::write(paths.made_netns_root(), "")?;
        }
        netns::create(first)
    };
    for _ in 0..10 {
        match attempt() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    attempt()
}

fn write_configs(inputs: &Inputs<'_>) -> io::Result<()> {
    let paths = inputs.paths;
    write_json(&paths.config("apiserver"), &inputs.apiserver())?;
    write_json(&paths.config("controller"), &inputs.controller())?;
    write_json(&paths.config("controllers"), &inputs.controllers())?;
    std::fs::write(paths.names_settings(), &inputs.spec.names)?;
    for node in inputs.nodes {
        let file = |process: &str| paths.config(&format!("{process}.{}", node.name));
        write_json(&file("agent"), &inputs.agent(node))?;
        write_json(&file("proxy"), &inputs.proxy(node))?;
        write_json(&file("kubelet"), &inputs.kubelet(node))?;
        write_json(&paths.node_file(&node.name, "cni.conflist"), &inputs.cni_conflist(node))?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    std::fs::write(path, text + "\n")
}

fn remove(paths: &Paths) -> Result<(), Error> {
    let failures = teardown::remove(paths);
    let left = teardown::leftovers(paths);
    if left.is_empty() {
        return Ok(());
    }
    let name = paths.root().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let leftovers = Reasons(
        left.into_iter().chain(failures.into_iter().map(|f| format!("could not remove {f}"))).collect(),
    );
    Err(Error::Leftovers { name, leftovers })
}

fn summary(paths: &Paths, name: String) -> Summary {
    let text = std::fs::read_to_string(paths.record()).unwrap_or_default();
    let record: Option<Record> = serde_json::from_str(&text).ok();
    let processes = process::recorded(&paths.processes());
    let alive = |name: &str| processes.iter().any(|(n, identity)| n == name && identity.is_alive());
    let state = match (alive(teardown::SUPERVISOR), alive("apiserver")) {
        (true, _) => State::Running,
        (false, true) => State::Unsupervised,
        (false, false) => State::Remains,
    };
    Summary { name, state, record, kubeconfig: paths.admin_kubeconfig() }
}

/// Returns when this many nodes are ready, reporting each that becomes so.
async fn nodes_ready(client: Client, wanted: usize, report: &Report) {
    let mut events = Box::pin(watcher(Api::<Node>::all(client), watcher::Config::default()));
    let mut ready = std::collections::BTreeSet::new();
    while ready.len() < wanted {
        match events.next().await {
            Some(Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node))) => {
                let Some(name) = node.metadata.name.clone() else { continue };
                if is_ready(&node) && ready.insert(name) {
                    report(Progress::Nodes { ready: ready.len(), of: wanted });
                }
            }
            Some(Ok(_)) => {}
            Some(Err(e)) => {
                tracing::debug!("watching nodes: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            None => return,
        }
    }
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| {
        all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    })
}

/// The end of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return "(it is empty)".to_owned();
    }
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn failed(name: &str, what: &'static str) -> impl Fn(io::Error) -> Error + use<> {
    let name = name.to_owned();
    move |source| Error::Weave { name: name.clone(), what: what.to_owned(), source }
}

struct Step<'a> {
    report: &'a Report,
    started: Instant,
}

impl<'a> Step<'a> {
    fn begin(report: &'a Report, what: &str) -> Self {
        report(Progress::Step(what.to_owned()));
        Self { report, started: Instant::now() }
    }

    fn end(self) {
        (self.report)(Progress::Done { took: self.started.elapsed() });
    }
}

/// The signals that mean "take it down".
struct Signals(Vec<Signal>);

impl Signals {
    fn new() -> io::Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        kinds.into_iter().map(signal).collect::<io::Result<_>>().map(Self)
    }

    fn none() -> Self {
        Self(Vec::new())
    }

    async fn wait(&mut self) {
        let waits = self.0.iter_mut().map(|signal| Box::pin(signal.recv()));
        if waits.len() == 0 {
            return std::future::pending().await;
        }
        futures::future::select_all(waits).await;
    }
}
