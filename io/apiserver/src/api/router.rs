//! From a request to its handler: who is it, may they, and what do they want.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::json;

use super::update::Part;
use super::{Api, Call, body, create, delete, kubelet, pods, read, reviews, scale, update, watch};
use crate::auth::rbac::Attributes;
use crate::auth::{User, impersonate};
use crate::discovery;
use crate::http::listen::Peer;
use crate::http::reply::{self, Layout, Reply};
use crate::http::request::{Query, ResourcePath, Target, Verb};
use crate::kinds::Kind;
use crate::status::{ApiError, Result};

const MAX_BODY: usize = 3 * 1024 * 1024;

/// Answers one request, whatever happens.
pub async fn handle(api: Arc<Api>, request: Request<Incoming>, peer: Arc<Peer>) -> Reply {
    let layout = layout(&Query::parse(request.uri().query()), request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let reply = route(&api, request, &peer).await.unwrap_or_else(|error| {
        tracing::debug!(%method, path, code = error.code.as_u16(), message = error.message, "refused");
        reply::error(&error, layout)
    });
    if method == Method::HEAD { reply::without_body(reply) } else { reply }
}

async fn route(api: &Arc<Api>, request: Request<Incoming>, peer: &Peer) -> Result<Reply> {
    let path = request.uri().path().to_owned();
    if let Some(reply) = health(request.method(), &path) {
        return Ok(reply);
    }
    let user = api.authenticator.authenticate(request.headers(), peer.certificate.as_ref())?;
    let user = impersonate(user, request.headers(), &api.rbac)?;
    match ResourcePath::parse(&path) {
        Some(resource) => resource_request(api, request, user, resource).await,
        None => plain_path(api, request, user, &path),
    }
}

fn health(method: &Method, path: &str) -> Option<Reply> {
    let healthy = matches!(path, "/healthz" | "/livez" | "/readyz")
        || ["/healthz/", "/livez/", "/readyz/"].iter().any(|prefix| path.starts_with(prefix));
    (method == Method::GET && healthy).then(|| reply::text(StatusCode::OK, "ok"))
}

/// Discovery, OpenAPI and version: not resources, but under RBAC all the same.
fn plain_path(api: &Api, request: Request<Incoming>, user: User, path: &str) -> Result<Reply> {
    let verb = request.method().as_str().to_ascii_lowercase();
    api.rbac.check(&user, &Attributes::path(&verb, path))?;
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Err(ApiError::method_not_allowed());
    }
    let query = Query::parse(request.uri().query());
    let layout = layout(&query, request.headers());
    let accept = header(request.headers(), ACCEPT);
    if path == "/" {
        return Ok(reply::json(StatusCode::OK, &root_paths(api), layout));
    }
    if path == "/.well-known/openid-configuration" {
        let document = json!({
            "issuer": api.tokens.issuer(),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [api.tokens.algorithm()],
        });
        return Ok(reply::json(StatusCode::OK, &document, layout));
    }
    if let Some(reply) = openapi(api, &query, path, &accept, request.headers(), layout) {
        return Ok(reply);
    }
    let trimmed = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    let (content_type, document) =
        discovery::respond(&api.registry, trimmed, &accept).ok_or_else(ApiError::path_not_found)?;
    let mut reply = reply::json(StatusCode::OK, &document, layout);
    if let Ok(value) = content_type.parse() {
        reply.headers_mut().insert(CONTENT_TYPE, value);
    }
    Ok(reply)
}

