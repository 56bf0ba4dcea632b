//! Gives every node its share of the cluster's pod ranges: a pure function of the nodes there are. The loop that
//! watches nodes and writes the result back is in `run`.

mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::effect::{Effect, Kind, Target, Tone};
use super::meta;

pub use run::{RunError, run};

/// The condition on a node that has no pod range, and why.
pub const CONDITION: &str = "weft.dev/PodRangeAllocated";
pub const EXHAUSTED: &str = "PodRangeExhausted";

/// The cluster's pod ranges and how large a node's share is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pools {
    pub ranges: Vec<IpNet>,
    pub node_mask_v4: u8,
    pub node_mask_v6: u8,
}

impl Pools {
    fn mask(&self, range: IpNet) -> u8 {
        if range.addr().is_ipv4() { self.node_mask_v4 } else { self.node_mask_v6 }
    }
}

/// A node that gets no share, and the pool that has none left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    pub node: String,
    pub pool: IpNet,
    pub mask: u8,
}

impl std::fmt::Display for Exhausted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, pool, mask } = self;
        write!(
            f,
            "pod range {pool} has no free /{mask} left for node {node}; remove nodes or give a larger pod range"
        )
    }
}

/// New shares by node, and the nodes that get none. Nodes that have shares keep them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    pub given: BTreeMap<String, Vec<IpNet>>,
    pub without: Vec<Exhausted>,
}

/// Shares written but not yet seen on their nodes. Until there is news of such a node, its share is taken: the next
/// node must not get it too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assumed(BTreeMap<String, Written>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Written {
    /// The node's version the share was written on. The first news after it settles whether the write took.
    version: Option<String>,
    shares: Vec<IpNet>,
}

impl Assumed {
    /// Forgets the nodes there is news of.
    pub fn settle(&mut self, nodes: &[Arc<Node>]) {
        self.0.retain(|name, written| {
            let node = nodes.iter().find(|node| meta::name(&node.metadata) == name);
            node.is_some_and(|node| node.metadata.resource_version == written.version)
        });
    }

    pub fn add(&mut self, nodes: &[Arc<Node>], allocation: &Allocation) {
        for (name, shares) in &allocation.given {
            let node = nodes.iter().find(|node| meta::name(&node.metadata) == name);
            let version = node.and_then(|node| node.metadata.resource_version.clone());
            self.0.insert(name.clone(), Written { version, shares: shares.clone() });
        }
    }

    /// The writes once more, for when it is not known whether they arrived. They are the same on the same version:
    /// one that did arrive makes the second a conflict.
    pub fn again(&self, nodes: &[Arc<Node>]) -> Vec<Effect> {
        let rewrite = |node: &Arc<Node>| {
            self.0.get(meta::name(&node.metadata)).map(|written| give(node, &written.shares))
        };
        nodes.iter().filter_map(rewrite).collect()
    }
}

pub fn allocate(pools: &Pools, nodes: &[Arc<Node>], assumed: &Assumed) -> Allocation {
    let mut taken: Vec<IpNet> = nodes.iter().flat_map(|node| shares(node)).collect();
    taken.extend(assumed.0.values().flat_map(|written| &written.shares));
    let is_waiting = |node: &&Arc<Node>| {
        let has_share = !shares(node).is_empty() || assumed.0.contains_key(meta::name(&node.metadata));
        !has_share && !meta::is_terminating(&node.metadata)
    };
    let mut waiting: Vec<&Arc<Node>> = nodes.iter().filter(is_waiting).collect();
    waiting.sort_by_key(|node| {
        (
            meta::created(&node.metadata),
            meta::name(&node.metadata).len(),
            meta::name(&node.metadata).to_owned(),
        )
    });
    let mut allocation = Allocation::default();
    for node in waiting {
        let name = meta::name(&node.metadata).to_owned();
        let free: Result<Vec<IpNet>, IpNet> = pools
            .ranges
            .iter()
            .map(|pool| first_free(*pool, pools.mask(*pool), &taken).ok_or(*pool))
            .collect();
        match free {
            // All families or none: half a node would be a riddle.
            Ok(given) => {
                taken.extend(&given);
                allocation.given.insert(name, given);
            }
            Err(pool) => allocation.without.push(Exhausted { node: name, pool, mask: pools.mask(pool) }),
        }
    }
    allocation
}

