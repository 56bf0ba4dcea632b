//! docs/services.md: every field of a Kubernetes Service, from its schema. The tests that prove them are found in `proofs`.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Service;
use serde_json::Value;

use crate::proofs::{Part, Row, Table};

pub fn table() -> Result<Table> {
    let row = |field: String| Row { shown: format!("`{field}`"), key: field };
    Ok(Table {
        file: "docs/services.md",
        head: HEAD.to_owned(),
        parts: vec![Part { heading: String::new(), rows: fields()?.into_iter().map(row).collect() }],
        row: "field of Service",
        owns: |key| key.starts_with("spec.") || key.starts_with("status."),
    })
}

const HEAD: &str = "# Services, field by field

Generated from the tests by `cargo run -p xtask -- write-tables`; `xtask check` compares. How services work is in
[design/services.md](design/services.md).

| field | what it does here | proved by |
|---|---|---|
";

/// Every field of spec and status that holds a value of its own.
fn fields() -> Result<Vec<String>> {
    let schema = serde_json::to_value(schemars::schema_for!(Service))?;
    let mut fields = Vec::new();
    for part in ["spec", "status"] {
        let below = schema.pointer(&format!("/properties/{part}")).context("Service has no such part")?;
        collect(&schema, below, part, &mut fields);
    }
    if fields.len() < 20 {
        bail!("the schema of Service has changed its form: only {} fields found", fields.len());
    }
    Ok(fields)
}

fn collect(root: &Value, schema: &Value, path: &str, fields: &mut Vec<String>) {
    // Conditions are the field; their own fields are the same everywhere.
    let schema = resolve(root, schema);
    let items = schema.get("items").map(|items| resolve(root, items));
    let below = items.unwrap_or(schema).get("properties").and_then(Value::as_object);
    match below.filter(|_| !path.ends_with("conditions")) {
        None => fields.push(path.to_owned()),
        Some(below) => {
            for (name, schema) in below {
                collect(root, schema, &format!("{path}.{name}"), fields);
            }
        }
    }
}

/// Through references and optional forms to what describes the value.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let pointer = reference.trim_start_matches('#');
        return root.pointer(pointer).map_or(schema, |found| resolve(root, found));
    }
    for form in ["allOf", "anyOf"] {
        let forms = schema.get(form).and_then(Value::as_array);
        let some = forms.and_then(|forms| forms.iter().find(|form| form.get("type") != Some(&"null".into())));
        if let Some(some) = some.filter(|_| schema.get("properties").is_none()) {
            return resolve(root, some);
        }
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_through_references_lists_and_options() {
        let fields = fields().unwrap();
        for expected in [
            "spec.externalIPs",
            "spec.ports.nodePort",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            "status.loadBalancer.ingress.ipMode",
            "status.conditions",
        ] {
            assert!(fields.iter().any(|field| field == expected), "{expected} is not in {fields:?}");
        }
    }
}
