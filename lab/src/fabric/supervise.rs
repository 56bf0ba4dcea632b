//! Keeps the fabric's processes running: starts each, starts it again when it dies, stops when told.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::warn;

use super::process::{Identity, Program};
use super::{Progress, Report};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A process that ran this long before it died starts again at once.
const PROVEN: Duration = Duration::from_secs(10);

/// How long to wait before the next start. Pure, so that the whole sequence is a test.
#[derive(Clone, Copy, Debug)]
pub struct BackOff {
    pause: Duration,
}

impl BackOff {
    pub fn new() -> Self {
        Self { pause: FIRST_PAUSE }
    }

    pub fn after_run(&mut self, ran: Duration) -> Duration {
        let pause = if ran >= PROVEN { FIRST_PAUSE } else { self.pause };
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }
}

/// The running processes of one fabric.
pub struct Supervisor {
    records: PathBuf,
    report: Arc<Report>,
    stop: watch::Sender<bool>,
    keepers: JoinSet<()>,
}

impl Supervisor {
    pub fn new(records: PathBuf, report: Arc<Report>) -> Self {
        Self { records, report, stop: watch::Sender::new(false), keepers: JoinSet::new() }
    }

    /// Starts a process and keeps it running until `stop`.
    pub fn keep(&mut self, program: Program) {
        let (records, report, stop) = (self.records.clone(), self.report.clone(), self.stop.subscribe());
        self.keepers.spawn(keep(program, records, report, stop));
    }

    /// Ends all processes, and returns when the last is gone.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.keepers.join_next().await.is_some() {}
    }
}

async fn keep(program: Program, records: PathBuf, report: Arc<Report>, mut stop: watch::Receiver<bool>) {
    let mut back_off = BackOff::new();
    loop {
        let started = Instant::now();
        let why = run_once(&program, &records, stop.clone()).await;
        if *stop.borrow() {
            return;
        }
        let pause = back_off.after_run(started.elapsed());
        warn!(process = program.name, %why, "process ended, starting it again");
        report(Progress::Restarting { process: program.name.clone(), why });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = told(&mut stop) => return,
        }
    }
}

/// Returns when told to stop, or when nobody is left to tell.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Runs the process to its end, or ends it when told to stop. Says why it ended.
async fn run_once(program: &Program, records: &std::path::Path, mut stop: watch::Receiver<bool>) -> String {
    let mut child = match program.start() {
        Ok(child) => child,
        Err(e) => return format!("cannot start {}: {e}", program.exe.display()),
    };
    let identity = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Identity::of);
    if let Some(Err(e)) = identity.map(|identity| identity.record(records, &program.name)) {
        warn!(process = program.name, "cannot record the process: {e}");
    }
    let ended = tokio::select! {
        status = child.wait() => Some(status),
        () = told(&mut stop) => None,
    };
    match ended {
        Some(Ok(status)) => status.to_string(),
        Some(Err(e)) => format!("cannot wait for it: {e}"),
        None => {
            let _ = child.kill().await;
            "told to stop".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_death_heals_at_once_and_repeated_ones_ever_slower() {
        let mut back_off = BackOff::new();
        let short = Duration::from_millis(10);
        let pauses: Vec<u128> = (0..9).map(|_| back_off.after_run(short).as_millis()).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(back_off.after_run(Duration::from_secs(11)), FIRST_PAUSE, "a long run clears the record");
        assert_eq!(back_off.after_run(short), FIRST_PAUSE * 2);
    }
}
