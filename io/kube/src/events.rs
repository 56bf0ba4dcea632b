//! Events about objects (events.k8s.io/v1): never blocks its caller, repeats are counted, floods are cut.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use weft_model::{NodeName, PodKey, PolicyKey, PolicyKind, PoolName, ServiceKey, Uid};

/// Events that wait for the API server; more are dropped, with a line in the log.
const QUEUE: usize = 256;
const BURST: f64 = 10.0;
/// One more event about the same object each this often, after the burst.
const REFILL: Duration = Duration::from_secs(30);
/// Objects whose rate is remembered.
const MOST_SUBJECTS: usize = 4096;

/// The object an event is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Subject {
    pub api_version: String,
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
    pub uid: Option<String>,
}

impl Subject {
    fn new(api_version: &str, kind: &str, namespace: Option<&str>, name: &str, uid: Option<&Uid>) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            uid: uid.map(Uid::to_string),
        }
    }

    pub fn pod(key: &PodKey, uid: &Uid) -> Self {
        Self::new("v1", "Pod", Some(key.namespace.as_str()), &key.name, Some(uid))
    }

    pub fn service(key: &ServiceKey, uid: &Uid) -> Self {
        Self::new("v1", "Service", Some(key.namespace.as_str()), &key.name, Some(uid))
    }

    /// Events about nodes carry the node's name as uid, as the kubelet's do, so that `kubectl describe` finds them.
    pub fn node(name: &NodeName) -> Self {
        Self::new("v1", "Node", None, name.as_str(), Some(&Uid::new(name.as_str())))
    }

    pub fn pool(name: &PoolName, uid: &Uid) -> Self {
        Self::new("weft.dev/v1alpha1", "AddressPool", None, &name.0, Some(uid))
    }

    pub fn policy(key: &PolicyKey, uid: &Uid) -> Self {
        let PolicyKind::NetworkPolicy = key.kind;
        let object = &key.object;
        let namespace = Some(object.namespace.as_str());
        Self::new("networking.k8s.io/v1", "NetworkPolicy", namespace, &object.name, Some(uid))
    }

    fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.api_version.clone()),
            kind: Some(self.kind.clone()),
            namespace: self.namespace.clone(),
            name: Some(self.name.clone()),
            uid: self.uid.clone(),
            ..ObjectReference::default()
        }
    }
}

#[derive(Clone)]
pub struct EventRecorder {
    send: mpsc::Sender<Message>,
}

struct Message {
    subject: Subject,
    kind: EventType,
    reason: String,
    note: String,
}

impl EventRecorder {
    /// `component` is who reports (`weft-agent`), `host` where it runs.
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        let reporter = Reporter { controller: component.to_owned(), instance: Some(host.to_owned()) };
        let (send, receive) = mpsc::channel(QUEUE);
        tokio::spawn(write(Recorder::new(client, reporter), receive));
        Self { send }
    }

    pub fn warning(&self, subject: &Subject, reason: &str, note: impl Into<String>) {
        self.record(subject, EventType::Warning, reason, note.into());
    }

    pub fn normal(&self, subject: &Subject, reason: &str, note: impl Into<String>) {
        self.record(subject, EventType::Normal, reason, note.into());
    }

    fn record(&self, subject: &Subject, kind: EventType, reason: &str, note: String) {
        let message = Message { subject: subject.clone(), kind, reason: reason.to_owned(), note };
        if self.send.try_send(message).is_err() {
            tracing::warn!(reason, object = ?subject, "event dropped: too many wait for the API server");
        }
    }
}

async fn write(recorder: Recorder, mut receive: mpsc::Receiver<Message>) {
    let mut rates = Rates::default();
    while let Some(message) = receive.recv().await {
        if !rates.allows(&message.subject, Instant::now()) {
            tracing::debug!(object = ?message.subject, reason = message.reason, "event cut: too many about one object");
            continue;
        }
        let event = Event {
            type_: message.kind,
            action: message.reason.clone(),
            reason: message.reason,
            note: Some(message.note),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &message.subject.reference()).await {
            tracing::warn!(reason = event.reason, error = crate::reason(&error), "event not recorded");
        }
    }
}

/// A token bucket for each object.
#[derive(Default)]
struct Rates {
    buckets: HashMap<Subject, (f64, Instant)>,
}

impl Rates {
    fn allows(&mut self, subject: &Subject, now: Instant) -> bool {
        if self.buckets.len() >= MOST_SUBJECTS && !self.buckets.contains_key(subject) {
            self.buckets.retain(|_, (tokens, at)| refilled(*tokens, *at, now) < BURST);
            if self.buckets.len() >= MOST_SUBJECTS {
                return false;
            }
        }
        let (tokens, at) = self.buckets.entry(subject.clone()).or_insert((BURST, now));
        *tokens = refilled(*tokens, *at, now);
        *at = now;
        let allowed = *tokens >= 1.0;
        if allowed {
            *tokens -= 1.0;
        }
        allowed
    }
}

fn refilled(tokens: f64, at: Instant, now: Instant) -> f64 {
    let more = now.saturating_duration_since(at).as_secs_f64() / REFILL.as_secs_f64();
    (tokens + more).min(BURST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_about_one_object_is_cut_and_others_are_not() {
        let start = Instant::now();
        let mut rates = Rates::default();
        let (web, db) = (Subject::node(&NodeName::new("web")), Subject::node(&NodeName::new("db")));
        let passed = (0..1000).filter(|_| rates.allows(&web, start)).count();
        assert_eq!(passed, 10);
        assert!(rates.allows(&db, start));
        let later = start + REFILL;
        assert!(rates.allows(&web, later) && !rates.allows(&web, later));
    }

    #[test]
    fn rates_remember_a_bounded_number_of_objects() {
        let start = Instant::now();
        let mut rates = Rates::default();
        for number in 0..2 * MOST_SUBJECTS {
            rates.allows(&Subject::node(&NodeName::new(format!("n{number}"))), start);
        }
        assert_eq!(rates.buckets.len(), MOST_SUBJECTS);
        assert!(rates.allows(&Subject::node(&NodeName::new("later")), start + REFILL));
    }
}
