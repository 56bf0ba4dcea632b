//! Services as they are at the API server, and writing their status. What it says is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use weft_model::{ServiceKey, Uid};

use crate::Error;
use crate::cluster::Waits;
use crate::events::{EventRecorder, Subject};
use crate::status::{Change, ServiceStatus, Truth, service_change};

const PATIENCE: Duration = Duration::from_secs(10);

/// Services with their status, the writes of this process included before the watch shows them: who decides on
/// what it wrote a moment ago must not give the same address to somebody else.
pub struct ServiceWriter {
    client: Client,
    events: EventRecorder,
    watched: reflector::Store<Service>,
    changed: watch::Receiver<u64>,
    written: BTreeMap<ServiceKey, Service>,
    /// Written, and no answer came: it has to be read before anything is decided on it.
    unsettled: BTreeSet<ServiceKey>,
    _tasks: JoinSet<()>,
}

/// What became of one round of writing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct WriteReport {
    pub written: usize,
    /// Somebody changed the object meanwhile: the watch will bring it.
    pub conflicts: usize,
    pub failures: Vec<String>,
    /// Services whose write failed.
    pub failed: BTreeSet<ServiceKey>,
}

impl ServiceWriter {
    pub fn start(client: Client, events: EventRecorder) -> Self {
        let (watched, store) = reflector::store();
        let (send, changed) = watch::channel(0);
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(client.clone(), store, send));
        Self {
            client,
            events,
            watched,
            changed,
            written: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            _tasks: tasks,
        }
    }

    /// Returns when all services were seen once.
    pub async fn ready(&self) {
        // The store's writer lives as long as self.
        self.watched.wait_until_ready().await.ok();
    }

    /// Counts changes of services.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.clone()
    }

    /// The newest state of every service that is known here.
    pub async fn current(&mut self) -> Result<Vec<Arc<Service>>, Error> {
        self.settle().await?;
        let watched = self.watched.state();
        let mut newest = Vec::with_capacity(watched.len());
        let mut pending = BTreeMap::new();
        for service in watched {
            match self.written.remove(&key(&service)) {
                Some(written) if is_newer(&written, &service) => {
                    newest.push(Arc::new(written.clone()));
                    pending.insert(key(&service), written);
                }
                _ => newest.push(service),
            }
        }
        self.written = pending;
        Ok(newest)
    }

    /// Makes these services say what is wanted of them.
    pub async fn write(&mut self, wanted: &[(Arc<Service>, ServiceStatus)]) -> WriteReport {
        let mut report = WriteReport::default();
        for (service, wanted) in wanted {
            let Some(change) = service_change(service, wanted, Timestamp::now()) else { continue };
            self.patch(service, &change, &mut report).await;
        }
        report
    }

    async fn patch(&mut self, service: &Service, change: &Change, report: &mut WriteReport) {
        let key = key(service);
        let api: Api<Service> = Api::namespaced(self.client.clone(), key.namespace.as_str());
        let params = PatchParams::default();
        let patch = Patch::Merge(&change.patch);
        let sent = api.patch_status(&key.name, &params, &patch);
        match tokio::time::timeout(PATIENCE, sent).await {
            Ok(Ok(after)) => {
                report.written += 1;
                self.tell(&after, change);
                self.written.insert(key, after);
            }
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => report.conflicts += 1,
            Ok(Err(error)) => {
                let known = matches!(&error, kube::Error::Api(status) if status.code < 500);
                if !known {
                    self.unsettled.insert(key.clone());
                }
                report.failures.push(format!("service {key}: {}", crate::reason(&error)));
                report.failed.insert(key);
            }
            Err(_) => {
                self.unsettled.insert(key.clone());
                report.failures.push(format!("service {key}: the API server did not answer in time"));
                report.failed.insert(key);
            }
        }
    }

    fn tell(&self, service: &Service, change: &Change) {
        let subject = Subject::service(&key(service), &Uid::new(service.uid().unwrap_or_default()));
        for saying in &change.news {
            match saying.truth {
                Truth::True => self.events.normal(&subject, &saying.reason, saying.message.clone()),
                Truth::False => self.events.warning(&subject, &saying.reason, saying.message.clone()),
            }
        }
    }

    async fn settle(&mut self) -> Result<(), Error> {
        for key in self.unsettled.clone() {
            let api: Api<Service> = Api::namespaced(self.client.clone(), key.namespace.as_str());
            let read = api.get_opt(&key.name).await.map_err(Error::api(format!("read service {key}")))?;
            if let Some(service) = read {
                self.written.insert(key.clone(), service);
            }
            self.unsettled.remove(&key);
        }
        Ok(())
    }
}

fn key(service: &Service) -> ServiceKey {
    ServiceKey::new(service.namespace().unwrap_or_default(), service.name_any())
}

/// Resource versions of one kind grow (KEP-5504); where they are no numbers, the watch is believed.
fn is_newer(written: &Service, watched: &Service) -> bool {
    let version = |service: &Service| service.resource_version().and_then(|text| text.parse::<u64>().ok());
    written.uid() == watched.uid() && version(written) > version(watched)
}

async fn follow(client: Client, store: reflector::store::Writer<Service>, send: watch::Sender<u64>) {
    let api: Api<Service> = Api::all(client);
    let events = watcher(api, watcher::Config::default()).backoff(Waits::default());
    let mut events = reflector(store, events).boxed();
    while let Some(event) = events.next().await {
        match event {
            Ok(_) => send.send_modify(|count| *count += 1),
            Err(error) => tracing::debug!(%error, "services cannot be watched now; the last state stays"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_of_what_was_written_and_what_was_seen_counts() {
        let service = |version: &str, uid: &str| -> Service {
            serde_json::from_value(
                serde_json::json!({"metadata": {"name": "a", "uid": uid, "resourceVersion": version}}),
            )
            .unwrap()
        };
        assert!(is_newer(&service("10", "u"), &service("9", "u")));
        assert!(!is_newer(&service("10", "u"), &service("10", "u")));
        assert!(!is_newer(&service("10", "u"), &service("9", "later namesake")));
        assert!(!is_newer(&service("x", "u"), &service("9", "u")));
    }
}
