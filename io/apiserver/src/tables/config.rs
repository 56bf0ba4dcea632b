//! Rows of configuration, access control, storage classes, webhooks and definitions.
use serde_json::Value;

use super::cells::{age, count, created_at, items, join, name, or_none, plain, text};
use super::{Layout, column, number, wide};

pub(super) fn layout(kind: &str) -> Option<Layout> {
    Some(match kind {
        "ConfigMap" => CONFIG_MAP,
        "Secret" => SECRET,
        "ServiceAccount" => SERVICE_ACCOUNT,
        "ResourceQuota" => QUOTA,
        "Role" | "ClusterRole" | "LimitRange" | "CustomResourceDefinition" => CREATED,
        "RoleBinding" | "ClusterRoleBinding" => BINDING,
        "Lease" => LEASE,
        "PriorityClass" => PRIORITY_CLASS,
        "RuntimeClass" => RUNTIME_CLASS,
        "StorageClass" => STORAGE_CLASS,
        "CSIDriver" => CSI_DRIVER,
        "CSINode" => CSI_NODE,
        "CSIStorageCapacity" => CSI_CAPACITY,
        "VolumeAttachment" => ATTACHMENT,
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => WEBHOOKS,
        "ValidatingAdmissionPolicy" => ADMISSION_POLICY,
        "ValidatingAdmissionPolicyBinding" => ADMISSION_BINDING,
        "APIService" => API_SERVICE,
        _ => return None,
    })
}

fn entries(value: &Value) -> usize {
    value.as_object().map_or(0, |fields| fields.len())
}

const CONFIG_MAP: Layout = Layout {
    columns: &[column("Name"), number("Data"), column("Age")],
    row: |o, now| vec![name(o), Value::from(entries(&o["data"]) + entries(&o["binaryData"])), age(o, now)],
};

const SECRET: Layout = Layout {
    columns: &[column("Name"), column("Type"), number("Data"), column("Age")],
    row: |o, now| vec![name(o), Value::from(text(o, "type")), Value::from(entries(&o["data"])), age(o, now)],
};

const SERVICE_ACCOUNT: Layout = Layout {
    columns: &[column("Name"), number("Secrets"), column("Age")],
    row: |o, now| vec![name(o), Value::from(items(&o["secrets"]).count()), age(o, now)],
};

const QUOTA: Layout = Layout {
    columns: &[column("Name"), column("Request"), column("Limit"), column("Age")],
    row: |o, now| {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (resource, hard) in o["status"]["hard"].as_object().into_iter().flatten() {
            let used = o["status"]["used"].get(resource).map_or("0".to_owned(), plain);
            let part = format!("{resource}: {used}/{}", plain(hard));
            if resource.starts_with("limits") { limits.push(part) } else { requests.push(part) }
        }
        vec![name(o), Value::from(requests.join(", ")), Value::from(limits.join(", ")), age(o, now)]
    },
};

const CREATED: Layout =
    Layout { columns: &[column("Name"), column("Created At")], row: |o, _| vec![name(o), created_at(o)] };

const BINDING: Layout = Layout {
    columns: &[
        column("Name"),
        column("Role"),
        column("Age"),
        wide("Users"),
        wide("Groups"),
        wide("ServiceAccounts"),
    ],
    row: |o, now| {
        let role = format!("{}/{}", text(&o["roleRef"], "kind"), text(&o["roleRef"], "name"));
        let of = |kind: &'static str| items(&o["subjects"]).filter(move |s| text(s, "kind") == kind);
        let names = |kind| Value::from(of(kind).map(|s| text(s, "name")).collect::<Vec<_>>().join(", "));
        let accounts: Vec<String> =
            of("ServiceAccount").map(|s| format!("{}/{}", text(s, "namespace"), text(s, "name"))).collect();
        let (users, groups) = (names("User"), names("Group"));
        vec![name(o), Value::from(role), age(o, now), users, groups, Value::from(accounts.join(", "))]
    },
};

const LEASE: Layout = Layout {
    columns: &[column("Name"), column("Holder"), column("Age")],
    row: |o, now| vec![name(o), Value::from(text(&o["spec"], "holderIdentity")), age(o, now)],
};

const PRIORITY_CLASS: Layout = Layout {
    columns: &[
        column("Name"),
        number("Value"),
        column("Global-Default"),
        column("Age"),
        column("PreemptionPolicy"),
    ],
    row: |o, now| {
        vec![
            name(o),
            count(&o["value"]),
            Value::from(o["globalDefault"] == true),
            age(o, now),
            Value::from(text(o, "preemptionPolicy")),
        ]
    },
};

const RUNTIME_CLASS: Layout = Layout {
    columns: &[column("Name"), column("Handler"), column("Age")],
    row: |o, now| vec![name(o), Value::from(text(o, "handler")), age(o, now)],
};

