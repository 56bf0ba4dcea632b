//! docs/services.md: every field of a Kubernetes Service and the tests that prove what it does, from the tests themselves.
//! A test says so in its documentation: `/// Proves spec.externalIPs: a sentence for the user.`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Service;
use serde_json::Value;

use crate::files::sources;

const TABLE: &str = "docs/services.md";
const MARK: &str = "/// Proves ";
/// Where tests are.
const FOLDERS: [&str; 5] = ["core", "io", "lab", "bin", "tests"];

struct Proof {
    field: String,
    sentence: String,
    /// `io/datapath/tests/edge.rs: name_of_the_test`
    test: String,
}

pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let table = table(root, &mut findings)?;
    let written = std::fs::read_to_string(root.join(TABLE)).unwrap_or_default();
    if written != table {
        findings
            .push(format!("{TABLE} is not what the tests say: cargo run -p xtask -- write-services-table"));
    }
    Ok(findings)
}

pub fn write(root: &Path) -> Result<()> {
    let mut findings = Vec::new();
    let table = table(root, &mut findings)?;
    std::fs::write(root.join(TABLE), table).with_context(|| format!("cannot write {TABLE}"))?;
    if findings.is_empty() { Ok(()) } else { bail!("{}", findings.join("\n")) }
}

fn table(root: &Path, findings: &mut Vec<String>) -> Result<String> {
    let fields = fields()?;
    let mut proofs: BTreeMap<String, Vec<Proof>> = BTreeMap::new();
    for folder in FOLDERS {
        for source in sources(&root.join(folder))? {
            for proof in proofs_in(&source.name(root), source.text(), findings) {
                proofs.entry(proof.field.clone()).or_default().push(proof);
            }
        }
    }
    for (field, unknown) in proofs.iter().filter(|(field, _)| !fields.contains(field)) {
        findings.extend(unknown.iter().map(|proof| format!("{}: Service has no field {field}", proof.test)));
    }
    let mut text = HEAD.to_owned();
    for field in &fields {
        let Some(proofs) = proofs.get(field) else {
            findings.push(format!("{TABLE}: no test proves {field}"));
            continue;
        };
        let sentences: Vec<&str> = proofs.iter().map(|proof| proof.sentence.as_str()).collect();
        let tests: Vec<String> = proofs.iter().map(|proof| format!("`{}`", proof.test)).collect();
        writeln!(text, "| `{field}` | {} | {} |", sentences.join(" "), tests.join("<br>"))?;
    }
    Ok(text)
}

const HEAD: &str = "# Services, field by field

Generated from the tests by `cargo run -p xtask -- write-services-table`; `xtask check` compares. How services work is in
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

fn proofs_in(shown: &str, text: &str, findings: &mut Vec<String>) -> Vec<Proof> {
    let mut proofs = Vec::new();
    let mut open: Vec<(String, String)> = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix(MARK) {
            let Some((fields, sentence)) = rest.split_once(": ") else {
                findings.push(format!("{shown}: {line:?} is not `{MARK}FIELD: sentence`"));
                continue;
            };
            open.extend(fields.split(", ").map(|field| (field.to_owned(), sentence.to_owned())));
        } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(name) = line.strip_prefix("fn ").or(line.strip_prefix("async fn ")) {
            let name = name.split(['(', '<']).next().unwrap_or_default();
            if !open.is_empty() && !is_test {
                findings.push(format!("{shown}: {name} proves nothing: it is no test"));
            }
            let test = format!("{shown}: {name}");
            proofs.extend(open.drain(..).map(|(field, sentence)| Proof {
                field,
                sentence,
                test: test.clone(),
            }));
            is_test = false;
        }
    }
    proofs
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
