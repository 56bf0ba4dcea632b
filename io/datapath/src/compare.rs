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
        let wanted = rows(&Tables::from(&KernelTables::of_plan(plan, &links)));
        let found = rows(&self.read_back()?);
        let missing = wanted.difference(&found).map(|row| format!("missing in the kernel: {row}"));
        let stray = found.difference(&wanted).map(|row| format!("in the kernel and not planned: {row}"));
        Ok(missing.chain(stray).collect())
    }
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
            ("routes", self.routes.len()),
        ])
    }
}

/// Where a pod with these addresses sends everything: one next hop for each family it has.
pub fn gateways(addresses: &BTreeSet<Addr>) -> Vec<Addr> {
    let has = |family| addresses.iter().any(|addr| addr.family() == family);
    [Family::V4, Family::V6].into_iter().filter(|family| has(*family)).map(crate::device::gateway).collect()
}
