//! The schema of one position in an object and how to walk from it to the next.
//! Reading schemas from JSON lives in `parse`; what is done with values lives in the other modules.
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use regex::Regex;
use serde_json::Value;

use super::builtin;
use super::cel::Rule;

/// A position in a schema. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Schema(pub(super) Arc<Node>);

#[derive(Debug, Default)]
pub(super) struct Node {
    pub reference: Option<Reference>,
    pub description: String,
    pub types: Option<Type>,
    pub nullable: bool,
    pub format: Option<String>,
    pub properties: BTreeMap<String, Schema>,
    pub required: Vec<String>,
    pub additional: Additional,
    pub items: Option<Schema>,
    pub limits: Limits,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Schema>,
    pub default: Option<Value>,
    pub preserve_unknown: bool,
    pub embedded_resource: bool,
    pub list_type: Option<ListType>,
    pub atomic_map: bool,
    pub patch_strategy: PatchStrategy,
    pub patch_merge_key: Option<String>,
    pub rules: Vec<ValidationRule>,
}

/// A named definition that is only looked up when somebody walks into it.
#[derive(Debug)]
pub(super) struct Reference {
    pub name: String,
    pub target: OnceLock<Schema>,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Limits {
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    pub exclusive_minimum: bool,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub pattern: Option<(String, Regex)>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub unique_items: bool,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    pub enumeration: Vec<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
}

impl Type {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::IntOrString => "integer,string",
        }
    }
}

/// What an object may hold beside its named properties.
#[derive(Debug, Default, Clone)]
pub enum Additional {
    #[default]
    Nothing,
    Anything,
    Each(Schema),
}

/// How server-side apply and strategic merge see a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListType {
    Atomic,
    Set,
    Map(Vec<String>),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub replace: bool,
    pub retain_keys: bool,
}

/// One entry of `x-kubernetes-validations`.
#[derive(Debug, Clone)]
pub struct ValidationRule {
    pub source: String,
    pub message: Option<String>,
    pub message_expression: Option<Arc<Rule>>,
    pub reason: super::FieldReason,
    pub field_path: Option<String>,
    /// The rule may look at `oldSelf`, so it runs on updates only unless it says otherwise.
    pub transition: bool,
    pub optional_old_self: bool,
    /// None when the expression does not compile; the definition's installer is told.
    pub compiled: Result<Arc<Rule>, String>,
}

impl Schema {
    pub(super) fn new(node: Node) -> Self {
        Self(Arc::new(node))
    }

    pub(super) fn reference(name: &str, description: String) -> Node {
        let reference = Reference { name: name.to_owned(), target: OnceLock::new() };
        Node { reference: Some(reference), description, ..Node::default() }
    }

    /// The schema of a field nobody declared: anything goes, lists are atomic.
    pub fn anything() -> Self {
        static ANYTHING: OnceLock<Schema> = OnceLock::new();
        let node = || Node { preserve_unknown: true, ..Node::default() };
        ANYTHING.get_or_init(|| Self::new(node())).clone()
    }

    /// This schema, or the definition it refers to.
    pub(super) fn node(&self) -> &Node {
        let mut node = &*self.0;
        while let Some(reference) = &node.reference {
            let target = reference.target.get_or_init(|| builtin::by_name(&reference.name));
            node = &target.0;
        }
        node
    }

    pub fn description(&self) -> &str {
        if self.0.description.is_empty() { &self.node().description } else { &self.0.description }
    }

    pub fn kind_of_value(&self) -> Option<Type> {
        self.node().types
    }

    /// The schema of a declared or additional field; None for an unknown one.
    pub fn find_field(&self, name: &str) -> Option<Schema> {
        let node = self.node();
        if let Some(field) = node.properties.get(name) {
            return Some(field.clone());
        }
        match &node.additional {
            Additional::Each(schema) => Some(schema.clone()),
            Additional::Anything => Some(Self::anything()),
            Additional::Nothing if node.preserve_unknown || node.types.is_none() => Some(Self::anything()),
            Additional::Nothing if node.embedded_resource => embedded_field(name),
            Additional::Nothing => None,
        }
    }

    /// The schema of a field; unknown fields hold anything.
    pub fn field(&self, name: &str) -> Schema {
        self.find_field(name).unwrap_or_else(Self::anything)
    }

    /// The schema of a list's items.
    pub fn items(&self) -> Schema {
        self.node().items.clone().unwrap_or_else(Self::anything)
    }

    pub fn list_type(&self) -> ListType {
        let declared = self.0.list_type.as_ref().or(self.node().list_type.as_ref());
        declared.cloned().unwrap_or(ListType::Atomic)
    }

    /// Server-side apply owns this object as a whole, not field by field.
    pub fn is_atomic_map(&self) -> bool {
        self.0.atomic_map || self.node().atomic_map
    }

    pub fn patch_strategy(&self) -> PatchStrategy {
        self.0.patch_strategy
    }

    /// The field that tells a list's items apart in a strategic merge patch.
    pub fn patch_merge_key(&self) -> Option<&str> {
        self.0.patch_merge_key.as_deref()
    }

    /// The value a missing key field of this list's items stands for.
    pub fn default_for_key(&self, key: &str) -> Option<Value> {
        self.items().find_field(key)?.default_value()
    }

    pub fn default_value(&self) -> Option<Value> {
        self.0.default.clone().or_else(|| self.node().default.clone())
    }

    /// Fields are declared here, so an undeclared one is a mistake.
    pub fn is_known(&self) -> bool {
        self.node().types.is_some() && !self.node().preserve_unknown
    }

    /// Names of the fields that must be there.
    pub fn required(&self) -> &[String] {
        &self.node().required
    }

    /// A string without a format of its own.
    pub(crate) fn is_plain_text(&self) -> bool {
        self.node().types == Some(Type::String) && self.node().format.is_none()
    }

    pub fn rules(&self) -> &[ValidationRule] {
        &self.0.rules
    }

    /// Calls a function on this schema and all below it that are not references, with their paths.
    pub(crate) fn visit(&self, path: &str, call: &mut dyn FnMut(&str, &Schema)) {
        call(path, self);
        for (name, property) in &self.0.properties {
            property.visit(&format!("{path}.properties[{name}]"), call);
        }
        if let Additional::Each(each) = &self.0.additional {
            each.visit(&format!("{path}.additionalProperties"), call);
        }
        if let Some(items) = &self.0.items {
            items.visit(&format!("{path}.items"), call);
        }
        for branch in &self.0.all_of {
            branch.visit(&format!("{path}.allOf"), call);
        }
    }

    pub fn properties(&self) -> impl Iterator<Item = (&str, &Schema)> {
        self.node().properties.iter().map(|(name, schema)| (name.as_str(), schema))
    }
}

/// Objects embedded in others always have these three.
pub(super) fn embedded_field(name: &str) -> Option<Schema> {
    match name {
        "apiVersion" | "kind" => Some(Schema::new(Node { types: Some(Type::String), ..Node::default() })),
        "metadata" => Some(object_meta()),
        _ => None,
    }
}

pub(super) fn object_meta() -> Schema {
    Schema::new(Schema::reference(builtin::OBJECT_META, String::new()))
}
