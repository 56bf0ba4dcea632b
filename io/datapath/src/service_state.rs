//! What the kernel holds of services, frontend by frontend and list by list, and the changes that bring it to a plan. Whatever
//! does not fit is left out whole. Pure: writing lives in `service_apply`, single entries in `service_entries`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use weft_abi::{BackendKey, BackendValue, MemberKey, ServiceKey, ServiceValue, SourceKey};
use weft_model::{Protocol, SharedMap};
use weft_plan::{BackendList, Changes, Frontend, ServicePlan, maglev};

use crate::service_entries::{Hashing, ListEntries, Localhost, lists_of, service_value, source_keys};
use crate::tables::{KernelTables, PRESENT};
use crate::usage::{Kept, Refused};

/// The tables, as indices of `Counts`.
pub(crate) const TABLES: [&str; 5] = ["services", "backends", "members", "maglev", "source_ranges"];
const SERVICES: usize = 0;
const BACKENDS: usize = 1;
const MEMBERS: usize = 2;
const MAGLEV: usize = 3;
const SOURCE_RANGES: usize = 4;

/// A number for each of `TABLES`.
pub(crate) type Counts = [usize; TABLES.len()];

#[derive(Default)]
pub(crate) struct ServiceState {
    frontends: BTreeMap<Frontend, HeldFrontend>,
    lists: HashMap<u32, HeldList>,
    used: Counts,
    planned: Planned,
    refused: BTreeSet<Frontend>,
    stray: Stray,
}

/// What was asked for last.
#[derive(Default)]
enum Planned {
    /// The process before knew; everything is compared.
    #[default]
    Unknown,
    Known(SharedMap<Frontend, ServicePlan>, Localhost),
}

struct HeldFrontend {
    value: ServiceValue,
    sources: BTreeSet<SourceKey>,
}

#[derive(Default)]
struct HeldList {
    slots: Vec<BackendValue>,
    members: BTreeMap<MemberKey, u32>,
    table: Option<Arc<[u64]>>,
    /// `None`: as another process left it.
    source: Option<(Arc<BackendList>, Hashing)>,
    users: BTreeMap<Frontend, Hashing>,
}

/// Entries of no frontend and no list.
#[derive(Default)]
struct Stray {
    backends: Vec<BackendKey>,
    sources: Vec<SourceKey>,
}

/// In the order of `put`, and of `remove` from the end.
#[derive(Debug)]
pub(crate) struct ServiceChanges {
    pub members: Changes<MemberKey, u32>,
    pub backends: Changes<BackendKey, BackendValue>,
    pub maglev: Changes<u32, Arc<[u64]>>,
    pub source_ranges: Changes<SourceKey, u32>,
    pub services: Changes<ServiceKey, ServiceValue>,
}

/// What one step does, and what it leaves out.
pub(crate) struct Step {
    pub changes: ServiceChanges,
    pub refused: Vec<Refused>,
    /// Sockets may be connected to a backend that goes.
    pub loses_datagram_members: bool,
    /// Packets to what is a frontend now were somebody else's before, or the other way round.
    pub changes_frontends: bool,
}

impl Default for ServiceChanges {
    fn default() -> Self {
        Self { members: none(), backends: none(), maglev: none(), source_ranges: none(), services: none() }
    }
}

fn none<K, V>() -> Changes<K, V> {
    Changes { put: Vec::new(), remove: Vec::new() }
}

impl ServiceChanges {
    pub fn frees_something(&self) -> bool {
        !(self.members.remove.is_empty()
            && self.backends.remove.is_empty()
            && self.maglev.remove.is_empty()
            && self.source_ranges.remove.is_empty()
            && self.services.remove.is_empty())
    }
}

