//! Numbered pods coming, going and being replaced, one look at a time.

use super::*;
use crate::controllers::effect::to_value;
use crate::controllers::testing::{merge, now, parse};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A set with its pods and versions, to which effects are applied as the API server and kubelets would.
struct Model {
    set: Value,
    pods: BTreeMap<String, Value>,
    revisions: Vec<Value>,
    made: u64,
}

impl Model {
    fn new(replicas: i32, more: Value) -> Self {
        let mut set = json!({
            "metadata": {"name": "db", "namespace": "shop", "uid": "set-uid", "generation": 1},
            "spec": {"replicas": replicas, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}}},
        });
        merge(&mut set, more);
        Self { set, pods: BTreeMap::new(), revisions: Vec::new(), made: 0 }
    }

    fn look(&mut self) -> Vec<String> {
        let pods: Vec<Arc<Pod>> = self.pods.values().map(|pod| Arc::new(parse(pod.clone()))).collect();
        let revisions: Vec<Arc<ControllerRevision>> =
            self.revisions.iter().map(|revision| Arc::new(parse(revision.clone()))).collect();
        let outcome = reconcile(&parse(self.set.clone()), &pods, &revisions, now());
        outcome.effects.iter().filter_map(|effect| self.apply(effect)).collect()
    }

    /// Applies an effect and names it if it is about pods.
    fn apply(&mut self, effect: &Effect) -> Option<String> {
        self.made += 1;
        match effect {
            Effect::Create { target, body } if target.kind == Kind::Pod => {
                let mut pod = body.clone();
                merge(
                    &mut pod,
                    json!({"metadata": {"uid": format!("uid-{}", self.made)}, "status": {"phase": "Pending"}}),
                );
                assert!(self.pods.insert(target.name.clone(), pod).is_none(), "{} made twice", target.name);
                Some(format!("+{}", target.name))
            }
            Effect::Create { target, body } if target.kind == Kind::ControllerRevision => {
                let mut revision = body.clone();
                merge(&mut revision, json!({"metadata": {"uid": format!("uid-{}", self.made)}}));
                self.revisions.push(revision);
                None
            }
            Effect::Create { target, .. } => Some(format!("+{} {}", target.kind.name(), target.name)),
            Effect::Delete { target, .. } if target.kind == Kind::Pod => {
                merge(
                    self.pods.get_mut(&target.name).unwrap(),
                    json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
                );
                Some(format!("-{}", target.name))
            }
            Effect::Delete { target, .. } => {
                self.revisions.retain(|revision| revision["metadata"]["name"] != target.name.as_str());
                None
            }
            Effect::Merge { target, body } => {
                let revision = self
                    .revisions
                    .iter_mut()
                    .find(|r| r["metadata"]["name"] == target.name.as_str())
                    .unwrap();
                merge(revision, body.clone());
                None
            }
            Effect::MergeStatus { body, .. } => {
                merge(&mut self.set, body.clone());
                None
            }
            other => panic!("{other:?}"),
        }
    }

    fn ready(&mut self, name: &str) {
        let status =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        if let Some(pod) = self.pods.get_mut(name) {
            merge(pod, status);
        }
    }

    fn gone(&mut self, name: &str) {
        if self.pods.get(name).is_some_and(|pod| !pod["metadata"]["deletionTimestamp"].is_null()) {
            self.pods.remove(name);
        }
    }

    fn image(&mut self, image: &str) {
        merge(
            &mut self.set,
            json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}),
        );
    }

    /// Everything happens until nothing more does; the steps about pods in their order.
    fn settle(&mut self) -> Vec<String> {
        let mut steps = Vec::new();
        for _ in 0..500 {
            let before = (to_value(&self.set), self.pods.clone());
            steps.extend(self.look());
            let names: Vec<String> = self.pods.keys().cloned().collect();
            for name in names {
                self.gone(&name);
                self.ready(&name);
            }
            if before == (to_value(&self.set), self.pods.clone()) {
                return steps;
            }
        }
        panic!("does not settle: {:?}", self.pods);
    }

    fn images(&self) -> Vec<String> {
        let image = |pod: &Value| pod["spec"]["containers"][0]["image"].as_str().unwrap().to_owned();
        self.pods.values().map(image).collect()
    }
}

#[test]
fn pods_come_one_after_the_other_with_stable_names() {
    let mut model = Model::new(3, json!({}));
    assert_eq!(model.look(), ["+db-0"]);
    assert_eq!(model.look(), Vec::<String>::new(), "db-0 is not ready");
    model.ready("db-0");
    assert_eq!(model.look(), ["+db-1"]);
    let pod = &model.pods["db-1"];
    assert_eq!(pod["spec"]["hostname"], "db-1");
    assert_eq!(pod["spec"]["subdomain"], "db");
    assert_eq!(pod["metadata"]["labels"][POD_INDEX], "1");
    assert_eq!(pod["metadata"]["labels"][POD_NAME], "db-1");
    assert_eq!(pod["metadata"]["labels"][LABEL], model.revisions[0]["metadata"]["name"]);
}

