//! Room in the kernel's tables: a condition on the node, an event on each object that found none, and metrics. What happens
//! when a table is full is io/datapath's to decide.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use weft_datapath::{Refused, Report, Usage};
use weft_kube::{EventRecorder, NodeCondition, Subject};

use super::Agent;
use super::applier::Applied;

const CONDITION: &str = "weft.dev/TablePressure";
const RETRY: Duration = Duration::from_secs(1);

pub async fn follow(agent: Arc<Agent>) {
    let mut applied = agent.applier.subscribe();
    let mut said: Option<NodeCondition> = None;
    let mut known: BTreeSet<String> = BTreeSet::new();
    let client = loop {
        match weft_kube::client_from_kubeconfig(&agent.config.kubeconfig).await {
            Ok(client) => break client,
            Err(error) => tracing::warn!(%error, "cannot report table pressure; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    };
    let events = EventRecorder::new(client.clone(), "weft-agent", agent.node.as_str());
    loop {
        let now: Applied = applied.borrow_and_update().clone();
        tell_refused(&events, &now, &mut known);
        let wanted = condition(&now.report);
        let mut pause = Duration::MAX;
        if now.state.is_some() && said.as_ref() != Some(&wanted) {
            match weft_kube::set_node_condition(&client, agent.node.as_str(), &wanted).await {
                Ok(()) => said = Some(wanted),
                Err(error) => {
                    tracing::warn!(%error, "cannot report table pressure; trying again");
                    pause = RETRY;
                }
            }
        }
        tokio::select! {
            changed = applied.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn tell_refused(events: &EventRecorder, applied: &Applied, known: &mut BTreeSet<String>) {
    let Some(state) = &applied.state else { return };
    let refused: BTreeSet<String> = applied.report.refused.iter().map(Refused::to_string).collect();
    for one in applied.report.refused.iter().filter(|one| !known.contains(&one.to_string())) {
        tracing::error!("{one}");
        if let Some(service) = state.snapshot.services.get(&one.service) {
            events.warning(&Subject::service(&service.key, &service.uid), "TableFull", one.to_string());
        }
    }
    *known = refused;
}

fn condition(report: &Report) -> NodeCondition {
    let full: Vec<String> = report
        .usage
        .iter()
        .filter(|(_, usage)| usage.is_high())
        .map(|(table, _)| (*table).to_owned())
        .collect();
    let full = full.join(", ");
    // No counts: each change of one would be a write to the Node; they are in the metrics.
    let (status, reason, message) = match (report.refused.len(), full.is_empty()) {
        (0, true) => {
            ("False", "TablesHaveRoom", format!("every kernel table is under {} %", Usage::HIGH_PERCENT))
        }
        (0, false) => ("True", "TablesFillUp", format!("{} % or more in use: {full}", Usage::HIGH_PERCENT)),
        (_, _) => {
            let first = report.refused.first().map(Refused::to_string).unwrap_or_default();
            ("True", "TablesAreFull", format!("frontends found no room, this one first: {first}"))
        }
    };
    NodeCondition { kind: CONDITION, status, reason, message }
}

/// In the text format of Prometheus.
pub fn metrics(report: &Report) -> String {
    let mut text = String::new();
    let mut family = |name: &str, help: &str, value: fn(&Usage) -> usize| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (table, usage) in &report.usage {
            let _ = writeln!(text, "{name}{{table=\"{table}\"}} {}", value(usage));
        }
    };
    family("weft_table_entries", "Entries in a kernel table.", |usage| usage.used);
    family("weft_table_capacity", "Entries a kernel table takes.", |usage| usage.capacity);
    let name = "weft_refused_frontends";
    let _ = writeln!(
        text,
        "# HELP {name} Service frontends without room in the kernel's tables.\n# TYPE {name} gauge"
    );
    let _ = writeln!(text, "{name} {}", report.refused.len());
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_table_at_four_fifths_is_pressure() {
        let report = |used| Report {
            usage: BTreeMap::from([("services", Usage { used, capacity: 100 })]),
            ..Report::default()
        };
        assert_eq!(condition(&report(79)).status, "False");
        let high = condition(&report(80));
        assert_eq!((high.status, high.reason), ("True", "TablesFillUp"));
        assert_eq!(high.message, "80 % or more in use: services");
        assert!(metrics(&report(80)).contains("weft_table_entries{table=\"services\"} 80\n"));
    }
}
