//! What a user should know about objects that are legal and probably not what was meant. Broken objects are told of by parsing.

mod addresses;
mod policies;
mod services;

use std::collections::BTreeMap;

use weft_model::{Finding, Labels, NamespaceName, Operator, Pod, PodPhase, Selector, Severity, Snapshot};

/// Everything found, sorted.
pub fn check(snapshot: &Snapshot) -> Vec<Finding> {
    let mut findings = Vec::new();
    let pods = Pods::of(snapshot);
    policies::check(snapshot, &pods, &mut findings);
    services::check(snapshot, &pods, &mut findings);
    addresses::check(snapshot, &mut findings);
    findings.sort();
    findings.dedup();
    findings
}

/// Pods that can take part in traffic, by namespace.
struct Pods<'a>(BTreeMap<&'a NamespaceName, Vec<&'a Pod>>);

impl<'a> Pods<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let mut by_namespace: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for pod in snapshot.pods.values().filter(|pod| pod.phase != PodPhase::Finished) {
            by_namespace.entry(&pod.key.namespace).or_default().push(pod);
        }
        Self(by_namespace)
    }

    fn of_namespace(&self, name: &NamespaceName) -> &[&'a Pod] {
        self.0.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    fn selected(&self, namespace: &NamespaceName, selector: &Selector) -> Vec<&'a Pod> {
        let pods = self.of_namespace(namespace).iter();
        pods.copied().filter(|pod| selector.matches(&pod.labels)).collect()
    }
}

fn warning(object: impl ToString, field: impl Into<String>, message: impl Into<String>) -> Finding {
    Finding {
        severity: Severity::Warning,
        object: object.to_string(),
        field: field.into(),
        message: message.into(),
    }
}

/// "; did you mean name=carts?" for a selector that misses labels by a letter or two.
fn hint<'a>(selector: &Selector, labels: impl Iterator<Item = &'a Labels> + Clone) -> String {
    let close = selector.requirements().find_map(|requirement| {
        let Operator::In(values) = &requirement.operator else { return None };
        let known = labels.clone().filter_map(|labels| labels.get(&requirement.key));
        let near = |value: &&String| values.iter().any(|wanted| (1..=2).contains(&distance(wanted, value)));
        Some((&requirement.key, known.clone().filter(near).min()?))
    });
    close.map_or_else(String::new, |(key, value)| format!("; did you mean {key}={value}?"))
}

/// Letters to add, remove or change (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.chars().enumerate() {
        let mut corner = row[0];
        row[0] = line + 1;
        for (column, other) in other.iter().enumerate() {
            let change = corner + usize::from(letter != *other);
            corner = row[column + 1];
            row[column + 1] = change.min(corner + 1).min(row[column] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_letters() {
        let cases =
            [("cart", "carts", 1), ("cart", "cart", 0), ("web", "db", 2), ("", "abc", 3), ("ab", "ba", 2)];
        for (one, other, expected) in cases {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }
}