#[test]
fn parallel_sets_do_not_wait() {
    let mut model = Model::new(3, json!({"spec": {"podManagementPolicy": "Parallel"}}));
    assert_eq!(model.look(), ["+db-0", "+db-1", "+db-2"]);
    merge(&mut model.set, json!({"spec": {"replicas": 1}}));
    assert_eq!(model.look(), ["-db-2", "-db-1"]);
}

#[test]
fn surplus_pods_go_from_the_top_and_only_while_the_rest_serve() {
    let mut model = Model::new(3, json!({}));
    model.settle();
    merge(&mut model.set, json!({"spec": {"replicas": 1}}));
    assert_eq!(model.look(), ["-db-2"]);
    assert_eq!(model.look(), Vec::<String>::new(), "db-2 is still going");
    model.gone("db-2");
    assert_eq!(model.look(), ["-db-1"]);
}

#[test]
fn a_new_version_is_rolled_out_from_the_top() {
    let mut model = Model::new(3, json!({}));
    model.settle();
    model.image("v2");
    assert_eq!(model.settle(), ["-db-2", "+db-2", "-db-1", "+db-1", "-db-0", "+db-0"]);
    let status = &model.set["status"];
    assert_eq!(status["currentRevision"], status["updateRevision"]);
    assert_eq!((&status["updatedReplicas"], &status["currentReplicas"]), (&json!(3), &json!(3)));
}

#[test]
fn pods_below_the_partition_keep_their_version_even_when_made_anew() {
    let mut model = Model::new(3, json!({}));
    model.settle();
    model.image("v2");
    merge(
        &mut model.set,
        json!({"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}}),
    );
    assert_eq!(model.settle(), ["-db-2", "+db-2"]);
    let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    merge(model.pods.get_mut("db-0").unwrap(), deleted);
    assert_eq!(model.settle(), ["+db-0"]);
    assert_eq!(model.images(), ["v1", "v1", "v2"]);
    assert_eq!(model.set["status"]["updatedReplicas"], 1);
}

#[test]
fn on_delete_leaves_old_pods_alone() {
    let mut model = Model::new(2, json!({"spec": {"updateStrategy": {"type": "OnDelete"}}}));
    model.settle();
    model.image("v2");
    assert_eq!(model.settle(), Vec::<String>::new());
}

#[test]
fn a_version_used_before_is_found_again() {
    let mut model = Model::new(1, json!({}));
    model.settle();
    model.image("v2");
    model.settle();
    model.image("v1");
    model.settle();
    assert_eq!(model.images(), ["v1"]);
    let mut numbers: Vec<i64> = model.revisions.iter().map(|r| r["revision"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3], "the first became the third");
}

#[test]
fn an_ordered_set_waits_for_a_stuck_pod_and_a_parallel_one_replaces_it() {
    for (policy, expected) in [("OrderedReady", vec![]), ("Parallel", vec!["-db-1"])] {
        let mut model = Model::new(2, json!({"spec": {"podManagementPolicy": policy}}));
        model.settle();
        model.image("broken");
        assert_eq!(model.look(), ["-db-1"]);
        model.gone("db-1");
        assert_eq!(model.look(), ["+db-1"]);
        model.image("v3");
        assert_eq!(model.look(), expected, "{policy}");
    }
}

#[test]
fn claims_are_made_once_per_pod_and_mounted() {
    let mut model = Model::new(
        1,
        json!({"spec": {"volumeClaimTemplates": [
        {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]}}),
    );
    assert_eq!(model.look(), ["+PersistentVolumeClaim data-db-0", "+db-0"]);
    let volumes = &model.pods["db-0"]["spec"]["volumes"];
    assert_eq!(volumes, &json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}}]));
}

#[test]
fn failed_pods_are_made_anew() {
    let mut model = Model::new(1, json!({}));
    model.settle();
    merge(model.pods.get_mut("db-0").unwrap(), json!({"status": {"phase": "Failed"}}));
    assert_eq!(model.look(), ["-db-0"]);
    model.gone("db-0");
    assert_eq!(model.look(), ["+db-0"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happened on the way, the end is the set asked for last.
    #[test]
    fn any_history_ends_in_the_same_state(steps in prop::collection::vec((0..5u8, 0..4usize), 0..40), parallel in any::<bool>(), size in 0..4i32) {
        let policy = if parallel { "Parallel" } else { "OrderedReady" };
        let mut model = Model::new(2, json!({"spec": {"podManagementPolicy": policy}}));
        for (what, which) in steps {
            match what {
                0 => { model.look(); }
                1 => model.ready(&format!("db-{which}")),
                2 => model.gone(&format!("db-{which}")),
                3 => merge(&mut model.set, json!({"spec": {"replicas": which}})),
                _ => model.image(&format!("v{which}")),
            }
        }
        merge(&mut model.set, json!({"spec": {"replicas": size}}));
        model.image("last");
        model.settle();
        prop_assert_eq!(model.images(), vec!["last".to_owned(); usize::try_from(size).unwrap()]);
        let status = &model.set["status"];
        prop_assert_eq!(&status["readyReplicas"], &json!(size));
        prop_assert_eq!(&status["currentRevision"], &status["updateRevision"]);
    }
}
