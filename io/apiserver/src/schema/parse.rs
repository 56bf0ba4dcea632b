//! Schemas out of JSON: generated definitions of built-in types and the `openAPIV3Schema` of custom ones.
//! Whether a custom schema is structural is checked in `structural`.
use std::sync::Arc;

use regex::Regex;
use serde_json::{Map, Value};

use super::cel::Rule;
use super::errors::{FieldError, FieldReason};
use super::facts;
use super::model::{
    Additional, Limits, ListType, Node, PatchStrategy, Schema, Type, ValidationRule, object_meta,
};

/// Schemas nest no deeper than this; a deeper one is refused rather than walked.
const MAX_DEPTH: usize = 128;

/// One generated definition of a built-in type.
pub(super) fn parse_definition(name: &str, json: &Value) -> Schema {
    if facts::is_free_form(name) {
        return Schema::new(Node {
            preserve_unknown: true,
            atomic_map: facts::is_atomic(name),
            description: text(json, "description"),
            ..Node::default()
        });
    }
    let mut reader = Reader { definition: Some(name), errors: Vec::new() };
    let mut node = reader.node(json, name, 0);
    node.atomic_map |= facts::is_atomic(name);
    if facts::is_quantity(name) {
        node.types = Some(Type::IntOrString);
        node.format = Some("quantity".into());
    }
    Schema::new(node)
}

/// The schema of a custom resource's objects. `path` is where it stands in its definition.
pub fn parse_custom(json: &Value, path: &str) -> Result<Schema, Vec<FieldError>> {
    let mut reader = Reader { definition: None, errors: Vec::new() };
    let mut node = reader.node(json, path, 0);
    if !reader.errors.is_empty() {
        return Err(reader.errors);
    }
    let string = || Schema::new(Node { types: Some(Type::String), ..Node::default() });
    node.properties.entry("apiVersion".into()).or_insert_with(string);
    node.properties.entry("kind".into()).or_insert_with(string);
    if let Some(constraints) = node.properties.insert("metadata".into(), object_meta()) {
        let properties = [("metadata".to_owned(), constraints)].into_iter().collect();
        node.all_of.push(Schema::new(Node { properties, ..Node::default() }));
    }
    Ok(Schema::new(node))
}

struct Reader<'a> {
    /// Name of the built-in definition being read; its facts complete the schema.
    definition: Option<&'a str>,
    errors: Vec<FieldError>,
}

