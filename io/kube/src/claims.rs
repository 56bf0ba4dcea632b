//! Leases that say which node announces an address, and which nodes live: reading and writing them. Who may take one is
//! decided in core/decide.

mod watching;

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use weft_model::{Addr, Family, NodeName};

use crate::Error;

pub const NAMESPACE: &str = "weft-system";
const KIND_LABEL: &str = "weft.dev/lease";
const ADDRESS: &str = "address";
const NODE: &str = "node";
const ADDRESS_ANNOTATION: &str = "weft.dev/address";
const OBSTACLE_ANNOTATION: &str = "weft.dev/obstacle";
/// A write that takes longer is of no use any more.
const PATIENCE: Duration = Duration::from_secs(1);

/// The Lease of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressLease {
    pub addr: Addr,
    /// `None`: given up.
    pub holder: Option<NodeName>,
    pub version: String,
    pub transitions: u32,
    /// When its holder took it.
    pub since: Option<Timestamp>,
    /// What keeps it from being taken or held: a word and a link address.
    pub obstacle: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseNews {
    Address(AddressLease),
    AddressGone(Addr),
    Heartbeat(NodeName, String),
    HeartbeatGone(NodeName),
    /// What came before is all there is, and the server answers.
    Listed,
    /// Nothing more comes before everything is listed anew.
    Away,
}

/// How a conditional write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    Done,
    /// Somebody else changed the Lease, or it is gone.
    Refused,
}

#[derive(Clone)]
pub struct Claims {
    api: Api<Lease>,
    node: NodeName,
}

/// `vip-192-0-2-10`: IPv6 is written out, so that a name never ends in a dash.
pub fn address_lease_name(addr: Addr) -> String {
    let text = match (addr.family(), addr.to_ip()) {
        (Family::V6, std::net::IpAddr::V6(v6)) => {
            v6.segments().map(|segment| format!("{segment:x}")).join("-")
        }
        _ => addr.to_string().replace('.', "-"),
    };
    format!("vip-{text}")
}

pub fn node_lease_name(node: &NodeName) -> String {
    format!("node-{node}")
}

impl Claims {
    pub fn new(client: Client, node: NodeName) -> Self {
        Self { api: Api::namespaced(client, NAMESPACE), node }
    }

    /// What happens to the Leases, until the receiver is dropped.
    pub fn watch(&self) -> mpsc::Receiver<LeaseNews> {
        let (send, receive) = mpsc::channel(1024);
        tokio::spawn(watching::follow(self.api.clone(), send));
        receive
    }

    /// Takes the address for this node on the version that was seen; `seen` is `None` where there was no Lease. `after`:
    /// whose heartbeat, as last seen, must not have come again. `None`: somebody was faster, or lives.
    pub async fn take(
        &self,
        addr: Addr,
        seen: Option<&str>,
        transitions: u32,
        after: Option<(&NodeName, &str)>,
    ) -> Result<Option<AddressLease>, Error> {
        if let Some((holder, heartbeat)) = after
            && self.heartbeat_of(holder).await?.is_some_and(|newest| newest != heartbeat)
        {
            return Ok(None);
        }
        let now = MicroTime(Timestamp::now());
        let spec = LeaseSpec {
            holder_identity: Some(self.node.to_string()),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(i32::try_from(transitions).unwrap_or(i32::MAX)),
            ..LeaseSpec::default()
        };
        self.put(addr, seen, spec, None, "take").await
    }

    async fn heartbeat_of(&self, node: &NodeName) -> Result<Option<String>, Error> {
        let name = node_lease_name(node);
        let read = tokio::time::timeout(PATIENCE, self.api.get_opt(&name)).await;
        let lease = read.map_err(|_| late("read", &name))?;
        let lease = lease.map_err(Error::api(format!("read lease {name}")))?;
        Ok(lease.map(|lease| renewed(&lease)))
    }

    /// Says in the Lease what keeps the address from being taken or held.
    pub async fn report(
        &self,
        seen: Option<&AddressLease>,
        addr: Addr,
        obstacle: Option<&str>,
    ) -> Result<Written, Error> {
        let Some(seen) = seen else {
            return match obstacle {
                Some(text) => {
                    let put = self.put(addr, None, LeaseSpec::default(), Some(text), "report on").await?;
                    Ok(put.map_or(Written::Refused, |_| Written::Done))
                }
                None => Ok(Written::Done),
            };
        };
        let patch = json!({"metadata": {
            "resourceVersion": seen.version, "annotations": {OBSTACLE_ANNOTATION: obstacle},
        }});
        self.patch(&address_lease_name(addr), &patch, "report on").await
    }

