//! Many changes of services in random order, with writes that fail and agents that restart: at every rest the kernel's tables
//! are those of an agent that has only ever seen the last plan. And what happens when a table is full.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libbpf_rs::{MapCore, MapFlags, MapHandle};
use support::{Fabric, Node, addr, cidr};
use weft_datapath::{Capacity, Datapath, Kept, KernelWrites, Report, Writes};
use weft_model::{
    Addr, Affinity, Balancing, Family, Forwarding, Port, Protocol, Routing, ServiceKey, TrafficPolicy, Weight,
};
use weft_plan::{Backend, BackendList, EdgePlan, Exposure, Frontend, ListId, ServiceId, ServicePlan};

const CHANGES: usize = 5_000;
const CHANGES_BETWEEN_RESTS: usize = 250;
const SERVICES: u64 = 14;
const BACKENDS: u64 = 30;
const SERVICE_TABLES: [&str; 6] = ["services", "backends", "members", "maglev", "source_ranges", "announced"];

/// A sequence that looks random and is the same in every run (xorshift, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn once_in(&mut self, times: u64) -> bool {
        self.roll(times) == 0
    }
}

/// System calls of which some fail, at once or half-way.
struct Unreliable {
    state: AtomicU64,
    /// One call in so many fails; 0: none.
    fails_once_in: AtomicU64,
    failed: AtomicU64,
}

impl Unreliable {
    fn new() -> Self {
        Self { state: AtomicU64::new(99), fails_once_in: AtomicU64::new(0), failed: AtomicU64::new(0) }
    }

    /// How many of the entries to write before failing.
    fn fails_after(&self, count: u32) -> Option<u32> {
        let once_in = self.fails_once_in.load(Ordering::Relaxed);
        let mut dice = Dice(self.state.load(Ordering::Relaxed));
        let fails = once_in > 0 && dice.once_in(once_in);
        let after = dice.roll(u64::from(count)) as u32;
        self.state.store(dice.0, Ordering::Relaxed);
        self.failed.fetch_add(fails.into(), Ordering::Relaxed);
        fails.then_some(after)
    }
}

fn failure() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOMEM)
}

impl Writes for Unreliable {
    fn put(&self, table: &str, map: &MapHandle, keys: &[u8], values: &[u8], count: u32) -> io::Result<()> {
        let Some(after) = self.fails_after(count) else {
            return KernelWrites.put(table, map, keys, values, count);
        };
        if after > 0 {
            let (key, value) = (keys.len() / count as usize, values.len() / count as usize);
            let (keys, values) = (&keys[..key * after as usize], &values[..value * after as usize]);
            KernelWrites.put(table, map, keys, values, after)?;
        }
        Err(failure())
    }

    fn remove(&self, table: &str, map: &MapHandle, keys: &[u8], count: u32) -> io::Result<()> {
        let Some(after) = self.fails_after(count) else {
            return KernelWrites.remove(table, map, keys, count);
        };
        if after > 0 {
            KernelWrites.remove(table, map, &keys[..keys.len() / count as usize * after as usize], after)?;
        }
        Err(failure())
    }
}

/// One service as its owner changes it.
#[derive(Clone)]
struct Service {
    number: u64,
    /// By family: 4, 6.
    families: Vec<Family>,
    ports: Vec<(Protocol, u16)>,
    backends: BTreeMap<u64, u8>,
    here: BTreeSet<u64>,
    balancing: Balancing,
    affinity: Affinity,
    ranges: BTreeSet<u8>,
    edge: Option<(TrafficPolicy, Forwarding)>,
    node_port: bool,
}

impl Service {
    fn random(number: u64, dice: &mut Dice) -> Self {
        let families = match dice.roll(3) {
            0 => vec![Family::V4],
            1 => vec![Family::V6],
            _ => vec![Family::V4, Family::V6],
        };
        let protocols = [Protocol::TCP, Protocol::UDP];
        let ports = (0..=dice.roll(2)).map(|port| (protocols[dice.roll(2) as usize], 80 + port as u16));
        let mut service = Self {
            number,
            families,
            ports: ports.collect(),
            backends: BTreeMap::new(),
            here: BTreeSet::new(),
            balancing: Balancing::Random,
            affinity: Affinity::None,
            ranges: BTreeSet::new(),
            edge: None,
            node_port: false,
        };
        for _ in 0..8 {
            service.change(dice);
        }
        service
    }

