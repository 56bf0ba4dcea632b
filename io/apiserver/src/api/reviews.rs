//! Questions rather than objects: who am I, may they, is this token good, give me one.

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{Api, Call, body, meta, pods, timestamp};
use crate::auth::User;
use crate::auth::rbac::{Attributes, Rule};
use crate::auth::tokens::{Claims, Grant};
use crate::http::reply::{self, Reply};
use crate::http::request::Target;
use crate::schema::FieldError;
use crate::status::{ApiError, Result};
use crate::store::{Key, Resource};

const DEFAULT_TOKEN_SECONDS: i64 = 3600;
const SHORTEST_TOKEN_SECONDS: i64 = 600;
const LONGEST_TOKEN_SECONDS: i64 = 1 << 32;

pub async fn answer(api: &Api, call: &mut Call, target: &Target) -> Result<Reply> {
    let mut review = body::object(call, &target.kind)?;
    match target.kind.plural.as_str() {
        "selfsubjectreviews" => {
            review["status"] = json!({"userInfo": call.user.to_value()});
        }
        "selfsubjectaccessreviews" => {
            review["status"] = access(api, &call.user, &review)?;
        }
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            review["status"] = access(api, &reviewed_user(&review), &review)?;
        }
        "selfsubjectrulesreviews" => {
            let namespace = review.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or_default();
            review["status"] = rules(&api.rbac.rules_for(&call.user, namespace));
        }
        "tokenreviews" => review["status"] = check_token(api, &review),
        "bindings" => {
            let name = meta::text(&review, "name").to_owned();
            let pods_kind = api.registry.find("", "v1", "pods").ok_or_else(ApiError::path_not_found)?;
            let pod = Target { kind: pods_kind, namespace: target.namespace.clone(), name };
            return pods::bind(api, call, &pod).await;
        }
        _ => return Err(ApiError::method_not_allowed()),
    }
    meta::metadata(&mut review).entry("creationTimestamp").or_insert(Value::Null);
    Ok(reply::json(StatusCode::CREATED, &review, call.layout))
}

fn access(api: &Api, user: &User, review: &Value) -> Result<Value> {
    let attributes = attributes(review).ok_or_else(|| {
        ApiError::bad_request(
            "spec: exactly one of resourceAttributes or nonResourceAttributes must be given",
        )
    })?;
    let allowed = api.rbac.allows(user, &attributes);
    Ok(if allowed { json!({"allowed": true}) } else { json!({"allowed": false}) })
}

fn attributes(review: &Value) -> Option<Attributes> {
    let spec = review.get("spec")?;
    if let Some(path) = spec.get("nonResourceAttributes") {
        let text = |field: &str| path.get(field).and_then(Value::as_str).unwrap_or_default();
        return Some(Attributes::path(text("verb"), text("path")));
    }
    let resource = spec.get("resourceAttributes")?;
    let text = |field: &str| resource.get(field).and_then(Value::as_str).unwrap_or_default();
    let namespace = Some(text("namespace")).filter(|namespace| !namespace.is_empty());
    let attributes = Attributes::resource(text("verb"), text("group"), text("resource"), text("name"))
        .in_namespace(namespace)
        .with_subresource(text("subresource"));
    Some(attributes)
}

fn reviewed_user(review: &Value) -> User {
    let spec = &review["spec"];
    let text = |field: &str| spec.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let groups = spec.get("groups").and_then(Value::as_array).into_iter().flatten();
    User {
        name: text("user"),
        uid: text("uid"),
        groups: groups.filter_map(Value::as_str).map(str::to_owned).collect(),
        ..User::default()
    }
}

fn rules(rules: &[Rule]) -> Value {
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rules {
        if !rule.paths.is_empty() {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.paths}));
        }
        if !rule.resources.is_empty() {
            let mut entry = json!({
                "verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources,
            });
            if !rule.names.is_empty() {
                entry["resourceNames"] = json!(rule.names);
            }
            resources.push(entry);
        }
    }
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}