/// What to write: shares, and conditions and events where there are none left.
pub fn reconcile(nodes: &[Arc<Node>], allocation: &Allocation, now: Timestamp) -> Vec<Effect> {
    let mut effects = Vec::new();
    for node in nodes {
        let name = meta::name(&node.metadata);
        let said = condition(node);
        if let Some(given) = allocation.given.get(name) {
            effects.push(give(node, given));
        }
        match allocation.without.iter().find(|exhausted| exhausted.node == name) {
            Some(exhausted)
                if said.is_none_or(|said| said.1 != exhausted.to_string() || said.0 != "False") =>
            {
                let message = exhausted.to_string();
                effects.push(say(node, "False", EXHAUSTED, &message, now));
                let about = meta::reference(Kind::Node, &node.metadata);
                effects.push(Effect::Tell { about, tone: Tone::Warning, reason: EXHAUSTED, message });
            }
            Some(_) => {}
            None if said.is_some_and(|said| said.0 != "True") => {
                effects.push(say(node, "True", "PodRangeAllocated", "the node has its pod ranges", now));
            }
            None => {}
        }
    }
    effects
}

fn give(node: &Node, given: &[IpNet]) -> Effect {
    let texts: Vec<String> = given.iter().map(ToString::to_string).collect();
    // A share once given is fixed: the version keeps two controllers from giving two.
    let body = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
    });
    Effect::Merge { target: target(node), body }
}

fn target(node: &Node) -> Target {
    Target::new(Kind::Node, "", meta::name(&node.metadata))
}

fn condition(node: &Node) -> Option<(&str, &str)> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == CONDITION)?;
    Some((found.status.as_str(), found.message.as_deref().unwrap_or_default()))
}

/// Conditions are merged by type: the kubelet's stay.
fn say(node: &Node, status: &str, reason: &str, message: &str, now: Timestamp) -> Effect {
    let mut conditions =
        node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.retain(|condition| condition.type_ != CONDITION);
    conditions.push(k8s_openapi::api::core::v1::NodeCondition {
        type_: CONDITION.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(meta::stamp(now)),
        last_transition_time: Some(meta::stamp(now)),
    });
    let body = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "status": {"conditions": conditions},
    });
    Effect::MergeStatus { target: target(node), body }
}

/// The shares a node has.
fn shares(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let all: BTreeSet<&String> = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr).collect();
    all.into_iter().filter_map(|text| text.parse().ok()).collect()
}

