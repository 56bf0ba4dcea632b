//! Kinds out of CustomResourceDefinitions, and the status a definition gets when its kinds are served.
//! Whether a definition is valid is checked in `schema::structural`.
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Kind, PrinterColumn, ScalePaths, SchemaSource, Subresource};
use crate::schema::{self, FieldError, Schema};

const VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];

/// What installing a definition did.
#[derive(Debug, Clone)]
pub struct CrdOutcome {
    /// The `.status` the definition must get.
    pub status: Value,
    /// What works less than the definition's author expects, such as validation rules that do not compile.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub definition: String,
    pub group: String,
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
}

/// Why names cannot be granted.
#[derive(Debug, Clone)]
pub(super) struct Conflict {
    pub reason: &'static str,
    pub message: String,
}

#[derive(Debug, Clone)]
pub(super) struct Installed {
    pub names: Names,
    pub served: Vec<Arc<Kind>>,
    pub storage: Arc<Kind>,
}

#[derive(Debug)]
pub(super) struct Parsed {
    pub name: String,
    pub names: Names,
    served: Vec<Arc<Kind>>,
    storage: Arc<Kind>,
    warnings: Vec<String>,
}

/// The name of the definition for a group's plural, which is fixed by the API.
pub fn definition_name(plural: &str, group: &str) -> String {
    format!("{plural}.{group}")
}

