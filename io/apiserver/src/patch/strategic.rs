//! Strategic merge patch: a merge patch that knows, from the schema, which lists are keyed.

use serde_json::{Map, Value};

use crate::schema::Schema;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

type Outcome = Result<(), String>;

/// Merges `patch` into `target`, both at the position `schema` describes.
pub(super) fn merge(schema: &Schema, target: &mut Value, patch: &Value) -> Outcome {
    let Value::Object(patch) = patch else { return Err("the patch is not an object".into()) };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return Ok(()) };
    merge_map(schema, target, patch)
}

fn merge_map(schema: &Schema, target: &mut Map<String, Value>, patch: &Map<String, Value>) -> Outcome {
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        Some("replace") => {
            *target = without_directives(patch);
            return Ok(());
        }
        Some("delete") => {
            target.clear();
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(format!("unrecognized patch directive {other:?}")),
    }
    if let Some(keep) = patch.get(RETAIN_KEYS).and_then(Value::as_array) {
        target.retain(|name, _| keep.iter().any(|kept| kept.as_str() == Some(name)));
    }
    for (name, value) in patch {
        if let Some(field) = name.strip_prefix(DELETE_FROM_LIST) {
            delete_primitives(target, field, value);
        } else if !name.starts_with('$') {
            merge_field(&schema.field(name), target, name, value)?;
        }
    }
    for (name, order) in patch {
        if let Some(field) = name.strip_prefix(ELEMENT_ORDER) {
            reorder(&schema.field(field), target, field, order, patch.get(field));
        }
    }
    Ok(())
}

fn merge_field(schema: &Schema, target: &mut Map<String, Value>, name: &str, value: &Value) -> Outcome {
    match value {
        Value::Null => {
            target.remove(name);
            Ok(())
        }
        Value::Object(patch) => {
            let replaces = schema.patch_strategy().replace;
            let existing = target.entry(name.to_owned()).or_insert_with(|| Value::Object(Map::new()));
            if replaces || !existing.is_object() {
                *existing = Value::Object(Map::new());
            }
            let Value::Object(existing) = existing else { return Ok(()) };
            merge_map(schema, existing, patch)?;
            if patch.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") {
                target.remove(name);
            }
            Ok(())
        }
        Value::Array(items) => merge_list(schema, target, name, items),
        scalar => {
            target.insert(name.to_owned(), scalar.clone());
            Ok(())
        }
    }
}

fn merge_list(schema: &Schema, target: &mut Map<String, Value>, name: &str, patch: &[Value]) -> Outcome {
    let replaced_whole = patch.iter().any(|item| directive(item) == Some("replace"));
    let existing = match target.get(name) {
        Some(Value::Array(items)) if schema.patch_strategy().merge && !replaced_whole => items.clone(),
        _ if !schema.patch_strategy().merge || replaced_whole => {
            let items = patch.iter().filter(|item| !is_pure_directive(item)).map(clean).collect();
            target.insert(name.to_owned(), Value::Array(items));
            return Ok(());
        }
        _ => Vec::new(),
    };
    let merged = match schema.patch_merge_key() {
        Some(key) => merge_keyed(schema, existing, patch, key).map_err(|why| format!("{name}: {why}"))?,
        None => merge_primitives(existing, patch),
    };
    target.insert(name.to_owned(), Value::Array(merged));
    Ok(())
}

fn merge_keyed(
    schema: &Schema,
    mut items: Vec<Value>,
    patch: &[Value],
    key: &str,
) -> Result<Vec<Value>, String> {
    let item_schema = schema.items();
    for change in patch {
        let Some(wanted) = change.get(key) else {
            return Err(format!("map: {change} does not contain declared merge key: {key}"));
        };
        let found = items.iter().position(|item| item.get(key) == Some(wanted));
        match (directive(change), found) {
            (Some("delete"), _) => items.retain(|item| item.get(key) != Some(wanted)),
            (_, Some(at)) => merge(&item_schema, &mut items[at], change)?,
            (_, None) => {
                let mut fresh = Value::Object(Map::new());
                merge(&item_schema, &mut fresh, change)?;
                items.push(fresh);
            }
        }
    }
    Ok(items)
}

fn merge_primitives(mut items: Vec<Value>, patch: &[Value]) -> Vec<Value> {
    for value in patch {
        if !items.contains(value) {
            items.push(value.clone());
        }
    }
    items
}

fn delete_primitives(target: &mut Map<String, Value>, field: &str, doomed: &Value) {
    let doomed = doomed.as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(Value::Array(items)) = target.get_mut(field) {
        items.retain(|item| !doomed.contains(item));
    }
}

