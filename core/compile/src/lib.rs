//! Model snapshot to one node's plan: pure, whole, and the same for every order of events. Applying it lives in io/datapath.

pub mod announce;
mod check;
mod endpoints;
mod ids;
mod names;
mod peers;
mod policies;
pub mod pools;
mod routes;
mod selectors;
mod services;
mod state;

use weft_model::{Finding, NodeName, Snapshot};
use weft_plan::NodePlan;

use endpoints::Locals;
use state::State;

pub use check::check;
pub use routes::pod_mtu;
pub use state::Compiler;

/// What of services cannot be served, whatever their endpoints are.
pub fn service_findings(snapshot: &Snapshot) -> Vec<Finding> {
    let bare = Snapshot {
        settings: snapshot.settings.clone(),
        nodes: snapshot.nodes.clone(),
        services: snapshot.services.clone(),
        ..Snapshot::default()
    };
    let mut findings = services::Services::of(&bare, None).findings;
    findings.sort();
    findings.dedup();
    findings
}

/// Whether the same services have the same findings in both.
pub fn same_service_findings(before: &Snapshot, after: &Snapshot) -> bool {
    before.settings == after.settings
        && before.services == after.services
        && services::same_kernels(before, after)
}

/// What a node should hold, and what its user should know about the objects it was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    pub plan: NodePlan,
    pub findings: Vec<Finding>,
}

/// The plan of `node`, whose pods are those it made interfaces for (`snapshot.local`).
///
/// A local pod that the API does not show yet gets no endpoint: without one the kernel lets nothing in or out.
pub fn compile(snapshot: &Snapshot, node: &NodeName) -> Compiled {
    Compiler::new(node.clone()).compile(snapshot)
}

/// The plan as far as the API alone tells, for a program that is not on `node`: its pods are those bound to it,
/// with the addresses of their status and no device.
pub fn compile_from_api(snapshot: &Snapshot, node: &NodeName) -> Compiled {
    let state = State::of(snapshot, node, &Locals::from_api(snapshot, node));
    state.compiled(snapshot)
}
