//! From the plan to the kernel: only what differs, put before remove, referenced before referring
//! (docs/design/datapath.md, "Order of changes").

use std::collections::BTreeMap;
use std::fmt;

use weft_abi::{AddrKey, EndpointKind, EndpointValue, PrefixKey};
use weft_model::{Addr, Change};
use weft_plan::{Changes, Frontend, NodePlan, ServicePlan};

use crate::datapath::{Datapath, HeldNode, Memory};
use crate::error::{ApplyError, OpenError, ReadError};
use crate::maps::Table;
use crate::tables::{KernelTables, PRESENT, is_reached_from_outside};
use crate::usage::{Refused, Usage};
use crate::{leftovers, node};

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
    /// Frontends that are not as planned because a table is full.
    pub refused: Vec<Refused>,
    /// How full each table is.
    pub usage: BTreeMap<&'static str, Usage>,
}

impl Report {
    pub(crate) fn count<K, V>(&mut self, table: &'static str, changes: &Changes<K, V>) {
        let (put, removed) = self.tables.entry(table).or_default();
        *put += changes.put.len();
        *removed += changes.remove.len();
    }

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
        for refused in &self.refused {
            write!(f, ", {refused}")?;
        }
        Ok(())
    }
}

/// Everything that differs between what is there and what should be, but for services.
struct Difference {
    endpoints: Changes<AddrKey, EndpointValue>,
    classes: Changes<AddrKey, u32>,
    class_blocks: Changes<PrefixKey, u32>,
    policies: Changes<weft_abi::PolicyMapKey, weft_abi::PolicyValue>,
    routes: Changes<PrefixKey, weft_abi::RouteValue>,
}

impl Difference {
    fn between(from: &KernelTables, to: &KernelTables) -> Self {
        Self {
            endpoints: Changes::between(&from.endpoints, &to.endpoints),
            classes: Changes::between(&from.classes, &to.classes),
            class_blocks: Changes::between(&from.class_blocks, &to.class_blocks),
            policies: Changes::between(&from.policies, &to.policies),
            routes: Changes::between(&from.routes, &to.routes),
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
        report.count("endpoints", &self.endpoints);
        report.count("classes", &self.classes);
        report.count("class_blocks", &self.class_blocks);
        report.count("policies", &self.policies);
        report.count("routes", &self.routes);
    }
}

impl Datapath {
    /// Makes the kernel hold the plan, whatever was there. When it fails, what is in force is a part of the plan
    /// beside what was before, and the next call starts from what the kernel then holds. Services do not wait for
    /// the rest, nor the rest for them.
    pub fn apply(&self, plan: &NodePlan) -> Result<Report, ApplyError> {
        let mut memory = self.memory();
        let mut report = Report::default();
        self.withdraw(plan, &mut report)?;
        let node = self.apply_node(&mut memory, plan, &mut report);
        let services = self.apply_services(&mut memory, plan, &mut report);
        let announced = self.announce(plan, &mut report);
        // A table that fails does not hold up programs that judge by others: new ones take the places of those that run as soon
        // as what they judge by is complete.
        let attached = if node.is_ok() { self.attach(&mut memory) } else { Ok(()) };
        let leftovers = self.remove_leftovers(&mut memory);
        report.epoch = self.epoch()?;
        node.and(services).and(announced).and(attached).and(leftovers)?;
        Ok(report)
    }

    /// An address that another node may be announcing already is given up whatever else fails.
    fn withdraw(&self, plan: &NodePlan, report: &mut Report) -> Result<(), ApplyError> {
        let Changes { remove: gone, .. } = self.announced_changes(plan)?;
        self.maps().announced.remove(&gone, &AddrKey::describe)?;
        report.count("announced", &Changes::<_, u32> { put: Vec::new(), remove: gone });
        Ok(())
    }

    /// Nothing rests on it, so nothing waits for it.
    fn announce(&self, plan: &NodePlan, report: &mut Report) -> Result<(), ApplyError> {
        let changes = self.announced_changes(plan)?;
        put(&self.maps().announced, &changes)?;
        report.count("announced", &changes);
        Ok(())
    }

    fn announced_changes(&self, plan: &NodePlan) -> Result<Changes<AddrKey, u32>, ReadError> {
        let wanted = plan.announced.iter().map(|addr| ((*addr).into(), PRESENT)).collect();
        Ok(Changes::between(&self.maps().announced.read()?, &wanted))
    }

    fn apply_node(
        &self,
        memory: &mut Memory,
        plan: &NodePlan,
        report: &mut Report,
    ) -> Result<(), ApplyError> {
        let links = crate::pods::pod_links(self.netlink())?;
        report.netlink = node::apply(self.netlink(), self.ports(), plan)?;
        self.put_node_addresses(&plan.settings)?;
        let held = match memory.node.take() {
            Some(held) if !held.differs(plan, &links) => HeldNode { plan: plan.clone(), ..held },
            held => {
                let from = match held {
                    Some(held) => held.tables,
                    None => self.read_node_tables()?,
                };
                let tables = KernelTables::of_node(plan, &links);
                self.change_node(&Difference::between(&from, &tables), report)?;
                HeldNode { plan: plan.clone(), links, tables }
            }
        };
        report.not_ready = not_ready(&held.tables);
        report.usage.extend(self.node_usage(&held.tables));
        memory.node = Some(held);
        Ok(())
    }

