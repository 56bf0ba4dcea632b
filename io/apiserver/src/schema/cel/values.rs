//! JSON values as CEL values, typed and named as their schema says.
use std::collections::HashMap;
use std::sync::Arc;

use cel::Value as Cel;
use cel::objects::{Key, Map};
use serde_json::Value;

use super::super::formats;
use super::super::model::{Additional, Node, Schema, Type};

/// Words of the language that a field cannot be selected by; rules write `__namespace__` for them.
const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

pub(super) fn convert(schema: &Schema, value: &Value) -> Cel {
    let node = schema.node();
    match value {
        Value::Null => Cel::Null,
        Value::Bool(b) => Cel::Bool(*b),
        Value::Number(number) => self::number(node, number),
        Value::String(text) => string(node, text),
        Value::Array(items) => {
            let schema = schema.items();
            Cel::List(Arc::new(items.iter().map(|item| convert(&schema, item)).collect()))
        }
        Value::Object(fields) => {
            let is_map = !matches!(node.additional, Additional::Nothing);
            let mut map = HashMap::with_capacity(fields.len());
            for (name, value) in fields {
                let key = if is_map { name.clone() } else { escape(name) };
                map.insert(Key::from(key), convert(&schema.field(name), value));
            }
            Cel::Map(Map { map: Arc::new(map) })
        }
    }
}

fn number(node: &Node, number: &serde_json::Number) -> Cel {
    let float = Cel::Float(number.as_f64().unwrap_or_default());
    match node.types {
        Some(Type::Number) => float,
        _ => number.as_i64().map_or(float, Cel::Int),
    }
}

fn string(node: &Node, text: &str) -> Cel {
    let plain = || Cel::String(Arc::new(text.to_owned()));
    match node.format.as_deref() {
        Some("byte") => formats::decode_base64(text).map_or_else(|_| plain(), |b| Cel::Bytes(Arc::new(b))),
        Some("duration") => formats::parse_go_duration(text)
            .and_then(|nanos| i64::try_from(nanos).ok())
            .map_or_else(plain, |nanos| super::functions::duration_value(nanos).unwrap_or_else(plain)),
        Some("date-time" | "date") => super::functions::timestamp_value(text).unwrap_or_else(plain),
        _ => plain(),
    }
}

/// How rules spell a field's name.
fn escape(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    let special = name.contains(['.', '-', '/']) || name.contains("__");
    if !special {
        return name.to_owned();
    }
    name.replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__")
}

/// The number of entries of the largest list or map within.
pub(super) fn widest(value: &Value) -> u64 {
    match value {
        Value::Array(items) => items.iter().map(widest).max().unwrap_or(0).max(items.len() as u64),
        Value::Object(fields) => fields.values().map(widest).max().unwrap_or(0).max(fields.len() as u64),
        _ => 0,
    }
}

/// The number of values within.
pub(super) fn size(value: &Value) -> u64 {
    match value {
        Value::Array(items) => 1 + items.iter().map(size).sum::<u64>(),
        Value::Object(fields) => 1 + fields.values().map(size).sum::<u64>(),
        Value::String(text) => 1 + text.len() as u64 / 64,
        _ => 1,
    }
}
