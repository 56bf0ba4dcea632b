//! Each library of the workspace is used, and docs/dependencies.md says why it is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::layers::packages;

const PAGE: &str = "docs/dependencies.md";

pub fn check(root: &Path) -> Result<Vec<String>> {
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("Cargo.toml")?;
    let page = fs::read_to_string(root.join(PAGE)).context(PAGE)?;
    let used: BTreeSet<String> = packages(root)?
        .iter()
        .flat_map(|package| package["dependencies"].as_array().cloned().unwrap_or_default())
        .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
        .collect();
    Ok(findings(&declared(&manifest), &explained(&page), &used))
}

fn findings(
    declared: &BTreeSet<String>,
    explained: &BTreeSet<String>,
    used: &BTreeSet<String>,
) -> Vec<String> {
    let unexplained =
        declared.difference(explained).map(|name| format!("{PAGE} does not say why {name} is here"));
    let gone = explained
        .difference(declared)
        .map(|name| format!("{PAGE} explains {name}, which is not in Cargo.toml"));
    let unused = declared.difference(used).map(|name| format!("Cargo.toml: no crate uses {name}; remove it"));
    unexplained.chain(gone).chain(unused).collect()
}

/// Names under `[workspace.dependencies]` that come from outside.
fn declared(manifest: &str) -> BTreeSet<String> {
    manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.contains("path = "))
        .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()))
        .collect()
}

/// Names in backquotes in the first column of the page's tables.
fn explained(page: &str) -> BTreeSet<String> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(" |").next())
        .flat_map(|cell| cell.split(", ").map(|name| name.trim_matches('`').to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn manifest_and_page_are_read_alike() {
        let manifest = "[workspace.dependencies]\nours = { path = \"x\" }\n\na = \"1\"\nb-c = { version = \"2\" }\n[x]\nd = 1\n";
        assert_eq!(declared(manifest), set(&["a", "b-c"]));
        assert_eq!(explained("| crate | why |\n|---|---|\n| `a`, `b-c` | `x` |\n"), set(&["a", "b-c"]));
    }

    #[test]
    fn what_is_unexplained_gone_or_unused_is_found() {
        let found = findings(&set(&["a", "b", "c"]), &set(&["a", "b", "old"]), &set(&["a", "c"]));
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
