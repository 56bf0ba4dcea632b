//! The status of a pod as a pure function of what its containers do and of the status before.
use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as ContainerSpec, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::bundle::Exit;
use super::lifecycle::{Container, RestartPolicy, Role, State};
use crate::quantity::Amount;

/// The conditions that the kubelet alone sets.
pub const OWN_CONDITIONS: [&str; 5] =
    ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// What is known of the pod beside its object.
#[derive(Clone, Debug)]
pub struct PodView<'a> {
    pub containers: &'a [Container],
    pub network: Network,
    pub pod_ips: &'a [IpAddr],
    pub host_ips: &'a [IpAddr],
    pub start_time: Timestamp,
    /// Why the pod was ended from outside its containers, if it was.
    pub ended: Option<&'a Ended>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Missing,
    Ready,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub reason: String,
    pub message: String,
}

/// The status to publish. `pod` carries the spec and the status as last seen.
pub fn pod_status(pod: &Pod, view: &PodView<'_>, now: Timestamp) -> PodStatus {
    let default_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default_spec);
    let before = pod.status.clone().unwrap_or_default();
    let policy = RestartPolicy::parse(spec.restart_policy.as_deref());
    let phase = match phase(view, policy) {
        // Over means that nothing runs: a sidecar, or a container with a grace period, may still.
        "Succeeded" | "Failed" if view.containers.iter().any(Container::is_live) => "Running",
        phase => phase,
    };
    let statuses = |wanted: &[Role]| {
        let chosen = view.containers.iter().filter(|container| wanted.contains(&container.role));
        let list: Vec<_> = chosen.map(|c| container_status(pod, spec, c, policy)).collect();
        (!list.is_empty()).then_some(list)
    };
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string);
    PodStatus {
        conditions: Some(conditions(spec, view, phase, &before, now)),
        container_statuses: statuses(&[Role::Main]),
        init_container_statuses: statuses(&[Role::Init, Role::Sidecar]),
        ephemeral_container_statuses: statuses(&[Role::Ephemeral]),
        host_ip: first(view.host_ips),
        host_ips: Some(view.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: first(view.pod_ips),
        pod_ips: (!view.pod_ips.is_empty())
            .then(|| view.pod_ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        phase: Some(phase.to_owned()),
        reason: view.ended.map(|ended| ended.reason.clone()),
        message: view.ended.map(|ended| ended.message.clone()),
        qos_class: Some(before.qos_class.unwrap_or_else(|| qos_class(spec).to_owned())),
        start_time: Some(before.start_time.unwrap_or(Time(view.start_time))),
        ..PodStatus::default()
    }
}

fn phase(view: &PodView<'_>, policy: RestartPolicy) -> &'static str {
    let of = |role: Role| view.containers.iter().filter(move |container| container.role == role);
    if view.ended.is_some() {
        return "Failed";
    }
    let (mut waiting, mut running, mut stopped, mut failed) = (0, 0, 0, 0);
    for container in of(Role::Main) {
        match &container.state {
            State::Running { .. } => running += 1,
            State::Exited(exit) => {
                stopped += 1;
                failed += usize::from(!exit.success());
            }
            _ if container.last.is_some() => stopped += 1,
            _ => waiting += 1,
        }
    }
    let initialising = of(Role::Init).find(|c| !matches!(&c.state, State::Exited(exit) if exit.success()));
    if let (Some(init), 0, 0) = (initialising, running, stopped) {
        let failed = matches!(&init.state, State::Exited(_)) && policy == RestartPolicy::Never;
        return if failed { "Failed" } else { "Pending" };
    }
    match (waiting, running) {
        (1.., _) => "Pending",
        (_, 1..) => "Running",
        _ if stopped == 0 => "Pending",
        _ if policy == RestartPolicy::Always => "Running",
        _ if failed == 0 => "Succeeded",
        _ if policy == RestartPolicy::Never => "Failed",
        _ => "Running",
    }
}

fn container_status(
    pod: &Pod,
    spec: &PodSpec,
    container: &Container,
    policy: RestartPolicy,
) -> ContainerStatus {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let id = |attempt: u32| format!("weft-lab://{uid}/{}/{attempt}", container.name);
    let image = image_of(spec, &container.name).unwrap_or_default();
    let mut last =
        container.last.as_ref().map(|exit| terminated(exit, id(container.attempt.saturating_sub(1))));
    let state = match &container.state {
        State::Exited(exit) if container.in_backoff(policy) => {
            last = Some(terminated(exit, id(container.attempt)));
            waiting("CrashLoopBackOff", Some(back_off_message(pod, container)))
        }
        State::Exited(exit) => terminated(exit, id(container.attempt)),
        State::Running { started_at } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
            ..ContainerState::default()
        },
        State::Blocked { reason, message, .. } => waiting(reason, Some(message.clone())),
        State::Waiting | State::Starting => waiting(reason_to_wait(spec), None),
    };
    let init_done =
        container.role == Role::Init && matches!(&container.state, State::Exited(e) if e.success());
    ContainerStatus {
        name: container.name.clone(),
        image_id: if image.is_empty() { String::new() } else { format!("weft-lab://{image}") },
        image,
        container_id: (container.attempt > 0).then(|| id(container.attempt)),
        restart_count: i32::try_from(container.attempt.saturating_sub(1)).unwrap_or(i32::MAX),
        started: Some(container.is_running() && container.started),
        ready: container.ready || init_done,
        state: Some(state),
        last_state: Some(last.unwrap_or_default()),
        ..ContainerStatus::default()
    }
}

/// The image the spec gives a container of any role.
pub fn image_of(spec: &PodSpec, name: &str) -> Option<String> {
    let ephemeral =
        spec.ephemeral_containers.iter().flatten().find(|c| c.name == name).map(|c| c.image.clone());
    all_containers(spec).find(|c| c.name == name).map(|c| c.image.clone()).or(ephemeral).flatten()
}

/// Init and main containers, in the order of the spec.
pub fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &ContainerSpec> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

fn reason_to_wait(spec: &PodSpec) -> &'static str {
    if spec.init_containers.as_ref().is_some_and(|inits| !inits.is_empty()) {
        "PodInitializing"
    } else {
        "ContainerCreating"
    }
}

