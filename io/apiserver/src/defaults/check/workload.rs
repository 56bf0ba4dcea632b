//! Checks of the controllers of pods: selectors, templates, strategies, schedules and what may change.
use serde_json::{Value, json};

use super::list::*;
use super::pod::{self, Use};
use crate::kinds::Kind;
use crate::schema::FieldError;

pub(super) fn check(kind: &Kind, object: &Value, errors: &mut Errors) {
    let (spec, at) = (&object["spec"], At::root().field("spec"));
    if kind.kind == "ControllerRevision" {
        return;
    }
    if !spec.is_object() {
        errors.push(FieldError::required(at, ""));
        return;
    }
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        at_least(&spec[field], 0, &at.field(field), errors);
    }
    match kind.kind.as_str() {
        "Job" => job(spec, &at, errors),
        "CronJob" => cron_job(spec, &at, errors),
        _ => {
            selector(kind, spec, &at, errors);
            template(spec, &at, Use::Forever, errors);
        }
    }
    match kind.kind.as_str() {
        "Deployment" => deployment(spec, &at, errors),
        "StatefulSet" => stateful_set(spec, &at, errors),
        "DaemonSet" => rolling(&spec["updateStrategy"], &at.field("updateStrategy"), "OnDelete", errors),
        _ => {}
    }
}

fn selector(kind: &Kind, spec: &Value, at: &At, errors: &mut Errors) {
    let labels_at = at.field("template").field("metadata").field("labels");
    let labels = &spec["template"]["metadata"]["labels"];
    let selector = &spec["selector"];
    let wanted = match kind.kind.as_str() {
        "ReplicationController" => json!({ "matchLabels": selector }),
        _ => selector.clone(),
    };
    if selector.is_null() {
        errors.push(FieldError::required(at.field("selector"), ""));
        return;
    }
    label_selector(&wanted, &at.field("selector"), errors);
    let count = |field: &str| wanted[field].as_object().map_or(0, |m| m.len());
    if count("matchLabels") == 0 && wanted["matchExpressions"].as_array().is_none_or(Vec::is_empty) {
        let detail = format!("empty selector is invalid for {}", plain_name(&kind.kind));
        errors.push(FieldError::invalid(at.field("selector"), selector, detail));
    } else if spec["template"].is_object() && !selects(&wanted, labels) {
        let shown = if labels.is_null() { json!({}) } else { labels.clone() };
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(labels_at, &shown, detail));
    }
}

fn plain_name(kind: &str) -> String {
    kind.to_lowercase()
}

fn template(spec: &Value, at: &At, usage: Use, errors: &mut Errors) {
    let template = &spec["template"];
    let at = at.field("template");
    if !template.is_object() {
        return;
    }
    labels(&template["metadata"]["labels"], &at.field("metadata").field("labels"), errors);
    pod::spec(&template["spec"], &at.field("spec"), usage, errors);
    if !template["spec"].is_object() {
        errors.push(FieldError::required(at.field("spec").field("containers"), ""));
    }
}

fn deployment(spec: &Value, at: &At, errors: &mut Errors) {
    let at_deadline = at.field("progressDeadlineSeconds");
    at_least(&spec["progressDeadlineSeconds"], 0, &at_deadline, errors);
    let (deadline, ready) = (spec["progressDeadlineSeconds"].as_i64(), spec["minReadySeconds"].as_i64());
    if deadline.is_some_and(|deadline| deadline <= ready.unwrap_or(0)) {
        let detail = "must be greater than minReadySeconds";
        errors.push(FieldError::invalid(at_deadline, &spec["progressDeadlineSeconds"], detail));
    }
    rolling(&spec["strategy"], &at.field("strategy"), "Recreate", errors);
}

fn rolling(strategy: &Value, at: &At, other: &str, errors: &mut Errors) {
    one_of(&strategy["type"], &[other, "RollingUpdate"], &at.field("type"), errors);
    let rolling = &strategy["rollingUpdate"];
    if text(strategy, "type") == "Recreate" && !rolling.is_null() {
        let detail = "may not be specified when strategy `type` is 'Recreate'";
        errors.push(FieldError::forbidden(at.field("rollingUpdate"), detail));
        return;
    }
    let at = at.field("rollingUpdate");
    for field in ["maxUnavailable", "maxSurge"] {
        amount(&rolling[field], &at.field(field), errors);
    }
    let is_zero = |field: &str| rolling[field] == 0 || rolling[field] == "0%";
    if is_zero("maxUnavailable") && is_zero("maxSurge") {
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(at.field("maxUnavailable"), &rolling["maxUnavailable"], detail));
    }
}

/// A count or a percentage.
pub(super) fn amount(value: &Value, at: &At, errors: &mut Errors) {
    match value {
        Value::String(text) => {
            let digits =
                text.strip_suffix('%').filter(|d| !d.is_empty() && d.bytes().all(|c| c.is_ascii_digit()));
            if digits.is_none() {
                let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. \
                              '1%',  or '93%', regex used for validation is '[0-9]+%')";
                errors.push(FieldError::invalid(at, value, detail));
            }
        }
        number => at_least(number, 0, at, errors),
    }
}