    /// The next candidate need not wait.
    pub async fn hand_over(&self, addr: Addr) -> Result<Written, Error> {
        let name = address_lease_name(addr);
        let Some(lease) = self.own(&name).await? else { return Ok(Written::Refused) };
        let patch = json!({
            "metadata": {"resourceVersion": lease.resource_version()},
            "spec": {"holderIdentity": null},
        });
        self.patch(&name, &patch, "hand over").await
    }

    pub async fn delete(&self, addr: Addr) -> Result<Written, Error> {
        let name = address_lease_name(addr);
        let Some(lease) = self.own(&name).await? else { return Ok(Written::Refused) };
        let preconditions = Preconditions { resource_version: lease.resource_version(), uid: lease.uid() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let deleted = tokio::time::timeout(PATIENCE, self.api.delete(&name, &params)).await;
        written(deleted.map_err(|_| late("delete", &name))?.map(|_| ()), "delete", &name)
    }

    /// The Lease, if it names this node.
    async fn own(&self, name: &str) -> Result<Option<Lease>, Error> {
        let read = tokio::time::timeout(PATIENCE, self.api.get_opt(name)).await;
        let lease =
            read.map_err(|_| late("read", name))?.map_err(Error::api(format!("read lease {name}")))?;
        Ok(lease.filter(|lease| holder(lease).as_ref() == Some(&self.node)))
    }

    /// This node lives.
    pub async fn beat(&self) -> Result<(), Error> {
        let name = node_lease_name(&self.node);
        let now = MicroTime(Timestamp::now());
        let patch = json!({"spec": {"holderIdentity": self.node.as_str(), "renewTime": now}});
        match self.patch(&name, &patch, "renew").await? {
            Written::Done => Ok(()),
            Written::Refused => {
                let lease = Lease {
                    metadata: metadata(&name, NODE, None, None),
                    spec: Some(LeaseSpec {
                        holder_identity: Some(self.node.to_string()),
                        renew_time: Some(now),
                        ..LeaseSpec::default()
                    }),
                };
                self.create(&lease, "create").await.map(|_| ())
            }
        }
    }

    /// This node holds nothing any more: nobody need watch it.
    pub async fn stop_beating(&self) -> Result<(), Error> {
        let name = node_lease_name(&self.node);
        let deleted = tokio::time::timeout(PATIENCE, self.api.delete(&name, &DeleteParams::default())).await;
        written(deleted.map_err(|_| late("delete", &name))?.map(|_| ()), "delete", &name).map(|_| ())
    }

    async fn put(
        &self,
        addr: Addr,
        seen: Option<&str>,
        spec: LeaseSpec,
        obstacle: Option<&str>,
        action: &str,
    ) -> Result<Option<AddressLease>, Error> {
        let name = address_lease_name(addr);
        let mut lease = Lease { metadata: metadata(&name, ADDRESS, Some(addr), obstacle), spec: Some(spec) };
        let Some(version) = seen else {
            return Ok(self.create(&lease, action).await?.as_ref().and_then(address_lease));
        };
        lease.metadata.resource_version = Some(version.to_owned());
        let params = PostParams::default();
        let replaced = tokio::time::timeout(PATIENCE, self.api.replace(&name, &params, &lease)).await;
        let replaced = accepted(replaced.map_err(|_| late(action, &name))?, action, &name)?;
        Ok(replaced.as_ref().and_then(address_lease))
    }

    async fn create(&self, lease: &Lease, action: &str) -> Result<Option<Lease>, Error> {
        let name = lease.name_any();
        let params = PostParams::default();
        let created = tokio::time::timeout(PATIENCE, self.api.create(&params, lease)).await;
        accepted(created.map_err(|_| late(action, &name))?, action, &name)
    }

    async fn patch(&self, name: &str, patch: &serde_json::Value, action: &str) -> Result<Written, Error> {
        let params = PatchParams::default();
        let merge = Patch::Merge(patch);
        let sent = self.api.patch(name, &params, &merge);
        let patched = tokio::time::timeout(PATIENCE, sent).await.map_err(|_| late(action, name))?;
        written(patched.map(|_| ()), action, name)
    }
}

/// Every Lease of an address, for programs that ask once.
pub async fn address_leases(client: &Client) -> Result<Vec<AddressLease>, Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let params = ListParams::default().labels(&format!("{KIND_LABEL}={ADDRESS}"));
    let leases = api.list(&params).await.map_err(Error::api("list leases of addresses"))?;
    Ok(leases.items.iter().filter_map(address_lease).collect())
}

