//! Checks a value against its schema, with the messages upstream's API server gives for custom resources.
use serde_json::{Map, Value};

use super::cel::Budget;
use super::errors::{FieldError, FieldReason};
use super::formats;
use super::model::{Additional, Limits, ListType, Node, Schema, Type, ValidationRule};

/// Errors in a value's shape: types, limits, required fields, list keys.
pub fn validate(schema: &Schema, value: &Value, path: &str) -> Vec<FieldError> {
    let mut checker = Checker { errors: Vec::new() };
    checker.value(schema, value, path);
    checker.errors
}

/// Errors the schema's CEL rules find. `old` is what the object was before, on updates.
pub fn validate_rules(
    schema: &Schema,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    budget: &mut Budget,
) -> Vec<FieldError> {
    let mut errors = Vec::new();
    rules_at(schema, value, old, path, budget, &mut errors);
    errors
}

struct Checker {
    errors: Vec<FieldError>,
}

impl Checker {
    fn value(&mut self, schema: &Schema, value: &Value, path: &str) {
        let node = schema.node();
        if value.is_null() && schema.0.nullable {
            return;
        }
        if let Some(types) = node.types
            && !has_type(types, value)
        {
            return self.wrong_type(types, value, path);
        }
        match value {
            Value::Object(fields) => self.object(node, fields, path),
            Value::Array(items) => self.array(schema, node, items, path),
            Value::String(text) => self.text(node, text, path),
            Value::Number(number) => self.number(&node.limits, number, path),
            _ => {}
        }
        self.enumeration(&node.limits, value, path);
        self.branches(node, value, path);
    }

    fn wrong_type(&mut self, types: Type, value: &Value, path: &str) {
        let got = type_name(value);
        let detail = format!("{} must be of type {}: {got:?}", in_body(path), types.as_str());
        self.errors.push(FieldError::type_invalid(path, &Value::String(got.to_owned()), detail));
    }

    fn object(&mut self, node: &Node, fields: &Map<String, Value>, path: &str) {
        for name in node.required.iter().filter(|name| !fields.contains_key(*name)) {
            self.errors.push(FieldError::required(child(path, name), ""));
        }
        for (name, value) in fields {
            let named = node.properties.get(name);
            match (named, &node.additional) {
                (Some(property), _) => self.value(property, value, &child(path, name)),
                (None, Additional::Each(each)) => self.value(each, value, &child(path, name)),
                _ => {}
            }
        }
        let (count, limits) = (fields.len(), &node.limits);
        if limits.min_properties.is_some_and(|min| (count as u64) < min) {
            let detail = format!(
                "{} should have at least {} properties",
                in_body(path),
                limits.min_properties.unwrap_or_default()
            );
            self.errors.push(FieldError::invalid(path, &Value::from(count), detail));
        }
        if let Some(max) = limits.max_properties.filter(|max| count as u64 > *max) {
            self.errors.push(FieldError::too_many(path, count, max as usize));
        }
    }

    fn array(&mut self, schema: &Schema, node: &Node, items: &[Value], path: &str) {
        let limits = &node.limits;
        if let Some(max) = limits.max_items.filter(|max| items.len() as u64 > *max) {
            self.errors.push(FieldError::too_many(path, items.len(), max as usize));
        }
        if let Some(min) = limits.min_items.filter(|min| (items.len() as u64) < *min) {
            let detail = format!("{} should have at least {min} items", in_body(path));
            self.errors.push(FieldError::invalid(path, &Value::from(items.len()), detail));
        }
        if let Some(each) = &node.items {
            for (index, item) in items.iter().enumerate() {
                self.value(each, item, &format!("{path}[{index}]"));
            }
        }
        self.duplicates(schema, node, items, path);
    }

