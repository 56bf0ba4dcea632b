//! The structures and numbers of bpf/abi against their twins in core/abi and core/model: the C compiler is asked to
//! agree with every size, offset and number. The compiled object's BTF is compared in io/datapath's tests.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use weft_model::Reason;

const COMPILERS: &[&str] = &["clang-19", "clang"];

pub fn check(root: &Path) -> Result<Vec<String>> {
    let program = assertions();
    let errors = compile(&root.join("bpf"), &program)?;
    Ok(errors.lines().filter(|line| line.contains("error:")).map(str::to_owned).collect())
}

/// One assertion for each fact.
fn assertions() -> String {
    let mut text = String::from(
        "#include \"abi/config.h\"\n#include \"abi/endpoints.h\"\n#include \"abi/events.h\"\n#include \"abi/flows.h\"\n\
         #include \"abi/policies.h\"\n#include \"abi/routes.h\"\n#include \"abi/services.h\"\n",
    );
    let mut fact = |condition: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "_Static_assert({condition}, \"{condition}\");");
    };
    for layout in weft_abi::layouts() {
        let name = layout.name;
        fact(format!("sizeof(struct {name}) == {}", layout.size));
        for field in layout.fields {
            fact(format!("__builtin_offsetof(struct {name}, {}) == {}", field.name, field.offset));
            fact(format!("sizeof(((struct {name} *)0)->{}) == {}", field.name, field.size));
        }
    }
    for reason in Reason::ALL {
        fact(format!("WEFT_REASON_{} == {}", screaming(&format!("{reason:?}")), *reason as u8));
    }
    text
}

/// `DefaultDeny` as C writes it: `DEFAULT_DENY`.
fn screaming(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}

/// What the compiler has against the program; empty when it agrees.
fn compile(include: &Path, program: &str) -> Result<String> {
    for compiler in COMPILERS {
        let child = Command::new(compiler)
            .args(["-target", "bpf", "-fsyntax-only", "-x", "c", "-"])
            .arg("-I")
            .arg(include)
            .arg(format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH))
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else { continue };
        child.stdin.take().context("the compiler's input is a pipe")?.write_all(program.as_bytes())?;
        let output = child.wait_with_output()?;
        return Ok(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    bail!("no clang was found: install Debian's package clang-19")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_spelled_as_in_c() {
        assert_eq!(screaming("DefaultDeny"), "DEFAULT_DENY");
        assert_eq!(screaming("NotIp"), "NOT_IP");
    }

    #[test]
    fn every_fact_is_asked() {
        let text = assertions();
        let flow = weft_abi::layouts().into_iter().find(|layout| layout.name == "weft_flow").unwrap();
        assert!(text.contains(&format!("sizeof(struct weft_flow) == {}", flow.size)));
        assert!(text.contains("WEFT_REASON_LINK_LOCAL == 47"));
    }
}
