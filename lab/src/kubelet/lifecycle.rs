//! Which containers of a pod are to be started or stopped now, and whether the pod is over.
//! Pure: the pod's state and the time are arguments; worker.rs does what this says.
use std::time::Duration;

use jiff::Timestamp;

use super::bundle::Exit;

const FIRST_BACKOFF: Duration = Duration::from_secs(10);
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);
/// A container that ran this long is forgiven its earlier failures.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container that stays: the next one starts once it has started.
    Sidecar,
    Main,
    /// Added to a running pod to look into it; never restarted.
    Ephemeral,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not yet started, or about to be started again.
    Waiting,
    /// Could not be started for now; the reason is shown.
    Blocked {
        reason: &'static str,
        message: String,
        retry_at: Timestamp,
    },
    Starting,
    Running {
        started_at: Timestamp,
    },
    Exited(Exit),
}

/// One container as far as decisions and the status need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub name: String,
    pub role: Role,
    pub state: State,
    /// The number of the current attempt; 0 before the first.
    pub attempt: u32,
    /// How the attempt before the current one ended.
    pub last: Option<Exit>,
    /// Whether it has passed its startup probe, if it has one.
    pub started: bool,
    pub ready: bool,
    /// How long it must rest after its next end; zero before the first restart.
    pub backoff: Duration,
}

impl Container {
    pub fn new(name: &str, role: Role) -> Self {
        Self {
            name: name.to_owned(),
            role,
            state: State::Waiting,
            attempt: 0,
            last: None,
            started: false,
            ready: false,
            backoff: Duration::ZERO,
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Whether a process of it may be there.
    pub fn is_live(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Starting)
    }

    fn exit(&self) -> Option<&Exit> {
        if let State::Exited(exit) = &self.state { Some(exit) } else { None }
    }

    /// When an ended container may be started again.
    fn due(&self, exit: &Exit) -> Timestamp {
        exit.finished_at + self.backoff
    }

    /// Whether it rests before its next start.
    pub fn in_backoff(&self, policy: RestartPolicy) -> bool {
        self.exit().is_some_and(|exit| self.backoff > Duration::ZERO && self.restarts_after(exit, policy))
    }

    fn restarts_after(&self, exit: &Exit, policy: RestartPolicy) -> bool {
        match self.role {
            Role::Sidecar => true,
            Role::Ephemeral => false,
            Role::Init => !exit.success() && policy != RestartPolicy::Never,
            Role::Main => match policy {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => !exit.success(),
                RestartPolicy::Never => false,
            },
        }
    }

    /// The rest to keep after the end that is now being answered with a new start.
    pub fn next_backoff(&self) -> Duration {
        let Some(exit) = self.exit() else { return self.backoff };
        let ran = exit.started_at.map(|start| exit.finished_at.duration_since(start));
        let forgiven = ran.is_some_and(|ran| ran >= FORGIVEN_AFTER.try_into().unwrap_or_default());
        if self.backoff.is_zero() || forgiven {
            return FIRST_BACKOFF;
        }
        (self.backoff * 2).min(LONGEST_BACKOFF)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Succeeded,
    Failed,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    pub start: Vec<String>,
    pub stop: Vec<String>,
    /// When to decide again if nothing happens before.
    pub wake_at: Option<Timestamp>,
    /// Set when no container will run again.
    pub over: Option<Over>,
}

/// Decides for a pod that is to run.
pub fn decide(containers: &[Container], policy: RestartPolicy, now: Timestamp) -> Decision {
    let mut deciding = Deciding { policy, now, decision: Decision::default() };
    match deciding.initialise(containers) {
        Initialised::No => {}
        Initialised::Failed => {
            let started_live = containers.iter().filter(|c| c.is_live()).map(|c| c.name.clone());
            deciding.decision = Decision { stop: started_live.collect(), ..Decision::default() };
            if deciding.decision.stop.is_empty() {
                deciding.decision.over = Some(Over::Failed);
            }
        }
        Initialised::Yes => deciding.run(containers),
    }
    deciding.decision
}

enum Initialised {
    No,
    Failed,
    Yes,
}

struct Deciding {
    policy: RestartPolicy,
    now: Timestamp,
    decision: Decision,
}

impl Deciding {
    /// Takes the init containers in order up to the first that is not through.
    fn initialise(&mut self, containers: &[Container]) -> Initialised {
        let main_began = containers.iter().any(|c| c.role == Role::Main && c.attempt > 0);
        for container in containers {
            match container.role {
                Role::Init if main_began || container.exit().is_some_and(Exit::success) => {}
                Role::Init => {
                    let failed = container.exit().is_some_and(|exit| !exit.success());
                    if failed && self.policy == RestartPolicy::Never {
                        return Initialised::Failed;
                    }
                    self.start_or_wait(container);
                    return Initialised::No;
                }
                Role::Sidecar => {
                    self.start_or_wait(container);
                    if !(main_began || container.is_running() && container.started) {
                        return Initialised::No;
                    }
                }
                Role::Main | Role::Ephemeral => {}
            }
        }
        Initialised::Yes
    }

    fn run(&mut self, containers: &[Container]) {
        let mut ended = Vec::new();
        for container in containers {
            match (container.role, container.exit()) {
                (Role::Main, Some(exit)) if !container.restarts_after(exit, self.policy) => ended.push(exit),
                (Role::Main, _) => self.start_or_wait(container),
                (Role::Ephemeral, None) => self.start_or_wait(container),
                _ => {}
            }
        }
        if ended.len() == containers.iter().filter(|c| c.role == Role::Main).count() {
            self.finish(containers, ended.iter().all(|exit| exit.success()));
        }
    }

    /// Every main container is through: what is left is stopped, then the pod is over.
    fn finish(&mut self, containers: &[Container], all_succeeded: bool) {
        let live: Vec<_> = containers.iter().filter(|c| c.is_live()).map(|c| c.name.clone()).collect();
        self.decision = Decision { stop: live, ..Decision::default() };
        if self.decision.stop.is_empty() {
            self.decision.over = Some(if all_succeeded { Over::Succeeded } else { Over::Failed });
        }
    }

    fn start_or_wait(&mut self, container: &Container) {
        let due = match &container.state {
            State::Waiting => self.now,
            State::Blocked { retry_at, .. } => *retry_at,
            State::Exited(exit) => container.due(exit),
            State::Starting | State::Running { .. } => return,
        };
        if due <= self.now {
            self.decision.start.push(container.name.clone());
        } else {
            self.decision.wake_at = Some(self.decision.wake_at.map_or(due, |wake| wake.min(due)));
        }
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