    fn duplicates(&mut self, schema: &Schema, node: &Node, items: &[Value], path: &str) {
        let identities: Vec<Value> = match &node.list_type {
            Some(ListType::Set) => items.to_vec(),
            Some(ListType::Map(keys)) => items.iter().map(|item| key_of(schema, keys, item)).collect(),
            _ if node.limits.unique_items => items.to_vec(),
            _ => return,
        };
        let mut seen = std::collections::HashSet::new();
        for (index, identity) in identities.iter().enumerate() {
            if !seen.insert(identity.to_string()) {
                self.errors.push(FieldError::duplicate(format!("{path}[{index}]"), identity));
            }
        }
    }

    fn text(&mut self, node: &Node, text: &str, path: &str) {
        let limits = &node.limits;
        let length = text.chars().count() as u64;
        let shown = Value::String(text.to_owned());
        if let Some(min) = limits.min_length.filter(|min| length < *min) {
            let detail = format!("{} should be at least {min} chars long", in_body(path));
            self.errors.push(FieldError::invalid(path, &shown, detail));
        }
        if let Some(max) = limits.max_length.filter(|max| length > *max) {
            self.errors.push(FieldError::too_long(path, max as usize));
        }
        if let Some((pattern, _)) = limits.pattern.as_ref().filter(|(_, regex)| !regex.is_match(text)) {
            let detail = format!("{} should match '{pattern}'", in_body(path));
            self.errors.push(FieldError::invalid(path, &shown, detail));
        }
        if let Some(format) = node.format.as_ref().filter(|format| !formats::matches(format, text)) {
            let detail = format!("{} must be of type {format}: {text:?}", in_body(path));
            self.errors.push(FieldError::invalid(path, &shown, detail));
        }
    }

    fn number(&mut self, limits: &Limits, number: &serde_json::Number, path: &str) {
        let value = number.as_f64().unwrap_or_default();
        let mut wrong = |detail: String| {
            let detail = format!("{} should be {detail}", in_body(path));
            self.errors.push(FieldError::invalid(path, &Value::Number(number.clone()), detail));
        };
        if let Some(min) = limits.minimum {
            if limits.exclusive_minimum && value <= min {
                wrong(format!("greater than {min}"));
            } else if value < min {
                wrong(format!("greater than or equal to {min}"));
            }
        }
        if let Some(max) = limits.maximum {
            if limits.exclusive_maximum && value >= max {
                wrong(format!("less than {max}"));
            } else if value > max {
                wrong(format!("less than or equal to {max}"));
            }
        }
        if let Some(factor) = limits.multiple_of.filter(|f| *f > 0.0 && (value / f).fract() != 0.0) {
            wrong(format!("a multiple of {factor}"));
        }
    }

    fn enumeration(&mut self, limits: &Limits, value: &Value, path: &str) {
        if limits.enumeration.is_empty() || limits.enumeration.contains(value) {
            return;
        }
        let supported: Vec<String> = limits
            .enumeration
            .iter()
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            .collect();
        let supported: Vec<&str> = supported.iter().map(String::as_str).collect();
        self.errors.push(FieldError::not_supported(path, value, &supported));
    }

    fn branches(&mut self, node: &Node, value: &Value, path: &str) {
        for branch in &node.all_of {
            self.value(branch, value, path);
        }
        let passing = |list: &[Schema]| list.iter().filter(|s| validate(s, value, path).is_empty()).count();
        let mut wrong = |detail: String| {
            let detail = format!("{path:?} must {detail}");
            self.errors.push(FieldError::invalid(path, &Value::String(String::new()), detail));
        };
        if !node.any_of.is_empty() && passing(&node.any_of) == 0 {
            wrong("validate at least one schema (anyOf)".to_owned());
        }
        match (node.one_of.is_empty(), passing(&node.one_of)) {
            (true, _) | (false, 1) => {}
            (false, 0) => wrong("validate one and only one schema (oneOf). Found none valid".to_owned()),
            (false, count) => {
                wrong(format!("validate one and only one schema (oneOf). Found {count} valid alternatives"));
            }
        }
        if node.not.as_ref().is_some_and(|not| validate(not, value, path).is_empty()) {
            wrong("not validate the schema (not)".to_owned());
        }
    }
}

