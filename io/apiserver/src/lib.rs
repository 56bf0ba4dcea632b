//! The embedded Kubernetes API on an embedded store.
pub mod defaults;
pub mod discovery;
pub mod kinds;
pub mod openapi;
pub mod schema;
pub mod tables;
