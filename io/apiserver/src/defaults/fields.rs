//! Small verbs for filling in missing fields of JSON objects. No knowledge of any kind.
use serde_json::{Map, Value};

/// Sets a field that is missing or null.
pub(super) fn fill(object: &mut Value, name: &str, default: impl Into<Value>) {
    if let Value::Object(fields) = object
        && fields.get(name).is_none_or(Value::is_null)
    {
        fields.insert(name.to_owned(), default.into());
    }
}

/// Sets a field that is missing, null or the empty string: Go cannot tell these apart.
pub(super) fn fill_text(object: &mut Value, name: &str, default: &str) {
    if text(object, name).is_empty() {
        set(object, name, default);
    }
}

/// Sets a field of an object, whatever it was.
pub(super) fn set(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Value::Object(fields) = object {
        fields.insert(name.to_owned(), value.into());
    }
}

/// Takes a field away.
pub(super) fn unset(object: &mut Value, name: &str) {
    if let Value::Object(fields) = object {
        fields.shift_remove(name);
    }
}

/// The object in a field, made empty when it is missing. Decoding has refused parents of other types before.
pub(super) fn child<'a>(object: &'a mut Value, name: &str) -> &'a mut Value {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    fill(object, name, Value::Object(Map::new()));
    &mut object[name]
}

/// The object in a field, when there is one.
pub(super) fn existing<'a>(object: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    object.get_mut(name).filter(|value| value.is_object())
}

/// The items of a list field; none when it is missing.
pub(super) fn each<'a>(object: &'a mut Value, name: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().filter(|item| item.is_object())
}

pub(super) fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn is_set(object: &Value, name: &str) -> bool {
    object.get(name).is_some_and(|value| !value.is_null())
}

pub(super) fn is_true(object: &Value, name: &str) -> bool {
    object.get(name) == Some(&Value::Bool(true))
}
