//! Checks of pod specs, alone or within a workload's template. Volumes are checked in `volumes`.
use std::collections::HashSet;

use serde_json::{Value, json};

use super::list::*;
use super::volumes;
use crate::schema::FieldError;
use crate::schema::quantity::{PATTERN_MESSAGE, Quantity};

/// Where a pod spec stands, which decides the restart policies it may have.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Use {
    Pod,
    Forever,
    UntilDone,
}

pub(super) fn spec(spec: &Value, at: &At, usage: Use, errors: &mut Errors) {
    if !spec.is_object() {
        return;
    }
    let volume_names = volumes::check(&spec["volumes"], &at.field("volumes"), errors);
    containers(spec, at, &volume_names, errors);
    restart_policy(spec, at, usage, errors);
    dns(spec, at, errors);
    for (field, least) in [("terminationGracePeriodSeconds", 0), ("activeDeadlineSeconds", 1)] {
        at_least(&spec[field], least, &at.field(field), errors);
    }
    for field in ["hostname", "subdomain"] {
        if !text(spec, field).is_empty() {
            label_1123(text(spec, field), &at.field(field), errors);
        }
    }
    for field in ["serviceAccountName", "nodeName"] {
        if !text(spec, field).is_empty() {
            subdomain(text(spec, field), &at.field(field), errors);
        }
    }
    labels(&spec["nodeSelector"], &at.field("nodeSelector"), errors);
    for (index, alias) in items(&spec["hostAliases"]) {
        let at = at.field("hostAliases").index(index);
        ip(&alias["ip"], &at.field("ip"), errors);
        for (index, host) in items(&alias["hostnames"]) {
            subdomain(host.as_str().unwrap_or_default(), &at.field("hostnames").index(index), errors);
        }
    }
    tolerations(&spec["tolerations"], &at.field("tolerations"), errors);
}

fn restart_policy(spec: &Value, at: &At, usage: Use, errors: &mut Errors) {
    let at = at.field("restartPolicy");
    let allowed: &[&str] = match usage {
        Use::Pod => &["Always", "OnFailure", "Never"],
        Use::Forever => &["Always"],
        Use::UntilDone => &["OnFailure", "Never"],
    };
    match (text(spec, "restartPolicy"), usage) {
        ("", Use::UntilDone) => {
            errors.push(FieldError::required(at, "valid values: \"OnFailure\", \"Never\""));
        }
        _ => one_of(&spec["restartPolicy"], allowed, &at, errors),
    }
}

fn dns(spec: &Value, at: &At, errors: &mut Errors) {
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    one_of(&spec["dnsPolicy"], &policies, &at.field("dnsPolicy"), errors);
    let (config, config_at) = (&spec["dnsConfig"], at.field("dnsConfig"));
    let servers = config["nameservers"].as_array().map_or(0, Vec::len);
    if text(spec, "dnsPolicy") == "None" && servers == 0 {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(config_at.field("nameservers"), detail));
    }
    if servers > 3 {
        let detail = "must not have more than 3 nameservers";
        errors.push(FieldError::invalid(config_at.field("nameservers"), &config["nameservers"], detail));
    }
    for (index, server) in items(&config["nameservers"]) {
        ip(server, &config_at.field("nameservers").index(index), errors);
    }
    for (index, domain) in items(&config["searches"]) {
        let name = domain.as_str().unwrap_or_default().trim_end_matches('.').replace('_', "-");
        if !name.is_empty() {
            subdomain(&name, &config_at.field("searches").index(index), errors);
        }
    }
}

fn tolerations(list: &Value, at: &At, errors: &mut Errors) {
    for (index, toleration) in items(list) {
        let at = at.index(index);
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        if !key.is_empty() {
            label_key(key, &at.field("key"), errors);
        } else if operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(at.field("operator"), &operator.into(), detail));
        }
        if !operator.is_empty() {
            one_of(&toleration["operator"], &["Equal", "Exists"], &at.field("operator"), errors);
        }
        if operator == "Exists" && !text(toleration, "value").is_empty() {
            let detail = "value must be empty when `operator` is 'Exists'";
            errors.push(FieldError::invalid(at.field("operator"), &toleration["value"], detail));
        }
        if !text(toleration, "effect").is_empty() {
            let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            one_of(&toleration["effect"], &effects, &at.field("effect"), errors);
        }
    }
}

