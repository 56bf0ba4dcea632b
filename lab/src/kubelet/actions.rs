//! What a pod's worker does: decides through lifecycle.rs and starts the slow work beside itself.
use std::io;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod};
use tokio::sync::watch;
use tokio::time::Instant;

use super::containers::{self, Launch, StartContext};
use super::environment::{PodFacts, ServiceLinks};
use super::events::Severity;
use super::lifecycle::{Container, Decision, Role, State, decide};
use super::monitor::kill_cgroup;
use super::prober::Target;
use super::sandbox::{PodDir, PodNetwork, Record};
use super::shared::Shared;
use super::sources::{Gathered, gather};
use super::status::Ended;
use super::stop::{self, Stop};
use super::volumes;
use super::worker::{
    AbortOnDrop, End, Input, REFRESH_PERIOD, Ready, Sandbox, SandboxFailure, StartFailure, Worker,
    sandbox_rest, service_links,
};

impl Worker {
    /// Does what is to be done now; returns when to look again if nothing happens.
    pub(super) fn step(&mut self) -> Option<Instant> {
        self.check_deadline();
        if self.ending.is_some() {
            self.step_to_the_end();
            return None;
        }
        match &self.sandbox {
            Sandbox::Missing { retry_at, .. } if *retry_at > Instant::now() => return Some(*retry_at),
            Sandbox::Missing { tries, .. } => {
                let tries = *tries;
                self.make_sandbox(tries);
                return self.until_deadline();
            }
            Sandbox::Ready(_) => {}
            Sandbox::Making { .. } | Sandbox::Releasing | Sandbox::Released => return self.until_deadline(),
        }
        let Decision { start, stop, wake_at, over } =
            decide(&self.containers, self.policy(), Timestamp::now());
        for name in start {
            self.start_container(&name);
        }
        let deadline = Instant::now() + self.grace();
        for name in stop {
            self.stop_container(&name, deadline, format!("Stopping container {name}"));
        }
        if let Some(over) = over {
            tracing::debug!(pod = self.name(), ?over, "pod is over");
            self.end(End::Over, Duration::ZERO);
            self.step_to_the_end();
            return None;
        }
        let wake = wake_at.map(instant_of);
        [wake, self.until_deadline()].into_iter().flatten().min()
    }

    fn grace(&self) -> Duration {
        let seconds =
            self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        Duration::from_secs(seconds.try_into().unwrap_or_default())
    }

    fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        Some(self.start_time + Duration::from_secs(seconds.try_into().unwrap_or_default()))
    }

    fn until_deadline(&self) -> Option<Instant> {
        self.deadline().map(instant_of)
    }

    fn check_deadline(&mut self) {
        if self.ending.is_some() || self.deadline().is_none_or(|deadline| deadline > Timestamp::now()) {
            return;
        }
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        self.event(None, Severity::Normal, "DeadlineExceeded", message.clone());
        self.ended = Some(Ended { reason: "DeadlineExceeded".into(), message });
        self.end(End::Over, self.grace());
    }

    /// Stops what runs (sidecars last), then gives the network back.
    fn step_to_the_end(&mut self) {
        let Some(ending) = &self.ending else { return };
        let deadline = ending.deadline;
        let is_live = |role: Option<Role>| {
            let of_role = move |container: &&Container| role.is_none_or(|role| container.role == role);
            self.containers.iter().filter(of_role).any(Container::is_live)
        };
        if is_live(None) {
            let main_live = is_live(Some(Role::Main));
            let due = |container: &&Container| {
                container.is_running() && !(main_live && container.role == Role::Sidecar)
            };
            let names: Vec<_> = self.containers.iter().filter(due).map(|c| c.name.clone()).collect();
            for name in names {
                self.stop_container(&name, deadline, format!("Stopping container {name}"));
            }
            return;
        }
        match std::mem::replace(&mut self.sandbox, Sandbox::Releasing) {
            Sandbox::Making { tries } => self.sandbox = Sandbox::Making { tries },
            Sandbox::Released => self.sandbox = Sandbox::Released,
            Sandbox::Releasing => {}
            Sandbox::Missing { .. } | Sandbox::Ready(_) => self.release(),
        }
    }

    fn release(&mut self) {
        let Some(mut record) = self.record.clone().or_else(|| Record::read(&self.dir).ok().flatten()) else {
            self.sandbox = Sandbox::Released;
            return;
        };
        let (shared, sender, pod) = (self.shared.clone(), self.sender.clone(), self.pod.clone());
        tokio::spawn(async move {
            let mut rest = Duration::from_millis(100);
            loop {
                let released = async {
                    shared.sandboxes.remove_cgroups(&record.cgroup).await?;
                    shared.sandboxes.release_network(&mut record).await
                };
                let Err(error) = released.await else { break };
                // The address is not free until the plugin says so: the pod stays until then.
                let message = format!("the pod's network cannot be given back: {error}");
                shared.events.pod(&pod, None, Severity::Warning, "FailedKillPod", message);
                tokio::time::sleep(rest).await;
                rest = (rest * 2).min(Duration::from_secs(10));
            }
            // The worker waits for this.
            let _ = sender.send(Input::Released(Box::new(record)));
        });
    }

    fn make_sandbox(&mut self, tries: u32) {
        self.sandbox = Sandbox::Making { tries };
        let (shared, pod, sender) = (self.shared.clone(), self.pod.clone(), self.sender.clone());
        let (dir, facts) = (self.dir.clone(), self.facts());
        tokio::spawn(async move {
            let made = make_ready(&shared, &pod, &dir, &facts, tries).await;
            if made.is_err() {
                undo(&shared, &dir).await;
            }
            // The worker is gone only when the pod is.
            let _ = sender.send(Input::Sandbox(Box::new(made)));
        });
    }

    fn start_container(&mut self, name: &str) {
        let spec = self.spec();
        let Some((container_spec, role)) = containers::find_container(&spec, name) else { return };
        let Some(container) = self.container(name) else { return };
        if let State::Exited(exit) = container.state.clone() {
            container.backoff = container.next_backoff();
            container.last = Some(exit);
        }
        container.attempt += 1;
        container.state = State::Starting;
        let attempt = container.attempt;
        self.forget_old_attempt(name, attempt);
        let is_fresh = attempt == 1 && !self.config_complaints.contains_key(name);
        let Sandbox::Ready(ready) = &self.sandbox else { return };
        let job = StartJob {
            gathered: ready.gathered.clone(),
            sources: if is_fresh { SourcesAre::Fresh } else { SourcesAre::Stale },
            worker: StartParts {
                shared: self.shared.clone(),
                pod: self.pod.clone(),
                dir: self.dir.clone(),
                record: ready.record.clone(),
                volumes: ready.volumes.clone(),
                facts: self.facts(),
            },
            container: container_spec,
            role,
            attempt,
        };
        let (sender, container) = (self.sender.clone(), name.to_owned());
        tokio::spawn(async move {
            let launch = job.run().await;
            // The worker is gone only when the pod is.
            let _ = sender.send(Input::Launched { container, attempt, launch });
        });
    }

    /// Only the attempt before this one is kept, for `logs --previous`.
    fn forget_old_attempt(&self, name: &str, attempt: u32) {
        let Some(old) = attempt.checked_sub(2).filter(|old| *old > 0) else { return };
        let dir = self.dir.attempt(name, old).0;
        if let Err(error) = std::fs::remove_dir_all(&dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("{}: {error}", dir.display());
        }
    }

    /// Begins to stop a container, or brings the end of a stop under way closer.
    pub(super) fn stop_container(&mut self, name: &str, at: Instant, why: String) {
        let spec = self.spec();
        let Some((container, _)) = containers::find_container(&spec, name) else { return };
        if let Some((_, deadline)) = self.stops.get(name) {
            deadline.send_if_modified(|current| {
                let closer = at < *current;
                *current = at.min(*current);
                closer
            });
            return;
        }
        let (deadline, moving) = watch::channel(at);
        let Some(target) = self.target(&container) else { return };
        let Some(record) = &self.record else { return };
        self.event(Some(name), Severity::Normal, "Killing", why);
        let stop = Stop {
            target,
            cgroup: record.container_cgroup(name),
            hook: container.lifecycle.and_then(|lifecycle| lifecycle.pre_stop),
            deadline: moving,
        };
        let (shared, pod, about) = (self.shared.clone(), self.pod.clone(), name.to_owned());
        let task = tokio::spawn(async move {
            if let Some(complaint) = stop::stop(stop).await {
                shared.events.pod(&pod, Some(&about), Severity::Warning, "FailedPreStopHook", complaint);
            }
        });
        self.stops.insert(name.to_owned(), (AbortOnDrop(task.abort_handle()), deadline));
    }

    pub(super) fn target(&self, container: &ContainerSpec) -> Option<Target> {
        let attempt = self.containers.iter().find(|known| known.name == container.name)?.attempt;
        let address = self.record.as_ref()?.pod_ips().first().copied()?;
        Some(Target {
            container: container.clone(),
            address,
            dir: self.dir.attempt(&container.name, attempt),
        })
    }

    pub(super) fn run_post_start(&self, container: &ContainerSpec, attempt: u32) {
        let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.clone())
        else {
            return;
        };
        let (Some(target), Some(record)) = (self.target(container), &self.record) else { return };
        let cgroup = record.container_cgroup(&container.name);
        let (shared, pod, name) = (self.shared.clone(), self.pod.clone(), container.name.clone());
        tokio::spawn(async move {
            let limit = Duration::from_secs(600);
            let run = super::prober::run_hook(&target, &hook, limit);
            let failed = match tokio::time::timeout(limit, run).await {
                Ok(result) => result.err(),
                Err(_) => Some("it did not end".to_owned()),
            };
            let Some(message) = failed else { return };
            let text = format!("postStart hook failed in attempt {attempt}: {message}");
            shared.events.pod(&pod, Some(&name), Severity::Warning, "FailedPostStartHook", text);
            // As documented: a container whose postStart fails is killed.
            if let Err(error) = kill_cgroup(&cgroup) {
                tracing::warn!("{error}");
            }
        });
    }

    /// Looks at what the pod refers to from time to time, for as long as the returned handle lives.
    pub(super) fn refresh_sources(&self) -> Option<AbortOnDrop> {
        self.pod
            .spec
            .as_ref()
            .filter(|spec| spec.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty()))?;
        let Sandbox::Ready(ready) = &self.sandbox else { return None };
        let (shared, uid, dir) = (self.shared.clone(), self.uid.clone(), self.dir.clone());
        let (facts, mut gathered) = (self.facts(), ready.gathered.clone());
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(REFRESH_PERIOD).await;
                let Some(pod) = shared.pods.by_uid(&uid) else { return };
                match gather(&shared.client, &pod, &gathered).await {
                    Ok(now) => gathered = now,
                    Err(error) => {
                        tracing::debug!(uid, "{error}");
                        continue;
                    }
                }
                if let Err(error) = volumes::prepare(&dir.volumes(), &pod, &facts, &gathered) {
                    tracing::debug!(uid, "{error}");
                }
            }
        });
        Some(AbortOnDrop(task.abort_handle()))
    }
}

