//! Outcomes in the terms of conditions.

use std::collections::BTreeMap;

use weft_compile::pools::{Allocation, Assigned, Capacity, PoolUse};
use weft_kube::status::{PoolStatus, READY, SERVED, Saying, ServiceStatus, Truth};
use weft_model::parse::{ADDRESS_ASSIGNED, FamilyCapacity, PoolCapacity};
use weft_model::{Finding, ObjectKey, PoolName, ServiceKey, Severity};

/// What each service is to say; those with nothing to say are not in it.
pub fn services(allocation: &Allocation, findings: &[Finding]) -> BTreeMap<ServiceKey, ServiceStatus> {
    let mut wanted: BTreeMap<ServiceKey, ServiceStatus> = BTreeMap::new();
    for (key, given) in &allocation.services {
        let saying = Saying {
            kind: ADDRESS_ASSIGNED,
            truth: match given.outcome.assigned {
                Assigned::Yes => Truth::True,
                Assigned::No => Truth::False,
            },
            reason: given.outcome.reason.to_owned(),
            message: given.outcome.message.clone(),
        };
        let addresses = Some(given.addresses.clone());
        let status = ServiceStatus { addresses, conditions: vec![saying], untold: Vec::new() };
        wanted.insert(key.clone(), status);
    }
    for (key, message) in not_served(findings) {
        let saying = Saying { kind: SERVED, truth: Truth::False, reason: "NotAllServed".to_owned(), message };
        wanted.entry(key).or_default().conditions.push(saying);
    }
    wanted
}

/// Warnings are about what is in force and probably not meant; `weft check` tells of those.
fn not_served(findings: &[Finding]) -> BTreeMap<ServiceKey, String> {
    let mut errors: Vec<&Finding> =
        findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
    errors.sort();
    errors.dedup();
    let mut messages: BTreeMap<ServiceKey, String> = BTreeMap::new();
    for finding in errors {
        let named = finding.object.strip_prefix("Service ").and_then(|name| name.split_once('/'));
        let Some((namespace, name)) = named else { continue };
        let message = messages.entry(ObjectKey::new(namespace, name)).or_default();
        if !message.is_empty() {
            message.push_str("; ");
        }
        message.push_str(&sentence(finding));
    }
    messages
}

fn sentence(finding: &Finding) -> String {
    match finding.field.as_str() {
        "" => finding.message.clone(),
        field => format!("{field}: {}", finding.message),
    }
}

/// `parsed`: what reading the objects found.
pub fn pool(name: &PoolName, usage: &PoolUse, parsed: &[Finding]) -> PoolStatus {
    let object = format!("AddressPool {name}");
    let found: Vec<String> = parsed.iter().filter(|finding| finding.object == object).map(sentence).collect();
    let outcome = &usage.outcome;
    let (mut reason, mut message) = (outcome.reason.to_owned(), outcome.message.clone());
    if !found.is_empty() {
        message = match outcome.reason {
            "AddressesFree" => found.join("; "),
            _ => format!("{message}; {}", found.join("; ")),
        };
        if outcome.ready {
            reason = "PartlyUsable".to_owned();
        }
    }
    let truth = if outcome.ready { Truth::True } else { Truth::False };
    let capacity = PoolCapacity { ipv4: capacity(usage.v4), ipv6: capacity(usage.v6) };
    PoolStatus { ready: Saying { kind: READY, truth, reason, message }, capacity }
}

fn capacity(capacity: Capacity) -> Option<FamilyCapacity> {
    let number = |count: u128| i64::try_from(count).unwrap_or(i64::MAX);
    (capacity.total > 0)
        .then(|| FamilyCapacity { total: number(capacity.total), used: number(capacity.used) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, object: &str, field: &str, message: &str) -> Finding {
        Finding { severity, object: object.to_owned(), field: field.to_owned(), message: message.to_owned() }
    }

    /// Proves status.conditions: weft.dev/AddressAssigned, weft.dev/Announced and weft.dev/Served say what holds and what cannot be honoured, and why.
    #[test]
    fn errors_about_services_become_one_condition_each_and_warnings_none() {
        let findings = [
            finding(Severity::Error, "Service shop/web", "spec.ports[0]", "b"),
            finding(Severity::Error, "Service shop/web", "", "a"),
            finding(Severity::Error, "Service shop/web", "", "a"),
            finding(Severity::Warning, "Service shop/db", "", "c"),
            finding(Severity::Error, "Node node1", "", "d"),
        ];
        let wanted = services(&Allocation::default(), &findings);
        let [(key, status)] = wanted.iter().collect::<Vec<_>>()[..] else { panic!("{wanted:?}") };
        assert_eq!((key.to_string().as_str(), &status.addresses), ("shop/web", &None));
        assert_eq!(status.conditions[0].message, "a; spec.ports[0]: b");
    }
}
