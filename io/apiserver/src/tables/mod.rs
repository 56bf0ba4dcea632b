//! Lists of objects as the tables kubectl prints, with the columns its users know.
//! What a row of each kind says lives in the submodules; which requests get tables, with the server.
mod age;
mod cells;
mod cluster;
mod config;
mod custom;
mod jsonpath;
mod network;
mod pods;
mod workloads;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kinds::{Kind, Registry};

/// How a client wants the objects behind the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    /// Reads the `includeObject` parameter; metadata is what clients get who say nothing.
    pub fn parse(parameter: &str) -> Self {
        match parameter {
            "None" => Self::None,
            "Object" => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// Whether the table describes its columns; watches do it in their first event only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Columns {
    Show,
    Omit,
}

/// The version of the Table a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableFormat;

/// Whether the first form a client accepts that this server has is a Table.
pub fn requested(accept: &str) -> Option<TableFormat> {
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<&str> = parts.collect();
        match (media, parameters.iter().find_map(|p| p.strip_prefix("as="))) {
            ("application/json", Some("Table")) if parameters.contains(&"v=v1") => return Some(TableFormat),
            ("application/json" | "*/*", None) => return None,
            _ => {}
        }
    }
    None
}

/// One column: its name, and whether only wide output shows it.
#[derive(Debug, Clone, Copy)]
struct Column {
    name: &'static str,
    kind: &'static str,
    priority: i64,
}

const fn column(name: &'static str) -> Column {
    Column { name, kind: "string", priority: 0 }
}

const fn number(name: &'static str) -> Column {
    Column { name, kind: "integer", priority: 0 }
}

const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", priority: 1 }
}

/// The columns of a kind and how an object fills them.
#[derive(Clone, Copy)]
struct Layout {
    columns: &'static [Column],
    row: fn(&Value, Timestamp) -> Vec<Value>,
}

/// A `meta.k8s.io/v1` Table of objects.
pub fn table(
    _registry: &Registry,
    kind: &Kind,
    items: &[Value],
    list_meta: Value,
    include: Include,
    columns: Columns,
    now: Timestamp,
) -> Value {
    let layout = if kind.is_custom() { None } else { built_in(kind) };
    let definitions = match &layout {
        _ if columns == Columns::Omit => json!([]),
        Some(layout) => layout.columns.iter().map(definition).collect(),
        None => custom::definitions(kind),
    };
    let rows: Vec<Value> = items
        .iter()
        .map(|object| {
            let cells = match &layout {
                Some(layout) => (layout.row)(object, now),
                None => custom::row(kind, object, now),
            };
            row(object, cells, include)
        })
        .collect();
    let metadata = if list_meta.is_object() { list_meta } else { json!({}) };
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

fn definition(column: &Column) -> Value {
    let format = if column.name == "Name" { "name" } else { "" };
    json!({
        "name": column.name, "type": column.kind, "format": format,
        "description": describe(column.name), "priority": column.priority,
    })
}

/// Two columns need words; the others say what they are by their names.
fn describe(name: &str) -> String {
    match name {
        "Name" => "Name must be unique within a namespace.".to_owned(),
        "Age" => "Time since the object was created.".to_owned(),
        other => other.to_owned(),
    }
}

fn row(object: &Value, cells: Vec<Value>, include: Include) -> Value {
    let mut row = Map::new();
    row.insert("cells".into(), Value::Array(cells));
    match include {
        Include::None => {}
        Include::Object => drop(row.insert("object".into(), object.clone())),
        Include::Metadata => {
            let partial = json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"],
            });
            row.insert("object".into(), partial);
        }
    }
    Value::Object(row)
}

fn built_in(kind: &Kind) -> Option<Layout> {
    let found = match kind.group.as_str() {
        "" => pods::layout(&kind.kind)
            .or_else(|| network::layout(&kind.kind))
            .or_else(|| cluster::layout(&kind.kind))
            .or_else(|| workloads::layout(&kind.kind))
            .or_else(|| config::layout(&kind.kind)),
        "apps" | "batch" | "autoscaling" | "policy" => workloads::layout(&kind.kind),
        "networking.k8s.io" | "discovery.k8s.io" => network::layout(&kind.kind),
        "events.k8s.io" => Some(cluster::EVENTS_GROUP),
        _ => config::layout(&kind.kind).or_else(|| cluster::layout(&kind.kind)),
    };
    Some(found.unwrap_or(PLAIN))
}

const PLAIN: Layout = Layout {
    columns: &[column("Name"), column("Age")],
    row: |o, now| vec![cells::name(o), cells::age(o, now)],
};

#[cfg(test)]
mod tests;
