//! The life of one pod: takes what happens (a change of the object, a container's end, a probe's verdict), asks
//! lifecycle.rs what to do, does it, and publishes the status. One task per pod; slow work runs beside it.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodSpec, PodStatus};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::bundle::{Exit, Started};
use super::containers::{self, Launch, StartError, list_containers};
use super::environment::{PodFacts, ServiceLinks};
use super::events::Severity;
use super::lifecycle::{Container, RestartPolicy, Role, State};
use super::probe::{Kind, Verdict};
use super::publish::Publisher;
use super::sandbox::{PodDir, Record, SandboxError};
use super::shared::{PodSnapshot, Shared};
use super::sources::Gathered;
use super::status::{Ended, Network, OWN_CONDITIONS, PodView, pod_status};
use super::volumes::Volumes;

/// How often config maps, secrets and tokens of a running pod are looked at again.
pub(super) const REFRESH_PERIOD: Duration = Duration::from_secs(60);

/// What a worker is told.
#[derive(Debug)]
pub enum Input {
    Changed(Arc<Pod>),
    /// The object is gone from the API.
    Removed,
    Sandbox(Box<Result<Ready, SandboxFailure>>),
    Launched {
        container: String,
        attempt: u32,
        launch: Result<Launch, StartFailure>,
    },
    Exited {
        container: String,
        attempt: u32,
        exit: Exit,
    },
    Probed {
        container: String,
        attempt: u32,
        kind: Kind,
        verdict: Verdict,
        message: String,
    },
    Released(Box<Record>),
    /// The API has taken the newest status; what it shows may be something else by now.
    Published,
}

/// Everything a pod needs before its first container.
#[derive(Debug)]
pub struct Ready {
    pub record: Record,
    pub gathered: Gathered,
    pub volumes: Volumes,
}

/// A try at a sandbox that failed, and how long to rest before the next.
#[derive(Debug)]
pub struct SandboxFailure {
    pub reason: &'static str,
    pub message: String,
    pub rest: Duration,
}

#[derive(Debug)]
pub struct StartFailure {
    pub reason: &'static str,
    pub message: String,
}

impl From<StartError> for StartFailure {
    fn from(error: StartError) -> Self {
        let reason = match error {
            StartError::Env(_) | StartError::Volume(_) => "CreateContainerConfigError",
            StartError::Io(_) => "CreateContainerError",
        };
        Self { reason, message: error.to_string() }
    }
}

pub(super) enum Sandbox {
    Missing { retry_at: Instant, tries: u32 },
    Making { tries: u32 },
    Ready(Box<Ready>),
    Releasing,
    Released,
}

/// Why the pod's containers are being stopped for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The object is being deleted, or is gone.
    Deleted,
    /// The pod's own limits or its containers' ends.
    Over,
}

pub(super) struct Ending {
    pub why: End,
    pub deadline: Instant,
}