impl Names {
    pub(super) fn of(definition: &Value) -> Self {
        let spec = &definition["spec"];
        let names = &spec["names"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let or = |value: String, other: String| if value.is_empty() { other } else { value };
        let kind = text(&names["kind"]);
        Self {
            definition: text(&definition["metadata"]["name"]),
            group: text(&spec["group"]),
            plural: text(&names["plural"]),
            singular: or(text(&names["singular"]), kind.to_lowercase()),
            list_kind: or(text(&names["listKind"]), format!("{kind}List")),
            short_names: strings(&names["shortNames"]),
            categories: strings(&names["categories"]),
            kind,
        }
    }

    pub(super) fn conflict_with(&self, taken: &Kind) -> Option<Conflict> {
        let used = |name: &str| {
            name == taken.plural
                || name == taken.singular
                || taken.short_names.iter().any(|short| short == name)
        };
        let conflict =
            |reason, name: &str| Conflict { reason, message: format!("{name:?} is already in use") };
        if used(&self.plural) {
            return Some(conflict("PluralConflict", &self.plural));
        }
        if used(&self.singular) {
            return Some(conflict("SingularConflict", &self.singular));
        }
        if let Some(short) = self.short_names.iter().find(|short| used(short)) {
            return Some(conflict("ShortNamesConflict", short));
        }
        let kinds = [&taken.kind, &taken.list_kind];
        if kinds.contains(&&self.kind) {
            return Some(conflict("KindConflict", &self.kind));
        }
        kinds.contains(&&self.list_kind).then(|| conflict("ListKindConflict", &self.list_kind))
    }

    fn accepted(&self) -> Value {
        let mut accepted = json!({
            "plural": self.plural, "singular": self.singular, "kind": self.kind, "listKind": self.list_kind,
        });
        for (key, list) in [("shortNames", &self.short_names), ("categories", &self.categories)] {
            if !list.is_empty() {
                accepted[key] = json!(list);
            }
        }
        accepted
    }
}

/// Reads and checks a definition.
pub(super) fn parse(definition: &Value) -> Result<Parsed, Vec<FieldError>> {
    let errors = schema::check_definition(definition);
    if !errors.is_empty() {
        return Err(errors);
    }
    let names = Names::of(definition);
    let (mut kinds, mut warnings, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for (i, version) in definition["spec"]["versions"].as_array().into_iter().flatten().enumerate() {
        let path = format!("spec.versions[{i}].schema.openAPIV3Schema");
        match schema::parse_custom(&version["schema"]["openAPIV3Schema"], &path) {
            Ok(schema) => {
                warnings.extend(uncompiled(&schema, &path));
                kinds.push((version, Arc::new(kind(definition, version, &names, schema))));
            }
            Err(found) => errors.extend(found),
        }
    }
    let storage = kinds.iter().find(|(version, _)| version["storage"] == true).map(|(_, kind)| kind.clone());
    let Some(storage) = storage.filter(|_| errors.is_empty()) else {
        return Err(errors);
    };
    let mut served: Vec<Arc<Kind>> =
        kinds.into_iter().filter(|(version, _)| version["served"] == true).map(|(_, kind)| kind).collect();
    served.sort_by_cached_key(|kind| std::cmp::Reverse(version_priority(&kind.version)));
    Ok(Parsed { name: names.definition.clone(), names, served, storage, warnings })
}

impl Parsed {
    pub(super) fn into_installed(self) -> Installed {
        Installed { names: self.names, served: self.served, storage: self.storage }
    }
}

/// General availability before beta before alpha, then the larger number: the order of discovery.
pub(crate) fn version_priority(version: &str) -> (u8, u64, u64) {
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    let (stage, (major, minor)) = if let Some(parts) = rest.split_once("alpha") {
        (1, parts)
    } else if let Some(parts) = rest.split_once("beta") {
        (2, parts)
    } else {
        (3, (rest, "0"))
    };
    match (major.parse(), minor.parse()) {
        (Ok(major), Ok(minor)) => (stage, major, minor),
        _ => (0, 0, 0),
    }
}

fn kind(definition: &Value, version: &Value, names: &Names, schema: Schema) -> Kind {
    let subresources = &version["subresources"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let scale = subresources["scale"].as_object().map(|scale| ScalePaths {
        spec: scale.get("specReplicasPath").map(text).unwrap_or_default(),
        status: scale.get("statusReplicasPath").map(text).unwrap_or_default(),
        selector: scale.get("labelSelectorPath").and_then(Value::as_str).map(str::to_owned),
    });
    let version_name = text(&version["name"]);
    let status = subresources.get("status").is_some_and(|s| !s.is_null());
    let reversed: Vec<&str> = names.group.rsplit('.').collect();
    let deprecated = version["deprecated"] == true;
    let warning = version["deprecationWarning"].as_str().map(str::to_owned);
    Kind {
        group: names.group.clone(),
        kind: names.kind.clone(),
        list_kind: names.list_kind.clone(),
        plural: names.plural.clone(),
        singular: names.singular.clone(),
        short_names: names.short_names.clone(),
        categories: names.categories.clone(),
        namespaced: definition["spec"]["scope"] == "Namespaced",
        storage: version["storage"] == true,
        persisted: true,
        verbs: VERBS.to_vec(),
        subresources: custom_subresources(names, &version_name, status, scale.is_some()),
        status,
        scale,
        crd: Some(names.definition.clone()),
        columns: version["additionalPrinterColumns"].as_array().into_iter().flatten().map(column).collect(),
        selectable_fields: version["selectableFields"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|f| text(&f["jsonPath"]).trim_start_matches('.').to_owned())
            .collect(),
        deprecation: deprecated.then(|| {
            let default = || format!("{}/{version_name} {} is deprecated", names.group, names.kind);
            warning.unwrap_or_else(default)
        }),
        schema_name: format!("{}.{version_name}.{}", reversed.join("."), names.kind),
        schema: SchemaSource::Custom(schema),
        stored_as: None,
        version: version_name,
        custom_json: Some(Arc::new(version["schema"]["openAPIV3Schema"].clone())),
    }
}

fn custom_subresources(names: &Names, version: &str, status: bool, scale: bool) -> Vec<Subresource> {
    let make = |name: &str, group: &str, version: &str, kind: &str| Subresource {
        name: name.to_owned(),
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        verbs: vec!["get", "patch", "update"],
    };
    let status = status.then(|| make("status", &names.group, version, &names.kind));
    let scale = scale.then(|| make("scale", "autoscaling", "v1", "Scale"));
    status.into_iter().chain(scale).collect()
}

fn column(json: &Value) -> PrinterColumn {
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    PrinterColumn {
        name: text("name"),
        kind: text("type"),
        format: text("format"),
        description: text("description"),
        priority: json["priority"].as_i64().unwrap_or(0),
        json_path: text("jsonPath"),
    }
}

/// A warning for every validation rule that will not be enforced.
fn uncompiled(schema: &Schema, path: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    schema.visit(path, &mut |at, node| {
        for (i, rule) in node.rules().iter().enumerate() {
            if let Err(error) = &rule.compiled {
                let at = format!("{at}.x-kubernetes-validations[{i}].rule");
                warnings.push(format!("{at}: the rule is not enforced: {error}: {}", rule.source));
            }
        }
    });
    warnings
}

/// The status of a definition whose kinds are, or because of a conflict are not, served.
pub(super) fn outcome(definition: &Value, parsed: &Parsed, conflict: Option<&Conflict>) -> CrdOutcome {
    let status = &definition["status"];
    let mut conditions = vec![
        match conflict {
            None => condition(status, "NamesAccepted", "True", "NoConflicts", "no conflicts found"),
            Some(c) => condition(status, "NamesAccepted", "False", c.reason, &c.message),
        },
        match conflict {
            None => {
                let message = "the initial names have been accepted";
                condition(status, "Established", "True", "InitialNamesAccepted", message)
            }
            Some(_) => condition(status, "Established", "False", "NotAccepted", "not all names are accepted"),
        },
    ];
    if !parsed.warnings.is_empty() {
        let message = parsed.warnings.join("; ");
        conditions.push(condition(status, "ValidationRulesEnforced", "False", "RulesNotCompiled", &message));
    }
    let mut stored = strings(&status["storedVersions"]);
    if !stored.contains(&parsed.storage.version) {
        stored.push(parsed.storage.version.clone());
    }
    let accepted = match conflict {
        None => parsed.names.accepted(),
        Some(_) if status["acceptedNames"].is_object() => status["acceptedNames"].clone(),
        Some(_) => json!({"plural": "", "kind": ""}),
    };
    CrdOutcome {
        status: json!({"conditions": conditions, "acceptedNames": accepted, "storedVersions": stored}),
        warnings: parsed.warnings.clone(),
    }
}

/// A condition that keeps its transition time while it does not change.
fn condition(status: &Value, kind: &str, state: &str, reason: &str, message: &str) -> Value {
    let now = || Value::from(jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let before = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind);
    let since = before.filter(|c| c["status"] == state).map(|c| c["lastTransitionTime"].clone());
    json!({
        "type": kind, "status": state, "reason": reason, "message": message,
        "lastTransitionTime": since.filter(Value::is_string).unwrap_or_else(now),
    })
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
