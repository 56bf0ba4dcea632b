//! What kinds default and refuse beyond their schemas, as kube-apiserver does where clients notice.
//! Allocation (addresses, ports), identity and admission live with the server.
mod fields;
mod network;
mod other;
mod pod;
mod service;
mod workload;

mod check;

use serde_json::Value;

use crate::kinds::{Kind, SchemaSource};
use crate::schema;

/// Fills in defaults, of built-in and custom kinds.
pub fn apply(kind: &Kind, object: &mut Value) {
    if let SchemaSource::Custom(schema) = &kind.schema {
        return schema::fill_defaults(schema, object);
    }
    if !object.is_object() {
        return;
    }
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Pod") => pod::pod(object),
        ("", "PodTemplate") => pod::template(object),
        ("", "ReplicationController") => workload::replication_controller(object),
        ("", "Service") => service::service(object),
        ("", "Endpoints") => service::endpoints(object),
        ("discovery.k8s.io", "EndpointSlice") => service::endpoint_slice(object),
        ("apps", "Deployment") => workload::deployment(object),
        ("apps", "ReplicaSet") => workload::replica_set(object),
        ("apps", "StatefulSet") => workload::stateful_set(object),
        ("apps", "DaemonSet") => workload::daemon_set(object),
        ("batch", "Job") => workload::job(object),
        ("batch", "CronJob") => workload::cron_job(object),
        ("autoscaling", "HorizontalPodAutoscaler") => workload::autoscaler(object, &kind.version),
        ("networking.k8s.io", "NetworkPolicy") => network::policy(object),
        ("networking.k8s.io", "IngressClass") => network::ingress_class(object),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => other::role_binding(object),
        _ => other::apply(kind, object),
    }
}

pub use check::{validate_cluster_ips, validate_create, validate_status, validate_update, warnings};

#[cfg(test)]
mod tests;
