//! A cluster on one machine: nodes as namespaces, a small kubelet, workload controllers.

pub mod controllers;
pub mod fabric;
pub mod kubelet;
pub mod standin;
