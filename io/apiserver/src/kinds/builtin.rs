//! The built-in kinds: one row each, with the names, scope, verbs and subresources upstream gives them.
//! Facts only; schemas come from `schema::builtin`.
use std::sync::Arc;

use k8s_openapi::api as k8s;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration;
use schemars::JsonSchema;

use super::{Kind, ScalePaths, SchemaSource, Subresource};
use crate::schema::Define;

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const NO_DELETE_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const GET: &[&str] = &["get"];
const GET_PATCH_UPDATE: &[&str] = &["get", "patch", "update"];
const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

#[derive(Clone, Copy, PartialEq)]
enum Scope {
    Cluster,
    Namespaced,
}
use Scope::{Cluster, Namespaced};

/// A subresource whose kind is the resource's own has an empty kind here.
type Sub = (&'static str, &'static str, &'static [&'static str]);
const STATUS: Sub = ("status", "", GET_PATCH_UPDATE);
const SCALE: Sub = ("scale", "autoscaling/v1/Scale", GET_PATCH_UPDATE);

struct Row {
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    scope: Scope,
    verbs: &'static [&'static str],
    subresources: &'static [Sub],
    stored_as: Option<(&'static str, &'static str)>,
    selectable: &'static [&'static str],
}

const PLAIN: Row = Row {
    plural: "",
    singular: "",
    short: &[],
    categories: &[],
    scope: Namespaced,
    verbs: ALL,
    subresources: &[],
    stored_as: None,
    selectable: &[],
};

/// Every built-in kind, in the order of discovery documents.
pub(super) fn kinds() -> Vec<Arc<Kind>> {
    let mut rows = Vec::with_capacity(80);
    core(&mut rows);
    core_cluster(&mut rows);
    registration(&mut rows);
    apps(&mut rows);
    events(&mut rows);
    reviews(&mut rows);
    autoscaling_and_batch(&mut rows);
    networking(&mut rows);
    policy_and_rbac(&mut rows);
    storage(&mut rows);
    admission(&mut rows);
    cluster_groups(&mut rows);
    rows.into_iter().map(Arc::new).collect()
}

fn core(out: &mut Vec<Kind>) {
    use k8s::core::v1::*;
    add::<ConfigMap>(out, Row { plural: "configmaps", singular: "configmap", short: &["cm"], ..PLAIN });
    add::<Endpoints>(out, Row { plural: "endpoints", singular: "endpoints", short: &["ep"], ..PLAIN });
    add::<Event>(
        out,
        Row {
            plural: "events",
            singular: "event",
            short: &["ev"],
            selectable: &[
                "involvedObject.kind",
                "involvedObject.namespace",
                "involvedObject.name",
                "involvedObject.uid",
                "involvedObject.apiVersion",
                "involvedObject.resourceVersion",
                "involvedObject.fieldPath",
                "reason",
                "reportingComponent",
                "source",
                "type",
            ],
            ..PLAIN
        },
    );
    add::<LimitRange>(
        out,
        Row { plural: "limitranges", singular: "limitrange", short: &["limits"], ..PLAIN },
    );
    add::<PersistentVolumeClaim>(
        out,
        Row {
            plural: "persistentvolumeclaims",
            singular: "persistentvolumeclaim",
            short: &["pvc"],
            subresources: &[STATUS],
            ..PLAIN
        },
    );
    add::<Pod>(
        out,
        Row {
            plural: "pods",
            singular: "pod",
            short: &["po"],
            categories: &["all"],
            subresources: POD_SUBRESOURCES,
            selectable: POD_FIELDS,
            ..PLAIN
        },
    );
    add::<PodTemplate>(out, Row { plural: "podtemplates", singular: "podtemplate", ..PLAIN });
    add::<ReplicationController>(
        out,
        Row {
            plural: "replicationcontrollers",
            singular: "replicationcontroller",
            short: &["rc"],
            categories: &["all"],
            subresources: &[SCALE, STATUS],
            selectable: &["status.replicas"],
            ..PLAIN
        },
    );
    add::<ResourceQuota>(
        out,
        Row {
            plural: "resourcequotas",
            singular: "resourcequota",
            short: &["quota"],
            subresources: &[STATUS],
            ..PLAIN
        },
    );
    add::<Secret>(out, Row { plural: "secrets", singular: "secret", selectable: &["type"], ..PLAIN });
    add::<Service>(
        out,
        Row {
            plural: "services",
            singular: "service",
            short: &["svc"],
            categories: &["all"],
            subresources: &[("proxy", "/v1/ServiceProxyOptions", PROXY), STATUS],
            selectable: &["spec.clusterIP", "spec.type"],
            ..PLAIN
        },
    );
    add::<ServiceAccount>(
        out,
        Row {
            plural: "serviceaccounts",
            singular: "serviceaccount",
            short: &["sa"],
            subresources: &[("token", "authentication.k8s.io/v1/TokenRequest", CREATE)],
            ..PLAIN
        },
    );
}

