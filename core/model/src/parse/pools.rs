//! AddressPool (weft.dev/v1alpha1) to the model's, and what services ask of pools. Giving out addresses lives in core/compile.

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, ObjectMeta};
use serde::{Deserialize, Serialize};

use super::labels::selector;
use super::nodes::cidr;
use super::{Findings, Parsed, non_empty};
use crate::{
    Addr, AddressGiver, AddressPool, AddressRange, AddressRequest, Announcement, Assignment, FamilyPolicy,
    PoolName, Selector, ServiceKind,
};

/// The condition by which a service's addresses are known as ours.
pub const ADDRESS_ASSIGNED: &str = "weft.dev/AddressAssigned";
const ADDRESSES_ANNOTATION: &str = "weft.dev/addresses";
const POOL_ANNOTATION: &str = "weft.dev/address-pool";
const SHARE_ANNOTATION: &str = "weft.dev/share-address";

/// The object as the API has it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AddressPoolObject {
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: AddressPoolSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<AddressPoolStatus>,
}

impl k8s_openapi::Resource for AddressPoolObject {
    const API_VERSION: &'static str = "weft.dev/v1alpha1";
    const GROUP: &'static str = "weft.dev";
    const KIND: &'static str = "AddressPool";
    const VERSION: &'static str = "v1alpha1";
    const URL_PATH_SEGMENT: &'static str = "addresspools";
    type Scope = k8s_openapi::ClusterResourceScope;
}

