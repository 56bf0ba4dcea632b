//! Gives every node its share of the cluster's pod ranges.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The cluster's pod ranges and how large a node's share is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pools {
    pub ranges: Vec<IpNet>,
    pub node_mask_v4: u8,
    pub node_mask_v6: u8,
}