impl ServiceState {
    /// As read from the kernel.
    pub fn held(tables: &KernelTables) -> Self {
        let mut state = Self {
            used: [
                tables.services.len(),
                tables.backends.len(),
                tables.members.len(),
                tables.maglev.len(),
                tables.source_ranges.len(),
            ],
            ..Default::default()
        };
        for (key, value) in &tables.backends {
            let list = state.lists.entry(key.list).or_default();
            // Slots come in order; one after a gap belongs to nothing.
            match list.slots.len() == key.slot as usize {
                true => list.slots.push(*value),
                false => state.stray.backends.push(*key),
            }
        }
        for (key, slot) in &tables.members {
            state.lists.entry(key.list).or_default().members.insert(*key, *slot);
        }
        for (list, table) in &tables.maglev {
            state.lists.entry(*list).or_default().table = Some(Arc::clone(table));
        }
        let mut sources: HashMap<u32, BTreeSet<SourceKey>> = HashMap::new();
        for key in tables.source_ranges.keys() {
            sources.entry(key.service).or_default().insert(*key);
        }
        for (key, value) in &tables.services {
            let held = HeldFrontend { value: *value, sources: sources.remove(&value.id).unwrap_or_default() };
            state.frontends.insert((*key).into(), held);
        }
        state.stray.sources = sources.into_values().flatten().collect();
        state
    }

    pub fn used(&self) -> Counts {
        self.used
    }

    /// Whether the plan's services are in force, but for those that were refused.
    pub fn is_at(&self, services: &SharedMap<Frontend, ServicePlan>, localhost: Localhost) -> bool {
        matches!(&self.planned, Planned::Known(known, open) if known.is_same(services) && *open == localhost)
            && self.refused.is_empty()
    }

    /// The state is then that after the changes; if they cannot be made, it has to be read again.
    pub fn step(
        &mut self,
        services: &SharedMap<Frontend, ServicePlan>,
        localhost: Localhost,
        capacity: &Counts,
    ) -> Step {
        let dirty = self.dirty(services, localhost);
        let mut round = Round::new(self, services, &dirty, capacity);
        for frontend in &dirty {
            if let Some(plan) = services.get(frontend) {
                round.admit(*frontend, plan, localhost);
            }
        }
        // Only when every list is what it will be: another frontend may have changed one that a refused one shares.
        round.keep_refused();
        for frontend in dirty.iter().filter(|frontend| !services.contains_key(*frontend)) {
            round.drop_frontend(frontend);
        }
        round.settle_lists();
        let step = round.finish();
        self.refused = step.refused.iter().map(|refused| refused.frontend).collect();
        self.planned = Planned::Known(services.clone(), localhost);
        step
    }

    /// Frontends that are not as planned, or not known to be.
    fn dirty(&self, services: &SharedMap<Frontend, ServicePlan>, localhost: Localhost) -> BTreeSet<Frontend> {
        match &self.planned {
            Planned::Known(known, open) if *open == localhost => {
                let changed = services.changes(known).map(|change| *change.key);
                changed.chain(self.refused.iter().copied()).collect()
            }
            _ => self.frontends.keys().chain(services.keys()).copied().collect(),
        }
    }
}

/// One step being reckoned.
struct Round<'a> {
    state: &'a mut ServiceState,
    /// What lists of dirty frontends should be.
    wanted: HashMap<u32, (Arc<BackendList>, Hashing)>,
    /// Lists that were looked at, and whether they are as wanted now.
    admitted: HashMap<u32, Result<(), usize>>,
    /// Lists that may have lost their last user, or their last user by hash.
    touched: BTreeSet<u32>,
    room: [isize; TABLES.len()],
    capacity: Counts,
    datagram_lists: BTreeSet<u32>,
    stray: Stray,
    step: Step,
}

