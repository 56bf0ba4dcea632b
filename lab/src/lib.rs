//! A cluster on one machine: nodes as namespaces, a small kubelet, workload controllers.

pub mod controllers;
pub mod fabric;
pub mod kubelet;
mod quantity;
pub mod standin;
