//! Hands the part of the plan in force that needs listeners to the node's proxy, and again when that one restarted.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use weft_proxy::ProxyPlan;

use super::Agent;

/// How long a restarted proxy may serve from its file before it is given the newest plan.
const CHECK: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(300);

pub async fn follow(agent: Arc<Agent>) {
    let socket = agent.config.socket.with_file_name(crate::proxy::SOCKET);
    let mut applied = agent.applier.subscribe();
    let mut delivered: Option<ProxyPlan> = None;
    loop {
        let state = applied.borrow_and_update().state.clone();
        let wanted =
            state.map(|state| ProxyPlan { health_checks: state.compiled.plan.health_checks.clone() });
        let mut pause = CHECK;
        if let Some(wanted) = wanted.filter(|wanted| delivered.as_ref() != Some(wanted)) {
            match deliver(&socket, &wanted).await {
                Ok(()) => delivered = Some(wanted),
                Err(error) => {
                    tracing::debug!("the proxy's plan is not delivered yet: {error:#}");
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

async fn deliver(socket: &Path, plan: &ProxyPlan) -> Result<()> {
    let body = serde_json::to_vec(plan).context("the plan cannot be written as JSON")?;
    let answer = crate::fabrics::unix_request(socket, "PUT", "/plan", body).await?;
    if answer.status != 204 {
        bail!("the proxy refused the plan: {}", String::from_utf8_lossy(&answer.body));
    }
    Ok(())
}

/// False when the proxy runs on what it found on disk.
async fn serves_the_agents(socket: &Path) -> bool {
    let Ok(answer) = crate::fabrics::unix_request(socket, "GET", "/status", Vec::new()).await else {
        return false;
    };
    let status: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    status.get("source").and_then(Value::as_str) == Some("agent")
}
