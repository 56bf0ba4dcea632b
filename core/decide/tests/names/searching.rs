//! Pods' search lists: what their resolvers find when every name is asked, and when the first question is answered with the end.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use weft_decide::explain::{NameEnd, why_name};
use weft_decide::names::{NameAnswer, NameDecision, QueryType, answer, answer_to};
use weft_model::testing::{Cluster, objects};
use weft_model::{Addr, Collapse, PodKey};
use weft_plan::NamePlan;

use super::{cluster, plan, read, rows, service, slice};

const POD: &str = "10.244.0.50";

/// One pod in `shop`, and services there and in `other`.
fn with_pod(spec: Value, settings: impl Fn(&mut Cluster)) -> NamePlan {
    let mut cluster = cluster_with_pod(spec);
    settings(&mut cluster);
    plan(&cluster)
}

fn cluster_with_pod(spec: Value) -> Cluster {
    let cluster_ip = |ip: &str| json!({"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]});
    let mut other = service("web", cluster_ip("10.96.0.7"));
    other["metadata"]["namespace"] = "other".into();
    let headless = json!({"clusterIP": "None", "clusterIPs": ["None"]});
    let services = json!([service("web", cluster_ip("10.96.0.5")), other, service("org", headless)]);
    let endpoints = json!([{"addresses": ["10.244.0.8"], "hostname": "db-0", "conditions": {"ready": true}}]);
    let mut cluster = cluster(services, json!([slice("org", "IPv4", json!([]), endpoints)]));
    let mut pod = json!({
        "metadata": {"namespace": "shop", "name": "client", "uid": "client"},
        "spec": {"nodeName": "node1", "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": POD}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    cluster.pods = vec![read(pod)];
    cluster.nodes = vec![objects::node("node1", &["172.30.0.11"], &["10.244.0.0/24"])];
    cluster
}

fn client() -> Option<Addr> {
    Some(POD.parse().unwrap())
}

fn ask(plan: &NamePlan, name: &str) -> Vec<String> {
    rows(&answer_to(plan, client(), name, QueryType::A))
}

const OUTSIDE: &str = "api.example.com.shop.svc.cluster.local";

#[test]
fn the_pods_own_list_and_dots_count() {
    let usual = with_pod(json!({}), |_| {});
    assert_eq!(ask(&usual, OUTSIDE), ["upstream api.example.com"]);
    let node =
        with_pod(json!({}), |cluster| cluster.settings.names.node_search = vec!["Corp.example".into()]);
    assert_eq!(ask(&node, OUTSIDE), ["upstream api.example.com.corp.example api.example.com"]);
    let own = with_pod(json!({"dnsConfig": {"searches": ["own.example"]}}), |_| {});
    assert_eq!(ask(&own, OUTSIDE), ["upstream api.example.com.own.example api.example.com"]);
    let few = with_pod(json!({"dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}), |_| {});
    assert_eq!(ask(&few, OUTSIDE), ["NXDOMAIN of cluster.local"], "asked as it is first");
    assert_eq!(ask(&few, "github.com.shop.svc.cluster.local"), ["upstream github.com"]);
}

#[test]
fn pods_with_another_resolver_are_left_alone() {
    let none =
        json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.96.0.10"], "searches": ["a.example"]}});
    for spec in [json!({"dnsPolicy": "Default"}), json!({"hostNetwork": true}), none] {
        assert_eq!(ask(&with_pod(spec.clone(), |_| {}), OUTSIDE), ["NXDOMAIN of cluster.local"], "{spec}");
    }
}

/// Proves search.off: With the setting off every name of a walk gets its own answer.
#[test]
fn walks_can_be_left_to_resolvers() {
    let plan = with_pod(json!({}), |cluster| cluster.settings.names.collapse = Collapse::Off);
    assert_eq!(ask(&plan, OUTSIDE), ["NXDOMAIN of cluster.local"]);
    assert_eq!(ask(&plan, "web.other.shop.svc.cluster.local"), ["NXDOMAIN of cluster.local"]);
}

/// What an application gets: the name that was found at last, with its addresses.
type Found = Option<(String, BTreeSet<String>)>;

/// How resolvers differ when a name exists without the records wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AtNoData {
    /// glibc, Go
    GoOn,
    /// musl
    Stop,
}

enum Reply {
    Found(String, BTreeSet<String>),
    NoData,
    NxDomain,
}

struct World {
    plan: NamePlan,
    /// Names outside the cluster that exist, with an address or without.
    outside: Vec<(String, bool)>,
    asked_upstream: BTreeSet<String>,
}

impl World {
    fn upstream(&mut self, name: &str) -> Reply {
        self.asked_upstream.insert(name.to_owned());
        match self.outside.iter().find(|(known, _)| known == name) {
            Some((_, true)) => Reply::Found(name.to_owned(), BTreeSet::from([format!("{name} A 192.0.2.1")])),
            Some((_, false)) => Reply::NoData,
            None => Reply::NxDomain,
        }
    }

    fn reply(&mut self, decision: NameDecision) -> Reply {
        match decision.answer {
            NameAnswer::Records(records) => {
                let addresses = records.iter().map(ToString::to_string).collect();
                Reply::Found(records[0].name.clone(), addresses)
            }
            NameAnswer::NoData => Reply::NoData,
            NameAnswer::NxDomain => Reply::NxDomain,
            NameAnswer::NotOurs(name) => self.upstream(&name),
            NameAnswer::Walk(walk) => {
                for name in walk.outside {
                    match self.upstream(&name) {
                        Reply::NxDomain => {}
                        found => return found,
                    }
                }
                self.reply(*walk.then)
            }
        }
    }

    fn resolve(&mut self, written: &str, at_no_data: AtNoData, client: Option<Addr>) -> Found {
        let searching = self.plan.clients[&POD.parse::<Addr>().unwrap()].searching.clone().unwrap();
        for name in searching.walk(written) {
            let decision = match client {
                Some(_) => answer_to(&self.plan, client, &name, QueryType::A),
                None => answer(&self.plan, &name, QueryType::A),
            };
            match self.reply(decision) {
                Reply::Found(name, addresses) => return Some((name, addresses)),
                Reply::NoData if at_no_data == AtNoData::Stop => return None,
                Reply::NoData | Reply::NxDomain => {}
            }
        }
        None
    }
}

/// A walk that is answered at its first question ends where it ends when every name is asked, for names written in any form,
/// with any search list and number of dots, and never asks more names upstream.
#[test]
fn short_walks_end_where_long_ones_do() {
    let labels = [
        "web", "other", "shop", "svc", "cluster", "local", "example", "org", "com", "db-0", "api", "pod", "x",
    ];
    let written = vec(select(labels.to_vec()), 1..7).prop_map(|labels| labels.join("."));
    let domains = vec(select(&["corp.example", "example.org", "org", "other.svc.cluster.local"][..]), 0..3);
    let cases = (written, any::<bool>(), domains, 1u8..7, any::<[bool; 8]>());
    let config = Config { cases: 4000, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcome = runner.run(&cases, |(written, dotted, domains, ndots, exists)| {
        let spec = json!({"dnsConfig": {"searches": domains, "options": [{"name": "ndots", "value": ndots.to_string()}]}});
        let plan = with_pod(spec, |_| {});
        // A host of the pod's own namespace, written with the namespace, makes a question that looks like a walk's start; so does
        // an outside name whose last label is the namespace's name.
        let own = [".shop", ".shop.svc", ".shop.svc.cluster", ".shop.svc.cluster.local"];
        prop_assume!(!own.iter().any(|end| written.ends_with(end)));
        let written = if dotted { written + "." } else { written };
        let outside = plan.clients[&POD.parse::<Addr>().unwrap()].searching.as_ref().unwrap().walk(&written);
        let outside: Vec<(String, bool)> = outside
            .into_iter()
            .enumerate()
            .filter(|(index, _)| exists[index % 4])
            .map(|(index, name)| (name, exists[4 + index % 4]))
            .collect();
        let mut world = World { plan, outside, asked_upstream: BTreeSet::new() };
        for at_no_data in [AtNoData::GoOn, AtNoData::Stop] {
            world.asked_upstream.clear();
            let long = world.resolve(&written, at_no_data, None);
            let asked_long = std::mem::take(&mut world.asked_upstream);
            let short = world.resolve(&written, at_no_data, client());
            prop_assert_eq!(&long, &short, "{} {:?}", written, at_no_data);
            prop_assert!(world.asked_upstream.is_subset(&asked_long), "{}: {:?}", written, world.asked_upstream);
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// Proves search.once: An outside name costs one upstream question where the walk would ask all its names.
#[test]
fn an_outside_name_is_asked_once() {
    let plan = with_pod(json!({}), |_| {});
    let mut world =
        World { plan, outside: vec![("api.example.com".into(), true)], asked_upstream: BTreeSet::new() };
    let found = world.resolve("api.example.com", AtNoData::GoOn, client());
    assert_eq!(found.map(|(name, _)| name).as_deref(), Some("api.example.com"));
    let first = answer_to(&world.plan, client(), OUTSIDE, QueryType::A);
    let NameAnswer::Walk(walk) = first.answer else { panic!("the first question is not enough: {first:?}") };
    assert_eq!((walk.outside, world.asked_upstream.len()), (vec!["api.example.com".to_owned()], 1));
}

/// Proves search.why: The pod's resolver, each name of its walk with its cause, what it ends with and what may be meant.
#[test]
fn a_walk_is_told_name_by_name() {
    let story = |spec: Value, name: &str| {
        let cluster = cluster_with_pod(spec);
        let (snapshot, pod) = (cluster.snapshot(), PodKey::new("shop", "client"));
        why_name(&snapshot, &pod, name).unwrap()
    };
    let found = story(json!({}), "web.other");
    assert_eq!(found.end, NameEnd::Addresses(vec!["10.96.0.7".parse().unwrap()]));
    let told = found.to_string();
    assert!(told.contains("web.other.shop.svc.cluster.local: NXDOMAIN, there is no service other"), "{told}");
    assert!(told.contains("ndots:5") && told.contains("service other/web"), "{told}");
    let missing = story(json!({}), "wbe.shop.svc.cluster.local.");
    assert_eq!(missing.end, NameEnd::Missing);
    assert!(missing.to_string().contains("is web meant?"), "{missing}");
    let outside = story(json!({}), "api.example.com");
    assert_eq!(outside.end, NameEnd::Upstream(vec!["api.example.com".to_owned()]));
    assert!(outside.to_string().contains("all in one round trip"), "{outside}");
    let other = story(json!({"dnsPolicy": "Default"}), "web");
    assert_eq!(other.end, NameEnd::OtherServers(vec![]));
}