pub(super) struct Worker {
    pub shared: Arc<Shared>,
    pub pod: Arc<Pod>,
    pub uid: String,
    pub dir: PodDir,
    pub containers: Vec<Container>,
    pub sandbox: Sandbox,
    pub record: Option<Record>,
    pub probes: HashMap<String, Vec<AbortOnDrop>>,
    pub stops: HashMap<String, (AbortOnDrop, watch::Sender<Instant>)>,
    pub ending: Option<Ending>,
    pub ended: Option<Ended>,
    pub start_time: Timestamp,
    pub sender: mpsc::UnboundedSender<Input>,
    pub inputs: mpsc::UnboundedReceiver<Input>,
    pub publisher: Publisher,
    pub in_api: InApi,
    /// How often in a row each container could not be started for what it refers to.
    pub config_complaints: BTreeMap<String, u32>,
    pub refresh: Option<AbortOnDrop>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InApi {
    Present,
    Gone,
}

pub(super) struct AbortOnDrop(pub AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts the worker of a pod; dropping the sender does not stop it, `Input::Removed` does.
pub fn spawn(shared: Arc<Shared>, pod: Arc<Pod>) -> mpsc::UnboundedSender<Input> {
    let (sender, inputs) = mpsc::unbounded_channel();
    tokio::spawn(Worker::new(shared, pod, sender.clone(), inputs).run());
    sender
}

impl Worker {
    fn new(
        shared: Arc<Shared>,
        pod: Arc<Pod>,
        sender: mpsc::UnboundedSender<Input>,
        inputs: mpsc::UnboundedReceiver<Input>,
    ) -> Self {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let names = pod.spec.as_ref().map(list_containers).unwrap_or_default();
        let publisher = Publisher::start(shared.client.clone(), &pod, sender.clone());
        Self {
            dir: PodDir::new(&shared.sandboxes.pods_dir, &uid),
            containers: names.into_iter().map(|(name, role)| Container::new(&name, role)).collect(),
            sandbox: Sandbox::Missing { retry_at: Instant::now(), tries: 0 },
            record: None,
            probes: HashMap::new(),
            stops: HashMap::new(),
            ending: None,
            ended: None,
            start_time: Timestamp::now(),
            in_api: InApi::Present,
            config_complaints: BTreeMap::new(),
            refresh: None,
            shared,
            pod,
            uid,
            sender,
            inputs,
            publisher,
        }
    }

    async fn run(mut self) {
        self.recover().await;
        loop {
            let wake_at = self.step();
            self.publish();
            if self.is_finished() {
                break;
            }
            let input = match wake_at {
                None => self.inputs.recv().await,
                Some(at) => tokio::time::timeout_at(at, self.inputs.recv()).await.unwrap_or(None),
            };
            let Some(input) = input else { continue };
            self.take(input);
            // Whatever else has arrived is answered by the same decision.
            while let Ok(input) = self.inputs.try_recv() {
                self.take(input);
            }
        }
        self.leave().await;
    }

    /// Gone from the API or to be removed from it, with nothing of it left here.
    fn is_finished(&self) -> bool {
        let released = matches!(self.sandbox, Sandbox::Released);
        released && self.ending.as_ref().is_some_and(|ending| ending.why == End::Deleted)
    }

    /// The last words: files go first, so that with the object gone nothing of the pod is left.
    async fn leave(self) {
        self.shared.pods.remove(&self.uid);
        if let Err(error) = self.shared.sandboxes.remove_files(&self.uid) {
            tracing::warn!(uid = self.uid, "files left behind: {error}");
        }
        if self.in_api == InApi::Present {
            self.publisher.finish(&self.pod).await;
        }
    }

    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    pub fn spec(&self) -> PodSpec {
        self.pod.spec.clone().unwrap_or_default()
    }

    pub fn policy(&self) -> RestartPolicy {
        RestartPolicy::parse(self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()))
    }

    pub fn event(&self, container: Option<&str>, severity: Severity, reason: &'static str, message: String) {
        self.shared.events.pod(&self.pod, container, severity, reason, message);
    }

    pub fn facts(&self) -> PodFacts {
        PodFacts {
            pod_ips: self.record.as_ref().map(|record| record.pod_ips().to_vec()).unwrap_or_default(),
            host_ips: self.shared.node_ips.clone(),
            allocatable: self.shared.allocatable.clone(),
        }
    }

    fn publish(&mut self) {
        let record = self.record.as_ref();
        if record.is_none() && self.ending.is_some() {
            // Nothing of it was ever here: what the status says is somebody else's knowledge.
            return;
        }
        let view = PodView {
            containers: &self.containers,
            network: if matches!(self.sandbox, Sandbox::Ready(_)) {
                Network::Ready
            } else {
                Network::Missing
            },
            pod_ips: record.map(Record::pod_ips).unwrap_or_default(),
            host_ips: &self.shared.node_ips,
            start_time: self.start_time,
            ended: self.ended.as_ref(),
        };
        let before = self.publisher.last();
        let shown = if self.publisher.is_shown_by(&self.pod) { Shown::News } else { Shown::Stale };
        let known = with_own_conditions(&self.pod, before.as_ref(), shown);
        let mut status = pod_status(&known, &view, Timestamp::now());
        if let Some(before) = before.filter(|_| status.pod_ip.is_none() && self.ending.is_some()) {
            // The address stays in the status after it was given back, as the last one the pod had.
            (status.pod_ip, status.pod_ips) = (before.pod_ip, before.pod_ips);
        }
        self.publisher.publish(status);
        let snapshot = PodSnapshot {
            pod: self.pod.clone(),
            containers: self.containers.clone(),
            netns: record.and_then(Record::netns),
        };
        self.shared.pods.put(&self.uid, snapshot);
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Changed(pod) => self.take_pod(pod),
            Input::Removed => {
                self.in_api = InApi::Gone;
                self.end(End::Deleted, Duration::from_secs(1));
            }
            Input::Sandbox(result) => self.take_sandbox(*result),
            Input::Launched { container, attempt, launch } => self.take_launch(&container, attempt, launch),
            Input::Exited { container, attempt, exit } => self.take_exit(&container, attempt, exit),
            Input::Probed { container, attempt, kind, verdict, message } => {
                self.take_verdict(&container, attempt, kind, verdict, &message);
            }
            Input::Released(record) => {
                self.record = Some(*record);
                self.sandbox = Sandbox::Released;
            }
            Input::Published => {}
        }
    }

