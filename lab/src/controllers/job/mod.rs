//! Jobs: pods that run to their end, as often as asked for. Pure.

mod indexes;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::effect::{Effect, Kind, Outcome, Tone, to_value};
use super::meta;
use super::pods::{self, Naming};

const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
const FIRST_BACK_OFF: i64 = 10;
const LONGEST_BACK_OFF: i64 = 360;
const BACKOFF_LIMIT: i32 = 6;

/// Decides about one job from the pods of its namespace.
pub fn reconcile(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(spec) = job.spec.as_ref().filter(|_| !meta::is_terminating(&job.metadata)) else {
        return outcome;
    };
    let view = View::new(job, spec, pods, now);
    if let Some(finished) = view.finished() {
        outcome.effects.extend(view.active().map(|pod| view.delete(pod)));
        outcome.recheck = view.forget(finished, &mut outcome.effects);
        return outcome;
    }
    let verdict = view.verdict();
    match &verdict {
        Verdict::Running => {
            let (effects, recheck) = view.steps();
            outcome.effects.extend(effects);
            outcome.recheck = recheck;
            if let Some(left) = view.deadline() {
                outcome.again_in(left);
            }
        }
        Verdict::Suspended | Verdict::Failed { .. } | Verdict::Complete => {
            outcome.effects.extend(view.active().map(|pod| view.delete(pod)));
        }
    }
    let status = view.status(&verdict);
    if job.status.as_ref() != Some(&status) {
        outcome.effects.extend(view.tell(&verdict));
        outcome.effects.push(view.write(&status));
    }
    outcome
}

/// What a job has come to.
enum Verdict {
    Running,
    Suspended,
    Complete,
    Failed { reason: &'static str, message: String },
}

struct View<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    pods: Vec<Arc<Pod>>,
    now: Timestamp,
}

impl<'a> View<'a> {
    fn new(job: &'a Job, spec: &'a JobSpec, pods: &[Arc<Pod>], now: Timestamp) -> Self {
        let mine = pods.iter().filter(|pod| meta::is_controlled_by(&pod.metadata, &job.metadata));
        Self { job, spec, pods: mine.cloned().collect(), now }
    }

    fn namespace(&self) -> &str {
        meta::namespace(&self.job.metadata)
    }

    fn active(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.iter().filter(|pod| pods::is_active(pod))
    }

    fn in_phase(&self, phase: &str) -> Vec<&Arc<Pod>> {
        self.pods.iter().filter(|pod| pods::phase(pod) == phase).collect()
    }

