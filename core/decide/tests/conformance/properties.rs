//! What must hold for every cluster: the plan is a function of the objects, never of their order or of what else there is.

use proptest::collection::vec;
use proptest::prelude::*;
use weft_model::testing::{Cluster, clusters, objects};

use crate::{cases, plans, runner};

/// The same objects, each perhaps twice, in another order.
fn shuffled(cluster: &Cluster, order: &[prop::sample::Index]) -> Cluster {
    fn again<T: Clone>(list: &[T], order: &[prop::sample::Index]) -> Vec<T> {
        let mut all = list.to_vec();
        for place in order.iter().filter(|_| !list.is_empty()) {
            let at = place.index(all.len());
            let object = all[at].clone();
            all.push(object);
            all.rotate_left(at);
        }
        all
    }
    let Cluster { settings, namespaces, nodes, pods, services, slices, policies } = cluster;
    Cluster {
        settings: settings.clone(),
        namespaces: again(namespaces, order),
        nodes: nodes.clone(),
        pods: again(pods, order),
        services: again(services, order),
        slices: again(slices, order),
        policies: again(policies, order),
    }
}

#[test]
fn order_and_repetition_of_objects_do_not_matter() {
    let worlds = (clusters(), vec(any::<prop::sample::Index>(), 0..6));
    let outcome = runner(cases(2_000)).run(&worlds, |(cluster, order)| {
        prop_assert_eq!(plans(&cluster), plans(&shuffled(&cluster, &order)));
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn pods_of_other_nodes_change_no_number_that_was_there() {
    let outcome = runner(cases(2_000)).run(&clusters(), |cluster| {
        let before = plans(&cluster);
        let mut larger = cluster.clone();
        for (index, namespace) in ["red", "green", "blue"].into_iter().enumerate() {
            let addr = format!("10.244.9.{}", 100 + index);
            let with = [("app", "unheard-of"), ("random", "label")];
            larger.pods.push(objects::pod(
                namespace,
                &format!("new{index}"),
                "node9",
                &with,
                &[addr.as_str()],
            ));
        }
        for (node, plan) in plans(&larger) {
            let old = &before[&node];
            for (prefix, class) in &old.classes {
                prop_assert_eq!(plan.classes.get(prefix), Some(class), "{} on {}", prefix, node);
            }
            for (id, set) in &old.policy_sets {
                let same = plan.policy_sets.get(id).is_some_and(|new| new.default_rule == set.default_rule);
                prop_assert!(same, "set {:?} is gone", id);
            }
            for (addr, endpoint) in &old.endpoints {
                prop_assert_eq!(plan.endpoints.get(addr), Some(endpoint));
            }
        }
        larger.pods.truncate(cluster.pods.len());
        prop_assert_eq!(plans(&larger), before);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
