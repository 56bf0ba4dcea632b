//! Clients and one-time lists. Watching lives in `cluster`.

use std::path::Path;

use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::DeserializeGuard;
use kube::{Client, Config};
use weft_model::{ClusterSettings, Finding, Snapshot};

use crate::Error;
use crate::kinds::{self, Kind, Presence};
use crate::store::Store;

/// Objects in one response: bounds what a response takes in memory.
const PAGE: u32 = 500;

/// A client for the current context of a kubeconfig.
pub async fn client_from_kubeconfig(path: &Path) -> Result<Client, Error> {
    let bad = |reason: String| Error::Kubeconfig { path: path.to_owned(), reason };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| bad(chain(&error)))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| bad(chain(&error)))?;
    Client::try_from(config).map_err(|error| bad(chain(&error)))
}

/// The given kubeconfig; without one the pod's own service account, then $KUBECONFIG and ~/.kube/config.
pub async fn client_in_cluster_or(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    if let Some(path) = kubeconfig {
        return client_from_kubeconfig(path).await;
    }
    if let Ok(config) = Config::incluster() {
        return Client::try_from(config).map_err(|error| Error::NoServer(chain(&error)));
    }
    let config = Config::infer().await.map_err(|error| Error::NoServer(chain(&error)))?;
    Client::try_from(config).map_err(|error| Error::NoServer(chain(&error)))
}

/// The cluster as it is now, for programs that ask once.
pub async fn list_once(
    client: &Client,
    settings: ClusterSettings,
) -> Result<(Snapshot, Vec<Finding>), Error> {
    let mut store = Store::new(settings);
    list::<kinds::Namespaces>(client, &mut store).await?;
    list::<kinds::Nodes>(client, &mut store).await?;
    list::<kinds::Pods>(client, &mut store).await?;
    list::<kinds::Services>(client, &mut store).await?;
    list::<kinds::EndpointSlices>(client, &mut store).await?;
    list::<kinds::NetworkPolicies>(client, &mut store).await?;
    list::<kinds::AddressPools>(client, &mut store).await?;
    Ok((store.snapshot().clone(), store.findings()))
}

async fn list<K: Kind>(client: &Client, store: &mut Store) -> Result<(), Error> {
    let api: Api<DeserializeGuard<K::Object>> = Api::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = match api.list(&params).await {
            Err(kube::Error::Api(status))
                if K::PRESENCE == Presence::WhereInstalled && status.code == 404 =>
            {
                store.absent::<K>();
                return Ok(());
            }
            listed => listed.map_err(Error::api(format!("list {}", K::PLURAL)))?,
        };
        for object in page.items {
            store.put::<K>(object);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bad_kubeconfig_is_named() {
        let missing = client_from_kubeconfig(Path::new("/nowhere/kubeconfig")).await.err().unwrap();
        assert!(missing.to_string().starts_with("kubeconfig /nowhere/kubeconfig: "), "{missing}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, "apiVersion: v1\nkind: Config\ncurrent-context: none\n").unwrap();
        let dangling = client_from_kubeconfig(&path).await.err().unwrap();
        assert!(dangling.to_string().contains("none"), "{dangling}");
    }
}
