//! PUT and PATCH, on objects and their subresources: one path that reads, changes, checks and writes, until it wins.

use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;

use super::body::{self, media_type};
use super::{Api, Call, DryRun, create, meta, read};
use crate::apply::managed::{self, Write};
use crate::apply::{self, Applied};
use crate::defaults;
use crate::http::reply::Reply;
use crate::http::request::Target;
use crate::kinds::Kind;
use crate::patch;
use crate::schema::FieldError;
use crate::status::{ApiError, Result};
use crate::store::{self, Change, Entry, Expected, Latest, Revision};

/// Writers that lose a race start again from the winner's object, this often.
const ATTEMPTS: usize = 64;
const PATCH_TYPES: &str = "application/json-patch+json, application/merge-patch+json, \
                           application/apply-patch+yaml, application/strategic-merge-patch+json";

/// Which part of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Main,
    Status,
    /// A namespace's `spec.finalizers`.
    Finalize,
    /// Whatever the caller, who is the server itself, puts there.
    Whole,
}

impl Part {
    pub fn subresource(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Finalize => "finalize",
            Self::Main | Self::Whole => "",
        }
    }
}

pub async fn replace(api: &Api, call: &mut Call, target: &Target, part: Part) -> Result<Reply> {
    let mut object = body::object(call, &target.kind)?;
    meta::match_target(target, &mut object)?;
    let needs_revision = target.kind.is_custom() && part == Part::Main;
    if needs_revision && meta::text(&object, "resourceVersion").is_empty() {
        let error = FieldError::invalid(
            "metadata.resourceVersion",
            &Value::from(0),
            "must be specified for an update",
        );
        return Err(ApiError::invalid(&target.kind, &target.name, &[error]));
    }
    let entry = modify(api, call, target, part, |_, _| Ok(Draft::Written(object.clone()))).await?;
    read::object_reply(api, call, &target.kind, &entry, StatusCode::OK)
}

pub async fn patch(api: &Api, call: &mut Call, target: &Target, part: Part) -> Result<Reply> {
    match media_type(&call.content_type) {
        "application/apply-patch+yaml" | "application/apply-patch+json" => {
            return apply_patch(api, call, target, part).await;
        }
        "application/apply-patch+cbor" => return Err(ApiError::unsupported_media_type(PATCH_TYPES)),
        _ => {}
    }
    let patch = parse_patch(call, &target.kind)?;
    let entry = modify(api, call, target, part, |call, old| {
        let mut patched = patch.apply(&target.kind, old)?;
        body::check_kind(&patched, &target.kind)?;
        meta::match_target(target, &mut patched)?;
        body::decode(call, &target.kind, &mut patched, Vec::new())?;
        Ok(Draft::Written(patched))
    })
    .await?;
    read::object_reply(api, call, &target.kind, &entry, StatusCode::OK)
}

pub fn parse_patch(call: &Call, kind: &Kind) -> Result<patch::Patch> {
    let kind_of = match media_type(&call.content_type) {
        "application/json-patch+json" => patch::PatchKind::Json,
        "application/merge-patch+json" => patch::PatchKind::Merge,
        "application/strategic-merge-patch+json" if !kind.is_custom() => patch::PatchKind::Strategic,
        _ => return Err(ApiError::unsupported_media_type(PATCH_TYPES)),
    };
    patch::Patch::parse(kind_of, &call.body)
}

/// How an apply request asks to be carried out.
#[derive(Clone, Debug)]
pub struct ApplyOptions {
    pub manager: String,
    /// Take over fields that other managers own.
    pub force: bool,
}

async fn apply_patch(api: &Api, call: &mut Call, target: &Target, part: Part) -> Result<Reply> {
    let manager = call.query.get("fieldManager").map(str::to_owned).ok_or_else(|| {
        ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        )
    })?;
    let options = ApplyOptions { manager, force: call.query.flag("force") };
    let config = body::from_yaml_or_json(&call.body)?;
    let (entry, code) = apply_object(api, call, target, part, config, &options).await?;
    read::object_reply(api, call, &target.kind, &entry, code)
}