impl<'a> Round<'a> {
    fn new(
        state: &'a mut ServiceState,
        services: &SharedMap<Frontend, ServicePlan>,
        dirty: &BTreeSet<Frontend>,
        capacity: &Counts,
    ) -> Self {
        let room = std::array::from_fn(|table| capacity[table] as isize - state.used[table] as isize);
        let step = Step {
            changes: ServiceChanges::default(),
            refused: Vec::new(),
            loses_datagram_members: false,
            changes_frontends: false,
        };
        let stray = std::mem::take(&mut state.stray);
        let mut round = Self {
            stray,
            state,
            wanted: HashMap::new(),
            admitted: HashMap::new(),
            touched: BTreeSet::new(),
            room,
            capacity: *capacity,
            datagram_lists: BTreeSet::new(),
            step,
        };
        for frontend in dirty {
            if let Some(plan) = services.get(frontend) {
                round.want_lists(plan);
            }
            if frontend.protocol == Protocol::UDP {
                let planned = services.get(frontend).into_iter().flat_map(lists_of);
                round.datagram_lists.extend(planned.map(|(list, _)| list.id.0));
            }
        }
        round.keep_hashing_of_users();
        round
    }

    fn want_lists(&mut self, plan: &ServicePlan) {
        for (list, hashing) in lists_of(plan) {
            let wanted = self.wanted.entry(list.id.0).or_insert_with(|| (Arc::clone(list), Hashing::Never));
            wanted.1 = wanted.1.max(hashing);
        }
    }

    /// A frontend that is refused goes on using its list as before; what turns out to need no table loses it at the end.
    fn keep_hashing_of_users(&mut self) {
        for (id, (_, hashing)) in &mut self.wanted {
            let Some(held) = self.state.lists.get(id) else { continue };
            *hashing = held.users.values().copied().fold(*hashing, Hashing::max);
        }
    }

    /// The frontend as planned, or not at all.
    fn admit(&mut self, frontend: Frontend, plan: &ServicePlan, localhost: Localhost) {
        let sources = source_keys(&frontend, plan);
        let fits = self.room_for(&frontend, &sources);
        let fits = fits.and_then(|()| lists_of(plan).try_for_each(|(list, _)| self.admit_list(list.id.0)));
        if let Err(table) = fits {
            return self.refuse(frontend, plan, table);
        }
        let value = service_value(&frontend, plan, localhost);
        self.release(&frontend);
        for (list, hashing) in lists_of(plan) {
            let list = self.state.lists.entry(list.id.0).or_default();
            let used = list.users.entry(frontend).or_insert(hashing);
            *used = (*used).max(hashing);
        }
        self.put_frontend(frontend, HeldFrontend { value, sources });
    }

    fn refuse(&mut self, frontend: Frontend, plan: &ServicePlan, table: usize) {
        let kept = if self.state.frontends.contains_key(&frontend) { Kept::Older } else { Kept::Nothing };
        self.step.refused.push(Refused {
            frontend,
            service: plan.service.clone(),
            port_name: plan.port_name.clone(),
            table: TABLES[table],
            capacity: self.capacity[table],
            kept,
        });
    }

    fn keep_refused(&mut self) {
        let refused: Vec<Frontend> = self.step.refused.iter().map(|refused| refused.frontend).collect();
        for frontend in &refused {
            self.keep(frontend);
        }
    }

    /// What a refused frontend holds stays, and fits the lists as they are now.
    fn keep(&mut self, frontend: &Frontend) {
        let Some(held) = self.state.frontends.get(frontend) else { return };
        let mut value = held.value;
        let hashed = weft_abi::ServiceFlags::HASHED & value.flags != 0;
        let hashing = if hashed { Hashing::Used } else { Hashing::Never };
        if let Some(list) = self.state.lists.get_mut(&value.list) {
            list.users.insert(*frontend, hashing);
            if self.admitted.contains_key(&value.list) {
                value.slots = list.slots.len() as u32;
                value.hashed_slots = if hashed { list.hashed_slots(value.hashed_slots) } else { 0 };
            }
        }
        if let Some(list) = self.state.lists.get_mut(&value.edge_list).filter(|_| value.edge_list != 0) {
            list.users.insert(*frontend, Hashing::Used);
            if self.admitted.contains_key(&value.edge_list) {
                value.edge_hashed_slots = list.hashed_slots(value.edge_hashed_slots);
            }
        }
        let sources = held.sources.clone();
        self.put_frontend(*frontend, HeldFrontend { value, sources });
    }

