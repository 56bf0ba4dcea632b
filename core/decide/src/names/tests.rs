//! What questions get, each with its cause.

use std::collections::BTreeSet;

use weft_model::Searching;
use weft_plan::{NameClient, NamePlan};

use super::*;

fn plan() -> NamePlan {
    let mut plan = NamePlan {
        domain: "cluster.local".to_owned(),
        reverse: BTreeSet::from(["10.96.0.0/16".parse().unwrap()]),
        ..NamePlan::default()
    };
    for name in ["cluster.local", "svc.cluster.local", "shop.svc.cluster.local"] {
        plan.names.insert(name.to_owned(), NameRecords::default());
    }
    let web = plan.names.get_or_default("web.shop.svc.cluster.local".to_owned());
    web.a.insert(Ipv4Addr::new(10, 96, 0, 5));
    let srv =
        SrvRecord { priority: 0, weight: 100, port: 80, target: "web.shop.svc.cluster.local".to_owned() };
    plan.names.get_or_default("_http._tcp.web.shop.svc.cluster.local".to_owned()).srv.insert(srv);
    plan.names.get_or_default("_tcp.web.shop.svc.cluster.local".to_owned());
    for (alias, target) in [
        ("out", "example.org"),
        ("near", "web.shop.svc.cluster.local"),
        ("gone", "nobody.shop.svc.cluster.local"),
        ("a", "b.shop.svc.cluster.local"),
        ("b", "a.shop.svc.cluster.local"),
    ] {
        plan.names.get_or_default(format!("{alias}.shop.svc.cluster.local")).cname = Some(target.to_owned());
    }
    let service = ServiceKey::new("shop", "db");
    plan.absent
        .insert("db.shop.svc.cluster.local".to_owned(), Absence::NoReadyEndpoints { service, not_ready: 2 });
    let web = BTreeSet::from(["web.shop.svc.cluster.local".to_owned()]);
    plan.pointers.insert("10.96.0.5".parse().unwrap(), web);
    plan
}

fn ask(name: &str, query: QueryType) -> NameDecision {
    answer(&plan(), name, query)
}

fn rows(decision: &NameDecision) -> Vec<String> {
    let NameAnswer::Records(records) = &decision.answer else {
        panic!("no records: {decision:?}");
    };
    records.iter().map(NameRecord::to_string).collect()
}

#[test]
fn names_are_found_in_any_case_with_or_without_the_last_dot() {
    let decision = ask("WEB.shop.SVC.Cluster.local.", QueryType::A);
    assert_eq!(rows(&decision), ["web.shop.svc.cluster.local A 10.96.0.5"]);
    assert_eq!(decision.cause, NameCause::Service(ServiceKey::new("shop", "web")));
}

#[test]
fn srv_brings_the_addresses_of_its_targets() {
    let decision = ask("_http._tcp.web.shop.svc.cluster.local", QueryType::Srv);
    assert_eq!(
        rows(&decision),
        ["_http._tcp.web.shop.svc.cluster.local SRV 0 100 80 web.shop.svc.cluster.local"]
    );
    assert_eq!(decision.additional.len(), 1);
}

