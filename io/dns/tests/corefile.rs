//! Corefiles beside what they become: settings, then a line for each line that did not. `WEFT_WRITE_GOLDEN=1` writes
//! what there is now, to be read before it is kept.

use std::path::Path;

use weft_dns::Settings;
use weft_dns::corefile::{Imported, read};

fn import(name: &str) -> Imported {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corefile").join(format!("{name}.corefile"));
    let mut load = |file: &str| match file {
        "*.server" => Ok(vec![(
            "extra.server".to_owned(),
            "lab.example {\n forward . 203.0.113.1\n erratic\n}\n".to_owned(),
        )]),
        other => Err(format!("{other} is not there")),
    };
    read("Corefile", &std::fs::read_to_string(path).unwrap(), "cluster.local", &mut load).unwrap()
}

fn compare(name: &str) -> Imported {
    let imported = import(name);
    let mut text = imported.settings.to_yaml();
    text.push_str("---\n");
    for finding in &imported.findings {
        text.push_str(&format!("{finding}\n"));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corefile").join(format!("{name}.expected"));
    if std::env::var_os("WEFT_WRITE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{}", path.display());
    let again = Settings::parse(&imported.settings.to_yaml()).unwrap();
    assert_eq!(again, imported.settings, "the printed settings are read back the same");
    imported
}

#[test]
fn what_an_installer_writes_is_carried_over_whole() {
    assert!(compare("usual").is_whole());
}

#[test]
fn a_node_local_cache_becomes_addresses_to_listen_on() {
    assert!(!compare("node-local").is_whole());
}

#[test]
fn stubs_hosts_and_encrypted_servers_are_carried_over() {
    assert!(!compare("stubs").is_whole());
}

#[test]
fn what_cannot_be_carried_over_is_named_line_by_line() {
    assert!(!compare("strange").is_whole());
}
