//! What Kubernetes' types say beyond JSON schema: list types, map keys, merge keys, atomic structs, free-form types.
//! Lists that are not named here are atomic, as they are upstream; objects that are not named merge by field.
use std::collections::HashMap;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::model::{ListType, PatchStrategy};

/// What is known about one field of one built-in type.
#[derive(Debug, Default, Clone)]
pub(super) struct Facts {
    pub list_type: Option<ListType>,
    pub atomic_map: bool,
    pub strategy: PatchStrategy,
    pub merge_key: Option<&'static str>,
    pub default: Option<&'static str>,
}

/// `TYPE FIELD FACT...`; `keys=` are map keys, `merge=` and `merge` patch strategies.
const FIELDS: &str = "
meta.v1.ObjectMeta finalizers set merge
meta.v1.ObjectMeta ownerReferences keys=uid merge=uid
core.v1.PodSpec containers keys=name merge=name
core.v1.PodSpec initContainers keys=name merge=name
core.v1.PodSpec ephemeralContainers keys=name merge=name
core.v1.PodSpec volumes keys=name merge=name retainKeys
core.v1.PodSpec imagePullSecrets keys=name merge=name
core.v1.PodSpec hostAliases keys=ip merge=ip
core.v1.PodSpec resourceClaims keys=name merge=name retainKeys
core.v1.PodSpec schedulingGates keys=name merge=name
core.v1.PodSpec topologySpreadConstraints keys=topologyKey,whenUnsatisfiable merge=topologyKey
core.v1.PodSpec nodeSelector atomicmap
core.v1.PodStatus conditions keys=type merge=type
core.v1.PodStatus podIPs keys=ip merge=ip
core.v1.PodStatus hostIPs atomic merge=ip
core.v1.PodStatus resourceClaimStatuses keys=name merge=name retainKeys
core.v1.Container ports keys=containerPort,protocol merge=containerPort
core.v1.Container env keys=name merge=name
core.v1.Container volumeMounts keys=mountPath merge=mountPath
core.v1.Container volumeDevices keys=devicePath merge=devicePath
core.v1.EphemeralContainer ports keys=containerPort,protocol merge=containerPort
core.v1.EphemeralContainer env keys=name merge=name
core.v1.EphemeralContainer volumeMounts keys=mountPath merge=mountPath
core.v1.EphemeralContainer volumeDevices keys=devicePath merge=devicePath
core.v1.ContainerPort protocol default=TCP
core.v1.ContainerStatus volumeMounts keys=mountPath merge=mountPath
core.v1.ContainerStatus allocatedResourcesStatus keys=name merge=name
core.v1.ResourceRequirements claims keys=name
core.v1.ResourceStatus resources keys=resourceID
core.v1.VolumeResourceRequirements claims keys=name
core.v1.ServiceSpec ports keys=port,protocol merge=port
core.v1.ServiceSpec selector atomicmap
core.v1.ServicePort protocol default=TCP
core.v1.ServiceStatus conditions keys=type merge=type
core.v1.NodeSpec podCIDRs set merge
core.v1.NodeStatus conditions keys=type merge=type
core.v1.NodeStatus addresses keys=type merge=type
core.v1.NamespaceStatus conditions keys=type merge=type
core.v1.PersistentVolumeClaimStatus conditions keys=type merge=type
core.v1.ReplicationControllerSpec selector atomicmap
core.v1.ReplicationControllerStatus conditions keys=type merge=type
core.v1.ServiceAccount secrets keys=name merge=name
apps.v1.DeploymentSpec strategy retainKeys
apps.v1.DeploymentStatus conditions keys=type merge=type
apps.v1.ReplicaSetStatus conditions keys=type merge=type
apps.v1.StatefulSetStatus conditions keys=type merge=type
apps.v1.DaemonSetStatus conditions keys=type merge=type
batch.v1.JobStatus conditions atomic merge=type
batch.v1.PodFailurePolicyOnExitCodesRequirement values set
batch.v1.UncountedTerminatedPods failed set
batch.v1.UncountedTerminatedPods succeeded set
discovery.v1.Endpoint addresses set
networking.v1.ServiceCIDRStatus conditions keys=type merge=type
policy.v1.PodDisruptionBudgetStatus conditions keys=type merge=type
policy.v1.PodDisruptionBudgetSpec selector replace
autoscaling.v2.HorizontalPodAutoscalerStatus conditions keys=type merge=type
storage.v1.CSIDriverSpec volumeLifecycleModes set
storage.v1.CSINodeSpec drivers keys=name merge=name
node.v1.Scheduling nodeSelector atomicmap
admissionregistration.v1.MutatingWebhookConfiguration webhooks keys=name merge=name
admissionregistration.v1.ValidatingWebhookConfiguration webhooks keys=name merge=name
admissionregistration.v1.MutatingWebhook matchConditions keys=name merge=name
admissionregistration.v1.ValidatingWebhook matchConditions keys=name merge=name
admissionregistration.v1.ValidatingAdmissionPolicySpec matchConditions keys=name merge=name
admissionregistration.v1.ValidatingAdmissionPolicySpec variables keys=name merge=name
admissionregistration.v1.ValidatingAdmissionPolicyBindingSpec validationActions set
admissionregistration.v1.ValidatingAdmissionPolicyStatus conditions keys=type
apiextensions.v1.CustomResourceDefinitionStatus conditions keys=type
apiextensions.v1.JSONSchemaProps x-kubernetes-validations keys=rule merge=rule
apiregistration.v1.APIServiceStatus conditions keys=type merge=type
";