/// Proves names.causes: Every answer that has no records says why: no namespace, service, port, endpoint, type, and so on.
#[test]
fn every_refusal_has_its_cause() {
    let cases = [
        (
            "web.shop.svc.cluster.local",
            QueryType::Aaaa,
            NameAnswer::NoData,
            "web.shop.svc.cluster.local exists and has no AAAA records, only A",
        ),
        (
            "_tcp.web.shop.svc.cluster.local",
            QueryType::Srv,
            NameAnswer::NoData,
            "_tcp.web.shop.svc.cluster.local exists and has no records, SRV or other",
        ),
        (
            "shop.svc.cluster.local",
            QueryType::A,
            NameAnswer::NoData,
            "shop.svc.cluster.local exists and has no records, A or other",
        ),
        (
            "cluster.local",
            QueryType::A,
            NameAnswer::NoData,
            "cluster.local exists and has no A records, only SOA, NS",
        ),
        (
            "web.nowhere.svc.cluster.local",
            QueryType::A,
            NameAnswer::NxDomain,
            "there is no namespace nowhere",
        ),
        (
            "wep.shop.svc.cluster.local",
            QueryType::A,
            NameAnswer::NxDomain,
            "there is no service wep in namespace shop",
        ),
        (
            "x.wep.shop.svc.cluster.local",
            QueryType::A,
            NameAnswer::NxDomain,
            "there is no service wep in namespace shop",
        ),
        (
            "db.shop.svc.cluster.local",
            QueryType::A,
            NameAnswer::NxDomain,
            "headless service shop/db has no ready endpoints (2 not ready)",
        ),
        (
            "db-0.db.shop.svc.cluster.local",
            QueryType::A,
            NameAnswer::NxDomain,
            "headless service shop/db has no ready endpoints (2 not ready)",
        ),
        (
            "x.web.shop.svc.cluster.local",
            QueryType::A,
            NameAnswer::NxDomain,
            "service shop/web has no ready endpoint with hostname x",
        ),
        (
            "_grpc._tcp.web.shop.svc.cluster.local",
            QueryType::Srv,
            NameAnswer::NxDomain,
            "service shop/web has no port named _grpc._tcp",
        ),
        (
            "example.org.cluster.local",
            QueryType::A,
            NameAnswer::NxDomain,
            "no service, endpoint or port can have that name",
        ),
        (
            "9.9.96.10.in-addr.arpa",
            QueryType::Ptr,
            NameAnswer::NxDomain,
            "10.96.9.9 is an address of the cluster, of no service and of no named endpoint",
        ),
    ];
    for (name, query, answer, cause) in cases {
        let decision = ask(name, query);
        assert_eq!((decision.answer, decision.cause.to_string().as_str()), (answer, cause), "{name} {query}");
    }
}

#[test]
fn aliases_are_followed_inside_and_handed_on_outside() {
    let near = ask("near.shop.svc.cluster.local", QueryType::A);
    assert_eq!(near.chain.len(), 1);
    assert_eq!(rows(&near), ["web.shop.svc.cluster.local A 10.96.0.5"]);
    let out = ask("out.shop.svc.cluster.local", QueryType::A);
    assert_eq!((out.chain.len(), out.answer), (1, NameAnswer::NotOurs("example.org".to_owned())));
    let gone = ask("gone.shop.svc.cluster.local", QueryType::A);
    assert_eq!((gone.chain.len(), gone.answer), (1, NameAnswer::NxDomain));
    let cname = ask("out.shop.svc.cluster.local", QueryType::Cname);
    assert_eq!(rows(&cname), ["out.shop.svc.cluster.local CNAME example.org"]);
    let looped = ask("a.shop.svc.cluster.local", QueryType::A);
    assert_eq!((looped.chain.len(), looped.cause), (ALIAS_LIMIT, NameCause::AliasLoop));
}

#[test]
fn others_names_are_not_ours() {
    for name in ["example.org", "notcluster.local", "local", "", "8.8.8.8.in-addr.arpa", "10.in-addr.arpa"] {
        assert_eq!(ask(name, QueryType::Ptr).answer, NameAnswer::NotOurs(name.to_owned()));
    }
}

#[test]
fn pod_addresses_are_spelled_in_existing_namespaces() {
    let decision = ask("10-244-0-7.shop.pod.cluster.local", QueryType::A);
    assert_eq!(rows(&decision), ["10-244-0-7.shop.pod.cluster.local A 10.244.0.7"]);
    assert_eq!(ask("10-244-0-7.shop.pod.cluster.local", QueryType::Aaaa).answer, NameAnswer::NoData);
    assert_eq!(
        rows(&ask("fd00--7.shop.pod.cluster.local", QueryType::Aaaa)),
        ["fd00--7.shop.pod.cluster.local AAAA fd00::7"]
    );
    assert_eq!(ask("10-244-0-7.nowhere.pod.cluster.local", QueryType::A).answer, NameAnswer::NxDomain);
}

