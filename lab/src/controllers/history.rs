//! The versions a StatefulSet's or DaemonSet's template went through, each kept as a ControllerRevision. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use super::effect::{Effect, Kind, Target, to_value};
use super::meta;

/// The label on pods that names their version.
pub const LABEL: &str = "controller-revision-hash";
const KEPT: i32 = 10;

/// The versions of one owner.
pub struct History<'a> {
    kind: Kind,
    owner: &'a ObjectMeta,
    /// Oldest first.
    revisions: Vec<Arc<ControllerRevision>>,
    data: Value,
    update: String,
}

impl<'a> History<'a> {
    pub fn new(
        kind: Kind,
        owner: &'a ObjectMeta,
        template: &PodTemplateSpec,
        all: &[Arc<ControllerRevision>],
    ) -> Self {
        let mut revisions: Vec<Arc<ControllerRevision>> = all
            .iter()
            .filter(|revision| meta::is_controlled_by(&revision.metadata, owner))
            .cloned()
            .collect();
        revisions.sort_by_key(|revision| (revision.revision, meta::name(&revision.metadata).to_owned()));
        let mut template = to_value(template);
        // So that kubectl's undo replaces the whole template.
        template["$patch"] = json!("replace");
        let data = json!({"spec": {"template": template}});
        let known = revisions.iter().rev().find(|revision| is(revision, &data));
        let update = known.map_or_else(
            || format!("{}-{}", meta::name(owner), meta::hash(&data)),
            |revision| meta::name(&revision.metadata).to_owned(),
        );
        Self { kind, owner, revisions, data, update }
    }

    /// The name of the version in force.
    pub fn update(&self) -> &str {
        &self.update
    }

    /// The part of a version's name that tells it from others: the value of `LABEL` for DaemonSets.
    pub fn update_hash(&self) -> &str {
        let prefix = meta::name(self.owner).len() + 1;
        self.update.get(prefix..).unwrap_or(&self.update)
    }

    /// The template of a version that is still known.
    pub fn template(&self, name: &str) -> Option<PodTemplateSpec> {
        let revision = self.revisions.iter().find(|revision| meta::name(&revision.metadata) == name)?;
        let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
        template.as_object_mut()?.remove("$patch");
        serde_json::from_value(template).ok()
    }

    /// What to write so that the version in force is the newest, and old ones nobody uses are forgotten.
    pub fn effects(&self, limit: Option<i32>, in_use: &BTreeSet<String>) -> Vec<Effect> {
        let newest = self.revisions.last().map_or(0, |revision| revision.revision);
        let mut effects = Vec::new();
        match self.revisions.iter().find(|revision| meta::name(&revision.metadata) == self.update) {
            None => effects.push(self.create(newest + 1)),
            Some(revision) if revision.revision < newest => effects.push(Effect::Merge {
                target: self.target(&self.update),
                body: json!({"metadata": {"resourceVersion": revision.metadata.resource_version}, "revision": newest + 1}),
            }),
            Some(_) => {}
        }
        let unused: Vec<&Arc<ControllerRevision>> = self
            .revisions
            .iter()
            .filter(|revision| {
                meta::name(&revision.metadata) != self.update
                    && !in_use.contains(meta::name(&revision.metadata))
            })
            .collect();
        let limit = usize::try_from(limit.unwrap_or(KEPT)).unwrap_or(0);
        let surplus = unused.len().saturating_sub(limit);
        effects.extend(unused.into_iter().take(surplus).map(|revision| {
            let meta = &revision.metadata;
            Effect::delete(Kind::ControllerRevision, meta::namespace(meta), meta::name(meta), meta::uid(meta))
        }));
        effects
    }

    fn target(&self, name: &str) -> Target {
        Target::new(Kind::ControllerRevision, meta::namespace(self.owner), name)
    }

    fn create(&self, number: i64) -> Effect {
        let mut labels = self.data["spec"]["template"]["metadata"]["labels"].clone();
        if !labels.is_object() {
            labels = json!({});
        }
        labels[LABEL] = json!(self.update_hash());
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(self.update.clone()),
                namespace: self.owner.namespace.clone(),
                labels: serde_json::from_value(labels).ok(),
                owner_references: Some(vec![meta::owner_reference(self.kind, self.owner)]),
                ..ObjectMeta::default()
            },
            data: Some(RawExtension(self.data.clone())),
            revision: number,
        };
        Effect::create(Kind::ControllerRevision, meta::namespace(self.owner), &self.update, &revision)
    }
}

fn is(revision: &ControllerRevision, data: &Value) -> bool {
    revision.data.as_ref().is_some_and(|known| known.0 == *data)
}
