//! What is started and stopped, case by case.
use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).expect("in range")
}

fn exit(code: i32, started: i64, finished: i64) -> Exit {
    Exit {
        code,
        signal: None,
        reason: String::new(),
        message: None,
        started_at: Some(at(started)),
        finished_at: at(finished),
    }
}

fn container(name: &str, role: Role, state: State) -> Container {
    let attempt = u32::from(state != State::Waiting);
    let started = matches!(state, State::Running { .. });
    Container { state, attempt, started, ..Container::new(name, role) }
}

fn running() -> State {
    State::Running { started_at: at(0) }
}

fn started(containers: &[Container], policy: RestartPolicy) -> Vec<String> {
    decide(containers, policy, at(100)).start
}

#[test]
fn init_containers_run_one_after_the_other_before_the_main_ones() {
    let pod = |first: State, second: State| {
        vec![
            container("a", Role::Init, first),
            container("b", Role::Init, second),
            container("m", Role::Main, State::Waiting),
            container("n", Role::Main, State::Waiting),
        ]
    };
    let done = || State::Exited(exit(0, 0, 1));
    assert_eq!(started(&pod(State::Waiting, State::Waiting), RestartPolicy::Always), ["a"]);
    assert!(started(&pod(running(), State::Waiting), RestartPolicy::Always).is_empty());
    assert_eq!(started(&pod(done(), State::Waiting), RestartPolicy::Always), ["b"]);
    assert_eq!(started(&pod(done(), done()), RestartPolicy::Always), ["m", "n"]);
}

#[test]
fn a_failed_init_container_is_tried_again_or_fails_the_pod() {
    let pod = [
        container("a", Role::Init, State::Exited(exit(1, 0, 1))),
        container("m", Role::Main, State::Waiting),
    ];
    assert_eq!(started(&pod, RestartPolicy::OnFailure), ["a"]);
    let decision = decide(&pod, RestartPolicy::Never, at(100));
    assert_eq!((decision.over, decision.start.len()), (Some(Over::Failed), 0));
}

#[test]
fn a_sidecar_lets_the_next_one_go_once_started_and_is_stopped_last() {
    let pod = |sidecar: State, started: bool, main: State| {
        let mut sidecar = container("s", Role::Sidecar, sidecar);
        sidecar.started = started;
        vec![sidecar, container("m", Role::Main, main)]
    };
    assert_eq!(started(&pod(State::Waiting, false, State::Waiting), RestartPolicy::Never), ["s"]);
    assert!(started(&pod(running(), false, State::Waiting), RestartPolicy::Never).is_empty());
    assert_eq!(started(&pod(running(), true, State::Waiting), RestartPolicy::Never), ["m"]);
    let ended = State::Exited(exit(0, 0, 1));
    let decision = decide(&pod(running(), true, ended.clone()), RestartPolicy::Never, at(100));
    assert_eq!((decision.stop, decision.over), (vec!["s".to_owned()], None));
    let decision = decide(&pod(ended.clone(), true, ended), RestartPolicy::Never, at(100));
    assert_eq!((decision.start.len(), decision.over), (0, Some(Over::Succeeded)));
    let crashed = State::Exited(exit(1, 0, 1));
    assert_eq!(
        started(&pod(crashed, true, running()), RestartPolicy::Never),
        ["s"],
        "a sidecar always restarts"
    );
}

#[test]
fn the_restart_policy_decides_after_an_end() {
    for (policy, code, restarts, over) in [
        (RestartPolicy::Always, 0, true, None),
        (RestartPolicy::Always, 1, true, None),
        (RestartPolicy::OnFailure, 0, false, Some(Over::Succeeded)),
        (RestartPolicy::OnFailure, 1, true, None),
        (RestartPolicy::Never, 0, false, Some(Over::Succeeded)),
        (RestartPolicy::Never, 1, false, Some(Over::Failed)),
    ] {
        let pod = [container("m", Role::Main, State::Exited(exit(code, 0, 1)))];
        let decision = decide(&pod, policy, at(100));
        assert_eq!(!decision.start.is_empty(), restarts, "{policy:?} {code}");
        assert_eq!(decision.over, over, "{policy:?} {code}");
    }
}

#[test]
fn rests_double_up_to_five_minutes_and_are_forgiven() {
    let mut crashing = container("m", Role::Main, State::Exited(exit(1, 0, 1)));
    let mut rests = Vec::new();
    for _ in 0..7 {
        rests.push(crashing.backoff.as_secs());
        crashing.backoff = crashing.next_backoff();
    }
    assert_eq!(rests, [0, 10, 20, 40, 80, 160, 300]);
    crashing.state = State::Exited(exit(1, 0, 700));
    assert_eq!(crashing.next_backoff(), FIRST_BACKOFF);
}

#[test]
fn a_resting_container_waits_exactly_until_it_is_due() {
    let mut crashed = container("m", Role::Main, State::Exited(exit(1, 0, 95)));
    crashed.backoff = Duration::from_secs(10);
    assert!(crashed.in_backoff(RestartPolicy::Always));
    assert!(!crashed.in_backoff(RestartPolicy::Never));
    let decision = decide(&[crashed.clone()], RestartPolicy::Always, at(100));
    assert_eq!((decision.start.len(), decision.wake_at), (0, Some(at(105))));
    assert_eq!(decide(&[crashed], RestartPolicy::Always, at(105)).start, ["m"]);
}

#[test]
fn a_blocked_container_is_tried_when_its_time_comes() {
    let blocked = State::Blocked { reason: "x", message: String::new(), retry_at: at(101) };
    let pod = [container("m", Role::Main, blocked)];
    assert_eq!(decide(&pod, RestartPolicy::Always, at(100)).wake_at, Some(at(101)));
    assert_eq!(decide(&pod, RestartPolicy::Always, at(101)).start, ["m"]);
}

#[test]
fn an_ephemeral_container_runs_once_and_keeps_no_pod_alive() {
    let pod = |ephemeral: State| {
        vec![container("m", Role::Main, running()), container("e", Role::Ephemeral, ephemeral)]
    };
    assert_eq!(started(&pod(State::Waiting), RestartPolicy::Always), ["e"]);
    assert!(started(&pod(State::Exited(exit(1, 0, 1))), RestartPolicy::Always).is_empty());
    let over = [
        container("m", Role::Main, State::Exited(exit(0, 0, 1))),
        container("e", Role::Ephemeral, State::Exited(exit(1, 0, 1))),
    ];
    assert_eq!(decide(&over, RestartPolicy::Never, at(100)).over, Some(Over::Succeeded));
}
