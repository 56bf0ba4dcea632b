//! Paths, error lists and checks that many kinds share: names, ports, labels, selectors, immutability.
use std::fmt;

use serde_json::Value;

use crate::schema::{FieldError, formats};

pub(super) type Errors = Vec<FieldError>;

/// The path of a field within its object.
#[derive(Debug, Clone)]
pub(super) struct At(String);

impl At {
    pub(super) fn root() -> Self {
        Self(String::new())
    }

    pub(super) fn field(&self, name: &str) -> Self {
        Self(if self.0.is_empty() { name.to_owned() } else { format!("{}.{name}", self.0) })
    }

    pub(super) fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    pub(super) fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&At> for String {
    fn from(at: &At) -> Self {
        at.0.clone()
    }
}

impl From<At> for String {
    fn from(at: At) -> Self {
        at.0
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) const DNS1123_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric \
    characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', \
    regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
pub(super) const DNS1123_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case \
    alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
    'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
pub(super) const DNS1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or \
    '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or \
    'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' \
    or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', \
    regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start \
    and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
    validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
pub(super) const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
pub(super) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub(super) fn items(value: &Value) -> impl Iterator<Item = (usize, &Value)> {
    value.as_array().into_iter().flatten().enumerate()
}

pub(super) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn is_set(value: &Value, name: &str) -> bool {
    value.get(name).is_some_and(|v| !v.is_null())
}

pub(super) fn label_1123(value: &str, at: &At, errors: &mut Errors) {
    if value.len() > 63 {
        errors.push(FieldError::invalid(at, &value.into(), "must be no more than 63 characters"));
    } else if !formats::is_dns1123_label(value) {
        errors.push(FieldError::invalid(at, &value.into(), DNS1123_LABEL));
    }
}

pub(super) fn subdomain(value: &str, at: &At, errors: &mut Errors) {
    if value.len() > 253 {
        errors.push(FieldError::invalid(at, &value.into(), "must be no more than 253 characters"));
    } else if !formats::is_dns1123_subdomain(value) {
        errors.push(FieldError::invalid(at, &value.into(), DNS1123_SUBDOMAIN));
    }
}

pub(super) fn label_1035(value: &str, at: &At, errors: &mut Errors) {
    if value.len() > 63 {
        errors.push(FieldError::invalid(at, &value.into(), "must be no more than 63 characters"));
    } else if !formats::is_dns1035_label(value) {
        errors.push(FieldError::invalid(at, &value.into(), DNS1035_LABEL));
    }
}

pub(super) fn one_of(value: &Value, allowed: &[&str], at: &At, errors: &mut Errors) {
    if let Some(text) = value.as_str()
        && !allowed.contains(&text)
    {
        errors.push(FieldError::not_supported(at, value, allowed));
    }
}

pub(super) fn port_number(value: &Value, at: &At, errors: &mut Errors) {
    if let Some(number) = value.as_i64()
        && !(1..=65_535).contains(&number)
    {
        errors.push(FieldError::invalid(at, value, PORT_RANGE));
    }
}

/// A port by number or by name.
pub(super) fn port_or_name(value: &Value, at: &At, errors: &mut Errors) {
    match value {
        Value::String(name) => port_name(name, at, errors),
        number => port_number(number, at, errors),
    }
}

/// A service name as IANA registers them.
pub(super) fn port_name(name: &str, at: &At, errors: &mut Errors) {
    let mut wrong = |detail: &str| errors.push(FieldError::invalid(at, &name.into(), detail));
    if name.len() > 15 {
        wrong("must be no more than 15 characters");
    }
    if !name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        wrong("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.bytes().any(|c| c.is_ascii_lowercase()) {
        wrong("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        wrong("must not contain consecutive hyphens");
    }
    if name.starts_with('-') || name.ends_with('-') {
        wrong("must not begin or end with a hyphen");
    }
}

pub(super) fn at_least(value: &Value, least: i64, at: &At, errors: &mut Errors) {
    if value.as_i64().is_some_and(|number| number < least) {
        errors.push(FieldError::invalid(at, value, format!("must be greater than or equal to {least}")));
    }
}

pub(super) fn labels(labels: &Value, at: &At, errors: &mut Errors) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        label_key(key, at, errors);
        label_value(value.as_str().unwrap_or_default(), at, errors);
    }
}

pub(super) fn label_key(key: &str, at: &At, errors: &mut Errors) {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let detail = match prefix {
        Some("") => Some("prefix part must be non-empty".to_owned()),
        Some(prefix) if !formats::is_dns1123_subdomain(prefix) => {
            Some(format!("prefix part {DNS1123_SUBDOMAIN}"))
        }
        _ if name.is_empty() => Some("name part must be non-empty".to_owned()),
        _ if name.len() > 63 => Some("name part must be no more than 63 characters".to_owned()),
        _ if !formats::is_label_value(name) => Some(QUALIFIED_NAME.to_owned()),
        _ => None,
    };
    errors.extend(detail.map(|detail| FieldError::invalid(at, &key.into(), detail)));
}

fn label_value(value: &str, at: &At, errors: &mut Errors) {
    if value.len() > 63 {
        errors.push(FieldError::invalid(at, &value.into(), "must be no more than 63 characters"));
    } else if !formats::is_label_value(value) {
        errors.push(FieldError::invalid(at, &value.into(), LABEL_VALUE));
    }
}

pub(super) fn label_selector(selector: &Value, at: &At, errors: &mut Errors) {
    labels(&selector["matchLabels"], &at.field("matchLabels"), errors);
    let at = at.field("matchExpressions");
    for (index, expression) in items(&selector["matchExpressions"]) {
        let at = at.index(index);
        label_key(text(expression, "key"), &at.field("key"), errors);
        let values = expression["values"].as_array().map_or(0, Vec::len);
        let values_at = at.field("values");
        match text(expression, "operator") {
            "In" | "NotIn" if values == 0 => errors.push(FieldError::required(
                &values_at,
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if values > 0 => errors.push(FieldError::forbidden(
                &values_at,
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(
                at.field("operator"),
                &other.into(),
                "not a valid selector operator",
            )),
        }
        for (index, value) in items(&expression["values"]) {
            label_value(value.as_str().unwrap_or_default(), &values_at.index(index), errors);
        }
    }
}

/// Whether a label selector selects an object with these labels.
pub(super) fn selects(selector: &Value, labels: &Value) -> bool {
    let value = |key: &str| labels.get(key).and_then(Value::as_str);
    let wanted = selector["matchLabels"].as_object();
    let equal = wanted.into_iter().flatten().all(|(key, wanted)| value(key) == wanted.as_str());
    equal
        && items(&selector["matchExpressions"]).all(|(_, e)| {
            let found = value(text(e, "key"));
            let listed = found.is_some_and(|f| items(&e["values"]).any(|(_, v)| v == f));
            match text(e, "operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                _ => found.is_none(),
            }
        })
}

/// Fields that never change.
pub(super) fn unchanged(old: &Value, new: &Value, fields: &[&str], errors: &mut Errors) {
    for path in fields {
        let at = |root: &Value| path.split('.').fold(root.clone(), |value, step| value[step].clone());
        let (before, now) = (at(old), at(new));
        if before != now {
            errors.push(FieldError::invalid(*path, &now, "field is immutable"));
        }
    }
}

pub(super) fn ip(value: &Value, at: &At, errors: &mut Errors) {
    if let Some(text) = value.as_str()
        && formats::parse_ip(text).is_none()
    {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.push(FieldError::invalid(at, value, detail));
    }
}

pub(super) fn cidr(value: &Value, at: &At, errors: &mut Errors) -> bool {
    let valid = value.as_str().is_none_or(|text| formats::parse_cidr(text).is_some());
    if !valid {
        let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        errors.push(FieldError::invalid(at, value, detail));
    }
    valid
}
