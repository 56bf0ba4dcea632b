//! Services from the plan to the kernel: what a frontend refers to is put before it and removed after it. What changes is
//! reckoned in `service_state`.

use std::collections::BTreeMap;
use std::mem;

use weft_plan::NodePlan;

use crate::apply::{Describe, Report, put, remove};
use crate::datapath::{Datapath, Memory};
use crate::error::{ApplyError, ReadError};
use crate::service_state::{Counts, ServiceChanges, ServiceState, TABLES};
use crate::tables::{KernelTables, localhost};
use crate::usage::{Refused, Usage};

/// The first takes away what was there; the second finds the room.
const MOST_ROUNDS: usize = 2;

impl Datapath {
    /// When it fails, the next call starts from what the kernel then holds.
    pub(crate) fn apply_services(
        &self,
        memory: &mut Memory,
        plan: &NodePlan,
        report: &mut Report,
    ) -> Result<(), ApplyError> {
        let known = memory.services.take();
        // Whoever wrote before may have stopped between removing a backend and ending its sockets.
        let mut end_sockets = known.is_none();
        let mut state = match known {
            Some(state) => state,
            None => ServiceState::held(&self.read_service_tables()?),
        };
        let (localhost, capacity) = (localhost(plan), self.service_capacity());
        let mut refused = Vec::new();
        for _ in 0..MOST_ROUNDS {
            if state.is_at(&plan.services, localhost) {
                break;
            }
            let step = state.step(&plan.services, localhost, &capacity);
            self.put_services(&step.changes)?;
            self.remove_services(&step.changes)?;
            if step.changes_frontends {
                self.raise_epoch()?;
            }
            count(&step.changes, report);
            end_sockets |= step.loses_datagram_members;
            refused = step.refused;
            // What went may have made room for what was refused.
            if refused.is_empty() || !step.changes.frees_something() {
                break;
            }
        }
        if end_sockets {
            self.end_sockets()?;
        }
        for (table, (used, capacity)) in TABLES.iter().zip(state.used().into_iter().zip(capacity)) {
            report.usage.insert(table, Usage { used, capacity });
        }
        memory.services = Some(state);
        memory.usage.extend(report.usage.iter().map(|(table, usage)| (*table, *usage)));
        say_refused(&mem::replace(&mut memory.refused, refused.clone()), &refused);
        report.refused = refused;
        Ok(())
    }

    /// How full each table was after the last plan; empty before the first.
    pub fn usage(&self) -> BTreeMap<&'static str, Usage> {
        self.memory().usage.clone()
    }

    fn put_services(&self, changes: &ServiceChanges) -> Result<(), ApplyError> {
        let maps = self.maps();
        put(&maps.members, &changes.members)?;
        put(&maps.backends, &changes.backends)?;
        maps.maglev.put(&changes.maglev.put)?;
        put(&maps.source_ranges, &changes.source_ranges)?;
        put(&maps.services, &changes.services)
    }

    fn remove_services(&self, changes: &ServiceChanges) -> Result<(), ApplyError> {
        let maps = self.maps();
        remove(&maps.services, &changes.services)?;
        remove(&maps.source_ranges, &changes.source_ranges)?;
        maps.maglev.remove(&changes.maglev.remove)?;
        remove(&maps.backends, &changes.backends)?;
        remove(&maps.members, &changes.members)
    }

    fn service_capacity(&self) -> Counts {
        let maps = self.maps();
        let capacity = [
            maps.services.capacity(),
            maps.backends.capacity(),
            maps.members.capacity(),
            maps.maglev.capacity(),
            maps.source_ranges.capacity(),
        ];
        capacity.map(|entries| entries as usize)
    }

    /// Only the tables of services are filled.
    pub(crate) fn read_service_tables(&self) -> Result<KernelTables, ReadError> {
        let maps = self.maps();
        Ok(KernelTables {
            services: maps.services.read()?,
            backends: maps.backends.read()?,
            members: maps.members.read()?,
            maglev: maps.maglev.read()?,
            source_ranges: maps.source_ranges.read()?,
            ..Default::default()
        })
    }
}

fn count(changes: &ServiceChanges, report: &mut Report) {
    report.count("services", &changes.services);
    report.count("backends", &changes.backends);
    report.count("members", &changes.members);
    report.count("maglev", &changes.maglev);
    report.count("source_ranges", &changes.source_ranges);
}

/// Once for each.
fn say_refused(before: &[Refused], now: &[Refused]) {
    for refused in now.iter().filter(|refused| !before.contains(refused)) {
        tracing::error!("{refused}");
    }
}

impl Describe for weft_abi::ServiceKey {
    fn describe(&self) -> String {
        format!("service {}", weft_plan::Frontend::from(*self))
    }
}
