//! Reads a JSON object as an instance of its kind: drops unknown fields and nulls, reports wrong types.
//! Values of custom kinds keep wrong types here; validation reports them as it does upstream.
use serde_json::{Map, Value};

use super::errors::{FieldError, FieldReason};
use super::facts;
use super::formats;
use super::model::{Additional, Node, Schema, Type};
use super::quantity::{self, Quantity};
use crate::kinds::Kind;

/// What decoding an object found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// `unknown field "spec.foo"`, for strict and warning field validation. The fields are gone.
    pub unknown: Vec<String>,
    /// Values that the kind's fields cannot hold; the object must be refused.
    pub errors: Vec<FieldError>,
}

/// Decodes in place.
pub fn decode(kind: &Kind, object: &mut Value) -> Decoded {
    let mut walk = Walk { decoded: Decoded::default() };
    let position = Position { typed: !kind.is_custom(), owner: &kind.schema_name };
    walk.value(&super::root(kind), object, &mut String::new(), position);
    walk.decoded
}

/// Drops what the schema does not know, silently.
pub fn prune(schema: &Schema, object: &mut Value) {
    let mut walk = Walk { decoded: Decoded::default() };
    walk.value(schema, object, &mut String::new(), Position { typed: false, owner: "" });
}

/// The message of the 400 that refuses an object with wrong types.
pub fn decode_message(kind: &Kind, errors: &[FieldError]) -> String {
    let all: Vec<&str> = errors.iter().map(|e| e.message.as_str()).collect();
    let name = &kind.kind;
    format!("{name} in version {:?} cannot be handled as a {name}: {}", kind.version, all.join(", "))
}

#[derive(Clone, Copy)]
struct Position<'a> {
    /// Wrong types are errors here.
    typed: bool,
    /// Name of the definition whose field this is.
    owner: &'a str,
}

struct Walk {
    decoded: Decoded,
}

impl Walk {
    fn value(&mut self, schema: &Schema, value: &mut Value, path: &mut String, outer: Position<'_>) {
        let at = match &schema.0.reference {
            Some(reference) => Position { typed: true, owner: &reference.name },
            None => outer,
        };
        let node = schema.node();
        match (node.types, &mut *value) {
            (Some(Type::Object), Value::Object(fields)) => self.object(schema, node, fields, path, at),
            (Some(Type::Array), Value::Array(items)) => {
                let schema = schema.items();
                for (index, item) in items.iter_mut().enumerate() {
                    self.within(path, &format!("[{index}]"), |walk, path| {
                        walk.value(&schema, item, path, at)
                    });
                }
            }
            (None, Value::Object(fields)) if !node.properties.is_empty() => {
                self.object(schema, node, fields, path, at);
            }
            (Some(types), _) if at.typed => self.scalar(node, types, value, path, at),
            _ => {}
        }
    }

    fn object(
        &mut self,
        schema: &Schema,
        node: &Node,
        fields: &mut Map<String, Value>,
        path: &mut String,
        at: Position<'_>,
    ) {
        let is_map = matches!(node.additional, Additional::Each(_) | Additional::Anything);
        let mut drop_keys = Vec::new();
        for (name, value) in fields.iter_mut() {
            let step = if path.is_empty() { name.clone() } else { format!(".{name}") };
            let Some(field) = schema.find_field(name) else {
                self.decoded.unknown.push(format!("unknown field \"{path}{step}\""));
                drop_keys.push(name.clone());
                continue;
            };
            let free = is_map || field.0.nullable || node.preserve_unknown;
            if value.is_null() && !free && field.node().types.is_some() {
                drop_keys.push(name.clone());
                continue;
            }
            self.within(path, &step, |walk, path| walk.value(&field, value, path, at));
        }
        if !drop_keys.is_empty() {
            fields.retain(|name, _| !drop_keys.contains(name));
        }
    }

    fn within(&mut self, path: &mut String, step: &str, then: impl FnOnce(&mut Self, &mut String)) {
        let length = path.len();
        path.push_str(step);
        then(self, path);
        path.truncate(length);
    }

