//! What one node's plan is made of, part by part, so that a change costs what it changes. A part is taken over when nothing it
//! is made from has changed; the outcome is the same as when all of it is made anew.

use std::collections::BTreeMap;

use weft_model::{Addr, Cidr, Finding, NodeName, Shared, Snapshot};
use weft_plan::{
    ClassId, EndpointPlan, NextHop, NodePlan, NodeSettings, PolicySet, PolicySetId, RuleCause, RuleId,
};

use crate::endpoints::{Locals, Owners};
use crate::names::Names;
use crate::services::Services;
use crate::{Compiled, endpoints, policies, routes};

/// Compiles the plan of one node for one snapshot after the other.
pub struct Compiler {
    node: NodeName,
    last: Option<(Snapshot, State)>,
}

impl Compiler {
    pub fn new(node: NodeName) -> Self {
        Self { node, last: None }
    }

    /// The same as `compile` gives for the snapshot, whatever came before.
    pub fn compile(&mut self, snapshot: &Snapshot) -> Compiled {
        let state = match self.last.take() {
            Some((before, state)) => state.follow(&before, snapshot, &self.node),
            None => State::of(snapshot, &self.node, &Locals::attached(snapshot)),
        };
        let compiled = state.compiled(snapshot);
        self.last = Some((snapshot.clone(), state));
        compiled
    }
}

pub(crate) struct State {
    network: Network,
    pods: Pods,
    services: Services,
    names: Names,
}

/// Nodes and settings.
struct Network {
    settings: NodeSettings,
    routes: Shared<BTreeMap<Cidr, NextHop>>,
    findings: Vec<Finding>,
}

/// Pods and the policies on them.
struct Pods {
    endpoints: Shared<BTreeMap<Addr, EndpointPlan>>,
    classes: Shared<BTreeMap<Cidr, ClassId>>,
    policy_sets: Shared<BTreeMap<PolicySetId, PolicySet>>,
    rules: Shared<BTreeMap<RuleId, RuleCause>>,
    findings: Vec<Finding>,
}

impl State {
    pub fn of(snapshot: &Snapshot, node: &NodeName, locals: &Locals<'_>) -> Self {
        Self {
            network: Network::of(snapshot, node),
            pods: Pods::of(snapshot, locals),
            services: Services::of(snapshot, Some(node)),
            names: Names::of(snapshot, locals),
        }
    }

    fn follow(mut self, before: &Snapshot, after: &Snapshot, node: &NodeName) -> Self {
        let same_settings = after.settings == before.settings;
        let same_nodes = same_settings && after.nodes == before.nodes;
        let same_pods = same_nodes
            && after.pods == before.pods
            && after.namespaces == before.namespaces
            && after.policies == before.policies
            && after.local == before.local;
        if !same_nodes {
            self.network = Network::of(after, node);
        }
        let locals = Locals::attached(after);
        if !same_pods {
            self.pods = Pods::of(after, &locals);
        }
        if !self.services.follow(before, after) {
            self.services = Services::of(after, Some(node));
        }
        if same_settings {
            self.names.follow(before, after, &locals);
        } else {
            self.names = Names::of(after, &locals);
        }
        self
    }

    pub fn compiled(&self, snapshot: &Snapshot) -> Compiled {
        let Self { network, pods, services, names } = self;
        let plan = NodePlan {
            settings: network.settings.clone(),
            endpoints: pods.endpoints.clone(),
            classes: pods.classes.clone(),
            policy_sets: pods.policy_sets.clone(),
            rules: pods.rules.clone(),
            services: services.frontends.clone(),
            routes: network.routes.clone(),
            names: names.plan.clone(),
            health_checks: services.health_checks.clone(),
            announced: snapshot.announced.clone(),
        };
        let all = [&pods.findings, &network.findings, &services.findings];
        let mut findings: Vec<Finding> = all.into_iter().flatten().cloned().collect();
        findings.sort();
        findings.dedup();
        Compiled { plan, findings }
    }
}

impl Network {
    fn of(snapshot: &Snapshot, node: &NodeName) -> Self {
        let mut findings = Vec::new();
        let settings = routes::settings(snapshot, node, &mut findings);
        let routes = routes::routes(snapshot, node, &mut findings).into();
        Self { settings, routes, findings }
    }
}

impl Pods {
    fn of(snapshot: &Snapshot, locals: &Locals<'_>) -> Self {
        let mut findings = Vec::new();
        let owners = Owners::of(snapshot, locals, &mut findings);
        let policies = policies::policies(snapshot, locals, &owners);
        Self {
            endpoints: endpoints::endpoints(locals, &owners, &policies.subjects).into(),
            classes: policies.classes.into(),
            policy_sets: policies.sets.into(),
            rules: policies.rules.into(),
            findings,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    use weft_model::testing::clusters;

    use super::*;

    /// One cluster becoming another, kind by kind, and then itself again at once.
    fn steps(from: &Snapshot, to: &Snapshot) -> Vec<Snapshot> {
        let changes: [fn(&mut Snapshot, &Snapshot); 8] = [
            |snapshot, to| snapshot.slices = to.slices.clone(),
            |snapshot, to| snapshot.pods = to.pods.clone(),
            |snapshot, _| snapshot.slices.clear(),
            |snapshot, to| snapshot.services = to.services.clone(),
            |snapshot, to| snapshot.slices = to.slices.clone(),
            |snapshot, to| snapshot.nodes = to.nodes.clone(),
            |snapshot, to| snapshot.local = to.local.clone(),
            |snapshot, to| *snapshot = to.clone(),
        ];
        let mut steps = vec![from.clone()];
        for change in changes {
            let mut next = steps[steps.len() - 1].clone();
            change(&mut next, to);
            steps.push(next);
        }
        steps.push(from.clone());
        steps
    }

    #[test]
    fn following_changes_ends_where_a_fresh_start_does() {
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        let node = NodeName::new("node1");
        let mut with_endpoints = 0;
        for _ in 0..400 {
            let mut draw = || clusters().new_tree(&mut runner).expect("clusters are always drawn").current();
            let (from, to) = (draw().snapshot_on(&node), draw().snapshot_on(&node));
            let mut compiler = Compiler::new(node.clone());
            for (step, snapshot) in steps(&from, &to).iter().enumerate() {
                let followed = compiler.compile(snapshot);
                assert_eq!(followed, crate::compile(snapshot, &node), "step {step}");
                with_endpoints +=
                    followed.plan.services.values().filter(|plan| !plan.backends().is_empty()).count();
            }
        }
        assert!(with_endpoints > 1000, "only {with_endpoints} frontends with backends");
    }
}
