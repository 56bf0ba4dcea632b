//! Reading Kubernetes' protobuf bodies, which Go clients send for built-in kinds. Answers are always JSON.

mod scalar;
mod table;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value, json};

use table::{Field, Shape, message, message_of_kind};

/// What every body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// Nothing real nests deeper; hostile bytes might.
const MAX_DEPTH: usize = 64;

/// A body that is not what it claims to be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("the body does not begin with the protobuf prefix")]
    NoPrefix,
    #[error("the protobuf encoding is broken: {0}")]
    Broken(&'static str),
    #[error("no protobuf form is known for {api_version} {kind}")]
    UnknownKind { api_version: String, kind: String },
}

/// Decodes a whole body into the object it carries, as JSON.
pub fn decode(bytes: &[u8]) -> Result<Value, Error> {
    let envelope = bytes.strip_prefix(MAGIC).ok_or(Error::NoPrefix)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(envelope) {
        match field? {
            (1, Wire::Bytes(type_meta)) => {
                for field in Fields(type_meta) {
                    match field? {
                        (1, Wire::Bytes(text)) => api_version = scalar::text(text)?,
                        (2, Wire::Bytes(text)) => kind = scalar::text(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let Some(fields) = message_of_kind(&api_version, &kind) else {
        return Err(Error::UnknownKind { api_version, kind });
    };
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    decode_message(fields, raw, &mut object, MAX_DEPTH)?;
    Ok(Value::Object(object))
}

/// One field's content on the wire.
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

/// The fields of a message in the order they come.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            // Nothing after a broken field can be trusted.
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Result<(u64, Wire<'a>), Error> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Wire::Fixed64(u64::from_le_bytes(
                    bytes.try_into().map_err(|_| Error::Broken("a short number"))?,
                ))
            }
            2 => {
                let length =
                    usize::try_from(self.varint()?).map_err(|_| Error::Broken("a length out of range"))?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err(Error::Broken("an unknown wire type")),
        };
        Ok((tag >> 3, wire))
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Broken("a number too long"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Error::Broken("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }
}

fn decode_message(
    fields: &[Field],
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), Error> {
    if depth == 0 {
        return Err(Error::Broken("it nests too deeply"));
    }
    for field in Fields(bytes) {
        let (number, wire) = field?;
        // A field this server does not know is from a newer client; it goes the way of unknown JSON fields.
        let Some(known) = fields.iter().find(|field| field.number == number) else { continue };
        match &known.shape {
            Shape::Inline(name) => {
                if let (Wire::Bytes(bytes), Some(fields)) = (wire, message(name)) {
                    decode_message(fields, bytes, object, depth - 1)?;
                }
            }
            Shape::One(kind) => {
                if let Some(value) = decode_value(kind, &known.name, wire, depth)? {
                    object.insert(known.name.clone(), value);
                }
            }
            Shape::Many(kind) => {
                let value = decode_value(kind, "", wire, depth)?.unwrap_or(Value::Null);
                match object.entry(known.name.clone()).or_insert_with(|| json!([])) {
                    Value::Array(items) => items.push(value),
                    other => *other = json!([value]),
                }
            }
            Shape::Map(kind) => {
                let Wire::Bytes(entry) = wire else { continue };
                let (key, value) = decode_entry(kind, entry, depth)?;
                object.entry(known.name.clone()).or_insert_with(|| json!({}))[key.as_str()] = value;
            }
        }
    }
    Ok(())
}

fn decode_entry(kind: &str, entry: &[u8], depth: usize) -> Result<(String, Value), Error> {
    let (mut key, mut value) = (String::new(), None);
    for field in Fields(entry) {
        match field? {
            (1, Wire::Bytes(text)) => key = scalar::text(text)?,
            (2, wire) => value = decode_value(kind, "", wire, depth)?,
            _ => {}
        }
    }
    // An entry without a value has the type's empty one.
    let empty = || if matches!(kind, "s" | "x") { json!("") } else { json!({}) };
    Ok((key, value.unwrap_or_else(empty)))
}

/// One value, `None` when Go's JSON would leave it out. List items and map values have no name and always stay.
fn decode_value(kind: &str, name: &str, wire: Wire<'_>, depth: usize) -> Result<Option<Value>, Error> {
    let keeps_empty = name.is_empty();
    Ok(match (kind, wire) {
        ("s", Wire::Bytes(bytes)) => {
            let text = scalar::text(bytes)?;
            (keeps_empty || !text.is_empty()).then_some(Value::String(text))
        }
        ("x", Wire::Bytes(bytes)) => {
            (keeps_empty || !bytes.is_empty()).then(|| Value::String(STANDARD.encode(bytes)))
        }
        // Negative numbers of any width come as their 64-bit two's complement.
        ("i", Wire::Varint(number)) => {
            let number = number as i64;
            (keeps_empty || number != 0 || table::zero_says_something(name)).then(|| number.into())
        }
        ("o", Wire::Varint(number)) => (keeps_empty || number != 0 || table::zero_says_something(name))
            .then_some(Value::Bool(number != 0)),
        ("d", Wire::Fixed64(bits)) => Number::from_f64(f64::from_bits(bits)).map(Value::Number),
        (_, Wire::Bytes(bytes)) => match scalar::special(kind, bytes)? {
            Some(special) => special.into_value(),
            None => {
                let fields = message(kind).ok_or(Error::Broken("a message of an unknown type"))?;
                let mut object = Map::new();
                decode_message(fields, bytes, &mut object, depth - 1)?;
                let always_sent = matches!(name, "status" | "strategy" | "updateStrategy" | "resources");
                (!(always_sent && object.is_empty())).then_some(Value::Object(object))
            }
        },
        (_, Wire::Fixed32 | Wire::Fixed64(_) | Wire::Varint(_)) => {
            return Err(Error::Broken("a field of another type"));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn length_delimited(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let type_meta =
            [length_delimited(1, api_version.as_bytes()), length_delimited(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), length_delimited(1, &type_meta), length_delimited(2, raw)].concat()
    }

    #[test]
    fn a_config_map_becomes_the_json_its_client_meant() {
        let metadata = [length_delimited(1, b"c1"), length_delimited(8, b"")].concat();
        let entry = [length_delimited(1, b"k"), length_delimited(2, b"v")].concat();
        let raw = [length_delimited(1, &metadata), length_delimited(2, &entry)].concat();
        let decoded = decode(&envelope("v1", "ConfigMap", &raw)).unwrap();
        let expected =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c1"}, "data": {"k": "v"}});
        assert_eq!(decoded, expected);
    }

    #[test]
    fn inlined_messages_zeroes_and_special_types() {
        // Deployment.spec: replicas 0, paused false, strategy.rollingUpdate.maxSurge "25%".
        let surge = [vec![0x08, 1], length_delimited(3, b"25%")].concat();
        let strategy = length_delimited(2, &length_delimited(2, &surge));
        let spec = [vec![0x08, 0], vec![7 << 3, 0], length_delimited(4, &strategy)].concat();
        let decoded = decode(&envelope("apps/v1", "Deployment", &length_delimited(2, &spec))).unwrap();
        let expected = json!({"replicas": 0, "strategy": {"rollingUpdate": {"maxSurge": "25%"}}});
        assert_eq!(decoded["spec"], expected);
        // Pod.spec.volumes[0]: name and an inlined emptyDir.
        let volume = [length_delimited(1, b"v"), length_delimited(2, &length_delimited(2, b""))].concat();
        let raw = length_delimited(2, &length_delimited(1, &volume));
        let decoded = decode(&envelope("v1", "Pod", &raw)).unwrap();
        assert_eq!(decoded["spec"]["volumes"], json!([{"name": "v", "emptyDir": {}}]));
    }

    #[test]
    fn broken_bodies_are_errors() {
        assert_eq!(decode(b"{}"), Err(Error::NoPrefix));
        let whole = envelope("v1", "ConfigMap", &length_delimited(1, &length_delimited(1, b"c1")));
        for end in MAGIC.len()..whole.len() {
            // Any prefix either decodes to something or is refused; none panics.
            let _ = decode(&whole[..end]);
        }
        assert!(matches!(decode(&whole[..whole.len() - 1]), Err(Error::Broken(_))));
        assert!(matches!(decode(&envelope("x/v1", "Thing", b"")), Err(Error::UnknownKind { .. })));
    }
}
