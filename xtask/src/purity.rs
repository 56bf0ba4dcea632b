//! Core reads no clock, file, socket, environment or process: what cannot be seen in its dependencies is seen here.

use std::path::Path;

use anyhow::Result;

use crate::files::{self, Source};

const IMPURE: [&str; 12] = [
    "std::fs",
    "std::env::",
    "std::process",
    "std::os::",
    "std::thread",
    "SystemTime::now",
    "Instant::now",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
];

pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for source in files::sources(&root.join("core"))? {
        if source.is_rust() && !source.is_test() && !source.is_example() {
            findings.extend(impure_lines(&source).into_iter().map(|(line, word)| {
                format!("{}:{line}: {word}: core is pure; make it an argument", source.name(root))
            }));
        }
    }
    Ok(findings)
}

fn impure_lines(source: &Source) -> Vec<(usize, &'static str)> {
    let code = |line: &str| !line.trim_start().starts_with("//");
    source
        .lines_without_tests()
        .enumerate()
        .filter(|(_, line)| code(line))
        .filter_map(|(index, line)| Some((index + 1, *IMPURE.iter().find(|word| line.contains(**word))?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_and_files_are_found_except_in_tests_and_comments() {
        let text = "//! x\n// std::fs is not used\nlet now = Instant::now();\nuse std::fs;\n#[cfg(test)]\nmod tests {\nuse std::fs;\n";
        let source = Source::new("core/x/src/lib.rs", text);
        assert_eq!(impure_lines(&source), [(3, "Instant::now"), (4, "std::fs")]);
    }
}
