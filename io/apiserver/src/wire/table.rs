//! The field numbers of Kubernetes' protobuf messages, read once from the table beside this file.

use std::collections::HashMap;
use std::sync::OnceLock;

const MESSAGES: &str = include_str!("messages.txt");

/// Numbers and booleans that are optional in the API, so that zero or false is an answer rather than an absence.
const ZERO_SAYS_SOMETHING: [&str; 58] = [
    "activeDeadlineSeconds",
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "allowVolumeExpansion",
    "allowed",
    "attachRequired",
    "automountServiceAccountToken",
    "backoffLimit",
    "backoffLimitPerIndex",
    "blockOwnerDeletion",
    "completions",
    "controller",
    "currentHealthy",
    "currentReplicas",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "desiredHealthy",
    "desiredReplicas",
    "disruptionsAllowed",
    "enableServiceLinks",
    "expectedPods",
    "expirationSeconds",
    "failedJobsHistoryLimit",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "immutable",
    "leaseDurationSeconds",
    "leaseTransitions",
    "maxFailedIndexes",
    "minReplicas",
    "mode",
    "optional",
    "orphanDependents",
    "parallelism",
    "partition",
    "podInfoOnMount",
    "preemptionPolicy",
    "privileged",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "ready",
    "replicas",
    "requiresRepublish",
    "restartCount",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "seLinuxMount",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "started",
    "storageCapacity",
    "successfulJobsHistoryLimit",
    "suspend",
    "terminating",
];
const ZERO_SAYS_SOMETHING_TOO: [&str; 7] = [
    "startingDeadlineSeconds",
    "stabilizationWindowSeconds",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
    "unavailableReplicas",
    "value",
];

pub(super) struct Field {
    pub(super) name: String,
    pub(super) number: u64,
    pub(super) shape: Shape,
}

/// How a field's values lie on the wire; the text names their type.
pub(super) enum Shape {
    One(String),
    Many(String),
    Map(String),
    Inline(String),
}

pub(super) fn zero_says_something(name: &str) -> bool {
    ZERO_SAYS_SOMETHING.contains(&name) || ZERO_SAYS_SOMETHING_TOO.contains(&name)
}

/// The fields of a message by its full name, such as `core/v1.Pod`.
pub(super) fn message(name: &str) -> Option<&'static [Field]> {
    table().get(name.to_ascii_lowercase().as_str()).map(Vec::as_slice)
}

/// The message a top-level object is; options and statuses are the same in every group.
pub(super) fn message_of_kind(api_version: &str, kind: &str) -> Option<&'static [Field]> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("core", api_version));
    let package = group.split('.').next().unwrap_or_default();
    message(&format!("{package}/{version}.{kind}")).or_else(|| message(&format!("meta/v1.{kind}")))
}

fn table() -> &'static HashMap<String, Vec<Field>> {
    static TABLE: OnceLock<HashMap<String, Vec<Field>>> = OnceLock::new();
    TABLE.get_or_init(|| MESSAGES.lines().filter(|line| !line.starts_with('#')).filter_map(parse).collect())
}

fn parse(line: &str) -> Option<(String, Vec<Field>)> {
    let mut words = line.split_whitespace();
    let name = words.next()?.to_ascii_lowercase();
    Some((name, words.filter_map(parse_field).collect()))
}

fn parse_field(word: &str) -> Option<Field> {
    let (name, rest) = word.split_once('=')?;
    let (number, kind) = rest.split_once(':')?;
    let shape = if name == "~" {
        Shape::Inline(kind.to_owned())
    } else if let Some(item) = kind.strip_prefix('*') {
        Shape::Many(item.to_owned())
    } else if let Some(value) = kind.strip_prefix('{') {
        Shape::Map(value.to_owned())
    } else {
        Shape::One(kind.to_owned())
    };
    Some(Field { name: name.to_owned(), number: number.parse().ok()?, shape })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_parses_and_every_type_exists() {
        let lines = MESSAGES.lines().filter(|line| !line.starts_with('#'));
        for line in lines {
            let words = line.split_whitespace().count();
            let (name, fields) = parse(line).unwrap();
            assert_eq!(fields.len() + 1, words, "{name}");
            for field in fields {
                let (Shape::One(kind) | Shape::Many(kind) | Shape::Map(kind) | Shape::Inline(kind)) =
                    &field.shape;
                let known = [
                    "s",
                    "x",
                    "i",
                    "o",
                    "d",
                    "time",
                    "microtime",
                    "quantity",
                    "intorstring",
                    "fields",
                    "raw",
                    "duration",
                    "strings",
                ];
                assert!(
                    known.contains(&kind.as_str()) || message(kind).is_some(),
                    "{name}.{}: {kind}",
                    field.name
                );
            }
        }
        assert!(message_of_kind("rbac.authorization.k8s.io/v1", "ClusterRole").is_some());
        assert!(message_of_kind("policy/v1", "DeleteOptions").is_some());
    }
}
