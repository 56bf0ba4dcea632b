//! What a controller wants done to the cluster: values, so that decisions are pure and tests compare them.
//! Carrying them out is `shell::execute`'s.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource as _;
use serde::Serialize;
use serde_json::{Value, json};

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Endpoints, Node, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The kinds controllers write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    ControllerRevision,
    CronJob,
    DaemonSet,
    Deployment,
    Endpoints,
    EndpointSlice,
    Job,
    Node,
    PersistentVolumeClaim,
    Pod,
    ReplicaSet,
    Service,
    StatefulSet,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::ControllerRevision => "ControllerRevision",
            Self::CronJob => "CronJob",
            Self::DaemonSet => "DaemonSet",
            Self::Deployment => "Deployment",
            Self::Endpoints => "Endpoints",
            Self::EndpointSlice => "EndpointSlice",
            Self::Job => "Job",
            Self::Node => "Node",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::Pod => "Pod",
            Self::ReplicaSet => "ReplicaSet",
            Self::Service => "Service",
            Self::StatefulSet => "StatefulSet",
        }
    }

    /// The path of the kind's collection on the API server.
    pub fn path(self, namespace: &str) -> String {
        let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
        match self {
            Self::ControllerRevision => ControllerRevision::url_path(&(), namespace),
            Self::CronJob => CronJob::url_path(&(), namespace),
            Self::DaemonSet => DaemonSet::url_path(&(), namespace),
            Self::Deployment => Deployment::url_path(&(), namespace),
            Self::Endpoints => Endpoints::url_path(&(), namespace),
            Self::EndpointSlice => EndpointSlice::url_path(&(), namespace),
            Self::Job => Job::url_path(&(), namespace),
            Self::Node => Node::url_path(&(), None),
            Self::PersistentVolumeClaim => PersistentVolumeClaim::url_path(&(), namespace),
            Self::Pod => Pod::url_path(&(), namespace),
            Self::ReplicaSet => ReplicaSet::url_path(&(), namespace),
            Self::Service => Service::url_path(&(), namespace),
            Self::StatefulSet => StatefulSet::url_path(&(), namespace),
        }
    }

    pub fn api_version(self) -> &'static str {
        match self {
            Self::ControllerRevision
            | Self::DaemonSet
            | Self::Deployment
            | Self::ReplicaSet
            | Self::StatefulSet => "apps/v1",
            Self::CronJob | Self::Job => "batch/v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::Endpoints | Self::Node | Self::PersistentVolumeClaim | Self::Pod | Self::Service => "v1",
        }
    }
}

/// An object by kind and name; the namespace is empty for those of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl Target {
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = self.kind.name();
        if self.namespace.is_empty() {
            write!(f, "{kind} {}", self.name)
        } else {
            write!(f, "{kind} {}/{}", self.namespace, self.name)
        }
    }
}

/// How long a deleted pod may take to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grace {
    AsThePodSays,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Normal,
    Warning,
}

/// One wish. Creating what exists, and deleting or changing what is gone, is no failure: another look at the
/// cluster decides anew.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The name is empty when the API server shall make one up.
    Create {
        target: Target,
        body: Value,
    },
    /// A merge patch; it carries a resourceVersion where it must not overwrite a newer state.
    Merge {
        target: Target,
        body: Value,
    },
    MergeStatus {
        target: Target,
        body: Value,
    },
    /// The uid keeps a later object with the same name alive.
    Delete {
        target: Target,
        uid: String,
        grace: Grace,
    },
    /// Gives a pod to a node.
    Bind {
        target: Target,
        uid: String,
        node: String,
    },
    Tell {
        about: Box<ObjectReference>,
        tone: Tone,
        reason: &'static str,
        message: String,
    },
}

impl Effect {
    pub fn create(kind: Kind, namespace: &str, name: &str, object: &impl Serialize) -> Self {
        let mut body = to_value(object);
        body["apiVersion"] = json!(kind.api_version());
        body["kind"] = json!(kind.name());
        Self::Create { target: Target::new(kind, namespace, name), body }
    }

    pub fn status(kind: Kind, namespace: &str, name: &str, status: &impl Serialize) -> Self {
        Self::MergeStatus {
            target: Target::new(kind, namespace, name),
            body: json!({"status": to_value(status)}),
        }
    }

    pub fn delete(kind: Kind, namespace: &str, name: &str, uid: &str) -> Self {
        let target = Target::new(kind, namespace, name);
        Self::Delete { target, uid: uid.to_owned(), grace: Grace::AsThePodSays }
    }
}

/// What a controller decided about one object, and when to look again although nothing may have changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub effects: Vec<Effect>,
    pub recheck: Option<std::time::Duration>,
}

impl Outcome {
    /// Look again after this, unless something sooner was asked for.
    pub fn again_in(&mut self, after: std::time::Duration) {
        self.recheck = Some(self.recheck.map_or(after, |sooner| sooner.min(after)));
    }
}

pub fn to_value(object: &impl Serialize) -> Value {
    serde_json::to_value(object).expect("Kubernetes objects are maps with string keys")
}
