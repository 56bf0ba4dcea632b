//! The error a runtime gets, as the specification words it. Who raises which code lives with each verb.

use serde::{Deserialize, Serialize};

/// Well-known codes of specification 1.1.0, and Weft's own from 100 on.
pub mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const UNSUPPORTED_FIELD: u32 = 2;
    pub const UNKNOWN_CONTAINER: u32 = 3;
    pub const INVALID_ENVIRONMENT: u32 = 4;
    pub const IO: u32 = 5;
    pub const DECODE: u32 = 6;
    pub const INVALID_CONFIG: u32 = 7;
    pub const TRY_LATER: u32 = 11;
    pub const NOT_READY: u32 = 50;
    pub const LIMITED: u32 = 51;
    pub const FAILED: u32 = 100;
    pub const POOL_EXHAUSTED: u32 = 101;
    pub const CHECK_FAILED: u32 = 102;
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}{}{details}", if details.is_empty() { "" } else { ": " })]
pub struct CniError {
    pub code: u32,
    pub msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl CniError {
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    pub fn with_details(mut self, details: impl ToString) -> Self {
        self.details = details.to_string();
        self
    }

    pub fn incompatible_version(msg: impl Into<String>) -> Self {
        Self::new(code::INCOMPATIBLE_VERSION, msg)
    }

    pub fn unsupported_field(msg: impl Into<String>) -> Self {
        Self::new(code::UNSUPPORTED_FIELD, msg)
    }

    pub fn unknown_container(msg: impl Into<String>) -> Self {
        Self::new(code::UNKNOWN_CONTAINER, msg)
    }

    pub fn invalid_environment(msg: impl Into<String>) -> Self {
        Self::new(code::INVALID_ENVIRONMENT, msg)
    }

    pub fn io(msg: impl Into<String>) -> Self {
        Self::new(code::IO, msg)
    }

    pub fn decode(msg: impl Into<String>) -> Self {
        Self::new(code::DECODE, msg)
    }

    pub fn invalid_config(msg: impl Into<String>) -> Self {
        Self::new(code::INVALID_CONFIG, msg)
    }

    pub fn try_later(msg: impl Into<String>) -> Self {
        Self::new(code::TRY_LATER, msg)
    }

    /// STATUS: the node cannot take new pods.
    pub fn not_ready(msg: impl Into<String>) -> Self {
        Self::new(code::NOT_READY, msg)
    }

    /// STATUS: the node cannot take new pods, and those it has may be cut off.
    pub fn limited(msg: impl Into<String>) -> Self {
        Self::new(code::LIMITED, msg)
    }

    pub fn failed(msg: impl Into<String>) -> Self {
        Self::new(code::FAILED, msg)
    }

    pub fn check_failed(msg: impl Into<String>) -> Self {
        Self::new(code::CHECK_FAILED, msg)
    }
}
