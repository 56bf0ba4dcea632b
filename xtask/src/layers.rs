//! The dependency rule that the first folder states: which crate may depend on which.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// From layer to the layers it may depend on. Tests may use any crate below the program.
const ALLOWED: [(&str, &[&str]); 5] = [
    ("core", &["core"]),
    ("io", &["core"]),
    ("lab", &["core", "io"]),
    ("bin", &["core", "io", "lab"]),
    ("xtask", &["core"]),
];

/// Crates that bring a runtime, a socket, a file or a Kubernetes client: nothing for core.
const IMPURE: [&str; 15] = [
    "hyper",
    "hyper-util",
    "kube",
    "libbpf-rs",
    "libc",
    "mio",
    "nix",
    "redb",
    "rtnetlink",
    "rustix",
    "rustls",
    "socket2",
    "tempfile",
    "tokio",
    "tokio-util",
];

pub fn check(root: &Path) -> Result<Vec<String>> {
    Ok(findings(root, &packages(root)?))
}

/// The workspace's own packages, as `cargo metadata` describes them.
pub fn packages(root: &Path) -> Result<Vec<Value>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata's output")?;
    metadata["packages"].as_array().cloned().context("cargo metadata names no packages")
}

fn findings(root: &Path, packages: &[Value]) -> Vec<String> {
    let layers: BTreeMap<&str, String> = packages
        .iter()
        .filter_map(|package| {
            let manifest = Path::new(package["manifest_path"].as_str()?);
            let first = manifest.strip_prefix(root).ok()?.components().next()?;
            Some((package["name"].as_str()?, first.as_os_str().to_str()?.to_owned()))
        })
        .collect();
    let mut findings = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(layer) = layers.get(name) else { continue };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            let in_tests = dependency["kind"] == "dev";
            findings.extend(
                refuse(layer, on, layers.get(on).map(String::as_str), in_tests)
                    .map(|why| format!("{layer}: crate {name} depends on {on}: {why}")),
            );
        }
    }
    findings
}

/// Why a crate of `layer` may not depend on the crate `on`, which is in `target` or from outside.
fn refuse(layer: &str, on: &str, target: Option<&str>, in_tests: bool) -> Option<String> {
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == layer) else {
        return Some(format!("folder {layer} is no layer; name it in xtask/src/layers.rs or move the crate"));
    };
    match target {
        None if layer == "core" && !in_tests && IMPURE.contains(&on) => {
            Some("core is pure; take its effects as arguments and return values".to_owned())
        }
        Some("bin" | "xtask") => Some("nothing depends on programs".to_owned()),
        Some(_) if in_tests && layer != "core" => None,
        Some(target) if !allowed.contains(&target) => {
            Some(format!("{layer} may depend on {} only", allowed.join(", ")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn package(path: &str, name: &str, dependencies: &[(&str, Value)]) -> Value {
        let dependencies: Vec<Value> =
            dependencies.iter().map(|(name, kind)| json!({"name": name, "kind": kind})).collect();
        json!({"name": name, "manifest_path": format!("/w/{path}/Cargo.toml"), "dependencies": dependencies})
    }

    fn check(from: Value) -> Vec<String> {
        let others = [
            package("core/model", "model", &[]),
            package("io/dns", "dns", &[]),
            package("bin/weft", "weft", &[]),
        ];
        findings(Path::new("/w"), &[&others[..], &[from]].concat())
    }

    #[test]
    fn each_forbidden_edge_is_named_and_each_allowed_one_passes() {
        let normal = Value::Null;
        let bad = [
            package("core/plan", "plan", &[("dns", normal.clone())]),
            package("core/plan", "plan", &[("tokio", normal.clone())]),
            package("core/plan", "plan", &[("dns", json!("dev"))]),
            package("io/cni", "cni", &[("dns", normal.clone())]),
            package("lab", "lab", &[("weft", normal.clone())]),
            package("misc/x", "x", &[("model", normal.clone())]),
        ];
        for package in bad {
            assert_eq!(check(package.clone()).len(), 1, "{package}");
        }
        let good = [
            package("core/plan", "plan", &[("model", normal.clone()), ("serde", normal.clone())]),
            package(
                "io/cni",
                "cni",
                &[("model", normal.clone()), ("tokio", normal.clone()), ("dns", json!("dev"))],
            ),
            package("lab", "lab", &[("dns", normal)]),
        ];
        for package in good {
            assert_eq!(check(package), Vec::<String>::new());
        }
    }
}
