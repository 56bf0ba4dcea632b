//! What the server does on its own: collect orphans, end namespaces, aggregate roles, install definitions, forget history.

pub mod accounts;
pub mod aggregation;
pub mod bootstrap;
pub mod compaction;
pub mod definitions;
pub mod events;
pub mod garbage;
pub mod namespaces;

use std::sync::Arc;

use serde_json::Value;

use crate::api::update::{self, Draft, Part};
use crate::api::{Api, Call};
use crate::http::request::Target;
use crate::status::Result;
use crate::store::{Entry, Key};

/// The name under which the server's own writes appear.
const MANAGER: &str = "apiserver";

/// The target a stored object's key stands for, in its storage version.
pub(crate) fn target_of(api: &Api, key: &Key) -> Option<Target> {
    let kind = api.storage_kind(&key.resource)?;
    Some(Target { kind, namespace: key.namespace().map(str::to_owned), name: key.name().to_owned() })
}

/// Changes an object without crediting anybody; `None` from `change` leaves it.
pub(crate) async fn adjust(
    api: &Api,
    target: &Target,
    part: Part,
    mut change: impl FnMut(&Value) -> Option<Value>,
) -> Result<Arc<Entry>> {
    let mut call = Call::internal(MANAGER);
    update::modify(api, &mut call, target, part, |_, object| {
        Ok(change(object).map_or(Draft::Unchanged, Draft::Untracked))
    })
    .await
}
