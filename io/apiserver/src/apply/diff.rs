//! Which fields differ between two versions of an object.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::{Element, FieldSet, collect};
use crate::schema::{ListType, Schema};

/// The outcome of a comparison.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// Added or given another value.
    pub(crate) written: FieldSet,
    pub(crate) removed: FieldSet,
}

impl Difference {
    fn written(written: FieldSet) -> Self {
        Self { written, removed: FieldSet::default() }
    }

    fn absorb(&mut self, element: Element, below: Self) {
        self.written.insert(element.clone(), below.written);
        self.removed.insert(element, below.removed);
    }
}

pub(crate) fn diff(schema: &Schema, old: &Value, new: &Value) -> Difference {
    match (old, new) {
        (old, new) if old == new => Difference::default(),
        (Value::Object(old), Value::Object(new)) if !schema.is_atomic_map() => diff_maps(schema, old, new),
        (Value::Array(old), Value::Array(new)) => match schema.list_type() {
            ListType::Atomic => Difference::written(FieldSet::leaf()),
            ListType::Set => diff_items(schema, by(old, Element::value), by(new, Element::value)),
            ListType::Map(keys) => {
                let key = |item: &Value| Element::key(schema, &keys, item);
                diff_items(&schema.items(), by(old, key), by(new, key))
            }
        },
        (old, new) => Difference { written: collect(schema, new), removed: collect(schema, old) },
    }
}

fn diff_maps(schema: &Schema, old: &Map<String, Value>, new: &Map<String, Value>) -> Difference {
    let mut difference = Difference::default();
    for (name, value) in new {
        let field = schema.field(name);
        let below = match old.get(name) {
            Some(before) => diff(&field, before, value),
            None => Difference::written(collect(&field, value)),
        };
        difference.absorb(Element::field(name), below);
    }
    for (name, value) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
        difference.removed.insert(Element::field(name), collect(&schema.field(name), value));
    }
    difference
}

fn by(items: &[Value], element: impl Fn(&Value) -> Element) -> BTreeMap<Element, &Value> {
    items.iter().map(|item| (element(item), item)).collect()
}

fn diff_items(schema: &Schema, old: BTreeMap<Element, &Value>, new: BTreeMap<Element, &Value>) -> Difference {
    let whole = |value: &Value| {
        let mut fields = collect(schema, value);
        fields.owned = true;
        fields
    };
    let mut difference = Difference::default();
    for (element, value) in &new {
        let below = match old.get(element) {
            Some(before) => diff(schema, before, value),
            None => Difference::written(whole(value)),
        };
        difference.absorb(element.clone(), below);
    }
    for (element, value) in old.iter().filter(|(element, _)| !new.contains_key(*element)) {
        difference.removed.insert(element.clone(), whole(value));
    }
    difference
}