    fn is_indexed(&self) -> bool {
        self.spec.completion_mode.as_deref() == Some("Indexed")
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn succeeded(&self) -> i32 {
        if self.is_indexed() {
            count(self.done_indexes().len())
        } else {
            count(self.in_phase("Succeeded").len())
        }
    }

    fn done_indexes(&self) -> BTreeSet<i32> {
        let limit = self.spec.completions.unwrap_or(1);
        self.in_phase("Succeeded")
            .into_iter()
            .filter_map(|pod| index(pod))
            .filter(|index| *index < limit)
            .collect()
    }

    /// Failures that count towards the limit: pods that failed, and restarts within pods that go on.
    fn failures(&self) -> i32 {
        let restarts: i32 = self.active().map(|pod| pods::restarts(pod)).sum();
        count(self.in_phase("Failed").len()) + restarts
    }

    fn verdict(&self) -> Verdict {
        if self.is_suspended() {
            return Verdict::Suspended;
        }
        if self.is_done() {
            return Verdict::Complete;
        }
        if self.failures() > self.spec.backoff_limit.unwrap_or(BACKOFF_LIMIT) {
            let message = "Job has reached the specified backoff limit".to_owned();
            return Verdict::Failed { reason: "BackoffLimitExceeded", message };
        }
        if self.spec.active_deadline_seconds.is_some()
            && self.started().is_some()
            && self.deadline().is_none()
        {
            let message = "Job was active longer than specified deadline".to_owned();
            return Verdict::Failed { reason: "DeadlineExceeded", message };
        }
        Verdict::Running
    }

    fn is_done(&self) -> bool {
        match self.spec.completions {
            Some(completions) => self.succeeded() >= completions,
            // A work queue: one success says the queue is empty, and the others finish what they hold.
            None => self.succeeded() > 0 && self.active().next().is_none(),
        }
    }

    fn started(&self) -> Option<Timestamp> {
        Some(self.job.status.as_ref()?.start_time.as_ref()?.0)
    }

    /// The time left until the job's deadline.
    fn deadline(&self) -> Option<Duration> {
        let start = self.started().unwrap_or(self.now);
        meta::time_until(start + meta::seconds(self.spec.active_deadline_seconds?), self.now)
    }

    fn steps(&self) -> (Vec<Effect>, Option<Duration>) {
        let active = count(self.active().count());
        let parallelism = self.spec.parallelism.unwrap_or(1).max(0);
        let wanted = match self.spec.completions {
            Some(completions) => parallelism.min(completions - self.succeeded()),
            None if self.succeeded() > 0 => active.min(parallelism),
            None => parallelism,
        };
        if active > wanted {
            let mut surplus: Vec<Arc<Pod>> = self.active().cloned().collect();
            pods::least_useful_first(&mut surplus, self.now);
            let gone = usize::try_from(active - wanted).unwrap_or(0);
            return (surplus.iter().take(gone).map(|pod| self.delete(pod)).collect(), None);
        }
        // A pod on its way out still holds its place: the next comes when it is gone.
        let leaving =
            self.pods.iter().filter(|pod| meta::is_terminating(&pod.metadata) && !pods::is_finished(pod));
        let missing = wanted - active - count(leaving.count());
        if missing <= 0 {
            return (Vec::new(), None);
        }
        if let Some(wait) = self.back_off() {
            return (Vec::new(), Some(wait));
        }
        (self.create(usize::try_from(missing).unwrap_or(0)), None)
    }

    /// How long to wait after failures: twice as long after each.
    fn back_off(&self) -> Option<Duration> {
        let failed = self.in_phase("Failed");
        let last = failed.iter().map(|pod| ended(pod)).max()?;
        let doublings = u32::try_from(failed.len()).ok()?.saturating_sub(1).min(10);
        let pause = (FIRST_BACK_OFF << doublings).min(LONGEST_BACK_OFF);
        meta::time_until(last + meta::seconds(pause), self.now)
    }

    fn create(&self, missing: usize) -> Vec<Effect> {
        if !self.is_indexed() {
            return (0..missing).map(|_| self.pod(None)).collect();
        }
        let taken: BTreeSet<i32> = self
            .pods
            .iter()
            .filter(|pod| !pods::is_finished(pod))
            .filter_map(|pod| index(pod))
            .chain(self.done_indexes())
            .collect();
        let free = (0..self.spec.completions.unwrap_or(1)).filter(|index| !taken.contains(index));
        free.take(missing).map(|index| self.pod(Some(index))).collect()
    }

    fn pod(&self, index: Option<i32>) -> Effect {
        let name = meta::name(&self.job.metadata);
        let owner = meta::owner_reference(Kind::Job, &self.job.metadata);
        let prefix = index.map_or_else(|| name.to_owned(), |index| format!("{name}-{index}"));
        let mut pod =
            pods::from_template(&self.spec.template, self.namespace(), &Naming::Prefix(&prefix), owner);
        let uid = meta::uid(&self.job.metadata);
        let labels = pod.metadata.labels.get_or_insert_default();
        for (key, value) in [
            ("job-name", name),
            ("batch.kubernetes.io/job-name", name),
            ("controller-uid", uid),
            ("batch.kubernetes.io/controller-uid", uid),
        ] {
            labels.insert(key.to_owned(), value.to_owned());
        }
        if let Some(index) = index {
            labels.insert(COMPLETION_INDEX.to_owned(), index.to_string());
            pod.metadata
                .annotations
                .get_or_insert_default()
                .insert(COMPLETION_INDEX.to_owned(), index.to_string());
            let spec = pod.spec.get_or_insert_default();
            spec.hostname = Some(format!("{name}-{index}"));
            for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
                container.env.get_or_insert_default().push(index_variable());
            }
        }
        Effect::create(Kind::Pod, self.namespace(), "", &pod)
    }

    fn delete(&self, pod: &Pod) -> Effect {
        Effect::delete(Kind::Pod, self.namespace(), meta::name(&pod.metadata), meta::uid(&pod.metadata))
    }