    fn change(&mut self, dice: &mut Dice) {
        let backend = dice.roll(BACKENDS);
        match dice.roll(12) {
            0..4 => {
                self.backends.insert(backend, dice.roll(4) as u8 + 1);
            }
            4 | 5 => {
                self.backends.pop_first();
            }
            6 => self.backends.clear(),
            7 => {
                self.here.insert(backend);
            }
            8 => {
                self.balancing =
                    if self.balancing == Balancing::Random { Balancing::Maglev } else { Balancing::Random };
                self.affinity = match dice.roll(2) {
                    0 => Affinity::None,
                    _ => Affinity::ClientIp { seconds: dice.roll(1000) as u32 + 1 },
                };
            }
            9 => {
                self.ranges = (0..dice.roll(5)).map(|_| dice.roll(200) as u8).collect();
            }
            10 => {
                let policies = [TrafficPolicy::Cluster, TrafficPolicy::Local];
                let ways = [Forwarding::Snat, Forwarding::Dsr];
                let edge = (policies[dice.roll(2) as usize], ways[dice.roll(2) as usize]);
                self.edge = (!dice.once_in(3)).then_some(edge);
            }
            _ => self.node_port = !self.node_port,
        }
    }

    fn list(&self, port: u16, family: Family, scope: TrafficPolicy) -> Arc<BackendList> {
        let address = |number: &u64| match family {
            Family::V4 => addr(&format!("10.244.7.{}", number + 1)),
            Family::V6 => addr(&format!("fd00:10:244:7::{:x}", number + 1)),
        };
        let chosen = self
            .backends
            .iter()
            .filter(|(number, _)| scope == TrafficPolicy::Cluster || self.here.contains(number));
        let backends: Vec<Backend> = chosen
            .map(|(number, weight)| Backend {
                weight: Weight(*weight),
                ..Backend::at(address(number), Port(8000 + port))
            })
            .collect();
        let elsewhere = backends.is_empty() && !self.backends.is_empty();
        let scope = (scope == TrafficPolicy::Local) as u32;
        let id = ((self.number as u32 * 1000 + u32::from(port)) * 2 + (family as u32)) * 2 + scope + 1;
        Arc::new(BackendList { id: ListId(id), backends, elsewhere })
    }

    fn frontends(&self) -> Vec<(Frontend, ServicePlan)> {
        let mut frontends = Vec::new();
        for family in &self.families {
            for (protocol, port) in &self.ports {
                let list = self.list(*port, *family, TrafficPolicy::Cluster);
                let cluster_ip = match family {
                    Family::V4 => addr(&format!("10.96.9.{}", self.number + 1)),
                    Family::V6 => addr(&format!("fd00:10:96::9:{:x}", self.number + 1)),
                };
                let plan = |exposure, edge| ServicePlan {
                    exposure,
                    balancing: self.balancing,
                    affinity: self.affinity,
                    edge,
                    list: Arc::clone(&list),
                    ..ServicePlan::cluster_ip(ServiceId(0), self.key(), Vec::new())
                };
                frontends.push((cluster_ip, *protocol, *port, plan(Exposure::ClusterIp, None)));
                if let Some((policy, forwarding)) = self.edge {
                    let edge = EdgePlan { list: self.list(*port, *family, policy), policy, forwarding };
                    let outside = match family {
                        Family::V4 => addr(&format!("203.0.113.{}", self.number + 1)),
                        Family::V6 => addr(&format!("2001:db8:1::{:x}", self.number + 1)),
                    };
                    let mut balancer = plan(Exposure::LoadBalancer, Some(edge.clone()));
                    balancer.source_ranges =
                        self.ranges.iter().map(|number| cidr(&format!("192.0.{number}.0/24"))).collect();
                    frontends.push((outside, *protocol, *port, balancer));
                    if self.node_port {
                        let any = match family {
                            Family::V4 => addr("0.0.0.0"),
                            Family::V6 => addr("::"),
                        };
                        let port = 30_000 + self.number as u16 * 10 + port - 80;
                        frontends.push((any, *protocol, port, plan(Exposure::NodePort, Some(edge))));
                    }
                }
            }
        }
        frontends.into_iter().map(with_id).collect()
    }

