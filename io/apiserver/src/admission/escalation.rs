//! Nobody hands out more than they hold: checks on roles and bindings.

use serde_json::Value;

use crate::api::{Api, Call};
use crate::auth::rbac::{Attributes, Rule, rules_of};
use crate::http::request::Target;
use crate::status::{ApiError, Result};

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn check(api: &Api, call: &Call, target: &Target, old: Option<&Value>, new: &Value) -> Result<()> {
    match target.kind.plural.as_str() {
        "roles" | "clusterroles" => {
            let unchanged = old.is_some_and(|old| {
                old.get("rules") == new.get("rules")
                    && old.get("aggregationRule") == new.get("aggregationRule")
            });
            if unchanged || may(api, call, target, "escalate", &target.kind.plural, name_of(new)) {
                return Ok(());
            }
            refuse_uncovered(api, call, target, name_of(new), &rules_of(new))
        }
        "rolebindings" | "clusterrolebindings" => {
            let unchanged = old.is_some_and(|old| old.get("subjects") == new.get("subjects"));
            let text = |field: &str| {
                new.get("roleRef")
                    .and_then(|role| role.get(field))
                    .and_then(Value::as_str)
                    .unwrap_or_default()
            };
            let plural = if text("kind") == "ClusterRole" { "clusterroles" } else { "roles" };
            if unchanged || may(api, call, target, "bind", plural, text("name")) {
                return Ok(());
            }
            let rules = api.rbac.role_rules(target.namespace.as_deref(), text("kind"), text("name"));
            let rules = rules.ok_or_else(|| {
                let why = format!("{plural}.{GROUP} {:?} not found", text("name"));
                ApiError::object_forbidden(&target.kind, name_of(new), &why)
            })?;
            refuse_uncovered(api, call, target, name_of(new), &rules)
        }
        _ => Ok(()),
    }
}

fn name_of(object: &Value) -> &str {
    crate::api::meta::text(object, "name")
}

fn may(api: &Api, call: &Call, target: &Target, verb: &str, plural: &str, name: &str) -> bool {
    let attributes =
        Attributes::resource(verb, GROUP, plural, name).in_namespace(target.namespace.as_deref());
    api.rbac.allows(&call.user, &attributes)
}

fn refuse_uncovered(api: &Api, call: &Call, target: &Target, name: &str, rules: &[Rule]) -> Result<()> {
    let namespace = target.namespace.as_deref();
    let missing: Vec<&Rule> =
        rules.iter().filter(|rule| !api.rbac.covers(&call.user, namespace, rule)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = missing.into_iter().map(describe).collect();
    let why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        call.user.name,
        call.user.groups,
        lines.join("\n")
    );
    Err(ApiError::object_forbidden(&target.kind, name, &why))
}

fn describe(rule: &Rule) -> String {
    let mut parts = Vec::new();
    let lists = [
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.names),
        ("NonResourceURLs", &rule.paths),
        ("Verbs", &rule.verbs),
    ];
    for (name, list) in lists {
        if !list.is_empty() {
            parts.push(format!("{name}:{list:?}"));
        }
    }
    format!("{{{}}}", parts.join(", "))
}
