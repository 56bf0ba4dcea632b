//! Which kinds the server knows: built-in ones and those that CustomResourceDefinitions add.
//! What their fields may hold lives in `schema` and `defaults`; nothing here stores or serves objects.
mod builtin;
mod convert;
mod crd;
pub mod scale;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, RwLock};

use serde_json::Value;

use crate::schema::{FieldError, Schema};

pub use convert::convert;
pub(crate) use crd::version_priority;
pub use crd::{CrdOutcome, definition_name};

/// One served version of one resource.
#[derive(Debug, Clone)]
pub struct Kind {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub list_kind: String,
    pub plural: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    /// Objects of this resource are stored in this very group and version.
    pub storage: bool,
    /// False for request-only kinds such as reviews: they are answered, never stored.
    pub persisted: bool,
    pub verbs: Vec<&'static str>,
    pub subresources: Vec<Subresource>,
    /// The resource has a `/status` subresource.
    pub status: bool,
    pub scale: Option<ScalePaths>,
    /// Name of the CustomResourceDefinition this kind comes from.
    pub crd: Option<String>,
    pub columns: Vec<PrinterColumn>,
    /// JSON paths beside metadata.name and metadata.namespace that field selectors may use.
    pub selectable_fields: Vec<String>,
    pub deprecation: Option<String>,
    /// Name of the schema in OpenAPI documents, such as `io.k8s.api.core.v1.Pod`.
    pub schema_name: String,
    pub(crate) schema: SchemaSource,
    /// The schema as the definition has it, for OpenAPI documents.
    pub(crate) custom_json: Option<Arc<Value>>,
    pub(crate) stored_as: Option<(&'static str, &'static str)>,
}

#[derive(Clone)]
pub(crate) enum SchemaSource {
    BuiltIn(crate::schema::Define),
    Custom(Schema),
}

impl std::fmt::Debug for SchemaSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BuiltIn(_) => "BuiltIn",
            Self::Custom(_) => "Custom",
        })
    }
}

#[derive(Debug, Clone)]
pub struct Subresource {
    pub name: String,
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<&'static str>,
}

/// Where a custom resource keeps its replica counts, as JSON paths such as `.spec.replicas`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec: String,
    pub status: String,
    pub selector: Option<String>,
}

/// An extra column of `kubectl get` that a CustomResourceDefinition asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrinterColumn {
    pub name: String,
    pub kind: String,
    pub format: String,
    pub description: String,
    pub priority: i64,
    pub json_path: String,
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `deployments.apps`: how messages name the resource.
    pub fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Pod` or `Deployment.apps`: how messages name the kind.
    pub fn group_kind(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// The path of this group and version below the server's root: `api/v1` or `apis/apps/v1`.
    pub fn root_path(&self) -> String {
        if self.group.is_empty() {
            format!("api/{}", self.version)
        } else {
            format!("apis/{}/{}", self.group, self.version)
        }
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    pub fn is_custom(&self) -> bool {
        self.crd.is_some()
    }

    /// The group and version objects of this kind are stored in.
    pub(crate) fn storage_key(&self) -> (&str, &str) {
        self.stored_as.unwrap_or((&self.group, &self.plural))
    }
}

/// All kinds the server knows at this moment. Shared; installing and removing definitions is atomic.
pub struct Registry {
    state: RwLock<Arc<State>>,
}

#[derive(Default, Clone)]
struct State {
    generation: u64,
    builtin: Vec<Arc<Kind>>,
    custom: BTreeMap<String, crd::Installed>,
    by_resource: HashMap<(String, String, String), Arc<Kind>>,
    by_kind: HashMap<(String, String, String), Arc<Kind>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    /// A registry with the built-in kinds.
    pub fn new() -> Self {
        let mut state = State { builtin: builtin::kinds(), ..State::default() };
        state.index();
        Self { state: RwLock::new(Arc::new(state)) }
    }

    /// The served kind of one resource path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        self.state().by_resource.get(&key(group, version, plural)).cloned()
    }

    /// The served kind an object's apiVersion and kind name.
    pub fn find_by_kind(&self, group: &str, version: &str, kind: &str) -> Option<Arc<Kind>> {
        self.state().by_kind.get(&key(group, version, kind)).cloned()
    }

    /// Every served version of every resource, in discovery order.
    pub fn all(&self) -> Vec<Arc<Kind>> {
        let state = self.state();
        let custom = state.custom.values().flat_map(|c| c.served.iter());
        state.builtin.iter().chain(custom).cloned().collect()
    }

    /// The kind in whose group and version objects of `kind` are stored.
    pub fn storage_of(&self, kind: &Kind) -> Arc<Kind> {
        let state = self.state();
        let (group, plural) = kind.storage_key();
        if let Some(custom) = kind.crd.as_ref().and_then(|name| state.custom.get(name)) {
            return custom.storage.clone();
        }
        let stored = state.builtin.iter().find(|k| k.storage && k.group == group && k.plural == plural);
        stored.cloned().unwrap_or_else(|| Arc::new(kind.clone()))
    }

    /// Grows with every change; equal numbers mean equal contents.
    pub fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Serves the kinds of a CustomResourceDefinition, in place of what the same definition served before.
    pub fn install_crd(&self, definition: &Value) -> Result<CrdOutcome, Vec<FieldError>> {
        let parsed = crd::parse(definition)?;
        let mut guard = self.state.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let conflict = guard.conflict(&parsed.names);
        let outcome = crd::outcome(definition, &parsed, conflict.as_ref());
        // A definition that already serves keeps serving under the names it was granted.
        if conflict.is_none() {
            let mut next = State::clone(&guard);
            next.custom.insert(parsed.name.clone(), parsed.into_installed());
            next.generation += 1;
            next.index();
            *guard = Arc::new(next);
        }
        Ok(outcome)
    }

    /// Stops serving what the named definition added.
    pub fn remove_crd(&self, name: &str) {
        let mut guard = self.state.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut next = State::clone(&guard);
        if next.custom.remove(name).is_some() {
            next.generation += 1;
            next.index();
            *guard = Arc::new(next);
        }
    }

    /// Why the names of a definition cannot be granted, if they cannot.
    pub fn names_conflict(&self, definition: &Value) -> Option<String> {
        self.state().conflict(&crd::Names::of(definition)).map(|c| c.message)
    }

    fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

impl State {
    fn index(&mut self) {
        let custom = self.custom.values().flat_map(|c| c.served.iter());
        let all: Vec<Arc<Kind>> = self.builtin.iter().chain(custom).cloned().collect();
        self.by_resource = all.iter().map(|k| (key(&k.group, &k.version, &k.plural), k.clone())).collect();
        self.by_kind = all.iter().map(|k| (key(&k.group, &k.version, &k.kind), k.clone())).collect();
    }

    fn conflict(&self, names: &crd::Names) -> Option<crd::Conflict> {
        let builtin = self.builtin.iter().filter(|k| k.group == names.group);
        let custom = self.custom.values().filter(|c| c.names.definition != names.definition);
        let custom = custom.flat_map(|c| c.served.first()).filter(|k| k.group == names.group);
        builtin.chain(custom).find_map(|taken| names.conflict_with(taken))
    }
}

fn key(group: &str, version: &str, name: &str) -> (String, String, String) {
    (group.to_owned(), version.to_owned(), name.to_owned())
}

#[cfg(test)]
mod tests;
