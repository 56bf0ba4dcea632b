//! What a new kubelet finds of a pod that an earlier one ran, and how it takes it over.
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::bundle::{AttemptDir, Exit, Started, read_json};
use super::containers::{exit_of, find_container};
use super::lifecycle::{Container, State};
use super::monitor::kill_cgroup;
use super::sandbox::{PodNetwork, Record};
use super::sources::{Gathered, gather};
use super::volumes::Volumes;
use super::worker::{End, Ready, Sandbox, Worker};

/// How long a monitor that was being started when the kubelet died gets to write down what came of it.
const STARTING_GRACE: Duration = Duration::from_secs(1);

enum Found {
    Nothing,
    Exited(Exit),
    Running(Started),
}

impl Worker {
    pub(super) async fn recover(&mut self) {
        if let Some(record) = self.read_record() {
            self.start_time = record.start_time;
            match record.network {
                PodNetwork::Making(_) => self.forget_half_made(record).await,
                PodNetwork::Node { .. } | PodNetwork::Attached(..) => self.adopt(record).await,
                PodNetwork::Released => {
                    self.recover_containers(&record).await;
                    self.record = Some(record);
                    self.sandbox = Sandbox::Released;
                    self.end(End::Over, Duration::ZERO);
                }
            }
        }
        self.note_deletion();
    }

    fn read_record(&self) -> Option<Record> {
        Record::read(&self.dir).unwrap_or_else(|error| {
            tracing::warn!(pod = self.name(), "starting afresh: {error}");
            None
        })
    }

    async fn forget_half_made(&mut self, mut record: Record) {
        let sandboxes = &self.shared.sandboxes;
        let mut rest = Duration::from_millis(100);
        while let Err(error) = sandboxes.release_network(&mut record).await {
            tracing::warn!(pod = self.name(), "half-made network not removed yet: {error}");
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(Duration::from_secs(5));
        }
    }

    async fn adopt(&mut self, record: Record) {
        let gathered =
            gather(&self.shared.client, &self.pod, &Gathered::default()).await.unwrap_or_else(|error| {
                tracing::warn!(pod = self.name(), "{error}");
                Gathered::default()
            });
        let volumes = Volumes::existing(&self.dir.volumes(), &self.pod);
        let started = self.recover_containers(&record).await;
        self.use_sandbox(Ready { record, gathered, volumes });
        for (name, started) in started {
            self.adopt_container(&name, started);
        }
    }

    /// Reads each container's last attempts; returns those that run.
    async fn recover_containers(&mut self, record: &Record) -> Vec<(String, Started)> {
        let mut running = Vec::new();
        for index in 0..self.containers.len() {
            let name = self.containers[index].name.clone();
            let attempt = last_attempt(&self.dir.container(&name));
            if attempt == 0 {
                continue;
            }
            let found = find(&self.dir.attempt(&name, attempt), &record.container_cgroup(&name)).await;
            let last = read_json(&self.dir.attempt(&name, attempt - 1).exit()).unwrap_or_default();
            let container = &mut self.containers[index];
            container.attempt = attempt;
            container.last = last;
            container.backoff = backoff_after(attempt);
            match found {
                Found::Nothing => container.attempt = attempt - 1,
                Found::Exited(exit) => container.state = State::Exited(exit),
                Found::Running(started) => {
                    container.state = State::Starting;
                    running.push((name, started));
                }
            }
        }
        running
    }

    /// A container that ran on keeps the readiness it had, until its probes say otherwise.
    fn adopt_container(&mut self, name: &str, started: Started) {
        let known = known_status(&self.pod, name);
        let Some(container) = self.container(name) else { return };
        let attempt = container.attempt;
        container.state = State::Running { started_at: started.started_at };
        let spec = self.spec();
        let Some((container_spec, _)) = find_container(&spec, name) else { return };
        let Some(container) = self.container(name) else { return };
        container.started =
            container_spec.startup_probe.is_none() || known.as_ref().is_some_and(|s| s.started == Some(true));
        container.ready = container.started
            && (container_spec.readiness_probe.is_none() || known.is_some_and(|status| status.ready));
        self.watch_exit(name, attempt, started.clone());
        self.begin_probes(&container_spec, attempt, started.started_at);
    }
}

fn last_attempt(dir: &std::path::Path) -> u32 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).max().unwrap_or(0)
}

/// The rest that the attempts so far have earned.
fn backoff_after(attempt: u32) -> Duration {
    let mut container = Container::new("", super::lifecycle::Role::Main);
    let exit = Exit::unseen("", None, Timestamp::UNIX_EPOCH);
    for _ in 1..attempt.min(10) {
        container.state = State::Exited(exit.clone());
        container.backoff = container.next_backoff();
    }
    container.backoff
}

async fn find(dir: &AttemptDir, cgroup: &std::path::Path) -> Found {
    let begun = tokio::time::Instant::now();
    loop {
        let exit = read_json::<Exit>(&dir.exit()).ok().flatten();
        let started = read_json::<Started>(&dir.started()).ok().flatten();
        match (exit, started) {
            (Some(exit), _) => return Found::Exited(exit),
            (None, Some(started)) if started.monitor.is_alive() => return Found::Running(started),
            (None, Some(started)) => {
                return match exit_of(dir, cgroup, &started).await {
                    Ok(exit) => Found::Exited(exit),
                    Err(error) => Found::Exited(Exit::unseen(&error.to_string(), None, Timestamp::now())),
                };
            }
            (None, None) if begun.elapsed() > STARTING_GRACE => break,
            (None, None) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    // Never more than an order to start: it is carried out again under the same number.
    for failed in [kill_cgroup(cgroup).err(), std::fs::remove_dir_all(&dir.0).err()].into_iter().flatten() {
        tracing::debug!("{}: {failed}", dir.0.display());
    }
    Found::Nothing
}

fn known_status(pod: &Pod, name: &str) -> Option<ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|known| known.name == name).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_are_earned_by_attempts() {
        let seconds: Vec<_> =
            [1, 2, 3, 4, 99].into_iter().map(|attempt| backoff_after(attempt).as_secs()).collect();
        assert_eq!(seconds, [0, 10, 20, 40, 300]);
    }
}
