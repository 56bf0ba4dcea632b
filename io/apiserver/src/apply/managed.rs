//! `metadata.managedFields`: who owns which fields, kept up to date by every write.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Conflict;
use super::diff::diff;
use super::fields::{FieldSet, collect};
use crate::api::{meta, timestamp};
use crate::kinds::Kind;
use crate::schema;

/// Metadata that belongs to the server and therefore to no manager.
const SERVER_METADATA: [&str; 9] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

/// Who writes, other than by applying.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    pub manager: &'a str,
    pub subresource: &'a str,
    pub now: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// One entry of managedFields.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) manager: String,
    pub(crate) operation: Operation,
    pub(crate) api_version: String,
    pub(crate) subresource: String,
    pub(crate) time: String,
    pub(crate) fields: FieldSet,
}

impl Record {
    fn is(&self, manager: &str, operation: Operation, subresource: &str) -> bool {
        self.manager == manager && self.operation == operation && self.subresource == subresource
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match value.get("operation")?.as_str()? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        Some(Self {
            manager: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: value.get("fieldsV1").map(FieldSet::from_json).unwrap_or_default(),
        })
    }

    fn to_value(&self) -> Value {
        let mut value = json!({
            "manager": self.manager,
            "operation": self.operation.as_str(),
            "apiVersion": self.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_json(),
        });
        if !self.subresource.is_empty() {
            value["subresource"] = self.subresource.clone().into();
        }
        value
    }

    fn describe(&self) -> String {
        let using = format!("using {}", self.api_version);
        if self.subresource.is_empty() {
            format!("{:?} {using}", self.manager)
        } else {
            format!("{:?} with subresource {:?} {using}", self.manager, self.subresource)
        }
    }
}

/// All entries of one object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Managers(Vec<Record>);

impl Managers {
    pub(crate) fn of(object: &Value) -> Self {
        let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
        Self(list.into_iter().flatten().filter_map(Record::parse).collect())
    }

    pub(crate) fn take(&mut self, manager: &str, operation: Operation, subresource: &str) -> Option<Record> {
        let at = self.0.iter().position(|record| record.is(manager, operation, subresource))?;
        Some(self.0.remove(at))
    }

    pub(crate) fn add(&mut self, record: Record) {
        self.0.push(record);
    }

    pub(crate) fn all_fields(&self) -> FieldSet {
        self.0.iter().fold(FieldSet::default(), |all, record| all.union(&record.fields))
    }

    pub(super) fn conflicts(&self, written: &FieldSet) -> Vec<Conflict> {
        let lost = self
            .0
            .iter()
            .map(|record| Conflict { with: record.describe(), fields: record.fields.intersection(written) });
        lost.filter(|conflict| !conflict.fields.is_empty()).collect()
    }

    /// Takes fields from everybody; entries left with none disappear.
    pub(crate) fn release(&mut self, fields: &FieldSet) {
        for record in &mut self.0 {
            record.fields = record.fields.difference(fields);
        }
        self.0.retain(|record| !record.fields.is_empty());
    }

    pub(crate) fn write_to(&self, object: &mut Value) {
        let metadata = meta::metadata(object);
        if self.0.is_empty() {
            metadata.remove("managedFields");
        } else {
            let list = self.0.iter().map(Record::to_value).collect();
            metadata.insert("managedFields".into(), Value::Array(list));
        }
    }
}

/// Credits the writer with what it changed between `old` and `new`.
pub fn track(kind: &Kind, old: Option<&Value>, new: &mut Value, write: &Write<'_>) {
    let root = schema::root(kind);
    let mut managers = Managers::of(new);
    if managers.0.is_empty()
        && let Some(old) = old
        && !cleared(new)
    {
        managers = Managers::of(old);
    }
    let before = old.map(stripped).unwrap_or_else(|| json!({}));
    let difference = diff(&root, &before, &stripped(new));
    if difference.written.is_empty() && difference.removed.is_empty() {
        managers.write_to(new);
        return;
    }
    let own = managers.take(write.manager, Operation::Update, write.subresource);
    managers.release(&difference.written.union(&difference.removed));
    let fields = own.map(|record| record.fields).unwrap_or_default();
    let fields = fields.difference(&difference.removed).union(&difference.written);
    if !fields.is_empty() {
        managers.add(Record {
            manager: write.manager.to_owned(),
            operation: Operation::Update,
            api_version: kind.api_version(),
            subresource: write.subresource.to_owned(),
            time: timestamp(write.now),
            fields,
        });
    }
    managers.write_to(new);
}

/// A client resets managedFields by sending a list of one empty entry, or none.
fn cleared(object: &Value) -> bool {
    object.pointer("/metadata/managedFields").and_then(Value::as_array).is_some_and(|list| list.len() <= 1)
}

/// The entry of an object that an apply creates.
pub fn applied_entry(kind: &Kind, config: &Value, manager: &str, subresource: &str, now: Timestamp) -> Value {
    Record {
        manager: manager.to_owned(),
        operation: Operation::Apply,
        api_version: kind.api_version(),
        subresource: subresource.to_owned(),
        time: timestamp(now),
        fields: collect(&schema::root(kind), &tracked(kind, config, subresource)),
    }
    .to_value()
}

/// The part of a configuration that an apply to this subresource can own.
pub(crate) fn tracked(kind: &Kind, config: &Value, subresource: &str) -> Value {
    let mut value = stripped(config);
    if let Some(fields) = value.as_object_mut() {
        if subresource == "status" {
            fields.retain(|name, _| name == "status");
        } else if kind.status {
            fields.remove("status");
        }
    }
    value
}

/// An object without what the server owns.
pub(crate) fn stripped(object: &Value) -> Value {
    let Value::Object(fields) = object else { return object.clone() };
    let mut left: Map<String, Value> = Map::new();
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("apiVersion" | "kind", _) => {}
            ("metadata", Value::Object(metadata)) => {
                let kept = metadata.iter().filter(|(name, _)| {
                    !SERVER_METADATA.contains(&name.as_str()) && *name != "managedFields"
                });
                let kept: Map<String, Value> = kept.map(|(n, v)| (n.clone(), v.clone())).collect();
                if !kept.is_empty() {
                    left.insert("metadata".into(), Value::Object(kept));
                }
            }
            _ => {
                left.insert(name.clone(), value.clone());
            }
        }
    }
    Value::Object(left)
}

/// Whether a write would change nothing but times and the resource version.
pub fn same_apart_from_times(old: &Value, new: &Value) -> bool {
    comparable(old) == comparable(new)
}

fn comparable(object: &Value) -> Value {
    let mut object = object.clone();
    let metadata = meta::metadata(&mut object);
    metadata.remove("resourceVersion");
    for entry in metadata.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(entry) = entry.as_object_mut() {
            entry.remove("time");
        }
    }
    object
}
