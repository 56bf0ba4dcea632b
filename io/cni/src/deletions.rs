//! Deletions that came while the agent was away: written by the plugin, carried out by the agent later.

use std::io;
use std::path::{Path, PathBuf};

use crate::wire::DetachRequest;
use crate::{Disk, Files, Owner};

/// A directory with one file per deletion.
#[derive(Clone, Debug)]
pub struct Deletions {
    files: Files,
}

impl Deletions {
    /// The agent's side: `state_dir` is where it keeps its state.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        Ok(Self { files: Files::open(directory(state_dir))? })
    }

    /// The plugin's side. None where the agent's directory is gone: its records went with it, so nothing can leak.
    pub fn beside(agent_socket: &Path) -> io::Result<Option<Self>> {
        match agent_socket.parent() {
            Some(home) if home.is_dir() => {
                Ok(Some(Self { files: Files::create(directory(&home.join("agent")))? }))
            }
            _ => Ok(None),
        }
    }

    pub fn queue(&self, request: &DetachRequest) -> io::Result<()> {
        self.files.write(&request.owner.file_name(), &serde_json::to_vec(request)?)
    }

    pub fn contains(&self, owner: &Owner) -> io::Result<bool> {
        self.files.path().join(owner.file_name()).try_exists()
    }

    pub fn done(&self, owner: &Owner) -> io::Result<()> {
        self.files.remove(&owner.file_name())
    }

    /// All that wait; a file that cannot be read is put aside and named in the log.
    pub fn pending(&self) -> io::Result<Vec<DetachRequest>> {
        let mut requests = Vec::new();
        for name in self.files.list()? {
            match serde_json::from_slice(&self.files.read(&name)?) {
                Ok(request) => requests.push(request),
                Err(error) => {
                    tracing::warn!(file = %self.files.path().join(&name).display(), %error, "queued deletion is unreadable: put aside");
                    self.files.set_aside(&name)?;
                }
            }
        }
        Ok(requests)
    }
}

fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("cni-deletions")
}
