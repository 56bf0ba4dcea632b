//! The cluster as last seen, object by object: pure, events in and a snapshot out.

use std::collections::{BTreeMap, BTreeSet};

use kube::Resource;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use weft_model::{ClusterSettings, Finding, ObjectKey, Severity, Snapshot};

use crate::kinds::{self, Kind};

pub struct Store {
    snapshot: Snapshot,
    books: [Book; kinds::COUNT],
}

/// What is kept about one kind besides its objects.
#[derive(Default)]
struct Book {
    listed: bool,
    /// During a new list: the objects seen in it so far. Those that are not in it at its end are gone.
    seen: Option<BTreeSet<ObjectKey>>,
    known: BTreeSet<ObjectKey>,
    findings: BTreeMap<ObjectKey, Vec<Finding>>,
}

/// Whether an event changed anything that a reader of the store can see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    Changed,
    None,
}

impl Effect {
    fn of(changed: bool) -> Self {
        if changed { Self::Changed } else { Self::None }
    }

    fn or(self, other: Self) -> Self {
        if self == Self::Changed { self } else { other }
    }
}

impl Store {
    pub fn new(settings: ClusterSettings) -> Self {
        Self { snapshot: Snapshot { settings, ..Snapshot::default() }, books: Default::default() }
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    pub fn findings(&self) -> Vec<Finding> {
        let all = self.books.iter().flat_map(|book| book.findings.values());
        all.flatten().cloned().collect()
    }

    /// Every kind was listed once.
    pub fn synced(&self) -> bool {
        self.books.iter().all(|book| book.listed)
    }

    pub fn apply<K: Kind>(&mut self, event: Event<DeserializeGuard<K::Object>>) -> Effect {
        match event {
            Event::Init => {
                self.books[K::INDEX].seen = Some(BTreeSet::new());
                Effect::None
            }
            Event::InitApply(object) => {
                if let (Some(seen), Some(id)) = (&mut self.books[K::INDEX].seen, kinds::id(object.meta())) {
                    seen.insert(id);
                }
                self.put::<K>(object)
            }
            Event::InitDone => self.end_of_list::<K>(),
            Event::Apply(object) => self.put::<K>(object),
            Event::Delete(object) => match kinds::id(object.meta()) {
                Some(id) => self.remove::<K>(&id),
                None => Effect::None,
            },
        }
    }

    /// Takes an object up. One that cannot be understood leaves its last good state in force, with findings.
    pub fn put<K: Kind>(&mut self, object: DeserializeGuard<K::Object>) -> Effect {
        let Some(id) = kinds::id(object.meta()) else { return Effect::None };
        let (value, findings) = match object.0 {
            Ok(object) => {
                let parsed = K::parse(&object);
                (parsed.value, parsed.findings)
            }
            Err(invalid) => (None, vec![unreadable::<K>(&id, &invalid.error)]),
        };
        let key = K::key(id.namespace.as_str(), &id.name);
        let broken = value.is_none() && findings.iter().any(|finding| finding.severity == Severity::Error);
        let table = K::table(&mut self.snapshot);
        let changed = match value {
            Some(value) if table.get(&key) == Some(&value) => false,
            Some(value) => {
                table.insert(key, value);
                true
            }
            None if broken => false,
            None => table.remove(&key).is_some(),
        };
        let book = &mut self.books[K::INDEX];
        let findings_changed = if findings.is_empty() {
            book.findings.remove(&id).is_some()
        } else {
            book.findings.insert(id.clone(), findings.clone()).as_ref() != Some(&findings)
        };
        book.known.insert(id);
        Effect::of(changed || findings_changed)
    }

    /// There are no objects of the kind, and cannot be.
    pub fn absent<K: Kind>(&mut self) -> Effect {
        self.books[K::INDEX].seen = Some(BTreeSet::new());
        self.end_of_list::<K>()
    }

    fn remove<K: Kind>(&mut self, id: &ObjectKey) -> Effect {
        let key = K::key(id.namespace.as_str(), &id.name);
        let value = K::table(&mut self.snapshot).remove(&key).is_some();
        let book = &mut self.books[K::INDEX];
        book.known.remove(id);
        let findings = book.findings.remove(id).is_some();
        Effect::of(value || findings)
    }

    fn end_of_list<K: Kind>(&mut self) -> Effect {
        let book = &mut self.books[K::INDEX];
        let first = !std::mem::replace(&mut book.listed, true);
        let Some(seen) = book.seen.take() else { return Effect::of(first) };
        let gone: Vec<ObjectKey> = book.known.difference(&seen).cloned().collect();
        gone.iter().fold(Effect::of(first), |effect, id| effect.or(self.remove::<K>(id)))
    }
}

fn unreadable<K: Kind>(id: &ObjectKey, error: &str) -> Finding {
    let object = match id.namespace.as_str() {
        "" => format!("{} {}", K::NAME, id.name),
        _ => format!("{} {id}", K::NAME),
    };
    let message = format!("cannot be read: {error}; its last good state, if there was one, stays in force");
    Finding { severity: Severity::Error, object, field: String::new(), message }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1;
    use serde_json::{Value, json};

    use super::*;
    use crate::kinds::{AddressPools, Namespaces, NetworkPolicies, Nodes, Pods};

    type Guarded = DeserializeGuard<v1::Pod>;

    fn pod(name: &str, ip: &str) -> Guarded {
        read(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "uid": name},
            "spec": {"nodeName": "node1", "containers": []},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
        }))
    }

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn names(store: &Store) -> Vec<String> {
        store.snapshot().pods.keys().map(|key| key.to_string()).collect()
    }

    fn store() -> Store {
        Store::new(ClusterSettings::default())
    }

    #[test]
    fn a_new_list_removes_what_is_not_in_it() {
        let mut store = store();
        for event in [
            Event::Init,
            Event::InitApply(pod("a", "10.0.0.1")),
            Event::InitApply(pod("b", "10.0.0.2")),
            Event::InitDone,
        ] {
            store.apply::<Pods>(event);
        }
        assert_eq!(names(&store), ["shop/a", "shop/b"]);
        store.apply::<Pods>(Event::Init);
        store.apply::<Pods>(Event::InitApply(pod("b", "10.0.0.2")));
        assert_eq!(names(&store), ["shop/a", "shop/b"], "nothing goes before the list is complete");
        assert_eq!(store.apply::<Pods>(Event::InitDone), Effect::Changed);
        assert_eq!(names(&store), ["shop/b"]);
    }

    #[test]
    fn what_changes_nothing_is_told_from_what_does() {
        let mut store = store();
        assert_eq!(store.apply::<Pods>(Event::Apply(pod("a", "10.0.0.1"))), Effect::Changed);
        assert_eq!(store.apply::<Pods>(Event::Apply(pod("a", "10.0.0.1"))), Effect::None);
        assert_eq!(store.apply::<Pods>(Event::Apply(pod("a", "10.0.0.2"))), Effect::Changed);
        assert_eq!(store.apply::<Pods>(Event::Delete(pod("a", "10.0.0.2"))), Effect::Changed);
        assert_eq!(store.apply::<Pods>(Event::Delete(pod("a", "10.0.0.2"))), Effect::None);
    }

    #[test]
    fn an_object_that_cannot_be_read_keeps_its_last_good_state() {
        let mut store = store();
        store.apply::<Pods>(Event::Apply(pod("a", "10.0.0.1")));
        let broken: Guarded = read(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "a"},
            "spec": {"containers": 7},
        }));
        assert!(broken.0.is_err());
        assert_eq!(store.apply::<Pods>(Event::Apply(broken)), Effect::Changed);
        assert_eq!(names(&store), ["shop/a"]);
        let [finding] = store.findings().try_into().unwrap();
        assert_eq!((finding.severity, finding.object.as_str()), (Severity::Error, "Pod shop/a"));
        store.apply::<Pods>(Event::Apply(pod("a", "10.0.0.3")));
        assert!(store.findings().is_empty());
    }

    #[test]
    fn a_node_whose_addresses_cannot_be_read_keeps_its_last_ones() {
        let node = |addresses: Value| -> DeserializeGuard<v1::Node> {
            read(json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1", "uid": "n"},
                "status": {"addresses": addresses},
            }))
        };
        let mut store = store();
        let internal = |address: &str| json!([{"type": "InternalIP", "address": address}]);
        store.apply::<Nodes>(Event::Apply(node(internal("172.30.0.11"))));
        let good = store.snapshot().nodes.clone();
        for bad in [internal("zz"), json!([])] {
            assert_eq!(store.apply::<Nodes>(Event::Apply(node(bad))), Effect::Changed, "there is a finding");
            assert_eq!(store.snapshot().nodes, good);
            assert!(store.findings().iter().any(|found| found.field == "status.addresses"));
        }
        store.apply::<Nodes>(Event::Apply(node(internal("172.30.0.12"))));
        assert!(store.findings().is_empty() && store.snapshot().nodes != good);
    }

    #[test]
    fn findings_of_objects_go_with_them() {
        let mut store = store();
        let policy: DeserializeGuard<_> = read(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "shop", "name": "p", "uid": "p"},
            "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/99"}}]}]},
        }));
        store.apply::<NetworkPolicies>(Event::Apply(policy.clone()));
        assert!(!store.findings().is_empty());
        store.apply::<NetworkPolicies>(Event::Delete(policy));
        assert!(store.findings().is_empty() && store.snapshot().policies.is_empty());
    }

    #[test]
    fn a_kind_that_is_not_installed_has_no_objects() {
        let mut store = store();
        assert_eq!(store.absent::<AddressPools>(), Effect::Changed);
        assert_eq!(store.absent::<AddressPools>(), Effect::None);
        let pool: DeserializeGuard<_> = read(json!({
            "apiVersion": "weft.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "edge"},
            "spec": {"addresses": ["192.0.2.1"]},
        }));
        store.apply::<AddressPools>(Event::Apply(pool));
        assert_eq!(store.snapshot().pools.len(), 1);
        assert_eq!(store.absent::<AddressPools>(), Effect::Changed);
        assert!(store.snapshot().pools.is_empty());
    }

    #[test]
    fn it_is_synced_only_when_every_kind_was_listed() {
        let mut store = store();
        for synced in store.books[1..].iter_mut().map(|book| &mut book.listed) {
            *synced = true;
        }
        assert!(!store.synced());
        store.apply::<Namespaces>(Event::Init);
        assert_eq!(store.apply::<Namespaces>(Event::InitDone), Effect::Changed);
        assert!(store.synced());
    }
}
