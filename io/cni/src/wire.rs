//! What the plugin asks the agent over its socket, as JSON. The verbs' meaning lives in `service`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Owner, PodRef};

pub const ADD: &str = "/cni/add";
pub const DEL: &str = "/cni/del";
pub const CHECK: &str = "/cni/check";
pub const STATUS: &str = "/cni/status";
pub const GC: &str = "/cni/gc";

/// Far above any honest request; keeps a broken peer from filling memory.
pub const MAX_BODY: usize = 1 << 20;

/// Answered with the `Attachment`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    pub owner: Owner,
    pub network: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    pub netns: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachRequest {
    pub owner: Owner,
}

/// Answered with the `Attachment`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    pub owner: Owner,
    pub netns: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcRequest {
    pub network: String,
    pub keep: BTreeSet<Owner>,
}
