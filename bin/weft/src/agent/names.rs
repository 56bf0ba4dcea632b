//! Hands the names of the plan in force to the node's name server, and again when that one restarted.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weft_plan::NamePlan;

use super::Agent;
use super::applier::InForce;

/// How long a restarted name server may serve from its file before it is given the newest names.
const CHECK: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(300);

pub async fn follow(agent: Arc<Agent>) {
    let socket = agent.config.socket.with_file_name("proxy.sock");
    let mut applied = agent.applier.subscribe();
    let mut delivered: Option<Arc<InForce>> = None;
    loop {
        let state = applied.borrow_and_update().state.clone();
        let mut pause = CHECK;
        if let Some(state) = state.filter(|state| !is_delivered(&delivered, state)) {
            match deliver(&socket, &state.compiled.plan.names).await {
                Ok(()) => delivered = Some(state),
                Err(error) => {
                    tracing::debug!("names not delivered yet: {error:#}");
                    pause = RETRY;
                }
            }
        }
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => if delivered.is_some() && !serves_the_agents(&socket).await {
                delivered = None;
            }
        }
    }
}

fn is_delivered(delivered: &Option<Arc<InForce>>, state: &InForce) -> bool {
    delivered.as_ref().is_some_and(|delivered| delivered.compiled.plan.names == state.compiled.plan.names)
}

async fn deliver(socket: &Path, names: &NamePlan) -> Result<()> {
    let body = serde_json::to_vec(names).context("names cannot be written as JSON")?;
    let answer = crate::fabrics::unix_request(socket, "PUT", "/plan", body).await?;
    if answer.status != 204 {
        bail!("the name server refused the names: {}", String::from_utf8_lossy(&answer.body));
    }
    Ok(())
}

/// False when the name server runs on what it found on disk.
async fn serves_the_agents(socket: &Path) -> bool {
    let Ok(answer) = crate::fabrics::unix_request(socket, "GET", "/status", Vec::new()).await else {
        return false;
    };
    let status: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    status.pointer("/plan/source").and_then(Value::as_str) == Some("agent")
}
