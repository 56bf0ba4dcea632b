//! The durable records and the addresses they hold, under random adds, deletions, kills and failing disks.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use weft_cni::{AttachRequest, Attached, Attachments, Disk, MacAddr, Owner};
use weft_model::{Addr, Cidr};

/// A disk in memory that outlives the store upon it, and can fail or "kill the process" at any operation.
#[derive(Clone, Default)]
struct FaultyDisk {
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// Operations until the next fault; 0: none is armed.
    countdown: Arc<AtomicU32>,
    fault: Arc<Mutex<Option<Fault>>>,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The operation fails and did nothing.
    Before,
    /// The operation fails although it was done (a failed directory sync).
    After,
    /// The operation is done; the process dies then, so nothing later reaches the disk.
    DeadAfter,
    /// The process dies before the operation.
    DeadBefore,
}

enum Step {
    Do,
    Fail,
    DoAndFail,
}

impl FaultyDisk {
    fn arm(&self, fault: Fault, operations: u32) {
        *self.fault.lock().unwrap() = Some(fault);
        self.countdown.store(operations, Ordering::SeqCst);
    }

    fn restart(&self) {
        *self.fault.lock().unwrap() = None;
        self.countdown.store(0, Ordering::SeqCst);
    }

    fn step(&self) -> Step {
        let mut fault = self.fault.lock().unwrap();
        let Some(armed) = *fault else { return Step::Do };
        let left = self.countdown.load(Ordering::SeqCst);
        if left > 1 {
            self.countdown.store(left - 1, Ordering::SeqCst);
            return Step::Do;
        }
        match armed {
            Fault::Before => {
                *fault = None;
                Step::Fail
            }
            Fault::After => {
                *fault = None;
                Step::DoAndFail
            }
            Fault::DeadAfter => {
                *fault = Some(Fault::DeadBefore);
                Step::DoAndFail
            }
            Fault::DeadBefore => Step::Fail,
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) -> io::Result<()> {
        let step = self.step();
        if !matches!(step, Step::Fail) {
            change(&mut self.files.lock().unwrap());
        }
        if matches!(step, Step::Do) { Ok(()) } else { Err(io::Error::other("injected")) }
    }
}

impl Disk for FaultyDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().unwrap().keys().cloned().collect())
    }
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.files.lock().unwrap().get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.change(|files| drop(files.insert(name.to_owned(), bytes.to_vec())))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.change(|files| drop(files.remove(name)))
    }
    fn set_aside(&self, name: &str) -> io::Result<()> {
        panic!("{name} was unreadable, but only whole records are ever written")
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Add(u8),
    /// The process dies between the record and the answer.
    AddCutShort(u8),
    Del(u8),
    Kill,
    Arm(Fault, u32),
}

fn operation() -> impl Strategy<Value = Operation> {
    let fault =
        prop_oneof![Just(Fault::Before), Just(Fault::After), Just(Fault::DeadAfter), Just(Fault::DeadBefore)];
    prop_oneof![
        8 => (0..40u8).prop_map(Operation::Add),
        1 => (0..40u8).prop_map(Operation::AddCutShort),
        6 => (0..40u8).prop_map(Operation::Del),
        1 => Just(Operation::Kill),
        2 => (fault, 1..4u32).prop_map(|(fault, after)| Operation::Arm(fault, after)),
    ]
}

fn request(n: u8) -> AttachRequest {
    AttachRequest {
        owner: Owner { container_id: format!("c{n}"), ifname: "eth0".into() },
        network: "weft".into(),
        pod: None,
        netns: PathBuf::from(format!("/run/netns/c{n}")),
    }
}

fn attached() -> Attached {
    let mac = MacAddr([2, 0, 0, 0, 0, 1]);
    Attached { mac, host_mac: mac, mtu: 1500, gateways: Vec::new() }
}

/// Room for 30 of the 40 owners, in two pools, so that exhaustion and wrapping are met all the time.
fn open(disk: &FaultyDisk) -> Attachments {
    let cidrs: Vec<Cidr> = ["10.0.0.0/28", "10.0.1.0/28", "10.0.2.0/30", "10.0.3.0/29", "fd00::/64"]
        .map(|c| c.parse().unwrap())
        .into();
    Attachments::on(Box::new(disk.clone()), "node1".into(), &cidrs).unwrap()
}

/// What runtimes were told.
type Promised = BTreeMap<Owner, Vec<Addr>>;

struct World {
    disk: FaultyDisk,
    store: Attachments,
    promised: Promised,
}

