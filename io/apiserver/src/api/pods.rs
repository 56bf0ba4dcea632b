//! What only pods have: binding to a node and eviction.

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::delete::{self, Options};
use super::update::{self, Draft, Part};
use super::{Api, Call, body, meta, timestamp};
use crate::http::reply::{self, Reply};
use crate::http::request::Target;
use crate::select::label_selector_matches;
use crate::status::{self, ApiError, Result};
use crate::store::Resource;

const RETRY_EVICTION_SECONDS: u32 = 10;

/// POST `pods/NAME/binding`: the scheduler's decision.
pub async fn bind(api: &Api, call: &mut Call, target: &Target) -> Result<Reply> {
    let binding = body::parse(call)?;
    let node = binding.pointer("/target/name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if node.is_empty() {
        let error = crate::schema::FieldError::required("target.name", "");
        return Err(ApiError::invalid(&target.kind, &target.name, &[error]));
    }
    let uid = binding.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned();
    update::modify(api, call, target, Part::Whole, |_, pod| {
        check_bindable(target, pod, &uid)?;
        let mut pod = pod.clone();
        pod["spec"]["nodeName"] = node.clone().into();
        add_all(&mut pod, "annotations", binding.pointer("/metadata/annotations"));
        add_all(&mut pod, "labels", binding.pointer("/metadata/labels"));
        set_scheduled(&mut pod);
        Ok(Draft::Written(pod))
    })
    .await?;
    Ok(reply::json(StatusCode::CREATED, &status::success(None), call.layout))
}

fn check_bindable(target: &Target, pod: &Value, uid: &str) -> Result<()> {
    let refuse = |why: String| {
        ApiError::new(
            StatusCode::CONFLICT,
            "Conflict",
            format!("Operation cannot be fulfilled on pods/binding {:?}: {why}", target.name),
        )
        .with_details(json!({"name": target.name, "kind": "pods/binding"}))
    };
    let bound = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if !bound.is_empty() {
        return Err(refuse(format!("pod {} is already assigned to node {bound:?}", target.name)));
    }
    if meta::is_deleting(pod) {
        return Err(refuse(format!("pod {} is being deleted, cannot be assigned to a host", target.name)));
    }
    if !uid.is_empty() && meta::text(pod, "uid") != uid {
        return Err(refuse(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::text(pod, "uid")
        )));
    }
    Ok(())
}

fn add_all(pod: &mut Value, field: &str, values: Option<&Value>) {
    let Some(values) = values.and_then(Value::as_object) else { return };
    let own = meta::metadata(pod).entry(field).or_insert_with(|| json!({}));
    for (name, value) in values {
        own[name.as_str()] = value.clone();
    }
}

fn set_scheduled(pod: &mut Value) {
    let condition = json!({
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": null,
        "lastTransitionTime": timestamp(Timestamp::now()),
    });
    let status = &mut pod["status"];
    if !status.is_object() {
        *status = json!({});
    }
    let conditions = &mut status["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|condition| condition["type"] != "PodScheduled");
        list.push(condition);
    }
}

/// POST `pods/NAME/eviction`: a deletion that asks the disruption budgets first.
pub async fn evict(api: &Api, call: &Call, target: &Target) -> Result<Reply> {
    let eviction = if call.body.is_empty() { json!({}) } else { body::parse(call)? };
    let pod = api.find(target)?;
    refuse_if_budget_is_spent(api, target, &pod.value)?;
    let text = |pointer: &str| eviction.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let rehearsed = eviction.pointer("/deleteOptions/dryRun").and_then(Value::as_array);
    let options = Options {
        grace_seconds: eviction.pointer("/deleteOptions/gracePeriodSeconds").and_then(Value::as_i64),
        uid: text("/deleteOptions/preconditions/uid"),
        revision: text("/deleteOptions/preconditions/resourceVersion"),
        rehearse: rehearsed.is_some_and(|list| !list.is_empty()),
        ..Options::default()
    };
    delete::delete_object(api, target, &options).await?;
    Ok(reply::json(StatusCode::CREATED, &status::success(None), call.layout))
}

fn refuse_if_budget_is_spent(api: &Api, target: &Target, pod: &Value) -> Result<()> {
    let budgets = Resource::new("policy", "poddisruptionbudgets");
    for (_, budget) in api.store.list(&budgets, target.namespace.as_deref()).items {
        let Some(selector) = budget.value.pointer("/spec/selector") else { continue };
        let allowed = budget.value.pointer("/status/disruptionsAllowed").and_then(Value::as_i64);
        if !label_selector_matches(selector, pod) || allowed.unwrap_or_default() > 0 {
            continue;
        }
        let name = meta::text(&budget.value, "name");
        let error = ApiError::too_many_requests(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            RETRY_EVICTION_SECONDS,
        );
        return Err(error.with_details(json!({"causes": [{
            "reason": "DisruptionBudget",
            "message": format!("The disruption budget {name} does not allow evicting pods now"),
        }]})));
    }
    Ok(())
}
