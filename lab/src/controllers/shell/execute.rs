//! Carries out effects against the API server, many at once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use futures::stream::{self, StreamExt};
use http::{Method, Request};
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tracing::{debug, warn};

use super::pending::Wrote;
use crate::controllers::effect::{Effect, Grace, Kind, Target, Tone};
use crate::controllers::meta;

const AT_ONCE: usize = 32;
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;

/// Writes as one user of the cluster.
pub struct Executor {
    client: Client,
    /// The name events are told under.
    component: &'static str,
    /// Events already told, by what they say: telling them again counts up.
    told: Mutex<HashMap<String, (String, i64)>>,
}

/// What became of a batch of effects.
#[derive(Debug, Default)]
pub struct Report {
    /// Pods created and deleted, by uid.
    pub pods: Vec<(String, Wrote)>,
    /// Refusals that another look will not mend by itself.
    pub failures: Vec<String>,
}

impl Executor {
    pub fn new(client: Client, component: &'static str) -> Self {
        Self { client, component, told: Mutex::default() }
    }

    pub async fn carry_out(&self, effects: Vec<Effect>) -> Report {
        let results: Vec<_> = stream::iter(effects)
            .map(|effect| async {
                let result = self.one(&effect).await;
                (effect, result)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        let mut report = Report::default();
        for (effect, result) in results {
            match result {
                Ok(Some(wrote)) => report.pods.push(wrote),
                Ok(None) => {}
                Err(kube::Error::Api(status)) if is_stale(&effect, status.code, &status.reason) => {
                    debug!("{}: {}", describe(&effect), status.message);
                }
                Err(e) => {
                    warn!("{}: {e}", describe(&effect));
                    report.failures.push(format!("{}: {e}", describe(&effect)));
                }
            }
        }
        report
    }

    async fn one(&self, effect: &Effect) -> Result<Option<(String, Wrote)>, kube::Error> {
        match effect {
            Effect::Create { target, body } => {
                let created =
                    self.send(Method::POST, &target.kind.path(&target.namespace), body, JSON).await?;
                Ok(pod_uid(target, &created).map(|uid| (uid, Wrote::Created)))
            }
            Effect::Merge { target, body } => {
                self.send(Method::PATCH, &path(target), body, MERGE).await.map(|_| None)
            }
            Effect::MergeStatus { target, body } => {
                self.send(Method::PATCH, &format!("{}/status", path(target)), body, MERGE).await.map(|_| None)
            }
            Effect::Delete { target, uid, grace } => self.delete(target, uid, *grace).await,
            Effect::Bind { target, uid, node } => {
                let body = json!({
                    "apiVersion": "v1", "kind": "Binding",
                    "metadata": {"name": target.name, "namespace": target.namespace, "uid": uid},
                    "target": {"apiVersion": "v1", "kind": "Node", "name": node},
                });
                self.send(Method::POST, &format!("{}/binding", path(target)), &body, JSON).await.map(|_| None)
            }
            Effect::Tell { about, tone, reason, message } => {
                self.tell(about, *tone, reason, message).await;
                Ok(None)
            }
        }
    }

    async fn delete(
        &self,
        target: &Target,
        uid: &str,
        grace: Grace,
    ) -> Result<Option<(String, Wrote)>, kube::Error> {
        let mut body = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
            "preconditions": {"uid": uid},
        });
        if grace == Grace::None {
            body["gracePeriodSeconds"] = json!(0);
        }
        self.send(Method::DELETE, &path(target), &body, JSON).await?;
        Ok((target.kind == Kind::Pod).then(|| (uid.to_owned(), Wrote::Deleted)))
    }

    /// Events are for people: one that cannot be told is no failure.
    async fn tell(
        &self,
        about: &k8s_openapi::api::core::v1::ObjectReference,
        tone: Tone,
        reason: &str,
        message: &str,
    ) {
        let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let key = format!("{} {reason} {message}", about.uid.as_deref().unwrap_or_default());
        let now = meta::stamp(Timestamp::now());
        if let Some((name, count)) = self.told_before(&key) {
            let patch = json!({"count": count, "lastTimestamp": now});
            if self.send(Method::PATCH, &format!("{path}/{name}"), &patch, MERGE).await.is_ok() {
                return;
            }
        }
        let name =
            format!("{}.{:x}", about.name.as_deref().unwrap_or_default(), Timestamp::now().as_nanosecond());
        let kind = if tone == Tone::Normal { "Normal" } else { "Warning" };
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": about, "type": kind, "reason": reason, "message": message, "count": 1,
            "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": self.component}, "reportingComponent": self.component, "reportingInstance": "",
        });
        match self.send(Method::POST, &path, &event, JSON).await {
            Ok(_) => {
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                told.insert(key, (name, 1));
            }
            Err(e) => debug!("event {reason} about {name}: {e}"),
        }
    }

    fn told_before(&self, key: &str) -> Option<(String, i64)> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, count) = told.get_mut(key)?;
        *count += 1;
        Some((name.clone(), *count))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: &Value,
        content: &str,
    ) -> Result<Value, kube::Error> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::CONTENT_TYPE, content)
            .header(http::header::ACCEPT, JSON)
            .body(body.to_string().into_bytes())
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";

fn path(target: &Target) -> String {
    format!("{}/{}", target.kind.path(&target.namespace), target.name)
}

fn pod_uid(target: &Target, created: &Value) -> Option<String> {
    let uid = created["metadata"]["uid"].as_str().filter(|_| target.kind == Kind::Pod)?;
    Some(uid.to_owned())
}

/// Whether a refusal only says that the world moved on: then a watch brings the news and another look follows.
fn is_stale(effect: &Effect, code: u16, reason: &str) -> bool {
    match effect {
        Effect::Create { .. } => code == CONFLICT || (code == 403 && reason == "NamespaceTerminating"),
        _ => code == NOT_FOUND || code == CONFLICT,
    }
}

fn describe(effect: &Effect) -> String {
    match effect {
        Effect::Create { target, .. } => format!("create {target}"),
        Effect::Merge { target, .. } => format!("change {target}"),
        Effect::MergeStatus { target, .. } => format!("change the status of {target}"),
        Effect::Delete { target, .. } => format!("delete {target}"),
        Effect::Bind { target, node, .. } => format!("bind {target} to {node}"),
        Effect::Tell { reason, .. } => format!("tell {reason}"),
    }
}
