//! What a node answers for, written down for its next agent.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weft_model::Addr;

#[derive(Serialize, Deserialize, Default)]
struct Record {
    boot: String,
    addresses: BTreeSet<Addr>,
}

pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("announced.json")
}

/// What this node answered for when its agent stopped, if the machine has not started anew since.
pub fn held_before(state_dir: &Path) -> BTreeSet<Addr> {
    let file = file(state_dir);
    let read = std::fs::read(&file).and_then(|text| Ok(serde_json::from_slice::<Record>(&text)?));
    match read {
        Ok(record) if record.boot == boot() => record.addresses,
        Ok(_) => BTreeSet::new(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
        Err(error) => {
            tracing::warn!(%error, "{}: what was announced before is not known", file.display());
            BTreeSet::new()
        }
    }
}

/// Whole or not at all, also when the machine stops meanwhile.
pub fn write(file: &Path, held: &BTreeSet<Addr>) -> io::Result<()> {
    let record = Record { boot: boot(), addresses: held.clone() };
    let next = file.with_extension("next");
    let mut written = std::fs::File::create(&next)?;
    written.write_all(&serde_json::to_vec(&record)?)?;
    written.sync_all()?;
    std::fs::rename(&next, file)
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A write that cannot be finished, for want of room or time, leaves what was there.
    #[test]
    fn what_was_written_is_read_and_stays_when_the_next_write_fails() {
        let dir = tempfile::tempdir().unwrap();
        let held: BTreeSet<Addr> = ["192.0.2.10", "fd00::10"].map(|text| text.parse().unwrap()).into();
        assert!(held_before(dir.path()).is_empty());
        write(&file(dir.path()), &held).unwrap();
        assert_eq!(held_before(dir.path()), held);
        // A folder in the place of the file that is written first.
        std::fs::create_dir(file(dir.path()).with_extension("next")).unwrap();
        assert!(write(&file(dir.path()), &BTreeSet::new()).is_err());
        assert_eq!(held_before(dir.path()), held);
    }

    #[test]
    fn another_boot_and_a_broken_file_are_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for text in [r#"{"boot":"another","addresses":["192.0.2.10"]}"#, r#"{"boot":"#] {
            std::fs::write(file(dir.path()), text).unwrap();
            assert!(held_before(dir.path()).is_empty(), "{text}");
        }
    }
}
