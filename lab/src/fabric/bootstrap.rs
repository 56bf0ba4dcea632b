//! The first objects of a fresh cluster: our namespace, our kinds and the rights our processes run under.

use std::path::Path;
use std::time::Duration;

use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, ResourceExt};

use super::error::Error;

/// What our processes may do in any cluster.
const RIGHTS: &str = include_str!("../../../deploy/rbac.yaml");
/// The kinds of our own.
const KINDS: &str = include_str!("../../../deploy/crds/addresspools.yaml");
/// What stands in for a control plane's own rights in the lab.
const LAB_RIGHTS: &str = include_str!("../../manifests/rbac.yaml");

const RETRY: Duration = Duration::from_millis(20);
const CONFLICT: u16 = 409;

/// A client that acts as the user of a kubeconfig file.
pub async fn client(kubeconfig: &Path) -> Result<Client, String> {
    let file = Kubeconfig::read_from(kubeconfig).map_err(|e| e.to_string())?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|e| e.to_string())?;
    Client::try_from(config).map_err(|e| e.to_string())
}

/// Returns when the API server says it is ready to serve.
pub async fn wait_ready(client: &Client) {
    loop {
        let request = http::Request::get("/readyz").body(Vec::new()).expect("a literal request");
        match client.request_text(request).await {
            Ok(_) => return,
            Err(e) => tracing::debug!("the API server is not ready: {e}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Creates the objects that are not there yet.
pub async fn create(fabric: &str, client: &Client) -> Result<(), Error> {
    for (what, text) in [
        ("deploy/rbac.yaml", RIGHTS),
        ("deploy/crds/addresspools.yaml", KINDS),
        ("lab/manifests/rbac.yaml", LAB_RIGHTS),
    ] {
        let objects = parse(text).map_err(|why| Error::Manifest { name: fabric.to_owned(), what, why })?;
        for object in objects {
            create_object(fabric, client, object).await?;
        }
    }
    wait_served(client, "/apis/weft.dev/v1alpha1/addresspools").await;
    Ok(())
}

/// A kind is defined before it is served; manifests that use it may follow at once.
async fn wait_served(client: &Client, list: &str) {
    loop {
        let request = http::Request::get(list).body(Vec::new()).expect("a literal request");
        match client.request_text(request).await {
            Ok(_) => return,
            Err(e) => tracing::debug!("{list} is not served: {e}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn parse(text: &str) -> Result<Vec<DynamicObject>, String> {
    serde_saphyr::from_multiple(text).map_err(|e| e.to_string())
}

async fn create_object(fabric: &str, client: &Client, object: DynamicObject) -> Result<(), Error> {
    let label = describe(&object);
    let bad =
        |why: String| Error::Manifest { name: fabric.to_owned(), what: "an object of the fabric's own", why };
    let types = object.types.clone().ok_or_else(|| bad(format!("{label} has no kind")))?;
    let kind = GroupVersionKind::try_from(&types).map_err(|e| bad(e.to_string()))?;
    let resource = ApiResource::from_gvk(&kind);
    let api: Api<DynamicObject> = match object.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == CONFLICT => Ok(()),
        Err(source) => {
            Err(Error::Bootstrap { name: fabric.to_owned(), object: label, source: Box::new(source) })
        }
    }
}

fn describe(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map_or("object", |types| types.kind.as_str());
    match object.namespace() {
        Some(namespace) => format!("{kind} {namespace}/{}", object.name_any()),
        None => format!("{kind} {}", object.name_any()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_manifests_parse_and_every_binding_has_its_role_and_account() {
        let objects: Vec<DynamicObject> =
            [RIGHTS, KINDS, LAB_RIGHTS].into_iter().flat_map(|text| parse(text).unwrap()).collect();
        let names = |kind: &str| -> Vec<String> {
            let of_kind = |o: &&DynamicObject| o.types.as_ref().unwrap().kind == kind;
            objects.iter().filter(of_kind).map(describe).collect()
        };
        let (roles, accounts) = (names("ClusterRole"), names("ServiceAccount"));
        assert!(!names("ClusterRoleBinding").is_empty());
        for binding in objects.iter().filter(|o| o.types.as_ref().unwrap().kind.ends_with("RoleBinding")) {
            let role = &binding.data["roleRef"];
            if role["kind"] == "ClusterRole" {
                assert!(roles.contains(&format!("ClusterRole {}", role["name"].as_str().unwrap())), "{role}");
            }
            for subject in binding.data["subjects"].as_array().unwrap() {
                if subject["kind"] == "ServiceAccount" {
                    let (ns, name) =
                        (subject["namespace"].as_str().unwrap(), subject["name"].as_str().unwrap());
                    assert!(accounts.contains(&format!("ServiceAccount {ns}/{name}")), "{subject}");
                }
            }
        }
    }
}
