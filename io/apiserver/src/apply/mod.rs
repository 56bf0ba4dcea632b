//! Server-side apply: merging what a manager wants with what is there, by who owns which field.

mod diff;
mod fields;
pub mod managed;
mod merge;

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::schema;
use crate::status::{ApiError, Result};
use fields::FieldSet;
use managed::{Managers, Operation, Record};

/// Who applies, and how insistently.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub manager: &'a str,
    pub subresource: &'a str,
    /// Take over fields that others own.
    pub force: bool,
}

/// A merged object with its managedFields settled.
#[derive(Debug)]
pub struct Applied {
    pub object: Value,
}

/// Merges `config` into `live` for one manager.
pub fn apply(
    kind: &Kind,
    live: &Value,
    config: &Value,
    request: &Request<'_>,
    now: Timestamp,
) -> Result<Applied> {
    let root = schema::root(kind);
    let mut managers = Managers::of(live);
    let wanted = fields::collect(&root, &managed::tracked(kind, config, request.subresource));
    let previous = managers.take(request.manager, Operation::Apply, request.subresource);
    let previous_fields = previous.as_ref().map(|record| record.fields.clone()).unwrap_or_default();

    let mut object = merge::merge(&root, live, config);
    let kept = managers.all_fields().union(&wanted);
    merge::prune(&root, &mut object, &previous_fields.difference(&wanted), &kept);

    let change = diff::diff(&root, &managed::stripped(live), &managed::stripped(&object));
    let conflicts = managers.conflicts(&change.written);
    if !conflicts.is_empty() && !request.force {
        return Err(conflict_error(&conflicts));
    }
    managers.release(&change.written.union(&change.removed));
    let time = match &previous {
        Some(record) if record.fields == wanted => record.time.clone(),
        _ => crate::api::timestamp(now),
    };
    if !wanted.is_empty() {
        managers.add(Record {
            manager: request.manager.to_owned(),
            operation: Operation::Apply,
            api_version: kind.api_version(),
            subresource: request.subresource.to_owned(),
            time,
            fields: wanted,
        });
    }
    managers.write_to(&mut object);
    Ok(Applied { object })
}

/// One other manager and the fields it would lose.
struct Conflict {
    with: String,
    fields: FieldSet,
}

fn conflict_error(conflicts: &[Conflict]) -> ApiError {
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    for conflict in conflicts {
        let paths = conflict.fields.paths();
        lines.push(match paths.as_slice() {
            [one] => format!("conflict with {}: {one}", conflict.with),
            many => format!("conflicts with {}:\n- {}", conflict.with, many.join("\n- ")),
        });
        causes.extend(paths.into_iter().map(|path| {
            json!({
                "reason": "FieldManagerConflict",
                "message": format!("conflict with {}", conflict.with),
                "field": path,
            })
        }));
    }
    let count = causes.len();
    let noun = if count == 1 { "conflict" } else { "conflicts" };
    ApiError::new(
        StatusCode::CONFLICT,
        "Conflict",
        format!("Apply failed with {count} {noun}: {}", lines.join("\n")),
    )
    .with_details(json!({"causes": causes}))
}

#[cfg(test)]
mod tests;
