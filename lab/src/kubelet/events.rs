//! Kubernetes Events about pods and the node, sent in the background; repeated ones are counted up.
use std::collections::HashMap;
use std::collections::VecDeque;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

/// How many recent events are remembered for counting.
const REMEMBERED: usize = 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

/// One thing that happened.
#[derive(Clone, Debug)]
struct Happening {
    about: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
}

/// Where events are handed in. Never blocks, never fails the caller.
#[derive(Clone)]
pub struct EventSink {
    queue: mpsc::Sender<Happening>,
}

impl EventSink {
    /// Starts the sender.
    pub fn start(client: kube::Client, node: String) -> Self {
        let (queue, happenings) = mpsc::channel(1024);
        tokio::spawn(send_all(client, node, happenings));
        Self { queue }
    }

    /// About a pod, or one of its containers.
    pub fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: container.map(|name| format!("spec.containers{{{name}}}")),
        };
        self.hand_in(about, severity, reason, message);
    }

    pub fn node(&self, node: &str, severity: Severity, reason: &'static str, message: String) {
        let about = ObjectReference {
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        };
        self.hand_in(about, severity, reason, message);
    }

    fn hand_in(&self, about: ObjectReference, severity: Severity, reason: &'static str, message: String) {
        let name = about.name.as_deref().unwrap_or_default();
        match severity {
            Severity::Normal => tracing::debug!(object = name, reason, "{message}"),
            Severity::Warning => tracing::warn!(object = name, reason, "{message}"),
        }
        // A full queue means the API is slow: events are for reading, running pods comes first.
        let _ = self.queue.try_send(Happening { about, severity, reason, message });
    }
}

type Key = (Option<String>, Option<String>, Severity, &'static str, String);

#[derive(Default)]
struct Memory {
    counts: HashMap<Key, (String, i32)>,
    order: VecDeque<Key>,
}

async fn send_all(client: kube::Client, node: String, mut happenings: mpsc::Receiver<Happening>) {
    let mut memory = Memory::default();
    while let Some(happening) = happenings.recv().await {
        let (name, reason) = (happening.about.name.clone(), happening.reason);
        if let Err(error) = send(&client, &node, &mut memory, happening).await {
            tracing::debug!(object = name.as_deref(), reason, "event not recorded: {error}");
        }
    }
}

async fn send(
    client: &kube::Client,
    node: &str,
    memory: &mut Memory,
    happening: Happening,
) -> Result<(), kube::Error> {
    let namespace = happening.about.namespace.clone().unwrap_or_else(|| "default".into());
    let api = Api::<Event>::namespaced(client.clone(), &namespace);
    let about = &happening.about;
    let key: Key = (
        about.uid.clone(),
        about.field_path.clone(),
        happening.severity,
        happening.reason,
        happening.message.clone(),
    );
    let now = Time(Timestamp::now());
    if let Some((name, count)) = memory.counts.get_mut(&key) {
        *count += 1;
        let patch = json!({"count": count, "lastTimestamp": now});
        return api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop);
    }
    let event = build(node, &namespace, happening, now);
    let created = api.create(&PostParams::default(), &event).await?;
    memory.order.push_back(key.clone());
    memory.counts.insert(key, (created.metadata.name.unwrap_or_default(), 1));
    if memory.order.len() > REMEMBERED
        && let Some(oldest) = memory.order.pop_front()
    {
        memory.counts.remove(&oldest);
    }
    Ok(())
}

fn build(node: &str, namespace: &str, happening: Happening, now: Time) -> Event {
    let object = happening.about.name.clone().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            // As upstream: the object's name and the time in hexadecimal nanoseconds.
            name: Some(format!("{object}.{:x}", now.0.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: happening.about,
        type_: Some(format!("{:?}", happening.severity)),
        reason: Some(happening.reason.to_owned()),
        message: Some(happening.message),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(node.to_owned()) }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}
