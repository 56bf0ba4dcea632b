//! Rows of the controllers of pods: deployments, sets, jobs, autoscalers, disruption budgets.
use jiff::Timestamp;
use serde_json::Value;

use super::cells::{
    NONE, age, container_names, count, images, is_true, items, name, or_none, plain, selector, text, yes_no,
};
use super::{Layout, age as ages, column, number, wide};

pub(super) fn layout(kind: &str) -> Option<Layout> {
    Some(match kind {
        "Deployment" => DEPLOYMENT,
        "ReplicaSet" | "ReplicationController" => REPLICA_SET,
        "StatefulSet" => STATEFUL_SET,
        "DaemonSet" => DAEMON_SET,
        "Job" => JOB,
        "CronJob" => CRON_JOB,
        "HorizontalPodAutoscaler" => AUTOSCALER,
        "PodDisruptionBudget" => DISRUPTION_BUDGET,
        "PodTemplate" => POD_TEMPLATE,
        "ControllerRevision" => REVISION,
        _ => return None,
    })
}

fn template(object: &Value) -> &Value {
    &object["spec"]["template"]["spec"]
}

fn pods_of(object: &Value) -> [Value; 3] {
    [container_names(template(object)), images(template(object)), selector(&object["spec"]["selector"])]
}

fn out_of(done: &Value, wanted: &Value) -> Value {
    Value::from(format!("{}/{}", done.as_i64().unwrap_or(0), wanted.as_i64().unwrap_or(0)))
}