/// Types server-side apply owns as a whole.
const ATOMIC: &[&str] = &[
    "meta.v1.LabelSelector",
    "meta.v1.OwnerReference",
    "meta.v1.FieldsV1",
    "core.v1.ConfigMapKeySelector",
    "core.v1.EndpointAddress",
    "core.v1.EndpointPort",
    "core.v1.LocalObjectReference",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.ObjectFieldSelector",
    "core.v1.ObjectReference",
    "core.v1.ResourceFieldSelector",
    "core.v1.ScopeSelector",
    "core.v1.ScopedResourceSelectorRequirement",
    "core.v1.SecretKeySelector",
    "core.v1.SecretReference",
    "core.v1.TopologySelectorTerm",
    "core.v1.TypedLocalObjectReference",
    "discovery.v1.EndpointPort",
    "rbac.v1.RoleRef",
    "rbac.v1.Subject",
    "autoscaling.v1.CrossVersionObjectReference",
    "admissionregistration.v1.NamedRuleWithOperations",
    "admissionregistration.v1.MatchResources",
    "admissionregistration.v1.ParamKind",
    "admissionregistration.v1.ParamRef",
];

/// Types that hold any JSON.
const FREE_FORM: &[&str] = &[
    "apiextensions.v1.JSON",
    "apiextensions.v1.JSONSchemaPropsOrArray",
    "apiextensions.v1.JSONSchemaPropsOrBool",
    "apiextensions.v1.JSONSchemaPropsOrStringArray",
    "meta.v1.FieldsV1",
    "runtime.RawExtension",
];

/// The short form of a definition's name that the tables use: `core.v1.Pod`, `resource.Quantity`.
pub(super) fn short_name(definition: &str) -> &str {
    let mut dots = definition.rmatch_indices('.').map(|(at, _)| at);
    let (kind, version, group) = (dots.next(), dots.next(), dots.next());
    let is_version = |from: usize| definition[from + 1..].starts_with('v');
    match (kind, version, group) {
        (Some(_), Some(v), Some(g)) if is_version(v) => &definition[g + 1..],
        (Some(_), Some(v), None) if is_version(v) => definition,
        (Some(_), Some(v), _) => &definition[v + 1..],
        _ => definition,
    }
}

pub(super) fn is_atomic(definition: &str) -> bool {
    ATOMIC.contains(&short_name(definition))
}

pub(super) fn is_free_form(definition: &str) -> bool {
    FREE_FORM.contains(&short_name(definition))
}

pub(super) fn is_quantity(definition: &str) -> bool {
    short_name(definition) == "resource.Quantity"
}

