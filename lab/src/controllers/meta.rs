//! What all objects have in common: names, owners, labels and the selectors over them. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;

use super::effect::{Kind, to_value};

/// Digits and letters that spell no words and are not mistaken for each other.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

pub type Labels = BTreeMap<String, String>;

pub fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

pub fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

pub fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

pub fn is_terminating(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

pub fn created(meta: &ObjectMeta) -> Timestamp {
    meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

pub fn labels(meta: &ObjectMeta) -> &Labels {
    static NONE: Labels = Labels::new();
    meta.labels.as_ref().unwrap_or(&NONE)
}

pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The owner that manages the object.
pub fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

pub fn is_controlled_by(meta: &ObjectMeta, owner: &ObjectMeta) -> bool {
    controller(meta).is_some_and(|reference| Some(&reference.uid) == owner.uid.as_ref())
}

pub fn owner_reference(kind: Kind, owner: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: kind.api_version().to_owned(),
        kind: kind.name().to_owned(),
        name: name(owner).to_owned(),
        uid: uid(owner).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub fn reference(kind: Kind, meta: &ObjectMeta) -> Box<ObjectReference> {
    Box::new(ObjectReference {
        api_version: Some(kind.api_version().to_owned()),
        kind: Some(kind.name().to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        ..ObjectReference::default()
    })
}

/// Whether labels satisfy a selector. An empty selector selects everything, an unknown operator nothing.
pub fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let values = requirement.values.as_deref().unwrap_or_default();
            in_set(&requirement.operator, labels.get(&requirement.key), values)
        })
}

/// One requirement of a selector on the value of a label that may be absent.
pub fn in_set(operator: &str, value: Option<&String>, values: &[String]) -> bool {
    match operator {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" | "Lt" => {
            let number = |text: &String| text.parse::<i64>().ok();
            match (value.and_then(number), values.first().and_then(number)) {
                (Some(have), Some(limit)) if operator == "Gt" => have > limit,
                (Some(have), Some(limit)) => have < limit,
                _ => false,
            }
        }
        _ => false,
    }
}

/// A short name for a value: equal values have equal names, on every machine and in every version of this program.
pub fn hash(value: &impl Serialize) -> String {
    // FNV-1a over the canonical text: maps of Kubernetes objects are sorted.
    let text = to_value(value).to_string();
    let mut state: u32 = 0x811c_9dc5;
    for byte in text.bytes() {
        state = (state ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    state.to_string().bytes().map(|digit| char::from(SAFE[usize::from(digit) % SAFE.len()])).collect()
}

/// Rounding of a share of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    Up,
    Down,
}

/// A number or a percentage of `total`; what cannot be read counts as `default`.
pub fn share(value: Option<&IntOrString>, total: i32, round: Round, default: &IntOrString) -> i32 {
    let resolve = |value: &IntOrString| match value {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%')?.trim().parse().ok()?;
            let hundredths = i64::from(total) * percent;
            let shared = match round {
                Round::Up => (hundredths + 99).div_euclid(100),
                Round::Down => hundredths.div_euclid(100),
            };
            i32::try_from(shared).ok()
        }
    };
    value.and_then(resolve).or_else(|| resolve(default)).unwrap_or(0).max(0)
}

/// The time left until a moment; none when it has come.
pub fn time_until(moment: Timestamp, now: Timestamp) -> Option<Duration> {
    Duration::try_from(moment.duration_since(now)).ok().filter(|left| !left.is_zero())
}

pub fn seconds(count: impl Into<i64>) -> jiff::SignedDuration {
    jiff::SignedDuration::from_secs(count.into())
}

/// Kubernetes times have whole seconds.
pub fn stamp(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_follow_the_api_conventions() {
        let labels: Labels = [("app".to_owned(), "web".to_owned())].into();
        let cases = [
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "api"]}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}), false),
            (json!({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["web"]}]}), true),
            (json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}), true),
            (json!({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "Unknown"}]}), false),
        ];
        for (selector, expected) in cases {
            let parsed: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
            assert_eq!(selects(&parsed, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn shares_round_as_asked() {
        let percent = |p: &str| IntOrString::String(p.to_owned());
        let quarter = percent("25%");
        assert_eq!(share(Some(&percent("25%")), 3, Round::Up, &quarter), 1);
        assert_eq!(share(Some(&percent("25%")), 3, Round::Down, &quarter), 0);
        assert_eq!(share(None, 10, Round::Up, &quarter), 3);
        assert_eq!(share(Some(&IntOrString::Int(2)), 10, Round::Up, &quarter), 2);
        assert_eq!(share(Some(&percent("many")), 8, Round::Down, &quarter), 2, "nonsense is the default");
        assert_eq!(share(Some(&IntOrString::Int(-3)), 8, Round::Down, &quarter), 0);
    }

    #[test]
    fn hashes_are_fixed_and_tell_values_apart() {
        assert_eq!(hash(&json!({"a": 1})), hash(&json!({"a": 1})));
        assert_ne!(hash(&json!({"a": 1})), hash(&json!({"a": 2})));
        assert!(hash(&json!("x")).bytes().all(|c| SAFE.contains(&c)));
    }
}
