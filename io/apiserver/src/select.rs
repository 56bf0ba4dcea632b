//! Label and field selectors: parsing with Kubernetes' messages, and matching.

use serde_json::Value;

use crate::kinds::Kind;
use crate::status::{ApiError, Result};

/// Which objects of a collection a request is about.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    Exists,
    Missing,
    In(Vec<String>),
    NotIn(Vec<String>),
    Greater(i64),
    Less(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    path: String,
    value: String,
    sense: Sense,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sense {
    Equal,
    Different,
}

impl Selection {
    pub fn parse(kind: &Kind, labels: Option<&str>, fields: Option<&str>) -> Result<Self> {
        let labels = labels.map(parse_labels).transpose()?.unwrap_or_default();
        let fields = fields.map(|text| parse_fields(kind, text)).transpose()?.unwrap_or_default();
        Ok(Self { labels, fields })
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|requirement| requirement.matches(object))
            && self.fields.iter().all(|term| term.matches(object))
    }

    /// The one name this selects, when a field selector says so.
    pub fn single_name(&self) -> Option<&str> {
        let term = self.fields.iter().find(|term| term.path == "metadata.name" && term.sense == Sense::Equal);
        term.map(|term| term.value.as_str())
    }
}

impl Requirement {
    fn matches(&self, object: &Value) -> bool {
        let label = object.get("metadata").and_then(|m| m.get("labels")).and_then(|l| l.get(&self.key));
        let label = label.and_then(Value::as_str);
        match (&self.operator, label) {
            (Operator::Exists, label) => label.is_some(),
            (Operator::Missing, label) => label.is_none(),
            (Operator::In(values), Some(label)) => values.iter().any(|value| value == label),
            (Operator::NotIn(values), Some(label)) => values.iter().all(|value| value != label),
            (Operator::NotIn(_), None) => true,
            (Operator::Greater(bound), Some(label)) => label.parse::<i64>().is_ok_and(|n| n > *bound),
            (Operator::Less(bound), Some(label)) => label.parse::<i64>().is_ok_and(|n| n < *bound),
            (Operator::In(_) | Operator::Greater(_) | Operator::Less(_), None) => false,
        }
    }
}

impl FieldTerm {
    fn matches(&self, object: &Value) -> bool {
        let equal = field_text(object, &self.path) == self.value;
        match self.sense {
            Sense::Equal => equal,
            Sense::Different => !equal,
        }
    }
}

/// A field as selectors compare it: absent is the empty string, except where Kubernetes says otherwise.
fn field_text(object: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(object, |value, part| value.get(part));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None if matches!(path, "spec.unschedulable" | "spec.hostNetwork") => {
            "false".into()
        }
        Some(Value::Null) | None if path == "status.replicas" => "0".into(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

fn parse_fields(kind: &Kind, text: &str) -> Result<Vec<FieldTerm>> {
    let mut terms = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (path, value, sense) = if let Some((path, value)) = part.split_once("!=") {
            (path, value, Sense::Different)
        } else if let Some((path, value)) = part.split_once("==") {
            (path, value, Sense::Equal)
        } else if let Some((path, value)) = part.split_once('=') {
            (path, value, Sense::Equal)
        } else {
            let message = format!("invalid selector: {text:?}; can't understand {part:?}");
            return Err(ApiError::bad_request(message));
        };
        let path = path.trim();
        if !selectable(kind, path) {
            return Err(ApiError::bad_request(format!("field label not supported: {path}")));
        }
        let unescaped = value.trim().replace("\\,", ",").replace("\\=", "=").replace("\\\\", "\\");
        terms.push(FieldTerm { path: path.to_owned(), value: unescaped, sense });
    }
    Ok(terms)
}

fn selectable(kind: &Kind, path: &str) -> bool {
    matches!(path, "metadata.name" | "metadata.namespace")
        || kind.selectable_fields.iter().any(|field| field.trim_start_matches('.') == path)
}

/// Parses the text form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
fn parse_labels(text: &str) -> Result<Vec<Requirement>> {
    let mut requirements = Vec::new();
    for part in split_outside_parentheses(text) {
        let part = part.trim();
        if part.is_empty() {
            continue;
        }
        let requirement = parse_requirement(part)
            .map_err(|why| ApiError::bad_request(format!("unable to parse requirement: {why}")))?;
        check_label_key(&requirement.key)?;
        requirements.push(requirement);
    }
    Ok(requirements)
}

fn parse_requirement(part: &str) -> std::result::Result<Requirement, String> {
    let make = |key: &str, operator| Requirement { key: key.trim().to_owned(), operator };
    if let Some(key) = part.strip_prefix('!') {
        return Ok(make(key, Operator::Missing));
    }
    if let Some((head, values)) = part.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(|| format!("found {part:?}, expected: ')'"))?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(key), Some("in"), None) => Ok(make(key, Operator::In(values))),
            (Some(key), Some("notin"), None) => Ok(make(key, Operator::NotIn(values))),
            _ => Err(format!("found {head:?}, expected: in, notin, =, ==, !=, gt, lt")),
        };
    }
    for (symbol, sense) in [("!=", Sense::Different), ("==", Sense::Equal), ("=", Sense::Equal)] {
        if let Some((key, value)) = part.split_once(symbol) {
            let values = vec![value.trim().to_owned()];
            let operator = if sense == Sense::Equal { Operator::In(values) } else { Operator::NotIn(values) };
            return Ok(make(key, operator));
        }
    }
    for (symbol, operator) in [('>', Operator::Greater as fn(i64) -> Operator), ('<', Operator::Less)] {
        if let Some((key, value)) = part.split_once(symbol) {
            let bound = value.trim().parse().map_err(|_| {
                format!("values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer")
            })?;
            return Ok(make(key, operator(bound)));
        }
    }
    if part.split_whitespace().count() > 1 {
        return Err(format!("found {part:?}, expected: in, notin, =, ==, !=, gt, lt"));
    }
    Ok(make(part, Operator::Exists))
}

