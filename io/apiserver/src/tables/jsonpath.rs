//! The simple JSON paths printer columns use: fields, indexes, wildcards and filters on one field.
use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Every,
    Where { path: Vec<String>, equal: bool, value: Value },
    Has(Vec<String>),
}

/// The first value a path finds; None for no value and for paths this server does not know.
pub(super) fn first<'a>(path: &str, root: &'a Value) -> Option<&'a Value> {
    let mut found = vec![root];
    for step in parse(path)? {
        found = found.into_iter().flat_map(|value| apply(&step, value)).collect();
    }
    found.into_iter().next()
}

fn apply<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    let children = || match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => Vec::new(),
    };
    match step {
        Step::Field(name) => value.get(name).filter(|v| !v.is_null()).into_iter().collect(),
        Step::Index(index) => {
            let length = value.as_array().map_or(0, |items| items.len() as i64);
            let index = if *index < 0 { length + index } else { *index };
            usize::try_from(index).ok().and_then(|index| value.get(index)).into_iter().collect()
        }
        Step::Every => children(),
        Step::Where { path, equal, value: wanted } => {
            children().into_iter().filter(|child| (at(child, path) == Some(wanted)) == *equal).collect()
        }
        Step::Has(path) => children().into_iter().filter(|child| at(child, path).is_some()).collect(),
    }
}

fn at<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, name| value.get(name))
}

fn parse(path: &str) -> Option<Vec<Step>> {
    let path = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            if after.starts_with('[') {
                rest = after;
                continue;
            }
            let (name, after) = field(after)?;
            rest = after;
            match name.as_str() {
                "" => {}
                "*" => steps.push(Step::Every),
                _ => steps.push(Step::Field(name)),
            }
        } else if rest.starts_with('[') {
            let close = matching(rest)?;
            steps.push(bracket(rest[1..close].trim())?);
            rest = &rest[close + 1..];
        } else {
            return None;
        }
    }
    Some(steps)
}

/// A field's name, where `\.` is a dot within it.
fn field(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.push(chars.next()?.1),
            '.' | '[' => return Some((name, &text[at..])),
            _ => name.push(c),
        }
    }
    Some((name, ""))
}

/// Where the bracket that opens the text closes, quotes and nested brackets aside.
fn matching(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') => {
                depth -= 1;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

fn bracket(inner: &str) -> Option<Step> {
    if inner == "*" {
        return Some(Step::Every);
    }
    if let Some(quoted) = unquote(inner) {
        return Some(Step::Field(quoted));
    }
    if let Some(filter) = inner.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        return condition(filter.trim());
    }
    inner.parse().ok().map(Step::Index)
}

fn condition(filter: &str) -> Option<Step> {
    let names = |path: &str| -> Option<Vec<String>> {
        let path = path.trim().strip_prefix("@.")?;
        Some(path.split('.').map(str::to_owned).collect())
    };
    let equal = if filter.contains("==") {
        "=="
    } else if filter.contains("!=") {
        "!="
    } else {
        return names(filter).map(Step::Has);
    };
    let (path, value) = filter.split_once(equal)?;
    let value = value.trim();
    let value = match unquote(value) {
        Some(text) => Value::String(text),
        None => serde_json::from_str(value).ok()?,
    };
    Some(Step::Where { path: names(path)?, equal: equal == "==", value })
}

fn unquote(text: &str) -> Option<String> {
    let inner = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    inner('\'').or_else(|| inner('"')).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::first;

    #[test]
    fn paths_of_real_definitions() {
        let object = json!({
            "metadata": {"creationTimestamp": "t", "annotations": {"a.b/c": "x"}},
            "spec": {"hostnames": ["h1", "h2"], "ports": [{"port": 80}]},
            "status": {"conditions": [{"type": "A", "status": "False"}, {"type": "Ready", "status": "True"}],
                       "addresses": [{"value": "10.0.0.1"}]},
        });
        let cases = [
            (".metadata.creationTimestamp", json!("t")),
            (".status.conditions[?(@.type==\"Ready\")].status", json!("True")),
            (".status.conditions[?(@.type=='Accepted')].status", Value::Null),
            (".status.addresses[*].value", json!("10.0.0.1")),
            (".spec.hostnames", json!(["h1", "h2"])),
            (".spec.hostnames[-1]", json!("h2")),
            (".spec.ports[0].port", json!(80)),
            (".metadata.annotations.a\\.b/c", json!("x")),
            (".metadata.annotations['a.b/c']", json!("x")),
            ("{.metadata.creationTimestamp}", json!("t")),
            (".spec.missing.deep", Value::Null),
            (".spec[", Value::Null),
        ];
        for (path, expected) in cases {
            assert_eq!(first(path, &object).cloned().unwrap_or(Value::Null), expected, "{path}");
        }
    }
}
