//! Kubernetes objects to model nouns: parse once, keep only what is valid, say what was not. Watching lives in io/kube.
//!
//! A part that cannot be understood is left out with a finding. For policies "left out" means the strict side:
//! a rule's peer or port that is broken allows nothing, a subject that is broken is isolated.

mod labels;
mod nodes;
mod pods;
mod policies;
mod pools;
mod services;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use nodes::node;
pub use pods::{namespace, pod};
pub use policies::network_policy;
pub use pools::{
    ADDRESS_ASSIGNED, AddressPoolObject, AddressPoolSpec, AddressPoolStatus, AnnounceSpec, FamilyCapacity,
    PoolCapacity, address_pool,
};
pub use services::{endpoint_slice, service};

use crate::{Addr, Finding, ObjectKey, Port, Protocol, Severity, Uid, Weight};

const WEIGHT_ANNOTATION: &str = "weft.dev/weight";

/// What could be understood of an object, and what could not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed<T> {
    /// `None`: the object as a whole means nothing to the network; if that is an error, a finding says why.
    pub value: Option<T>,
    pub findings: Vec<Finding>,
}

/// Collects findings about one object.
struct Findings {
    object: String,
    found: Vec<Finding>,
}

impl Findings {
    fn about(kind: &str, meta: &ObjectMeta) -> Self {
        let name = meta.name.as_deref().unwrap_or("<unnamed>");
        let object = match meta.namespace.as_deref() {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        };
        Self { object, found: Vec::new() }
    }

    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Error, field.into(), message.into());
    }

    fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(Severity::Warning, field.into(), message.into());
    }

    fn add(&mut self, severity: Severity, field: String, message: String) {
        self.found.push(Finding { severity, object: self.object.clone(), field, message });
    }

    fn with<T>(self, value: Option<T>) -> Parsed<T> {
        Parsed { value, findings: self.found }
    }

    /// Namespace and name of a namespaced object.
    fn key(&mut self, meta: &ObjectMeta) -> Option<ObjectKey> {
        match (non_empty(&meta.namespace), non_empty(&meta.name)) {
            (Some(namespace), Some(name)) => Some(ObjectKey::new(namespace, name)),
            (None, _) => {
                self.error("metadata.namespace", "is missing");
                None
            }
            (_, None) => {
                self.error("metadata.name", "is missing");
                None
            }
        }
    }

    fn addr(&mut self, field: impl Into<String>, text: &str) -> Option<Addr> {
        text.parse().map_err(|error: crate::AddrError| self.error(field, error.to_string())).ok()
    }

    fn port(&mut self, field: impl Into<String>, number: i32) -> Option<Port> {
        match u16::try_from(number) {
            Ok(port) if port > 0 => Some(Port(port)),
            _ => {
                self.error(field, format!("{number} is not a port; ports are 1 to 65535"));
                None
            }
        }
    }

    /// Annotation `weft.dev/weight`.
    fn weight(&mut self, meta: &ObjectMeta) -> Option<Weight> {
        let text = meta.annotations.as_ref()?.get(WEIGHT_ANNOTATION)?;
        match text.parse() {
            Ok(weight @ 1..=100) => Some(Weight(weight)),
            _ => {
                let message = format!("{text:?} is not a weight; weights are 1 to 100, and 1 is in force");
                self.error(format!("metadata.annotations[{WEIGHT_ANNOTATION}]"), message);
                None
            }
        }
    }

    /// The protocols a port of the Kubernetes API may have; absent means TCP.
    fn protocol(&mut self, field: impl Into<String>, text: Option<&str>) -> Option<Protocol> {
        match text {
            None | Some("" | "TCP") => Some(Protocol::TCP),
            Some("UDP") => Some(Protocol::UDP),
            Some("SCTP") => Some(Protocol::SCTP),
            Some(other) => {
                self.error(field, format!("{other:?} is not a protocol; use TCP, UDP or SCTP"));
                None
            }
        }
    }
}

fn uid(meta: &ObjectMeta) -> Uid {
    Uid::new(meta.uid.as_deref().unwrap_or_default())
}

fn non_empty(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}
