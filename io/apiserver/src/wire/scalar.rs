//! Messages whose JSON form is a plain value: times, quantities, ports that are numbers or names.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Error, Fields, Wire};

/// A special message, decoded. An empty one may stand for absence.
pub(super) enum Special {
    Value(Value),
    Absent,
}

impl Special {
    pub(super) fn into_value(self) -> Option<Value> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent => None,
        }
    }
}

pub(super) fn text(bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Broken("text that is not UTF-8"))
}

/// `None` when the type is an ordinary message.
pub(super) fn special(kind: &str, bytes: &[u8]) -> Result<Option<Special>, Error> {
    Ok(Some(match kind {
        "time" => time(bytes, Precision::Seconds)?,
        "microtime" => time(bytes, Precision::Microseconds)?,
        "quantity" => match first_bytes(bytes)? {
            Some(text_bytes) => Special::Value(text(text_bytes)?.into()),
            None => Special::Value("0".into()),
        },
        "intorstring" => Special::Value(int_or_string(bytes)?),
        "fields" | "raw" => match first_bytes(bytes)? {
            Some(raw) if !raw.is_empty() => Special::Value(
                serde_json::from_slice(raw).map_err(|_| Error::Broken("embedded JSON that is none"))?,
            ),
            _ => Special::Absent,
        },
        "strings" => Special::Value(strings(bytes)?),
        "duration" => Special::Value(duration(bytes)?),
        _ => return Ok(None),
    }))
}

fn first_bytes(bytes: &[u8]) -> Result<Option<&[u8]>, Error> {
    for field in Fields(bytes) {
        if let (1, Wire::Bytes(content)) = field? {
            return Ok(Some(content));
        }
    }
    Ok(None)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Precision {
    Seconds,
    Microseconds,
}

fn time(bytes: &[u8], precision: Precision) -> Result<Special, Error> {
    let (mut seconds, mut nanos) = (None, 0);
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(number)) => seconds = Some(number as i64),
            (2, Wire::Varint(number)) => nanos = number as i32,
            _ => {}
        }
    }
    // Go's zero time, which means no time, is sent as an empty message or as year one.
    let Some(seconds) = seconds else { return Ok(Special::Absent) };
    let Ok(at) = Timestamp::new(seconds, nanos) else { return Err(Error::Broken("a time out of range")) };
    if at.strftime("%Y").to_string().trim_start_matches('0') == "1" {
        return Ok(Special::Absent);
    }
    let format = match precision {
        Precision::Seconds => "%Y-%m-%dT%H:%M:%SZ",
        Precision::Microseconds => "%Y-%m-%dT%H:%M:%S.%6fZ",
    };
    Ok(Special::Value(at.strftime(format).to_string().into()))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Error> {
    let (mut is_text, mut number, mut name) = (false, 0, String::new());
    for field in Fields(bytes) {
        match field? {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => number = value as i64,
            (3, Wire::Bytes(value)) => name = text(value)?,
            _ => {}
        }
    }
    Ok(if is_text { name.into() } else { number.into() })
}

fn strings(bytes: &[u8]) -> Result<Value, Error> {
    let mut items = Vec::new();
    for field in Fields(bytes) {
        if let (1, Wire::Bytes(item)) = field? {
            items.push(text(item)?);
        }
    }
    Ok(json!(items))
}

/// Go writes durations such as `1m0s`; whole seconds say the same.
fn duration(bytes: &[u8]) -> Result<Value, Error> {
    for field in Fields(bytes) {
        if let (1, Wire::Varint(nanos)) = field? {
            return Ok(format!("{}s", nanos as i64 / 1_000_000_000).into());
        }
    }
    Ok("0s".into())
}
