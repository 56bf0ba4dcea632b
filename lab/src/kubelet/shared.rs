//! What all pods of one kubelet share, and what its HTTP server may look at.
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::net::IpAddr;
use tokio::sync::watch;

use super::environment::{ServiceLinks, service_variables};
use super::events::EventSink;
use super::lifecycle::Container;
use super::sandbox::SandboxMaker;

pub struct Shared {
    pub client: kube::Client,
    pub node: String,
    pub node_ips: Vec<IpAddr>,
    pub weft_exe: PathBuf,
    pub sandboxes: SandboxMaker,
    pub events: EventSink,
    pub services: Services,
    pub allocatable: BTreeMap<String, Quantity>,
    pub pods: Registry,
}

/// The services of the cluster, for the variables that describe them.
pub struct Services {
    known: RwLock<HashMap<(String, String), Service>>,
    synced: watch::Sender<bool>,
}

impl Default for Services {
    fn default() -> Self {
        Self { known: RwLock::default(), synced: watch::channel(false).0 }
    }
}

fn key(service: &Service) -> (String, String) {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    (text(&service.metadata.namespace), text(&service.metadata.name))
}

impl Services {
    pub fn put(&self, service: Service) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).insert(key(&service), service);
    }

    pub fn remove(&self, service: &Service) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&key(service));
    }

    /// Takes a whole list, after which starts may rely on it.
    pub fn replace(&self, all: Vec<Service>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        *known = all.into_iter().map(|service| (key(&service), service)).collect();
        self.synced.send_replace(true);
    }

    pub async fn variables(&self, namespace: &str, links: ServiceLinks) -> Vec<(String, String)> {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        service_variables(known.values(), namespace, links)
    }
}

/// A pod as the server sees it.
#[derive(Clone, Debug)]
pub struct PodSnapshot {
    pub pod: Arc<Pod>,
    pub containers: Vec<Container>,
    pub netns: Option<PathBuf>,
}

/// The pods of this node by uid.
#[derive(Default)]
pub struct Registry(Mutex<HashMap<String, PodSnapshot>>);

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, PodSnapshot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn put(&self, uid: &str, snapshot: PodSnapshot) {
        self.lock().insert(uid.to_owned(), snapshot);
    }

    pub fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    pub fn all(&self) -> Vec<PodSnapshot> {
        self.lock().values().cloned().collect()
    }

    pub fn by_uid(&self, uid: &str) -> Option<Arc<Pod>> {
        self.lock().get(uid).map(|snapshot| snapshot.pod.clone())
    }

    /// The pod of that name; of two, the one that is not being deleted.
    pub fn find(&self, namespace: &str, name: &str) -> Option<PodSnapshot> {
        let pods = self.lock();
        let is_named = |snapshot: &&PodSnapshot| {
            let meta = &snapshot.pod.metadata;
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        };
        pods.values()
            .filter(is_named)
            .min_by_key(|snapshot| snapshot.pod.metadata.deletion_timestamp.is_some())
            .cloned()
    }
}