/// The key fields of a list item, with their defaults filled in.
fn key_of(schema: &Schema, keys: &[String], item: &Value) -> Value {
    let pick = |key: &String| {
        let value = item.get(key).cloned().or_else(|| schema.default_for_key(key));
        value.map(|value| (key.clone(), value))
    };
    Value::Object(keys.iter().filter_map(pick).collect())
}

fn has_type(types: Type, value: &Value) -> bool {
    match types {
        Type::Object => value.is_object(),
        Type::Array => value.is_array(),
        Type::String => value.is_string(),
        Type::Boolean => value.is_boolean(),
        Type::Number => value.is_number(),
        Type::Integer => is_integer(value),
        Type::IntOrString => value.is_string() || is_integer(value),
    }
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn in_body(path: &str) -> String {
    if path.is_empty() { "<nil> in body".to_owned() } else { format!("{path} in body") }
}

pub(super) fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn rules_at(
    schema: &Schema,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    budget: &mut Budget,
    errors: &mut Vec<FieldError>,
) {
    let node = schema.node();
    if value.is_null() {
        return;
    }
    for rule in &node.rules {
        errors.extend(apply_rule(schema, rule, value, old, path, budget));
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let field = match (node.properties.get(name), &node.additional) {
                    (Some(property), _) => property,
                    (None, Additional::Each(each)) => each,
                    _ => continue,
                };
                let old = old.and_then(|old| old.get(name));
                rules_at(field, value, old, &child(path, name), budget, errors);
            }
        }
        Value::Array(items) => {
            let Some(each) = &node.items else { return };
            for (index, item) in items.iter().enumerate() {
                let old = old.and_then(|old| old_item(schema, node, old, item));
                rules_at(each, item, old, &format!("{path}[{index}]"), budget, errors);
            }
        }
        _ => {}
    }
    for branch in &node.all_of {
        rules_at(branch, value, old, path, budget, errors);
    }
}

/// The item of the old list that an item of the new one continues; only lists with keys have such.
fn old_item<'a>(schema: &Schema, node: &Node, old: &'a Value, item: &Value) -> Option<&'a Value> {
    let ListType::Map(keys) = node.list_type.as_ref()? else { return None };
    let wanted = key_of(schema, keys, item);
    old.as_array()?.iter().find(|candidate| key_of(schema, keys, candidate) == wanted)
}

fn apply_rule(
    schema: &Schema,
    rule: &ValidationRule,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    budget: &mut Budget,
) -> Option<FieldError> {
    let program = rule.compiled.as_ref().ok()?;
    if rule.transition && !rule.optional_old_self && old.is_none() {
        return None;
    }
    let verdict = program.check(schema, value, old, rule.optional_old_self, budget);
    let detail = match verdict {
        Ok(true) => return None,
        Ok(false) => rule_message(schema, rule, value, old, budget),
        Err(problem) => format!("rule evaluation error: {problem}: {}", rule.source),
    };
    let field = rule.field_path.as_ref().map_or_else(|| path.to_owned(), |at| format!("{path}{at}"));
    let shown = match value {
        Value::Object(_) => Value::from("object"),
        Value::Array(_) => Value::from("array"),
        scalar => scalar.clone(),
    };
    Some(match rule.reason {
        FieldReason::Required => FieldError::required(field, &detail),
        FieldReason::Forbidden => FieldError::forbidden(field, detail),
        FieldReason::Duplicate => FieldError::duplicate(field, &shown),
        _ => FieldError::invalid(field, &shown, detail),
    })
}

fn rule_message(
    schema: &Schema,
    rule: &ValidationRule,
    value: &Value,
    old: Option<&Value>,
    budget: &mut Budget,
) -> String {
    let computed = rule
        .message_expression
        .as_ref()
        .and_then(|e| e.text(schema, value, old, rule.optional_old_self, budget))
        .filter(|text| !text.trim().is_empty());
    computed
        .or_else(|| rule.message.clone())
        .unwrap_or_else(|| format!("failed rule: {}", rule.source.trim()))
}
