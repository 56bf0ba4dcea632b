//! Sets of field paths in the form of `managedFields[].fieldsV1`, and the arithmetic on them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::schema::{ListType, Schema};

const SELF: &str = ".";

/// A tree of path elements; a node is in the set when it is owned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    pub(crate) owned: bool,
    pub(crate) children: BTreeMap<Element, FieldSet>,
}

/// One step of a path, in its text form: `f:name`, `k:{"name":"web"}`, `v:"x"`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element(pub(crate) String);

impl Element {
    pub(crate) fn field(name: &str) -> Self {
        Self(format!("f:{name}"))
    }

    pub(crate) fn value(value: &Value) -> Self {
        Self(format!("v:{value}"))
    }

    /// Identifies a list item by its key fields, absent ones by their default.
    pub(crate) fn key(list: &Schema, keys: &[String], item: &Value) -> Self {
        let mut sorted: Vec<&String> = keys.iter().collect();
        sorted.sort();
        let mut parts = Map::new();
        for key in sorted {
            let value = item.get(key).cloned().filter(|value| !value.is_null());
            if let Some(value) = value.or_else(|| list.default_for_key(key)) {
                parts.insert(key.clone(), value);
            }
        }
        Self(format!("k:{}", Value::Object(parts)))
    }

    fn parse(text: &str) -> Self {
        let Some(json) = text.strip_prefix("k:") else { return Self(text.to_owned()) };
        let Ok(Value::Object(parts)) = serde_json::from_str::<Value>(json) else {
            return Self(text.to_owned());
        };
        let sorted: BTreeMap<String, Value> = parts.into_iter().collect();
        Self(format!("k:{}", Value::Object(sorted.into_iter().collect())))
    }

    pub(crate) fn field_name(&self) -> Option<&str> {
        self.0.strip_prefix("f:")
    }

    /// The element as conflict messages show it: `.spec`, `[name="web"]`, `["x"]`.
    fn display(&self) -> String {
        if let Some(name) = self.field_name() {
            return format!(".{name}");
        }
        if let Some(value) = self.0.strip_prefix("v:") {
            return format!("[={value}]");
        }
        let parts = self.0.strip_prefix("k:").and_then(|json| serde_json::from_str::<Value>(json).ok());
        let parts = parts.as_ref().and_then(Value::as_object).into_iter().flatten();
        let shown: Vec<String> = parts.map(|(key, value)| format!("{key}={value}")).collect();
        format!("[{}]", shown.join(","))
    }
}

impl FieldSet {
    pub(crate) fn leaf() -> Self {
        Self { owned: true, children: BTreeMap::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.owned && self.children.values().all(Self::is_empty)
    }

    pub(crate) fn insert(&mut self, element: Element, child: Self) {
        if !child.is_empty() {
            self.children.insert(element, child);
        }
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.owned |= other.owned;
        for (element, theirs) in &other.children {
            let merged = all.children.get(element).map_or_else(|| theirs.clone(), |own| own.union(theirs));
            all.children.insert(element.clone(), merged);
        }
        all
    }

    pub(crate) fn difference(&self, other: &Self) -> Self {
        let mut left = Self { owned: self.owned && !other.owned, children: BTreeMap::new() };
        for (element, own) in &self.children {
            let rest =
                other.children.get(element).map_or_else(|| own.clone(), |theirs| own.difference(theirs));
            left.insert(element.clone(), rest);
        }
        left
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let mut both = Self { owned: self.owned && other.owned, children: BTreeMap::new() };
        for (element, own) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                both.insert(element.clone(), own.intersection(theirs));
            }
        }
        both
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.owned && !self.children.is_empty() {
            map.insert(SELF.into(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            map.insert(element.0.clone(), child.to_json());
        }
        Value::Object(map)
    }

    pub(crate) fn from_json(value: &Value) -> Self {
        let Some(map) = value.as_object() else { return Self::default() };
        let mut set = Self { owned: map.contains_key(SELF), children: BTreeMap::new() };
        for (name, child) in map.iter().filter(|(name, _)| *name != SELF) {
            let child = match child.as_object() {
                Some(map) if map.is_empty() => Self::leaf(),
                _ => Self::from_json(child),
            };
            set.insert(Element::parse(name), child);
        }
        set
    }

    /// All owned paths as text, in order.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.add_paths("", &mut paths);
        paths
    }

    fn add_paths(&self, prefix: &str, paths: &mut Vec<String>) {
        if self.owned && !prefix.is_empty() {
            paths.push(prefix.to_owned());
        }
        for (element, child) in &self.children {
            child.add_paths(&format!("{prefix}{}", element.display()), paths);
        }
    }
}

/// All fields a value sets.
pub(crate) fn collect(schema: &Schema, value: &Value) -> FieldSet {
    match value {
        Value::Object(map) if !map.is_empty() && !schema.is_atomic_map() => {
            let mut set = FieldSet::default();
            for (name, value) in map {
                set.insert(Element::field(name), collect(&schema.field(name), value));
            }
            set
        }
        Value::Array(items) if !items.is_empty() => collect_list(schema, items),
        _ => FieldSet::leaf(),
    }
}

fn collect_list(schema: &Schema, items: &[Value]) -> FieldSet {
    let mut set = FieldSet::default();
    match schema.list_type() {
        ListType::Atomic => return FieldSet::leaf(),
        ListType::Set => {
            for item in items {
                set.insert(Element::value(item), FieldSet::leaf());
            }
        }
        ListType::Map(keys) => {
            for item in items {
                let mut fields = collect(&schema.items(), item);
                fields.owned = true;
                set.insert(Element::key(schema, &keys, item), fields);
            }
        }
    }
    set
}
