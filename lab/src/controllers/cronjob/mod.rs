//! CronJobs: a job whenever its time has come. Pure.

mod schedule;

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::effect::{Effect, Kind, Outcome, Tone, to_value};
use super::meta;
use schedule::Schedule;

const KEPT_SUCCESSES: i32 = 3;
const KEPT_FAILURES: i32 = 1;

/// Decides about one cron job from the jobs of its namespace.
pub fn reconcile(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Outcome {
    let mut outcome = Outcome::default();
    let Some(spec) = cron.spec.as_ref().filter(|_| !meta::is_terminating(&cron.metadata)) else {
        return outcome;
    };
    let mut mine: Vec<&Arc<Job>> =
        jobs.iter().filter(|job| meta::is_controlled_by(&job.metadata, &cron.metadata)).collect();
    mine.sort_by_key(|job| (meta::created(&job.metadata), meta::name(&job.metadata).to_owned()));
    outcome.effects.extend(forget(spec, &mine));
    let mut status = status(cron, &mine);
    match times(spec) {
        Err(why) => {
            let about = meta::reference(Kind::CronJob, &cron.metadata);
            outcome.effects.push(Effect::Tell {
                about,
                tone: Tone::Warning,
                reason: "UnparseableSchedule",
                message: why,
            });
        }
        Ok(_) if spec.suspend == Some(true) => {}
        Ok((schedule, zone)) => {
            let since = last(cron);
            if let Some(due) = schedule.last_between(&zoned(since, &zone), &zoned(now, &zone)) {
                let due = due.timestamp();
                outcome.effects.extend(start(cron, spec, &mine, due, now));
                status.last_schedule_time = Some(meta::stamp(due));
            }
            let next = schedule
                .next_after(&zoned(now, &zone))
                .and_then(|next| meta::time_until(next.timestamp(), now));
            outcome.recheck = next.map(|next| next + Duration::from_millis(5));
        }
    }
    if cron.status.as_ref() != Some(&status) {
        let mut body = to_value(&status);
        body["active"] = json!(status.active.unwrap_or_default());
        let meta = &cron.metadata;
        outcome.effects.push(Effect::status(Kind::CronJob, meta::namespace(meta), meta::name(meta), &body));
    }
    outcome
}

fn times(spec: &CronJobSpec) -> Result<(Schedule, TimeZone), String> {
    let schedule =
        Schedule::read(&spec.schedule).map_err(|why| format!("spec.schedule {:?}: {why}", spec.schedule))?;
    let zone = match &spec.time_zone {
        None => TimeZone::UTC,
        Some(name) => TimeZone::get(name).map_err(|_| format!("spec.timeZone {name:?} is not known here"))?,
    };
    Ok((schedule, zone))
}

fn zoned(time: Timestamp, zone: &TimeZone) -> Zoned {
    time.to_zoned(zone.clone())
}

/// From when on runs are due.
fn last(cron: &CronJob) -> Timestamp {
    let scheduled = cron.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    scheduled.map_or_else(|| meta::created(&cron.metadata), |time| time.0)
}

fn start(
    cron: &CronJob,
    spec: &CronJobSpec,
    jobs: &[&Arc<Job>],
    due: Timestamp,
    now: Timestamp,
) -> Vec<Effect> {
    let tell = |reason: &'static str, message: String| {
        let about = meta::reference(Kind::CronJob, &cron.metadata);
        Effect::Tell { about, tone: Tone::Warning, reason, message }
    };
    let limit = spec.starting_deadline_seconds.map(|limit| due + meta::seconds(limit));
    if limit.is_some_and(|limit| limit < now) {
        return vec![tell("MissSchedule", format!("Missed scheduled time to start a job: {due}"))];
    }
    let running: Vec<&&Arc<Job>> = jobs.iter().filter(|job| ended(job).is_none()).collect();
    let mut effects = Vec::new();
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !running.is_empty() => {
            let message =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            return vec![tell("JobAlreadyActive", message.to_owned())];
        }
        Some("Replace") => effects.extend(running.iter().map(|job| delete(job))),
        _ => {}
    }
    // Named after its minute: however often this is decided, it is one job.
    let name = meta::name(&cron.metadata);
    let name = format!("{}-{}", &name[..name.len().min(52)], due.as_second() / 60);
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let job = Job {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: cron.metadata.namespace.clone(),
            labels: template.labels,
            annotations: template.annotations,
            owner_references: Some(vec![meta::owner_reference(Kind::CronJob, &cron.metadata)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    };
    effects.push(Effect::create(Kind::Job, meta::namespace(&cron.metadata), &name, &job));
    effects
}

fn status(cron: &CronJob, jobs: &[&Arc<Job>]) -> CronJobStatus {
    let before = cron.status.clone().unwrap_or_default();
    let active: Vec<ObjectReference> = jobs
        .iter()
        .filter(|job| ended(job).is_none())
        .map(|job| ObjectReference { resource_version: None, ..*meta::reference(Kind::Job, &job.metadata) })
        .collect();
    let completions = jobs.iter().filter_map(|job| job.status.as_ref()?.completion_time.clone());
    CronJobStatus {
        active: Some(active).filter(|active| !active.is_empty()),
        last_schedule_time: before.last_schedule_time,
        last_successful_time: completions.chain(before.last_successful_time).max_by_key(|time| time.0),
    }
}

/// Finished jobs beyond those to be kept, oldest first.
fn forget(spec: &CronJobSpec, jobs: &[&Arc<Job>]) -> Vec<Effect> {
    let of = |kind: End, keep: i32| {
        let all: Vec<&&Arc<Job>> = jobs.iter().filter(|job| ended(job) == Some(kind)).collect();
        let surplus = all.len().saturating_sub(usize::try_from(keep).unwrap_or(0));
        all.into_iter().take(surplus).map(|job| delete(job)).collect::<Vec<_>>()
    };
    let mut effects = of(End::Complete, spec.successful_jobs_history_limit.unwrap_or(KEPT_SUCCESSES));
    effects.extend(of(End::Failed, spec.failed_jobs_history_limit.unwrap_or(KEPT_FAILURES)));
    effects
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Complete,
    Failed,
}

fn ended(job: &Job) -> Option<End> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let holds =
        |kind: &str| conditions.iter().any(|condition| condition.type_ == kind && condition.status == "True");
    if holds("Complete") { Some(End::Complete) } else { holds("Failed").then_some(End::Failed) }
}

