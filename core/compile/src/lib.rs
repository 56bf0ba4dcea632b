//! Model snapshot to one node's plan: pure, whole, and the same for every order of events. Applying it lives in io/datapath.

mod check;
mod endpoints;
mod ids;
mod names;
mod peers;
mod policies;
mod routes;
mod selectors;
mod services;

use weft_model::{Finding, NodeName, Snapshot};
use weft_plan::NodePlan;

use endpoints::{Locals, Owners};

pub use check::check;
pub use routes::pod_mtu;

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
    compile_locals(snapshot, node, Locals::attached(snapshot))
}

/// The plan as far as the API alone tells, for a program that is not on `node`: its pods are those bound to it,
/// with the addresses of their status and no device.
pub fn compile_from_api(snapshot: &Snapshot, node: &NodeName) -> Compiled {
    compile_locals(snapshot, node, Locals::from_api(snapshot, node))
}

fn compile_locals(snapshot: &Snapshot, node: &NodeName, locals: Locals<'_>) -> Compiled {
    let mut findings = Vec::new();
    let owners = Owners::of(snapshot, &locals, &mut findings);
    let policies = policies::policies(snapshot, &locals, &owners);
    let services = services::services(snapshot, Some(node), &mut findings);
    let plan = NodePlan {
        settings: routes::settings(snapshot, node, &mut findings),
        endpoints: endpoints::endpoints(&locals, &owners, &policies.subjects),
        classes: policies.classes,
        policy_sets: policies.sets,
        rules: policies.rules,
        services: services.frontends,
        routes: routes::routes(snapshot, node, &mut findings),
        names: names::compile(snapshot),
        health_checks: services.health_checks,
        announced: snapshot.announced.clone(),
    };
    findings.sort();
    findings.dedup();
    Compiled { plan, findings }
}
