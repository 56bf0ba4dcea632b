//! Tables of what is promised and which tests prove it, from the tests themselves. A test says so in its documentation:
//! `/// Proves spec.externalIPs: a sentence for the user.` Which rows a table has lives in `services` and `names`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::files::sources;
use crate::{names, services};

const MARK: &str = "/// Proves ";
/// Where tests are.
const FOLDERS: [&str; 5] = ["core", "io", "lab", "bin", "tests"];

/// One document.
pub struct Table {
    pub file: &'static str,
    pub head: String,
    pub parts: Vec<Part>,
    /// What a row of it is called in a finding.
    pub row: &'static str,
    /// Whether a key is this table's; every key is one table's.
    pub owns: fn(&str) -> bool,
}

/// Rows under one heading.
pub struct Part {
    pub heading: String,
    pub rows: Vec<Row>,
}

pub struct Row {
    pub key: String,
    /// The row's first cells.
    pub shown: String,
}

struct Proof {
    key: String,
    sentence: String,
    /// `io/datapath/tests/edge.rs: name_of_the_test`
    test: String,
}

type Proofs = BTreeMap<String, Vec<Proof>>;

pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let proofs = proofs(root, &mut findings)?;
    for table in tables()? {
        let text = table.text(&proofs, &mut findings)?;
        let written = std::fs::read_to_string(root.join(table.file)).unwrap_or_default();
        if written != text {
            let file = table.file;
            findings.push(format!("{file} is not what the tests say: cargo run -p xtask -- write-tables"));
        }
    }
    Ok(findings)
}

pub fn write(root: &Path) -> Result<()> {
    let mut findings = Vec::new();
    let proofs = proofs(root, &mut findings)?;
    for table in tables()? {
        let text = table.text(&proofs, &mut findings)?;
        std::fs::write(root.join(table.file), text)
            .with_context(|| format!("cannot write {}", table.file))?;
    }
    if findings.is_empty() { Ok(()) } else { bail!("{}", findings.join("\n")) }
}

fn tables() -> Result<[Table; 2]> {
    Ok([services::table()?, names::table()])
}

fn proofs(root: &Path, findings: &mut Vec<String>) -> Result<Proofs> {
    let mut proofs = Proofs::new();
    for folder in FOLDERS {
        for source in sources(&root.join(folder))? {
            for proof in proofs_in(&source.name(root), source.text(), findings) {
                proofs.entry(proof.key.clone()).or_default().push(proof);
            }
        }
    }
    Ok(proofs)
}

impl Table {
    fn text(&self, proofs: &Proofs, findings: &mut Vec<String>) -> Result<String> {
        let known: Vec<&str> =
            self.parts.iter().flat_map(|part| &part.rows).map(|row| row.key.as_str()).collect();
        let own = proofs.iter().filter(|(key, _)| (self.owns)(key));
        for (key, unknown) in own.filter(|(key, _)| !known.contains(&key.as_str())) {
            let row = self.row;
            findings.extend(unknown.iter().map(|proof| format!("{}: there is no {row} {key}", proof.test)));
        }
        let mut text = self.head.clone();
        for part in &self.parts {
            text.push_str(&part.heading);
            for row in &part.rows {
                let Some(proofs) = proofs.get(&row.key) else {
                    findings.push(format!("{}: no test proves {}", self.file, row.key));
                    continue;
                };
                // What several tests prove is said once.
                let mut sentences: Vec<&str> = Vec::new();
                for proof in proofs {
                    if !sentences.contains(&proof.sentence.as_str()) {
                        sentences.push(&proof.sentence);
                    }
                }
                let tests: Vec<String> = proofs.iter().map(|proof| format!("`{}`", proof.test)).collect();
                writeln!(text, "| {} | {} | {} |", row.shown, sentences.join(" "), tests.join("<br>"))?;
            }
        }
        Ok(text)
    }
}

fn proofs_in(shown: &str, text: &str, findings: &mut Vec<String>) -> Vec<Proof> {
    let mut proofs = Vec::new();
    let mut open: Vec<(String, String)> = Vec::new();
    let (mut is_test, mut goes_on) = (false, false);
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix(MARK) {
            let Some((keys, sentence)) = rest.split_once(": ") else {
                findings.push(format!("{shown}: {line:?} is not `{MARK}KEY: sentence`"));
                continue;
            };
            open.extend(keys.split(", ").map(|key| (key.to_owned(), sentence.to_owned())));
            goes_on = !sentence.ends_with('.');
        } else if let Some(rest) = line.strip_prefix("/// ").filter(|_| goes_on) {
            for (_, sentence) in &mut open {
                sentence.push(' ');
                sentence.push_str(rest);
            }
            goes_on = !rest.ends_with('.');
        } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(name) = line.strip_prefix("fn ").or(line.strip_prefix("async fn ")) {
            let name = name.split(['(', '<']).next().unwrap_or_default();
            if !open.is_empty() && !is_test {
                findings.push(format!("{shown}: {name} proves nothing: it is no test"));
            }
            let test = format!("{shown}: {name}");
            proofs.extend(open.drain(..).map(|(key, sentence)| Proof { key, sentence, test: test.clone() }));
            is_test = false;
        }
    }
    proofs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_ends_with_its_full_stop() {
        let text = "/// Proves a, b: One\n/// two.\n/// Not three.\n#[test]\nfn name() {}\n\
            /// Proves c: Four.\nfn helper() {}\n";
        let mut findings = Vec::new();
        let proofs = proofs_in("x.rs", text, &mut findings);
        let rows: Vec<_> = proofs
            .iter()
            .map(|proof| (proof.key.as_str(), proof.sentence.as_str(), proof.test.as_str()))
            .collect();
        let expected = [("a", "One two.", "x.rs: name"), ("b", "One two.", "x.rs: name")];
        assert_eq!(rows[..2], expected);
        assert_eq!(findings, ["x.rs: helper proves nothing: it is no test"]);
    }
}