const POD_SUBRESOURCES: &[Sub] = &[
    ("attach", "/v1/PodAttachOptions", CONNECT),
    ("binding", "/v1/Binding", CREATE),
    ("ephemeralcontainers", "", GET_PATCH_UPDATE),
    ("eviction", "policy/v1/Eviction", CREATE),
    ("exec", "/v1/PodExecOptions", CONNECT),
    ("log", "", GET),
    ("portforward", "/v1/PodPortForwardOptions", CONNECT),
    ("proxy", "/v1/PodProxyOptions", PROXY),
    ("resize", "", GET_PATCH_UPDATE),
    STATUS,
];

const POD_FIELDS: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
];

fn core_cluster(out: &mut Vec<Kind>) {
    use k8s::core::v1::*;
    let cluster = Row { scope: Cluster, ..PLAIN };
    add::<Binding>(out, Row { plural: "bindings", singular: "binding", verbs: CREATE, ..PLAIN });
    add::<Namespace>(
        out,
        Row {
            plural: "namespaces",
            singular: "namespace",
            short: &["ns"],
            verbs: NO_DELETE_COLLECTION,
            subresources: &[("finalize", "", &["update"]), STATUS],
            selectable: &["status.phase"],
            ..cluster
        },
    );
    add::<Node>(
        out,
        Row {
            plural: "nodes",
            singular: "node",
            short: &["no"],
            subresources: &[("proxy", "/v1/NodeProxyOptions", PROXY), STATUS],
            selectable: &["spec.unschedulable"],
            ..cluster
        },
    );
    add::<PersistentVolume>(
        out,
        Row {
            plural: "persistentvolumes",
            singular: "persistentvolume",
            short: &["pv"],
            subresources: &[STATUS],
            ..cluster
        },
    );
}

fn registration(out: &mut Vec<Kind>) {
    add::<apiregistration::APIService>(
        out,
        Row {
            plural: "apiservices",
            singular: "apiservice",
            categories: &["api-extensions"],
            scope: Cluster,
            subresources: &[STATUS],
            ..PLAIN
        },
    );
}

fn apps(out: &mut Vec<Kind>) {
    use k8s::apps::v1::*;
    let row = Row { categories: &["all"], ..PLAIN };
    let scaled = Row { subresources: &[SCALE, STATUS], ..row };
    add::<ControllerRevision>(
        out,
        Row { plural: "controllerrevisions", singular: "controllerrevision", ..PLAIN },
    );
    add::<DaemonSet>(
        out,
        Row { plural: "daemonsets", singular: "daemonset", short: &["ds"], subresources: &[STATUS], ..row },
    );
    add::<Deployment>(
        out,
        Row { plural: "deployments", singular: "deployment", short: &["deploy"], ..scaled },
    );
    add::<ReplicaSet>(
        out,
        Row {
            plural: "replicasets",
            singular: "replicaset",
            short: &["rs"],
            selectable: &["status.replicas"],
            ..scaled
        },
    );
    add::<StatefulSet>(
        out,
        Row { plural: "statefulsets", singular: "statefulset", short: &["sts"], ..scaled },
    );
}

/// Without the short name `ev`: kubectl would warn that it is ambiguous.
fn events(out: &mut Vec<Kind>) {
    add::<k8s::events::v1::Event>(
        out,
        Row {
            plural: "events",
            singular: "event",
            stored_as: Some(("", "events")),
            selectable: &["reason", "reportingController", "type", "regarding.kind", "regarding.name"],
            ..PLAIN
        },
    );
}

