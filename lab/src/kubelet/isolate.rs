//! What the child of a monitor does between fork and exec: cgroup, namespaces, mounts, user, program.
//! It reports to the monitor through a pipe that exec closes.
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid};

use super::bundle::{Bundle, Mount, Program, Terminal, User, at};
use super::mounts;

/// Where programs are looked for when the container's environment does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where a stand-in says, by closing it, that it listens.
pub const READY_FD: i32 = 3;

/// The standard streams the child is to take over.
pub struct ChildStreams {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// One line of the pipe from the child.
#[derive(Debug, PartialEq, Eq)]
pub enum Report<'a> {
    Warning(&'a str),
    Failure(&'a str),
}

impl<'a> Report<'a> {
    pub fn parse(line: &'a str) -> Option<Self> {
        match line.split_once(' ')? {
            ("W", text) => Some(Self::Warning(text)),
            ("E", text) => Some(Self::Failure(text)),
            _ => None,
        }
    }
}

/// Turns this freshly forked, single-threaded process into the container. Returns only on failure.
pub fn become_container(
    bundle: &Bundle,
    scratch: &Path,
    streams: ChildStreams,
    ready: OwnedFd,
    report: OwnedFd,
) -> ! {
    let mut report = File::from(report);
    let error = match try_become(bundle, scratch, streams, ready, &mut report) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    // Nobody is left to tell if this write fails; the exit code still says it.
    let _ = writeln!(report, "E {}", one_line(&error.to_string()));
    // SAFETY: _exit ends this process without running the parent's exit handlers twice.
    unsafe { libc::_exit(128) }
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

fn try_become(
    bundle: &Bundle,
    scratch: &Path,
    streams: ChildStreams,
    ready: OwnedFd,
    report: &mut File,
) -> io::Result<Infallible> {
    let executable = match &bundle.program {
        // Opened before any volume can hide it.
        Program::StandIn { exe, .. } => Some(open_file(exe)?),
        Program::Host { .. } => None,
    };
    restore_signals();
    join_cgroup(&bundle.cgroup)?;
    enter_namespaces(bundle)?;
    mounts::enter_private_namespace().map_err(|error| naming("a private mount namespace", error))?;
    for warning in mounts::lay(&all_mounts(bundle), scratch)? {
        writeln!(report, "W {}", one_line(&warning))?;
    }
    take_streams(streams, bundle.terminal)?;
    if let Some(user) = &bundle.user {
        become_user(user)?;
    }
    enter_working_dir(bundle)?;
    execute(bundle, executable, ready)
}

fn naming(what: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn open_file(path: &Path) -> io::Result<OwnedFd> {
    open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(|errno| at(path, errno.into()))
}

/// Ignored signals survive exec; the container starts with the defaults.
fn restore_signals() {
    for signal in [libc::SIGPIPE, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: SIG_DFL installs no handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Moves the calling process into a v2 cgroup.
pub fn join_cgroup(cgroup: &Path) -> io::Result<()> {
    let procs = cgroup.join("cgroup.procs");
    std::fs::write(&procs, "0").map_err(|error| at(&procs, error))
}

fn enter_namespaces(bundle: &Bundle) -> io::Result<()> {
    if let Some(netns) = &bundle.netns {
        setns(open_file(netns)?, CloneFlags::CLONE_NEWNET).map_err(|errno| at(netns, errno.into()))?;
    }
    unshare(CloneFlags::CLONE_NEWUTS)?;
    nix::unistd::sethostname(&bundle.hostname).map_err(|errno| naming("hostname", errno.into()))
}

fn all_mounts(bundle: &Bundle) -> Vec<Mount> {
    let mut all = bundle.volumes.clone();
    // A volume of the pod's at the same place wins over the kubelet's file.
    let taken = |file: &Mount| bundle.volumes.iter().any(|volume| volume.target == file.target);
    all.extend(bundle.files.iter().filter(|file| !taken(file)).cloned());
    all
}

fn take_streams(streams: ChildStreams, terminal: Terminal) -> io::Result<()> {
    nix::unistd::setsid()?;
    if terminal == Terminal::Pty {
        // SAFETY: stdin is the terminal's slave side; a session leader without a terminal may claim it.
        if unsafe { libc::ioctl(streams.stdin.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
            return Err(naming("the terminal", io::Error::last_os_error()));
        }
    }
    nix::unistd::dup2_stdin(&streams.stdin)?;
    nix::unistd::dup2_stdout(&streams.stdout)?;
    nix::unistd::dup2_stderr(&streams.stderr)?;
    Ok(())
}

fn become_user(user: &User) -> io::Result<()> {
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    nix::unistd::setgroups(&groups)?;
    nix::unistd::setgid(Gid::from_raw(user.gid))?;
    nix::unistd::setuid(Uid::from_raw(user.uid))?;
    Ok(())
}

fn enter_working_dir(bundle: &Bundle) -> io::Result<()> {
    let dir = match (&bundle.working_dir, &bundle.program) {
        (Some(dir), Program::Host { .. }) => dir.as_path(),
        // An image's directory need not exist on the host, and a stand-in needs none.
        _ => Path::new("/"),
    };
    nix::unistd::chdir(dir)
        .map_err(|errno| naming(&format!("working directory {}", dir.display()), errno.into()))
}

fn execute(bundle: &Bundle, executable: Option<OwnedFd>, ready: OwnedFd) -> io::Result<Infallible> {
    let environment = bundle
        .env
        .iter()
        .map(|(name, value)| c_string(&format!("{name}={value}")))
        .collect::<io::Result<Vec<_>>>()?;
    match (&bundle.program, executable) {
        (Program::StandIn { argv, .. }, Some(executable)) => {
            keep_ready(&ready)?;
            let argv = argv.iter().map(|arg| c_string(arg)).collect::<io::Result<Vec<_>>>()?;
            Ok(nix::unistd::execveat(&executable, c"", &argv, &environment, AtFlags::AT_EMPTY_PATH)?)
        }
        (Program::Host { argv }, _) => {
            let program = find_program(argv.first().map(String::as_str).unwrap_or_default(), &bundle.env)?;
            let c_argv = argv.iter().map(|arg| c_string(arg)).collect::<io::Result<Vec<_>>>()?;
            let path = c_string(&program.to_string_lossy())?;
            nix::unistd::execve(&path, &c_argv, &environment).map_err(|errno| at(&program, errno.into()))
        }
        (Program::StandIn { exe, .. }, None) => {
            Err(io::Error::other(format!("{} was not opened", exe.display())))
        }
    }
}

fn keep_ready(ready: &OwnedFd) -> io::Result<()> {
    // SAFETY: READY_FD is a plain number above the standard streams; whatever held it was close-on-exec.
    if unsafe { libc::dup3(ready.as_raw_fd(), READY_FD, 0) } >= 0 {
        return Ok(());
    }
    // dup3 refuses equal numbers: then only the close-on-exec mark has to go.
    if ready.as_raw_fd() == READY_FD {
        nix::fcntl::fcntl(ready, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::other(format!("{text:?} has a zero byte")))
}

/// Finds a program as a shell would, in the container's own PATH.
pub fn find_program(name: &str, env: &[(String, String)]) -> io::Result<PathBuf> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let path = env.iter().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, value)| value.as_str());
    path.split(':')
        .map(|dir| Path::new(dir).join(name))
        .find(|candidate| {
            nix::unistd::access(candidate, nix::unistd::AccessFlags::X_OK).is_ok() && candidate.is_file()
        })
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("{name:?}: no such program in the host's PATH {path}"),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_the_containers_path_only() {
        let env = vec![("PATH".to_owned(), "/nowhere:/bin".to_owned())];
        assert_eq!(find_program("sh", &env).expect("sh"), Path::new("/bin/sh"));
        let env = vec![("PATH".to_owned(), "/nowhere".to_owned())];
        assert_eq!(find_program("sh", &env).expect_err("not there").kind(), io::ErrorKind::NotFound);
        assert_eq!(find_program("./x", &env).expect("a path is taken as it is"), Path::new("./x"));
    }

    #[test]
    fn reports_keep_their_text() {
        assert_eq!(Report::parse("W a b"), Some(Report::Warning("a b")));
        assert_eq!(Report::parse("E no"), Some(Report::Failure("no")));
        assert_eq!(Report::parse("x"), None);
    }
}
