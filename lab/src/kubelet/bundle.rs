//! What the kubelet tells a container's monitor, and what the monitor writes back: the files of one attempt
//! at running one container. No process is started here.
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::process::ProcessId;

/// Everything needed to run one attempt of one container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bundle {
    pub container: String,
    /// The v2 cgroup of this container; everything in it dies with the container.
    pub cgroup: PathBuf,
    /// The v2 cgroup of the pod's monitors.
    pub monitor_cgroup: PathBuf,
    /// The pod's network namespace; absent for a pod in the node's own.
    pub netns: Option<PathBuf>,
    pub hostname: String,
    /// Files laid over the host's, such as /etc/resolv.conf.
    pub files: Vec<Mount>,
    pub volumes: Vec<Mount>,
    pub program: Program,
    pub env: Vec<(String, String)>,
    pub working_dir: Option<PathBuf>,
    pub user: Option<User>,
    pub stdin: Stdin,
    pub terminal: Terminal,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// A command of the host's file system.
    Host { argv: Vec<String> },
    /// This program itself, which answers in place of an image that cannot be run here.
    StandIn { exe: PathBuf, argv: Vec<String> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    Closed,
    Open,
    /// Closed for good when the first client that attached goes away.
    OpenOnce,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Terminal {
    None,
    Pty,
}

/// Written by the monitor once the container's program runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    pub process: ProcessId,
    pub monitor: ProcessId,
    pub started_at: Timestamp,
}

/// Written by the monitor once the container has ended, or could not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: i32,
    pub signal: Option<i32>,
    pub reason: String,
    pub message: Option<String>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
}

impl Exit {
    pub fn success(&self) -> bool {
        self.code == 0
    }

    /// For a container whose end nobody saw.
    pub fn unseen(message: &str, started_at: Option<Timestamp>, now: Timestamp) -> Self {
        Self {
            code: 137,
            signal: None,
            reason: "ContainerStatusUnknown".into(),
            message: Some(message.into()),
            started_at,
            finished_at: now,
        }
    }
}

/// What the monitor says, one line each, to the kubelet that started it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Handshake {
    /// The container runs without something it asked for.
    Warning(String),
    Started(Started),
    Failed(Exit),
}

/// The files of one attempt.
#[derive(Clone, Debug)]
pub struct AttemptDir(pub PathBuf);

impl AttemptDir {
    pub fn bundle(&self) -> PathBuf {
        self.0.join("bundle.json")
    }
    pub fn started(&self) -> PathBuf {
        self.0.join("started.json")
    }
    pub fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }
    /// The name of the socket that `attach` speaks to, inside this directory.
    pub const ATTACH: &str = "attach.sock";
}

/// Reads a JSON file; `None` when it does not exist.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(path, error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| at(path, io::Error::other(error)))
}

/// Writes a JSON file so that a reader, or a restart, sees the old one or the new one and nothing between.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let text = serde_json::to_vec(value).map_err(|error| at(path, io::Error::other(error)))?;
    write_atomically(path, &text)
}

pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let write = || {
        let mut file = std::fs::File::create(&partial)?;
        file.write_all(bytes)?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|error| at(path, error))
}

/// Names the path in an I/O error.
pub fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