fn root_paths(api: &Api) -> serde_json::Value {
    let mut paths: Vec<String> =
        ["/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]
            .map(str::to_owned)
            .into();
    for kind in api.registry.all() {
        let path = format!("/{}", kind.root_path());
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths.sort();
    json!({"paths": paths})
}

fn openapi(
    api: &Api,
    query: &Query,
    path: &str,
    accept: &str,
    headers: &HeaderMap,
    layout: Layout,
) -> Option<Reply> {
    let document = match path {
        "/openapi/v2" => api.openapi.v2(accept),
        "/openapi/v3" => return Some(reply::json(StatusCode::OK, &api.openapi.v3_index(), layout)),
        _ => api.openapi.v3(path.strip_prefix("/openapi/v3/")?, query.get("hash"))?,
    };
    let known = header(headers, http::header::IF_NONE_MATCH);
    let unchanged = !document.etag.is_empty() && known.contains(document.etag.as_str());
    let body = if unchanged { Bytes::new() } else { document.body };
    let mut reply = reply::bytes_of(document.content_type, body);
    if unchanged {
        *reply.status_mut() = StatusCode::NOT_MODIFIED;
    }
    if let Ok(value) = document.etag.parse() {
        reply.headers_mut().insert(http::header::ETAG, value);
    }
    Some(reply)
}

async fn resource_request(
    api: &Arc<Api>,
    request: Request<Incoming>,
    user: User,
    path: ResourcePath,
) -> Result<Reply> {
    let query = Query::parse(request.uri().query());
    let verb = Verb::of(request.method(), &path, &query).ok_or_else(ApiError::method_not_allowed)?;
    let kind = api.registry.find(&path.group, &path.version, &path.plural);
    authorize(api, &user, verb, &path, &query, kind.as_deref())?;
    let kind = kind.ok_or_else(ApiError::path_not_found)?;
    if kind.persisted && kind.namespaced && path.name.is_some() && path.namespace.is_none() {
        return Err(ApiError::path_not_found());
    }
    if !kind.namespaced && path.namespace.is_some() {
        return Err(ApiError::path_not_found());
    }
    let target = Target {
        kind: Arc::clone(&kind),
        namespace: path.namespace.clone(),
        name: path.name.clone().unwrap_or_default(),
    };
    if let Some(subresource) = path.subresource.as_deref()
        && kubelet::serves(&kind, subresource)
    {
        return kubelet::forward(api, request, &target, subresource).await;
    }
    let mut call = call(user, query, request).await?;
    check_acceptable(&call.accept)?;
    let mut reply = match path.subresource.as_deref() {
        None => object_request(api, &mut call, verb, target).await,
        Some(subresource) => subresource_request(api, &mut call, verb, &target, subresource).await,
    }?;
    reply::add_warnings(&mut reply, &call.warnings);
    Ok(reply)
}

/// Objects are served as JSON: a client that takes nothing of the kind is told so.
fn check_acceptable(accept: &str) -> Result<()> {
    let takes_json = |range: &str| {
        matches!(body::media_type(range), "application/json" | "application/*" | "*/*" | "*" | "")
    };
    if accept.split(',').any(takes_json) {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::NOT_ACCEPTABLE,
        "NotAcceptable",
        "only the following media types are accepted: application/json",
    ))
}

fn authorize(
    api: &Api,
    user: &User,
    verb: Verb,
    path: &ResourcePath,
    query: &Query,
    kind: Option<&Kind>,
) -> Result<()> {
    let mut name = path.name.clone().unwrap_or_default();
    // A list of one named object is as good as that object.
    if name.is_empty()
        && matches!(verb, Verb::List | Verb::Watch | Verb::DeleteCollection)
        && let Some(kind) = kind
        && let Ok(selection) = crate::select::Selection::parse(kind, None, query.get("fieldSelector"))
    {
        selection.single_name().unwrap_or_default().clone_into(&mut name);
    }
    let is_namespace_itself = path.plural == "namespaces" && path.group.is_empty();
    let namespace = if is_namespace_itself { path.name.as_deref() } else { path.namespace.as_deref() };
    let mut attributes = Attributes::resource(verb.as_str(), &path.group, &path.plural, &name)
        .in_namespace(namespace)
        .with_subresource(path.subresource.as_deref().map_or("", first_part));
    attributes.version.clone_from(&path.version);
    api.rbac.check(user, &attributes)
}

/// `proxy/some/path` is the subresource `proxy`.
fn first_part(subresource: &str) -> &str {
    subresource.split('/').next().unwrap_or_default()
}

async fn call(user: User, query: Query, request: Request<Incoming>) -> Result<Call> {
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| {
        if error.downcast_ref::<LengthLimitError>().is_some() {
            let message = format!("limit is {MAX_BODY}");
            ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestEntityTooLarge",
                format!("Request entity too large: {message}"),
            )
        } else {
            ApiError::bad_request(format!("unable to read the body: {error}"))
        }
    })?;
    Ok(Call {
        user,
        layout: layout(&query, headers),
        query,
        accept: header(headers, ACCEPT),
        content_type: header(headers, CONTENT_TYPE),
        user_agent: header(headers, USER_AGENT),
        body: body.to_bytes(),
        warnings: Vec::new(),
    })
}

