//! Where the kernel is not as planned, in words. What is done about it lives in `apply`.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{Addr, Family};
use weft_plan::NodePlan;

use crate::datapath::Datapath;
use crate::error::ReadError;
use crate::read_back::Tables;
use crate::tables::KernelTables;

impl Datapath {
    /// One line for each entry that the kernel lacks or should not have; empty when it holds the plan.
    pub fn differences(&self, plan: &NodePlan) -> Result<Vec<String>, ReadError> {
        let links = crate::pods::pod_links(self.netlink())?;
        let (wanted, found) = (KernelTables::of_plan(plan, &links), self.read_tables()?);
        let mut differences = hidden_differences(&wanted, &found);
        let (wanted, found) = (rows(&Tables::from(&wanted)), rows(&Tables::from(&found)));
        differences.extend(wanted.difference(&found).map(|row| format!("missing in the kernel: {row}")));
        differences
            .extend(found.difference(&wanted).map(|row| format!("in the kernel and not planned: {row}")));
        Ok(differences)
    }
}

/// In tables that have no rows for people: they only repeat what lists of backends say.
fn hidden_differences(wanted: &KernelTables, found: &KernelTables) -> Vec<String> {
    let mut differences = Vec::new();
    if wanted.members != found.members {
        let missing = wanted.members.iter().filter(|(key, slot)| found.members.get(*key) != Some(*slot));
        let stray = found.members.keys().filter(|key| !wanted.members.contains_key(*key));
        let lists: BTreeSet<u32> =
            missing.map(|(key, _)| key.list).chain(stray.map(|key| key.list)).collect();
        let said =
            lists.into_iter().map(|list| format!("members of backend list {list:08x} are not as planned"));
        differences.extend(said);
    }
    let keys: BTreeSet<&u32> = wanted.maglev.keys().chain(found.maglev.keys()).collect();
    let wrong = keys.into_iter().filter(|list| wanted.maglev.get(list) != found.maglev.get(list));
    differences
        .extend(wrong.map(|list| format!("the hash table of backend list {list:08x} is not as planned")));
    differences
}

fn rows(tables: &Tables) -> BTreeSet<String> {
    tables.to_string().lines().map(str::to_owned).collect()
}

impl Tables {
    /// Entries in each table, counted in the kernel.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        BTreeMap::from([
            ("endpoints", self.endpoints.len()),
            ("classes", self.classes.len()),
            ("policies", self.policies.values().map(|set| set.entries.len()).sum()),
            ("services", self.services.len()),
            ("backends", self.services.values().map(|service| service.backends.len()).sum()),
            ("source_ranges", self.services.values().map(|service| service.sources.len()).sum()),
            ("announced", self.announced.len()),
            ("routes", self.routes.len()),
        ])
    }
}

/// Where a pod with these addresses sends everything: one next hop for each family it has.
pub fn gateways(addresses: &BTreeSet<Addr>) -> Vec<Addr> {
    let has = |family| addresses.iter().any(|addr| addr.family() == family);
    [Family::V4, Family::V6].into_iter().filter(|family| has(*family)).map(crate::device::gateway).collect()
}
