//! The v2 document in the protobuf form client-go reads (`openapi.v2.Document` of gnostic).
//! Encodes what a document of ours holds; everything unknown travels as a vendor extension or not at all.
use serde_json::{Map, Value};

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, field: u32, wire: u32) {
        self.varint(u64::from(field << 3 | wire));
    }

    fn bytes(&mut self, field: u32, bytes: &[u8]) {
        self.tag(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u32, message: &Self) {
        self.bytes(field, &message.0);
    }

    /// Strings, numbers and flags that a JSON object may have.
    fn text(&mut self, field: u32, value: Option<&Value>) {
        if let Some(text) = value.and_then(Value::as_str) {
            self.bytes(field, text.as_bytes());
        }
    }

    fn integer(&mut self, field: u32, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_i64) {
            self.tag(field, 0);
            self.varint(number as u64);
        }
    }

    fn flag(&mut self, field: u32, value: Option<&Value>) {
        if value == Some(&Value::Bool(true)) {
            self.tag(field, 0);
            self.varint(1);
        }
    }

    fn double(&mut self, field: u32, value: Option<&Value>) {
        if let Some(number) = value.and_then(Value::as_f64) {
            self.tag(field, 1);
            self.0.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// Any JSON, as YAML text.
    fn any(&mut self, field: u32, value: Option<&Value>) {
        if let Some(value) = value {
            let mut any = Self::default();
            any.bytes(2, value.to_string().as_bytes());
            self.message(field, &any);
        }
    }

    fn texts(&mut self, field: u32, list: Option<&Value>) {
        for item in list.and_then(Value::as_array).into_iter().flatten() {
            self.text(field, Some(item));
        }
    }

    fn named(&mut self, field: u32, name: &str, value: &Self) {
        let mut entry = Self::default();
        entry.bytes(1, name.as_bytes());
        entry.message(2, value);
        self.message(field, &entry);
    }

    fn extensions(&mut self, field: u32, object: &Map<String, Value>) {
        for (name, value) in object.iter().filter(|(name, _)| name.starts_with("x-")) {
            let mut any = Self::default();
            any.bytes(2, value.to_string().as_bytes());
            self.named(field, name, &any);
        }
    }
}

/// Encodes a whole v2 document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut message = Message::default();
    message.text(1, document.get("swagger"));
    let mut info = Message::default();
    info.text(1, document["info"].get("title"));
    info.text(2, document["info"].get("version"));
    message.message(2, &info);
    let mut paths = Message::default();
    for (name, item) in document["paths"].as_object().into_iter().flatten() {
        paths.named(2, name, &path_item(item));
    }
    message.message(8, &paths);
    message.message(9, &schemas(document.get("definitions")));
    message.0
}

/// `Definitions` and `Properties` have one shape: named schemas.
fn schemas(map: Option<&Value>) -> Message {
    let mut message = Message::default();
    for (name, value) in map.and_then(Value::as_object).into_iter().flatten() {
        message.named(1, name, &schema(value));
    }
    message
}

fn schema(json: &Value) -> Message {
    let mut message = Message::default();
    let Some(object) = json.as_object() else { return message };
    let get = |name: &str| object.get(name);
    message.text(1, get("$ref"));
    message.text(2, get("format"));
    message.text(3, get("title"));
    message.text(4, get("description"));
    message.any(5, get("default"));
    message.double(6, get("multipleOf"));
    message.double(7, get("maximum"));
    message.flag(8, get("exclusiveMaximum"));
    message.double(9, get("minimum"));
    message.flag(10, get("exclusiveMinimum"));
    let counts = [(11, "maxLength"), (12, "minLength"), (14, "maxItems"), (15, "minItems")];
    message.text(13, get("pattern"));
    for (field, name) in counts.into_iter().chain([(17, "maxProperties"), (18, "minProperties")]) {
        message.integer(field, get(name));
    }
    message.flag(16, get("uniqueItems"));
    message.texts(19, get("required"));
    for value in get("enum").and_then(Value::as_array).into_iter().flatten() {
        message.any(20, Some(value));
    }
    if let Some(additional) = get("additionalProperties") {
        let mut item = Message::default();
        match additional {
            Value::Object(_) => item.message(1, &schema(additional)),
            other => item.flag(2, Some(other)),
        }
        message.message(21, &item);
    }
    if get("type").is_some_and(Value::is_string) {
        let mut kind = Message::default();
        kind.text(1, get("type"));
        message.message(22, &kind);
    }
    if let Some(items) = get("items") {
        let mut list = Message::default();
        list.message(1, &schema(items));
        message.message(23, &list);
    }
    for branch in get("allOf").and_then(Value::as_array).into_iter().flatten() {
        message.message(24, &schema(branch));
    }
    if get("properties").is_some() {
        message.message(25, &schemas(get("properties")));
    }
    message.extensions(31, object);
    message
}

fn path_item(json: &Value) -> Message {
    let mut message = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(found) = json.get(method) {
            message.message(field, &operation(found));
        }
    }
    parameters(&mut message, 9, json.get("parameters"));
    message
}

fn operation(json: &Value) -> Message {
    let mut message = Message::default();
    message.text(3, json.get("description"));
    message.text(5, json.get("operationId"));
    message.texts(7, json.get("consumes"));
    parameters(&mut message, 8, json.get("parameters"));
    let mut responses = Message::default();
    for (code, found) in json["responses"].as_object().into_iter().flatten() {
        let mut item = Message::default();
        item.message(1, &schema(&found["schema"]));
        let mut response = Message::default();
        response.text(1, found.get("description"));
        response.message(2, &item);
        let mut value = Message::default();
        value.message(1, &response);
        responses.named(1, code, &value);
    }
    message.message(9, &responses);
    if let Some(object) = json.as_object() {
        message.extensions(13, object);
    }
    message
}

fn parameters(into: &mut Message, field: u32, list: Option<&Value>) {
    for json in list.and_then(Value::as_array).into_iter().flatten() {
        let mut item = Message::default();
        item.message(1, &parameter(json));
        into.message(field, &item);
    }
}

/// A body parameter, or one in the query or path; the latter two number their fields differently.
fn parameter(json: &Value) -> Message {
    let mut message = Message::default();
    let place = json["in"].as_str().unwrap_or_default();
    if place == "body" {
        let mut body = Message::default();
        body.text(2, json.get("name"));
        body.text(3, json.get("in"));
        body.flag(4, json.get("required"));
        body.message(5, &schema(&json["schema"]));
        message.message(1, &body);
        return message;
    }
    let (variant, kind_field, unique_field) = if place == "path" { (4, 5, 19) } else { (3, 6, 20) };
    let mut inner = Message::default();
    inner.flag(1, json.get("required"));
    inner.text(2, json.get("in"));
    inner.text(4, json.get("name"));
    inner.text(kind_field, json.get("type"));
    inner.flag(unique_field, json.get("uniqueItems"));
    let mut other = Message::default();
    other.message(variant, &inner);
    message.message(2, &other);
    message
}
