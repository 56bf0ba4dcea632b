//! Compiles bpf/weft.bpf.c with clang for the crate to embed, and digests what decides the maps' layout.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const OLDEST_CLANG: u32 = 15;
const CANDIDATES: &[&str] =
    &["clang-19", "clang-21", "clang-20", "clang-18", "clang-17", "clang-16", "clang-15", "clang"];

/// Tables that outlive a change of the others' layout, and what decides their own.
const KEPT_TABLES: &[(&str, &str, &[&str])] = &[
    (
        "nat",
        "WEFT_LAYOUT_NAT",
        &[
            "struct weft_addr",
            "struct weft_nat_key",
            "struct weft_nat",
            "enum weft_nat_flags",
            "enum weft_flow_tcp",
        ],
    ),
    (
        "affinities",
        "WEFT_LAYOUT_AFFINITIES",
        &["struct weft_addr", "struct weft_affinity_key", "struct weft_affinity", "struct weft_backend"],
    ),
];

fn main() {
    if let Err(message) = build() {
        eprintln!("{message}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let root =
        PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|error| error.to_string())?).join("../../bpf");
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|error| error.to_string())?).join("weft.bpf.o");
    println!("cargo:rerun-if-changed={}", root.display());
    println!("cargo:rerun-if-env-changed=WEFT_CLANG");
    compile(&find_clang()?, &root, &out)?;
    println!("cargo:rustc-env=WEFT_BPF_OBJECT={}", out.display());
    println!("cargo:rustc-env=WEFT_LAYOUT={}", layout_digest(&root)?);
    for (table, variable, types) in KEPT_TABLES {
        println!("cargo:rustc-env={variable}={}", table_digest(&root, table, types)?);
    }
    Ok(())
}

fn find_clang() -> Result<String, String> {
    if let Ok(chosen) = env::var("WEFT_CLANG") {
        return Ok(chosen);
    }
    CANDIDATES
        .iter()
        .find(|name| clang_version(name).is_some_and(|version| version >= OLDEST_CLANG))
        .map(|name| (*name).to_owned())
        .ok_or_else(|| {
            format!(
                "no clang {OLDEST_CLANG} or newer was found to compile bpf/ with; install Debian's package clang-19 \
                 (apt-get install clang-19), or name a compiler in WEFT_CLANG"
            )
        })
}

fn clang_version(name: &str) -> Option<u32> {
    let output = Command::new(name).arg("-dumpversion").output().ok()?;
    String::from_utf8(output.stdout).ok()?.split('.').next()?.trim().parse().ok()
}

fn compile(clang: &str, root: &Path, out: &Path) -> Result<(), String> {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let output = Command::new(clang)
        .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Wextra", "-Werror"])
        .arg(format!("-I/usr/include/{architecture}-linux-gnu"))
        .arg("-c")
        .arg(root.join("weft.bpf.c"))
        .arg("-o")
        .arg(out)
        .output()
        .map_err(|error| format!("{clang} could not be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    let hint = if errors.contains("file not found") {
        "\nHeaders are missing: install Debian's packages libbpf-dev and linux-libc-dev."
    } else {
        ""
    };
    Err(format!("{clang} could not compile {}:\n{errors}{hint}", root.join("weft.bpf.c").display()))
}

/// FNV-1a over everything that shapes a map: a pinned map of another digest is not reused.
fn layout_digest(root: &Path) -> Result<u64, String> {
    let mut files: Vec<PathBuf> = fs::read_dir(root.join("abi"))
        .map_err(|error| format!("{}: {error}", root.join("abi").display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect();
    files.push(root.join("lib/maps.h"));
    files.sort();
    let mut text = String::new();
    for file in files {
        text += &read(&file)?;
    }
    Ok(digest(&text))
}

/// Over the types of one table and its line in lib/maps.h.
fn table_digest(root: &Path, table: &str, types: &[&str]) -> Result<u64, String> {
    let mut abi = String::new();
    for file in ["endpoints", "flows", "services"] {
        abi += &read(&root.join(format!("abi/{file}.h")))?;
    }
    let maps = read(&root.join("lib/maps.h"))?;
    let start = format!("WEFT_MAP({table},");
    let line = maps.lines().find(|line| line.starts_with(&start));
    let mut text = line.ok_or_else(|| format!("lib/maps.h has no map {table}"))?.to_owned();
    for name in types {
        let body = abi.split_once(&format!("\n{name} {{")).and_then(|(_, rest)| rest.split_once("\n};"));
        text += body.ok_or_else(|| format!("abi/ has no {name}"))?.0;
    }
    Ok(digest(&text))
}

fn read(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))
}

fn digest(text: &str) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64;
    text.bytes().fold(start, |digest, byte| (digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