    fn key(&self) -> ServiceKey {
        ServiceKey::new("test", format!("service-{}", self.number))
    }
}

/// A number derived from the frontend, as compiled plans have.
fn with_id((addr, protocol, port, mut plan): (Addr, Protocol, u16, ServicePlan)) -> (Frontend, ServicePlan) {
    let frontend = Frontend { addr, protocol, port: Port(port) };
    let bytes = addr.octets().into_iter().chain([protocol.0]).chain(port.to_be_bytes());
    let id = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    plan.id = ServiceId(id);
    (frontend, plan)
}

/// The plan's services become these; what is the same is left alone.
fn plan_services(node: &mut Node, wanted: &BTreeMap<Frontend, ServicePlan>) {
    let services = &mut node.plan.services;
    let gone: Vec<Frontend> = services.keys().filter(|key| !wanted.contains_key(*key)).copied().collect();
    for frontend in gone {
        services.remove(&frontend);
    }
    for (frontend, plan) in wanted {
        if services.get(frontend) != Some(plan) {
            services.insert(*frontend, plan.clone());
        }
    }
}

type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

fn entries(map: &MapHandle) -> Entries {
    map.keys().filter_map(|key| Some((key.clone(), map.lookup(&key, MapFlags::ANY).unwrap()?))).collect()
}

/// What the service tables hold; hash tables by their content, and the numbers of the maps that hold it.
fn dump(datapath: &Datapath) -> (BTreeMap<&'static str, Entries>, BTreeSet<u32>) {
    let mut inner = BTreeSet::new();
    let mut tables = BTreeMap::new();
    for name in SERVICE_TABLES {
        let mut table = entries(&datapath.programs().map(name).unwrap());
        if name == "maglev" {
            for value in table.values_mut() {
                let id = u32::from_ne_bytes(value[..].try_into().unwrap());
                inner.insert(id);
                *value = entries(&MapHandle::from_map_id(id).unwrap()).into_values().flatten().collect();
            }
        }
        tables.insert(name, table);
    }
    (tables, inner)
}

fn open_with(node: &Node, writes: &Arc<Unreliable>) {
    let (config, slot, writes) = (node.config.clone(), Arc::clone(&node.datapath), Arc::clone(writes));
    node.worker.run(move || {
        let opened = Datapath::open_with(config, writes).unwrap_or_else(|error| panic!("{error}"));
        *slot.lock().unwrap() = Some(Arc::new(opened));
    });
}

/// As on a node that Weft has never been on.
fn start_anew(node: &Node) {
    let (config, slot) = (node.config.clone(), Arc::clone(&node.datapath));
    node.worker.run(move || {
        slot.lock().unwrap().take();
        Datapath::cleanup(&config).unwrap();
    });
    node.open();
}

