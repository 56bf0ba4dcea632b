//! Brings a pod's status to the API: the newest one only, again and again until it is taken; and at the end the
//! removal of the object.
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::worker::Input;

const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(5);

/// Fields that a status may lose again; in a merge patch an absent one must be named to go.
const OPTIONAL_FIELDS: [&str; 7] = [
    "podIP",
    "podIPs",
    "reason",
    "message",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
];

pub struct Publisher {
    api: Api<Pod>,
    name: String,
    uid: String,
    newest: watch::Sender<Option<PodStatus>>,
    taken: Taken,
    task: JoinHandle<()>,
}

/// The status the API took last, and the version of the pod that it became part of.
type Taken = Arc<Mutex<Option<(PodStatus, u64)>>>;

impl Publisher {
    /// Tells the worker when a status was taken.
    pub fn start(client: kube::Client, pod: &Pod, worker: mpsc::UnboundedSender<Input>) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (name, uid) = (text(&pod.metadata.name), text(&pod.metadata.uid));
        let api = Api::namespaced(client, &text(&pod.metadata.namespace));
        let (newest, changes) = watch::channel(None);
        let taken = Taken::default();
        let (sending, noted) = ((api.clone(), name.clone(), uid.clone()), taken.clone());
        let task = tokio::spawn(async move {
            let (api, name, uid) = sending;
            let note = |status, version| {
                *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some((status, version));
                // The worker is gone only when the pod is.
                let _ = worker.send(Input::Published);
            };
            send_changes(&api, &name, &uid, changes, note).await;
        });
        Self { api, name, uid, newest, taken, task }
    }

    /// Sends the status in the background if it is news.
    pub fn publish(&self, status: PodStatus) {
        self.newest.send_if_modified(|last| {
            let is_news = last.as_ref() != Some(&status);
            if is_news {
                *last = Some(status);
            }
            is_news
        });
    }

    /// What was handed in last.
    pub fn last(&self) -> Option<PodStatus> {
        self.newest.borrow().clone()
    }

    /// Whether this object shows what became of everything handed in.
    pub fn is_shown_by(&self, pod: &Pod) -> bool {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((status, version)) = &*taken else { return false };
        version_of(pod).is_some_and(|shown| shown >= *version)
            && self.newest.borrow().as_ref() == Some(status)
    }

    /// Sends the last status, then removes the object for good.
    pub async fn finish(self, pod: &Pod) {
        self.task.abort();
        if let Some(status) = self.last() {
            // If it cannot be sent now it does not matter any more: the object goes.
            let _ = send(&self.api, &self.name, &self.uid, &status).await;
        }
        remove(&self.api, pod).await;
    }
}

/// Removes a pod object whose grace is over, trying until the API has answered.
pub async fn remove(api: &Api<Pod>, pod: &Pod) {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: pod.metadata.uid.clone(), ..Preconditions::default() }),
        ..DeleteParams::default()
    };
    let mut rest = FIRST_REST;
    loop {
        match api.delete(name, &params).await {
            Err(error) if !is_final(&error) => tracing::debug!(pod = name, "not removed yet: {error}"),
            _ => return,
        }
        tokio::time::sleep(rest).await;
        rest = (rest * 2).min(LONGEST_REST);
    }
}

/// Whether the API has said that this pod is not, or no longer, ours to change.
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409 | 410))
}

/// Versions of API servers grow; one that cannot be read as a number is told apart from no other.
fn version_of(pod: &Pod) -> Option<u64> {
    pod.metadata.resource_version.as_deref()?.parse().ok()
}

async fn send_changes(
    api: &Api<Pod>,
    name: &str,
    uid: &str,
    mut changes: watch::Receiver<Option<PodStatus>>,
    note: impl Fn(PodStatus, u64),
) {
    let mut rest = FIRST_REST;
    while changes.changed().await.is_ok() {
        loop {
            let Some(status) = changes.borrow_and_update().clone() else { break };
            match send(api, name, uid, &status).await {
                Ok(pod) => {
                    rest = FIRST_REST;
                    if let Some(version) = version_of(&pod) {
                        note(status, version);
                    }
                    break;
                }
                Err(error) if is_final(&error) => break,
                Err(error) => tracing::warn!(pod = name, "status not taken yet: {error}"),
            }
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(LONGEST_REST);
        }
    }
}

async fn send(api: &Api<Pod>, name: &str, uid: &str, status: &PodStatus) -> Result<Pod, kube::Error> {
    let patch = merge_patch(uid, status).map_err(kube::Error::SerdeError)?;
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await
}

fn merge_patch(uid: &str, status: &PodStatus) -> Result<Value, serde_json::Error> {
    let mut status = serde_json::to_value(status)?;
    for field in OPTIONAL_FIELDS {
        if status.get(field).is_none() {
            status[field] = Value::Null;
        }
    }
    // The uid keeps the status of an old pod from landing on a new one of the same name.
    Ok(json!({"metadata": {"uid": uid}, "status": status}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_status_lost_is_named() {
        let status = PodStatus {
            phase: Some("Running".into()),
            pod_ip: Some("10.0.0.1".into()),
            ..Default::default()
        };
        let patch = merge_patch("u-1", &status).expect("serialises");
        assert_eq!(patch["metadata"]["uid"], "u-1");
        assert_eq!(patch["status"]["podIP"], "10.0.0.1");
        assert_eq!(patch["status"].get("podIPs"), Some(&Value::Null));
        assert_eq!(patch["status"].get("conditions"), None);
    }
}