fn reviews(out: &mut Vec<Kind>) {
    use k8s::authentication::v1::{SelfSubjectReview, TokenReview};
    use k8s::authorization::v1::*;
    let review = Row { scope: Cluster, verbs: CREATE, ..PLAIN };
    add::<SelfSubjectReview>(
        out,
        Row { plural: "selfsubjectreviews", singular: "selfsubjectreview", ..review },
    );
    add::<TokenReview>(out, Row { plural: "tokenreviews", singular: "tokenreview", ..review });
    add::<LocalSubjectAccessReview>(
        out,
        Row {
            plural: "localsubjectaccessreviews",
            singular: "localsubjectaccessreview",
            scope: Namespaced,
            ..review
        },
    );
    add::<SelfSubjectAccessReview>(
        out,
        Row { plural: "selfsubjectaccessreviews", singular: "selfsubjectaccessreview", ..review },
    );
    add::<SelfSubjectRulesReview>(
        out,
        Row { plural: "selfsubjectrulesreviews", singular: "selfsubjectrulesreview", ..review },
    );
    add::<SubjectAccessReview>(
        out,
        Row { plural: "subjectaccessreviews", singular: "subjectaccessreview", ..review },
    );
}

fn autoscaling_and_batch(out: &mut Vec<Kind>) {
    let hpa = Row {
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        short: &["hpa"],
        categories: &["all"],
        subresources: &[STATUS],
        ..PLAIN
    };
    add::<k8s::autoscaling::v2::HorizontalPodAutoscaler>(out, Row { ..hpa });
    add::<k8s::autoscaling::v1::HorizontalPodAutoscaler>(
        out,
        Row { stored_as: Some(("autoscaling", "horizontalpodautoscalers")), ..hpa },
    );
    let batch = Row { categories: &["all"], subresources: &[STATUS], ..PLAIN };
    add::<k8s::batch::v1::CronJob>(
        out,
        Row { plural: "cronjobs", singular: "cronjob", short: &["cj"], ..batch },
    );
    add::<k8s::batch::v1::Job>(
        out,
        Row { plural: "jobs", singular: "job", selectable: &["status.successful"], ..batch },
    );
}

fn networking(out: &mut Vec<Kind>) {
    use k8s::networking::v1::*;
    add::<Ingress>(
        out,
        Row { plural: "ingresses", singular: "ingress", short: &["ing"], subresources: &[STATUS], ..PLAIN },
    );
    add::<NetworkPolicy>(
        out,
        Row { plural: "networkpolicies", singular: "networkpolicy", short: &["netpol"], ..PLAIN },
    );
    add::<IngressClass>(
        out,
        Row { plural: "ingressclasses", singular: "ingressclass", scope: Cluster, ..PLAIN },
    );
    add::<IPAddress>(
        out,
        Row { plural: "ipaddresses", singular: "ipaddress", short: &["ip"], scope: Cluster, ..PLAIN },
    );
    add::<ServiceCIDR>(
        out,
        Row {
            plural: "servicecidrs",
            singular: "servicecidr",
            scope: Cluster,
            subresources: &[STATUS],
            ..PLAIN
        },
    );
}

fn policy_and_rbac(out: &mut Vec<Kind>) {
    use k8s::rbac::v1::*;
    add::<k8s::policy::v1::PodDisruptionBudget>(
        out,
        Row {
            plural: "poddisruptionbudgets",
            singular: "poddisruptionbudget",
            short: &["pdb"],
            subresources: &[STATUS],
            ..PLAIN
        },
    );
    let cluster = Row { scope: Cluster, ..PLAIN };
    add::<ClusterRoleBinding>(
        out,
        Row { plural: "clusterrolebindings", singular: "clusterrolebinding", ..cluster },
    );
    add::<ClusterRole>(out, Row { plural: "clusterroles", singular: "clusterrole", ..cluster });
    add::<RoleBinding>(out, Row { plural: "rolebindings", singular: "rolebinding", ..PLAIN });
    add::<Role>(out, Row { plural: "roles", singular: "role", ..PLAIN });
}

fn storage(out: &mut Vec<Kind>) {
    use k8s::storage::v1::*;
    let cluster = Row { scope: Cluster, ..PLAIN };
    add::<CSIDriver>(out, Row { plural: "csidrivers", singular: "csidriver", ..cluster });
    add::<CSINode>(out, Row { plural: "csinodes", singular: "csinode", ..cluster });
    add::<CSIStorageCapacity>(
        out,
        Row { plural: "csistoragecapacities", singular: "csistoragecapacity", ..PLAIN },
    );
    add::<StorageClass>(
        out,
        Row { plural: "storageclasses", singular: "storageclass", short: &["sc"], ..cluster },
    );
    add::<VolumeAttachment>(
        out,
        Row { plural: "volumeattachments", singular: "volumeattachment", subresources: &[STATUS], ..cluster },
    );
}

