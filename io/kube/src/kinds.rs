//! The kinds of objects that are watched: where each goes in the model and how it is parsed.

use std::fmt::Debug;

use k8s_openapi::api::core::v1;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::DeserializeOwned;
use weft_model::parse::{self, Parsed};
use weft_model::{
    AddressPool, Namespace, NamespaceName, Node, NodeName, ObjectKey, Pod, PodKey, Policy, PolicyKey,
    PolicyKind, PoolName, Service, ServiceKey, SharedMap, Snapshot,
};

pub trait Kind: Send + 'static {
    type Object: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static;
    type Key: Ord + Clone;
    type Value: PartialEq;
    /// As in findings: `NetworkPolicy`.
    const NAME: &'static str;
    const PLURAL: &'static str;
    /// Its place in `Store`'s books.
    const INDEX: usize;
    const PRESENCE: Presence = Presence::Always;

    fn key(namespace: &str, name: &str) -> Self::Key;
    fn parse(object: &Self::Object) -> Parsed<Self::Value>;
    fn table(snapshot: &mut Snapshot) -> &mut SharedMap<Self::Key, Self::Value>;
}

/// Whether every API server has the kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    Always,
    /// Where its CustomResourceDefinition is not installed there are none.
    WhereInstalled,
}

pub const COUNT: usize = 7;
pub const PLURALS: [&str; COUNT] = [
    Namespaces::PLURAL,
    Nodes::PLURAL,
    Pods::PLURAL,
    Services::PLURAL,
    EndpointSlices::PLURAL,
    NetworkPolicies::PLURAL,
    AddressPools::PLURAL,
];

/// What identifies an object of any kind; cluster-wide ones have no namespace.
pub fn id(meta: &ObjectMeta) -> Option<ObjectKey> {
    let name = meta.name.as_deref().filter(|name| !name.is_empty())?;
    Some(ObjectKey::new(meta.namespace.as_deref().unwrap_or_default(), name))
}

macro_rules! kind {
    ($kind:ident, $name:literal, $plural:literal, $index:literal, $object:ty, $key:ty, $value:ty,
     $table:ident, $parse:expr, $to_key:expr) => {
        pub struct $kind;

        impl Kind for $kind {
            type Object = $object;
            type Key = $key;
            type Value = $value;
            const NAME: &'static str = $name;
            const PLURAL: &'static str = $plural;
            const INDEX: usize = $index;

            fn key(namespace: &str, name: &str) -> Self::Key {
                let to_key: fn(&str, &str) -> Self::Key = $to_key;
                to_key(namespace, name)
            }

            fn parse(object: &Self::Object) -> Parsed<Self::Value> {
                $parse(object)
            }

            fn table(snapshot: &mut Snapshot) -> &mut SharedMap<Self::Key, Self::Value> {
                &mut snapshot.$table
            }
        }
    };
}

kind!(
    Namespaces,
    "Namespace",
    "namespaces",
    0,
    v1::Namespace,
    NamespaceName,
    Namespace,
    namespaces,
    parse::namespace,
    |_, name| NamespaceName::new(name)
);
kind!(Nodes, "Node", "nodes", 1, v1::Node, NodeName, Node, nodes, parse::node, |_, name| NodeName::new(name));
kind!(Pods, "Pod", "pods", 2, v1::Pod, PodKey, Pod, pods, parse::pod, |namespace, name| {
    PodKey::new(namespace, name)
});
kind!(
    Services,
    "Service",
    "services",
    3,
    v1::Service,
    ServiceKey,
    Service,
    services,
    parse::service,
    |namespace, name| ServiceKey::new(namespace, name)
);
kind!(
    EndpointSlices,
    "EndpointSlice",
    "endpointslices",
    4,
    EndpointSlice,
    ServiceKey,
    weft_model::EndpointSlice,
    slices,
    parse::endpoint_slice,
    |namespace, name| ServiceKey::new(namespace, name)
);
kind!(
    NetworkPolicies,
    "NetworkPolicy",
    "networkpolicies",
    5,
    NetworkPolicy,
    PolicyKey,
    Policy,
    policies,
    parse::network_policy,
    |namespace, name| PolicyKey { kind: PolicyKind::NetworkPolicy, object: ObjectKey::new(namespace, name) }
);

pub struct AddressPools;

impl Kind for AddressPools {
    type Object = parse::AddressPoolObject;
    type Key = PoolName;
    type Value = AddressPool;
    const NAME: &'static str = "AddressPool";
    const PLURAL: &'static str = "addresspools";
    const INDEX: usize = 6;
    const PRESENCE: Presence = Presence::WhereInstalled;

    fn key(_: &str, name: &str) -> PoolName {
        PoolName(name.to_owned())
    }

    fn parse(object: &Self::Object) -> Parsed<AddressPool> {
        parse::address_pool(object)
    }

    fn table(snapshot: &mut Snapshot) -> &mut SharedMap<PoolName, AddressPool> {
        &mut snapshot.pools
    }
}
