//! Stops one container: its preStop hook, the polite signal, and at the deadline the end of its cgroup.
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::LifecycleHandler;
use tokio::sync::watch;
use tokio::time::Instant;

use super::bundle::{Started, read_json};
use super::monitor::kill_cgroup;
use super::prober::{Target, run_hook};

/// What a stop needs to know.
pub struct Stop {
    pub target: Target,
    pub cgroup: PathBuf,
    pub hook: Option<LifecycleHandler>,
    /// May move closer while the stop is under way.
    pub deadline: watch::Receiver<Instant>,
}

/// After a hook that used up its time, a container still gets this long to react to the signal.
const LEAST_NOTICE: Duration = Duration::from_secs(2);

/// Runs until the cgroup is killed; the caller drops it when the container has ended before.
/// Returns what went wrong with the hook.
pub async fn stop(mut stop: Stop) -> Option<String> {
    let mut complaint = None;
    let begun = Instant::now();
    if let Some(hook) = stop.hook.take() {
        let left = stop.deadline.borrow().saturating_duration_since(begun);
        let hook_run = run_hook(&stop.target, &hook, left);
        let failure = tokio::select! {
            result = hook_run => result.err(),
            () = reached(&mut stop.deadline) => Some("it did not end in the grace period".to_owned()),
        };
        complaint = failure.map(|message| format!("preStop hook failed: {message}"));
    }
    signal(&stop, libc::SIGTERM);
    let hook_ran_out = *stop.deadline.borrow() <= Instant::now() && begun.elapsed() > LEAST_NOTICE;
    if hook_ran_out {
        tokio::time::sleep(LEAST_NOTICE).await;
    } else {
        reached(&mut stop.deadline).await;
    }
    if let Err(error) = kill_cgroup(&stop.cgroup) {
        complaint = Some(format!("cannot be killed: {error}"));
    }
    complaint
}

fn signal(stop: &Stop, signal: i32) {
    let started = read_json::<Started>(&stop.target.dir.started());
    let pidfd = started.ok().flatten().and_then(|started| started.process.open().ok().flatten());
    if let Some(pidfd) = pidfd {
        // The container may have ended just now, which is what is wanted.
        let _ = pidfd.signal(signal);
    }
}

async fn reached(deadline: &mut watch::Receiver<Instant>) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            changed = deadline.changed() => {
                if changed.is_err() {
                    tokio::time::sleep_until(at).await;
                    return;
                }
            }
        }
    }
}