/// Proves RFC 8482: A question for ANY gets one set of records, not all.
#[test]
fn pointers_and_any_and_types() {
    let pointer = ask("5.0.96.10.IN-ADDR.arpa", QueryType::Ptr);
    assert_eq!(rows(&pointer), ["5.0.96.10.in-addr.arpa PTR web.shop.svc.cluster.local"]);
    assert_eq!(rows(&ask("web.shop.svc.cluster.local", QueryType::Any)).len(), 1);
    assert_eq!(rows(&ask("cluster.local", QueryType::Ns)), ["cluster.local NS ns.dns.cluster.local"]);
    assert_eq!("aaaa".parse::<QueryType>().unwrap(), QueryType::Aaaa);
    assert!("WKS".parse::<QueryType>().is_err());
}

/// A pod of namespace `front` with the kubelet's usual list and what the node's own file adds.
fn plan_with_client(ndots: u8, more: &[&str]) -> NamePlan {
    let mut plan = plan();
    plan.set_domain = "clusterset.local".to_owned();
    for name in ["clusterset.local", "front.svc.cluster.local"] {
        plan.names.insert(name.to_owned(), NameRecords::default());
    }
    let own = ["front.svc.cluster.local", "svc.cluster.local", "cluster.local"];
    let domains = own.iter().chain(more).map(|domain| (*domain).to_owned()).collect();
    let client = NameClient {
        pod: weft_model::PodKey::new("front", "client"),
        searching: Some(Searching { domains, ndots }),
    };
    plan.clients.insert(client_addr(), client);
    plan
}

fn client_addr() -> Addr {
    "10.244.0.9".parse().unwrap()
}

fn ask_as_client(plan: &NamePlan, name: &str) -> NameDecision {
    answer_to(plan, Some(client_addr()), name, QueryType::A)
}

fn walk(decision: &NameDecision) -> &Walk {
    let NameAnswer::Walk(walk) = &decision.answer else { panic!("no walk: {decision:?}") };
    walk
}

/// Proves search.inside: A name of another namespace that is written with its `svc` is answered at the first question of the
/// walk, with an alias to it; SERVICE.NAMESPACE is left to the resolver, which asks here once more.
#[test]
fn a_walk_inside_the_cluster_is_answered_at_once() {
    let plan = plan_with_client(5, &[]);
    assert_eq!(ask_as_client(&plan, "web.shop.front.svc.cluster.local").answer, NameAnswer::NxDomain);
    let decision = ask_as_client(&plan, "Web.shop.svc.front.svc.cluster.local.");
    let chain: Vec<String> = decision.chain.iter().map(NameRecord::to_string).collect();
    assert_eq!(chain, ["web.shop.svc.front.svc.cluster.local CNAME web.shop.svc.cluster.local"]);
    assert_eq!(rows(&decision), ["web.shop.svc.cluster.local A 10.96.0.5"]);
    assert_eq!(
        decision.cause.to_string(),
        "the pod's search list leads from web.shop.svc to web.shop.svc.cluster.local: service shop/web"
    );
    // No AAAA records: the name exists all the same, so both questions end in one place.
    let v6 = answer_to(&plan, Some(client_addr()), "web.shop.svc.front.svc.cluster.local", QueryType::Aaaa);
    assert_eq!(
        (v6.chain.len(), v6.answer, v6.zone.as_deref()),
        (1, NameAnswer::NoData, Some("cluster.local"))
    );
}

/// Proves search.outside: An outside name is asked upstream once, after the node's own search domains in their order.
#[test]
fn a_walk_out_of_the_cluster_skips_what_does_not_exist_inside() {
    let plan = plan_with_client(5, &[]);
    let decision = ask_as_client(&plan, "api.example.com.front.svc.cluster.local");
    assert_eq!(walk(&decision).outside, ["api.example.com"]);
    assert_eq!(walk(&decision).then.answer, NameAnswer::NxDomain);
    let plan = plan_with_client(5, &["corp.example", "example"]);
    let decision = ask_as_client(&plan, "www.example.com.front.svc.cluster.local");
    assert_eq!(
        walk(&decision).outside,
        ["www.example.com.corp.example", "www.example.com.example", "www.example.com"]
    );
}

