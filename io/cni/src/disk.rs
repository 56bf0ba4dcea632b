//! Files that are whole or absent, whatever instruction the process dies at. What is in them lives with their owners.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The few operations records need; a trait so that tests can let each of them fail.
pub trait Disk: Send + Sync + 'static {
    /// Names of the complete files.
    fn list(&self) -> io::Result<Vec<String>>;
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// After Ok the file holds `bytes`, also after a power cut. After Err it holds the old or the new ones.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// A file that is not there is success.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Puts an unreadable file aside for a person to look at.
    fn set_aside(&self, name: &str) -> io::Result<()>;
}

/// A directory of small files.
#[derive(Clone, Debug)]
pub struct Files {
    dir: PathBuf,
}

/// Starts the names of files that are not (yet, or any more) part of the directory's content.
const HIDDEN: char = '.';

impl Files {
    /// Creates the directory, and removes what an earlier process left half written.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let files = Self::create(dir)?;
        for name in names(&files.dir)? {
            if name.starts_with(".new-") {
                fs::remove_file(files.dir.join(name))?;
            }
        }
        Ok(files)
    }

    /// As `open`, for a directory that other processes write to at the same time.
    pub fn create(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let dir = dir.into();
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

impl Disk for Files {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = names(&self.dir)?;
        names.retain(|name| !name.starts_with(HIDDEN));
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.dir.join(name))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // Unique, so that two writers of one name cannot mix their bytes.
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let count = WRITES.fetch_add(1, Ordering::Relaxed);
        let new = self.dir.join(format!(".new-{}-{count}-{name}", std::process::id()));
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, self.dir.join(name))?;
        self.sync()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(name)) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn set_aside(&self, name: &str) -> io::Result<()> {
        fs::rename(self.dir.join(name), self.dir.join(format!(".unreadable-{name}")))?;
        self.sync()
    }
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        // Whatever is not UTF-8 was not written here.
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_written_files_are_never_seen_and_swept_at_open() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        files.write("a", b"1").unwrap();
        fs::write(dir.path().join(".new-1-b"), b"half").unwrap();
        assert_eq!(files.list().unwrap(), ["a"]);
        Files::open(dir.path()).unwrap();
        assert_eq!(names(dir.path()).unwrap(), ["a"]);
    }

    #[test]
    fn removal_is_idempotent_and_setting_aside_hides() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        files.write("a", b"1").unwrap();
        files.set_aside("a").unwrap();
        assert!(files.list().unwrap().is_empty());
        files.remove("a").unwrap();
    }
}