impl k8s_openapi::Metadata for AddressPoolObject {
    type Ty = ObjectMeta;

    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressPoolSpec {
    #[serde(default)]
    pub addresses: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auto_assign: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_selector: Option<LabelSelector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<AnnounceSpec>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnnounceSpec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AddressPoolStatus {
    #[serde(default)]
    pub conditions: Vec<Condition>,
    #[serde(default)]
    pub capacity: Option<PoolCapacity>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolCapacity {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<FamilyCapacity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<FamilyCapacity>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyCapacity {
    pub total: i64,
    pub used: i64,
}

/// A selector that is not understood selects nothing: what was meant for few must not go to all.
pub fn address_pool(pool: &AddressPoolObject) -> Parsed<AddressPool> {
    let mut findings = Findings::about("AddressPool", &pool.metadata);
    let Some(name) = non_empty(&pool.metadata.name) else {
        findings.error("metadata.name", "is missing");
        return findings.with(None);
    };
    let spec = &pool.spec;
    let given = spec.addresses.iter().enumerate();
    let ranges: Vec<AddressRange> = given
        .filter_map(|(index, text)| range(&mut findings, &format!("spec.addresses[{index}]"), text.trim()))
        .collect();
    if spec.addresses.is_empty() {
        findings.error("spec.addresses", "is empty; the pool has nothing to give");
    }
    let (services, services_understood) =
        scope(&mut findings, "spec.serviceSelector", spec.service_selector.as_ref());
    let (namespaces, namespaces_understood) =
        scope(&mut findings, "spec.namespaceSelector", spec.namespace_selector.as_ref());
    let (announcement, announcement_understood) = announcement(&mut findings, spec.announce.as_ref());
    let understood = services_understood && namespaces_understood && announcement_understood;
    let value = AddressPool {
        name: PoolName(name.to_owned()),
        ranges: if understood { ranges } else { Vec::new() },
        assignment: match spec.auto_assign {
            Some(false) => Assignment::OnRequest,
            Some(true) | None => Assignment::Automatic,
        },
        services,
        namespaces,
        announcement,
    };
    findings.with(Some(value))
}

/// What a service says to pools; parsed for type LoadBalancer only, so that others do not change with their labels.
pub(super) fn request(findings: &mut Findings, kind: &ServiceKind, service: &api::Service) -> AddressRequest {
    if *kind != ServiceKind::LoadBalancer {
        return AddressRequest::default();
    }
    let meta = &service.metadata;
    let spec = service.spec.clone().unwrap_or_default();
    let annotation = |name: &str| {
        let text = meta.annotations.as_ref()?.get(name)?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let conditions = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ours = conditions.clone().any(|condition| condition.type_ == ADDRESS_ASSIGNED);
    AddressRequest {
        created: meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        labels: meta.labels.clone().unwrap_or_default(),
        addresses: requested(findings, annotation(ADDRESSES_ANNOTATION), &spec),
        pool: annotation(POOL_ANNOTATION).map(PoolName),
        share: annotation(SHARE_ANNOTATION),
        families: match spec.ip_family_policy.as_deref() {
            Some("RequireDualStack") => FamilyPolicy::RequireDual,
            Some("PreferDualStack") => FamilyPolicy::PreferDual,
            _ => FamilyPolicy::Single,
        },
        giver: if ours { AddressGiver::Weft } else { AddressGiver::Other },
    }
}

fn requested(findings: &mut Findings, annotated: Option<String>, spec: &api::ServiceSpec) -> Vec<Addr> {
    let field = format!("metadata.annotations[{ADDRESSES_ANNOTATION}]");
    let (field, text) = match (annotated, non_empty(&spec.load_balancer_ip)) {
        (Some(text), _) => (field, text),
        (None, Some(text)) => ("spec.loadBalancerIP".to_owned(), text.to_owned()),
        (None, None) => return Vec::new(),
    };
    let mut addresses: Vec<Addr> = Vec::new();
    for text in text.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let Some(addr) = findings.addr(field.as_str(), text) else { continue };
        match addresses.iter().find(|known| known.family() == addr.family()) {
            None => addresses.push(addr),
            Some(known) if *known == addr => {}
            Some(known) => {
                let message =
                    format!("{addr} is a second one of the family of {known}; one of each family is given");
                findings.error(field.as_str(), message);
            }
        }
    }
    addresses
}

fn range(findings: &mut Findings, field: &str, text: &str) -> Option<AddressRange> {
    if text.contains('/') {
        return cidr(findings, field, text).map(AddressRange::of);
    }
    let Some((first, last)) = text.split_once('-') else {
        let addr = findings.addr(field, text)?;
        return Some(AddressRange { first: addr, last: addr });
    };
    let (first, last) = (findings.addr(field, first.trim())?, findings.addr(field, last.trim())?);
    if first.family() != last.family() {
        findings.error(field, format!("{first} and {last} are of different families"));
        return None;
    }
    if first > last {
        findings.error(field, format!("{first} comes after {last}; write {last}-{first}"));
        return None;
    }
    Some(AddressRange { first, last })
}

/// The selector, and whether all of it was understood.
fn scope(findings: &mut Findings, field: &str, given: Option<&LabelSelector>) -> (Option<Selector>, bool) {
    let Some(given) = given else { return (None, true) };
    let parsed = selector(findings, field, given);
    (Some(parsed.selector), parsed.complete)
}

fn announcement(findings: &mut Findings, given: Option<&AnnounceSpec>) -> (Announcement, bool) {
    let default = AnnounceSpec::default();
    let given = given.unwrap_or(&default);
    let (nodes, understood) = scope(findings, "spec.announce.nodeSelector", given.node_selector.as_ref());
    match given.protocol.as_deref() {
        None | Some("" | "L2") => {
            (Announcement::Layer2 { interfaces: given.interfaces.clone(), nodes }, understood)
        }
        Some("None") => (Announcement::None, understood),
        Some(other) => {
            let message = format!("{other:?} is neither L2 nor None; the addresses are not announced");
            findings.error("spec.announce.protocol", message);
            (Announcement::None, understood)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Family;

    fn parse(spec: Value) -> (AddressPool, Vec<String>) {
        let object = json!({"metadata": {"name": "edge"}, "spec": spec});
        let parsed = address_pool(&serde_json::from_value(object).unwrap());
        let findings = parsed.findings.iter().map(|finding| finding.to_string()).collect();
        (parsed.value.unwrap(), findings)
    }

    #[test]
    fn every_form_of_addresses_is_read() {
        let (pool, findings) = parse(
            json!({"addresses": ["192.0.2.10-192.0.2.50", "198.51.100.0/24", "192.0.2.7", "fd00::/120"]}),
        );
        let texts: Vec<String> = pool.ranges.iter().map(ToString::to_string).collect();
        let expected =
            ["192.0.2.10-192.0.2.50", "198.51.100.0-198.51.100.255", "192.0.2.7", "fd00::-fd00::ff"];
        assert_eq!((texts, findings), (expected.map(str::to_owned).to_vec(), vec![]));
        assert_eq!(pool.assignment, Assignment::Automatic);
        assert_eq!(pool.announcement, Announcement::Layer2 { interfaces: vec![], nodes: None });
    }

    #[test]
    fn what_is_wrong_is_named_and_the_rest_stays() {
        let (pool, findings) = parse(json!({"addresses":
            ["192.0.2.9-192.0.2.1", "192.0.2.1-fd00::1", "nine", "10.0.0.0/99", "192.0.2.1"]}));
        assert_eq!(pool.ranges.len(), 1);
        assert_eq!(
            findings,
            [
                "error: AddressPool edge: spec.addresses[0]: 192.0.2.9 comes after 192.0.2.1; write 192.0.2.1-192.0.2.9",
                "error: AddressPool edge: spec.addresses[1]: 192.0.2.1 and fd00::1 are of different families",
                "error: AddressPool edge: spec.addresses[2]: \"nine\" is not an IP address",
                "error: AddressPool edge: spec.addresses[3]: \"10.0.0.0/99\" is not a prefix in CIDR form, for example 10.0.0.0/8",
            ]
        );
    }

    #[test]
    fn a_pool_whose_selector_is_broken_gives_nothing() {
        let broken = json!({"matchExpressions": [{"key": "app", "operator": "Near"}]});
        for field in ["serviceSelector", "namespaceSelector"] {
            let (pool, findings) = parse(json!({"addresses": ["192.0.2.1"], field: broken}));
            assert!(pool.ranges.is_empty() && findings.len() == 1, "{field}: {findings:?}");
            assert!(findings[0].contains(&format!("spec.{field}.matchExpressions[0].operator")));
        }
        let (pool, findings) = parse(json!({"addresses": [], "announce": {"protocol": "BGP"}}));
        assert_eq!((pool.announcement, findings.len()), (Announcement::None, 2));
    }

    /// Proves spec.loadBalancerIP: A request for that address, as the annotation weft.dev/addresses is.
    #[test]
    fn a_services_wishes_are_read() {
        let read = |annotations: Value, kind: ServiceKind| {
            let object = json!({
                "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}, "annotations": annotations},
                "spec": {"loadBalancerIP": "192.0.2.1"},
                "status": {"conditions": [{"type": ADDRESS_ASSIGNED, "status": "True", "reason": "Assigned",
                    "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            });
            let object: api::Service = serde_json::from_value(object).unwrap();
            let mut findings = Findings::about("Service", &object.metadata);
            let request = request(&mut findings, &kind, &object);
            (request, findings.found.len())
        };
        let annotations = json!({ADDRESSES_ANNOTATION: "192.0.2.7, fd00::7,192.0.2.8,x", POOL_ANNOTATION: "edge",
            SHARE_ANNOTATION: "front"});
        let (wish, findings) = read(annotations.clone(), ServiceKind::LoadBalancer);
        assert_eq!(
            wish.addresses.iter().map(|addr| addr.family()).collect::<Vec<_>>(),
            [Family::V4, Family::V6]
        );
        assert_eq!((wish.pool, wish.share), (Some(PoolName("edge".into())), Some("front".into())));
        assert_eq!((wish.giver, findings), (AddressGiver::Weft, 2));
        let (wish, findings) = read(json!({}), ServiceKind::LoadBalancer);
        assert_eq!((wish.addresses[0].to_string().as_str(), findings), ("192.0.2.1", 0));
        assert_eq!(read(annotations, ServiceKind::NodePort), (AddressRequest::default(), 0));
    }
}