/// Server-side apply: creates the object when there is none.
pub async fn apply_object(
    api: &Api,
    call: &mut Call,
    target: &Target,
    part: Part,
    mut config: Value,
    options: &ApplyOptions,
) -> Result<(Arc<Entry>, StatusCode)> {
    check_applied(&config, target)?;
    body::decode(call, &target.kind, &mut config, Vec::new())?;
    meta::match_target(target, &mut config)?;
    meta::metadata(&mut config).insert("name".into(), target.name.clone().into());
    loop {
        if part == Part::Main && api.store.latest(&api.key(target)).is_none() {
            match create_applied(api, call, target, &config, &options.manager).await {
                Err(error) if error.reason == "AlreadyExists" => continue,
                created => return Ok((created?, StatusCode::CREATED)),
            }
        }
        let asked = apply::Request {
            manager: &options.manager,
            subresource: part.subresource(),
            force: options.force,
        };
        let entry = modify(api, call, target, part, |_, old| {
            apply::apply(&target.kind, old, &config, &asked, Timestamp::now()).map(Draft::Applied)
        })
        .await?;
        return Ok((entry, StatusCode::OK));
    }
}

fn check_applied(config: &Value, target: &Target) -> Result<()> {
    let text = |field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default();
    if text("kind") != target.kind.kind || text("apiVersion") != target.kind.api_version() {
        return Err(ApiError::bad_request(format!(
            "the applied object is {} {}, but the URL is for {} {}",
            text("apiVersion"),
            text("kind"),
            target.kind.api_version(),
            target.kind.kind
        )));
    }
    let managed = config.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null());
    if managed { Err(ApiError::bad_request("metadata.managedFields must be nil")) } else { Ok(()) }
}

async fn create_applied(
    api: &Api,
    call: &mut Call,
    target: &Target,
    config: &Value,
    manager: &str,
) -> Result<Arc<Entry>> {
    let collection = Target { name: String::new(), ..target.clone() };
    let mut object = config.clone();
    let entry = managed::applied_entry(&target.kind, config, manager, "", Timestamp::now());
    meta::metadata(&mut object).insert("managedFields".into(), Value::Array(vec![entry]));
    meta::metadata(&mut object).remove("uid");
    create::create_object(api, call, &collection, object, create::Credit::Settled).await
}

/// What a change function hands back.
pub enum Draft {
    /// The new object; its fields are credited to the caller.
    Written(Value),
    /// The new object with its managedFields already settled.
    Applied(Applied),
    /// Written by the server itself, credited to nobody.
    Untracked(Value),
    /// Nothing to do.
    Unchanged,
}