/// Proves search.later: A full name of the cluster, written without its last dot, is found behind the outside domains.
#[test]
fn a_walk_may_come_back_into_the_cluster() {
    let plan = plan_with_client(5, &["corp.example"]);
    let decision = ask_as_client(&plan, "web.shop.svc.cluster.local.front.svc.cluster.local");
    let walk = walk(&decision);
    assert_eq!(walk.outside, ["web.shop.svc.cluster.local.corp.example"]);
    assert_eq!(rows(&walk.then), ["web.shop.svc.cluster.local A 10.96.0.5"]);
    assert_eq!(walk.then.chain.len(), 1);
    assert_eq!(walk.unsearched.answer, NameAnswer::NxDomain);
}

/// Proves search.not: Nothing is assumed of other clients, other starts of a walk, names with enough dots, names that services
/// of the namespace could have, and types that are not looked up by walking.
#[test]
fn only_walks_are_taken_for_walks() {
    let plan = plan_with_client(3, &["corp.example"]);
    let plain = [
        // One label: a service of the namespace that may come to be.
        "web.front.svc.cluster.local",
        // Three dots and three wanted: asked as it is first.
        "a.b.example.com.front.svc.cluster.local",
        // Another namespace's, and a later domain of the list.
        "api.example.com.shop.svc.cluster.local",
        "api.example.com.svc.cluster.local",
        "_http._tcp.api.front.svc.cluster.local",
        "front.svc.cluster.local.cluster.local",
    ];
    for name in plain {
        let decision = ask_as_client(&plan, name);
        assert_eq!(decision.cause, answer(&plan, name, QueryType::A).cause, "{name}");
        assert_eq!(decision.answer, NameAnswer::NxDomain, "{name}");
    }
    let walked = "api.example.com.front.svc.cluster.local";
    assert!(matches!(ask_as_client(&plan, walked).answer, NameAnswer::Walk(_)));
    let stranger = answer_to(&plan, Some("10.244.0.8".parse().unwrap()), walked, QueryType::A);
    assert_eq!(stranger.answer, NameAnswer::NxDomain);
    assert_eq!(answer_to(&plan, None, walked, QueryType::A).answer, NameAnswer::NxDomain);
    for query in [QueryType::Any, QueryType::Cname, QueryType::Soa, QueryType::Ns, QueryType::Ptr] {
        assert_eq!(answer_to(&plan, Some(client_addr()), walked, query).answer, NameAnswer::NxDomain);
    }
}

/// Proves search.services: `github.com` is walked unless the namespace has a service `com`, ready or not.
#[test]
fn names_that_a_service_of_the_namespace_could_have_are_its_own() {
    let mut plan = plan_with_client(5, &[]);
    let name = "github.com.front.svc.cluster.local";
    assert_eq!(walk(&ask_as_client(&plan, name)).outside, ["github.com"]);
    let service = ServiceKey::new("front", "com");
    plan.absent.insert(
        "com.front.svc.cluster.local".to_owned(),
        Absence::NoReadyEndpoints { service, not_ready: 1 },
    );
    assert_eq!(ask_as_client(&plan, name).answer, NameAnswer::NxDomain);
    plan.absent.clear();
    plan.names.insert("com.front.svc.cluster.local".to_owned(), NameRecords::default());
    assert_eq!(ask_as_client(&plan, name).answer, NameAnswer::NxDomain);
}

/// Proves names.clusterset: clusterset.local is a zone of its own beside the cluster's, without names as long as nothing is shared.
#[test]
fn the_zone_that_clusters_share_is_empty_and_ours() {
    let plan = plan_with_client(5, &[]);
    let missing = answer(&plan, "web.shop.svc.clusterset.local.", QueryType::A);
    assert_eq!((missing.answer, missing.zone.as_deref()), (NameAnswer::NxDomain, Some("clusterset.local")));
    let apex = answer(&plan, "clusterset.local", QueryType::Soa);
    assert_eq!(rows(&apex), ["clusterset.local SOA"]);
    assert_eq!(answer(&plan, "clusterset.local", QueryType::A).answer, NameAnswer::NoData);
}

