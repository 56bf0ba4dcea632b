//! What a request asks for: its path, verb and options. No state, no decisions.

use std::sync::Arc;

use http::Method;

use crate::kinds::Kind;

/// A request's query, decoded, in order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: Option<&str>) -> Self {
        let pairs = text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (percent_decode(name), percent_decode(value))
                })
                .collect(),
        )
    }

    /// The value of an option that is present and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// An option is on when it is `true`, `1`, or given without a value.
    pub fn flag(&self, name: &str) -> bool {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.is_some_and(|(_, value)| matches!(value.as_str(), "" | "1" | "true" | "True" | "t"))
    }
}

/// Decodes `%41` and `+`; what is not UTF-8 becomes the replacement character.
pub fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = |at: usize| tail.get(at).and_then(|digit| (*digit as char).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &tail[2..];
                continue;
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(first),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A path below `/api/v1` or `/apis/GROUP/VERSION`, not yet matched with a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourcePath {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub namespace: Option<String>,
    pub name: Option<String>,
    /// `status`, `scale`, `log`, `proxy/some/path` ...
    pub subresource: Option<String>,
    /// The deprecated `/watch/` prefix.
    pub watch_prefix: bool,
}

impl ResourcePath {
    /// `None` when the path is not a resource's, such as `/version` or `/apis/apps`.
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<String> =
            path.split('/').filter(|part| !part.is_empty()).map(percent_decode_path).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (watch_prefix, rest) = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
            rest => (false, rest),
        };
        let (namespace, plural, rest) = split_namespace(rest)?;
        let (name, subresource) = match rest {
            [] => (None, None),
            [name] => (Some(*name), None),
            [name, sub @ ..] => (Some(*name), Some(sub.join("/"))),
        };
        Some(Self {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            subresource,
            watch_prefix,
        })
    }
}

type Split<'a> = (Option<&'a str>, &'a str, &'a [&'a str]);

fn split_namespace<'a>(rest: &'a [&'a str]) -> Option<Split<'a>> {
    match rest {
        [] => None,
        // The namespace object itself and its subresources.
        ["namespaces"] => Some((None, "namespaces", &[])),
        ["namespaces", _name] => Some((None, "namespaces", &rest[1..])),
        ["namespaces", _name, "status" | "finalize"] => Some((None, "namespaces", &rest[1..])),
        ["namespaces", namespace, plural, tail @ ..] => Some((Some(*namespace), *plural, tail)),
        [plural, tail @ ..] => Some((None, *plural, tail)),
    }
}

fn percent_decode_path(part: &str) -> String {
    // In a path `+` is itself.
    percent_decode(&part.replace('+', "%2B"))
}

/// What is done to a resource, in the words RBAC uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub fn of(method: &Method, path: &ResourcePath, query: &Query) -> Option<Self> {
        let named = path.name.is_some();
        Some(match *method {
            Method::GET | Method::HEAD if path.watch_prefix || (query.flag("watch") && !named) => Self::Watch,
            Method::GET | Method::HEAD if named => Self::Get,
            Method::GET | Method::HEAD => Self::List,
            Method::POST => Self::Create,
            Method::PUT => Self::Update,
            Method::PATCH => Self::Patch,
            Method::DELETE if named => Self::Delete,
            Method::DELETE => Self::DeleteCollection,
            _ => return None,
        })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// A path matched with the kind it serves.
#[derive(Clone, Debug)]
pub struct Target {
    pub kind: Arc<Kind>,
    pub namespace: Option<String>,
    /// Empty for collections.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> ResourcePath {
        ResourcePath::parse(path).unwrap()
    }

    #[test]
    fn namespaced_object_and_subresource() {
        let path = parse("/api/v1/namespaces/default/pods/web-0/log");
        assert_eq!((path.namespace.as_deref(), path.plural.as_str()), (Some("default"), "pods"));
        assert_eq!((path.name.as_deref(), path.subresource.as_deref()), (Some("web-0"), Some("log")));
    }

    #[test]
    fn namespaces_are_objects_too() {
        assert_eq!(parse("/api/v1/namespaces/default").name.as_deref(), Some("default"));
        let finalize = parse("/api/v1/namespaces/default/finalize");
        assert_eq!(
            (finalize.plural.as_str(), finalize.subresource.as_deref()),
            ("namespaces", Some("finalize"))
        );
        let status_named = parse("/apis/apps/v1/namespaces/status/deployments");
        assert_eq!(
            (status_named.namespace.as_deref(), status_named.plural.as_str()),
            (Some("status"), "deployments")
        );
    }

    #[test]
    fn names_are_decoded_and_group_paths_are_not_resources() {
        let role = parse("/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode");
        assert_eq!(role.name.as_deref(), Some("system:node"));
        assert!(ResourcePath::parse("/apis/apps/v1").is_none() && ResourcePath::parse("/version").is_none());
    }

    #[test]
    fn query_decodes_and_flags() {
        let query = Query::parse(Some("labelSelector=a%3Db%2Cc&watch=1&command=sh&command=-c&pretty="));
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert!(query.flag("watch") && query.flag("pretty") && !query.flag("limit"));
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["sh", "-c"]);
    }
}
