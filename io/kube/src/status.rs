//! What the status of a Service or an AddressPool is to say, and the least patch that makes it say so: pure.
//! Only fields of ours are touched, and only on the version that was read.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use weft_model::Addr;
use weft_model::parse::{ADDRESS_ASSIGNED, AddressPoolObject, PoolCapacity};

/// What of a Service is accepted and not honoured.
pub const SERVED: &str = "weft.dev/Served";
/// Which node answers for its load balancer addresses.
pub const ANNOUNCED: &str = "weft.dev/Announced";
const OURS: [&str; 3] = [ADDRESS_ASSIGNED, SERVED, ANNOUNCED];
/// Of a pool.
pub const READY: &str = "Ready";
/// The API takes no more in a condition.
const LONGEST_MESSAGE: usize = 32_000;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Truth {
    True,
    False,
}

impl Truth {
    fn text(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saying {
    pub kind: &'static str,
    pub truth: Truth,
    pub reason: String,
    pub message: String,
}

/// What one Service's status is to say of ours. Conditions of ours that are not in it go.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceStatus {
    /// `None`: not ours to give; what we gave earlier goes.
    pub addresses: Option<Vec<Addr>>,
    pub conditions: Vec<Saying>,
    /// Conditions of ours that nothing is known about yet: what they say stays.
    pub untold: Vec<&'static str>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolStatus {
    pub ready: Saying,
    pub capacity: PoolCapacity,
}

/// A patch, and the conditions it changes, for events.
#[derive(Clone, PartialEq, Debug)]
pub struct Change {
    pub patch: Value,
    pub news: Vec<Saying>,
}

/// `None`: the object says it all already.
pub fn service_change(current: &Service, wanted: &ServiceStatus, now: Timestamp) -> Option<Change> {
    let status = current.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let generation = current.metadata.generation;
    let ours: Vec<&str> = OURS.into_iter().filter(|kind| !wanted.untold.contains(kind)).collect();
    let (said, news) = conditions_after(&conditions, &wanted.conditions, &ours, generation, now);
    let mut changes = Map::new();
    if said != conditions {
        changes.insert("conditions".to_owned(), json!(said));
    }
    let ingress = status.load_balancer.and_then(|balancer| balancer.ingress).unwrap_or_default();
    let said = conditions.iter().find(|condition| condition.type_ == ADDRESS_ASSIGNED);
    // A balancer known by its name is another implementation's, and so is an address that came after we had none to give.
    let named = ingress.iter().any(|entry| entry.hostname.is_some());
    let gave = said.is_some_and(|condition| condition.status == "True");
    let give = match &wanted.addresses {
        _ if named => None,
        Some(addresses) if gave || !addresses.is_empty() => Some(addresses.as_slice()),
        None if said.is_some() => Some(&[][..]),
        _ => None,
    };
    if let Some(addresses) = give {
        let has: Vec<Option<&str>> = ingress.iter().map(|entry| entry.ip.as_deref()).collect();
        let texts: Vec<String> = addresses.iter().map(Addr::to_string).collect();
        let same = has.len() == texts.len() && has.iter().zip(&texts).all(|(has, text)| *has == Some(text));
        if !same {
            let entries: Vec<Value> = texts.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
            let ingress = if entries.is_empty() { Value::Null } else { entries.into() };
            changes.insert("loadBalancer".to_owned(), json!({ "ingress": ingress }));
        }
    }
    change(current.metadata.resource_version.as_deref(), changes, news)
}

pub fn pool_change(current: &AddressPoolObject, wanted: &PoolStatus, now: Timestamp) -> Option<Change> {
    let status = current.status.clone().unwrap_or_default();
    let sayings = std::slice::from_ref(&wanted.ready);
    let (said, news) =
        conditions_after(&status.conditions, sayings, &[READY], current.metadata.generation, now);
    let mut changes = Map::new();
    if said != status.conditions {
        changes.insert("conditions".to_owned(), json!(said));
    }
    if status.capacity.as_ref() != Some(&wanted.capacity) {
        // A family that is gone from the pool goes from its capacity too.
        let capacity = json!({"ipv4": wanted.capacity.ipv4, "ipv6": wanted.capacity.ipv6});
        changes.insert("capacity".to_owned(), capacity);
    }
    change(current.metadata.resource_version.as_deref(), changes, news)
}

fn change(version: Option<&str>, changes: Map<String, Value>, news: Vec<Saying>) -> Option<Change> {
    if changes.is_empty() {
        return None;
    }
    Some(Change { patch: json!({"metadata": {"resourceVersion": version}, "status": changes}), news })
}

/// The conditions as they are to be, others' untouched, and what of ours changed.
fn conditions_after(
    current: &[Condition],
    wanted: &[Saying],
    ours: &[&str],
    generation: Option<i64>,
    now: Timestamp,
) -> (Vec<Condition>, Vec<Saying>) {
    let mut said: Vec<Condition> = current
        .iter()
        .filter(|condition| {
            let kind = condition.type_.as_str();
            !ours.contains(&kind) || wanted.iter().any(|saying| saying.kind == kind)
        })
        .cloned()
        .collect();
    let mut news = Vec::new();
    for saying in wanted {
        let mut message = saying.message.clone();
        if message.len() > LONGEST_MESSAGE {
            let end = (0..=LONGEST_MESSAGE).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
            message.truncate(end);
        }
        let known = said.iter_mut().find(|condition| condition.type_ == saying.kind);
        let since = known.as_ref().filter(|known| known.status == saying.truth.text());
        let condition = Condition {
            type_: saying.kind.to_owned(),
            status: saying.truth.text().to_owned(),
            reason: saying.reason.clone(),
            message,
            last_transition_time: since.map_or_else(
                || k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now),
                |known| known.last_transition_time.clone(),
            ),
            observed_generation: generation,
        };
        match known {
            Some(known) => {
                let same = known.status == condition.status
                    && known.reason == condition.reason
                    && known.message == condition.message;
                if !same {
                    *known = condition;
                    news.push(saying.clone());
                }
            }
            None => {
                said.push(condition);
                news.push(saying.clone());
            }
        }
    }
    (said, news)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(status: Value) -> Service {
        let object = json!({"metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7", "generation": 3},
            "spec": {"type": "LoadBalancer"}, "status": status});
        serde_json::from_value(object).unwrap()
    }

    fn says(kind: &'static str, truth: Truth, message: &str) -> Saying {
        Saying { kind, truth, reason: "Because".to_owned(), message: message.to_owned() }
    }

    /// What the server makes of a merge patch on the status (RFC 7386).
    fn merged(current: &Service, change: &Change) -> Service {
        fn merge(into: &mut Value, patch: &Value) {
            let Some(patch) = patch.as_object() else { return *into = patch.clone() };
            if !into.is_object() {
                *into = json!({});
            }
            for (key, value) in patch {
                match value {
                    Value::Null => drop(into.as_object_mut().unwrap().remove(key)),
                    value => merge(&mut into[key.as_str()], value),
                }
            }
        }
        let mut object = serde_json::to_value(current).unwrap();
        merge(&mut object, &change.patch);
        serde_json::from_value(object).unwrap()
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    #[test]
    fn addresses_and_conditions_are_written_once() {
        let foreign = json!({"type": "example.com/Other", "status": "True", "reason": "R", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let current = service(json!({"conditions": [foreign]}));
        let wanted = ServiceStatus {
            addresses: Some(vec!["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()]),
            conditions: vec![says(ADDRESS_ASSIGNED, Truth::True, "given")],
            untold: vec![],
        };
        let change = service_change(&current, &wanted, now()).unwrap();
        assert_eq!(change.patch["metadata"]["resourceVersion"], "7");
        assert_eq!(change.news, wanted.conditions);
        let after = merged(&current, &change);
        assert_eq!(service_change(&after, &wanted, now()), None, "nothing more to say");
        let status = serde_json::to_value(after.status.unwrap()).unwrap();
        assert_eq!(status["conditions"][0]["type"], "example.com/Other");
        assert_eq!(status["loadBalancer"]["ingress"][1], json!({"ip": "fd00::1", "ipMode": "VIP"}));
    }

    #[test]
    fn what_we_gave_is_taken_back_and_what_others_gave_is_not() {
        let ours = json!({"type": ADDRESS_ASSIGNED, "status": "True", "reason": "R", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let ingress = json!({"ingress": [{"ip": "192.0.2.1"}]});
        let current = service(json!({"conditions": [ours], "loadBalancer": ingress}));
        let after = merged(&current, &service_change(&current, &ServiceStatus::default(), now()).unwrap());
        assert_eq!(
            serde_json::to_value(after.status).unwrap(),
            json!({"conditions": [], "loadBalancer": {}})
        );
        let others = service(json!({"loadBalancer": ingress}));
        assert_eq!(service_change(&others, &ServiceStatus::default(), now()), None);
        let named = service(json!({"loadBalancer": {"ingress": [{"hostname": "lb.example.com"}]}}));
        let wanted = ServiceStatus { addresses: Some(vec![]), ..ServiceStatus::default() };
        assert_eq!(service_change(&named, &wanted, now()), None);
    }

    #[test]
    fn what_is_not_known_yet_stays_said() {
        let told = |kind| {
            json!({"type": kind, "status": "True", "reason": "R", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let current = service(json!({"conditions": [told(ANNOUNCED), told(SERVED)]}));
        let wanted = ServiceStatus { untold: vec![ANNOUNCED], ..ServiceStatus::default() };
        let after = merged(&current, &service_change(&current, &wanted, now()).unwrap());
        assert_eq!(serde_json::to_value(&after.status).unwrap(), json!({"conditions": [told(ANNOUNCED)]}));
        assert_eq!(service_change(&after, &wanted, now()), None);
    }

    #[test]
    fn the_time_of_a_condition_is_that_of_its_last_change_of_status() {
        let old = "2026-01-01T00:00:00Z";
        let current = service(json!({"conditions": [{"type": SERVED, "status": "False", "reason": "Because",
            "message": "one", "lastTransitionTime": old}]}));
        let since = |truth| {
            let wanted =
                ServiceStatus { conditions: vec![says(SERVED, truth, "two")], ..ServiceStatus::default() };
            let change = service_change(&current, &wanted, now()).unwrap();
            change.patch["status"]["conditions"][0]["lastTransitionTime"].clone()
        };
        assert_eq!(since(Truth::False), old);
        assert_eq!(since(Truth::True), "2027-01-15T08:00:00Z");
    }
}
