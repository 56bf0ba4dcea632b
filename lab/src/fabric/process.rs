//! One child process: start it in its namespace and cgroup, remember it by pid and start time, end it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// How to start one process of the fabric.
#[derive(Clone, Debug)]
pub struct Program {
    /// Unique in the fabric: names its log, its record and its configuration.
    pub name: String,
    pub exe: PathBuf,
    pub args: Vec<String>,
    /// The network namespace to start in; `None` is the machine's own.
    pub netns: Option<PathBuf>,
    pub cgroup: PathBuf,
    pub log: PathBuf,
}

impl Program {
    /// Starts it. It outlives this process: that is what lets a killed supervisor leave a working fabric.
    pub fn start(&self) -> io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.exe);
        command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A group of its own: a Ctrl-C at the terminal is for the supervisor, which ends the rest in order.
            .process_group(0);
        enter(command.as_std_mut(), self.netns.as_deref(), Some(&self.cgroup))?;
        command.spawn()
    }
}

/// Has a command start inside a network namespace and a cgroup.
pub fn enter(
    command: &mut std::process::Command,
    netns: Option<&Path>,
    cgroup: Option<&Path>,
) -> io::Result<()> {
    let members = |cgroup: &Path| OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"));
    let members = cgroup.map(members).transpose()?;
    let netns = netns.map(File::open).transpose()?;
    let enter = move || {
        let joined = members
            .as_ref()
            .is_none_or(|members| unsafe { libc::write(members.as_raw_fd(), b"0".as_ptr().cast(), 1) } == 1);
        let inside = || {
            netns
                .as_ref()
                .is_none_or(|netns| unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } == 0)
        };
        if joined && inside() { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec only write(2) and setns(2) on already open descriptors are called.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub pid: i32,
    start: u64,
}

impl Identity {
    /// The identity of a process alive now.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (state, start) = state_and_start(&stat)?;
        (state != 'Z' && state != 'X').then_some(Self { pid, start })
    }

    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Sends a signal if it is still the same process.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::Error::ESRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    pub fn record(&self, directory: &Path, name: &str) -> io::Result<()> {
        std::fs::create_dir_all(directory)?;
        // The dot keeps half-written records out of `recorded`.
        let unfinished = directory.join(format!(".{name}"));
        std::fs::write(&unfinished, format!("{} {}\n", self.pid, self.start))?;
        std::fs::rename(unfinished, directory.join(name))
    }

    fn parse(text: &str) -> Option<Self> {
        let (pid, start) = text.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }
}

/// The recorded processes, by name, whether alive or not.
pub fn recorded(directory: &Path) -> Vec<(String, Identity)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<(String, Identity)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let identity = Identity::parse(&std::fs::read_to_string(entry.path()).ok()?)?;
            (!name.starts_with('.')).then_some((name, identity))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// State and start time out of `/proc/PID/stat`; the command's name in it may hold spaces and brackets.
fn state_and_start(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3, the start time field 22.
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_state_and_start_past_an_odd_command_name() {
        let stat =
            "42 (a ) b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 10 18446744073709551615";
        assert_eq!(state_and_start(stat), Some(('S', 98765)));
        assert_eq!(state_and_start("garbage"), None);
    }

    #[test]
    fn a_process_with_the_same_pid_and_another_start_is_another() {
        let me = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        let other = Identity { start: me.start + 1, ..me };
        assert!(!other.is_alive());
        other.signal(Signal::SIGKILL).unwrap();
    }

    #[test]
    fn records_are_read_back_and_broken_ones_ignored() {
        let directory = std::env::temp_dir().join(format!("weft-records-{}", std::process::id()));
        let identity = Identity { pid: 7, start: 99 };
        identity.record(&directory, "agent.node1").unwrap();
        std::fs::write(directory.join("broken"), "seven").unwrap();
        assert_eq!(recorded(&directory), [("agent.node1".to_owned(), identity)]);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(recorded(&directory), []);
    }
}