impl World {
    fn new() -> Self {
        let disk = FaultyDisk::default();
        Self { store: open(&disk), disk, promised: Promised::new() }
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Add(n) => self.add(&request(*n)),
            Operation::AddCutShort(n) => {
                let _ = self.store.begin(&request(*n));
                self.kill();
            }
            Operation::Del(n) => {
                let owner = request(*n).owner;
                // A failed DEL promises nothing: the record may or may not be there after a restart.
                self.promised.remove(&owner);
                let _ = self.store.remove(&owner);
            }
            Operation::Kill => self.kill(),
            Operation::Arm(fault, after) => self.disk.arm(*fault, *after),
        }
    }

    /// As the service does: what is there stays, what is half there goes first, what fails is undone.
    fn add(&mut self, request: &AttachRequest) {
        let owner = &request.owner;
        match self.store.get(owner) {
            Some(known) if known.attached.is_some() => {
                if self.store.complete(owner, attached()).is_ok() {
                    let before = self.promised.insert(owner.clone(), known.addresses.clone());
                    assert!(
                        before.is_none_or(|before| before == known.addresses),
                        "a repeated ADD moved {owner}"
                    );
                }
                return;
            }
            Some(_) if self.store.remove(owner).is_err() => return,
            _ => {}
        }
        assert!(!self.promised.contains_key(owner), "{owner} was promised and is forgotten");
        let made = self.store.begin(request).and_then(|_| self.store.complete(owner, attached()));
        match made {
            Ok(record) => drop(self.promised.insert(owner.clone(), record.addresses)),
            Err(_) => drop(self.store.remove(owner)),
        }
    }

    /// SIGKILL and the next agent's start, which undoes whatever no runtime was promised.
    fn kill(&mut self) {
        self.disk.restart();
        self.store = open(&self.disk);
        for record in self.store.list() {
            if record.attached.is_none() && !self.promised.contains_key(&record.owner) {
                self.store.remove(&record.owner).unwrap();
            }
        }
    }

    fn check(&self) {
        let records = self.store.list();
        let mut seen = BTreeSet::new();
        for record in &records {
            for addr in &record.addresses {
                assert!(seen.insert(*addr), "{addr} has two owners");
            }
        }
        for (owner, addresses) in &self.promised {
            let record =
                self.store.get(owner).unwrap_or_else(|| panic!("{owner} was promised and is forgotten"));
            assert_eq!(&record.addresses, addresses, "{owner} was moved");
        }
        let used: usize = self.store.usage().iter().map(|usage| usage.used).sum();
        assert_eq!(used, seen.len(), "an address is in use without a record");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]

    /// 50 runs of 200 operations: 10,000 in all.
    #[test]
    fn nothing_leaks_and_no_address_has_two_owners(operations in prop::collection::vec(operation(), 200)) {
        let mut world = World::new();
        for operation in &operations {
            world.apply(operation);
            world.check();
        }
        world.kill();
        world.check();
        for record in world.store.list() {
            world.store.remove(&record.owner).unwrap();
        }
        prop_assert!(world.store.usage().iter().all(|usage| usage.used == 0));
        prop_assert!(world.disk.list().unwrap().iter().all(|name| name == "cursors"));
    }
}

#[test]
fn a_record_from_the_real_disk_comes_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let cidrs: Vec<Cidr> = vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()];
    let open = || Attachments::open(dir.path().join("a"), "node1".into(), &cidrs).unwrap();
    let store = open();
    store.begin(&request(1)).unwrap();
    let written = store.complete(&request(1).owner, attached()).unwrap();
    store.begin(&request(2)).unwrap();
    store.remove(&request(2).owner).unwrap();
    drop(store);
    let store = open();
    assert_eq!(store.list(), [written]);
    // The ring goes on after the last address given, not after the last one recorded.
    assert_eq!(store.begin(&request(3)).unwrap().addresses[0].to_string(), "10.0.0.4");
}

#[test]
fn an_unreadable_record_is_put_aside_and_the_rest_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let cidrs: Vec<Cidr> = vec!["10.0.0.0/24".parse().unwrap()];
    let open = || Attachments::open(dir.path().to_owned(), "node1".into(), &cidrs).unwrap();
    let store = open();
    store.begin(&request(1)).unwrap();
    drop(store);
    std::fs::write(dir.path().join("c9@0"), b"{\"owner\":").unwrap();
    assert_eq!(open().list().len(), 1);
    assert!(dir.path().join(".unreadable-c9@0").exists());
}
