//! A kind's objects as last seen, kept current by a watch, by namespace and name.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::warn;

use crate::controllers::meta;

pub trait Object:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Object for K {}

type Key = (String, String);

#[derive(Clone, Copy)]
enum Heard {
    Something,
    Failure,
}

pub struct Cache<K> {
    objects: RwLock<BTreeMap<Key, Arc<K>>>,
    synced: watch::Sender<bool>,
    /// Since when nothing can have been missed; `None` while the watch is broken.
    unbroken: RwLock<Option<Timestamp>>,
}

/// What happened to one object: before and after, of which at least one is there.
pub struct Change<'a, K> {
    pub before: Option<&'a K>,
    pub after: Option<&'a K>,
}

impl<K> Clone for Change<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Change<'_, K> {}

impl<'a, K> Change<'a, K> {
    pub fn any(&self) -> &'a K {
        self.after.or(self.before).expect("a change has a before or an after")
    }

    pub fn both(&self) -> impl Iterator<Item = &'a K> {
        self.before.into_iter().chain(self.after)
    }
}

impl<K: Object> Cache<K> {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            objects: RwLock::default(),
            synced: watch::Sender::new(false),
            unbroken: RwLock::default(),
        })
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.read().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let objects = self.read();
        let from = objects.range((namespace.to_owned(), String::new())..);
        from.take_while(|((of, _), _)| of == namespace).map(|(_, object)| object.clone()).collect()
    }

    pub fn all(&self) -> Vec<Arc<K>> {
        self.read().values().cloned().collect()
    }

    /// Since when every change has been heard of as it happened; `None` while the server does not answer.
    pub fn unbroken(&self) -> Option<Timestamp> {
        *self.unbroken.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Returns when everything that existed at the start has been seen.
    pub async fn wait_synced(&self) {
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Keeps the cache current for as long as the program runs, telling of every change after it is in the cache.
    pub async fn follow(self: Arc<Self>, client: Client, on_change: impl Fn(Change<'_, K>) + Send + 'static) {
        let config = watcher::Config::default();
        let mut events = Box::pin(watcher(Api::<DeserializeGuard<K>>::all(client), config).backoff(Retry));
        let mut listed: Option<BTreeMap<Key, Arc<K>>> = None;
        while let Some(event) = events.next().await {
            self.note(if event.is_ok() { Heard::Something } else { Heard::Failure });
            match event {
                Ok(watcher::Event::Init) => listed = Some(BTreeMap::new()),
                Ok(watcher::Event::InitApply(object)) => {
                    if let Some(object) = self.last_good(object) {
                        listed.get_or_insert_default().insert(key(&*object), object);
                    }
                }
                Ok(watcher::Event::InitDone) => {
                    self.replace(listed.take().unwrap_or_default(), &on_change);
                    self.synced.send_replace(true);
                }
                Ok(watcher::Event::Apply(object)) => {
                    if let Some(object) = self.last_good(object) {
                        self.put(object, &on_change);
                    }
                }
                Ok(watcher::Event::Delete(object)) => {
                    if let Some(object) = self.last_good(object) {
                        self.forget(&object, &on_change);
                    }
                }
                Err(e) => warn!(kind = %K::kind(&()), "watch: {e}"),
            }
        }
    }

    /// An object as it is now; one that cannot be read, as it was when it last could, if ever.
    fn last_good(&self, object: DeserializeGuard<K>) -> Option<Arc<K>> {
        match object.0 {
            Ok(object) => Some(Arc::new(object)),
            Err(invalid) => {
                let (namespace, name) = (meta::namespace(&invalid.metadata), meta::name(&invalid.metadata));
                let error = &invalid.error;
                warn!(kind = %K::kind(&()), namespace, name, "the object cannot be read and is left alone: {error}");
                self.get(namespace, name)
            }
        }
    }

    fn note(&self, heard: Heard) {
        let mut unbroken = self.unbroken.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        *unbroken = match heard {
            Heard::Something => unbroken.or_else(|| Some(Timestamp::now())),
            Heard::Failure => None,
        };
    }

    fn put(&self, object: Arc<K>, on_change: &impl Fn(Change<'_, K>)) {
        let before = self.write().insert(key(&*object), object.clone());
        on_change(Change { before: before.as_deref(), after: Some(&*object) });
    }

    fn forget(&self, object: &K, on_change: &impl Fn(Change<'_, K>)) {
        // What the deletion shows is newer than what was cached.
        self.write().remove(&key(object));
        on_change(Change { before: Some(object), after: None });
    }

    /// A new list: what is not in it went while nobody watched.
    fn replace(&self, listed: BTreeMap<Key, Arc<K>>, on_change: &impl Fn(Change<'_, K>)) {
        let before = std::mem::replace(&mut *self.write(), listed.clone());
        for (key, object) in &before {
            if !listed.contains_key(key) {
                on_change(Change { before: Some(&**object), after: None });
            }
        }
        for (key, object) in &listed {
            let before = before.get(key).map(AsRef::as_ref);
            on_change(Change { before, after: Some(&**object) });
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<Key, Arc<K>>> {
        self.objects.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<Key, Arc<K>>> {
        self.objects.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn key<K: Object>(object: &K) -> Key {
    (meta::namespace(object.meta()).to_owned(), meta::name(object.meta()).to_owned())
}

/// The API server is on this machine: it is back soon or not at all.
struct Retry;

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(200))
    }
}

impl kube::runtime::utils::Backoff for Retry {
    fn reset(&mut self) {}
}