    fn change_node(&self, difference: &Difference, report: &mut Report) -> Result<(), ApplyError> {
        difference.report(report);
        self.put(difference)?;
        if difference.puts_judgement() {
            self.raise_epoch()?;
        }
        self.remove(difference)?;
        if difference.removes_judgement() {
            self.raise_epoch()?;
        }
        Ok(())
    }

    /// How often what flows' entries rest on has changed.
    pub fn epoch(&self) -> Result<u32, ReadError> {
        Ok(self.maps().epoch.get(&0)?.unwrap_or_default())
    }

    fn attach(&self, memory: &mut Memory) -> Result<(), ApplyError> {
        if memory.attach_after_apply {
            self.attach_everything()?;
            memory.attach_after_apply = false;
        }
        Ok(())
    }

    /// Not before programs that masquerade are in force.
    fn remove_leftovers(&self, memory: &mut Memory) -> Result<(), ApplyError> {
        if memory.leftovers_removed || memory.attach_after_apply {
            return Ok(());
        }
        leftovers::remove_table().map_err(OpenError::Leftover)?;
        memory.leftovers_removed = true;
        Ok(())
    }

    fn put(&self, difference: &Difference) -> Result<(), ApplyError> {
        let maps = self.maps();
        put(&maps.policies, &difference.policies)?;
        put(&maps.classes, &difference.classes)?;
        put(&maps.class_blocks, &difference.class_blocks)?;
        put(&maps.routes, &difference.routes)?;
        put(&maps.endpoints, &difference.endpoints)
    }

    fn remove(&self, difference: &Difference) -> Result<(), ApplyError> {
        let maps = self.maps();
        remove(&maps.endpoints, &difference.endpoints)?;
        remove(&maps.routes, &difference.routes)?;
        remove(&maps.class_blocks, &difference.class_blocks)?;
        remove(&maps.classes, &difference.classes)?;
        remove(&maps.policies, &difference.policies)
    }

    pub(crate) fn raise_epoch(&self) -> Result<(), ApplyError> {
        let next = self.epoch()?.wrapping_add(1);
        self.maps().epoch.put(&[(0, next)], &|_| "epoch".to_owned())
    }

    pub(crate) fn read_tables(&self) -> Result<KernelTables, ReadError> {
        let services = self.read_service_tables()?;
        let node = self.read_node_tables()?;
        Ok(KernelTables {
            endpoints: node.endpoints,
            classes: node.classes,
            class_blocks: node.class_blocks,
            policies: node.policies,
            routes: node.routes,
            announced: node.announced,
            ..services
        })
    }

    /// All but the tables of services are filled.
    fn read_node_tables(&self) -> Result<KernelTables, ReadError> {
        let maps = self.maps();
        Ok(KernelTables {
            endpoints: maps.endpoints.read()?,
            classes: maps.classes.read()?,
            class_blocks: maps.class_blocks.read()?,
            policies: maps.policies.read()?,
            routes: maps.routes.read()?,
            announced: maps.announced.read()?,
            ..Default::default()
        })
    }

    fn node_usage(&self, tables: &KernelTables) -> [(&'static str, Usage); 6] {
        let maps = self.maps();
        let usage = |used, capacity: u32| Usage { used, capacity: capacity as usize };
        [
            (maps.endpoints.name(), usage(tables.endpoints.len(), maps.endpoints.capacity())),
            (maps.classes.name(), usage(tables.classes.len(), maps.classes.capacity())),
            (maps.class_blocks.name(), usage(tables.class_blocks.len(), maps.class_blocks.capacity())),
            (maps.policies.name(), usage(tables.policies.len(), maps.policies.capacity())),
            (maps.routes.name(), usage(tables.routes.len(), maps.routes.capacity())),
            (maps.announced.name(), usage(tables.announced.len(), maps.announced.capacity())),
        ]
    }
}

impl HeldNode {
    /// False: the kernel holds all of the plan but its services.
    fn differs(&self, plan: &NodePlan, links: &[crate::PodLink]) -> bool {
        let held = &self.plan;
        let same = held.endpoints.is_same(&plan.endpoints)
            && held.classes.is_same(&plan.classes)
            && held.policy_sets.is_same(&plan.policy_sets)
            && held.routes.is_same(&plan.routes)
            && held.announced == plan.announced
            && held.settings == plan.settings;
        // Only addresses that come or go; one of two ports is no less rare.
        let is_address = |change: Change<'_, Frontend, ServicePlan>| {
            let at = |service: Option<&ServicePlan>| {
                service.is_some_and(|service| is_reached_from_outside(change.key, service))
            };
            at(change.before) != at(change.after)
        };
        !same || self.links != links || plan.services.changes(&held.services).any(is_address)
    }
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

pub(crate) fn put<K, V>(table: &Table<K, V>, changes: &Changes<K, V>) -> Result<(), ApplyError>
where
    K: bytemuck::Pod + Ord + Describe,
    V: bytemuck::Pod,
{
    table.put(&changes.put, &K::describe)
}

pub(crate) fn remove<K, V>(table: &Table<K, V>, changes: &Changes<K, V>) -> Result<(), ApplyError>
where
    K: bytemuck::Pod + Ord + Describe,
    V: bytemuck::Pod,
{
    table.remove(&changes.remove, &K::describe)
}