fn header(headers: &HeaderMap, name: HeaderName) -> String {
    let values = headers.get_all(name);
    let texts: Vec<&str> = values.iter().filter_map(|value| value.to_str().ok()).collect();
    texts.join(",")
}

/// People's browsers and curl get indented JSON, as upstream gives them.
fn layout(query: &Query, headers: &HeaderMap) -> Layout {
    if query.has("pretty") {
        return if query.flag("pretty") { Layout::Pretty } else { Layout::Compact };
    }
    let agent = header(headers, USER_AGENT);
    let by_hand = ["curl", "Wget", "Mozilla/5.0"].iter().any(|program| agent.starts_with(program));
    if by_hand { Layout::Pretty } else { Layout::Compact }
}

async fn object_request(api: &Arc<Api>, call: &mut Call, verb: Verb, target: Target) -> Result<Reply> {
    let kind = &target.kind;
    if !kind.has_verb(verb.as_str()) {
        return Err(ApiError::method_not_allowed());
    }
    if !kind.persisted {
        return reviews::answer(api, call, &target).await;
    }
    // Creating needs a place; reading and deleting may span all of them.
    if kind.namespaced && target.namespace.is_none() && matches!(verb, Verb::Create | Verb::DeleteCollection)
    {
        return Err(ApiError::method_not_allowed());
    }
    if let Some(warning) = &kind.deprecation {
        call.warnings.push(warning.clone());
    }
    match verb {
        Verb::Get => read::get(api, call, &target).await,
        Verb::List => read::list(api, call, &target).await,
        Verb::Watch => watch::watch(api, std::mem::replace(call, Call::internal("")), target).await,
        Verb::Create if !target.name.is_empty() => Err(ApiError::method_not_allowed()),
        Verb::Create => create::create(api, call, &target).await,
        Verb::Update => update::replace(api, call, &target, Part::Main).await,
        Verb::Patch => update::patch(api, call, &target, Part::Main).await,
        Verb::Delete => delete::delete(api, call, &target).await,
        Verb::DeleteCollection => delete::delete_collection(api, call, &target).await,
    }
}

async fn subresource_request(
    api: &Arc<Api>,
    call: &mut Call,
    verb: Verb,
    target: &Target,
    subresource: &str,
) -> Result<Reply> {
    let known = target.kind.subresource(subresource).ok_or_else(ApiError::path_not_found)?;
    if !known.verbs.contains(&verb.as_str()) {
        return Err(ApiError::method_not_allowed());
    }
    match (subresource, verb) {
        ("scale", _) => scale::answer(api, call, verb, target).await,
        ("binding", Verb::Create) => pods::bind(api, call, target).await,
        ("eviction", Verb::Create) => pods::evict(api, call, target).await,
        ("token", Verb::Create) => reviews::issue_token(api, call, target).await,
        // Proxying into pods, services and nodes is not offered.
        ("proxy", _) => Err(ApiError::method_not_allowed()),
        (_, Verb::Get) => read::get(api, call, target).await,
        ("status", Verb::Update) => update::replace(api, call, target, Part::Status).await,
        ("status", Verb::Patch) => update::patch(api, call, target, Part::Status).await,
        ("finalize", Verb::Update) => update::replace(api, call, target, Part::Finalize).await,
        (_, Verb::Update) => update::replace(api, call, target, Part::Main).await,
        (_, Verb::Patch) => update::patch(api, call, target, Part::Main).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}
