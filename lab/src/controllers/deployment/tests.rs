//! Roll-outs step by step, and whole roll-outs under any order of events against a small model of a cluster.

use super::*;
use crate::controllers::testing::{merge, now, parse};
use proptest::prelude::*;
use serde_json::Value;

fn deployment(replicas: i32, image: &str, more: Value) -> Deployment {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "d-uid", "generation": 1},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        },
    });
    merge(&mut object, more);
    parse(object)
}

/// The smallest cluster a deployment can live in: replica sets whose pods appear, become ready and go.
struct Model {
    deployment: Value,
    sets: Vec<Value>,
    /// Per set: pods that run, and those of them that are available.
    pods: Vec<(i32, i32)>,
    version: u64,
}

impl Model {
    fn new(deployment: &Deployment) -> Self {
        Self { deployment: to_value(deployment), sets: Vec::new(), pods: Vec::new(), version: 1 }
    }

    fn deployment(&self) -> Deployment {
        parse(self.deployment.clone())
    }

    fn sets(&self) -> Vec<Arc<ReplicaSet>> {
        self.sets.iter().map(|set| Arc::new(parse(set.clone()))).collect()
    }

    /// One look of the controller; whether it did anything.
    fn reconcile(&mut self) -> bool {
        let outcome = reconcile(&self.deployment(), &self.sets(), &[], now());
        for effect in &outcome.effects {
            self.apply(effect);
        }
        !outcome.effects.is_empty()
    }

    fn apply(&mut self, effect: &Effect) {
        self.version += 1;
        match effect {
            Effect::Create { body, .. }
                if !self.sets.iter().any(|set| set["metadata"]["name"] == body["metadata"]["name"]) =>
            {
                let mut set = body.clone();
                let number = self.sets.len();
                merge(
                    &mut set,
                    json!({"metadata": {"uid": format!("set-{number}"), "resourceVersion": "1",
                    "generation": 1, "creationTimestamp": format!("2026-01-01T00:00:{number:02}Z")}}),
                );
                self.sets.push(set);
                self.pods.push((0, 0));
            }
            Effect::Create { .. } | Effect::Tell { .. } | Effect::Bind { .. } => {}
            Effect::Merge { target, body } | Effect::MergeStatus { target, body } => {
                let version = self.version;
                let object = match target.kind {
                    Kind::Deployment => &mut self.deployment,
                    _ => self
                        .sets
                        .iter_mut()
                        .find(|set| set["metadata"]["name"] == target.name.as_str())
                        .unwrap(),
                };
                merge(object, body.clone());
                object["metadata"]["resourceVersion"] = json!(version.to_string());
            }
            Effect::Delete { uid, .. } => {
                let at = self.sets.iter().position(|set| set["metadata"]["uid"] == uid.as_str()).unwrap();
                self.sets.remove(at);
                self.pods.remove(at);
            }
        }
    }

    fn wanted(&self, set: usize) -> i32 {
        i32::try_from(self.sets[set]["spec"]["replicas"].as_i64().unwrap()).unwrap()
    }

    /// One pod of a set appears or goes; pods that go were the least useful.
    fn scale_one(&mut self, set: usize) -> bool {
        let wanted = self.wanted(set);
        let (running, ready) = &mut self.pods[set];
        match wanted.cmp(running) {
            std::cmp::Ordering::Greater => *running += 1,
            std::cmp::Ordering::Less => {
                *running -= 1;
                *ready = (*ready).min(*running);
            }
            std::cmp::Ordering::Equal => return false,
        }
        true
    }

    fn ready_one(&mut self, set: usize) -> bool {
        let (running, ready) = &mut self.pods[set];
        let can = *ready < *running;
        *ready += i32::from(can);
        can
    }

    /// The set's controller reports what is there.
    fn report(&mut self, set: usize) -> bool {
        let (running, ready) = self.pods[set];
        let status = json!({"replicas": running, "readyReplicas": ready, "availableReplicas": ready,
            "observedGeneration": self.sets[set]["metadata"]["generation"]});
        let changed = self.sets[set]["status"] != status;
        self.sets[set]["status"] = status;
        changed
    }

    fn change(&mut self, patch: Value) {
        merge(&mut self.deployment, patch);
    }

    fn available(&self) -> i32 {
        self.pods.iter().map(|(_, ready)| ready).sum()
    }

    /// Everything happens until nothing more does.
    fn settle(&mut self) {
        for _ in 0..2000 {
            let mut moved = self.reconcile();
            for set in 0..self.sets.len() {
                moved |= self.scale_one(set) | self.ready_one(set);
                moved |= self.report(set);
            }
            if !moved {
                return;
            }
        }
        panic!("does not settle: {} {:?}", self.deployment, self.pods);
    }

