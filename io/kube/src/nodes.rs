//! Telling the cluster how a node's network is: node conditions, NetworkUnavailable above all.

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::Error;

const NETWORK: &str = "NetworkUnavailable";

/// One condition of a node, as it should be shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeCondition {
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    pub reason: &'static str,
    pub message: String,
}

/// The node's network is there: pods that wait for it may be scheduled.
pub async fn set_network_available(
    client: &Client,
    node: &str,
    reason: &'static str,
    message: &str,
) -> Result<(), Error> {
    let message = message.to_owned();
    set_node_condition(client, node, &NodeCondition { kind: NETWORK, status: "False", reason, message }).await
}

pub async fn set_network_unavailable(
    client: &Client,
    node: &str,
    reason: &'static str,
    message: &str,
) -> Result<(), Error> {
    let message = message.to_owned();
    set_node_condition(client, node, &NodeCondition { kind: NETWORK, status: "True", reason, message }).await
}

/// Writes only what differs.
pub async fn set_node_condition(client: &Client, name: &str, wanted: &NodeCondition) -> Result<(), Error> {
    let NodeCondition { kind, status, reason, message } = wanted;
    let api: Api<Node> = Api::all(client.clone());
    let node = api.get(name).await.map_err(Error::api(format!("read node {name}")))?;
    let current = node.status.and_then(|status| {
        status.conditions.unwrap_or_default().into_iter().find(|condition| condition.type_ == *kind)
    });
    let same = |given: &Option<String>, wanted: &str| given.as_deref() == Some(wanted);
    let now = Timestamp::now().to_string();
    let mut since = now.clone();
    if let Some(current) = current.filter(|current| current.status == *status) {
        if same(&current.reason, reason) && same(&current.message, message) {
            return Ok(());
        }
        // Only a change of the status itself is a transition.
        if let Some(time) = current.last_transition_time {
            since = time.0.to_string();
        }
    }
    let patch = json!({"status": {"conditions": [{
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": now, "lastTransitionTime": since,
    }]}});
    let action = format!("set {kind} of node {name}");
    // Strategic: conditions are merged by type, so those of others stay.
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .map(|_| ())
        .map_err(Error::api(action))
}