fn stateful_set(spec: &Value, at: &At, errors: &mut Errors) {
    let policies = ["OrderedReady", "Parallel"];
    one_of(&spec["podManagementPolicy"], &policies, &at.field("podManagementPolicy"), errors);
    let (strategy, at) = (&spec["updateStrategy"], at.field("updateStrategy"));
    one_of(&strategy["type"], &["OnDelete", "RollingUpdate"], &at.field("type"), errors);
    let partition_at = at.field("rollingUpdate").field("partition");
    at_least(&strategy["rollingUpdate"]["partition"], 0, &partition_at, errors);
}

fn job(spec: &Value, at: &At, errors: &mut Errors) {
    for field in
        ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"]
    {
        at_least(&spec[field], 0, &at.field(field), errors);
    }
    one_of(&spec["completionMode"], &["NonIndexed", "Indexed"], &at.field("completionMode"), errors);
    if text(spec, "completionMode") == "Indexed" && spec["completions"].is_null() {
        let detail = "when completion mode is Indexed";
        errors.push(FieldError::required(at.field("completions"), detail));
    }
    template(spec, at, Use::UntilDone, errors);
}

fn cron_job(spec: &Value, at: &At, errors: &mut Errors) {
    let schedule = text(spec, "schedule");
    if !schedule.is_empty()
        && let Err(detail) = cron(schedule)
    {
        errors.push(FieldError::invalid(at.field("schedule"), &schedule.into(), detail));
    }
    let policies = ["Allow", "Forbid", "Replace"];
    one_of(&spec["concurrencyPolicy"], &policies, &at.field("concurrencyPolicy"), errors);
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        at_least(&spec[field], 0, &at.field(field), errors);
    }
    job(&spec["jobTemplate"]["spec"], &at.field("jobTemplate").field("spec"), errors);
}

/// Five fields of numbers, names, ranges and steps, or one of the `@` forms.
fn cron(schedule: &str) -> Result<(), String> {
    const NAMED: &[&str] = &["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if let Some(interval) = schedule.strip_prefix("@every ") {
        let parsed = crate::schema::formats::parse_go_duration(interval);
        return parsed.map(drop).ok_or_else(|| format!("failed to parse duration {schedule}"));
    }
    if NAMED.contains(&schedule) {
        return Ok(());
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!("expected exactly 5 fields, found {}: {fields:?}", fields.len()));
    }
    let limits = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)];
    fields.iter().zip(limits).try_for_each(|(field, (low, high))| {
        field.split(',').try_for_each(|part| {
            cron_part(part, low, high).ok_or_else(|| format!("failed to parse {field:?}"))
        })
    })
}

fn cron_part(part: &str, low: u32, high: u32) -> Option<()> {
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    if let Some(step) = step {
        step.parse::<u32>().ok().filter(|step| *step > 0)?;
    }
    let number = |text: &str| {
        let names = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
        let days = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
        let named = match high {
            12 => names.iter().position(|n| text.eq_ignore_ascii_case(n)).map(|at| at as u32 + 1),
            7 => days.iter().position(|n| text.eq_ignore_ascii_case(n)).map(|at| at as u32),
            _ => None,
        };
        named.or_else(|| text.parse().ok()).filter(|n| (low..=high).contains(n))
    };
    match range.split_once('-') {
        None if matches!(range, "*" | "?") => Some(()),
        None => number(range).map(drop),
        Some((from, to)) => (number(from)? <= number(to)?).then_some(()),
    }
}

const STATEFUL_FIELDS: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

pub(super) fn check_update(kind: &Kind, old: &Value, new: &Value, errors: &mut Errors) {
    match kind.kind.as_str() {
        "Deployment" | "ReplicaSet" | "DaemonSet" => unchanged(old, new, &["spec.selector"], errors),
        "StatefulSet" => {
            let fixed = |object: &Value| {
                let mut spec = object["spec"].clone();
                if let Some(fields) = spec.as_object_mut() {
                    fields.retain(|name, _| !STATEFUL_FIELDS.contains(&name.as_str()));
                }
                spec
            };
            if fixed(old) != fixed(new) {
                let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                              'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                              'minReadySeconds' are forbidden";
                errors.push(FieldError::forbidden("spec", detail));
            }
        }
        "Job" => {
            unchanged(old, new, &["spec.selector", "spec.completionMode"], errors);
            if old["spec"]["suspend"] != true {
                unchanged(old, new, &["spec.template"], errors);
            }
            if text(&old["spec"], "completionMode") != "Indexed" {
                unchanged(old, new, &["spec.completions"], errors);
            }
        }
        "ControllerRevision" => unchanged(old, new, &["data"], errors),
        _ => {}
    }
}