#[test]
fn tables_are_a_fresh_agents_after_any_history() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let mut fresh = Fabric::new(1, Routing::Direct);
    let (node, fresh) = (&mut fabric.nodes[0], &mut fresh.nodes[0]);
    let writes = Arc::new(Unreliable::new());
    open_with(node, &writes);
    let mut dice = Dice(20_240_607);
    let mut world: BTreeMap<u64, Service> = BTreeMap::new();
    let (mut failures, mut seen) = (0, BTreeSet::new());
    for change in 1..=CHANGES {
        let number = dice.roll(SERVICES);
        match world.get_mut(&number) {
            Some(_) if dice.once_in(12) => {
                world.remove(&number);
            }
            Some(service) => service.change(&mut dice),
            None => {
                world.insert(number, Service::random(number, &mut dice));
            }
        }
        let wanted: BTreeMap<Frontend, ServicePlan> = world.values().flat_map(Service::frontends).collect();
        plan_services(node, &wanted);
        node.plan.settings.localhost_node_ports ^= dice.once_in(200);
        let announced = addr(&format!("203.0.113.{}", dice.roll(SERVICES) + 1));
        if dice.once_in(3) && !node.plan.announced.remove(&announced) {
            node.plan.announced.insert(announced);
        }
        // Several changes may come together.
        if dice.once_in(4) && !change.is_multiple_of(CHANGES_BETWEEN_RESTS) {
            continue;
        }
        if dice.once_in(100) {
            open_with(node, &writes);
        }
        writes.fails_once_in.store(if dice.once_in(3) { 6 } else { 0 }, Ordering::Relaxed);
        let plan = node.plan.clone();
        failures += usize::from(node.with(move |datapath| datapath.apply(&plan)).is_err());
        if !change.is_multiple_of(CHANGES_BETWEEN_RESTS) {
            continue;
        }
        writes.fails_once_in.store(0, Ordering::Relaxed);
        node.apply();
        assert!(node.apply().is_unchanged());
        let (tables, inner) = node.with(dump);
        seen.extend(inner.iter().copied());
        start_anew(fresh);
        fresh.plan = node.plan.clone();
        fresh.apply();
        let (expected, _) = fresh.with(dump);
        for name in SERVICE_TABLES {
            assert!(tables[name] == expected[name], "{name} differs after {change} changes");
        }
        assert!(change < CHANGES || seen.len() > inner.len());
        if change == CHANGES {
            let plan = node.plan.clone();
            let differences = node.with(move |datapath| datapath.differences(&plan)).unwrap();
            assert!(differences.is_empty(), "{differences:?}");
            check_told(node, &tables);
            check_gone(seen.difference(&inner).copied());
        }
    }
    assert!(failures > 100, "only {failures} applies failed");
    assert!(writes.failed.load(Ordering::Relaxed) as usize >= failures);
}

/// An entry that somebody else removes is missed.
fn check_told(node: &Node, tables: &BTreeMap<&'static str, Entries>) {
    for name in SERVICE_TABLES {
        let Some((key, value)) = tables[name].first_key_value() else { panic!("{name} is empty") };
        // What a hash table holds cannot be put back as it was read.
        if name == "maglev" {
            continue;
        }
        let (key, value, plan) = (key.clone(), value.clone(), node.plan.clone());
        let differences = node.with(move |datapath| {
            let map = datapath.programs().map(name).unwrap();
            map.delete(&key).unwrap();
            let differences = datapath.differences(&plan).unwrap();
            map.update(&key, &value, MapFlags::ANY).unwrap();
            differences
        });
        assert!(!differences.is_empty(), "{name}");
    }
}

