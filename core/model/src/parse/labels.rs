//! Label selectors of the Kubernetes API to the model's.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::Findings;
use crate::{Operator, Requirement, Selector};

/// A selector as far as it was understood.
pub(super) struct ParsedSelector {
    /// Requirements that could not be understood are left out, so it may match more than was meant.
    pub selector: Selector,
    pub complete: bool,
}

pub(super) fn selector(findings: &mut Findings, field: &str, given: &LabelSelector) -> ParsedSelector {
    let equal = given.match_labels.iter().flatten().map(|(key, value)| Requirement {
        key: key.clone(),
        operator: Operator::In(BTreeSet::from([value.clone()])),
    });
    let mut requirements: Vec<Requirement> = equal.collect();
    let mut complete = true;
    for (index, expression) in given.match_expressions.iter().flatten().enumerate() {
        let field = format!("{field}.matchExpressions[{index}]");
        match operator(findings, &field, expression) {
            Some(operator) => requirements.push(Requirement { key: expression.key.clone(), operator }),
            None => complete = false,
        }
    }
    ParsedSelector { selector: Selector::new(requirements), complete }
}

fn operator(findings: &mut Findings, field: &str, expression: &LabelSelectorRequirement) -> Option<Operator> {
    let values: BTreeSet<String> = expression.values.iter().flatten().cloned().collect();
    let wants_values = matches!(expression.operator.as_str(), "In" | "NotIn");
    if expression.key.is_empty() {
        findings.error(format!("{field}.key"), "is empty");
        return None;
    }
    if wants_values && values.is_empty() {
        findings.error(format!("{field}.values"), format!("is empty; {} needs values", expression.operator));
        return None;
    }
    match expression.operator.as_str() {
        "In" => Some(Operator::In(values)),
        "NotIn" => Some(Operator::NotIn(values)),
        "Exists" if values.is_empty() => Some(Operator::Exists),
        "DoesNotExist" if values.is_empty() => Some(Operator::DoesNotExist),
        "Exists" | "DoesNotExist" => {
            findings.error(format!("{field}.values"), format!("must be empty for {}", expression.operator));
            None
        }
        other => {
            let message = format!("{other:?} is not an operator; use In, NotIn, Exists or DoesNotExist");
            findings.error(format!("{field}.operator"), message);
            None
        }
    }
}
