//! Runs the probes of a pod's containers and acts on their verdicts.
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, Probe};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::containers::{Runner, find_container, runner_of};
use super::events::Severity;
use super::probe::{Kind, Outcome, Pace, ProbeState, Timing, Verdict};
use super::prober::{Target, ask};
use super::shared::Shared;
use super::worker::{AbortOnDrop, Input, Worker};

impl Worker {
    /// Starts the probes that are due for a container that runs: the startup probe alone, or else the others.
    pub(super) fn begin_probes(&mut self, container: &ContainerSpec, attempt: u32, since: Timestamp) {
        let started = self.containers.iter().any(|known| known.name == container.name && known.started);
        let due: &[(Kind, &Option<Probe>)] = if started {
            &[(Kind::Readiness, &container.readiness_probe), (Kind::Liveness, &container.liveness_probe)]
        } else {
            &[(Kind::Startup, &container.startup_probe)]
        };
        let mut tasks = Vec::new();
        for (kind, probe) in due {
            let (Some(probe), Some(target)) = (probe, self.target(container)) else { continue };
            let asking = Asking {
                shared: self.shared.clone(),
                pod: self.pod.clone(),
                target,
                kind: *kind,
                probe: probe.clone(),
                attempt,
                sender: self.sender.clone(),
            };
            tasks.push(AbortOnDrop(tokio::spawn(asking.run(since)).abort_handle()));
        }
        self.probes.insert(container.name.clone(), tasks);
    }

    pub(super) fn take_verdict(
        &mut self,
        name: &str,
        attempt: u32,
        kind: Kind,
        verdict: Verdict,
        message: &str,
    ) {
        let Some(container) =
            self.container(name).filter(|known| known.attempt == attempt && known.is_running())
        else {
            return;
        };
        match (kind, verdict) {
            (Kind::Readiness, verdict) => container.ready = verdict == Verdict::Passed,
            (Kind::Startup, Verdict::Passed) => self.take_startup(name, attempt),
            (Kind::Startup | Kind::Liveness, Verdict::Failed) => self.kill_for(name, kind, message),
            (Kind::Liveness, Verdict::Passed) => {}
        }
    }

    fn take_startup(&mut self, name: &str, attempt: u32) {
        let spec = self.spec();
        let Some((container_spec, _)) = find_container(&spec, name) else { return };
        let Some(container) = self.container(name) else { return };
        container.started = true;
        container.ready = container_spec.readiness_probe.is_none();
        self.begin_probes(&container_spec, attempt, Timestamp::now());
    }

    fn kill_for(&mut self, name: &str, kind: Kind, message: &str) {
        if self.stops.contains_key(name) {
            return;
        }
        let spec = self.spec();
        let container = find_container(&spec, name).map(|(container, _)| container);
        let probe = container.and_then(|container| match kind {
            Kind::Startup => container.startup_probe,
            _ => container.liveness_probe,
        });
        let grace = probe
            .and_then(|probe| probe.termination_grace_period_seconds)
            .or(spec.termination_grace_period_seconds)
            .unwrap_or(30);
        let text = format!(
            "Container {name} failed {} probe, will be restarted: {message}",
            kind.name().to_lowercase()
        );
        let deadline = Instant::now() + Duration::from_secs(grace.try_into().unwrap_or_default());
        self.stop_container(name, deadline, text);
    }
}

/// One probe of one attempt, asked until aborted.
struct Asking {
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    target: Target,
    kind: Kind,
    probe: Probe,
    attempt: u32,
    sender: mpsc::UnboundedSender<Input>,
}

impl Asking {
    async fn run(self, since: Timestamp) {
        let timing = Timing::of(&self.probe);
        let pace = match runner_of(self.target.container.image.as_deref()) {
            Runner::Host => Pace::AsSpecified,
            Runner::StandIn => Pace::Eager,
        };
        let mut state = ProbeState::new(timing, pace, since);
        let mut told = None;
        let mut assumption_told = false;
        loop {
            let rest = state.next_at().duration_since(Timestamp::now());
            tokio::time::sleep(Duration::try_from(rest).unwrap_or_default()).await;
            let answer = ask(&self.target, &self.probe, timing.timeout).await;
            if let Some(assumed) = answer.assumed.filter(|_| !std::mem::replace(&mut assumption_told, true)) {
                self.event(
                    Severity::Normal,
                    "ProbeAssumed",
                    format!("{} probe: {assumed}", self.kind.name()),
                );
            }
            let counted = state.counted_failures();
            let verdict = state.record(&answer.outcome, Timestamp::now());
            let message = match answer.outcome {
                Outcome::Success => String::new(),
                Outcome::Failure(message) => message,
            };
            if state.counted_failures() > counted {
                self.event(
                    Severity::Warning,
                    "Unhealthy",
                    format!("{} probe failed: {message}", self.kind.name()),
                );
            }
            // A probe of which nothing is known yet has failed, which is where its container starts from.
            if verdict.is_some() && verdict != told {
                told = verdict;
                self.tell(verdict, message);
            } else if verdict == Some(Verdict::Failed) && self.kind != Kind::Readiness {
                self.tell(verdict, message);
            }
        }
    }

    fn event(&self, severity: Severity, reason: &'static str, message: String) {
        self.shared.events.pod(&self.pod, Some(&self.target.container.name), severity, reason, message);
    }

    fn tell(&self, verdict: Option<Verdict>, message: String) {
        let Some(verdict) = verdict else { return };
        let container = self.target.container.name.clone();
        // The worker is gone only when the pod is.
        let _ = self.sender.send(Input::Probed {
            container,
            attempt: self.attempt,
            kind: self.kind,
            verdict,
            message,
        });
    }
}
