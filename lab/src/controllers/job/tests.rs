//! Jobs from their first pod to their end.

use super::*;
use crate::controllers::testing::{merge, now, parse, pod};
use serde_json::Value;

fn job(more: Value) -> Job {
    let mut object = json!({
        "metadata": {"name": "load", "namespace": "shop", "uid": "job-uid"},
        "spec": {"completions": 1, "parallelism": 1,
            "template": {"metadata": {"labels": {"app": "load"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}},
        "status": {"startTime": "2026-02-03T04:05:06Z"},
    });
    merge(&mut object, more);
    parse(object)
}

fn mine(name: &str, phase: &str, more: Value) -> Arc<Pod> {
    let mut object = json!({"status": {"phase": phase}});
    merge(&mut object, more);
    pod(name, "app=load", Some(("Job", "load", "job-uid")), object)
}

fn created(outcome: &Outcome) -> Vec<&Value> {
    let body = |effect: &'_ Effect| matches!(effect, Effect::Create { .. });
    outcome
        .effects
        .iter()
        .filter(|effect| body(effect))
        .map(|effect| match effect {
            Effect::Create { body, .. } => body,
            _ => unreachable!("filtered"),
        })
        .collect()
}

fn status(outcome: &Outcome) -> &Value {
    let found = outcome.effects.iter().rev().find_map(|effect| match effect {
        Effect::MergeStatus { body, .. } => Some(&body["status"]),
        _ => None,
    });
    found.expect("a status")
}

fn condition<'a>(outcome: &'a Outcome, kind: &str) -> &'a Value {
    let conditions = status(outcome)["conditions"].as_array().expect("conditions");
    conditions.iter().find(|condition| condition["type"] == kind).expect("the condition")
}

#[test]
fn pods_are_made_up_to_parallelism_and_completions() {
    for (completions, parallelism, done, active, expected) in [
        (1, 1, 0, 0, 1),
        (5, 2, 0, 0, 2),
        (5, 2, 0, 1, 1),
        (5, 2, 4, 0, 1),
        (5, 9, 2, 1, 2),
        (5, 2, 4, 1, 0),
        (3, 0, 0, 0, 0),
    ] {
        let job = job(json!({"spec": {"completions": completions, "parallelism": parallelism}}));
        let mut pods: Vec<Arc<Pod>> =
            (0..done).map(|n| mine(&format!("d{n}"), "Succeeded", json!({}))).collect();
        pods.extend((0..active).map(|n| mine(&format!("a{n}"), "Running", json!({}))));
        let outcome = reconcile(&job, &pods, now());
        assert_eq!(created(&outcome).len(), expected, "{completions} {parallelism} {done} {active}");
    }
}

#[test]
fn pods_carry_the_labels_kubectl_looks_for() {
    let outcome = reconcile(&job(json!({})), &[], now());
    let pod = created(&outcome)[0];
    assert_eq!(pod["metadata"]["labels"]["job-name"], "load");
    assert_eq!(pod["metadata"]["labels"]["batch.kubernetes.io/controller-uid"], "job-uid");
    assert_eq!(pod["metadata"]["generateName"], "load-");
}

#[test]
fn a_job_ends_with_its_last_completion() {
    let outcome = reconcile(&job(json!({})), &[mine("a", "Succeeded", json!({}))], now());
    assert_eq!(condition(&outcome, "Complete")["status"], "True");
    assert_eq!(status(&outcome)["succeeded"], 1);
    assert!(status(&outcome)["completionTime"].is_string());
    assert!(outcome.effects.iter().any(|effect| matches!(effect, Effect::Tell { reason: "Completed", .. })));
    let mut done = job(json!({}));
    done.status = Some(parse(status(&outcome).clone()));
    assert_eq!(reconcile(&done, &[mine("a", "Succeeded", json!({}))], now()), Outcome::default());
}

#[test]
fn a_work_queue_ends_when_one_succeeded_and_none_runs() {
    let job = job(json!({"spec": {"completions": null, "parallelism": 3}}));
    let pods = [mine("a", "Succeeded", json!({})), mine("b", "Running", json!({}))];
    assert!(created(&reconcile(&job, &pods, now())).is_empty());
    assert_eq!(condition(&reconcile(&job, &pods[..1], now()), "Complete")["status"], "True");
}

