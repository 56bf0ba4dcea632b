//! How a test says that it could not run: once, with the reason, where the summary of `make test` finds it.
//! Not a crate: a test includes it with `#[path = "../../../tests/skip.rs"] mod skip;` and calls `skip::skip`.

use std::io::Write;

/// Prints `SKIP <test>: <reason>`, also into the file that `make test` names; the test then returns.
pub fn skip(test: &str, reason: impl std::fmt::Display) {
    let line = format!("SKIP {test}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("WEFT_SKIP_LOG") {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path);
        // One write per line, so that tests in parallel do not mix theirs.
        log.and_then(|mut log| log.write_all(line.as_bytes()))
            .expect("WEFT_SKIP_LOG names a file tests can append to");
    }
}