fn containers(spec: &Value, at: &At, volume_names: &HashSet<String>, errors: &mut Errors) {
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        errors.push(FieldError::required(at.field("containers"), ""));
    }
    let mut names = HashSet::new();
    let host_network = spec["hostNetwork"] == true;
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let mut host_ports = HashSet::new();
        for (index, item) in items(&spec[list]) {
            let at = at.field(list).index(index);
            let name = text(item, "name");
            if !name.is_empty() {
                label_1123(name, &at.field("name"), errors);
                if !names.insert(name.to_owned()) {
                    errors.push(FieldError::duplicate(at.field("name"), &name.into()));
                }
            }
            container(item, &at, volume_names, errors);
            ports(&item["ports"], &at.field("ports"), host_network, &mut host_ports, errors);
            if list == "initContainers" && text(item, "restartPolicy") != "Always" {
                for field in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
                    if is_set(item, field) {
                        let detail = "may not be set for init containers without restartPolicy=Always";
                        errors.push(FieldError::forbidden(at.field(field), detail));
                    }
                }
            }
        }
    }
}

fn container(container: &Value, at: &At, volume_names: &HashSet<String>, errors: &mut Errors) {
    let image = text(container, "image");
    if image.is_empty() {
        errors.push(FieldError::required(at.field("image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(at.field("image"), &image.into(), detail));
    }
    one_of(
        &container["imagePullPolicy"],
        &["Always", "IfNotPresent", "Never"],
        &at.field("imagePullPolicy"),
        errors,
    );
    one_of(
        &container["terminationMessagePolicy"],
        &["FallbackToLogsOnError", "File"],
        &at.field("terminationMessagePolicy"),
        errors,
    );
    environment(container, at, errors);
    volumes::mounts(&container["volumeMounts"], &at.field("volumeMounts"), volume_names, errors);
    resources(&container["resources"], &at.field("resources"), errors);
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if is_set(container, name) {
            probe(&container[name], &at.field(name), name != "readinessProbe", errors);
        }
    }
    for name in ["postStart", "preStop"] {
        if is_set(&container["lifecycle"], name) {
            let at = at.field("lifecycle").field(name);
            handler(&container["lifecycle"][name], &at, &["exec", "httpGet", "sleep", "tcpSocket"], errors);
        }
    }
}

fn ports(list: &Value, at: &At, host_network: bool, host_ports: &mut HashSet<String>, errors: &mut Errors) {
    let mut names = HashSet::new();
    for (index, port) in items(list) {
        let at = at.index(index);
        let name = text(port, "name");
        if !name.is_empty() {
            port_name(name, &at.field("name"), errors);
            if !names.insert(name) {
                errors.push(FieldError::duplicate(at.field("name"), &name.into()));
            }
        }
        match port["containerPort"].as_i64() {
            Some(0) => errors.push(FieldError::required(at.field("containerPort"), "")),
            _ => port_number(&port["containerPort"], &at.field("containerPort"), errors),
        }
        one_of(&port["protocol"], PROTOCOLS, &at.field("protocol"), errors);
        let host_port = port["hostPort"].as_i64().unwrap_or(0);
        if host_port != 0 {
            port_number(&port["hostPort"], &at.field("hostPort"), errors);
            let key = format!("{}/{}/{host_port}", text(port, "protocol"), text(port, "hostIP"));
            if !host_ports.insert(key.clone()) {
                errors.push(FieldError::duplicate(at.field("hostPort"), &key.into()));
            }
            if host_network && port["hostPort"] != port["containerPort"] {
                let detail = "must match `hostPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(at.field("containerPort"), &port["containerPort"], detail));
            }
        }
    }
}

const FIELD_PATHS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn environment(container: &Value, at: &At, errors: &mut Errors) {
    for (index, variable) in items(&container["env"]) {
        let at = at.field("env").index(index);
        let name = text(variable, "name");
        if !name.is_empty() && !name.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=') {
            let detail = "a valid environment variable name must consist only of printable ASCII characters other \
                          than '='";
            errors.push(FieldError::invalid(at.field("name"), &name.into(), detail));
        }
        if variable["valueFrom"].is_object() {
            variable_source(variable, &at.field("valueFrom"), errors);
        }
    }
    for (index, source) in items(&container["envFrom"]) {
        let count = ["configMapRef", "secretRef"].iter().filter(|name| is_set(source, name)).count();
        let at = at.field("envFrom").index(index);
        one_source(count, "`configMapRef` or `secretRef`", &at, errors);
    }
}

fn variable_source(variable: &Value, at: &At, errors: &mut Errors) {
    let source = &variable["valueFrom"];
    if !text(variable, "value").is_empty() {
        errors.push(FieldError::invalid(at, &json!(""), "may not be specified when `value` is not empty"));
    }
    let kinds = "`fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
    one_source(source.as_object().map_or(0, |fields| fields.len()), kinds, at, errors);
    let path = text(&source["fieldRef"], "fieldPath");
    let subscripted = path.starts_with("metadata.labels['") || path.starts_with("metadata.annotations['");
    if !path.is_empty() && !subscripted && !FIELD_PATHS.contains(&path) {
        let at = at.field("fieldRef").field("fieldPath");
        errors.push(FieldError::not_supported(at, &path.into(), FIELD_PATHS));
    }
}

fn one_source(count: usize, kinds: &str, at: &At, errors: &mut Errors) {
    let detail = match count {
        1 => return,
        0 => format!("must specify one of: {kinds}"),
        _ => "may not have more than one field specified at a time".to_owned(),
    };
    errors.push(FieldError::invalid(at, &json!(""), detail));
}

pub(super) fn resources(resources: &Value, at: &At, errors: &mut Errors) {
    for kind in ["limits", "requests"] {
        for (name, amount) in resources[kind].as_object().into_iter().flatten() {
            let at = at.field(kind).key(name);
            match Quantity::from_value(amount) {
                None => errors.push(FieldError::invalid(at, amount, PATTERN_MESSAGE)),
                Some(q) if q.is_negative() => {
                    errors.push(FieldError::invalid(at, amount, "must be greater than or equal to 0"));
                }
                Some(_) => {}
            }
        }
    }
    for (name, limit) in resources["limits"].as_object().into_iter().flatten() {
        let request = &resources["requests"][name];
        let pair = Quantity::from_value(request).zip(Quantity::from_value(limit));
        if pair.is_some_and(|(request, limit)| request.nanos() > limit.nanos()) {
            let shown = limit.as_str().unwrap_or_default();
            let detail = format!("must be less than or equal to {name} limit of {shown}");
            errors.push(FieldError::invalid(at.field("requests"), request, detail));
        }
    }
}

fn probe(probe: &Value, at: &At, succeeds_once: bool, errors: &mut Errors) {
    handler(probe, at, &["exec", "grpc", "httpGet", "tcpSocket"], errors);
    for field in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        at_least(&probe[field], 0, &at.field(field), errors);
    }
    if succeeds_once && probe["successThreshold"].as_i64().is_some_and(|n| n > 1) {
        errors.push(FieldError::invalid(
            at.field("successThreshold"),
            &probe["successThreshold"],
            "must be 1",
        ));
    }
}