const DEPLOYMENT: Layout = Layout {
    columns: &[
        column("Name"),
        column("Ready"),
        number("Up-to-date"),
        number("Available"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row: |o, now| {
        let status = &o["status"];
        let mut row = vec![
            name(o),
            out_of(&status["readyReplicas"], &o["spec"]["replicas"]),
            count(&status["updatedReplicas"]),
            count(&status["availableReplicas"]),
            age(o, now),
        ];
        row.extend(pods_of(o));
        row
    },
};

const REPLICA_SET: Layout = Layout {
    columns: &[
        column("Name"),
        number("Desired"),
        number("Current"),
        number("Ready"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row: |o, now| {
        let status = &o["status"];
        let mut row = vec![
            name(o),
            count(&o["spec"]["replicas"]),
            count(&status["replicas"]),
            count(&status["readyReplicas"]),
            age(o, now),
        ];
        row.extend(pods_of(o));
        row
    },
};

const STATEFUL_SET: Layout = Layout {
    columns: &[column("Name"), column("Ready"), column("Age"), wide("Containers"), wide("Images")],
    row: |o, now| {
        let ready = out_of(&o["status"]["readyReplicas"], &o["spec"]["replicas"]);
        vec![name(o), ready, age(o, now), container_names(template(o)), images(template(o))]
    },
};

const DAEMON_SET: Layout = Layout {
    columns: &[
        column("Name"),
        number("Desired"),
        number("Current"),
        number("Ready"),
        number("Up-to-date"),
        number("Available"),
        column("Node Selector"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row: |o, now| {
        let status = &o["status"];
        let mut row = vec![name(o)];
        let counts = [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ];
        row.extend(counts.map(|field| count(&status[field])));
        row.push(selector(&template(o)["nodeSelector"]));
        row.push(age(o, now));
        row.extend(pods_of(o));
        row
    },
};

const JOB: Layout = Layout {
    columns: &[
        column("Name"),
        column("Status"),
        column("Completions"),
        column("Duration"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row: |o, now| {
        let mut row =
            vec![name(o), job_status(o), completions(o), Value::from(job_duration(o, now)), age(o, now)];
        row.extend(pods_of(o));
        row
    },
};

fn job_status(job: &Value) -> Value {
    let conditions = [
        ("Complete", "Complete"),
        ("Failed", "Failed"),
        ("Suspended", "Suspended"),
        ("FailureTarget", "FailureTarget"),
        ("SuccessCriteriaMet", "SuccessCriteriaMet"),
    ];
    let reached = conditions.iter().find(|(condition, _)| is_true(job, condition)).map(|(_, word)| *word);
    let deleted = job["metadata"].get("deletionTimestamp").is_some();
    Value::from(reached.unwrap_or(if deleted { "Terminating" } else { "Running" }))
}

fn completions(job: &Value) -> Value {
    let done = job["status"]["succeeded"].as_i64().unwrap_or(0);
    let parallel = job["spec"]["parallelism"].as_i64().unwrap_or(0);
    Value::from(match job["spec"]["completions"].as_i64() {
        Some(wanted) => format!("{done}/{wanted}"),
        None if parallel > 1 => format!("{done}/1 of {parallel}"),
        None => format!("{done}/1"),
    })
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let status = &job["status"];
    let Some(started) = ages::parse(&status["startTime"]) else { return String::new() };
    let failed = items(&status["conditions"]).find(|c| c["type"] == "Failed" && c["status"] == "True");
    let ended = ages::parse(&status["completionTime"])
        .or_else(|| failed.and_then(|c| ages::parse(&c["lastTransitionTime"])))
        .unwrap_or(now);
    ages::seconds(ended.as_second() - started.as_second())
}

const CRON_JOB: Layout = Layout {
    columns: &[
        column("Name"),
        column("Schedule"),
        column("Timezone"),
        column("Suspend"),
        number("Active"),
        column("Last Schedule"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    row: |o, now| {
        let (spec, job) = (&o["spec"], &o["spec"]["jobTemplate"]["spec"]);
        let last = &o["status"]["lastScheduleTime"];
        vec![
            name(o),
            Value::from(text(spec, "schedule")),
            or_none(text(spec, "timeZone")),
            yes_no(&spec["suspend"], "<unset>"),
            Value::from(items(&o["status"]["active"]).count()),
            Value::from(if last.is_null() { NONE.to_owned() } else { ages::since(last, now) }),
            age(o, now),
            container_names(&job["template"]["spec"]),
            images(&job["template"]["spec"]),
            selector(&job["selector"]),
        ]
    },
};

const AUTOSCALER: Layout = Layout {
    columns: &[
        column("Name"),
        column("Reference"),
        column("Targets"),
        column("MinPods"),
        column("MaxPods"),
        number("Replicas"),
        column("Age"),
    ],
    row: |o, now| {
        let spec = &o["spec"];
        let target = &spec["scaleTargetRef"];
        vec![
            name(o),
            Value::from(format!("{}/{}", text(target, "kind"), text(target, "name"))),
            Value::from(targets(o)),
            Value::from(spec["minReplicas"].as_i64().map_or("<unset>".to_owned(), |n| n.to_string())),
            Value::from(spec["maxReplicas"].as_i64().unwrap_or(0).to_string()),
            count(&o["status"]["currentReplicas"]),
            age(o, now),
        ]
    },
};

/// Each metric as `name: current/target`.
fn targets(autoscaler: &Value) -> String {
    const UNKNOWN: &str = "<unknown>";
    let mut parts = Vec::new();
    for metric in items(&autoscaler["spec"]["metrics"]) {
        let (resource, target) = (text(&metric["resource"], "name"), &metric["resource"]["target"]);
        let current =
            items(&autoscaler["status"]["currentMetrics"]).find(|c| c["resource"]["name"] == resource);
        let current =
            |field: &str| current.map(|c| &c["resource"]["current"][field]).filter(|v| !v.is_null());
        parts.push(match target["averageUtilization"].as_i64() {
            Some(wanted) => {
                let now = current("averageUtilization").map_or(UNKNOWN.to_owned(), |v| format!("{v}%"));
                format!("{resource}: {now}/{wanted}%")
            }
            None => {
                let now = current("averageValue").map_or(UNKNOWN.to_owned(), plain);
                format!("{resource}: {now}/{}", plain(&target["averageValue"]))
            }
        });
    }
    if let Some(wanted) = autoscaler["spec"]["targetCPUUtilizationPercentage"].as_i64() {
        let now = autoscaler["status"]["currentCPUUtilizationPercentage"].as_i64();
        parts.push(format!("cpu: {}/{wanted}%", now.map_or(UNKNOWN.to_owned(), |n| format!("{n}%"))));
    }
    super::cells::some_of(&parts, 2)
}

const DISRUPTION_BUDGET: Layout = Layout {
    columns: &[
        column("Name"),
        column("Min Available"),
        column("Max Unavailable"),
        number("Allowed Disruptions"),
        column("Age"),
    ],
    row: |o, now| {
        let amount = |field: &str| match &o["spec"][field] {
            Value::Null => Value::from("N/A"),
            amount => Value::from(plain(amount)),
        };
        vec![
            name(o),
            amount("minAvailable"),
            amount("maxUnavailable"),
            count(&o["status"]["disruptionsAllowed"]),
            age(o, now),
        ]
    },
};

const POD_TEMPLATE: Layout = Layout {
    columns: &[column("Name"), column("Containers"), column("Images"), column("Pod Labels")],
    row: |o, _| {
        let template = &o["template"];
        let pod = &template["spec"];
        vec![name(o), container_names(pod), images(pod), selector(&template["metadata"]["labels"])]
    },
};

const REVISION: Layout = Layout {
    columns: &[column("Name"), column("Controller"), number("Revision"), column("Age")],
    row: |o, now| {
        let owner = items(&o["metadata"]["ownerReferences"]).find(|owner| owner["controller"] == true);
        let owner = owner.map_or(NONE.to_owned(), |owner| {
            let group = text(owner, "apiVersion").split_once('/').map_or("", |(group, _)| group);
            let dot = if group.is_empty() { "" } else { "." };
            format!("{}{dot}{group}/{}", text(owner, "kind").to_lowercase(), text(owner, "name"))
        });
        vec![name(o), Value::from(owner), count(&o["revision"]), age(o, now)]
    },
};