    fn take_pod(&mut self, pod: Arc<Pod>) {
        for (name, role) in pod.spec.as_ref().map(list_containers).unwrap_or_default() {
            if role == Role::Ephemeral && !self.containers.iter().any(|known| known.name == name) {
                self.containers.push(Container::new(&name, role));
            }
        }
        self.pod = pod;
        self.note_deletion();
    }

    pub fn note_deletion(&mut self) {
        if self.pod.metadata.deletion_timestamp.is_none() {
            return;
        }
        let own = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let grace = self.pod.metadata.deletion_grace_period_seconds.or(own).unwrap_or(30);
        self.end(End::Deleted, Duration::from_secs(grace.try_into().unwrap_or_default()));
    }

    /// Begins to end the pod, or brings its end closer.
    pub fn end(&mut self, why: End, grace: Duration) {
        let deadline = Instant::now() + grace;
        match &mut self.ending {
            None => self.ending = Some(Ending { why, deadline }),
            Some(ending) => {
                if why == End::Deleted {
                    ending.why = End::Deleted;
                }
                ending.deadline = ending.deadline.min(deadline);
            }
        }
    }

    fn take_sandbox(&mut self, result: Result<Ready, SandboxFailure>) {
        let tries = if let Sandbox::Making { tries } = self.sandbox { tries } else { 0 };
        match result {
            Ok(ready) => self.use_sandbox(ready),
            Err(failure) => {
                self.event(None, Severity::Warning, failure.reason, failure.message);
                self.sandbox = Sandbox::Missing { retry_at: Instant::now() + failure.rest, tries: tries + 1 };
            }
        }
    }

    pub fn use_sandbox(&mut self, ready: Ready) {
        self.record = Some(ready.record.clone());
        for volume in &ready.volumes.unprovided {
            let message = format!("volume {volume} needs a storage driver: here it is an empty directory");
            self.event(None, Severity::Warning, "VolumeNotProvided", message);
        }
        self.sandbox = Sandbox::Ready(Box::new(ready));
        self.refresh = self.refresh_sources();
    }

    pub fn container(&mut self, name: &str) -> Option<&mut Container> {
        self.containers.iter_mut().find(|container| container.name == name)
    }

    fn take_launch(&mut self, name: &str, attempt: u32, launch: Result<Launch, StartFailure>) {
        let launch = match launch {
            Ok(launch) => launch,
            Err(failure) => return self.block(name, failure),
        };
        self.config_complaints.remove(name);
        for warning in launch.warnings {
            self.event(Some(name), Severity::Warning, "FailedMount", warning);
        }
        match launch.result {
            Ok(started) => self.note_running(name, attempt, started),
            Err(exit) => {
                let message = exit.message.clone().unwrap_or_default();
                self.event(Some(name), Severity::Warning, "Failed", format!("Error: {message}"));
                self.take_exit(name, attempt, exit);
            }
        }
    }

