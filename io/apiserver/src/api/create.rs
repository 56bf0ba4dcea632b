//! POST: making new objects.

use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;

use super::meta::Named;
use super::{Api, Call, DryRun, body, meta, read};
use crate::admission;
use crate::apply::managed::{self, Write};
use crate::defaults;
use crate::http::reply::Reply;
use crate::http::request::Target;
use crate::kinds::Kind;
use crate::status::{ApiError, Result};
use crate::store::{self, Change, Entry, Expected, Key};

/// A name collision of a generated name is retried this often.
const NAME_ATTEMPTS: usize = 8;

pub async fn create(api: &Api, call: &mut Call, target: &Target) -> Result<Reply> {
    let object = body::object(call, &target.kind)?;
    let created = create_object(api, call, target, object, Credit::Caller).await?;
    read::object_reply(api, call, &target.kind, &created, StatusCode::CREATED)
}

/// Who owns the new object's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credit {
    Caller,
    /// The object brings its managedFields.
    Settled,
}

/// Creates `object`, which is decoded already.
pub async fn create_object(
    api: &Api,
    call: &mut Call,
    target: &Target,
    object: Value,
    credit: Credit,
) -> Result<std::sync::Arc<Entry>> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let mut candidate = object.clone();
        meta::match_target(target, &mut candidate)?;
        let named = meta::ensure_name(&target.kind, &mut candidate)?;
        let name = meta::text(&candidate, "name").to_owned();
        match create_named(api, call, target, candidate, credit).await {
            Err(error) if error.reason == "AlreadyExists" && named == Named::ByServer => {
                if attempt == NAME_ATTEMPTS {
                    return Err(ApiError::generate_name_conflict(&target.kind, &name));
                }
            }
            other => return other,
        }
    }
}

async fn create_named(
    api: &Api,
    call: &mut Call,
    target: &Target,
    mut object: Value,
    credit: Credit,
) -> Result<std::sync::Arc<Entry>> {
    let kind = &target.kind;
    let now = Timestamp::now();
    let key = Key::new(&api.resource(kind), target.namespace.as_deref(), meta::text(&object, "name"));
    admission::namespaces::check_open(api, target, &object)?;
    if api.store.latest(&key).is_some() {
        return Err(ApiError::already_exists(kind, key.name()));
    }
    meta::initialise(kind, &mut object, now)?;
    drop_status(kind, &mut object);
    defaults::apply(kind, &mut object);
    let _admitted = api.admission.create(api, call, target, &mut object)?;
    if credit == Credit::Caller {
        managed::track(kind, None, &mut object, &Write { manager: &call.manager(), subresource: "", now });
    }
    call.warnings.extend(defaults::warnings(kind, &object));
    let errors = defaults::validate_create(kind, &object);
    if !errors.is_empty() {
        return Err(ApiError::invalid(kind, key.name(), &errors));
    }
    let stored = api.to_stored(kind, object);
    if call.dry_run()? == DryRun::All {
        return Ok(std::sync::Arc::new(Entry::new(store::Revision::default(), std::sync::Arc::new(stored))));
    }
    let entry = api.store.write(key.clone(), Expected::Absent, Change::Put(stored)).await.map_err(
        |error| match error {
            store::Error::Exists(_) => ApiError::already_exists(kind, key.name()),
            other => other.into(),
        },
    )?;
    Ok(entry)
}

/// Status is the controllers' word: clients cannot create it, except where the kind is reported whole.
fn drop_status(kind: &Kind, object: &mut Value) {
    let reported_whole = kind.group.is_empty() && kind.plural == "nodes";
    if kind.status
        && !reported_whole
        && let Some(fields) = object.as_object_mut()
    {
        fields.remove("status");
    }
}
