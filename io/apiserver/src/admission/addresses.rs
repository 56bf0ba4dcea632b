//! Which service addresses and node ports are taken: read from the stored services, plus what writes under way hold.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::store::{EventKind, Key, Resource, Store, Watcher};

/// Shared view of the taken addresses and ports. Follows the store, so nothing needs to be released by hand.
pub struct Addresses {
    store: Store,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    watcher: Option<Watcher>,
    stored: HashMap<Key, Held>,
    addresses: HashMap<IpAddr, usize>,
    ports: HashMap<u16, usize>,
    reserved_addresses: HashSet<IpAddr>,
    reserved_ports: HashSet<u16>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

/// Addresses and ports held for a write that is not stored yet.
pub struct Reservation {
    state: Arc<Mutex<State>>,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

/// An exclusive view while one service is admitted.
pub struct Claims<'a> {
    state: MutexGuard<'a, State>,
    shared: Arc<Mutex<State>>,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
}

impl Addresses {
    pub fn new(store: Store) -> Self {
        Self { store, state: Arc::default() }
    }

    /// Catches up with the store and lets one writer claim.
    pub fn claim(&self) -> Claims<'_> {
        let mut state = lock(&self.state);
        state.catch_up(&self.store);
        Claims { state, shared: Arc::clone(&self.state), addresses: Vec::new(), ports: Vec::new() }
    }
}

impl Claims<'_> {
    pub fn is_address_free(&self, address: IpAddr) -> bool {
        !self.state.addresses.contains_key(&address) && !self.state.reserved_addresses.contains(&address)
    }

    pub fn is_port_free(&self, port: u16) -> bool {
        !self.state.ports.contains_key(&port) && !self.state.reserved_ports.contains(&port)
    }

    pub fn take_address(&mut self, address: IpAddr) {
        self.state.reserved_addresses.insert(address);
        self.addresses.push(address);
    }

    pub fn take_port(&mut self, port: u16) {
        self.state.reserved_ports.insert(port);
        self.ports.push(port);
    }

    /// Keeps what was taken reserved until the returned guard is dropped.
    pub fn reserve(mut self) -> Reservation {
        Reservation {
            state: Arc::clone(&self.shared),
            addresses: std::mem::take(&mut self.addresses),
            ports: std::mem::take(&mut self.ports),
        }
    }
}

impl Drop for Claims<'_> {
    fn drop(&mut self) {
        for address in &self.addresses {
            self.state.reserved_addresses.remove(address);
        }
        for port in &self.ports {
            self.state.reserved_ports.remove(port);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.addresses.is_empty() && self.ports.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        for address in &self.addresses {
            state.reserved_addresses.remove(address);
        }
        for port in &self.ports {
            state.reserved_ports.remove(port);
        }
    }
}

impl State {
    fn catch_up(&mut self, store: &Store) {
        while let Some(watcher) = &mut self.watcher {
            match watcher.take() {
                Ok(events) if events.is_empty() => return,
                Ok(events) => {
                    for event in events {
                        let held = match event.kind {
                            EventKind::Deleted => Held::default(),
                            EventKind::Added | EventKind::Modified => held(&event.entry.value),
                        };
                        self.replace(event.key.clone(), held);
                    }
                }
                // History no longer reaches back: read everything anew.
                Err(_) => self.watcher = None,
            }
        }
        self.rebuild(store);
    }

    fn rebuild(&mut self, store: &Store) {
        let services = Resource::new("", "services");
        (self.stored, self.addresses, self.ports) = Default::default();
        let listing = store.list(&services, None);
        for (path, entry) in &listing.items {
            let key = Key { resource: services.clone(), path: Arc::clone(path) };
            self.replace(key, held(&entry.value));
        }
        self.watcher = store.watch(&services, listing.revision).ok();
    }

    fn replace(&mut self, key: Key, held: Held) {
        for address in &held.addresses {
            *self.addresses.entry(*address).or_default() += 1;
        }
        for port in &held.ports {
            *self.ports.entry(*port).or_default() += 1;
        }
        let before =
            if held == Held::default() { self.stored.remove(&key) } else { self.stored.insert(key, held) };
        let before = before.unwrap_or_default();
        for address in &before.addresses {
            decrement(&mut self.addresses, address);
        }
        for port in &before.ports {
            decrement(&mut self.ports, port);
        }
    }
}

fn decrement<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn held(service: &Value) -> Held {
    let list =
        |pointer: &str| service.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let addresses = list("/spec/clusterIPs");
    let addresses = addresses.iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect();
    let number = |value: Option<&Value>| value.and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok());
    let mut ports: Vec<u16> = list("/spec/ports")
        .iter()
        .filter_map(|port| number(port.get("nodePort")))
        .filter(|p| *p != 0)
        .collect();
    ports.extend(number(service.pointer("/spec/healthCheckNodePort")).filter(|p| *p != 0));
    Held { addresses, ports }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