    fn status(&self, verdict: &Verdict) -> JobStatus {
        let before = self.job.status.clone().unwrap_or_default();
        let mut conditions = before.conditions.clone().unwrap_or_default();
        let ended = matches!(verdict, Verdict::Complete | Verdict::Failed { .. });
        match verdict {
            Verdict::Running => self.set(&mut conditions, "Suspended", "False", "JobResumed", "Job resumed"),
            Verdict::Suspended => {
                self.set(&mut conditions, "Suspended", "True", "JobSuspended", "Job suspended")
            }
            Verdict::Complete => {
                let (reason, message) = ("CompletionsReached", "Reached expected number of succeeded pods");
                self.set(&mut conditions, "SuccessCriteriaMet", "True", reason, message);
                self.set(&mut conditions, "Complete", "True", reason, message);
            }
            Verdict::Failed { reason, message } => {
                self.set(&mut conditions, "FailureTarget", "True", reason, message);
                self.set(&mut conditions, "Failed", "True", reason, message);
            }
        }
        let stopped = ended || matches!(verdict, Verdict::Suspended);
        let active: Vec<&Arc<Pod>> = self.active().filter(|_| !stopped).collect();
        let start =
            before.start_time.or_else(|| Some(meta::stamp(self.now))).filter(|_| !self.is_suspended());
        JobStatus {
            active: Some(count(active.len())),
            ready: Some(count(active.iter().filter(|pod| pods::is_ready(pod)).count())),
            succeeded: Some(self.succeeded()),
            failed: Some(count(self.in_phase("Failed").len())),
            terminating: Some(count(
                self.pods
                    .iter()
                    .filter(|pod| meta::is_terminating(&pod.metadata) && !pods::is_finished(pod))
                    .count(),
            )),
            completed_indexes: self.is_indexed().then(|| indexes::write(&self.done_indexes())),
            completion_time: matches!(verdict, Verdict::Complete).then(|| meta::stamp(self.now)),
            start_time: start,
            conditions: Some(conditions).filter(|conditions| !conditions.is_empty()),
            failed_indexes: None,
            uncounted_terminated_pods: before.uncounted_terminated_pods,
        }
    }

    fn write(&self, status: &JobStatus) -> Effect {
        let mut body = to_value(status);
        // A merge patch forgets only what it names.
        if status.start_time.is_none() {
            body["startTime"] = json!(null);
        }
        Effect::status(Kind::Job, self.namespace(), meta::name(&self.job.metadata), &body)
    }

    fn set(&self, conditions: &mut Vec<JobCondition>, kind: &str, value: &str, reason: &str, message: &str) {
        let known = conditions.iter().position(|condition| condition.type_ == kind);
        // Nothing is said about suspension to jobs that never were suspended.
        if (known.is_none() && value == "False") || known.is_some_and(|at| conditions[at].status == value) {
            return;
        }
        let condition = JobCondition {
            type_: kind.to_owned(),
            status: value.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_probe_time: Some(meta::stamp(self.now)),
            last_transition_time: Some(meta::stamp(self.now)),
        };
        match known {
            Some(at) => conditions[at] = condition,
            None => conditions.push(condition),
        }
    }

    fn tell(&self, verdict: &Verdict) -> Option<Effect> {
        let (tone, reason, message) = match verdict {
            Verdict::Complete => (Tone::Normal, "Completed", "Job completed".to_owned()),
            Verdict::Failed { reason, message } => (Tone::Warning, *reason, message.clone()),
            Verdict::Running | Verdict::Suspended => return None,
        };
        Some(Effect::Tell { about: meta::reference(Kind::Job, &self.job.metadata), tone, reason, message })
    }

    /// When the job ended, if it has.
    fn finished(&self) -> Option<Timestamp> {
        let conditions = self.job.status.as_ref()?.conditions.as_ref()?;
        let ended = |condition: &&JobCondition| {
            matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
        };
        let time = conditions.iter().find(ended)?.last_transition_time.as_ref();
        Some(time.map_or(self.now, |time: &Time| time.0))
    }

    /// A job that asked for it is deleted some time after its end.
    fn forget(&self, finished: Timestamp, effects: &mut Vec<Effect>) -> Option<Duration> {
        let after = self.spec.ttl_seconds_after_finished?;
        let left = meta::time_until(finished + meta::seconds(after), self.now);
        if left.is_none() {
            let meta = &self.job.metadata;
            effects.push(Effect::delete(Kind::Job, self.namespace(), meta::name(meta), meta::uid(meta)));
        }
        left
    }
}

fn index(pod: &Pod) -> Option<i32> {
    meta::annotation(&pod.metadata, COMPLETION_INDEX)?.parse().ok()
}

/// When a pod's last container ended, as far as it is told.
fn ended(pod: &Pod) -> Timestamp {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let ends = statuses
        .filter_map(|status| Some(status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0));
    ends.max().unwrap_or_else(|| meta::created(&pod.metadata))
}

fn index_variable() -> EnvVar {
    let field_path = format!("metadata.annotations['{COMPLETION_INDEX}']");
    let field = ObjectFieldSelector { api_version: None, field_path };
    EnvVar {
        name: "JOB_COMPLETION_INDEX".to_owned(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