/// The lowest share of a pool that overlaps nothing taken.
fn first_free(pool: IpNet, mask: u8, taken: &[IpNet]) -> Option<IpNet> {
    if mask < pool.prefix_len() || mask > pool.max_prefix_len() {
        return None;
    }
    let step = 1u128.checked_shl(u32::from(pool.max_prefix_len() - mask))?;
    let last = bits(pool.broadcast());
    let mut start = bits(pool.network());
    loop {
        let share = net(pool, start, mask)?;
        let blocker = taken
            .iter()
            .filter(|taken| taken.contains(&share) || share.contains(*taken))
            .max_by_key(|t| bits(t.broadcast()));
        let Some(blocker) = blocker else { return Some(share) };
        // Past whatever is in the way, on the next boundary.
        let after = bits(blocker.broadcast()).max(bits(share.broadcast())).checked_add(1)?;
        start = after.div_ceil(step).checked_mul(step)?;
        if start > last {
            return None;
        }
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn net(like: IpNet, start: u128, mask: u8) -> Option<IpNet> {
    match like {
        IpNet::V4(_) => {
            let address = Ipv4Addr::from_bits(u32::try_from(start).ok()?);
            Ipv4Net::new(address, mask).ok().map(IpNet::V4)
        }
        IpNet::V6(_) => Ipv6Net::new(Ipv6Addr::from_bits(start), mask).ok().map(IpNet::V6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::{now, parse};
    use proptest::prelude::*;

    fn pools(v4: &str, v6: &str) -> Pools {
        Pools { ranges: vec![v4.parse().unwrap(), v6.parse().unwrap()], node_mask_v4: 24, node_mask_v6: 64 }
    }

    fn write(pools: &Pools, nodes: &[Arc<Node>]) -> Vec<Effect> {
        reconcile(nodes, &allocate(pools, nodes, &Assumed::default()), now())
    }

    fn node(name: &str, shares: &[&str]) -> Arc<Node> {
        Arc::new(parse(json!({"metadata": {"name": name, "uid": name},
            "spec": {"podCIDR": shares.first(), "podCIDRs": shares}})))
    }

    #[test]
    fn nodes_get_the_lowest_free_shares_of_both_families_in_order() {
        let nodes =
            [node("node10", &[]), node("node2", &[]), node("node1", &["10.244.0.0/24", "fd00:10:244::/64"])];
        let allocation = allocate(&pools("10.244.0.0/16", "fd00:10:244::/56"), &nodes, &Assumed::default());
        let text = |name: &str| allocation.given[name].iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text("node2"), ["10.244.1.0/24", "fd00:10:244:1::/64"]);
        assert_eq!(text("node10"), ["10.244.2.0/24", "fd00:10:244:2::/64"]);
        assert!(!allocation.given.contains_key("node1"), "it keeps what it has");
    }

    #[test]
    fn a_share_on_its_way_is_not_given_twice_and_news_settles_it() {
        let pools = pools("10.244.0.0/16", "fd00:10:244::/56");
        let versioned = |name: &str, version: &str, shares: &[&str]| {
            let mut node = (*node(name, shares)).clone();
            node.metadata.resource_version = Some(version.to_owned());
            Arc::new(node)
        };
        let seen = vec![versioned("a", "1", &[])];
        let mut assumed = Assumed::default();
        assumed.add(&seen, &allocate(&pools, &seen, &assumed));
        // Another node shows before the first one's share does.
        let seen = vec![versioned("a", "1", &[]), versioned("b", "2", &[])];
        assumed.settle(&seen);
        let allocation = allocate(&pools, &seen, &assumed);
        assert_eq!(allocation.given.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(allocation.given["b"][0].to_string(), "10.244.1.0/24");
        assert_eq!(assumed.again(&seen).len(), 1, "a's share may be written once more");
        // News of a without a share: somebody was faster and the write was refused.
        let seen =
            vec![versioned("a", "3", &[]), versioned("b", "4", &["10.244.1.0/24", "fd00:10:244:1::/64"])];
        assumed.settle(&seen);
        assert_eq!(assumed, Assumed::default());
        assert_eq!(allocate(&pools, &seen, &assumed).given["a"][0].to_string(), "10.244.0.0/24");
    }

    #[test]
    fn a_full_pool_is_named_on_the_node_and_the_others_keep_working() {
        let pools = pools("10.244.0.0/23", "fd00:10:244::/56");
        let nodes: Vec<Arc<Node>> = ["a", "b", "c"].into_iter().map(|name| node(name, &[])).collect();
        let effects = write(&pools, &nodes);
        let given: Vec<&str> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Merge { target, .. } => Some(target.name.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(given, ["a", "b"]);
        let told = effects.iter().find_map(|effect| match effect {
            Effect::Tell { message, .. } => Some(message.as_str()),
            _ => None,
        });
        let message = "pod range 10.244.0.0/23 has no free /24 left for node c; remove nodes or give a larger pod range";
        assert_eq!(told, Some(message));
        let Some(Effect::MergeStatus { body, .. }) =
            effects.iter().find(|e| matches!(e, Effect::MergeStatus { .. }))
        else {
            panic!("{effects:?}")
        };
        // Said once, not at every look; and taken back when a share came free.
        let mut object = serde_json::to_value(&*nodes[2]).unwrap();
        object["status"] = body["status"].clone();
        let told: Arc<Node> = Arc::new(parse(object));
        let full = [node("a", &["10.244.0.0/24"]), node("b", &["10.244.1.0/24"]), told.clone()];
        assert_eq!(write(&pools, &full), []);
        let again = write(&pools, &[told]);
        assert!(
            matches!(&again[..], [Effect::Merge { .. }, Effect::MergeStatus { body, .. }]
            if body["status"]["conditions"][0]["status"] == "True"),
            "{again:?}"
        );
    }

    #[test]
    fn odd_shares_given_by_somebody_else_are_stepped_over() {
        let nodes = [node("a", &["10.244.0.0/22"]), node("b", &["10.244.4.128/25"]), node("c", &[])];
        let allocation = allocate(&pools("10.244.0.0/16", "fd00:10:244::/56"), &nodes, &Assumed::default());
        assert_eq!(allocation.given["c"][0].to_string(), "10.244.5.0/24");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// No two nodes ever share an address, and nobody waits while there is room.
        #[test]
        fn shares_never_overlap(kept in prop::collection::btree_set(0..16u8, 0..10), new in 0..12usize) {
            let pools = pools("10.0.0.0/20", "fd00::/60");
            let mut nodes: Vec<Arc<Node>> =
                kept.iter().map(|n| node(&format!("old{n}"), &[&format!("10.0.{n}.0/24"), &format!("fd00:0:0:{n:x}::/64")])).collect();
            nodes.extend((0..new).map(|n| node(&format!("new{n}"), &[])));
            let allocation = allocate(&pools, &nodes, &Assumed::default());
            let room = 16 - kept.len();
            prop_assert_eq!(allocation.given.len(), new.min(room));
            prop_assert_eq!(allocation.without.len(), new.saturating_sub(room));
            let mut all: Vec<IpNet> = nodes.iter().flat_map(|node| shares(node)).collect();
            all.extend(allocation.given.values().flatten());
            for (index, a) in all.iter().enumerate() {
                prop_assert!(all[index + 1..].iter().all(|b| !a.contains(b) && !b.contains(a)));
            }
        }
    }
}