/// Applies `change` to the stored object until it is written or refused.
pub async fn modify(
    api: &Api,
    call: &mut Call,
    target: &Target,
    part: Part,
    mut change: impl FnMut(&mut Call, &Value) -> Result<Draft>,
) -> Result<Arc<Entry>> {
    let key = api.key(target);
    for _ in 0..ATTEMPTS {
        let latest = api.store.latest(&key).ok_or_else(|| ApiError::not_found(&target.kind, &target.name))?;
        let old = api.to_served(&target.kind, &latest.value);
        let draft = change(call, &old)?;
        let prepared = prepare(api, call, target, part, &latest, &old, draft)?;
        let Prepared { change, _admitted } = match prepared {
            Some(prepared) => prepared,
            None => return Ok(current(api, &latest, target).await),
        };
        if call.dry_run()? == DryRun::All {
            let (Change::Put(value) | Change::Delete(value)) = change;
            return Ok(Arc::new(Entry::new(latest.revision, Arc::new(value))));
        }
        match api.store.write(key.clone(), Expected::At(latest.revision), change).await {
            Ok(entry) => {
                return Ok(entry);
            }
            // Another write came in between. A patch goes onto the newer object; where the caller stated the
            // revision it meant, the next round finds that it is not the latest and says so.
            Err(store::Error::Conflict(_)) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(ApiError::modified(&target.kind, &target.name))
}

/// The unchanged object, once what it was read from is on disk.
async fn current(api: &Api, latest: &Latest, target: &Target) -> Arc<Entry> {
    api.store.settle(&api.key(target), latest.revision).await;
    match api.find(target) {
        Ok(entry) if entry.revision >= latest.revision => entry,
        _ => Arc::new(Entry::new(latest.revision, Arc::clone(&latest.value))),
    }
}

struct Prepared {
    change: Change,
    /// Holds what the write was given until it is stored.
    _admitted: crate::admission::Admitted,
}

fn prepare(
    api: &Api,
    call: &mut Call,
    target: &Target,
    part: Part,
    latest: &Latest,
    old: &Value,
    draft: Draft,
) -> Result<Option<Prepared>> {
    let kind = &target.kind;
    let (mut new, settled) = match draft {
        Draft::Unchanged => return Ok(None),
        Draft::Written(new) => (new, Settled::No),
        Draft::Applied(applied) => (applied.object, Settled::Yes),
        Draft::Untracked(new) => (new, Settled::Yes),
    };
    check_revision(target, &new, latest)?;
    meta::carry_over(target, old, &mut new)?;
    keep_other_parts(kind, part, old, &mut new);
    defaults::apply(kind, &mut new);
    check_finalizers(target, old, &new)?;
    let _admitted = if part == Part::Main {
        api.admission.update(api, call, target, old, &mut new)?
    } else {
        crate::admission::Admitted::nothing()
    };
    meta::bump_generation(kind, old, &mut new);
    if settled == Settled::No {
        let write =
            Write { manager: &call.manager(), subresource: part.subresource(), now: Timestamp::now() };
        managed::track(kind, Some(old), &mut new, &write);
    }
    validate(target, part, old, &new)?;
    let finished = is_finished(&new);
    if !finished && managed::same_apart_from_times(old, &new) {
        return Ok(None);
    }
    call.warnings.extend(defaults::warnings(kind, &new));
    let stored = api.to_stored(kind, new);
    let change = if finished { Change::Delete(stored) } else { Change::Put(stored) };
    Ok(Some(Prepared { change, _admitted }))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Settled {
    Yes,
    No,
}

fn validate(target: &Target, part: Part, old: &Value, new: &Value) -> Result<()> {
    let errors = match part {
        Part::Main => defaults::validate_update(&target.kind, old, new),
        Part::Status => defaults::validate_status(&target.kind, old, new),
        Part::Finalize | Part::Whole => Vec::new(),
    };
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(&target.kind, &target.name, &errors)) }
}

/// A resourceVersion in the object is a condition.
fn check_revision(target: &Target, new: &Value, latest: &Latest) -> Result<()> {
    let text = meta::text(new, "resourceVersion");
    if text.is_empty() || text == "0" {
        return Ok(());
    }
    let stated = text.parse().map(Revision).map_err(|_| {
        let message = format!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        let error = FieldError::invalid("metadata.resourceVersion", &Value::from(text), message);
        ApiError::invalid(&target.kind, &target.name, &[error])
    })?;
    if stated != latest.revision {
        return Err(ApiError::modified(&target.kind, &target.name));
    }
    Ok(())
}

/// A write to one part leaves the others as they are.
fn keep_other_parts(kind: &Kind, part: Part, old: &Value, new: &mut Value) {
    let copy = |field: &str, new: &mut Value| match old.get(field) {
        Some(value) => new[field] = value.clone(),
        None => {
            new.as_object_mut().map(|fields| fields.remove(field));
        }
    };
    match part {
        Part::Main if kind.status => copy("status", new),
        Part::Main | Part::Whole => {}
        Part::Status => {
            let status = new.get("status").cloned();
            let managed = new.pointer("/metadata/managedFields").cloned();
            *new = old.clone();
            if let Some(fields) = new.as_object_mut() {
                match status {
                    Some(status) => fields.insert("status".into(), status),
                    None => fields.remove("status"),
                };
            }
            if let Some(managed) = managed {
                meta::metadata(new).insert("managedFields".into(), managed);
            }
        }
        Part::Finalize => {
            let finalizers = new.pointer("/spec/finalizers").cloned();
            *new = old.clone();
            if let Some(spec) = new.get_mut("spec").and_then(Value::as_object_mut) {
                match finalizers {
                    Some(list) => spec.insert("finalizers".into(), list),
                    None => spec.remove("finalizers"),
                };
            }
        }
    }
}

fn check_finalizers(target: &Target, old: &Value, new: &Value) -> Result<()> {
    if !meta::is_deleting(old) {
        return Ok(());
    }
    let before = meta::finalizers(old);
    let added: Vec<&str> = meta::finalizers(new).into_iter().filter(|name| !before.contains(name)).collect();
    if added.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = added.iter().map(|name| format!("{name:?}")).collect();
    let error = FieldError::forbidden(
        "metadata.finalizers",
        format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            list.join(", ")
        ),
    );
    Err(ApiError::invalid(&target.kind, &target.name, &[error]))
}

/// Whether nothing holds a deleted object any more.
fn is_finished(object: &Value) -> bool {
    let held_by_spec =
        object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    let is_namespace = object.get("kind").and_then(Value::as_str) == Some("Namespace");
    meta::is_deleting(object)
        && meta::finalizers(object).is_empty()
        && meta::grace_seconds(object).unwrap_or_default() == 0
        && !(is_namespace && held_by_spec)
}
