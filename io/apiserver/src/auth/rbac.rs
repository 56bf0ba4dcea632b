//! The RBAC evaluator: roles and bindings from the store, compiled when they change, asked on every request.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::Value;

use super::User;
use crate::status::{ApiError, Result};
use crate::store::{Resource, Revision, Store};

const GROUP: &str = "rbac.authorization.k8s.io";
const SUPERUSERS: &str = "system:masters";

/// One question: may this be done to that?
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub verb: String,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: Option<String>,
    pub name: String,
    /// Set instead of the resource fields for `/healthz`, `/version` and the like.
    pub path: Option<String>,
}

impl Attributes {
    pub fn resource(verb: &str, group: &str, resource: &str, name: &str) -> Self {
        Self {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            name: name.into(),
            ..Self::default()
        }
    }

    pub fn path(verb: &str, path: &str) -> Self {
        Self { verb: verb.into(), path: Some(path.into()), ..Self::default() }
    }

    pub fn in_namespace(mut self, namespace: Option<&str>) -> Self {
        self.namespace = namespace.map(str::to_owned);
        self
    }

    pub fn with_subresource(mut self, subresource: &str) -> Self {
        subresource.clone_into(&mut self.subresource);
        self
    }

    fn full_resource(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.clone()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    /// The message of a refusal, as upstream words it.
    fn refusal(&self, user: &User) -> ApiError {
        if let Some(path) = &self.path {
            return ApiError::forbidden(format!(
                "forbidden: User {:?} cannot {} path {path:?}",
                user.name, self.verb
            ))
            .with_details(serde_json::json!({}));
        }
        let resource = self.full_resource();
        let scope = match &self.namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".into(),
        };
        let what = if self.group.is_empty() {
            self.resource.clone()
        } else {
            format!("{}.{}", self.resource, self.group)
        };
        let named = if self.name.is_empty() { String::new() } else { format!(" {:?}", self.name) };
        let mut details = serde_json::json!({"kind": self.resource});
        if !self.name.is_empty() {
            details["name"] = self.name.clone().into();
        }
        if !self.group.is_empty() {
            details["group"] = self.group.clone().into();
        }
        ApiError::forbidden(format!(
            "{what}{named} is forbidden: User {:?} cannot {} resource {resource:?} in API group {:?} {scope}",
            user.name, self.verb, self.group
        ))
        .with_details(details)
    }
}

/// One PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub verbs: Vec<String>,
    pub groups: Vec<String>,
    pub resources: Vec<String>,
    pub names: Vec<String>,
    pub paths: Vec<String>,
}

impl Rule {
    pub fn parse(value: &Value) -> Self {
        let list = |name: &str| {
            let values = value.get(name).and_then(Value::as_array);
            values.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            paths: list("nonResourceURLs"),
        }
    }

    pub fn allows(&self, attributes: &Attributes) -> bool {
        let has = |list: &[String], value: &str| list.iter().any(|own| own == "*" || own == value);
        if !has(&self.verbs, &attributes.verb) {
            return false;
        }
        if let Some(path) = &attributes.path {
            return self.paths.iter().any(|pattern| path_matches(pattern, path));
        }
        has(&self.groups, &attributes.group)
            && self.covers_resource(attributes)
            && (self.names.is_empty() || self.names.contains(&attributes.name))
    }

