//! Hands the names of the plan in force to the node's name server: what has changed since it was last given some, or all of
//! them, as after either of the two started anew.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::time::Instant;
use weft_model::Shared;
use weft_plan::{NamePlan, NameVersion, write_names};

use super::Agent;

/// How long a restarted name server may serve from its file before it is given the newest names.
const CHECK: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(300);

pub async fn follow(agent: Arc<Agent>) {
    let mut delivery = Delivery::new();
    let socket = agent.config.socket.with_file_name("proxy.sock");
    let mut applied = agent.applier.subscribe();
    // Counts on while plans come: a busy cluster must not put off the look at a name server that started anew.
    let mut due = Instant::now() + CHECK;
    loop {
        let state = applied.borrow_and_update().state.clone();
        if let Some(names) = state.map(|state| state.compiled.plan.names.clone())
            && !delivery.has(&names)
            && let Err(error) = delivery.deliver(&socket, names).await
        {
            tracing::debug!("names not delivered yet: {error:#}");
            due = due.min(Instant::now() + RETRY);
        }
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(due) => {
                delivery.check(&socket).await;
                due = Instant::now() + CHECK;
            }
        }
    }
}

/// What the name server was given.
struct Delivery {
    version: NameVersion,
    given: Option<Shared<NamePlan>>,
    /// The name server wants all of the names the next time.
    wants_whole: bool,
}

impl Delivery {
    fn new() -> Self {
        // Another agent's changes must not fit: nobody knows what it has sent.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let maker = u64::try_from(since.as_nanos()).unwrap_or_default() ^ u64::from(std::process::id());
        Self { version: NameVersion { maker, sequence: 0 }, given: None, wants_whole: false }
    }

    fn has(&self, names: &Shared<NamePlan>) -> bool {
        self.given.as_ref().is_some_and(|given| given == names)
    }

    async fn deliver(&mut self, socket: &Path, names: Shared<NamePlan>) -> Result<()> {
        let to = NameVersion { sequence: self.version.sequence + 1, ..self.version };
        let body = self.message(&names, to).context("names cannot be written")?;
        let answer = crate::fabrics::unix_request(socket, "PUT", "/plan", body).await?;
        match answer.status {
            204 | 202 => {
                (self.version, self.given) = (to, Some(names));
                self.wants_whole = answer.status == 202;
                Ok(())
            }
            status => {
                self.given = None;
                bail!(
                    "the name server refused the names ({status}): {}",
                    String::from_utf8_lossy(&answer.body)
                )
            }
        }
    }

    fn message(&self, names: &NamePlan, to: NameVersion) -> std::io::Result<Vec<u8>> {
        let mut body = Vec::new();
        let given = self.given.as_ref().filter(|_| !self.wants_whole);
        match given.and_then(|given| names.rows_since(given)) {
            Some(rows) => write_names(&mut body, names.head(Some(self.version), to), rows)?,
            None => write_names(&mut body, names.head(None, to), names.rows())?,
        }
        Ok(body)
    }

    /// A name server that runs on what it found on disk, or on what another agent gave it, is given all of the names.
    async fn check(&mut self, socket: &Path) {
        if self.given.is_none() {
            return;
        }
        let status = crate::fabrics::unix_request(socket, "GET", "/status", Vec::new()).await;
        let status: Value =
            status.map(|answer| serde_json::from_slice(&answer.body).unwrap_or_default()).unwrap_or_default();
        let from_agent = status.pointer("/plan/source").and_then(Value::as_str) == Some("agent");
        let version =
            status.pointer("/plan/version").and_then(|version| serde_json::from_value(version.clone()).ok());
        if !from_agent || version != Some(self.version) {
            self.given = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_plan::{NameEvent, NameMessages};

    use super::*;

    fn events(message: &[u8]) -> Vec<NameEvent> {
        let mut messages = NameMessages::default();
        message.split_inclusive(|byte| *byte == b'\n').map(|line| messages.read(line).unwrap()).collect()
    }

    #[test]
    fn changes_follow_what_was_given_and_all_names_what_was_not() {
        let mut plan = NamePlan { domain: "cluster.local".to_owned(), ..NamePlan::default() };
        for name in ["a", "b", "c"] {
            plan.names.get_or_default(format!("{name}.cluster.local"));
        }
        let mut delivery = Delivery::new();
        let to = NameVersion { sequence: 1, ..delivery.version };
        assert_eq!(events(&delivery.message(&plan, to).unwrap()).len(), 5);
        (delivery.version, delivery.given) = (to, Some(plan.clone().into()));
        plan.names.remove("b.cluster.local");
        let changes = events(&delivery.message(&plan, NameVersion { sequence: 2, ..to }).unwrap());
        assert_eq!(changes.len(), 3);
        let NameEvent::Head(head) = &changes[0] else { panic!("no head") };
        assert_eq!(head.from, Some(to));
        delivery.wants_whole = true;
        assert_eq!(events(&delivery.message(&plan, to).unwrap()).len(), 4);
    }
}