    fn room_for(&self, frontend: &Frontend, sources: &BTreeSet<SourceKey>) -> Result<(), usize> {
        let held = self.state.frontends.get(frontend);
        let new = usize::from(held.is_none());
        let new_sources = match held {
            Some(held) => sources.difference(&held.sources).count(),
            None => sources.len(),
        };
        self.fits(SERVICES, new)?;
        self.fits(SOURCE_RANGES, new_sources)
    }

    fn put_frontend(&mut self, frontend: Frontend, held: HeldFrontend) {
        let before = self.state.frontends.get(&frontend);
        let old_value = before.map(|before| before.value);
        let old_sources = before.map(|before| before.sources.clone()).unwrap_or_default();
        let new: Vec<SourceKey> = held.sources.difference(&old_sources).copied().collect();
        let gone: Vec<SourceKey> = old_sources.difference(&held.sources).copied().collect();
        self.take(SOURCE_RANGES, new.len());
        self.free(SOURCE_RANGES, gone.len());
        let changes = &mut self.step.changes;
        changes.source_ranges.put.extend(new.into_iter().map(|key| (key, PRESENT)));
        changes.source_ranges.remove.extend(gone);
        if old_value != Some(held.value) {
            changes.services.put.push(((&frontend).into(), held.value));
        }
        if old_value.is_none() {
            self.step.changes_frontends = true;
            self.take(SERVICES, 1);
        }
        self.state.frontends.insert(frontend, held);
    }

    fn drop_frontend(&mut self, frontend: &Frontend) {
        self.release(frontend);
        let Some(held) = self.state.frontends.remove(frontend) else { return };
        self.step.changes_frontends = true;
        self.free(SERVICES, 1);
        self.free(SOURCE_RANGES, held.sources.len());
        self.step.changes.services.remove.push(frontend.into());
        self.step.changes.source_ranges.remove.extend(held.sources);
    }

    /// The frontend uses its lists no more.
    fn release(&mut self, frontend: &Frontend) {
        let Some(held) = self.state.frontends.get(frontend) else { return };
        for id in [held.value.list, held.value.edge_list] {
            if let Some(list) = self.state.lists.get_mut(&id) {
                list.users.remove(frontend);
                self.touched.insert(id);
                if frontend.protocol == Protocol::UDP {
                    self.datagram_lists.insert(id);
                }
            }
        }
    }

    /// The list as wanted, or as it was.
    fn admit_list(&mut self, id: u32) -> Result<(), usize> {
        if let Some(outcome) = self.admitted.get(&id) {
            return *outcome;
        }
        let (source, hashing) = self.wanted[&id].clone();
        let outcome = self.bring_list(id, source, hashing);
        self.admitted.insert(id, outcome);
        outcome
    }

    fn bring_list(&mut self, id: u32, source: Arc<BackendList>, hashing: Hashing) -> Result<(), usize> {
        let held = self.state.lists.entry(id).or_default();
        if held.source.as_ref().is_some_and(|(known, used)| *known == source && *used == hashing) {
            return Ok(());
        }
        let entries = ListEntries::of(&source, hashing);
        let members = entries.members(id);
        let new_members = members.keys().filter(|key| !held.members.contains_key(*key)).count();
        let new_slots = entries.slots.len().saturating_sub(held.slots.len());
        let new_table = usize::from(entries.table.is_some() && held.table.is_none());
        self.fits(BACKENDS, new_slots)?;
        self.fits(MEMBERS, new_members)?;
        self.fits(MAGLEV, new_table)?;
        let source = Some((source, hashing));
        self.put_list(
            id,
            HeldList { slots: entries.slots, members, table: entries.table, source, ..Default::default() },
        );
        Ok(())
    }

