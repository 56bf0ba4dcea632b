//! From the plan to the kernel: only what differs, put before remove, referenced before referring
//! (docs/design/datapath.md, "Order of changes").

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use weft_abi::{AddrKey, EndpointKind, EndpointValue, PrefixKey};
use weft_model::{Addr, Protocol};
use weft_plan::{Changes, Frontend, NodePlan};

use crate::datapath::{Datapath, Memory};
use crate::error::{ApplyError, ReadError};
use crate::maps::Table;
use crate::tables::KernelTables;
use crate::{masquerade, node};

/// What one `apply` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Entries put and removed, by table.
    pub tables: BTreeMap<&'static str, (usize, usize)>,
    /// Kernel routes and addresses.
    pub netlink: usize,
    /// Flows judged under an older number are judged again.
    pub epoch: u32,
    /// Pods of the plan whose link is not there yet.
    pub not_ready: Vec<Addr>,
}

impl Report {
    pub fn is_unchanged(&self) -> bool {
        self.netlink == 0 && self.tables.values().all(|(put, removed)| put + removed == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {}", self.epoch)?;
        for (table, (put, removed)) in self.tables.iter().filter(|(_, (put, removed))| put + removed > 0) {
            write!(f, ", {table} +{put} -{removed}")?;
        }
        Ok(())
    }
}

/// Everything that differs between what is there and what should be.
struct Difference {
    endpoints: Changes<AddrKey, EndpointValue>,
    classes: Changes<AddrKey, u32>,
    class_blocks: Changes<PrefixKey, u32>,
    policies: Changes<weft_abi::PolicyMapKey, weft_abi::PolicyValue>,
    routes: Changes<PrefixKey, weft_abi::RouteValue>,
    services: Changes<weft_abi::ServiceKey, weft_abi::ServiceValue>,
    backends: Changes<weft_abi::BackendKey, weft_abi::BackendValue>,
    members: Changes<weft_abi::MemberKey, u32>,
    maglev: Changes<u32, Arc<[u64]>>,
    source_ranges: Changes<weft_abi::SourceKey, u32>,
    announced: Changes<AddrKey, u32>,
}

impl Difference {
    fn between(from: &KernelTables, to: &KernelTables) -> Self {
        Self {
            endpoints: Changes::between(&from.endpoints, &to.endpoints),
            classes: Changes::between(&from.classes, &to.classes),
            class_blocks: Changes::between(&from.class_blocks, &to.class_blocks),
            policies: Changes::between(&from.policies, &to.policies),
            routes: Changes::between(&from.routes, &to.routes),
            services: Changes::between(&from.services, &to.services),
            backends: Changes::between(&from.backends, &to.backends),
            members: Changes::between(&from.members, &to.members),
            maglev: Changes::between(&from.maglev, &to.maglev),
            source_ranges: Changes::between(&from.source_ranges, &to.source_ranges),
            announced: Changes::between(&from.announced, &to.announced),
        }
    }

    /// Something was put that a flow's entry rests on: policy, or where an end is.
    fn puts_judgement(&self) -> bool {
        !(self.endpoints.put.is_empty()
            && self.classes.put.is_empty()
            && self.class_blocks.put.is_empty()
            && self.policies.put.is_empty()
            && self.routes.put.is_empty())
    }

    fn removes_judgement(&self) -> bool {
        !(self.endpoints.remove.is_empty()
            && self.classes.remove.is_empty()
            && self.class_blocks.remove.is_empty()
            && self.policies.remove.is_empty()
            && self.routes.remove.is_empty())
    }

