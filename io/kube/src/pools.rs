//! Writing the status of AddressPools.

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use weft_model::parse::AddressPoolObject;
use weft_model::{PoolName, Uid};

use crate::Error;
use crate::events::{EventRecorder, Subject};
use crate::status::{PoolStatus, Truth, pool_change};

/// A pool that is gone, or that somebody changed meanwhile, is no error: its next change brings it up again.
pub async fn set_pool_status(
    client: &Client,
    events: &EventRecorder,
    name: &PoolName,
    wanted: &PoolStatus,
) -> Result<(), Error> {
    let api: Api<AddressPoolObject> = Api::all(client.clone());
    let current = api.get_opt(&name.0).await.map_err(Error::api(format!("read addresspool {name}")))?;
    let Some(current) = current else { return Ok(()) };
    let Some(change) = pool_change(&current, wanted, Timestamp::now()) else { return Ok(()) };
    let action = format!("set the status of addresspool {name}");
    let patch = Patch::Merge(&change.patch);
    api.patch_status(&name.0, &PatchParams::default(), &patch).await.map_err(Error::api(action))?;
    let subject = Subject::pool(name, &Uid::new(current.metadata.uid.unwrap_or_default()));
    for saying in change.news.iter().filter(|saying| saying.truth == Truth::False) {
        events.warning(&subject, &saying.reason, saying.message.clone());
    }
    Ok(())
}
