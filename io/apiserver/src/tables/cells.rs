//! Cells that many kinds share: names, ages, lists, images, selectors. No kind's own logic.
use jiff::Timestamp;
use serde_json::Value;

use super::age;
use crate::kinds::scale::selector_text;

pub(super) const NONE: &str = "<none>";

pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn name(object: &Value) -> Value {
    Value::from(text(&object["metadata"], "name"))
}

pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    Value::from(age::since(&object["metadata"]["creationTimestamp"], now))
}

pub(super) fn created_at(object: &Value) -> Value {
    Value::from(text(&object["metadata"], "creationTimestamp"))
}

/// A count that is missing until a controller writes it.
pub(super) fn count(value: &Value) -> Value {
    Value::from(value.as_i64().unwrap_or(0))
}

pub(super) fn or_none(text: &str) -> Value {
    Value::from(if text.is_empty() { NONE } else { text })
}

pub(super) fn items(value: &Value) -> impl DoubleEndedIterator<Item = &Value> {
    value.as_array().map_or(&[][..], Vec::as_slice).iter()
}

/// A JSON scalar without quotes.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

pub(super) fn join<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

/// At most so many parts, then how many more there are.
pub(super) fn some_of(parts: &[String], shown: usize) -> String {
    match parts.len() {
        0 => NONE.to_owned(),
        many if many > shown => format!("{} + {} more...", parts[..shown].join(","), many - shown),
        _ => parts.join(","),
    }
}

pub(super) fn container_names(spec: &Value) -> Value {
    Value::from(join(items(&spec["containers"]).map(|c| text(c, "name"))))
}

pub(super) fn images(spec: &Value) -> Value {
    Value::from(join(items(&spec["containers"]).map(|c| text(c, "image"))))
}

/// A label selector, or a plain map of labels.
pub(super) fn selector(selector: &Value) -> Value {
    or_none(&selector_text(selector))
}

/// `True`, `False`, or a word for neither.
pub(super) fn yes_no(value: &Value, missing: &str) -> Value {
    match value {
        Value::Bool(true) => Value::from("True"),
        Value::Bool(false) => Value::from("False"),
        _ => Value::from(missing),
    }
}

pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    items(&object["status"]["conditions"]).find(|condition| condition["type"] == kind)
}

pub(super) fn is_true(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|condition| condition["status"] == "True")
}
