//! Follows the pods bound to this node and gives each its worker; at the start, clears away what an earlier
//! kubelet left of pods that are no more.
use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Resource;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use tokio::sync::mpsc;

use super::publish;
use super::sandbox::{PodDir, Record};
use super::shared::Shared;
use super::worker::{self, Input};

const MIRROR: &str = "kubernetes.io/config.mirror";

/// Keeps the services known, for ever.
pub async fn follow_services(shared: Arc<Shared>) {
    let api = Api::<DeserializeGuard<Service>>::all(shared.client.clone());
    let mut events = pin!(watcher(api, Config::default()).default_backoff());
    let mut listing = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listing.clear(),
            Ok(Event::InitApply(service)) => listing.extend(readable(service)),
            Ok(Event::InitDone) => shared.services.replace(std::mem::take(&mut listing)),
            Ok(Event::Apply(service)) => readable(service).into_iter().for_each(|s| shared.services.put(s)),
            Ok(Event::Delete(service)) => {
                readable(service).into_iter().for_each(|service| shared.services.remove(&service));
            }
            Err(error) => tracing::warn!("watching services: {error}"),
        }
    }
}

/// Runs the pods of this node, for ever.
pub async fn follow_pods(shared: Arc<Shared>) {
    let api = Api::<DeserializeGuard<Pod>>::all(shared.client.clone());
    let config = Config::default().fields(&format!("spec.nodeName={}", shared.node));
    let mut events = pin!(watcher(api, config).default_backoff());
    let mut pods = Pods { shared, workers: HashMap::new(), listing: None, cleared: false };
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => pods.listing = Some(HashSet::new()),
            Ok(Event::InitApply(pod) | Event::Apply(pod)) => {
                pods.seen(pod.meta().uid.as_deref().unwrap_or_default());
                if let Some(pod) = readable(pod) {
                    pods.apply(pod);
                }
            }
            Ok(Event::InitDone) => pods.listed(),
            Ok(Event::Delete(pod)) => pods.remove(pod.meta().uid.as_deref().unwrap_or_default()),
            Err(error) => tracing::warn!("watching pods: {error}"),
        }
    }
}

struct Pods {
    shared: Arc<Shared>,
    workers: HashMap<String, mpsc::UnboundedSender<Input>>,
    /// The uids of a list that is being read.
    listing: Option<HashSet<String>>,
    cleared: bool,
}

/// An object that cannot be read is left alone, with what runs for it.
fn readable<K: Resource<DynamicType = ()>>(object: DeserializeGuard<K>) -> Option<K> {
    match object.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            let name = invalid.metadata.name.as_deref().unwrap_or_default();
            tracing::warn!(kind = %K::kind(&()), name, "the object cannot be read: {}", invalid.error);
            None
        }
    }
}

impl Pods {
    /// Notes that a list has this pod, readable or not.
    fn seen(&mut self, uid: &str) {
        if let Some(listing) = &mut self.listing {
            listing.insert(uid.to_owned());
        }
    }

    fn apply(&mut self, pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let pod = Arc::new(pod);
        if let Some(worker) = self.workers.get(&uid) {
            // A worker that has finished its pod stays here until the object is gone: late news of it, or a
            // finalizer that keeps the object, must not make the pod begin again.
            let _ = worker.send(Input::Changed(pod));
            return;
        }
        if !is_ours(&pod, &self.shared.node) || is_mirror(&pod) {
            return;
        }
        if is_over(&pod) && !PodDir::new(&self.shared.sandboxes.pods_dir, &uid).path().exists() {
            self.finish_remains(pod);
            return;
        }
        let worker = worker::spawn(self.shared.clone(), pod);
        self.workers.insert(uid, worker);
    }

    /// A pod that is over and of which nothing is here: only its object may have to go.
    fn finish_remains(&self, pod: Arc<Pod>) {
        if pod.metadata.deletion_timestamp.is_none() {
            return;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::namespaced(self.shared.client.clone(), namespace);
        tokio::spawn(async move { publish::remove(&api, &pod).await });
    }

    fn remove(&mut self, uid: &str) {
        if let Some(worker) = self.workers.remove(uid) {
            // A worker that removed the object itself is finished by now.
            let _ = worker.send(Input::Removed);
        }
    }

    /// After a whole list: what is not in it is gone.
    fn listed(&mut self) {
        let Some(listed) = self.listing.take() else { return };
        let gone: Vec<_> = self.workers.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        for uid in gone {
            self.remove(&uid);
        }
        if !std::mem::replace(&mut self.cleared, true) {
            tokio::spawn(clear_leftovers(self.shared.clone(), listed));
        }
    }
}

fn is_ours(pod: &Pod, node: &str) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref() == Some(node))
}

/// The image of a pod that something else on the node runs: kubelets leave those alone.
fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.iter().flatten().any(|(key, _)| key == MIRROR)
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Removes what is recorded of pods that the API no longer has.
async fn clear_leftovers(shared: Arc<Shared>, known: HashSet<String>) {
    let entries = std::fs::read_dir(&shared.sandboxes.pods_dir).into_iter().flatten().flatten();
    for uid in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        if known.contains(&uid) {
            continue;
        }
        let mut rest = Duration::from_millis(200);
        while let Err(error) = clear(&shared, &uid).await {
            tracing::warn!(uid, "a pod of an earlier run is not cleared away yet: {error}");
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(Duration::from_secs(10));
        }
    }
}

async fn clear(shared: &Shared, uid: &str) -> Result<(), super::sandbox::SandboxError> {
    let dir = PodDir::new(&shared.sandboxes.pods_dir, uid);
    match Record::read(&dir)? {
        Some(record) => shared.sandboxes.discard(record).await,
        None => {
            shared.sandboxes.remove_cgroups(&shared.sandboxes.cgroups.join(uid)).await?;
            Ok(shared.sandboxes.remove_files(uid)?)
        }
    }
}