/// What is known about a field of a definition.
pub(super) fn field(definition: &str, field: &str) -> Option<&'static Facts> {
    static TABLE: OnceLock<HashMap<&str, HashMap<&str, Facts>>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut table: HashMap<&str, HashMap<&str, Facts>> = HashMap::new();
        for (definition, field, facts) in FIELDS.lines().filter_map(parse_row) {
            table.entry(definition).or_default().insert(field, facts);
        }
        table
    });
    table.get(short_name(definition))?.get(field)
}

fn parse_row(row: &'static str) -> Option<(&'static str, &'static str, Facts)> {
    let mut words = row.split_whitespace();
    let (definition, field) = (words.next()?, words.next()?);
    let mut facts = Facts::default();
    for word in words {
        match word.split_once('=').unwrap_or((word, "")) {
            ("keys", keys) => {
                facts.list_type = Some(ListType::Map(keys.split(',').map(str::to_owned).collect()));
            }
            ("set", _) => facts.list_type = Some(ListType::Set),
            ("atomic", _) => facts.list_type = Some(ListType::Atomic),
            ("atomicmap", _) => facts.atomic_map = true,
            ("retainKeys", _) => facts.strategy.retain_keys = true,
            ("replace", _) => facts.strategy.replace = true,
            ("default", value) => facts.default = Some(value),
            (_, merge_key) => {
                facts.strategy.merge = true;
                facts.merge_key = (!merge_key.is_empty()).then_some(merge_key);
            }
        }
    }
    Some((definition, field, facts))
}

/// Writes what is known about a definition into its published JSON, as upstream's documents have it.
pub(crate) fn annotate(definition: &str, json: &mut Value) {
    let Some(object) = json.as_object_mut() else { return };
    if is_free_form(definition) && short_name(definition) != "runtime.RawExtension" {
        let description = object.remove("description");
        object.clear();
        object.extend(description.map(|d| ("description".to_owned(), d)));
    }
    if is_quantity(definition) {
        object.remove("x-kubernetes-int-or-string");
        object.insert("oneOf".into(), json!([{"type": "string"}, {"type": "number"}]));
    }
    if short_name(definition) == "intstr.IntOrString" {
        object.remove("x-kubernetes-int-or-string");
        object.insert("format".into(), json!("int-or-string"));
        object.insert("oneOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
    }
    if is_atomic(definition) {
        object.insert("x-kubernetes-map-type".into(), json!("atomic"));
    }
    let properties = object.get_mut("properties").and_then(Value::as_object_mut);
    for (name, property) in properties.into_iter().flatten() {
        let Some(property) = property.as_object_mut() else { continue };
        match field(definition, name) {
            Some(facts) => annotate_field(facts, property),
            None if property.get("type").is_some_and(|t| t == "array") => {
                property.insert("x-kubernetes-list-type".into(), json!("atomic"));
            }
            None => {}
        }
    }
}

fn annotate_field(facts: &Facts, property: &mut Map<String, Value>) {
    match &facts.list_type {
        Some(ListType::Atomic) => drop(property.insert("x-kubernetes-list-type".into(), json!("atomic"))),
        Some(ListType::Set) => drop(property.insert("x-kubernetes-list-type".into(), json!("set"))),
        Some(ListType::Map(keys)) => {
            property.insert("x-kubernetes-list-type".into(), json!("map"));
            property.insert("x-kubernetes-list-map-keys".into(), json!(keys));
        }
        None => {}
    }
    if facts.atomic_map {
        property.insert("x-kubernetes-map-type".into(), json!("atomic"));
    }
    if let Some(key) = facts.merge_key {
        property.insert("x-kubernetes-patch-merge-key".into(), json!(key));
    }
    let strategy = facts.strategy;
    let words =
        [("merge", strategy.merge), ("replace", strategy.replace), ("retainKeys", strategy.retain_keys)];
    let named: Vec<&str> = words.iter().filter(|(_, on)| *on).map(|(word, _)| *word).collect();
    if !named.is_empty() {
        property.insert("x-kubernetes-patch-strategy".into(), json!(named.join(",")));
    }
    if let Some(default) = facts.default {
        property.insert("default".into(), json!(default));
    }
}