fn retry_rest(tries: u32) -> Duration {
    (Duration::from_millis(200) * 2_u32.saturating_pow(tries.min(10))).min(Duration::from_secs(5))
}

fn instant_of(at: Timestamp) -> Instant {
    let ahead = at.duration_since(Timestamp::now());
    Instant::now() + Duration::try_from(ahead).unwrap_or_default()
}

/// Volumes first, as the real kubelet does: a pod that waits for one has no address yet.
async fn make_ready(
    shared: &Shared,
    pod: &Pod,
    dir: &PodDir,
    facts: &PodFacts,
    tries: u32,
) -> Result<Ready, SandboxFailure> {
    let no_volume =
        |message: String| SandboxFailure { reason: "FailedMount", message, rest: retry_rest(tries) };
    let gathered =
        gather(&shared.client, pod, &Gathered::default()).await.map_err(|e| no_volume(e.to_string()))?;
    let volumes = volumes::prepare(&dir.volumes(), pod, facts, &gathered)
        .map_err(|error| no_volume(error.to_string()))?;
    let record = shared.sandboxes.make(pod).await.map_err(|error| SandboxFailure {
        reason: "FailedCreatePodSandBox",
        rest: sandbox_rest(&error, tries),
        message: error.to_string(),
    })?;
    Ok(Ready { record, gathered, volumes })
}

async fn undo(shared: &Shared, dir: &PodDir) {
    let Ok(Some(mut record)) = Record::read(dir) else { return };
    if matches!(record.network, PodNetwork::Node { .. } | PodNetwork::Released) {
        return;
    }
    if let Err(error) = shared.sandboxes.release_network(&mut record).await {
        tracing::debug!(pod = record.name, "after a failed start: {error}");
    }
}

/// Whether what the pod refers to was fetched for this very start.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SourcesAre {
    Fresh,
    Stale,
}

/// One start, away from the worker.
struct StartJob {
    gathered: Gathered,
    sources: SourcesAre,
    worker: StartParts,
    container: ContainerSpec,
    role: Role,
    attempt: u32,
}

struct StartParts {
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    dir: PodDir,
    record: Record,
    volumes: volumes::Volumes,
    facts: PodFacts,
}

impl StartJob {
    async fn run(self) -> Result<Launch, StartFailure> {
        let StartParts { shared, pod, dir, record, volumes, facts } = &self.worker;
        let io =
            |error: io::Error| StartFailure { reason: "CreateContainerError", message: error.to_string() };
        let refers = self.container.env.is_some() || self.container.env_from.is_some();
        let gathered = if refers && self.sources == SourcesAre::Stale {
            gather(&shared.client, pod, &self.gathered).await.map_err(|error| StartFailure {
                reason: "CreateContainerConfigError",
                message: error.to_string(),
            })?
        } else {
            self.gathered
        };
        let links = pod.spec.as_ref().map(service_links).unwrap_or(ServiceLinks::Own);
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let services = shared.services.variables(namespace, links).await;
        let context = StartContext {
            pod,
            record,
            dir,
            hostname: &shared.sandboxes.hostname(pod),
            node: &shared.node,
            facts,
            gathered: &gathered,
            volumes,
            services: &services,
            weft_exe: &shared.weft_exe,
        };
        let attempt = containers::prepare(&context, &self.container, self.role, self.attempt)?;
        let name = &self.container.name;
        shared.events.pod(pod, Some(name), Severity::Normal, "Created", format!("Created container: {name}"));
        containers::launch(&shared.weft_exe, &attempt).await.map_err(io)
    }
}
