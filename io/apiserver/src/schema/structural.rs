//! Checks a CustomResourceDefinition: its names, versions and that its schemas are structural.
//! Reading the schemas for use is `parse`'s part; serving them the registry's.
use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::errors::FieldError;
use super::model::Type;
use super::{formats, parse_custom, validate};

const SCALARS: &[&str] = &["string", "integer", "number", "boolean"];
const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];
const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
const NEVER: &[&str] =
    &["$ref", "$schema", "id", "definitions", "dependencies", "patternProperties", "additionalItems"];
const NOT_IN_BRANCHES: &[&str] = &[
    "type",
    "additionalProperties",
    "default",
    "nullable",
    "description",
    "title",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
];

/// All that is wrong with a definition.
pub fn check_definition(definition: &Value) -> Vec<FieldError> {
    let mut check = Check { errors: Vec::new() };
    let spec = &definition["spec"];
    check.names(definition, spec);
    check.versions(spec);
    check.conversion(spec);
    check.errors
}

struct Check {
    errors: Vec<FieldError>,
}

impl Check {
    fn push(&mut self, error: FieldError) {
        self.errors.push(error);
    }

    fn names(&mut self, definition: &Value, spec: &Value) {
        let group = spec["group"].as_str().unwrap_or_default();
        let plural = spec["names"]["plural"].as_str().unwrap_or_default();
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        if name != format!("{plural}.{group}") {
            let detail = "must be spec.names.plural+\".\"+spec.group";
            self.push(FieldError::invalid("metadata.name", &json!(name), detail));
        }
        if group.is_empty() {
            self.push(FieldError::required("spec.group", ""));
        } else if !formats::is_dns1123_subdomain(group) || !group.contains('.') {
            let detail = "should be a domain with at least one dot";
            self.push(FieldError::invalid("spec.group", &json!(group), detail));
        }
        match spec["scope"].as_str() {
            Some("Namespaced" | "Cluster") => {}
            Some(other) => {
                self.push(FieldError::not_supported("spec.scope", &json!(other), &["Cluster", "Namespaced"]));
            }
            None => self.push(FieldError::required("spec.scope", "")),
        }
        if spec["preserveUnknownFields"] == true {
            let detail = "must be false; use x-kubernetes-preserve-unknown-fields in the schema instead";
            self.push(FieldError::invalid("spec.preserveUnknownFields", &json!(true), detail));
        }
        for (field, required) in [("plural", true), ("kind", true), ("singular", false), ("listKind", false)]
        {
            self.name(spec, field, required);
        }
        for (i, short) in spec["names"]["shortNames"].as_array().into_iter().flatten().enumerate() {
            if !short.as_str().is_some_and(formats::is_dns1035_label) {
                self.bad_label(format!("spec.names.shortNames[{i}]"), short);
            }
        }
    }

    fn name(&mut self, spec: &Value, field: &str, required: bool) {
        let path = format!("spec.names.{field}");
        match spec["names"][field].as_str().filter(|n| !n.is_empty()) {
            Some(name) if !formats::is_dns1035_label(&name.to_lowercase()) => {
                self.bad_label(path, &json!(name))
            }
            None if required => self.push(FieldError::required(path, "")),
            _ => {}
        }
    }

    fn bad_label(&mut self, path: String, value: &Value) {
        let detail = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                      alphabetic character, and end with an alphanumeric character";
        self.push(FieldError::invalid(path, value, detail));
    }

    fn conversion(&mut self, spec: &Value) {
        let strategy = spec["conversion"]["strategy"].as_str().unwrap_or("None");
        let versions = spec["versions"].as_array().map_or(0, Vec::len);
        let supported = strategy == "None" || (strategy == "Webhook" && versions <= 1);
        if !supported {
            self.push(FieldError::not_supported("spec.conversion.strategy", &json!(strategy), &["None"]));
        }
    }

    fn versions(&mut self, spec: &Value) {
        let empty = Vec::new();
        let versions = spec["versions"].as_array().unwrap_or(&empty);
        if versions.is_empty() {
            self.push(FieldError::required("spec.versions", "must have at least one version"));
            return;
        }
        let mut seen = HashSet::new();
        for (i, version) in versions.iter().enumerate() {
            let path = format!("spec.versions[{i}]");
            let name = version["name"].as_str().unwrap_or_default();
            if !formats::is_dns1035_label(name) {
                self.bad_label(format!("{path}.name"), &json!(name));
            }
            if !seen.insert(name) {
                self.push(FieldError::duplicate(format!("{path}.name"), &json!(name)));
            }
            self.version(version, &path);
        }
        if versions.iter().filter(|v| v["storage"] == true).count() != 1 {
            let names: Vec<&Value> = versions.iter().map(|v| &v["name"]).collect();
            let detail = "must have exactly one version marked as storage version";
            self.push(FieldError::invalid("spec.versions", &json!(names), detail));
        }
        if !versions.iter().any(|v| v["served"] == true) {
            let names: Vec<&Value> = versions.iter().map(|v| &v["name"]).collect();
            self.push(FieldError::invalid(
                "spec.versions",
                &json!(names),
                "must have at least one served version",
            ));
        }
    }