#[test]
fn failures_wait_longer_each_time_and_end_the_job_in_the_end() {
    let job = job(json!({"spec": {"backoffLimit": 2}}));
    let failed = |name: &str, ago: i64| {
        let at = (now() - meta::seconds(ago)).to_string();
        mine(
            name,
            "Failed",
            json!({"status": {"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"terminated": {"exitCode": 1, "finishedAt": at}}}]}}),
        )
    };
    let waits = reconcile(&job, &[failed("a", 4)], now());
    assert_eq!((created(&waits).len(), waits.recheck), (0, Some(Duration::from_secs(6))));
    assert_eq!(created(&reconcile(&job, &[failed("a", 10)], now())).len(), 1);
    let twice = reconcile(&job, &[failed("a", 30), failed("b", 5)], now());
    assert_eq!(twice.recheck, Some(Duration::from_secs(15)));
    let over = reconcile(&job, &[failed("a", 90), failed("b", 60), failed("c", 30)], now());
    assert_eq!(condition(&over, "Failed")["reason"], "BackoffLimitExceeded");
}

#[test]
fn restarts_inside_pods_count_as_failures() {
    let restarted = mine(
        "a",
        "Running",
        json!({"status": {"containerStatuses": [
        {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 3}]}}),
    );
    let over = reconcile(&job(json!({"spec": {"backoffLimit": 2}})), &[restarted], now());
    assert_eq!(condition(&over, "Failed")["reason"], "BackoffLimitExceeded");
    assert!(
        over.effects.iter().any(|effect| matches!(effect, Effect::Delete { .. })),
        "what still runs is stopped"
    );
}

#[test]
fn the_deadline_ends_what_still_runs() {
    let job = job(json!({"spec": {"activeDeadlineSeconds": 30}}));
    let running = [mine("a", "Running", json!({}))];
    let before = reconcile(&job, &running, now() + meta::seconds(10));
    assert_eq!(before.recheck, Some(Duration::from_secs(20)));
    let after = reconcile(&job, &running, now() + meta::seconds(30));
    assert_eq!(condition(&after, "Failed")["reason"], "DeadlineExceeded");
    assert!(after.effects.iter().any(|effect| matches!(effect, Effect::Delete { .. })));
}

#[test]
fn a_suspended_job_has_no_pods_and_starts_anew() {
    let suspended = job(json!({"spec": {"suspend": true}}));
    let outcome = reconcile(&suspended, &[mine("a", "Running", json!({}))], now());
    assert!(outcome.effects.iter().any(|effect| matches!(effect, Effect::Delete { .. })));
    assert_eq!(condition(&outcome, "Suspended")["status"], "True");
    assert!(status(&outcome)["startTime"].is_null());
    let mut resumed = job(json!({}));
    resumed.status = Some(parse(json!({"conditions": [{"type": "Suspended", "status": "True"}]})));
    let outcome = reconcile(&resumed, &[], now());
    assert_eq!(condition(&outcome, "Suspended")["status"], "False");
    assert_eq!(created(&outcome).len(), 1);
}

#[test]
fn a_finished_job_is_forgotten_when_its_time_is_up() {
    let finished = job(json!({"spec": {"ttlSecondsAfterFinished": 60},
        "status": {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-02-03T04:05:06Z"}]}}));
    assert_eq!(reconcile(&finished, &[], now() + meta::seconds(20)).recheck, Some(Duration::from_secs(40)));
    let outcome = reconcile(&finished, &[], now() + meta::seconds(60));
    assert!(
        matches!(&outcome.effects[..], [Effect::Delete { target, .. }] if target.kind == Kind::Job),
        "{outcome:?}"
    );
}

#[test]
fn indexed_jobs_run_every_index_once_to_its_success() {
    let job = job(json!({"spec": {"completions": 4, "parallelism": 4, "completionMode": "Indexed"}}));
    let at = |name: &str, phase: &str, index: &str| {
        mine(name, phase, json!({"metadata": {"annotations": {COMPLETION_INDEX: index}}}))
    };
    let pods = [at("a", "Succeeded", "0"), at("b", "Running", "2"), at("c", "Succeeded", "0")];
    let outcome = reconcile(&job, &pods, now());
    let made: Vec<&str> = created(&outcome)
        .iter()
        .map(|pod| pod["metadata"]["annotations"][COMPLETION_INDEX].as_str().unwrap())
        .collect();
    assert_eq!(made, ["1", "3"]);
    let pod = created(&outcome)[0];
    assert_eq!(pod["spec"]["hostname"], "load-1");
    assert_eq!(pod["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
    assert_eq!(status(&outcome)["completedIndexes"], "0");
}
