//! Telling the cluster whether a node's network is there: the node condition NetworkUnavailable.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::Error;

const CONDITION: &str = "NetworkUnavailable";

/// The node's network is there: pods that wait for it may be scheduled.
pub async fn set_network_available(
    client: &Client,
    node: &str,
    reason: &str,
    message: &str,
) -> Result<(), Error> {
    set(client, node, "False", reason, message).await
}

pub async fn set_network_unavailable(
    client: &Client,
    node: &str,
    reason: &str,
    message: &str,
) -> Result<(), Error> {
    set(client, node, "True", reason, message).await
}

async fn set(client: &Client, name: &str, status: &str, reason: &str, message: &str) -> Result<(), Error> {
    let api: Api<Node> = Api::all(client.clone());
    let node = api.get(name).await.map_err(Error::api(format!("read node {name}")))?;
    let current = node.status.and_then(|status| {
        status.conditions.unwrap_or_default().into_iter().find(|condition| condition.type_ == CONDITION)
    });
    let same = |given: &Option<String>, wanted: &str| given.as_deref() == Some(wanted);
    let now = Timestamp::now().to_string();
    let mut since = now.clone();
    if let Some(current) = current.filter(|current| current.status == status) {
        if same(&current.reason, reason) && same(&current.message, message) {
            return Ok(());
        }
        // Only a change of the status itself is a transition.
        if let Some(time) = current.last_transition_time {
            since = time.0.to_string();
        }
    }
    let patch = json!({"status": {"conditions": [{
        "type": CONDITION, "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": now, "lastTransitionTime": since,
    }]}});
    let action = format!("set {CONDITION} of node {name}");
    // Strategic: conditions are merged by type, so those of others stay.
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .map(|_| ())
        .map_err(Error::api(action))
}