fn admission(out: &mut Vec<Kind>) {
    use k8s::admissionregistration::v1::*;
    let row = Row { scope: Cluster, categories: &["api-extensions"], ..PLAIN };
    add::<MutatingWebhookConfiguration>(
        out,
        Row { plural: "mutatingwebhookconfigurations", singular: "mutatingwebhookconfiguration", ..row },
    );
    add::<ValidatingAdmissionPolicy>(
        out,
        Row {
            plural: "validatingadmissionpolicies",
            singular: "validatingadmissionpolicy",
            subresources: &[STATUS],
            ..row
        },
    );
    add::<ValidatingAdmissionPolicyBinding>(
        out,
        Row {
            plural: "validatingadmissionpolicybindings",
            singular: "validatingadmissionpolicybinding",
            ..row
        },
    );
    add::<ValidatingWebhookConfiguration>(
        out,
        Row { plural: "validatingwebhookconfigurations", singular: "validatingwebhookconfiguration", ..row },
    );
}

fn cluster_groups(out: &mut Vec<Kind>) {
    add::<apiextensions::CustomResourceDefinition>(
        out,
        Row {
            plural: "customresourcedefinitions",
            singular: "customresourcedefinition",
            short: &["crd", "crds"],
            categories: &["api-extensions"],
            scope: Cluster,
            subresources: &[STATUS],
            ..PLAIN
        },
    );
    add::<k8s::scheduling::v1::PriorityClass>(
        out,
        Row { plural: "priorityclasses", singular: "priorityclass", short: &["pc"], scope: Cluster, ..PLAIN },
    );
    add::<k8s::coordination::v1::Lease>(out, Row { plural: "leases", singular: "lease", ..PLAIN });
    add::<k8s::node::v1::RuntimeClass>(
        out,
        Row { plural: "runtimeclasses", singular: "runtimeclass", scope: Cluster, ..PLAIN },
    );
    add::<k8s::discovery::v1::EndpointSlice>(
        out,
        Row { plural: "endpointslices", singular: "endpointslice", ..PLAIN },
    );
}

fn add<T: JsonSchema + k8s_openapi::Resource>(out: &mut Vec<Kind>, row: Row) {
    let (group, version) = (T::GROUP, T::VERSION);
    let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    let scaled = row.subresources.iter().any(|s| s.0 == "scale");
    out.push(Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: T::KIND.to_owned(),
        list_kind: format!("{}List", T::KIND),
        plural: row.plural.to_owned(),
        singular: row.singular.to_owned(),
        short_names: owned(row.short),
        categories: owned(row.categories),
        namespaced: row.scope == Namespaced,
        storage: row.stored_as.is_none(),
        persisted: row.verbs.len() > 1,
        verbs: row.verbs.to_vec(),
        subresources: row.subresources.iter().map(|s| subresource(s, group, version, T::KIND)).collect(),
        status: row.subresources.iter().any(|s| s.0 == "status"),
        scale: scaled.then(workload_scale),
        crd: None,
        columns: Vec::new(),
        selectable_fields: owned(row.selectable),
        deprecation: None,
        schema_name: T::schema_name().into_owned(),
        schema: SchemaSource::BuiltIn(Define::of::<T>()),
        stored_as: row.stored_as,
        custom_json: None,
    });
}

fn workload_scale() -> ScalePaths {
    ScalePaths { spec: ".spec.replicas".into(), status: ".status.replicas".into(), selector: None }
}

fn subresource(sub: &Sub, group: &str, version: &str, kind: &str) -> Subresource {
    let mut parts = sub.1.split('/');
    let (sub_group, sub_version, sub_kind) = match (parts.next(), parts.next(), parts.next()) {
        (Some(g), Some(v), Some(k)) => (g, v, k),
        _ => (group, version, kind),
    };
    Subresource {
        name: sub.0.to_owned(),
        group: sub_group.to_owned(),
        version: sub_version.to_owned(),
        kind: sub_kind.to_owned(),
        verbs: sub.2.to_vec(),
    }
}