    fn scalar(&mut self, node: &Node, types: Type, value: &mut Value, path: &str, at: Position<'_>) {
        if node.format.as_deref() == Some("quantity") {
            return self.quantity(value, path);
        }
        let fits = match (types, &*value) {
            (Type::String, Value::String(text)) => return self.text(node, text, path),
            (Type::Boolean, Value::Bool(_)) | (Type::Number, Value::Number(_)) => true,
            (Type::Integer, Value::Number(number)) => integer_fits(number, node.format.as_deref()),
            (Type::IntOrString, Value::String(_)) => true,
            (Type::IntOrString, Value::Number(number)) => integer_fits(number, Some("int32")),
            _ => false,
        };
        if !fits {
            let message = cannot_unmarshal(value, node, types, path, at.owner);
            self.error(path, message);
        } else if let (Type::Integer | Type::IntOrString, Some(whole)) = (types, whole_number(value)) {
            *value = Value::from(whole);
        }
    }

    fn quantity(&mut self, value: &mut Value, path: &str) {
        match Quantity::from_value(value) {
            Some(quantity) => *value = Value::String(quantity.to_string()),
            None => self.error(path, quantity::PATTERN_MESSAGE.to_owned()),
        }
    }

    fn text(&mut self, node: &Node, text: &str, path: &str) {
        match node.format.as_deref() {
            Some("date-time") if formats::parse_time(text).is_none() => {
                let layout = "2006-01-02T15:04:05Z07:00";
                self.error(path, format!("parsing time {text:?} as {layout:?}: cannot parse {text:?}"));
            }
            Some("byte") => {
                if let Err(at) = formats::decode_base64(text) {
                    self.error(path, format!("illegal base64 data at input byte {at}"));
                }
            }
            _ => {}
        }
    }

    fn error(&mut self, path: &str, message: String) {
        self.decoded.errors.push(FieldError {
            field: path.to_owned(),
            reason: FieldReason::TypeInvalid,
            message,
        });
    }
}

fn integer_fits(number: &serde_json::Number, format: Option<&str>) -> bool {
    let value = number.as_i64().or_else(|| number.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i64));
    match (value, format) {
        (Some(value), Some("int32")) => i32::try_from(value).is_ok(),
        (value, _) => value.is_some(),
    }
}

/// The integer a number such as `1.0` stands for, when it is written as a float.
fn whole_number(value: &Value) -> Option<i64> {
    let float = value.as_f64().filter(|_| !value.is_i64() && !value.is_u64())?;
    (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64)
}

/// The words of Go's JSON decoder, which clients show to their users.
fn cannot_unmarshal(value: &Value, node: &Node, types: Type, path: &str, owner: &str) -> String {
    let got = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) if matches!(types, Type::Integer | Type::IntOrString) => {
            format!("number {number}")
        }
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    };
    let want = match (types, node.format.as_deref()) {
        (Type::Integer, Some("int64")) => "int64".to_owned(),
        (Type::Integer, _) => "int32".to_owned(),
        (Type::Number, _) => "float64".to_owned(),
        (Type::Boolean, _) => "bool".to_owned(),
        (Type::String, _) => "string".to_owned(),
        (Type::IntOrString, _) => "intstr.IntOrString".to_owned(),
        (Type::Array, _) => format!("[]{}", node.items.as_ref().map_or("object", item_type)),
        (Type::Object, _) if !node.properties.is_empty() => struct_name(owner).to_owned(),
        (Type::Object, _) => "map[string]string".to_owned(),
    };
    let plain: String = strip_indexes(path);
    format!("json: cannot unmarshal {got} into Go struct field {}.{plain} of type {want}", struct_name(owner))
}

fn item_type(items: &Schema) -> &'static str {
    items.kind_of_value().map_or("object", Type::as_str)
}

fn struct_name(definition: &str) -> &str {
    facts::short_name(definition).rsplit('.').next().unwrap_or(definition)
}

fn strip_indexes(path: &str) -> String {
    let mut depth = 0;
    path.chars()
        .filter(|c| {
            match c {
                '[' => depth += 1,
                ']' => depth -= 1,
                _ => return depth == 0,
            }
            false
        })
        .collect()
}
