//! The scale subresource: replicas as an autoscaling/v1 Scale, read and written through the object itself.

use http::StatusCode;
use serde_json::Value;

use super::update::{self, Draft, Part};
use super::{Api, Call, body, meta};
use crate::http::reply::{self, Reply};
use crate::http::request::{Target, Verb};
use crate::kinds::scale;
use crate::status::{ApiError, Result};

pub async fn answer(api: &Api, call: &mut Call, verb: Verb, target: &Target) -> Result<Reply> {
    let entry = match verb {
        Verb::Get => api.find(target)?,
        Verb::Update => {
            let wanted = body::parse(call)?;
            check_name(target, &wanted)?;
            update::modify(api, call, target, Part::Main, |_, object| scaled(target, object, &wanted)).await?
        }
        Verb::Patch => {
            let scale_kind = api.registry.find_by_kind("autoscaling", "v1", "Scale");
            let patch = update::parse_patch(call, scale_kind.as_deref().unwrap_or(&target.kind))?;
            update::modify(api, call, target, Part::Main, |_, object| {
                let current = read(target, object)?;
                let wanted = patch.apply(scale_kind.as_deref().unwrap_or(&target.kind), &current)?;
                scaled(target, object, &wanted)
            })
            .await?
        }
        _ => return Err(ApiError::method_not_allowed()),
    };
    let object = api.to_served(&target.kind, &entry.value);
    Ok(reply::json(StatusCode::OK, &read(target, &object)?, call.layout))
}

fn read(target: &Target, object: &Value) -> Result<Value> {
    scale::read(&target.kind, object).ok_or_else(ApiError::path_not_found)
}

fn scaled(target: &Target, object: &Value, wanted: &Value) -> Result<Draft> {
    let mut object = object.clone();
    let revision = meta::text(wanted, "resourceVersion").to_owned();
    let metadata = meta::metadata(&mut object);
    if revision.is_empty() {
        metadata.remove("resourceVersion");
    } else {
        metadata.insert("resourceVersion".into(), revision.into());
    }
    scale::write(&target.kind, &mut object, wanted)
        .map_err(|errors| ApiError::invalid(&target.kind, &target.name, &errors))?;
    Ok(Draft::Written(object))
}

fn check_name(target: &Target, wanted: &Value) -> Result<()> {
    let name = meta::text(wanted, "name");
    if name.is_empty() || name == target.name {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "the name of the object ({name}) does not match the name on the URL ({})",
        target.name
    )))
}