fn check_token(api: &Api, review: &Value) -> Value {
    let token = review.pointer("/spec/token").and_then(Value::as_str).unwrap_or_default();
    let audiences = review.pointer("/spec/audiences").and_then(Value::as_array).into_iter().flatten();
    let audiences: Vec<String> = audiences.filter_map(Value::as_str).map(str::to_owned).collect();
    match api.authenticator.check_token(token, &audiences) {
        Ok((user, audiences)) => {
            json!({"authenticated": true, "user": user.to_value(), "audiences": audiences})
        }
        Err(reason) => json!({"authenticated": false, "user": {}, "error": reason}),
    }
}

/// POST `serviceaccounts/NAME/token`.
pub async fn issue_token(api: &Api, call: &Call, target: &Target) -> Result<Reply> {
    let account = api.find(target)?;
    let mut request = if call.body.is_empty() { json!({}) } else { body::parse(call)? };
    if !request.is_object() || request.get("spec").is_some_and(|spec| !spec.is_object() && !spec.is_null()) {
        return Err(ApiError::bad_request("the token request is not an object with an object as its spec"));
    }
    let seconds = lifetime(target, &request)?;
    let audiences: Vec<String> = request
        .pointer("/spec/audiences")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let audiences = if audiences.is_empty() { vec![api.tokens.issuer().to_owned()] } else { audiences };
    let now = Timestamp::now();
    let expires = now + SignedDuration::from_secs(seconds);
    let claims = Claims {
        id: meta::new_uid(),
        namespace: target.namespace.clone().unwrap_or_default(),
        service_account: target.name.clone(),
        service_account_uid: meta::text(&account.value, "uid").to_owned(),
        bound: bound(api, target, &request)?,
        audiences: audiences.clone(),
    };
    let token = api.tokens.issue(&Grant { claims, issued: now, expires }).map_err(ApiError::internal)?;
    request["kind"] = "TokenRequest".into();
    request["apiVersion"] = "authentication.k8s.io/v1".into();
    let metadata = meta::metadata(&mut request);
    metadata.insert("name".into(), target.name.clone().into());
    metadata.insert("namespace".into(), target.namespace.clone().unwrap_or_default().into());
    metadata.insert("creationTimestamp".into(), timestamp(now).into());
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = seconds.into();
    request["status"] = json!({"token": token, "expirationTimestamp": timestamp(expires)});
    Ok(reply::json(StatusCode::CREATED, &request, call.layout))
}

fn lifetime(target: &Target, request: &Value) -> Result<i64> {
    let asked = request.pointer("/spec/expirationSeconds").and_then(Value::as_i64);
    let seconds = asked.unwrap_or(DEFAULT_TOKEN_SECONDS);
    let why = if seconds < SHORTEST_TOKEN_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > LONGEST_TOKEN_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(seconds);
    };
    let error = FieldError::invalid("spec.expirationSeconds", &json!(seconds), why);
    Err(ApiError::invalid(&target.kind, &target.name, &[error]))
}

/// The object whose deletion ends the token, checked to exist.
fn bound(api: &Api, target: &Target, request: &Value) -> Result<Option<(String, String, String)>> {
    let Some(reference) = request.pointer("/spec/boundObjectRef").filter(|r| !r.is_null()) else {
        return Ok(None);
    };
    let text = |field: &str| reference.get(field).and_then(Value::as_str).unwrap_or_default();
    let plural = match text("kind") {
        "Pod" => "pods",
        "Secret" => "secrets",
        other => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to object kind {other:?}",
                target.name
            )));
        }
    };
    let key = Key::new(&Resource::new("", plural), target.namespace.as_deref(), text("name"));
    let found = api.store.get(&key).ok_or_else(|| {
        ApiError::new(StatusCode::NOT_FOUND, "NotFound", format!("{plural} {:?} not found", text("name")))
    })?;
    let uid = meta::text(&found.value, "uid");
    let stated = text("uid");
    if !stated.is_empty() && stated != uid {
        return Err(ApiError::new(
            StatusCode::CONFLICT,
            "Conflict",
            format!(
                "Operation cannot be fulfilled on {plural} {:?}: the UID in the bound object reference ({stated}) does \
                 not match the UID in record. The object might have been deleted and then recreated",
                text("name")
            ),
        ));
    }
    Ok(Some((text("kind").to_owned(), text("name").to_owned(), uid.to_owned())))
}
