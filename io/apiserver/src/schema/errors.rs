//! Field errors as Kubernetes words them, and the Status object that carries them.
use std::fmt;

use serde_json::{Value, json};

use crate::kinds::Kind;

/// What is wrong with one field of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Dotted path such as `spec.ports[0].port`; empty for the object itself.
    pub field: String,
    pub reason: FieldReason,
    /// The message without the field's path.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldReason {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    Forbidden,
    NotFound,
    TooLong,
    TooMany,
    TypeInvalid,
}

impl FieldReason {
    /// The reason as it stands in `details.causes` of a Status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Forbidden => "FieldValueForbidden",
            Self::NotFound => "FieldValueNotFound",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            write!(f, "<nil>: {}", self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

impl FieldError {
    fn new(field: impl Into<String>, reason: FieldReason, message: String) -> Self {
        Self { field: field.into(), reason, message }
    }

    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Self::new(field, FieldReason::Required, message)
    }

    pub fn invalid(field: impl Into<String>, value: &Value, detail: impl fmt::Display) -> Self {
        Self::new(field, FieldReason::Invalid, format!("Invalid value: {}: {detail}", quoted(value)))
    }

    pub fn type_invalid(field: impl Into<String>, value: &Value, detail: impl fmt::Display) -> Self {
        Self::new(field, FieldReason::TypeInvalid, format!("Invalid value: {}: {detail}", quoted(value)))
    }

    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let message = format!("Unsupported value: {}: supported values: {}", quoted(value), list.join(", "));
        Self::new(field, FieldReason::NotSupported, message)
    }

    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self::new(field, FieldReason::Duplicate, format!("Duplicate value: {}", quoted(value)))
    }

    pub fn forbidden(field: impl Into<String>, detail: impl fmt::Display) -> Self {
        Self::new(field, FieldReason::Forbidden, format!("Forbidden: {detail}"))
    }

    pub fn not_found(field: impl Into<String>, value: &Value) -> Self {
        Self::new(field, FieldReason::NotFound, format!("Not found: {}", quoted(value)))
    }

    pub fn too_long(field: impl Into<String>, limit: usize) -> Self {
        Self::new(field, FieldReason::TooLong, format!("Too long: may not be more than {limit} bytes"))
    }

    pub fn too_many(field: impl Into<String>, count: usize, limit: usize) -> Self {
        Self::new(field, FieldReason::TooMany, format!("Too many: {count}: must have at most {limit} items"))
    }
}

/// A value as messages quote it; long ones are cut, for the message must stay readable.
pub(crate) fn quoted(value: &Value) -> String {
    let text = match value {
        Value::Array(_) | Value::Object(_) => value.to_string(),
        Value::String(s) => format!("{s:?}"),
        other => other.to_string(),
    };
    if text.len() <= 1024 {
        return text;
    }
    let cut = text.char_indices().take_while(|(i, _)| *i < 1000).last().map_or(0, |(i, _)| i);
    format!("{}...", &text[..cut])
}

/// `Pod "x" is invalid: spec.y: Required value`, with brackets around more than one error.
pub fn invalid_message(group_kind: &str, name: &str, errors: &[FieldError]) -> String {
    let mut all: Vec<String> = Vec::with_capacity(errors.len());
    for error in errors {
        let text = error.to_string();
        if !all.contains(&text) {
            all.push(text);
        }
    }
    match all.as_slice() {
        [one] => format!("{group_kind} {name:?} is invalid: {one}"),
        many => format!("{group_kind} {name:?} is invalid: [{}]", many.join(", ")),
    }
}

/// The Status a server answers an invalid object with.
pub fn invalid_status(kind: &Kind, name: &str, errors: &[FieldError]) -> Value {
    let causes: Vec<Value> = errors
        .iter()
        .map(|e| json!({"reason": e.reason.as_str(), "message": e.message, "field": e.field}))
        .collect();
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": invalid_message(&kind.group_kind(), name, errors),
        "reason": "Invalid",
        "details": {"name": name, "group": kind.group, "kind": kind.kind, "causes": causes},
        "code": 422,
    })
}
