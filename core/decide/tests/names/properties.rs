//! What holds for the names of every cluster, on random ones: services of all kinds beside an own reading of the specification.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::{Value, json};
use weft_compile::Compiler;
use weft_decide::names::{NameAnswer, NameData, QueryType, answer};
use weft_model::NodeName;
use weft_model::testing::Cluster;
use weft_plan::NamePlan;

use super::{cluster, plan, service, slice};

/// Name and type to the texts of their records.
type Records = BTreeMap<(String, &'static str), BTreeSet<String>>;

#[derive(Clone, Debug)]
enum Kind {
    ClusterIp { both: bool },
    Headless { publish: bool, endpoints: Vec<(u8, Option<u8>, bool)> },
    External(&'static str),
}

fn kinds() -> impl Strategy<Value = Vec<Kind>> {
    let endpoint = (1u8..20, prop::option::of(0u8..3), any::<bool>());
    let kind = prop_oneof![
        any::<bool>().prop_map(|both| Kind::ClusterIp { both }),
        (any::<bool>(), vec(endpoint, 0..5))
            .prop_map(|(publish, endpoints)| Kind::Headless { publish, endpoints }),
        select(&["example.org", "s0.shop.svc.cluster.local"][..]).prop_map(Kind::External),
    ];
    vec(kind, 0..5)
}

fn objects(kinds: &[Kind]) -> Cluster {
    let (mut services, mut slices) = (Vec::new(), Vec::new());
    for (index, kind) in kinds.iter().enumerate() {
        let name = format!("s{index}");
        let ports = json!([{"name": "web", "port": 80}]);
        let spec = match kind {
            Kind::ClusterIp { both } => {
                let mut ips = vec![format!("10.96.0.{}", 20 + index)];
                ips.extend(both.then(|| format!("fd00:10:96::{}", 20 + index)));
                json!({"clusterIP": ips[0], "clusterIPs": ips, "ports": ports})
            }
            Kind::Headless { publish, endpoints } => {
                slices.push(slice(
                    &name,
                    "IPv4",
                    json!([{"name": "web", "port": 8080, "protocol": "TCP"}]),
                    endpoints_of(endpoints),
                ));
                json!({"clusterIP": "None", "clusterIPs": ["None"], "publishNotReadyAddresses": publish, "ports": ports})
            }
            Kind::External(to) => json!({"type": "ExternalName", "externalName": to}),
        };
        services.push(service(&name, spec));
    }
    cluster(services.into(), slices.into())
}

fn endpoints_of(endpoints: &[(u8, Option<u8>, bool)]) -> Value {
    let endpoint = |(last, host, ready): &(u8, Option<u8>, bool)| {
        let mut endpoint = json!({"addresses": [format!("10.244.0.{last}")], "conditions": {"ready": ready}});
        if let Some(host) = host {
            endpoint["hostname"] = format!("h{host}").into();
        }
        endpoint
    };
    endpoints.iter().map(endpoint).collect::<Vec<_>>().into()
}

/// The specification, read a second time: from what the objects were made of to records, without any tree of names.
fn expected(kinds: &[Kind]) -> Records {
    let mut records = Records::new();
    let mut add = |name: &str, query, data: String| {
        records.entry((name.to_owned(), query)).or_default().insert(data);
    };
    for (index, kind) in kinds.iter().enumerate() {
        let own = format!("s{index}.shop.svc.cluster.local");
        match kind {
            Kind::ClusterIp { both } => {
                add(&own, "A", format!("A 10.96.0.{}", 20 + index));
                if *both {
                    add(&own, "AAAA", format!("AAAA fd00:10:96::{}", 20 + index));
                }
                add(&format!("_web._tcp.{own}"), "SRV", format!("SRV 0 100 80 {own}"));
                add(&format!("{}.0.96.10.in-addr.arpa", 20 + index), "PTR", format!("PTR {own}"));
            }
            Kind::Headless { publish, endpoints } => {
                for (last, host, _) in endpoints.iter().filter(|(_, _, ready)| *ready || *publish) {
                    let host = host.map_or(format!("10-244-0-{last}"), |host| format!("h{host}"));
                    let name = format!("{host}.{own}");
                    for name in [&own, &name] {
                        add(name, "A", format!("A 10.244.0.{last}"));
                    }
                    add(&format!("_web._tcp.{own}"), "SRV", format!("SRV 0 100 8080 {name}"));
                    add(&format!("{last}.0.244.10.in-addr.arpa"), "PTR", format!("PTR {name}"));
                }
            }
            Kind::External(to) => add(&own, "CNAME", format!("CNAME {to}")),
        }
    }
    records
}

fn texts(decision: &NameAnswer) -> BTreeSet<String> {
    match decision {
        NameAnswer::Records(records) => records.iter().map(|record| record.data.to_string()).collect(),
        _ => BTreeSet::new(),
    }
}

fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn names_have_the_records_of_an_independent_reading_and_no_others() {
    let outcome = runner(1500).run(&kinds(), |kinds| {
        let plan = plan(&objects(&kinds));
        let expected = expected(&kinds);
        for ((name, query), data) in &expected {
            let decision = answer(&plan, name, query.parse().unwrap());
            prop_assert_eq!(&texts(&decision.answer), data, "{} {}", name, query);
            let shouted = answer(&plan, &name.to_uppercase(), query.parse().unwrap());
            prop_assert_eq!(decision, shouted, "{} in upper case", name);
        }
        for (name, records) in &plan.names {
            let service = name.ends_with(".shop.svc.cluster.local");
            for query in ["A", "AAAA", "SRV", "CNAME"] {
                let found = expected.get(&(name.clone(), query)).cloned().unwrap_or_default();
                let own = answer(&plan, name, query.parse().unwrap());
                if service && records.cname.is_none() {
                    prop_assert_eq!(texts(&own.answer), found, "{} {}", name, query);
                }
                let gone = matches!(own.answer, NameAnswer::NxDomain | NameAnswer::NotOurs(_));
                prop_assert!(!gone || !own.chain.is_empty(), "{} is in the plan and does not exist", name);
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// Proves RFC 8020: Nothing exists below a name that does not, and what lies above a name exists.
#[test]
fn existence_goes_upwards() {
    let outcome = runner(500).run(&kinds(), |kinds| {
        let plan = plan(&objects(&kinds));
        let pointers =
            expected(&kinds).into_keys().filter(|(_, query)| *query == "PTR").map(|(name, _)| name);
        for name in plan.names.keys().cloned().chain(pointers) {
            let mut rest = name.as_str();
            while let Some((_, above)) = rest.split_once('.') {
                rest = above;
                let decision = answer(&plan, rest, QueryType::A);
                prop_assert!(
                    decision.answer != NameAnswer::NxDomain || !decision.chain.is_empty(),
                    "{} above {}",
                    rest,
                    name
                );
            }
            let below = answer(&plan, &format!("zzz.{name}"), QueryType::A);
            prop_assert!(!matches!(below.answer, NameAnswer::Records(_)), "zzz.{}", name);
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn pointers_and_addresses_agree() {
    let outcome = runner(500).run(&kinds(), |kinds| {
        let plan = plan(&objects(&kinds));
        for (addr, targets) in &plan.pointers {
            for target in targets {
                let query = if addr.to_ip().is_ipv4() { QueryType::A } else { QueryType::Aaaa };
                let NameAnswer::Records(records) = answer(&plan, target, query).answer else {
                    return Err(TestCaseError::fail(format!(
                        "{addr} points to {target}, which has no address"
                    )));
                };
                let back = |data: &NameData| match data {
                    NameData::A(v4) => IpAddr::from(*v4) == addr.to_ip(),
                    NameData::Aaaa(v6) => IpAddr::from(*v6) == addr.to_ip(),
                    _ => false,
                };
                prop_assert!(records.iter().any(|record| back(&record.data)), "{} and {}", addr, target);
            }
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// Proves names.changes: A plan that follows changes of services and endpoints is the one compiled from nothing.
#[test]
fn names_follow_changes_to_the_same_plan() {
    let outcome = runner(400).run(&vec(kinds(), 2..5), |states| {
        let node = NodeName::new("node1");
        let mut compiler = Compiler::new(node.clone());
        for kinds in &states {
            let cluster = objects(kinds);
            let followed = compiler.compile(&cluster.snapshot_on(&node)).plan.names;
            prop_assert_eq!(NamePlan::clone(&followed), plan(&cluster));
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

/// Whatever is asked, names outside the zones are never answered and never denied.
#[test]
fn others_names_are_left_to_others() {
    let label = select(&["a", "web", "svc", "cluster", "local", "arpa", "in-addr", "10", "xn--a", "\\."][..]);
    let outcome = runner(2000).run(&vec(label, 0..6), |labels| {
        let name = labels.join(".");
        let plan = plan_of_one();
        let inside = ["cluster.local", "clusterset.local"]
            .iter()
            .any(|zone| name == *zone || name.ends_with(&format!(".{zone}")));
        if !inside {
            prop_assert_eq!(answer(&plan, &name, QueryType::A).answer, NameAnswer::NotOurs(name.clone()));
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

fn plan_of_one() -> NamePlan {
    plan(&objects(&[Kind::ClusterIp { both: true }]))
}
