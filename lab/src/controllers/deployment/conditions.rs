//! What a deployment says about itself: counts, and whether it is available and progressing. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};

use super::{View, available, replicas, rollout::Sizes};
use crate::controllers::meta;

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";

/// The status now, and when the progress deadline has to be looked at again.
pub fn status(view: &View<'_>, sizes: &Sizes, now: Timestamp) -> (DeploymentStatus, Option<Duration>) {
    let mut status = counts(view);
    let before = view.deployment.status.clone().unwrap_or_default();
    let mut conditions = before.conditions.clone().unwrap_or_default();
    let enough = status.available_replicas.unwrap_or(0) >= view.wanted() - view.max_unavailable();
    let (value, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut conditions, condition(AVAILABLE, value, reason, message.to_owned(), now));
    let mut recheck = None;
    if let Some((progress, deadline)) = progress(view, sizes, &before, &status, now) {
        set(&mut conditions, progress);
        recheck = deadline;
    }
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    status.conditions = Some(conditions);
    (status, recheck)
}

/// Whether all pods are of the new version and serve, and nothing old is left.
pub fn is_complete(view: &View<'_>, status: &DeploymentStatus) -> bool {
    let wanted = view.wanted();
    [status.updated_replicas, status.replicas, status.available_replicas]
        .iter()
        .all(|n| n.unwrap_or(0) == wanted)
        && view.new.is_some()
}

fn counts(view: &View<'_>) -> DeploymentStatus {
    let sum = |of: &dyn Fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        view.all().filter_map(|set| set.status.as_ref()).map(of).sum()
    };
    let asked: i32 = view.all().map(|set| replicas(set)).sum();
    let is_available: i32 = view.all().map(|set| available(set)).sum();
    let updated = view.new.as_ref().and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    DeploymentStatus {
        observed_generation: view.deployment.metadata.generation,
        replicas: Some(sum(&|status| status.replicas)),
        updated_replicas: Some(updated),
        ready_replicas: Some(sum(&|status| status.ready_replicas.unwrap_or(0))),
        available_replicas: Some(is_available),
        unavailable_replicas: Some((asked.max(view.wanted()) - is_available).max(0)),
        collision_count: view.deployment.status.as_ref().and_then(|status| status.collision_count),
        conditions: None,
        terminating_replicas: None,
    }
}

fn progress(
    view: &View<'_>,
    sizes: &Sizes,
    before: &DeploymentStatus,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<(DeploymentCondition, Option<Duration>)> {
    let known = before.conditions.iter().flatten().find(|condition| condition.type_ == PROGRESSING);
    let say =
        |value: &str, reason: &str, message: String| condition(PROGRESSING, value, reason, message, now);
    if view.is_paused() {
        return Some((say("Unknown", "DeploymentPaused", "Deployment is paused".to_owned()), None));
    }
    let name = view.new.as_ref().map(|set| meta::name(&set.metadata).to_owned());
    let Some(name) = name else {
        let set = format!("{}-{}", meta::name(&view.deployment.metadata), view.template_hash());
        let message = format!("Created new replica set \"{set}\"");
        return sizes.new.map(|_| (say("True", "NewReplicaSetCreated", message), None));
    };
    if is_complete(view, status) {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        return Some((say("True", NEW_SET_AVAILABLE, message), None));
    }
    let moved = status.updated_replicas > before.updated_replicas
        || status.ready_replicas > before.ready_replicas
        || status.available_replicas > before.available_replicas
        || old_replicas(status) < old_replicas(before);
    let going = say("True", "ReplicaSetUpdated", format!("ReplicaSet \"{name}\" is progressing."));
    let limit = view.deployment.spec.as_ref().and_then(|spec| spec.progress_deadline_seconds).unwrap_or(600);
    let whole = u64::try_from(limit).ok().map(Duration::from_secs);
    match known {
        // A finished roll-out whose pods come and go is not a new one.
        Some(known)
            if known.reason.as_deref() == Some(NEW_SET_AVAILABLE)
                && view.old.iter().all(|set| replicas(set) == 0)
                && !moved =>
        {
            None
        }
        Some(known)
            if !moved
                && known.reason.as_deref() != Some("DeploymentPaused")
                && known.reason.as_deref() != Some(NEW_SET_AVAILABLE) =>
        {
            if known.reason.as_deref() == Some(DEADLINE_EXCEEDED) {
                return None;
            }
            let since = known.last_update_time.as_ref().map_or(now, |time| time.0);
            match meta::time_until(since + meta::seconds(limit), now) {
                Some(left) => Some((known.clone(), Some(left))),
                None => {
                    let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
                    Some((say("False", DEADLINE_EXCEEDED, message), None))
                }
            }
        }
        _ => Some((going, whole)),
    }
}

fn old_replicas(status: &DeploymentStatus) -> i32 {
    status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0)
}

fn condition(kind: &str, value: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(meta::stamp(now)),
        last_transition_time: Some(meta::stamp(now)),
    }
}

/// Puts a condition among the others. One that says the same keeps its times, unless it reports progress.
fn set(conditions: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition) {
    let Some(known) = conditions.iter_mut().find(|condition| condition.type_ == new.type_) else {
        conditions.push(new);
        return;
    };
    if known.status == new.status {
        new.last_transition_time.clone_from(&known.last_transition_time);
        let repeats = known.reason == new.reason && known.message == new.message;
        if repeats && new.reason.as_deref() != Some("ReplicaSetUpdated") {
            new.last_update_time.clone_from(&known.last_update_time);
        }
    }
    *known = new;
}
