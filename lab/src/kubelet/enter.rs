//! Commands inside a running container: its namespaces, cgroup, environment and user. Used by exec, probes, hooks.
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::bundle::{AttemptDir, Bundle, Program, Started, Terminal, User, at, read_json};
use super::process::ProcessId;

/// A running container that can be entered.
#[derive(Clone, Debug)]
pub struct Entry {
    process: ProcessId,
    cgroup: PathBuf,
    env: Vec<(String, String)>,
    working_dir: PathBuf,
    user: Option<User>,
}

/// What a command inside a container came to.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub text: String,
}

impl Entry {
    /// The container whose attempt has its files in `dir`.
    pub fn of(dir: &AttemptDir) -> io::Result<Self> {
        let gone = || io::Error::other("the container is not running");
        let bundle: Bundle = read_json(&dir.bundle())?.ok_or_else(gone)?;
        let started: Started = read_json(&dir.started())?.ok_or_else(gone)?;
        let working_dir = match (bundle.program, bundle.working_dir) {
            (Program::Host { .. }, Some(dir)) => dir,
            _ => PathBuf::from("/"),
        };
        Ok(Self {
            process: started.process,
            cgroup: bundle.cgroup,
            env: bundle.env,
            working_dir,
            user: bundle.user,
        })
    }

    /// A command that will run inside the container, in a session of its own.
    pub fn command(&self, argv: &[String], terminal: Terminal) -> io::Result<Command> {
        let (program, args) = argv.split_first().ok_or_else(|| io::Error::other("the command is empty"))?;
        let pidfd = pidfd(self.process)?;
        let procs = self.cgroup.join("cgroup.procs");
        let procs = File::options().write(true).open(&procs).map_err(|error| at(&procs, error))?;
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        let dir = std::ffi::CString::new(self.working_dir.as_os_str().as_encoded_bytes())?;
        let user = self.user.clone();
        // SAFETY: between fork and exec this makes system calls only, on values prepared before the fork.
        unsafe {
            command.pre_exec(move || enter(&pidfd, &procs, &dir, user.as_ref(), terminal));
        }
        Ok(command)
    }

    /// Runs a command to its end, within `limit`, with its output.
    pub async fn run(&self, argv: &[String], limit: Duration) -> io::Result<Output> {
        use std::process::Stdio;
        let mut command = self.command(argv, Terminal::None)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut command = tokio::process::Command::from(command);
        let child = command.kill_on_drop(true).spawn()?;
        let group = child.id().map(SessionKill);
        let output = tokio::time::timeout(limit, child.wait_with_output()).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("no end within {} s", limit.as_secs()))
        })??;
        drop(group);
        let text = [output.stdout, output.stderr].concat();
        let code = exit_code(output.status);
        Ok(Output { code, text: String::from_utf8_lossy(&text).trim().chars().take(1024).collect() })
    }
}

/// The code as a shell tells it.
pub fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(128)
}

/// Ends what a command left in its session, so that a probe that hangs leaves nothing behind.
pub struct SessionKill(pub u32);

impl Drop for SessionKill {
    fn drop(&mut self) {
        let Ok(group) = i32::try_from(self.0) else { return };
        // SAFETY: a signal to a process group; that the group is gone already is fine.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}

fn pidfd(process: ProcessId) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.pid, 0) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if process.is_alive() { Ok(fd) } else { Err(io::Error::other("the container is not running")) }
}

fn check(rc: libc::c_int) -> io::Result<()> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn enter(
    pidfd: &OwnedFd,
    procs: &File,
    dir: &std::ffi::CStr,
    user: Option<&User>,
    terminal: Terminal,
) -> io::Result<()> {
    io::Write::write_all(&mut &*procs, b"0")?;
    let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
    // SAFETY: plain system calls on descriptors and strings that outlive them.
    unsafe {
        check(libc::setns(pidfd.as_raw_fd(), namespaces))?;
        check(libc::setsid())?;
        if terminal == Terminal::Pty {
            check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
        check(libc::chdir(dir.as_ptr()))?;
        if let Some(user) = user {
            check(libc::setgroups(user.groups.len(), user.groups.as_ptr()))?;
            check(libc::setgid(user.gid))?;
            check(libc::setuid(user.uid))?;
        }
    }
    Ok(())
}
