//! The patch formats that need no memory of who wrote what: JSON patch, merge patch, strategic merge patch.

mod strategic;

use serde_json::Value;

use crate::kinds::Kind;
use crate::schema;
use crate::status::{ApiError, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
}

/// A parsed patch, applicable to any number of versions of an object.
#[derive(Clone, Debug)]
pub enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    pub fn parse(kind: PatchKind, bytes: &[u8]) -> Result<Self> {
        let failed =
            |error: serde_json::Error| ApiError::bad_request(format!("error decoding patch: {error}"));
        let value: Value = serde_json::from_slice(bytes).map_err(failed)?;
        match kind {
            PatchKind::Json => serde_json::from_value(value).map(Self::Json).map_err(failed),
            _ if !value.is_object() => Err(ApiError::bad_request("the patch is not an object")),
            PatchKind::Merge => Ok(Self::Merge(value)),
            PatchKind::Strategic => Ok(Self::Strategic(value)),
        }
    }

    pub fn apply(&self, kind: &Kind, object: &Value) -> Result<Value> {
        let mut patched = object.clone();
        match self {
            Self::Json(patch) => json_patch::patch(&mut patched, patch).map_err(|error| {
                ApiError::new(
                    http::StatusCode::UNPROCESSABLE_ENTITY,
                    "Invalid",
                    format!("the server rejected our request due to an error in our request: {error}"),
                )
            })?,
            Self::Merge(patch) => json_patch::merge(&mut patched, patch),
            Self::Strategic(patch) => {
                strategic::merge(&schema::root(kind), &mut patched, patch).map_err(ApiError::bad_request)?;
            }
        }
        if patched.is_object() {
            Ok(patched)
        } else {
            Err(ApiError::bad_request("the patched object is not an object"))
        }
    }
}