/// Exactly one way to ask the container.
fn handler(handler: &Value, at: &At, kinds: &[&str], errors: &mut Errors) {
    let given: Vec<&str> = kinds.iter().copied().filter(|kind| is_set(handler, kind)).collect();
    if given.is_empty() {
        errors.push(FieldError::required(at, "must specify a handler type"));
    }
    for extra in given.iter().skip(1) {
        errors.push(FieldError::forbidden(at.field(extra), "may not specify more than 1 handler type"));
    }
    for kind in given {
        let (handler, at) = (&handler[kind], at.field(kind));
        port_or_name(&handler["port"], &at.field("port"), errors);
        if kind == "httpGet" {
            one_of(&handler["scheme"], &["HTTP", "HTTPS"], &at.field("scheme"), errors);
        }
        if kind == "exec" && handler["command"].as_array().is_none_or(Vec::is_empty) {
            errors.push(FieldError::required(at.field("command"), ""));
        }
    }
}

/// Labels of nodes that have been replaced, and by what.
const OLD_NODE_LABELS: &[(&str, &str, &str)] = &[
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
];

/// What kube-apiserver warns of although it accepts it.
pub(super) fn warnings(spec: &Value, path: &str) -> Vec<String> {
    let used = OLD_NODE_LABELS.iter().filter(|(label, ..)| is_set(&spec["nodeSelector"], label));
    let mut warnings: Vec<String> = used
        .map(|(label, since, new)| {
            format!("{path}.nodeSelector[{label}]: deprecated since {since}; use \"{new}\" instead")
        })
        .collect();
    for list in ["initContainers", "containers"] {
        for (index, container) in items(&spec[list]) {
            let mut seen = HashSet::new();
            for (at, variable) in items(&container["env"]) {
                let name = text(variable, "name");
                if !seen.insert(name) {
                    warnings.push(format!(
                        "{path}.{list}[{index}].env[{at}]: hides previous definition of {name:?}, which may be \
                         dropped when using apply"
                    ));
                }
            }
            let mut ports = HashSet::new();
            for (at, port) in items(&container["ports"]) {
                let key = (port["containerPort"].clone().to_string(), text(port, "protocol"));
                if !ports.insert(key) {
                    warnings.push(format!(
                        "{path}.{list}[{index}].ports[{at}]: duplicate port definition with \
                         {path}.{list}[{index}].ports[0]"
                    ));
                }
            }
        }
    }
    warnings
}