/// A Lease of ours, for whom it has to be collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    Address(AddressLease),
    /// A node's heartbeat, and what it said last.
    Heartbeat(NodeName, String),
}

/// Deletes the Leases that `is_abandoned` finds; all are shown to it, in one look. Returns how many went.
pub async fn delete_abandoned(
    client: &Client,
    is_abandoned: impl FnOnce(&[Held]) -> Vec<bool>,
) -> Result<usize, Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let params = ListParams::default().labels(KIND_LABEL);
    let leases = api.list(&params).await.map_err(Error::api("list leases"))?;
    let known = |lease: Lease| Some((held(&lease)?, lease));
    let (held, leases): (Vec<Held>, Vec<Lease>) = leases.items.into_iter().filter_map(known).unzip();
    let abandoned = is_abandoned(&held);
    let mut deleted = 0;
    for (lease, _) in leases.into_iter().zip(abandoned).filter(|(_, abandoned)| *abandoned) {
        let name = lease.name_any();
        let preconditions = Preconditions { resource_version: lease.resource_version(), uid: lease.uid() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match written(api.delete(&name, &params).await.map(|_| ()), "delete", &name)? {
            Written::Done => deleted += 1,
            Written::Refused => {}
        }
    }
    Ok(deleted)
}

fn held(lease: &Lease) -> Option<Held> {
    match address_lease(lease) {
        Some(lease) => Some(Held::Address(lease)),
        None => {
            let name = lease.metadata.name.as_deref()?.strip_prefix("node-")?;
            Some(Held::Heartbeat(NodeName::new(name), renewed(lease)))
        }
    }
}

fn metadata(name: &str, kind: &str, addr: Option<Addr>, obstacle: Option<&str>) -> ObjectMeta {
    let addr = addr.map(|addr| (ADDRESS_ANNOTATION.to_owned(), addr.to_string()));
    let obstacle = obstacle.map(|text| (OBSTACLE_ANNOTATION.to_owned(), text.to_owned()));
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some([(KIND_LABEL.to_owned(), kind.to_owned())].into()),
        annotations: Some(addr.into_iter().chain(obstacle).collect()),
        ..ObjectMeta::default()
    }
}

fn written(result: Result<(), kube::Error>, action: &str, name: &str) -> Result<Written, Error> {
    Ok(accepted(result, action, name)?.map_or(Written::Refused, |()| Written::Done))
}

/// `None`: the object is gone, or another version is there.
fn accepted<T>(result: Result<T, kube::Error>, action: &str, name: &str) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
        Err(error) => Err(Error::api(format!("{action} lease {name}"))(error)),
    }
}

fn late(action: &str, name: &str) -> Error {
    Error::Late { action: format!("{action} lease {name}") }
}

fn holder(lease: &Lease) -> Option<NodeName> {
    let holder = lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())?;
    Some(NodeName::new(holder))
}

fn renewed(lease: &Lease) -> String {
    let time = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref());
    time.map(|time| time.0.to_string()).unwrap_or_default()
}

fn address_lease(lease: &Lease) -> Option<AddressLease> {
    let addr = lease.annotations().get(ADDRESS_ANNOTATION)?.parse().ok()?;
    let spec = lease.spec.clone().unwrap_or_default();
    Some(AddressLease {
        addr,
        holder: holder(lease),
        version: lease.resource_version().unwrap_or_default(),
        transitions: spec.lease_transitions.and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
        since: spec.acquire_time.map(|time| time.0),
        obstacle: lease.annotations().get(OBSTACLE_ANNOTATION).cloned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_leases_are_names() {
        let name = |text: &str| address_lease_name(text.parse().unwrap());
        assert_eq!(name("192.0.2.10"), "vip-192-0-2-10");
        assert_eq!(name("fd00::"), "vip-fd00-0-0-0-0-0-0-0");
    }
}