fn delete(job: &Job) -> Effect {
    Effect::delete(
        Kind::Job,
        meta::namespace(&job.metadata),
        meta::name(&job.metadata),
        meta::uid(&job.metadata),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::{merge, now, parse};
    use serde_json::Value;

    fn cron(more: Value) -> CronJob {
        let mut object = json!({
            "metadata": {"name": "tick", "namespace": "shop", "uid": "cron-uid", "creationTimestamp": "2026-02-03T04:00:30Z"},
            "spec": {"schedule": "*/5 * * * *", "jobTemplate": {"spec": {"template": {"spec": {"containers": []}}}}},
        });
        merge(&mut object, more);
        parse(object)
    }

    fn job(name: &str, end: Option<&str>) -> Arc<Job> {
        let conditions: Vec<Value> =
            end.into_iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
        Arc::new(parse(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "creationTimestamp": "2026-02-03T04:00:00Z",
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "CronJob", "name": "tick", "uid": "cron-uid", "controller": true}]},
            "status": {"conditions": conditions},
        })))
    }

    fn made(outcome: &Outcome) -> Vec<String> {
        let name = |effect: &Effect| match effect {
            Effect::Create { target, .. } => Some(format!("+{}", target.name)),
            Effect::Delete { target, .. } => Some(format!("-{}", target.name)),
            Effect::Tell { reason, .. } => Some((*reason).to_owned()),
            _ => None,
        };
        outcome.effects.iter().filter_map(name).collect()
    }

    const DUE: &str = "+tick-29501525";

    #[test]
    fn a_job_is_made_when_its_time_has_come_and_only_once() {
        let outcome = reconcile(&cron(json!({})), &[], now());
        assert_eq!(made(&outcome), [DUE]);
        assert_eq!(outcome.recheck.map(|recheck| recheck.as_secs()), Some(294), "next at 04:10");
        let scheduled = cron(json!({"status": {"lastScheduleTime": "2026-02-03T04:05:00Z"}}));
        assert!(made(&reconcile(&scheduled, &[], now())).is_empty());
    }

    #[test]
    fn concurrency_policies() {
        let running = [job("old", None)];
        let policy = |policy: &str| cron(json!({"spec": {"concurrencyPolicy": policy}}));
        assert_eq!(made(&reconcile(&policy("Allow"), &running, now())), [DUE]);
        assert_eq!(made(&reconcile(&policy("Forbid"), &running, now())), ["JobAlreadyActive"]);
        assert_eq!(made(&reconcile(&policy("Replace"), &running, now())), ["-old", DUE]);
    }

    #[test]
    fn late_suspended_and_unreadable() {
        assert_eq!(
            made(&reconcile(&cron(json!({"spec": {"startingDeadlineSeconds": 3}})), &[], now())),
            ["MissSchedule"]
        );
        assert!(made(&reconcile(&cron(json!({"spec": {"suspend": true}})), &[], now())).is_empty());
        assert_eq!(
            made(&reconcile(&cron(json!({"spec": {"schedule": "often"}})), &[], now())),
            ["UnparseableSchedule"]
        );
        assert_eq!(
            made(&reconcile(&cron(json!({"spec": {"timeZone": "Mars/Base"}})), &[], now())),
            ["UnparseableSchedule"]
        );
    }

    #[test]
    fn old_jobs_are_forgotten() {
        let mut jobs: Vec<Arc<Job>> = (0..5).map(|n| job(&format!("s{n}"), Some("Complete"))).collect();
        jobs.extend((0..2).map(|n| job(&format!("f{n}"), Some("Failed"))));
        let outcome = reconcile(&cron(json!({"spec": {"suspend": true}})), &jobs, now());
        assert_eq!(made(&outcome), ["-s0", "-s1", "-f0"]);
    }
}