fn back_off_message(pod: &Pod, container: &Container) -> String {
    let meta = &pod.metadata;
    format!(
        "back-off {}s restarting failed container={} pod={}_{}({})",
        container.backoff.as_secs(),
        container.name,
        meta.name.as_deref().unwrap_or_default(),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default()
    )
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated(exit: &Exit, id: String) -> ContainerState {
    let terminated = ContainerStateTerminated {
        container_id: Some(id),
        exit_code: exit.code,
        signal: exit.signal,
        reason: Some(exit.reason.clone()),
        message: exit.message.clone(),
        started_at: exit.started_at.map(Time),
        finished_at: Some(Time(exit.finished_at)),
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

struct Fact {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn conditions(
    spec: &PodSpec,
    view: &PodView<'_>,
    phase: &str,
    before: &PodStatus,
    now: Timestamp,
) -> Vec<PodCondition> {
    let earlier = before.conditions.as_deref().unwrap_or_default();
    let containers_ready = containers_ready(view, phase);
    let facts = [
        Fact {
            kind: "PodReadyToStartContainers",
            holds: view.network == Network::Ready,
            reason: None,
            message: None,
        },
        initialised(view, phase),
        ready(spec, &containers_ready, earlier),
        containers_ready,
        Fact { kind: "PodScheduled", holds: true, reason: None, message: None },
    ];
    let mut out: Vec<_> = facts.iter().map(|fact| condition(fact, earlier, now)).collect();
    // Conditions of others, such as readiness gates, are theirs to change.
    out.extend(earlier.iter().filter(|old| facts.iter().all(|fact| fact.kind != old.type_)).cloned());
    out
}

fn condition(fact: &Fact, earlier: &[PodCondition], now: Timestamp) -> PodCondition {
    let status = if fact.holds { "True" } else { "False" };
    let same = earlier.iter().find(|old| old.type_ == fact.kind && old.status == status);
    PodCondition {
        type_: fact.kind.to_owned(),
        status: status.to_owned(),
        reason: fact.reason.map(str::to_owned),
        message: fact.message.clone(),
        last_transition_time: same.and_then(|old| old.last_transition_time.clone()).or(Some(Time(now))),
        ..PodCondition::default()
    }
}

fn list_message(prefix: &str, names: &[&str]) -> Option<String> {
    Some(format!("containers with {prefix} status: [{}]", names.join(" ")))
}

fn initialised(view: &PodView<'_>, phase: &str) -> Fact {
    let kind = "Initialized";
    let incomplete: Vec<_> = view
        .containers
        .iter()
        .filter(|container| match container.role {
            Role::Init => !matches!(&container.state, State::Exited(exit) if exit.success()),
            Role::Sidecar => !container.started && container.last.is_none(),
            Role::Main | Role::Ephemeral => false,
        })
        .map(|container| container.name.as_str())
        .collect();
    if phase == "Succeeded" {
        return Fact { kind, holds: true, reason: Some("PodCompleted"), message: None };
    }
    let holds = incomplete.is_empty();
    Fact {
        kind,
        holds,
        reason: (!holds).then_some("ContainersNotInitialized"),
        message: if holds { None } else { list_message("incomplete", &incomplete) },
    }
}

fn containers_ready(view: &PodView<'_>, phase: &str) -> Fact {
    let kind = "ContainersReady";
    match phase {
        "Succeeded" => return Fact { kind, holds: false, reason: Some("PodCompleted"), message: None },
        "Failed" => return Fact { kind, holds: false, reason: Some("PodFailed"), message: None },
        _ => {}
    }
    let counted = |container: &&Container| matches!(container.role, Role::Main | Role::Sidecar);
    let unready: Vec<_> =
        view.containers.iter().filter(counted).filter(|c| !c.ready).map(|c| c.name.as_str()).collect();
    let holds = unready.is_empty();
    Fact {
        kind,
        holds,
        reason: (!holds).then_some("ContainersNotReady"),
        message: if holds { None } else { list_message("unready", &unready) },
    }
}

fn ready(spec: &PodSpec, containers: &Fact, earlier: &[PodCondition]) -> Fact {
    let kind = "Ready";
    if !containers.holds {
        return Fact { kind, holds: false, reason: containers.reason, message: containers.message.clone() };
    }
    let open = |gate: &str| earlier.iter().any(|have| have.type_ == gate && have.status == "True");
    let closed: Vec<_> = spec
        .readiness_gates
        .iter()
        .flatten()
        .map(|gate| gate.condition_type.as_str())
        .filter(|gate| !open(gate))
        .collect();
    if closed.is_empty() {
        return Fact { kind, holds: true, reason: None, message: None };
    }
    let message =
        Some(format!("corresponding condition of pod readiness gate {:?} is not True", closed.join(", ")));
    Fact { kind, holds: false, reason: Some("ReadinessGatesNotReady"), message }
}

/// Guaranteed, Burstable or BestEffort, from cpu and memory only.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let amount = |map: Option<&BTreeMap<String, Quantity>>, key: &str| {
        map.and_then(|map| Amount::parse(&map.get(key)?.0)).filter(|amount| !amount.is_zero())
    };
    let (mut any, mut guaranteed) = (false, true);
    for container in all_containers(spec) {
        for key in ["cpu", "memory"] {
            let resources = container.resources.as_ref();
            let limit = amount(resources.and_then(|r| r.limits.as_ref()), key);
            let request = amount(resources.and_then(|r| r.requests.as_ref()), key).or(limit);
            any |= request.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
