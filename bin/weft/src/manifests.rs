//! Manifests from files and folders, applied to an API server as one would with `kubectl apply --server-side`.
//! What the objects mean is the API server's business.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::discovery::{ApiResource, Discovery, Scope};
use serde_json::Value;

const MANAGER: &str = "weft";

/// One object and where it was written.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub place: String,
    pub object: Value,
}

impl Manifest {
    pub fn title(&self) -> String {
        let text =
            |pointer: &str| self.object.pointer(pointer).and_then(Value::as_str).unwrap_or("?").to_owned();
        let name = match self.object.pointer("/metadata/namespace").and_then(Value::as_str) {
            Some(namespace) => format!("{namespace}/{}", text("/metadata/name")),
            None => text("/metadata/name"),
        };
        format!("{} {name}", text("/kind"))
    }

    fn kind(&self) -> Option<(&str, &str)> {
        let api_version = self.object.get("apiVersion")?.as_str()?;
        Some((api_version, self.object.get("kind")?.as_str()?))
    }
}

/// What was read and what could not be: one bad document does not hide the others.
#[derive(Default, Debug)]
pub struct Manifests {
    pub objects: Vec<Manifest>,
    pub problems: Vec<String>,
}

/// Reads a YAML or JSON file, or all of them in a folder (not below it), in the order of their names.
pub fn read(path: &Path) -> Result<Manifests> {
    let mut manifests = Manifests::default();
    for file in files(path)? {
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        manifests.read_text(&file.display().to_string(), &text);
    }
    if manifests.objects.is_empty() && manifests.problems.is_empty() {
        bail!("{}: no Kubernetes objects in it; expected .yaml, .yml or .json files", path.display());
    }
    Ok(manifests)
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.exists() {
        bail!("{}: no such file or folder", path.display());
    }
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .with_context(|| format!("cannot list {}", path.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json")))
        .collect();
    files.sort();
    Ok(files)
}

impl Manifests {
    fn read_text(&mut self, file: &str, text: &str) {
        for (number, document) in documents(text).into_iter().enumerate() {
            let place = format!("{file}, document {}", number + 1);
            match serde_saphyr::from_str::<Value>(&document) {
                Ok(Value::Null) => {}
                Ok(object) => self.take(&place, object),
                Err(error) => self.problems.push(format!("{place}: not valid YAML: {error}")),
            }
        }
    }

    fn take(&mut self, place: &str, object: Value) {
        if let Some(items) = object.get("items").and_then(Value::as_array).filter(|_| is_list(&object)) {
            for (index, item) in items.iter().enumerate() {
                self.take(&format!("{place}, items[{index}]"), item.clone());
            }
            return;
        }
        let manifest = Manifest { place: place.to_owned(), object };
        let named =
            manifest.object.pointer("/metadata/name").or(manifest.object.pointer("/metadata/generateName"));
        match (manifest.kind(), named) {
            (None, _) => self.problems.push(format!("{place}: apiVersion and kind are required")),
            (_, None) => {
                self.problems.push(format!("{place}: {}: metadata.name is required", manifest.title()))
            }
            _ => self.objects.push(manifest),
        }
    }
}

fn is_list(object: &Value) -> bool {
    object.get("kind").and_then(Value::as_str).is_some_and(|kind| kind.ends_with("List"))
}

/// Splits a YAML stream at its document markers; comments-only documents fall away.
fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let says_something = |document: &String| {
        document.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    };
    documents.into_iter().filter(says_something).collect()
}

/// What became of each object.
#[derive(Default, Debug)]
pub struct Applied {
    pub done: Vec<String>,
    pub problems: Vec<String>,
}

/// Applies everything it can: namespaces and definitions first, then the rest; a refused object is named and
/// the others still go in.
pub async fn apply(
    client: &kube::Client,
    manifests: &[Manifest],
    default_namespace: &str,
) -> Result<Applied> {
    let mut applied = Applied::default();
    let mut kinds = Kinds::discover(client).await?;
    let mut ordered: Vec<&Manifest> = manifests.iter().collect();
    ordered.sort_by_key(|manifest| rank(manifest));
    // A folder may hold an object twice (an app and its policies both bring the namespace): the later adds to it.
    let mut created_definition = false;
    for group in ordered.chunk_by(|a, b| rank(a) == rank(b)) {
        if std::mem::take(&mut created_definition) {
            kinds = Kinds::discover(client).await?;
        }
        created_definition = rank(group[0]) == 1;
        let sends = group.iter().map(|manifest| kinds.send(client, manifest, default_namespace));
        for (manifest, result) in group.iter().zip(ordered_results(sends).await) {
            match result {
                Ok(()) => applied.done.push(manifest.title()),
                Err(error) => {
                    applied.problems.push(format!("{}: {}: {error:#}", manifest.place, manifest.title()))
                }
            }
        }
    }
    Ok(applied)
}

/// Runs the requests with bounded concurrency and keeps the order of results.
async fn ordered_results<F: Future<Output = Result<()>>>(sends: impl Iterator<Item = F>) -> Vec<Result<()>> {
    use futures::StreamExt;
    futures::stream::iter(sends).buffered(16).collect().await
}

fn rank(manifest: &Manifest) -> u8 {
    match manifest.object.get("kind").and_then(Value::as_str) {
        Some("Namespace") => 0,
        Some("CustomResourceDefinition") => 1,
        Some("ServiceAccount" | "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding") => 2,
        Some("ConfigMap" | "Secret") => 3,
        // Isolation before the pods it is for.
        Some("NetworkPolicy" | "ClusterNetworkPolicy") => 4,
        Some("Service") => 5,
        _ => 6,
    }
}

struct Kinds(BTreeMap<(String, String), (ApiResource, Scope)>);

impl Kinds {
    async fn discover(client: &kube::Client) -> Result<Self> {
        let discovery = Discovery::new(client.clone())
            .run_aggregated()
            .await
            .context("cannot list the server's kinds")?;
        let mut kinds = BTreeMap::new();
        for group in discovery.groups() {
            for version in group.versions() {
                for (resource, capabilities) in group.versioned_resources(version) {
                    let key = (resource.api_version.clone(), resource.kind.clone());
                    kinds.insert(key, (resource, capabilities.scope));
                }
            }
        }
        Ok(Self(kinds))
    }

    async fn send(&self, client: &kube::Client, manifest: &Manifest, default_namespace: &str) -> Result<()> {
        let (api_version, kind) = manifest.kind().context("apiVersion and kind are required")?;
        let Some((resource, scope)) = self.0.get(&(api_version.to_owned(), kind.to_owned())) else {
            bail!(
                "the server has no kind {kind} in {api_version}; install its CustomResourceDefinition first"
            );
        };
        let api: Api<DynamicObject> = match scope {
            Scope::Cluster => Api::all_with(client.clone(), resource),
            Scope::Namespaced => {
                let namespace = manifest.object.pointer("/metadata/namespace").and_then(Value::as_str);
                Api::namespaced_with(client.clone(), namespace.unwrap_or(default_namespace), resource)
            }
        };
        let name = manifest.object.pointer("/metadata/name").and_then(Value::as_str);
        let name = name.context("metadata.name is required")?;
        let params = PatchParams {
            field_validation: Some(kube::api::ValidationDirective::Strict),
            ..PatchParams::apply(MANAGER).force()
        };
        let patch = Patch::Apply(&manifest.object);
        let request = api.patch(name, &params, &patch);
        let answer = tokio::time::timeout(Duration::from_secs(30), request)
            .await
            .context("the API server did not answer in 30 s")?;
        answer.map(|_| ()).map_err(|error| match error {
            kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
            other => other.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_str(text: &str) -> Manifests {
        let mut manifests = Manifests::default();
        manifests.read_text("a.yaml", text);
        manifests
    }

    #[test]
    fn a_bad_document_is_named_and_the_others_stay() {
        let read = read_str("kind: Pod\napiVersion: v1\nmetadata: {name: a}\n---\nx: [\n---\nkind: Pod\n");
        assert_eq!(read.objects.len(), 1);
        assert_eq!(read.problems.len(), 2);
        assert!(read.problems[0].starts_with("a.yaml, document 2: not valid YAML"), "{:?}", read.problems);
        assert_eq!(read.problems[1], "a.yaml, document 3: apiVersion and kind are required");
    }

    #[test]
    fn lists_and_empty_documents_are_understood() {
        let read = read_str(
            "---\n# nothing\n---\nkind: List\napiVersion: v1\nitems:\n- {kind: Pod, apiVersion: v1, metadata: {name: b, namespace: c}}\n",
        );
        assert_eq!(read.problems, Vec::<String>::new());
        assert_eq!(read.objects[0].title(), "Pod c/b");
    }
}
