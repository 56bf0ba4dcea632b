//! Phase, conditions and container states, case by case.
use super::*;
use serde_json::json;
use std::time::Duration;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).expect("in range")
}

fn exited(code: i32) -> State {
    State::Exited(Exit {
        code,
        signal: None,
        reason: if code == 0 { "Completed" } else { "Error" }.into(),
        message: None,
        started_at: Some(at(0)),
        finished_at: at(1),
    })
}

fn container(name: &str, role: Role, state: State) -> Container {
    let running = matches!(state, State::Running { .. });
    let attempt = u32::from(state != State::Waiting);
    Container { state, attempt, started: running, ready: running, ..Container::new(name, role) }
}

fn pod(policy: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u-1"},
        "spec": {"restartPolicy": policy, "containers": [{"name": "m", "image": "nginx"}, {"name": "n"}],
                 "initContainers": [{"name": "i"}]},
    }))
    .expect("a pod")
}

fn status(pod: &Pod, containers: &[Container]) -> PodStatus {
    let view = PodView {
        containers,
        network: Network::Ready,
        pod_ips: &["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        host_ips: &["172.30.0.11".parse().unwrap()],
        start_time: at(0),
        ended: None,
    };
    pod_status(pod, &view, at(50))
}

fn running() -> State {
    State::Running { started_at: at(0) }
}

fn condition_of(status: &PodStatus, kind: &str) -> (String, Option<String>) {
    let all = status.conditions.as_deref().unwrap_or_default();
    let found = all.iter().find(|condition| condition.type_ == kind).expect(kind);
    (found.status.clone(), found.reason.clone())
}

#[test]
fn the_phase_follows_the_containers() {
    let waiting = || State::Waiting;
    for (policy, init, first, second, expected) in [
        ("Always", waiting(), waiting(), waiting(), "Pending"),
        ("Always", exited(1), waiting(), waiting(), "Pending"),
        ("Never", exited(1), waiting(), waiting(), "Failed"),
        ("Always", exited(0), waiting(), running(), "Pending"),
        ("Always", exited(0), running(), running(), "Running"),
        ("Always", exited(0), running(), exited(1), "Running"),
        ("Always", exited(0), exited(0), exited(0), "Running"),
        ("OnFailure", exited(0), exited(0), exited(1), "Running"),
        ("OnFailure", exited(0), exited(0), exited(0), "Succeeded"),
        ("Never", exited(0), exited(0), exited(0), "Succeeded"),
        ("Never", exited(0), exited(0), exited(1), "Failed"),
        ("Never", exited(0), running(), exited(1), "Running"),
    ] {
        let containers = [
            container("i", Role::Init, init),
            container("m", Role::Main, first.clone()),
            container("n", Role::Main, second.clone()),
        ];
        let status = status(&pod(policy), &containers);
        assert_eq!(status.phase.as_deref(), Some(expected), "{policy} {first:?} {second:?}");
    }
}

#[test]
fn a_pod_is_not_over_while_a_sidecar_runs() {
    let work = container("m", Role::Main, exited(0));
    let with = |sidecar: State| {
        status(&pod("Never"), &[container("s", Role::Sidecar, sidecar), work.clone()]).phase.expect("a phase")
    };
    assert_eq!((with(running()).as_str(), with(exited(0)).as_str()), ("Running", "Succeeded"));
}

#[test]
fn conditions_say_what_is_missing() {
    let not_initialised = status(&pod("Always"), &[container("i", Role::Init, running())]);
    assert_eq!(
        condition_of(&not_initialised, "Initialized"),
        ("False".into(), Some("ContainersNotInitialized".into()))
    );
    let mut unready = container("m", Role::Main, running());
    unready.ready = false;
    let status = status(&pod("Always"), &[unready]);
    assert_eq!(condition_of(&status, "Ready"), ("False".into(), Some("ContainersNotReady".into())));
    assert_eq!(condition_of(&status, "PodReadyToStartContainers"), ("True".into(), None));
    assert_eq!(condition_of(&status, "PodScheduled"), ("True".into(), None));
}

#[test]
fn a_transition_time_stays_while_the_condition_does_and_foreign_conditions_are_kept() {
    let mut pod = pod("Always");
    let containers = [container("m", Role::Main, running())];
    let mut first = status(&pod, &containers);
    let conditions = first.conditions.get_or_insert_default();
    conditions.iter_mut().for_each(|condition| condition.last_transition_time = Some(Time(at(7))));
    conditions.push(PodCondition {
        type_: "example.org/gate".into(),
        status: "False".into(),
        ..Default::default()
    });
    pod.spec.as_mut().expect("a spec").readiness_gates =
        Some(vec![serde_json::from_value(json!({"conditionType": "example.org/gate"})).expect("a gate")]);
    pod.status = Some(first);
    let second = status(&pod, &containers);
    assert_eq!(condition_of(&second, "Ready"), ("False".into(), Some("ReadinessGatesNotReady".into())));
    assert_eq!(condition_of(&second, "example.org/gate").0, "False");
    for condition in second.conditions.as_deref().unwrap_or_default() {
        let expected = match condition.type_.as_str() {
            "Ready" => Some(Time(at(50))),
            "example.org/gate" => None,
            _ => Some(Time(at(7))),
        };
        assert_eq!(condition.last_transition_time, expected, "{}", condition.type_);
    }
}

#[test]
fn a_crashing_container_shows_its_rest_and_its_last_end() {
    let mut crashing = container("m", Role::Main, exited(3));
    crashing.attempt = 2;
    crashing.backoff = Duration::from_secs(10);
    let status = status(&pod("Always"), &[crashing]);
    let container = &status.container_statuses.expect("statuses")[0];
    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref()).expect("waiting");
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(
        waiting.message.as_deref(),
        Some("back-off 10s restarting failed container=m pod=web_shop(u-1)")
    );
    let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref()).expect("terminated");
    assert_eq!((last.exit_code, container.restart_count, container.ready), (3, 1, false));
    assert_eq!(container.container_id.as_deref(), Some("weft-lab://u-1/m/2"));
    assert_eq!((container.image.as_str(), container.image_id.as_str()), ("nginx", "weft-lab://nginx"));
}

#[test]
fn an_ended_pod_is_failed_and_says_why() {
    let containers = [container("m", Role::Main, exited(0))];
    let ended = Ended { reason: "DeadlineExceeded".into(), message: "too long".into() };
    let view = PodView {
        containers: &containers,
        network: Network::Missing,
        pod_ips: &[],
        host_ips: &[],
        start_time: at(0),
        ended: Some(&ended),
    };
    let status = pod_status(&pod("Never"), &view, at(9));
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("DeadlineExceeded"))
    );
    assert_eq!(condition_of(&status, "Ready"), ("False".into(), Some("PodFailed".into())));
}

#[test]
fn addresses_and_the_quality_of_service_are_told() {
    let status = status(&pod("Always"), &[container("m", Role::Main, running())]);
    assert_eq!(status.pod_ip.as_deref(), Some("10.0.0.7"));
    assert_eq!(status.pod_ips.expect("addresses").len(), 2);
    assert_eq!(status.host_ip.as_deref(), Some("172.30.0.11"));
    for (resources, expected) in [
        (json!({}), "BestEffort"),
        (json!({"requests": {"cpu": "1"}}), "Burstable"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}}), "Guaranteed"),
        (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
    ] {
        let spec = json!({"containers": [{"name": "m", "resources": resources}]});
        assert_eq!(qos_class(&serde_json::from_value(spec).expect("a spec")), expected, "{resources}");
    }
}