/// Proves RFC 2308 §2: Names above a name exist and have no data; negative answers name the zone they come from.
#[test]
fn what_lies_above_a_pointer_exists_and_names_its_zone() {
    let cases = [
        ("5.0.96.10.in-addr.arpa", NameAnswer::NoData, Some("96.10.in-addr.arpa")),
        ("0.96.10.in-addr.arpa", NameAnswer::NoData, Some("96.10.in-addr.arpa")),
        ("1.96.10.in-addr.arpa", NameAnswer::NxDomain, Some("96.10.in-addr.arpa")),
        ("6.0.96.10.in-addr.arpa", NameAnswer::NxDomain, Some("96.10.in-addr.arpa")),
        ("x.5.0.96.10.in-addr.arpa", NameAnswer::NxDomain, Some("96.10.in-addr.arpa")),
        ("05.0.96.10.in-addr.arpa", NameAnswer::NxDomain, Some("96.10.in-addr.arpa")),
        ("96.10.in-addr.arpa", NameAnswer::NoData, Some("96.10.in-addr.arpa")),
    ];
    for (name, expected, zone) in cases {
        let decision = ask(name, QueryType::A);
        assert_eq!((decision.answer, decision.zone.as_deref()), (expected, zone), "{name}");
    }
    assert_eq!(rows(&ask("96.10.in-addr.arpa", QueryType::Soa)), ["96.10.in-addr.arpa SOA"]);
    assert_eq!(ask("10.in-addr.arpa", QueryType::Soa).answer, NameAnswer::NotOurs("10.in-addr.arpa".into()));
}

#[test]
fn prefixes_of_any_length_have_zones_of_whole_labels() {
    let mut plan = plan();
    plan.reverse =
        ["10.96.0.0/12", "10.0.0.64/26", "fd00:10:96::/108"].map(|cidr| cidr.parse().unwrap()).into();
    let zone = |name: &str| answer(&plan, name, QueryType::Ptr).zone;
    assert_eq!(zone("1.2.97.10.in-addr.arpa").as_deref(), Some("97.10.in-addr.arpa"));
    assert_eq!(zone("65.0.0.10.in-addr.arpa").as_deref(), Some("0.0.10.in-addr.arpa"));
    assert_eq!(zone("1.0.0.10.in-addr.arpa"), None, "somebody else's half of the same zone");
    let v6 = "6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(zone(v6).as_deref(), Some("0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa"));
}

#[test]
fn ipv6_pointers_are_found_by_their_nibbles() {
    let mut plan = plan();
    let target = BTreeSet::from(["web.shop.svc.cluster.local".to_owned()]);
    plan.pointers.insert("fd00:10:96::5".parse().unwrap(), target);
    let name = "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa";
    let decision = answer(&plan, name, QueryType::Ptr);
    assert_eq!(rows(&decision), [format!("{name} PTR web.shop.svc.cluster.local")]);
}

/// Proves names.wildcards: A question for * gets no records of others; it is a name that does not exist.
#[test]
fn wildcards_are_no_names() {
    for name in ["*.shop.svc.cluster.local", "*.*.svc.cluster.local", "web.*.svc.cluster.local"] {
        let decision = ask(name, QueryType::A);
        assert_eq!((decision.answer, decision.cause), (NameAnswer::NxDomain, NameCause::Wildcard), "{name}");
    }
}

/// RFC 1035 5.1: a dot within a label is written with a backslash and divides nothing.
#[test]
fn a_dot_within_a_label_does_not_make_a_zone() {
    assert_eq!(
        ask("foo\\.cluster.local", QueryType::A).answer,
        NameAnswer::NotOurs("foo\\.cluster.local".into())
    );
    assert_eq!(ask("foo\\\\.cluster.local", QueryType::A).answer, NameAnswer::NxDomain);
}

#[test]
fn pod_names_have_namespaces_above_them() {
    assert_eq!(ask("shop.pod.cluster.local", QueryType::A).answer, NameAnswer::NoData);
    assert_eq!(ask("nowhere.pod.cluster.local", QueryType::A).answer, NameAnswer::NxDomain);
    assert_eq!(ask("x.10-244-0-7.shop.pod.cluster.local", QueryType::A).answer, NameAnswer::NxDomain);
    assert_eq!(ask("web.shop.pod.cluster.local", QueryType::A).answer, NameAnswer::NxDomain);
}