const STORAGE_CLASS: Layout = Layout {
    columns: &[
        column("Name"),
        column("Provisioner"),
        column("ReclaimPolicy"),
        column("VolumeBindingMode"),
        column("AllowVolumeExpansion"),
        column("Age"),
    ],
    row: |o, now| {
        let default = o["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true";
        let shown = if default { Value::from(format!("{} (default)", plain(&name(o)))) } else { name(o) };
        vec![
            shown,
            Value::from(text(o, "provisioner")),
            Value::from(text(o, "reclaimPolicy")),
            Value::from(text(o, "volumeBindingMode")),
            Value::from(o["allowVolumeExpansion"] == true),
            age(o, now),
        ]
    },
};

const CSI_DRIVER: Layout = Layout {
    columns: &[
        column("Name"),
        column("AttachRequired"),
        column("PodInfoOnMount"),
        column("StorageCapacity"),
        column("TokenRequests"),
        column("RequiresRepublish"),
        column("Modes"),
        column("Age"),
    ],
    row: |o, now| {
        let spec = &o["spec"];
        let flag = |field: &str| Value::from(spec[field] == true);
        let tokens = join(items(&spec["tokenRequests"]).map(|t| text(t, "audience")));
        let modes = join(items(&spec["volumeLifecycleModes"]).filter_map(Value::as_str));
        vec![
            name(o),
            flag("attachRequired"),
            flag("podInfoOnMount"),
            flag("storageCapacity"),
            Value::from(if tokens.is_empty() { "<unset>".to_owned() } else { tokens }),
            flag("requiresRepublish"),
            or_none(&modes),
            age(o, now),
        ]
    },
};

const CSI_NODE: Layout = Layout {
    columns: &[column("Name"), number("Drivers"), column("Age")],
    row: |o, now| vec![name(o), Value::from(items(&o["spec"]["drivers"]).count()), age(o, now)],
};

const CSI_CAPACITY: Layout = Layout {
    columns: &[column("Name"), column("StorageClassName"), column("Capacity")],
    row: |o, _| {
        let capacity = o.get("capacity").map_or("<unset>".to_owned(), plain);
        vec![name(o), Value::from(text(o, "storageClassName")), Value::from(capacity)]
    },
};

const ATTACHMENT: Layout = Layout {
    columns: &[
        column("Name"),
        column("Attacher"),
        column("PV"),
        column("Node"),
        column("Attached"),
        column("Age"),
    ],
    row: |o, now| {
        let spec = &o["spec"];
        vec![
            name(o),
            Value::from(text(spec, "attacher")),
            Value::from(text(&spec["source"], "persistentVolumeName")),
            Value::from(text(spec, "nodeName")),
            Value::from(o["status"]["attached"] == true),
            age(o, now),
        ]
    },
};

const WEBHOOKS: Layout = Layout {
    columns: &[column("Name"), number("Webhooks"), column("Age")],
    row: |o, now| vec![name(o), Value::from(items(&o["webhooks"]).count()), age(o, now)],
};

const ADMISSION_POLICY: Layout = Layout {
    columns: &[column("Name"), number("Validations"), column("ParamKind"), column("Age")],
    row: |o, now| {
        let param = &o["spec"]["paramKind"];
        let param = match param {
            Value::Null => "<unset>".to_owned(),
            kind => format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")),
        };
        vec![name(o), Value::from(items(&o["spec"]["validations"]).count()), Value::from(param), age(o, now)]
    },
};

const ADMISSION_BINDING: Layout = Layout {
    columns: &[column("Name"), column("PolicyName"), column("ParamRef"), column("Age")],
    row: |o, now| {
        let param = &o["spec"]["paramRef"];
        let param = match (text(param, "namespace"), text(param, "name")) {
            ("", "") => "<unset>".to_owned(),
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        };
        vec![name(o), Value::from(text(&o["spec"], "policyName")), Value::from(param), age(o, now)]
    },
};

const API_SERVICE: Layout = Layout {
    columns: &[column("Name"), column("Service"), column("Available"), column("Age")],
    row: |o, now| {
        let service = &o["spec"]["service"];
        let service = match service {
            Value::Null => "Local".to_owned(),
            service => format!("{}/{}", text(service, "namespace"), text(service, "name")),
        };
        let available = super::cells::condition(o, "Available");
        let reason =
            available.map_or("Unknown".to_owned(), |c| match (text(c, "status"), text(c, "reason")) {
                ("True", _) => "True".to_owned(),
                (status, reason) => format!("{status} ({reason})"),
            });
        vec![name(o), Value::from(service), Value::from(reason), age(o, now)]
    },
};
