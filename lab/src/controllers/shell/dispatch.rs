//! Which objects need a look when something changed.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Endpoints, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

use super::cache::{Cache, Change};
use super::queue::Queue;
use crate::controllers::effect::Kind;
use crate::controllers::{endpoints, legacy_endpoints, meta, pods};

/// One look.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    /// One object of a kind, by namespace and name. A service is its endpoints.
    Object(Kind, String, String),
    /// All pods that wait for a node.
    Schedule,
    /// All pods whose node or future is gone.
    PodGarbage,
}

impl Work {
    pub fn object(kind: Kind, meta: &ObjectMeta) -> Self {
        Self::Object(kind, meta::namespace(meta).to_owned(), meta::name(meta).to_owned())
    }

    fn named(kind: Kind, namespace: &str, name: &str) -> Self {
        Self::Object(kind, namespace.to_owned(), name.to_owned())
    }
}

/// Anything a controller may own: its owner looks again.
pub fn owned<K: Resource<DynamicType = ()>>(queue: &Queue<Work>, change: Change<'_, K>) {
    for object in change.both() {
        if let Some(work) = owner(object.meta()) {
            queue.add(work);
        }
    }
}

fn owner(meta: &ObjectMeta) -> Option<Work> {
    let owner = meta::controller(meta)?;
    let kinds =
        [Kind::Deployment, Kind::ReplicaSet, Kind::StatefulSet, Kind::DaemonSet, Kind::Job, Kind::CronJob];
    let kind = kinds.into_iter().find(|kind| kind.name() == owner.kind)?;
    Some(Work::named(kind, meta::namespace(meta), &owner.name))
}

pub fn itself<K: Resource<DynamicType = ()>>(queue: &Queue<Work>, kind: Kind, change: Change<'_, K>) {
    queue.add(Work::object(kind, change.any().meta()));
}

pub fn pod(queue: &Queue<Work>, services: &Cache<Service>, change: Change<'_, Pod>) {
    owned(queue, change);
    let namespace = meta::namespace(&change.any().metadata);
    for service in services.in_namespace(namespace) {
        let selected = |pod: &Pod| {
            endpoints::selector(&service).is_some_and(|selector| endpoints::matches(selector, pod))
        };
        if change.both().any(selected) {
            queue.add(Work::object(Kind::Service, &service.metadata));
        }
    }
    let frees_room = change.after.is_none_or(|pod| !pods::is_active(pod));
    let waits = change.after.is_some_and(|pod| pods::node_name(pod).is_none());
    if frees_room || waits {
        queue.add(Work::Schedule);
        queue.add(Work::PodGarbage);
    }
    if change.after.is_some_and(|pod| pods::node_name(pod).is_some()) && change.before.is_none() {
        queue.add(Work::PodGarbage);
    }
}

/// A pod that nobody controls may be one somebody adopts.
pub fn orphan<K: Resource<DynamicType = ()>>(
    queue: &Queue<Work>,
    kind: Kind,
    owners: &[std::sync::Arc<K>],
    change: Change<'_, Pod>,
) {
    if change.after.is_some_and(|pod| meta::controller(&pod.metadata).is_none()) {
        for owner in owners {
            queue.add(Work::object(kind, owner.meta()));
        }
    }
}

pub fn slice(queue: &Queue<Work>, change: Change<'_, EndpointSlice>) {
    let slice = change.any();
    if let Some(service) = endpoints::service_of(slice) {
        queue.add(Work::named(Kind::Service, meta::namespace(&slice.metadata), service));
        if change.both().any(legacy_endpoints::is_mirror) {
            queue.add(Work::named(Kind::Endpoints, meta::namespace(&slice.metadata), service));
        }
    }
}

/// A service decides whether its Endpoints are made here, mirrored, or neither.
pub fn service(queue: &Queue<Work>, change: Change<'_, Service>) {
    itself(queue, Kind::Service, change);
    itself(queue, Kind::Endpoints, change);
}

pub fn endpoints(queue: &Queue<Work>, change: Change<'_, Endpoints>) {
    itself(queue, Kind::Service, change);
    itself(queue, Kind::Endpoints, change);
}

/// A pod on a node with taints may have to leave.
pub fn tainted(queue: &Queue<Work>, node: Option<&Node>) {
    let Some(node) = node else { return };
    if node.spec.as_ref().is_some_and(|spec| spec.taints.as_ref().is_some_and(|taints| !taints.is_empty())) {
        queue.add(Work::object(Kind::Node, &node.metadata));
    }
}

/// A kubelet was heard of.
pub fn lease(queue: &Queue<Work>, change: Change<'_, Lease>) {
    queue.add(Work::named(Kind::Node, "", meta::name(&change.any().metadata)));
}

/// What about a node matters to anything but its own look.
pub fn node_matters(change: Change<'_, Node>) -> bool {
    let (Some(before), Some(after)) = (change.before, change.after) else { return true };
    let room = |node: &Node| node.status.as_ref().and_then(|status| status.allocatable.clone());
    let said = |node: &Node| {
        let conditions =
            node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        conditions.into_iter().map(|condition| (condition.type_, condition.status)).collect::<Vec<_>>()
    };
    before.metadata.labels != after.metadata.labels
        || before.spec != after.spec
        || room(before) != room(after)
        || said(before) != said(after)
}
