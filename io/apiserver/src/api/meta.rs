//! Object metadata that the server owns: uid, timestamps, generation, names, deletion marks.

use base64::Engine as _;
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Map, Value, json};

use super::timestamp;
use crate::http::request::Target;
use crate::kinds::Kind;
use crate::schema::FieldError;
use crate::status::{ApiError, Result};

const GENERATED_SUFFIX_LENGTH: usize = 5;
const MAX_GENERATED_BASE: usize = 58;
/// Without vowels and look-alikes, so that no words appear.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object.get("metadata").is_some_and(Value::is_object) {
        object["metadata"] = json!({});
    }
    object["metadata"].as_object_mut().expect("metadata was just made an object")
}

pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

pub fn is_deleting(object: &Value) -> bool {
    !text(object, "deletionTimestamp").is_empty()
}

pub fn grace_seconds(object: &Value) -> Option<i64> {
    object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64)
}

/// Checks that the object agrees with the URL and gives it the URL's namespace.
pub fn match_target(target: &Target, object: &mut Value) -> Result<()> {
    let kind = &target.kind;
    let (name, namespace) = (text(object, "name").to_owned(), text(object, "namespace").to_owned());
    if !target.name.is_empty() && !name.is_empty() && name != target.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        )));
    }
    match &target.namespace {
        Some(expected) if !namespace.is_empty() && namespace != *expected => {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        Some(expected) => {
            metadata(object).insert("namespace".into(), expected.clone().into());
        }
        None if kind.namespaced => {
            return Err(ApiError::bad_request(
                "the server could not find the requested resource: namespace missing",
            ));
        }
        None => {
            metadata(object).remove("namespace");
        }
    }
    Ok(())
}

/// Fills in what a new object gets from the server. A name must already be there.
pub fn initialise(kind: &Kind, object: &mut Value, now: Timestamp) -> Result<()> {
    if !text(object, "resourceVersion").is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let metadata = metadata(object);
    for field in
        ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]
    {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), new_uid().into());
    metadata.insert("creationTimestamp".into(), timestamp(now).into());
    if counts_generations(kind) {
        metadata.insert("generation".into(), 1.into());
    }
    Ok(())
}

/// Makes up a name from generateName when there is none.
pub fn ensure_name(kind: &Kind, object: &mut Value) -> Result<Named> {
    if !text(object, "name").is_empty() {
        return Ok(Named::ByClient);
    }
    let base = text(object, "generateName").to_owned();
    if base.is_empty() {
        let error = FieldError::required("metadata.name", "name or generateName is required");
        return Err(ApiError::invalid(kind, "", &[error]));
    }
    let base: String = base.chars().take(MAX_GENERATED_BASE).collect();
    let name = format!("{base}{}", random_suffix());
    metadata(object).insert("name".into(), name.into());
    Ok(Named::ByServer)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    ByClient,
    ByServer,
}

/// Carries what the server owns from the stored object into an update of it.
pub fn carry_over(target: &Target, old: &Value, new: &mut Value) -> Result<()> {
    let kind = &target.kind;
    let (given, current) = (text(new, "uid").to_owned(), text(old, "uid"));
    if !given.is_empty() && given != current {
        return Err(ApiError::conflict(
            kind,
            &target.name,
            &format!("Precondition failed: UID in precondition: {given}, UID in object meta: {current}"),
        ));
    }
    let old = old.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    let new = metadata(new);
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "generateName",
    ] {
        match old.get(field) {
            Some(value) => new.insert(field.into(), value.clone()),
            None => new.remove(field),
        };
    }
    Ok(())
}

/// Whether the kind's generation counts changes of its specification.
pub fn counts_generations(kind: &Kind) -> bool {
    !matches!(
        kind.group.as_str(),
        "" | "rbac.authorization.k8s.io" | "coordination.k8s.io" | "events.k8s.io" | "storage.k8s.io"
    )
}

/// Raises the generation when anything but metadata and status differs.
pub fn bump_generation(kind: &Kind, old: &Value, new: &mut Value) {
    if !counts_generations(kind) || specification(old) == specification(new) {
        return;
    }
    let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default();
    metadata(new).insert("generation".into(), (generation + 1).into());
}

fn specification(object: &Value) -> Vec<(&String, &Value)> {
    let mut fields: Vec<_> = object
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| !matches!(name.as_str(), "metadata" | "status" | "apiVersion" | "kind"))
        .collect();
    fields.sort_by_key(|(name, _)| *name);
    fields
}

/// A random (version 4) UUID.
pub fn new_uid() -> String {
    let mut bytes = random_bytes::<16>();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn random_suffix() -> String {
    let bytes = random_bytes::<GENERATED_SUFFIX_LENGTH>();
    bytes.iter().map(|byte| SUFFIX_LETTERS[usize::from(*byte) % SUFFIX_LETTERS.len()] as char).collect()
}

pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("the kernel's random source does not fail once seeded");
    bytes
}

/// Opaque text for `continue` tokens.
pub fn encode_token(value: &Value) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
}

pub fn decode_token(token: &str) -> Option<Value> {
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token).ok()?;
    serde_json::from_slice(&bytes).ok()
}
