//! The API itself: what each verb does to objects. HTTP and storage are below and beside it.

pub mod body;
pub mod create;
pub mod delete;
pub mod kubelet;
pub mod meta;
pub mod pods;
pub mod read;
pub mod reviews;
pub mod router;
pub mod scale;
pub mod update;
pub mod watch;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use crate::admission::Admission;
use crate::auth::rbac::Rbac;
use crate::auth::tokens::Tokens;
use crate::auth::{Authenticator, User};
use crate::http::reply::Layout;
use crate::http::request::{Query, Target};
use crate::kinds::{self, Kind, Registry};
use crate::openapi::OpenApi;
use crate::status::{ApiError, Result};
use crate::store::{Entry, Key, Resource, Store};

/// Everything a request handler needs; one per server.
pub struct Api {
    pub store: Store,
    pub registry: Arc<Registry>,
    pub openapi: OpenApi,
    pub authenticator: Authenticator,
    pub rbac: Rbac,
    pub tokens: Arc<Tokens>,
    pub admission: Admission,
    pub kubelet_sockets: KubeletSockets,
}

/// Where a node's kubelet listens: a path with `{node}` in it.
#[derive(Clone, Debug)]
pub struct KubeletSockets(pub String);

impl KubeletSockets {
    pub fn of(&self, node: &str) -> PathBuf {
        self.0.replace("{node}", node).into()
    }
}

impl Api {
    /// Where objects of a kind are stored, whatever version asks.
    pub fn resource(&self, kind: &Kind) -> Resource {
        let stored = self.registry.storage_of(kind);
        Resource::new(&stored.group, &stored.plural)
    }

    pub fn key(&self, target: &Target) -> Key {
        Key::new(&self.resource(&target.kind), target.namespace.as_deref(), &target.name)
    }

    /// A stored object in the version it is asked for.
    pub fn to_served(&self, kind: &Kind, value: &Value) -> Value {
        let stored = self.registry.storage_of(kind);
        if is_same_version(&stored, kind) {
            return value.clone();
        }
        kinds::convert(&stored, kind, value.clone())
    }

    /// Whatever way an object came, what is stored says what it is: clients that read it depend on that.
    pub fn to_stored(&self, kind: &Kind, value: Value) -> Value {
        let stored = self.registry.storage_of(kind);
        let mut value =
            if is_same_version(&stored, kind) { value } else { kinds::convert(kind, &stored, value) };
        value["apiVersion"] = stored.api_version().into();
        value["kind"] = stored.kind.clone().into();
        value
    }

    /// Whether stored bytes can be served as they are.
    pub fn is_stored_version(&self, kind: &Kind) -> bool {
        is_same_version(&self.registry.storage_of(kind), kind)
    }

    pub fn find(&self, target: &Target) -> Result<Arc<Entry>> {
        self.store.get(&self.key(target)).ok_or_else(|| ApiError::not_found(&target.kind, &target.name))
    }

    /// The kind whose objects a stored resource holds.
    pub fn storage_kind(&self, resource: &Resource) -> Option<Arc<Kind>> {
        let matches = |kind: &Arc<Kind>| {
            kind.storage && kind.group == resource.group() && kind.plural == resource.plural()
        };
        self.registry.all().into_iter().find(matches)
    }
}

fn is_same_version(a: &Kind, b: &Kind) -> bool {
    a.group == b.group && a.version == b.version
}

/// One request as handlers see it, after authentication and authorisation.
#[derive(Debug)]
pub struct Call {
    pub user: User,
    pub query: Query,
    pub accept: String,
    pub content_type: String,
    pub user_agent: String,
    pub body: bytes::Bytes,
    pub layout: Layout,
    pub warnings: Vec<String>,
}

impl Call {
    /// A call the server makes to itself.
    pub fn internal(manager: &str) -> Self {
        Self {
            user: User::internal(),
            query: Query::default(),
            accept: String::new(),
            content_type: String::new(),
            user_agent: manager.to_owned(),
            body: bytes::Bytes::new(),
            layout: Layout::Compact,
            warnings: Vec::new(),
        }
    }

    /// Who manages the fields this call writes.
    pub fn manager(&self) -> String {
        if let Some(manager) = self.query.get("fieldManager") {
            return manager.to_owned();
        }
        let program = self.user_agent.split('/').next().unwrap_or_default();
        if program.is_empty() { "unknown".into() } else { program.chars().take(128).collect() }
    }

    /// Whether the write must only be rehearsed. Anything but `All` is refused.
    pub fn dry_run(&self) -> Result<DryRun> {
        match self.query.get("dryRun") {
            None => Ok(DryRun::No),
            Some("All") => Ok(DryRun::All),
            Some(other) => Err(ApiError::bad_request(format!(
                "dryRun: Unsupported value: {other:?}: supported values: \"All\""
            ))),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun {
    No,
    All,
}

/// The time in the form object metadata uses: whole seconds, UTC.
pub fn timestamp(now: jiff::Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