    fn version(&mut self, version: &Value, path: &str) {
        let schema_path = format!("{path}.schema.openAPIV3Schema");
        match version["schema"]["openAPIV3Schema"].as_object() {
            Some(schema) => {
                self.root(schema, &schema_path);
                self.defaults(&version["schema"]["openAPIV3Schema"], &schema_path);
            }
            None => self.push(FieldError::required(schema_path, "schemas are required")),
        }
        for (i, column) in version["additionalPrinterColumns"].as_array().into_iter().flatten().enumerate() {
            self.column(column, &format!("{path}.additionalPrinterColumns[{i}]"));
        }
        for (i, field) in version["selectableFields"].as_array().into_iter().flatten().enumerate() {
            if !field["jsonPath"].as_str().is_some_and(|p| p.starts_with('.')) {
                let path = format!("{path}.selectableFields[{i}].jsonPath");
                self.push(FieldError::invalid(
                    path,
                    &field["jsonPath"],
                    "must be a simple json path starting with .",
                ));
            }
        }
        let scale = &version["subresources"]["scale"];
        if scale.is_object() {
            for (field, prefix) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
                if !scale[field].as_str().is_some_and(|p| p.starts_with(prefix)) {
                    let path = format!("{path}.subresources.scale.{field}");
                    let detail = format!("should be a json path under {}", prefix.trim_end_matches('.'));
                    self.push(FieldError::invalid(path, &scale[field], detail));
                }
            }
        }
    }

    fn column(&mut self, column: &Value, path: &str) {
        for field in ["name", "jsonPath"] {
            if column[field].as_str().is_none_or(str::is_empty) {
                self.push(FieldError::required(format!("{path}.{field}"), ""));
            }
        }
        let kind = column["type"].as_str().unwrap_or_default();
        if !COLUMN_TYPES.contains(&kind) {
            self.push(FieldError::not_supported(format!("{path}.type"), &json!(kind), COLUMN_TYPES));
        }
    }

    fn root(&mut self, schema: &Map<String, Value>, path: &str) {
        if schema.get("type").and_then(Value::as_str) != Some("object") {
            let value = schema.get("type").cloned().unwrap_or(json!(""));
            self.push(FieldError::invalid(format!("{path}.type"), &value, "must be object at the root"));
        }
        for property in schema.get("properties").and_then(|p| p["metadata"].get("properties")).into_iter() {
            for name in property.as_object().into_iter().flatten().map(|(name, _)| name) {
                if name != "name" && name != "generateName" {
                    let path = format!("{path}.properties[metadata].properties[{name}]");
                    let detail = "must not specify anything other than name and generateName, but metadata is \
                                  implicitly specified";
                    self.push(FieldError::forbidden(path, detail));
                }
            }
        }
        self.node(schema, path, Place::Field, 0);
    }

    fn node(&mut self, schema: &Map<String, Value>, path: &str, place: Place, depth: usize) {
        if depth > 100 {
            return self.push(FieldError::forbidden(path, "schemas nest at most 100 deep"));
        }
        for key in NEVER.iter().filter(|key| schema.contains_key(**key)) {
            self.push(FieldError::forbidden(format!("{path}.{key}"), format!("{key} is not supported")));
        }
        if schema.get("uniqueItems") == Some(&Value::Bool(true)) {
            let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.push(FieldError::forbidden(format!("{path}.uniqueItems"), detail));
        }
        match place {
            Place::Field => self.field(schema, path),
            Place::Branch => self.branch(schema, path),
        }
        self.children(schema, path, place, depth);
    }

    fn field(&mut self, schema: &Map<String, Value>, path: &str) {
        let on = |key: &str| schema.get(key) == Some(&Value::Bool(true));
        let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
        let int_or_string = on("x-kubernetes-int-or-string");
        let free = on("x-kubernetes-preserve-unknown-fields") || int_or_string;
        if kind.is_empty() && !free {
            let detail = "must not be empty for specified object fields";
            self.push(FieldError::required(format!("{path}.type"), detail));
        } else if !kind.is_empty() && int_or_string {
            let detail = "must be empty if x-kubernetes-int-or-string is true";
            self.push(FieldError::invalid(format!("{path}.type"), &json!(kind), detail));
        } else if !kind.is_empty() && !TYPES.contains(&kind) {
            self.push(FieldError::not_supported(format!("{path}.type"), &json!(kind), TYPES));
        }
        if kind == "array" && !schema.get("items").is_some_and(Value::is_object) {
            self.push(FieldError::required(format!("{path}.items"), "must be specified"));
        }
        let additional = schema.get("additionalProperties").is_some_and(|a| *a != Value::Bool(false));
        if additional && schema.get("properties").and_then(Value::as_object).is_some_and(|p| !p.is_empty()) {
            let detail = "additionalProperties and properties are mutual exclusive";
            self.push(FieldError::forbidden(format!("{path}.additionalProperties"), detail));
        }
        if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
            let detail = "additionalProperties cannot be set to false";
            self.push(FieldError::forbidden(format!("{path}.additionalProperties"), detail));
        }
        self.list(schema, path, kind);
    }

    fn list(&mut self, schema: &Map<String, Value>, path: &str, kind: &str) {
        let Some(list_type) = schema.get("x-kubernetes-list-type").and_then(Value::as_str) else { return };
        let at = format!("{path}.x-kubernetes-list-type");
        if kind != "array" {
            self.push(FieldError::invalid(
                format!("{path}.type"),
                &json!(kind),
                "must be array if x-kubernetes-list-type is specified",
            ));
        }
        let empty = Value::Null;
        let items = schema.get("items").unwrap_or(&empty);
        match list_type {
            "atomic" | "set" => {}
            "map" => self.map_keys(schema, items, path),
            other => self.push(FieldError::not_supported(at, &json!(other), &["atomic", "map", "set"])),
        }
    }

    fn map_keys(&mut self, schema: &Map<String, Value>, items: &Value, path: &str) {
        let at = format!("{path}.x-kubernetes-list-map-keys");
        let keys: Vec<&str> = match schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array) {
            Some(keys) => keys.iter().filter_map(Value::as_str).collect(),
            None => Vec::new(),
        };
        if keys.is_empty() {
            self.push(FieldError::required(at, "must not be empty if x-kubernetes-list-type is map"));
            return;
        }
        let required: Vec<&str> =
            items["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (i, key) in keys.iter().enumerate() {
            let property = &items["properties"][key];
            let scalar = property["type"].as_str().is_some_and(|t| SCALARS.contains(&t));
            if property.is_null() || !scalar {
                let detail = "entries must all be names of scalar item properties";
                self.push(FieldError::invalid(format!("{at}[{i}]"), &json!(key), detail));
            } else if !required.contains(key) && property.get("default").is_none() {
                let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a \
                              required property";
                self.push(FieldError::required(format!("{path}.items.properties[{key}].default"), detail));
            }
        }
    }

    fn branch(&mut self, schema: &Map<String, Value>, path: &str) {
        for key in NOT_IN_BRANCHES.iter().filter(|key| schema.contains_key(**key)) {
            // `anyOf: [{type: integer}, {type: string}]` is how int-or-string fields are spelled.
            let int_or_string = *key == "type" && schema.len() == 1;
            if !int_or_string {
                self.push(FieldError::forbidden(format!("{path}.{key}"), "must be empty to be structural"));
            }
        }
    }

    fn children(&mut self, schema: &Map<String, Value>, path: &str, place: Place, depth: usize) {
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, property) in properties.into_iter().flatten() {
            let path = format!("{path}.properties[{name}]");
            match property.as_object() {
                Some(property) => self.node(property, &path, place, depth + 1),
                None => self.push(FieldError::invalid(path, property, "must be a schema")),
            }
        }
        for key in ["items", "additionalProperties"] {
            if let Some(child) = schema.get(key).and_then(Value::as_object) {
                self.node(child, &format!("{path}.{key}"), place, depth + 1);
            }
        }
        for key in ["allOf", "anyOf", "oneOf"] {
            for (i, child) in schema.get(key).and_then(Value::as_array).into_iter().flatten().enumerate() {
                if let Some(child) = child.as_object() {
                    self.node(child, &format!("{path}.{key}[{i}]"), Place::Branch, depth + 1);
                }
            }
        }
        if let Some(not) = schema.get("not").and_then(Value::as_object) {
            self.node(not, &format!("{path}.not"), Place::Branch, depth + 1);
        }
    }

    /// Every default must itself be a valid value.
    fn defaults(&mut self, schema: &Value, path: &str) {
        if !self.errors.is_empty() {
            return;
        }
        let Some(object) = schema.as_object() else { return };
        if let Some(default) = object.get("default").filter(|d| !d.is_null()) {
            match parse_custom(schema, path) {
                Ok(parsed) if parsed.kind_of_value() != Some(Type::Object) || default.is_object() => {
                    let found = validate(&parsed, default, "");
                    self.errors.extend(found.into_iter().map(|mut error| {
                        error.field = format!("{path}.default");
                        error
                    }));
                }
                Ok(_) => {
                    self.push(FieldError::invalid(format!("{path}.default"), default, "must be an object"))
                }
                Err(errors) => self.errors.extend(errors),
            }
        }
        for (name, property) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
            self.defaults(property, &format!("{path}.properties[{name}]"));
        }
        for key in ["items", "additionalProperties"] {
            if let Some(child) = object.get(key).filter(|c| c.is_object()) {
                self.defaults(child, &format!("{path}.{key}"));
            }
        }
    }
}

/// Where a schema stands: describing a field, or restricting one from within a logical junctor.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Field,
    Branch,
}