    /// What a user sees in the end; names and times aside.
    fn outcome(&self) -> (Vec<(Value, i32, i32)>, Value) {
        let sets = self.sets.iter().zip(&self.pods);
        let mut seen: Vec<(Value, i32, i32)> = sets
            .map(|(set, (running, ready))| {
                (set["spec"]["template"]["spec"]["containers"][0]["image"].clone(), *running, *ready)
            })
            .filter(|(_, running, _)| *running > 0)
            .collect();
        seen.sort_by_key(|(image, ..)| image.to_string());
        let status = &self.deployment["status"];
        (seen, json!([status["updatedReplicas"], status["availableReplicas"], status["replicas"]]))
    }
}

#[test]
fn the_first_step_makes_the_whole_set_at_once() {
    let outcome = reconcile(&deployment(3, "v1", json!({})), &[], &[], now());
    let Some(Effect::Create { body, target }) =
        outcome.effects.iter().find(|e| matches!(e, Effect::Create { .. }))
    else {
        panic!("{outcome:?}")
    };
    assert_eq!(body["spec"]["replicas"], 3);
    let hash = body["metadata"]["labels"][TEMPLATE_HASH].as_str().unwrap();
    assert_eq!(target.name, format!("web-{hash}"));
    assert_eq!(body["spec"]["selector"]["matchLabels"][TEMPLATE_HASH], hash);
    assert_eq!(body["spec"]["template"]["metadata"]["labels"][TEMPLATE_HASH], hash);
    assert_eq!(body["metadata"]["annotations"][REVISION], "1");
}

#[test]
fn a_finished_roll_out_says_what_kubectl_waits_for() {
    let mut model = Model::new(&deployment(3, "v1", json!({})));
    model.settle();
    let status = &model.deployment["status"];
    for field in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
        assert_eq!(status[field], 3, "{field}");
    }
    assert_eq!(status["observedGeneration"], 1);
    let reasons: Vec<&str> =
        status["conditions"].as_array().unwrap().iter().map(|c| c["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["MinimumReplicasAvailable", "NewReplicaSetAvailable"]);
    assert_eq!(model.deployment["metadata"]["annotations"][REVISION], "1");
}

#[test]
fn going_back_reuses_the_old_set_under_a_new_revision() {
    let mut model = Model::new(&deployment(2, "v1", json!({})));
    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    model.settle();
    model.change(image("v2"));
    model.settle();
    assert_eq!(model.deployment["metadata"]["annotations"][REVISION], "2");
    model.change(image("v1"));
    model.settle();
    assert_eq!(model.sets.len(), 2);
    assert_eq!(model.deployment["metadata"]["annotations"][REVISION], "3");
    let first = &model.sets[0];
    assert_eq!(first["spec"]["replicas"], 2);
    assert_eq!(first["metadata"]["annotations"][HISTORY], "1");
}

#[test]
fn history_is_kept_only_as_long_as_asked() {
    let mut model = Model::new(&deployment(1, "v0", json!({"spec": {"revisionHistoryLimit": 2}})));
    for version in 0..5 {
        model.change(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": format!("v{version}")}]}}}}));
        model.settle();
    }
    let revisions: Vec<&str> =
        model.sets.iter().map(|set| set["metadata"]["annotations"][REVISION].as_str().unwrap()).collect();
    assert_eq!(revisions, ["3", "4", "5"]);
}

#[test]
fn recreate_waits_until_the_last_old_pod_is_gone() {
    let recreate = json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}}});
    let mut model = Model::new(&deployment(2, "v1", recreate));
    model.settle();
    model.change(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}));
    model.reconcile();
    assert_eq!((model.sets.len(), model.wanted(0)), (1, 0), "nothing new yet");
    let set = model.sets[0]["metadata"]["uid"].as_str().unwrap().to_owned();
    let going = crate::controllers::testing::pod(
        "p",
        "app=web",
        Some(("ReplicaSet", "web", &set)),
        json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
    );
    let waits = reconcile(&model.deployment(), &model.sets(), &[going], now());
    assert!(!waits.effects.iter().any(|effect| matches!(effect, Effect::Create { .. })), "{waits:?}");
    model.settle();
    assert_eq!(model.outcome().0, [(json!("v2"), 2, 2)]);
}