    fn report(&self, report: &mut Report) {
        let tables = &mut report.tables;
        tables.insert("endpoints", (self.endpoints.put.len(), self.endpoints.remove.len()));
        tables.insert("classes", (self.classes.put.len(), self.classes.remove.len()));
        tables.insert("class_blocks", (self.class_blocks.put.len(), self.class_blocks.remove.len()));
        tables.insert("policies", (self.policies.put.len(), self.policies.remove.len()));
        tables.insert("routes", (self.routes.put.len(), self.routes.remove.len()));
        tables.insert("services", (self.services.put.len(), self.services.remove.len()));
        tables.insert("backends", (self.backends.put.len(), self.backends.remove.len()));
        tables.insert("announced", (self.announced.put.len(), self.announced.remove.len()));
        tables.insert("source_ranges", (self.source_ranges.put.len(), self.source_ranges.remove.len()));
        tables.insert("maglev", (self.maglev.put.len(), self.maglev.remove.len()));
        tables.insert("members", (self.members.put.len(), self.members.remove.len()));
    }
}

impl Datapath {
    /// Makes the kernel hold the plan, whatever was there. When it fails, what is in force is a part of the plan
    /// beside what was before, and the next call starts from what the kernel then holds.
    pub fn apply(&self, plan: &NodePlan) -> Result<Report, ApplyError> {
        let mut memory = self.memory();
        let links = crate::pods::pod_links(self.netlink())?;
        let from = match memory.tables.take() {
            Some(tables) => tables,
            None => self.read_tables()?,
        };
        let to = KernelTables::of_plan(plan, &links);
        let difference = Difference::between(&from, &to);
        let mut report = Report { not_ready: not_ready(&to), ..Default::default() };
        difference.report(&mut report);
        report.netlink = node::apply(self.netlink(), self.ports(), plan)?;
        self.put(&difference)?;
        if difference.puts_judgement() {
            self.raise_epoch()?;
        }
        self.remove(&difference)?;
        if difference.removes_judgement() {
            self.raise_epoch()?;
        }
        if loses_datagram_members(&difference, [&from, &to]) {
            self.end_sockets()?;
        }
        report.epoch = self.epoch()?;
        self.finish(&mut memory, plan)?;
        memory.tables = Some(to);
        Ok(report)
    }

    /// How often what flows' entries rest on has changed.
    pub fn epoch(&self) -> Result<u32, ReadError> {
        Ok(self.maps().epoch.get(&0)?.unwrap_or_default())
    }

    fn finish(&self, memory: &mut Memory, plan: &NodePlan) -> Result<(), ApplyError> {
        if memory.attach_after_apply {
            self.attach_everything()?;
            memory.attach_after_apply = false;
        }
        let table = masquerade::render(&plan.settings);
        if memory.masquerade.as_ref() != Some(&table) {
            masquerade::install(&table)?;
            memory.masquerade = Some(table);
        }
        Ok(())
    }

    fn put(&self, difference: &Difference) -> Result<(), ApplyError> {
        let maps = self.maps();
        put(&maps.policies, &difference.policies)?;
        put(&maps.classes, &difference.classes)?;
        put(&maps.class_blocks, &difference.class_blocks)?;
        put(&maps.members, &difference.members)?;
        put(&maps.backends, &difference.backends)?;
        maps.maglev.put(&difference.maglev.put)?;
        put(&maps.source_ranges, &difference.source_ranges)?;
        put(&maps.services, &difference.services)?;
        put(&maps.announced, &difference.announced)?;
        put(&maps.routes, &difference.routes)?;
        put(&maps.endpoints, &difference.endpoints)
    }

    fn remove(&self, difference: &Difference) -> Result<(), ApplyError> {
        let maps = self.maps();
        remove(&maps.endpoints, &difference.endpoints)?;
        remove(&maps.routes, &difference.routes)?;
        remove(&maps.announced, &difference.announced)?;
        remove(&maps.services, &difference.services)?;
        remove(&maps.source_ranges, &difference.source_ranges)?;
        maps.maglev.remove(&difference.maglev.remove)?;
        remove(&maps.backends, &difference.backends)?;
        remove(&maps.members, &difference.members)?;
        remove(&maps.class_blocks, &difference.class_blocks)?;
        remove(&maps.classes, &difference.classes)?;
        remove(&maps.policies, &difference.policies)
    }