impl Reader<'_> {
    fn schema(&mut self, json: &Value, path: &str, depth: usize) -> Schema {
        Schema::new(self.node(json, path, depth))
    }

    fn node(&mut self, json: &Value, path: &str, depth: usize) -> Node {
        if depth > MAX_DEPTH {
            self.errors.push(FieldError::forbidden(path, format!("schemas nest at most {MAX_DEPTH} deep")));
            return Node::default();
        }
        let description = text(json, "description");
        if let Some(target) = json.get("$ref").and_then(Value::as_str) {
            let name = target.rsplit('/').next().unwrap_or(target);
            return Schema::reference(name, description);
        }
        let mut node = Node {
            description,
            types: read_type(json),
            nullable: flag(json, "nullable"),
            format: json.get("format").and_then(Value::as_str).map(str::to_owned),
            required: strings(json.get("required")),
            default: json.get("default").filter(|d| !d.is_null()).cloned(),
            preserve_unknown: flag(json, "x-kubernetes-preserve-unknown-fields"),
            embedded_resource: flag(json, "x-kubernetes-embedded-resource"),
            list_type: read_list_type(json),
            atomic_map: json.get("x-kubernetes-map-type").is_some_and(|t| t == "atomic"),
            ..Node::default()
        };
        node.limits = self.limits(json, path);
        self.children(json, path, depth, &mut node);
        node.rules = self.rules(json, path);
        node
    }

    fn children(&mut self, json: &Value, path: &str, depth: usize, node: &mut Node) {
        let empty = Map::new();
        let properties = json.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        for (name, property) in properties {
            let mut child = self.node(property, &format!("{path}.properties[{name}]"), depth + 1);
            if let Some(known) = self.definition.and_then(|definition| facts::field(definition, name)) {
                complete(&mut child, known);
            }
            node.properties.insert(name.clone(), Schema::new(child));
        }
        node.additional = match json.get("additionalProperties") {
            Some(Value::Bool(true)) => Additional::Anything,
            Some(each @ Value::Object(_)) => {
                Additional::Each(self.schema(each, &format!("{path}.additionalProperties"), depth + 1))
            }
            _ => Additional::Nothing,
        };
        let items = json.get("items").filter(|items| items.is_object());
        node.items = items.map(|items| self.schema(items, &format!("{path}.items"), depth + 1));
        node.all_of = self.branches(json, "allOf", path, depth);
        node.any_of = self.branches(json, "anyOf", path, depth);
        node.one_of = self.branches(json, "oneOf", path, depth);
        node.not = json.get("not").map(|not| self.schema(not, &format!("{path}.not"), depth + 1));
    }

    fn branches(&mut self, json: &Value, key: &str, path: &str, depth: usize) -> Vec<Schema> {
        let list = json.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let indexed = list.iter().enumerate();
        indexed.map(|(i, branch)| self.schema(branch, &format!("{path}.{key}[{i}]"), depth + 1)).collect()
    }

    fn limits(&mut self, json: &Value, path: &str) -> Limits {
        let number = |key: &str| json.get(key).and_then(Value::as_f64);
        let count = |key: &str| json.get(key).and_then(Value::as_u64);
        let pattern = json.get("pattern").and_then(Value::as_str).filter(|p| !p.is_empty());
        Limits {
            minimum: number("minimum"),
            maximum: number("maximum"),
            exclusive_minimum: flag(json, "exclusiveMinimum"),
            exclusive_maximum: flag(json, "exclusiveMaximum"),
            multiple_of: number("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            pattern: pattern.and_then(|p| self.pattern(p, path)),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            unique_items: flag(json, "uniqueItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            enumeration: json.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
        }
    }

    fn pattern(&mut self, pattern: &str, path: &str) -> Option<(String, Regex)> {
        match Regex::new(pattern) {
            Ok(regex) => Some((pattern.to_owned(), regex)),
            Err(error) => {
                let detail = format!("must be a valid regular expression, but isn't: {error}");
                let value = Value::String(pattern.to_owned());
                self.errors.push(FieldError::invalid(format!("{path}.pattern"), &value, detail));
                None
            }
        }
    }

    fn rules(&mut self, json: &Value, path: &str) -> Vec<ValidationRule> {
        let list = json.get("x-kubernetes-validations").and_then(Value::as_array);
        let list = list.map_or(&[][..], Vec::as_slice).iter().enumerate();
        list.filter_map(|(i, rule)| self.rule(rule, &format!("{path}.x-kubernetes-validations[{i}]")))
            .collect()
    }

    fn rule(&mut self, json: &Value, path: &str) -> Option<ValidationRule> {
        let source = text(json, "rule");
        if source.trim().is_empty() {
            self.errors.push(FieldError::required(format!("{path}.rule"), "rule is not specified"));
            return None;
        }
        let compiled = Rule::compile(&source).map(Arc::new);
        let transition = compiled.as_ref().is_ok_and(|rule| rule.uses_old_self());
        let message = json.get("message").and_then(Value::as_str).map(str::to_owned);
        let expression = json.get("messageExpression").and_then(Value::as_str);
        let field_path = json.get("fieldPath").and_then(Value::as_str).map(str::to_owned);
        Some(ValidationRule {
            message,
            message_expression: expression.and_then(|e| Rule::compile(e).ok()).map(Arc::new),
            reason: read_reason(json.get("reason").and_then(Value::as_str)),
            field_path,
            transition,
            optional_old_self: flag(json, "optionalOldSelf"),
            source,
            compiled,
        })
    }
}

fn complete(node: &mut Node, known: &facts::Facts) {
    node.list_type = known.list_type.clone().or(node.list_type.take());
    node.atomic_map |= known.atomic_map;
    node.patch_strategy = PatchStrategy { ..known.strategy };
    node.patch_merge_key = known.merge_key.map(str::to_owned);
    node.default = known.default.map(|d| Value::String(d.to_owned())).or(node.default.take());
}

fn read_type(json: &Value) -> Option<Type> {
    if flag(json, "x-kubernetes-int-or-string") {
        return Some(Type::IntOrString);
    }
    match json.get("type").and_then(Value::as_str)? {
        "object" => Some(Type::Object),
        "array" => Some(Type::Array),
        "string" => Some(Type::String),
        "integer" => Some(Type::Integer),
        "number" => Some(Type::Number),
        "boolean" => Some(Type::Boolean),
        _ => None,
    }
}

fn read_list_type(json: &Value) -> Option<ListType> {
    match json.get("x-kubernetes-list-type").and_then(Value::as_str)? {
        "map" => Some(ListType::Map(strings(json.get("x-kubernetes-list-map-keys")))),
        "set" => Some(ListType::Set),
        _ => Some(ListType::Atomic),
    }
}

fn read_reason(reason: Option<&str>) -> FieldReason {
    match reason {
        Some("FieldValueRequired") => FieldReason::Required,
        Some("FieldValueForbidden") => FieldReason::Forbidden,
        Some("FieldValueDuplicate") => FieldReason::Duplicate,
        _ => FieldReason::Invalid,
    }
}

fn flag(json: &Value, key: &str) -> bool {
    json.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn text(json: &Value, key: &str) -> String {
    json.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn strings(json: Option<&Value>) -> Vec<String> {
    let list = json.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    list.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}