    fn covers_resource(&self, attributes: &Attributes) -> bool {
        let full = attributes.full_resource();
        let any_of = format!("*/{}", attributes.subresource);
        self.resources
            .iter()
            .any(|own| own == "*" || *own == full || (!attributes.subresource.is_empty() && *own == any_of))
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

/// Rules by who holds them; namespace `None` is the whole cluster.
#[derive(Default)]
struct Index {
    built_from: [Revision; 4],
    grants: HashMap<Subject, Vec<Grant>>,
}

#[derive(Clone)]
struct Grant {
    namespace: Option<String>,
    rules: Arc<Vec<Rule>>,
}

/// The evaluator. Cheap to ask; rebuilds itself when a role or binding has changed.
pub struct Rbac {
    store: Store,
    index: RwLock<Arc<Index>>,
}

impl Rbac {
    pub fn new(store: Store) -> Self {
        Self { store, index: RwLock::new(Arc::new(Index::default())) }
    }

    pub fn check(&self, user: &User, attributes: &Attributes) -> Result<()> {
        if self.allows(user, attributes) { Ok(()) } else { Err(attributes.refusal(user)) }
    }

    pub fn allows(&self, user: &User, attributes: &Attributes) -> bool {
        if user.is_in(SUPERUSERS) {
            return true;
        }
        let index = self.index();
        subjects(user).any(|subject| {
            index.grants.get(&subject).into_iter().flatten().any(|grant| {
                let in_scope = grant.namespace.is_none() || grant.namespace == attributes.namespace;
                in_scope && grant.rules.iter().any(|rule| rule.allows(attributes))
            })
        })
    }

    /// All rules a user holds in a namespace.
    pub fn rules_for(&self, user: &User, namespace: &str) -> Vec<Rule> {
        if user.is_in(SUPERUSERS) {
            let star = vec!["*".to_owned()];
            let resources = Rule {
                verbs: star.clone(),
                groups: star.clone(),
                resources: star.clone(),
                ..Rule::default()
            };
            return vec![resources, Rule { verbs: star.clone(), paths: star, ..Rule::default() }];
        }
        let index = self.index();
        let grants =
            subjects(user).flat_map(|subject| index.grants.get(&subject).cloned().unwrap_or_default());
        grants
            .filter(|grant| grant.namespace.as_deref().is_none_or(|own| own == namespace))
            .flat_map(|grant| grant.rules.as_ref().clone())
            .collect()
    }

    /// Nobody may hand out, through a role, what they do not hold themselves.
    pub fn covers(&self, user: &User, namespace: Option<&str>, wanted: &Rule) -> bool {
        let any = vec![String::new()];
        let names = if wanted.names.is_empty() { &any } else { &wanted.names };
        let resources = wanted.verbs.iter().all(|verb| {
            wanted.groups.iter().all(|group| {
                wanted.resources.iter().all(|resource| {
                    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
                    names.iter().all(|name| {
                        let attributes = Attributes::resource(verb, group, resource, name)
                            .with_subresource(subresource)
                            .in_namespace(namespace);
                        self.allows(user, &attributes)
                    })
                })
            })
        });
        let mut paths =
            wanted.verbs.iter().flat_map(|verb| wanted.paths.iter().map(move |path| (verb, path)));
        resources && paths.all(|(verb, path)| self.allows(user, &Attributes::path(verb, path)))
    }

    /// The rules of a role, `None` when there is no such role.
    pub fn role_rules(&self, namespace: Option<&str>, kind: &str, name: &str) -> Option<Vec<Rule>> {
        let (plural, namespace) =
            if kind == "ClusterRole" { ("clusterroles", None) } else { ("roles", namespace) };
        let key = crate::store::Key::new(&Resource::new(GROUP, plural), namespace, name);
        self.store.get(&key).map(|entry| rules_of(&entry.value))
    }

    fn index(&self) -> Arc<Index> {
        let now = ["roles", "rolebindings", "clusterroles", "clusterrolebindings"]
            .map(|plural| self.store.resource_revision(&Resource::new(GROUP, plural)));
        let current = Arc::clone(&self.index.read().unwrap_or_else(PoisonError::into_inner));
        if current.built_from == now && now != [Revision::default(); 4] {
            return current;
        }
        let built = Arc::new(self.build(now));
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&built);
        built
    }

    fn build(&self, built_from: [Revision; 4]) -> Index {
        let mut index = Index { built_from, grants: HashMap::new() };
        for plural in ["clusterrolebindings", "rolebindings"] {
            for (_, entry) in self.store.list(&Resource::new(GROUP, plural), None).items {
                self.add_binding(&mut index, &entry.value);
            }
        }
        index
    }

    fn add_binding(&self, index: &mut Index, binding: &Value) {
        let text = |pointer: &str| binding.pointer(pointer).and_then(Value::as_str);
        let namespace = text("/metadata/namespace");
        let (Some(kind), Some(name)) = (text("/roleRef/kind"), text("/roleRef/name")) else { return };
        let Some(rules) = self.role_rules(namespace, kind, name) else { return };
        let grant = Grant { namespace: namespace.map(str::to_owned), rules: Arc::new(rules) };
        let subjects = binding.get("subjects").and_then(Value::as_array).into_iter().flatten();
        for subject in subjects.filter_map(|subject| parse_subject(subject, namespace)) {
            index.grants.entry(subject).or_default().push(grant.clone());
        }
    }
}

fn subjects(user: &User) -> impl Iterator<Item = Subject> {
    let groups = user.groups.iter().cloned().map(Subject::Group);
    std::iter::once(Subject::User(user.name.clone())).chain(groups)
}

pub fn rules_of(role: &Value) -> Vec<Rule> {
    role.get("rules").and_then(Value::as_array).into_iter().flatten().map(Rule::parse).collect()
}

fn parse_subject(subject: &Value, binding_namespace: Option<&str>) -> Option<Subject> {
    let name = subject.get("name")?.as_str()?;
    Some(match subject.get("kind")?.as_str()? {
        "User" => Subject::User(name.to_owned()),
        "Group" => Subject::Group(name.to_owned()),
        "ServiceAccount" => {
            let namespace = subject.get("namespace").and_then(Value::as_str).or(binding_namespace)?;
            Subject::User(format!("system:serviceaccount:{namespace}:{name}"))
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_match_verbs_groups_subresources_and_names() {
        let rule = Rule::parse(&json!({
            "verbs": ["get", "patch"], "apiGroups": [""], "resources": ["pods", "*/status"], "resourceNames": ["web"]
        }));
        let ask = |verb: &str, resource: &str, sub: &str, name: &str| {
            rule.allows(&Attributes::resource(verb, "", resource, name).with_subresource(sub))
        };
        assert!(ask("get", "pods", "", "web") && ask("patch", "nodes", "status", "web"));
        assert!(!ask("list", "pods", "", "web") && !ask("get", "pods", "log", "web"));
        assert!(!ask("get", "pods", "", "db") && !ask("get", "pods", "", ""));
        assert!(!rule.allows(&Attributes::resource("get", "apps", "pods", "web")));
    }

    #[test]
    fn paths_match_exactly_or_by_prefix() {
        let rule = Rule::parse(&json!({"verbs": ["get"], "nonResourceURLs": ["/version", "/apis/*"]}));
        let ask = |path: &str| rule.allows(&Attributes::path("get", path));
        assert!(ask("/version") && ask("/apis/apps") && !ask("/version/x") && !ask("/metrics"));
    }

    #[test]
    fn refusals_are_worded_as_upstream() {
        let user = User { name: "jane".into(), ..User::default() };
        let attributes = Attributes::resource("list", "apps", "deployments", "").in_namespace(Some("shop"));
        assert_eq!(
            attributes.refusal(&user).message,
            "deployments.apps is forbidden: User \"jane\" cannot list resource \"deployments\" in API group \"apps\" in the namespace \"shop\""
        );
    }
}
