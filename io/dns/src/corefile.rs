//! A CoreDNS Corefile read into settings, and what of it cannot be carried over, line by line. Pure: files that it
//! imports come through an argument. What each plugin becomes lives in `plugins`, the text's structure in `syntax`.

mod plugins;
mod syntax;

use std::fmt;

use crate::settings::Settings;

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// There is nothing to set: it is so here, or means nothing here.
    Needless,
    /// Clients may see a difference.
    Lost,
}

/// One line that did not become settings, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub file: String,
    pub line: usize,
    pub text: String,
    pub fate: Fate,
    pub reason: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fate = match self.fate {
            Fate::Needless => "not needed",
            Fate::Lost => "NOT CARRIED OVER",
        };
        let Self { file, line, text, reason, .. } = self;
        write!(out, "{file}:{line}: {text}: {fate}: {reason}")
    }
}

/// What a Corefile says, in the terms of settings.
#[derive(Clone, Debug)]
pub struct Imported {
    pub settings: Settings,
    /// By file and line.
    pub findings: Vec<Finding>,
}

impl Imported {
    /// Whether clients may see a difference to what the file asked for.
    pub fn is_whole(&self) -> bool {
        self.findings.iter().all(|finding| finding.fate == Fate::Needless)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {reason}")]
pub struct CorefileError {
    pub file: String,
    pub line: usize,
    pub reason: String,
}

/// A file's name and its text.
pub type NamedText = (String, String);

/// Reads `text`, which is called `file` in findings. `load` gives the files that an `import` names, which may be a
/// pattern; none is an answer, and an error is why they cannot be had.
pub fn read(
    file: &str,
    text: &str,
    cluster_domain: &str,
    load: &mut dyn FnMut(&str) -> Result<Vec<NamedText>, String>,
) -> Result<Imported, CorefileError> {
    let blocks = syntax::parse(file, text, load)?;
    Ok(plugins::carry_over(&blocks, cluster_domain))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nothing(_: &str) -> Result<Vec<NamedText>, String> {
        Ok(Vec::new())
    }

    fn word() -> impl Strategy<Value = String> {
        let words = vec![
            ".",
            ".:53",
            "corp.example",
            "{",
            "}",
            "{\n",
            "}\n",
            "\n",
            "forward",
            "cache",
            "hosts",
            "kubernetes",
            "cluster.local",
            "import",
            "192.0.2.1",
            "tls://192.0.2.1",
            "policy",
            "round_robin",
            "prefetch",
            "10",
            "success",
            "serve_stale",
            "1h",
            "except",
            "\"",
            "#",
            "(snip)",
            "snip",
            "ttl",
            "fallthrough",
            "rewrite",
            "10.0.0.0/8",
            "bind",
            "169.254.20.10",
            "{$HOME}",
            "é",
            "\\",
            ",",
            "forward . 192.0.2.1\n",
            ". {\n",
        ];
        prop::sample::select(words).prop_map(str::to_owned)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        /// Whatever is written, it is an error with a place in the file, or settings that hold.
        #[test]
        fn any_text_gives_settings_that_hold_or_an_error_with_its_line(words in prop::collection::vec(word(), 0..40)) {
            let text = words.join(" ");
            let lines = text.lines().count() + 1;
            match read("Corefile", &text, "cluster.local", &mut nothing) {
                Ok(imported) => {
                    prop_assert_eq!(imported.settings.check(), Ok(()));
                    let again = Settings::parse(&imported.settings.to_yaml());
                    prop_assert_eq!(again, Ok(imported.settings));
                    prop_assert!(imported.findings.iter().all(|finding| (1..=lines).contains(&finding.line)));
                }
                Err(error) => prop_assert!((1..=lines).contains(&error.line)),
            }
        }

        #[test]
        fn noise_makes_nothing_panic(noise in "\\PC{0,200}") {
            let _ = read("Corefile", &noise, "cluster.local", &mut nothing);
        }
    }
}