/// The kernel frees maps a little later than their last use.
fn check_gone(ids: impl Iterator<Item = u32>) {
    let mut left: Vec<u32> = ids.collect();
    for _ in 0..1000 {
        left.retain(|id| MapHandle::from_map_id(*id).is_ok());
        if left.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{} hash tables were replaced and are still there", left.len());
}

fn simple(number: u32, backends: u32) -> (Frontend, ServicePlan) {
    let list = (0..backends).map(|backend| {
        Backend::at(std::net::Ipv4Addr::from(0x0af4_0100 + number * 16 + backend).into(), Port(8080))
    });
    let key = ServiceKey::new("test", format!("service-{number}"));
    let plan = ServicePlan {
        port_name: "http".to_owned(),
        ..ServicePlan::cluster_ip(ServiceId(number + 1), key, list.collect())
    };
    let addr = std::net::Ipv4Addr::from(0x0a60_0900 + number).into();
    (Frontend { addr, protocol: Protocol::TCP, port: Port(80) }, plan)
}

fn refused(report: &Report) -> Vec<(String, &'static str, Kept)> {
    report.refused.iter().map(|one| (one.service.name.to_string(), one.table, one.kept)).collect()
}

#[test]
fn what_does_not_fit_is_refused_by_name_and_all_else_goes_in() {
    let mut fabric = Fabric::new(1, Routing::Direct);
    let node = &mut fabric.nodes[0];
    node.config.capacity = Capacity { frontends: 16, backends: 64 };
    node.open();
    let put = |node: &mut Node, (frontend, plan): (Frontend, ServicePlan)| {
        node.plan.services.insert(frontend, plan)
    };
    let slots = |node: &Node, number: u32| {
        let tables = node.with(|datapath| datapath.read_back()).unwrap();
        tables.services.get(&simple(number, 0).0).map(|service| service.backends.len())
    };
    (0..15).for_each(|number| drop(put(node, simple(number, 4))));
    let report = node.apply();
    assert_eq!(refused(&report), []);
    assert!(report.usage["services"].is_high() && !report.usage["classes"].is_high());
    assert_eq!((report.usage["backends"].used, report.usage["backends"].capacity), (60, 64));
    // One list grows by more than there is, another by less, and a service is new.
    put(node, simple(2, 9));
    put(node, simple(3, 6));
    put(node, simple(20, 2));
    let report = node.apply();
    assert_eq!(refused(&report), [("service-2".to_owned(), "backends", Kept::Older)]);
    assert_eq!([2, 3, 20].map(|number| slots(node, number)), [Some(4), Some(6), Some(2)]);
    let said = report.refused[0].to_string();
    assert!(said.contains("Service test/service-2 port http at 10.96.9.2:80/TCP"), "{said}");
    assert!(said.contains("backends is full (64 entries)"), "{said}");
    // Both tables are full: nothing more goes in, not even after a restart, and a smaller list does.
    put(node, simple(21, 0));
    put(node, simple(4, 1));
    node.open();
    let report = node.apply();
    assert_eq!(
        refused(&report),
        [
            ("service-2".to_owned(), "backends", Kept::Older),
            ("service-21".to_owned(), "services", Kept::Nothing)
        ]
    );
    assert_eq!([4, 21].map(|number| slots(node, number)), [Some(1), None]);
    // What leaves makes room for what waits.
    node.plan.services.remove(&simple(5, 0).0);
    let report = node.apply();
    assert_eq!(refused(&report), []);
    assert_eq!([2, 5, 21].map(|number| slots(node, number)), [Some(9), None, Some(0)]);
    assert!(node.apply().is_unchanged());
    // A full table of source ranges: the service keeps what it had.
    let (frontend, mut plan) = simple(6, 4);
    plan.source_ranges = (0..16).map(|number| cidr(&format!("192.0.{number}.0/24"))).collect();
    put(node, (frontend, plan.clone()));
    assert_eq!(refused(&node.apply()), []);
    plan.source_ranges.insert(cidr("192.0.16.0/24"));
    put(node, (frontend, plan.clone()));
    let report = node.apply();
    assert_eq!(refused(&report), [("service-6".to_owned(), "source_ranges", Kept::Older)]);
    assert_eq!(report.usage["source_ranges"].used, 16);
    // Another frontend of its list comes after it and changes the list: it goes by the list as it then is.
    plan.list = Arc::new(BackendList { backends: plan.list.backends[..2].to_vec(), ..(*plan.list).clone() });
    let mut sharer = ServicePlan { source_ranges: BTreeSet::new(), ..plan.clone() };
    sharer.id = ServiceId(100);
    put(node, (frontend, plan));
    node.plan.services.remove(&simple(7, 0).0);
    put(node, (Frontend { port: Port(81), ..frontend }, sharer));
    assert_eq!(refused(&node.apply()), [("service-6".to_owned(), "source_ranges", Kept::Older)]);
    let services = node.with(|datapath| entries(&datapath.programs().map("services").unwrap()));
    let of = |port: u16| {
        let key = weft_abi::ServiceKey::from(&Frontend { port: Port(port), ..frontend });
        bytemuck::pod_read_unaligned::<weft_abi::ServiceValue>(&services[bytemuck::bytes_of(&key)])
    };
    assert_eq!([80, 81].map(|port| (of(port).slots, of(port).list == of(80).list)), [(2, true), (2, true)]);
}