#[test]
fn a_paused_deployment_is_resized_but_not_rolled() {
    let mut model = Model::new(&deployment(2, "v1", json!({})));
    model.settle();
    model.change(json!({"spec": {"paused": true, "replicas": 4, "template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}));
    model.settle();
    assert_eq!(model.outcome().0, [(json!("v1"), 4, 4)]);
    model.change(json!({"spec": {"paused": false}}));
    model.settle();
    assert_eq!(model.outcome().0, [(json!("v2"), 4, 4)]);
}

#[test]
fn a_new_size_in_the_middle_of_a_roll_out_is_shared() {
    let mut model = Model::new(&deployment(
        10,
        "v1",
        json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}}}),
    ));
    model.settle();
    model.change(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}));
    model.reconcile();
    model.reconcile();
    assert_eq!(
        (model.wanted(0), model.wanted(1)),
        (8, 3),
        "surge first, then as many old ones as may be missing"
    );
    model.change(json!({"spec": {"replicas": 15}}));
    model.reconcile();
    assert_eq!(model.wanted(0) + model.wanted(1), 18);
    assert!(model.wanted(0) > 8 && model.wanted(1) > 3, "{} {}", model.wanted(0), model.wanted(1));
}

#[test]
fn a_stuck_roll_out_says_so_after_its_deadline_and_not_before() {
    let mut model = Model::new(&deployment(1, "v1", json!({"spec": {"progressDeadlineSeconds": 60}})));
    while model.reconcile() {}
    model.scale_one(0);
    model.report(0);
    while model.reconcile() {}
    let at = |after: i64| reconcile(&model.deployment(), &model.sets(), &[], now() + meta::seconds(after));
    assert_eq!(at(20).recheck, Some(std::time::Duration::from_secs(40)));
    let late = at(60);
    let Some(Effect::MergeStatus { body, .. }) = late.effects.last() else { panic!("{late:?}") };
    let progressing = &body["status"]["conditions"][1];
    assert_eq!(
        (&progressing["status"], &progressing["reason"]),
        (&json!("False"), &json!("ProgressDeadlineExceeded"))
    );
}

#[derive(Clone, Debug)]
enum Happening {
    Look,
    Scale(usize),
    Ready(usize),
    Report(usize),
    Image(u8),
    Size(i32),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => Just(Happening::Look),
        4 => (0..4usize).prop_map(Happening::Scale),
        3 => (0..4usize).prop_map(Happening::Ready),
        4 => (0..4usize).prop_map(Happening::Report),
        1 => (1..4u8).prop_map(Happening::Image),
        1 => (0..6i32).prop_map(Happening::Size),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happened on the way, the end depends only on what is asked for last.
    #[test]
    fn any_order_of_events_ends_in_the_same_state(
        happenings in prop::collection::vec(happening(), 0..60), surge in 0..3i32, unavailable in 0..3i32, size in 0..5i32,
    ) {
        let rolling = json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}});
        let last = json!({"spec": {"replicas": size, "template": {"spec": {"containers": [{"name": "c", "image": "last"}]}}}});
        let mut model = Model::new(&deployment(3, "v0", rolling));
        for happening in happenings {
            match happening {
                Happening::Look => { model.reconcile(); }
                Happening::Scale(set) if set < model.sets.len() => { model.scale_one(set); }
                Happening::Ready(set) if set < model.sets.len() => { model.ready_one(set); }
                Happening::Report(set) if set < model.sets.len() => { model.report(set); }
                Happening::Image(version) => model.change(
                    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": format!("v{version}")}]}}}})),
                Happening::Size(size) => model.change(json!({"spec": {"replicas": size}})),
                _ => {}
            }
        }
        model.change(last);
        model.settle();
        let expected = if size == 0 { vec![] } else { vec![(json!("last"), size, size)] };
        prop_assert_eq!(model.outcome(), (expected, json!([size, size, size])));
        prop_assert!(!model.reconcile(), "a settled deployment is left alone");
    }

    /// At every moment of a roll-out, enough pods serve and not too many run.
    #[test]
    fn a_roll_out_keeps_its_promises_at_every_step(
        order in prop::collection::vec((0..4usize, 0..4u8), 1..200), size in 1..6i32, surge in 0..3i32, unavailable in 0..3i32,
    ) {
        let rolling = json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}});
        let mut model = Model::new(&deployment(size, "v1", rolling));
        model.settle();
        model.change(json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "v2"}]}}}}));
        let may_miss = if surge == 0 && unavailable == 0 { 1 } else { unavailable.min(size) };
        for (set, what) in order {
            let set = set % model.sets.len();
            match what {
                0 => { model.reconcile(); }
                1 => { model.scale_one(set); }
                2 => { model.ready_one(set); }
                _ => { model.report(set); }
            }
            prop_assert!(model.available() >= size - may_miss, "{} of {size} serve, {may_miss} may be missing", model.available());
            let asked: i32 = (0..model.sets.len()).map(|set| model.wanted(set)).sum();
            prop_assert!(asked <= size + surge, "{asked} of {size} asked for, {surge} more may be");
        }
    }
}