    fn block(&mut self, name: &str, failure: StartFailure) {
        let tries = self.config_complaints.entry(name.to_owned()).or_default();
        let rest = (Duration::from_millis(200) * 2_u32.saturating_pow(*tries)).min(Duration::from_secs(5));
        *tries += 1;
        self.event(Some(name), Severity::Warning, "Failed", format!("Error: {}", failure.message));
        let Some(container) = self.container(name) else { return };
        // An attempt that never had a process does not count as one.
        container.attempt -= 1;
        container.state = State::Blocked {
            reason: failure.reason,
            message: failure.message,
            retry_at: Timestamp::now() + rest,
        };
    }

    pub fn note_running(&mut self, name: &str, attempt: u32, started: Started) {
        let spec = self.spec();
        let Some((container_spec, _)) = containers::find_container(&spec, name) else { return };
        let Some(container) = self.container(name).filter(|container| container.attempt == attempt) else {
            return;
        };
        container.state = State::Running { started_at: started.started_at };
        container.started = container_spec.startup_probe.is_none();
        container.ready = container.started && container_spec.readiness_probe.is_none();
        self.event(Some(name), Severity::Normal, "Started", format!("Started container {name}"));
        self.watch_exit(name, attempt, started.clone());
        self.begin_probes(&container_spec, attempt, started.started_at);
        self.run_post_start(&container_spec, attempt);
    }

    pub fn watch_exit(&self, name: &str, attempt: u32, started: Started) {
        let Some(record) = &self.record else { return };
        let (dir, cgroup) = (self.dir.attempt(name, attempt), record.container_cgroup(name));
        let (sender, container) = (self.sender.clone(), name.to_owned());
        tokio::spawn(async move {
            let exit = containers::exit_of(&dir, &cgroup, &started).await.unwrap_or_else(|error| {
                Exit::unseen(&error.to_string(), Some(started.started_at), Timestamp::now())
            });
            // The worker is gone only when the pod is.
            let _ = sender.send(Input::Exited { container, attempt, exit });
        });
    }

    fn take_exit(&mut self, name: &str, attempt: u32, exit: Exit) {
        self.probes.remove(name);
        self.stops.remove(name);
        let policy = self.policy();
        let Some(container) = self.container(name).filter(|container| container.attempt == attempt) else {
            return;
        };
        container.state = State::Exited(exit);
        container.ready = false;
        container.started = false;
        if container.in_backoff(policy) {
            let text = format!("Back-off restarting failed container {name}");
            self.event(Some(name), Severity::Warning, "BackOff", text);
        }
    }
}

/// Whether the object was seen before or after what was published last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Stale,
    News,
}

/// The pod with our own conditions as last published. What somebody has changed since stays: it changes back, and then,
/// not when it was first published.
fn with_own_conditions(pod: &Pod, published: Option<&PodStatus>, shown: Shown) -> Pod {
    let mut pod = pod.clone();
    let seen = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    let changed = |own: &PodCondition| {
        shown == Shown::News && !seen.iter().any(|seen| seen.type_ == own.type_ && seen.status == own.status)
    };
    let own = published.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let own: Vec<_> = own
        .filter(|condition| OWN_CONDITIONS.contains(&condition.type_.as_str()) && !changed(condition))
        .cloned()
        .collect();
    seen.retain(|seen| own.iter().all(|own| own.type_ != seen.type_));
    seen.extend(own);
    pod
}

/// How long to wait before another try at a sandbox.
pub(super) fn sandbox_rest(error: &SandboxError, tries: u32) -> Duration {
    let base = match error {
        SandboxError::Cni(error) if error.asks_to_retry() => Duration::from_millis(100),
        _ => Duration::from_millis(500),
    };
    (base * 2_u32.saturating_pow(tries.min(10))).min(Duration::from_secs(5))
}

pub(super) fn service_links(spec: &PodSpec) -> ServiceLinks {
    if spec.enable_service_links == Some(false) { ServiceLinks::ApiOnly } else { ServiceLinks::Own }
}