    fn raise_epoch(&self) -> Result<(), ApplyError> {
        let next = self.epoch()?.wrapping_add(1);
        self.maps().epoch.put(&[(0, next)], &|_| "epoch".to_owned())
    }

    pub(crate) fn read_tables(&self) -> Result<KernelTables, ReadError> {
        let maps = self.maps();
        Ok(KernelTables {
            endpoints: maps.endpoints.read()?,
            classes: maps.classes.read()?,
            class_blocks: maps.class_blocks.read()?,
            policies: maps.policies.read()?,
            routes: maps.routes.read()?,
            services: maps.services.read()?,
            backends: maps.backends.read()?,
            members: maps.members.read()?,
            maglev: maps.maglev.read()?,
            source_ranges: maps.source_ranges.read()?,
            announced: maps.announced.read()?,
        })
    }
}

/// Connected sockets may rest on them.
fn loses_datagram_members(difference: &Difference, tables: [&KernelTables; 2]) -> bool {
    let services = tables.into_iter().flat_map(|tables| &tables.services);
    let lists: BTreeSet<u32> = services
        .filter(|(key, _)| key.protocol == Protocol::UDP.0)
        .map(|(_, service)| service.list)
        .collect();
    difference.members.remove.iter().any(|member| lists.contains(&member.list))
}

fn not_ready(tables: &KernelTables) -> Vec<Addr> {
    let waiting =
        tables.endpoints.iter().filter(|(_, value)| value.kind == EndpointKind::POD && value.ifindex == 0);
    waiting.map(|(key, _)| (*key).into()).collect()
}

/// A map key as a person knows it.
pub(crate) trait Describe {
    fn describe(&self) -> String;
}

impl Describe for AddrKey {
    fn describe(&self) -> String {
        format!("address {}", Addr::from(*self))
    }
}

impl Describe for PrefixKey {
    fn describe(&self) -> String {
        match self.to_cidr() {
            Some(cidr) => format!("prefix {cidr}"),
            None => format!("prefix {}/{}", Addr::from(self.addr), self.bits),
        }
    }
}

impl Describe for weft_abi::PolicyMapKey {
    fn describe(&self) -> String {
        format!(
            "policy set {:08x}, class {:08x}, port {}",
            self.set,
            self.peer_class,
            u16::from_be(self.port)
        )
    }
}

impl Describe for weft_abi::ServiceKey {
    fn describe(&self) -> String {
        format!("service {}", Frontend::from(*self))
    }
}

impl Describe for weft_abi::MemberKey {
    fn describe(&self) -> String {
        let (addr, port) = (Addr::from(self.addr), u16::from_be(self.port));
        format!("member {addr} port {port} of backend list {:08x}", self.list)
    }
}

impl Describe for weft_abi::SourceKey {
    fn describe(&self) -> String {
        let bits = self.bits.saturating_sub(weft_abi::SourceKey::BITS_SERVICE);
        let prefix = PrefixKey { bits, addr: self.addr }.describe();
        format!("source {prefix} of frontend {:08x}", self.service)
    }
}

impl Describe for weft_abi::BackendKey {
    fn describe(&self) -> String {
        format!("slot {} of backend list {:08x}", self.slot, self.list)
    }
}

fn put<K, V>(table: &Table<K, V>, changes: &Changes<K, V>) -> Result<(), ApplyError>
where
    K: bytemuck::Pod + Ord + Describe,
    V: bytemuck::Pod,
{
    table.put(&changes.put, &K::describe)
}

fn remove<K, V>(table: &Table<K, V>, changes: &Changes<K, V>) -> Result<(), ApplyError>
where
    K: bytemuck::Pod + Ord + Describe,
    V: bytemuck::Pod,
{
    table.remove(&changes.remove, &K::describe)
}