    fn put_list(&mut self, id: u32, mut list: HeldList) {
        let held = self.state.lists.remove(&id).unwrap_or_default();
        list.users = held.users;
        let changes = &mut self.step.changes;
        for (slot, value) in list.slots.iter().enumerate() {
            if held.slots.get(slot) != Some(value) {
                changes.backends.put.push((BackendKey { list: id, slot: slot as u32 }, *value));
            }
        }
        // The first slot goes last: look-ups fall back on it.
        let gone = (list.slots.len()..held.slots.len()).rev();
        changes.backends.remove.extend(gone.map(|slot| BackendKey { list: id, slot: slot as u32 }));
        let put = list.members.iter().filter(|(key, slot)| held.members.get(*key) != Some(*slot));
        changes.members.put.extend(put.map(|(key, slot)| (*key, *slot)));
        let gone: Vec<MemberKey> =
            held.members.keys().filter(|key| !list.members.contains_key(*key)).copied().collect();
        self.step.loses_datagram_members |= self.datagram_lists.contains(&id) && !gone.is_empty();
        changes.members.remove.extend(gone);
        match (&held.table, &list.table) {
            (Some(before), Some(after)) if before == after => {}
            (_, Some(after)) => changes.maglev.put.push((id, Arc::clone(after))),
            (Some(_), None) => changes.maglev.remove.push(id),
            (None, None) => {}
        }
        self.recount(BACKENDS, held.slots.len(), list.slots.len());
        self.recount(MEMBERS, held.members.len(), list.members.len());
        self.recount(MAGLEV, usize::from(held.table.is_some()), usize::from(list.table.is_some()));
        self.state.lists.insert(id, list);
    }

    /// Lists that nobody uses go; tables that nobody is balanced by, too.
    fn settle_lists(&mut self) {
        let fresh = matches!(self.state.planned, Planned::Unknown);
        let ids: Vec<u32> = match fresh {
            true => self.state.lists.keys().copied().collect(),
            false => self.touched.iter().chain(self.admitted.keys()).copied().collect(),
        };
        for id in ids {
            let Some(list) = self.state.lists.get(&id) else { continue };
            let needed = list.users.values().copied().max();
            let source = list.source.clone();
            match (needed, source) {
                (None, _) => {
                    self.put_list(id, HeldList::default());
                    self.state.lists.remove(&id);
                }
                (Some(needed), Some((source, hashing))) if needed < hashing => {
                    // It needs no room.
                    let _ = self.bring_list(id, source, needed);
                }
                _ => {}
            }
        }
    }

    fn fits(&self, table: usize, more: usize) -> Result<(), usize> {
        // What goes is removed after what comes is put: only then there is room.
        if more == 0 || more as isize <= self.room[table] { Ok(()) } else { Err(table) }
    }

    fn recount(&mut self, table: usize, before: usize, after: usize) {
        self.take(table, after.saturating_sub(before));
        self.free(table, before.saturating_sub(after));
    }

    fn take(&mut self, table: usize, count: usize) {
        self.room[table] -= count as isize;
        self.state.used[table] += count;
    }

    fn free(&mut self, table: usize, count: usize) {
        self.state.used[table] -= count;
    }

    fn finish(mut self) -> Step {
        self.clear_strays();
        // A number may have gone from one frontend to another with the same range.
        let changes = &mut self.step.changes;
        let put: BTreeSet<&SourceKey> = changes.source_ranges.put.iter().map(|(key, _)| key).collect();
        changes.source_ranges.remove.retain(|key| !put.contains(key));
        self.step
    }

    /// What belonged to nothing goes, unless something has come to hold it.
    fn clear_strays(&mut self) {
        let stray = std::mem::take(&mut self.stray);
        self.free(BACKENDS, stray.backends.len());
        self.free(SOURCE_RANGES, stray.sources.len());
        let lists = &self.state.lists;
        let is_held = |key: &BackendKey| {
            lists.get(&key.list).is_some_and(|list| (key.slot as usize) < list.slots.len())
        };
        let changes = &mut self.step.changes;
        changes.backends.remove.extend(stray.backends.into_iter().filter(|key| !is_held(key)));
        changes.source_ranges.remove.extend(stray.sources);
    }
}

impl HeldList {
    fn hashed_slots(&self, unknown: u32) -> u32 {
        self.source.as_ref().map_or(unknown, |(list, _)| maglev::size(&list.backends))
    }
}
