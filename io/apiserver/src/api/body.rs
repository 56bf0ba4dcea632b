//! Reading objects from requests: content types, YAML, strictness about unknown and duplicate fields.

use serde_json::Value;

use super::Call;
use crate::kinds::Kind;
use crate::schema;
use crate::status::{ApiError, Result};
use crate::wire;

const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// What to do about fields the schema does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    pub fn of(call: &Call) -> Result<Self> {
        match call.query.get("fieldValidation") {
            None | Some("Warn") => Ok(Self::Warn),
            Some("Ignore") => Ok(Self::Ignore),
            Some("Strict") => Ok(Self::Strict),
            Some(other) => Err(ApiError::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Warn\", \"Strict\""
            ))),
        }
    }
}

/// The media type without parameters.
pub fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// Parses a JSON or YAML body of any shape.
pub fn parse(call: &Call) -> Result<Value> {
    match media_type(&call.content_type) {
        "" | "application/json" => from_json(&call.body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => from_yaml(&call.body),
        "application/vnd.kubernetes.protobuf" => {
            wire::decode(&call.body).map_err(|error| ApiError::bad_request(error.to_string()))
        }
        _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
    }
}

pub fn from_json(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| {
        ApiError::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
    })
}

pub fn from_yaml(bytes: &[u8]) -> Result<Value> {
    let text = std::str::from_utf8(bytes).map_err(|e| ApiError::bad_request(format!("yaml: {e}")))?;
    serde_saphyr::from_str(text)
        .map_err(|error| ApiError::bad_request(format!("error converting YAML to JSON: {error}")))
}

/// Parses the body as an object of `kind`, pruned to its schema.
pub fn object(call: &mut Call, kind: &Kind) -> Result<Value> {
    let mut object = parse(call)?;
    check_kind(&object, kind)?;
    let mut problems = Vec::new();
    if matches!(media_type(&call.content_type), "" | "application/json") {
        problems = schema::duplicate_fields(&call.body);
    }
    decode(call, kind, &mut object, problems)?;
    Ok(object)
}

/// Prunes an object to its schema and reports what did not belong, as strictly as the client asked.
pub fn decode(call: &mut Call, kind: &Kind, object: &mut Value, mut problems: Vec<String>) -> Result<()> {
    let validation = FieldValidation::of(call)?;
    let decoded = schema::decode(kind, object);
    if !decoded.errors.is_empty() {
        if kind.is_custom() {
            let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            return Err(ApiError::invalid(kind, name, &decoded.errors));
        }
        return Err(ApiError::bad_request(schema::decode_message(kind, &decoded.errors)));
    }
    problems.extend(decoded.unknown);
    match validation {
        FieldValidation::Strict if !problems.is_empty() => Err(ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
            kind.kind,
            kind.version,
            kind.kind,
            problems.join(", ")
        ))),
        FieldValidation::Warn => {
            call.warnings.extend(problems);
            Ok(())
        }
        FieldValidation::Strict | FieldValidation::Ignore => Ok(()),
    }
}

/// An object is what the URL it came to says it is.
pub fn check_kind(object: &Value, kind: &Kind) -> Result<()> {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let (api_version, found) = (text("apiVersion"), text("kind"));
    if !object.is_object() {
        return Err(ApiError::bad_request(
            "couldn't get version/kind; json parse error: the body is not an object",
        ));
    }
    if found.is_empty() {
        return Err(ApiError::bad_request(format!("Object 'Kind' is missing in '{}'", shortened(object))));
    }
    if api_version.is_empty() {
        return Err(ApiError::bad_request(format!(
            "Object 'apiVersion' is missing in '{}'",
            shortened(object)
        )));
    }
    if api_version != kind.api_version() || found != kind.kind {
        return Err(ApiError::bad_request(format!(
            "{found} in version {:?} cannot be handled as a {}: the object provided is unrecognized \
             (must be of type {}): it is {api_version}, Kind={found}, expected {}, Kind={}",
            api_version.rsplit('/').next().unwrap_or_default(),
            kind.kind,
            kind.kind,
            kind.api_version(),
            kind.kind
        )));
    }
    Ok(())
}

fn shortened(object: &Value) -> String {
    let text = object.to_string();
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

/// Apply patches are YAML by name and mostly JSON in fact.
pub fn from_yaml_or_json(bytes: &[u8]) -> Result<Value> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'{') { from_json(bytes) } else { from_yaml(bytes) }
}
