//! Each source file says what it holds in its first line, and stays short. Exceptions are listed and may only shrink.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Lines a file may have, its tests apart.
const LIMIT: usize = 600;
/// Files over the limit, `<lines> <path>` each: the ratchet.
const EXCEPTIONS: &str = "xtask/long-files.txt";
const SKIPPED_FOLDERS: [&str; 2] = ["target", "node_modules"];

pub fn check(root: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join(EXCEPTIONS)).context(EXCEPTIONS)?;
    let mut exceptions = exceptions(&text)?;
    let mut findings = Vec::new();
    for source in sources(root)? {
        let name = source.name(root);
        findings.extend(first_line(&source).map(|why| format!("{name}: {why}")));
        findings.extend(length(&source, exceptions.remove(&name)).map(|why| format!("{name}: {why}")));
    }
    findings.extend(
        exceptions.into_keys().map(|name| format!("{EXCEPTIONS}: {name} is not there; remove the line")),
    );
    Ok(findings)
}

/// A file with its text.
pub struct Source {
    path: PathBuf,
    text: String,
}

/// All Rust and C files below `folder`, in order.
pub fn sources(folder: &Path) -> Result<Vec<Source>> {
    let mut entries: Vec<_> =
        fs::read_dir(folder).with_context(|| folder.display().to_string())?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut sources = Vec::new();
    for entry in entries {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if entry.file_type()?.is_dir() {
            if !name.starts_with('.') && !SKIPPED_FOLDERS.contains(&name.as_str()) {
                sources.extend(self::sources(&path)?);
            }
        } else if [".rs", ".c", ".h"].iter().any(|ending| name.ends_with(ending)) {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            sources.push(Source { path, text });
        }
    }
    Ok(sources)
}

impl Source {
    pub fn text(&self) -> &str {
        &self.text
    }

    #[cfg(test)]
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.to_owned() }
    }

    pub fn name(&self, root: &Path) -> String {
        self.path.strip_prefix(root).unwrap_or(&self.path).display().to_string()
    }

    pub fn is_rust(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == "rs")
    }

    /// Whether it is a program beside the crate: it may read clocks and files.
    pub fn is_example(&self) -> bool {
        self.is_below("examples")
    }

    /// Whether all of it is tests.
    pub fn is_test(&self) -> bool {
        self.is_below("tests") || self.path.file_stem().is_some_and(|stem| stem == "tests")
    }

    fn is_below(&self, folder: &str) -> bool {
        self.path.components().any(|part| part.as_os_str() == folder)
    }

    /// Up to the module of unit tests, which comes last in a file.
    pub fn lines_without_tests(&self) -> impl Iterator<Item = &str> {
        let lines: Vec<&str> = self.text.lines().collect();
        let tests =
            lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].ends_with("mod tests {"));
        lines.into_iter().take(tests.unwrap_or(usize::MAX))
    }
}

fn first_line(source: &Source) -> Option<&'static str> {
    let first = source.text.lines().next().unwrap_or_default();
    let says = |start: &str| first.strip_prefix(start).is_some_and(|rest| rest.len() > 10);
    if source.is_rust() {
        (!says("//! ")).then_some("its first line must be `//! what lives here, and what does not`")
    } else {
        let licence_first = first.contains("SPDX-License-Identifier");
        let text = if licence_first { source.text.lines().nth(1).unwrap_or_default() } else { first };
        let says = text.starts_with("//") || text.starts_with("/*");
        (!says).then_some("it must start with a comment that says what lives here")
    }
}

fn length(source: &Source, allowed: Option<usize>) -> Option<String> {
    if source.is_test() {
        return allowed.map(|_| format!("tests have no limit; remove it from {EXCEPTIONS}"));
    }
    let lines = source.lines_without_tests().count();
    match allowed {
        None if lines > LIMIT => {
            Some(format!("{lines} lines without tests; split it by concern (limit {LIMIT})"))
        }
        Some(allowed) if lines > allowed => {
            Some(format!("{lines} lines; {EXCEPTIONS} lets it have {allowed}"))
        }
        Some(allowed) if lines <= LIMIT || lines < allowed => {
            Some(format!("{lines} lines now; {EXCEPTIONS} says {allowed}: lower it, or remove it at {LIMIT}"))
        }
        _ => None,
    }
}

fn exceptions(text: &str) -> Result<BTreeMap<String, usize>> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (lines, path) = line.split_once(' ').with_context(|| format!("{EXCEPTIONS}: {line:?}"))?;
            Ok((path.to_owned(), lines.parse().with_context(|| format!("{EXCEPTIONS}: {line:?}"))?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rust(lines: usize, tests: usize) -> Source {
        let body = "x\n".repeat(lines - 1);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "x\n".repeat(tests));
        Source::new("core/x/src/a.rs", &format!("//! What lives here.\n{body}{tests}"))
    }

    #[test]
    fn tests_do_not_count_and_the_limit_does() {
        assert_eq!(length(&rust(600, 900), None), None);
        let shared = rust(600, 900).text().replace("mod tests", "pub mod tests");
        assert_eq!(length(&Source::new("core/x/src/a.rs", &shared), None), None);
        assert!(length(&rust(601, 0), None).unwrap().contains("601 lines"));
    }

    #[test]
    fn exceptions_only_shrink() {
        assert_eq!(length(&rust(700, 0), Some(700)), None);
        assert!(length(&rust(701, 0), Some(700)).is_some());
        assert!(length(&rust(650, 0), Some(700)).unwrap().contains("lower it"));
    }

    #[test]
    fn a_file_without_its_first_line_is_found() {
        assert!(first_line(&Source::new("a.rs", "use x;\n")).is_some());
        assert!(first_line(&Source::new("a.rs", "//! Too\n")).is_some());
        assert!(first_line(&Source::new("a.h", "#pragma once\n")).is_some());
        assert!(
            first_line(&Source::new("a.h", "// SPDX-License-Identifier: GPL-2.0\n// What lives here.\n"))
                .is_none()
        );
        assert!(first_line(&Source::new("a.rs", "//! What lives here.\n")).is_none());
    }
}
