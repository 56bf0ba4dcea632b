//! Tables of custom kinds: the name and the columns their definitions ask for.
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{age, cells, jsonpath};
use crate::kinds::{Kind, PrinterColumn};

pub(super) fn definitions(kind: &Kind) -> Value {
    let name = json!({
        "name": "Name", "type": "string", "format": "name",
        "description": super::describe("Name"), "priority": 0,
    });
    let rest = kind.columns.iter().map(|column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    });
    let mut all: Vec<Value> = std::iter::once(name).chain(rest).collect();
    if kind.columns.is_empty() {
        all.push(json!({
            "name": "Age", "type": "date", "format": "", "description": super::describe("Age"), "priority": 0,
        }));
    }
    Value::Array(all)
}

pub(super) fn row(kind: &Kind, object: &Value, now: Timestamp) -> Vec<Value> {
    let mut row = vec![cells::name(object)];
    if kind.columns.is_empty() {
        row.push(cells::age(object, now));
    }
    row.extend(kind.columns.iter().map(|column| cell(column, object, now)));
    row
}

fn cell(column: &PrinterColumn, object: &Value, now: Timestamp) -> Value {
    let Some(value) = jsonpath::first(&column.json_path, object) else { return Value::Null };
    match column.kind.as_str() {
        "integer" => value.as_i64().map_or(Value::Null, Value::from),
        "number" => value.as_f64().map_or(Value::Null, Value::from),
        "boolean" => value.as_bool().map_or(Value::Null, Value::from),
        "date" => match age::parse(value) {
            Some(_) => Value::from(age::since(value, now)),
            None => Value::from("<invalid>"),
        },
        _ => Value::from(cells::plain(value)),
    }
}