/// Puts the items the patch names in its order; others stay relative to the item before them.
fn reorder(
    schema: &Schema,
    target: &mut Map<String, Value>,
    field: &str,
    order: &Value,
    patch: Option<&Value>,
) {
    let (Some(order), Some(Value::Array(items))) = (order.as_array(), target.get_mut(field)) else { return };
    let key = schema.patch_merge_key();
    let identity = |value: &Value| match key {
        Some(key) => value.get(key).cloned().unwrap_or(Value::Null),
        None => value.clone(),
    };
    let wanted: Vec<Value> = order.iter().map(identity).collect();
    let rank = |value: &Value| wanted.iter().position(|id| *id == identity(value));
    let added: Vec<Value> = patch.and_then(Value::as_array).into_iter().flatten().map(identity).collect();
    let mut ranked: Vec<(usize, Value)> =
        items.iter().filter_map(|item| Some((rank(item)?, item.clone()))).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut result: Vec<Value> = ranked.into_iter().map(|(_, item)| item).collect();
    // What only the server has goes behind its neighbour on the left, or to the front.
    let mut previous: Option<Value> = None;
    for item in items.iter() {
        let id = identity(item);
        if rank(item).is_none() && !added.contains(&id) {
            let at = previous
                .as_ref()
                .and_then(|previous| result.iter().position(|other| identity(other) == *previous))
                .map_or(0, |at| at + 1);
            result.insert(at, item.clone());
        }
        previous = Some(id);
    }
    *items = result;
}

fn directive(value: &Value) -> Option<&str> {
    value.get(DIRECTIVE)?.as_str()
}

fn is_pure_directive(value: &Value) -> bool {
    value.as_object().is_some_and(|map| map.len() == 1 && map.contains_key(DIRECTIVE))
}

fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        other => other.clone(),
    }
}

fn without_directives(map: &Map<String, Value>) -> Map<String, Value> {
    let kept = map.iter().filter(|(name, value)| !name.starts_with('$') && !value.is_null());
    kept.map(|(name, value)| (name.clone(), clean(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Registry;
    use serde_json::json;

    fn patched(object: Value, patch: Value) -> Value {
        let kind = Registry::new().find("apps", "v1", "deployments").unwrap();
        let mut object = object;
        merge(&crate::schema::root(&kind), &mut object, &patch).unwrap();
        object
    }

    fn with_containers(list: Value) -> Value {
        json!({"spec": {"template": {"spec": {"containers": list}}}})
    }

    #[test]
    fn containers_merge_by_name_and_are_deleted_by_directive() {
        let object = with_containers(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]));
        let patch = with_containers(
            json!([{"name": "a", "image": "2"}, {"name": "b", "$patch": "delete"}, {"name": "c"}]),
        );
        let expected = with_containers(json!([{"name": "a", "image": "2"}, {"name": "c"}]));
        assert_eq!(patched(object, patch), expected);
    }

    #[test]
    fn order_directive_puts_items_where_the_patch_wants_them() {
        let object = with_containers(json!([{"name": "a"}, {"name": "server"}, {"name": "b"}]));
        let mut patch = with_containers(json!([{"name": "c"}]));
        patch["spec"]["template"]["spec"]["$setElementOrder/containers"] =
            json!([{"name": "b"}, {"name": "c"}, {"name": "a"}]);
        let merged = patched(object, patch);
        let names: Vec<&str> = merged["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["b", "c", "a", "server"]);
    }

    #[test]
    fn primitive_lists_merge_and_shed() {
        let object = json!({"metadata": {"finalizers": ["a", "b"]}});
        let patch = json!({"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]}});
        assert_eq!(patched(object, patch), json!({"metadata": {"finalizers": ["b", "c"]}}));
    }

    #[test]
    fn null_removes_replace_replaces_and_missing_keys_are_named() {
        let object = json!({"metadata": {"labels": {"x": "1", "y": "2"}}, "spec": {"paused": true}});
        let patch =
            json!({"metadata": {"labels": {"$patch": "replace", "z": "3"}}, "spec": {"paused": null}});
        assert_eq!(patched(object, patch), json!({"metadata": {"labels": {"z": "3"}}, "spec": {}}));
        let kind = Registry::new().find("apps", "v1", "deployments").unwrap();
        let mut object = with_containers(json!([{"name": "a"}]));
        let patch = with_containers(json!([{"image": "x"}]));
        let error = merge(&crate::schema::root(&kind), &mut object, &patch).unwrap_err();
        assert!(error.contains("merge key: name"), "{error}");
    }
}
