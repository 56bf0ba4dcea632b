//! The compiled plan and `decide` against an independent reading of the NetworkPolicy API, on random clusters.
//!
//! `WEFT_CASES` sets how many clusters (20,000 if absent).

mod properties;
mod reading;

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use weft_decide::{Action, Arrival, MemoryFlows, Moment, Outcome, Packet, from_net, from_pod, judge};
use weft_model::testing::frames::{Frame, FrameBody};
use weft_model::testing::{Cluster, Probe, clusters, probes};
use weft_model::{NodeName, Protocol, Reason, Routing};
use weft_plan::{NodePlan, RuleCause, RuleId};

use reading::Answer;

pub fn cases(absent: u32) -> u32 {
    std::env::var("WEFT_CASES").ok().map_or(absent, |text| text.parse().expect("WEFT_CASES is a number"))
}

pub fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 20_000, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

pub fn plans(cluster: &Cluster) -> BTreeMap<NodeName, NodePlan> {
    let plan = |node: NodeName| {
        let plan = weft_compile::compile(&cluster.snapshot_on(&node), &node).plan;
        (node, plan)
    };
    cluster.node_names().into_iter().map(plan).collect()
}

#[test]
fn decide_agrees_with_an_independent_reading_of_the_api() {
    let worlds = clusters().prop_flat_map(|cluster| {
        let probes = vec(probes(&cluster), 8);
        (Just(cluster), probes)
    });
    let outcome = runner(cases(20_000)).run(&worlds, |(cluster, probes)| {
        let plans = plans(&cluster);
        for probe in probes {
            for plan in plans.values() {
                compare(&cluster, plan, probe)?;
            }
            travel(&cluster, &plans, probe)?;
        }
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

/// Each node judges what concerns its own pods.
fn compare(cluster: &Cluster, plan: &NodePlan, probe: Probe) -> Result<(), TestCaseError> {
    let Probe { source, destination, protocol, port } = probe;
    let judgement = judge(plan, source, destination, protocol, port);
    let (egress, ingress) = reading::read(cluster, plan.settings.node.as_str(), probe);
    let denied = [&egress, &ingress].contains(&&Some(Answer::Denied));
    let allowed = |answer: &Option<Answer>| matches!(answer, Some(Answer::Allowed { .. }));
    let node = &plan.settings.node;
    let fits = match judgement.reason {
        Reason::NotIsolated | Reason::FromOwnNode => !denied && !allowed(&egress) && !allowed(&ingress),
        Reason::AllowedByRule => !denied && (allowed(&egress) || allowed(&ingress)),
        Reason::DefaultDeny | Reason::IdentityUnknown => denied,
        _ => false,
    };
    prop_assert!(fits, "on {}: {:?} gives {:?}, not {:?} {:?}", node, probe, judgement, egress, ingress);
    prop_assert_eq!(cause(plan, judgement.egress_rule), egress.clone().filter(|a| *a != Answer::NotIsolated));
    if egress != Some(Answer::Denied) {
        prop_assert_eq!(cause(plan, judgement.ingress_rule), ingress.filter(|a| *a != Answer::NotIsolated));
    }
    Ok(())
}

/// What a rule number says, in the words of the reading.
fn cause(plan: &NodePlan, rule: Option<RuleId>) -> Option<Answer> {
    Some(match &plan.rules[&rule?] {
        RuleCause::Rule { policy, index, .. } => {
            Answer::Allowed { policy: policy.object.name.to_string(), index: *index }
        }
        RuleCause::DefaultDeny { .. } => Answer::Denied,
    })
}

/// The first packet from pod to pod, hop by hop: it arrives if the reading of the API says so.
fn travel(
    cluster: &Cluster,
    plans: &BTreeMap<NodeName, NodePlan>,
    probe: Probe,
) -> Result<(), TestCaseError> {
    let home = |addr| plans.values().find(|plan| plan.endpoints.contains_key(&addr));
    let (Some(from), Some(to)) = (home(probe.source), home(probe.destination)) else { return Ok(()) };
    let packet = Packet::parse(&frame(probe).bytes());
    let sender = &from.endpoints[&probe.source].pod;
    let mut last = from_pod(from, &mut MemoryFlows::default(), Moment::default(), sender, &packet);
    if let Action::ToNode(hop) = &last.action {
        prop_assert_eq!(&hop.node, &to.settings.node);
        let arrival = match to.settings.routing {
            Routing::Direct => Arrival::Uplink,
            Routing::Vxlan { .. } => Arrival::Tunnel { from: from.settings.node_addresses[0] },
        };
        last = from_net(to, &mut MemoryFlows::default(), Moment::default(), arrival, &packet);
    }
    let denied = |plan: &NodePlan| {
        let (egress, ingress) = reading::read(cluster, plan.settings.node.as_str(), probe);
        egress == Some(Answer::Denied) || ingress == Some(Answer::Denied)
    };
    let expected =
        if denied(from) || denied(to) { Action::Drop } else { Action::DeliverTo(probe.destination) };
    let Outcome { action, reason, .. } = last;
    prop_assert_eq!(action, expected, "{:?}: {}", probe, reason);
    Ok(())
}

fn frame(probe: Probe) -> Frame {
    let (source, destination) = (50_000, probe.port.0);
    let body = match probe.protocol {
        Protocol::TCP => FrameBody::Tcp { source, destination, flags: 2 },
        Protocol::UDP => FrameBody::Udp { source, destination },
        Protocol::SCTP => FrameBody::Sctp { source, destination },
        Protocol::ICMP => FrameBody::EchoRequest { id: source },
        Protocol(protocol) => FrameBody::Other { protocol },
    };
    Frame::new(probe.source, probe.destination, body)
}