fn check_label_key(key: &str) -> Result<()> {
    let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let good =
        name.len() <= 63 && name.chars().all(plain) && ends(name.chars().next()) && ends(name.chars().last());
    if good {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "unable to parse requirement: <nil>: Invalid value: {key:?}: name part must consist of alphanumeric \
         characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or \
         'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
    )))
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0i32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Whether `labels` satisfy a `LabelSelector` object (matchLabels, matchExpressions).
pub fn label_selector_matches(selector: &Value, object: &Value) -> bool {
    let equal =
        selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten().map(|(key, value)| {
            let values = vec![value.as_str().unwrap_or_default().to_owned()];
            Requirement { key: key.clone(), operator: Operator::In(values) }
        });
    let expressions = selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten();
    equal.chain(expressions.filter_map(expression)).all(|requirement| requirement.matches(object))
}

fn expression(value: &Value) -> Option<Requirement> {
    let strings = value.get("values").and_then(Value::as_array).into_iter().flatten();
    let values = strings.filter_map(Value::as_str).map(str::to_owned).collect();
    let operator = match value.get("operator")?.as_str()? {
        "In" => Operator::In(values),
        "NotIn" => Operator::NotIn(values),
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::Missing,
        _ => return None,
    };
    Some(Requirement { key: value.get("key")?.as_str()?.to_owned(), operator })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(selector: &str) -> bool {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front", "n": "5"}}});
        parse_labels(selector).unwrap().iter().all(|requirement| requirement.matches(&object))
    }

    #[test]
    fn label_operators() {
        for yes in [
            "app=web",
            "app==web",
            "app!=db",
            "app in (web,db)",
            "app notin (db), tier",
            "!x",
            "n>4",
            "n<6",
            "x notin (a)",
        ] {
            assert!(labels(yes), "{yes}");
        }
        for no in ["app=db", "app!=web", "app in (db)", "x", "!app", "n>5", "x in (a)"] {
            assert!(!labels(no), "{no}");
        }
    }

    #[test]
    fn malformed_labels_are_refused() {
        for bad in ["app in (web", "a b", "=x", "n>many", "-x=1"] {
            assert!(parse_labels(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn absent_fields_compare_as_empty() {
        let pod = json!({"spec": {}, "status": {"phase": "Running"}});
        let term = |path: &str, value: &str| FieldTerm {
            path: path.into(),
            value: value.into(),
            sense: Sense::Equal,
        };
        assert!(term("spec.nodeName", "").matches(&pod));
        assert!(term("status.phase", "Running").matches(&pod));
        assert!(term("spec.hostNetwork", "false").matches(&pod));
    }
}
