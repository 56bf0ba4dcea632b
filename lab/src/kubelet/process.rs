//! One process named so that a reused pid is never mistaken for it, and waiting for its end through a pidfd.
//! Starting processes is elsewhere.
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// A pid together with the boot-relative start time that makes it unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    pub pid: i32,
    pub start_ticks: u64,
}

impl ProcessId {
    /// Names the process that holds `pid` now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_ticks = start_ticks(&stat)
            .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time: {stat}")))?;
        Ok(Self { pid, start_ticks })
    }

    /// The calling process.
    pub fn own() -> io::Result<Self> {
        Self::of(i32::try_from(std::process::id()).map_err(io::Error::other)?)
    }

    pub fn is_alive(self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == self)
    }

    /// A pidfd for exactly this process, or `None` when it is gone.
    pub fn open(self) -> io::Result<Option<PidFd>> {
        let fd = match pidfd_open(self.pid) {
            Ok(fd) => fd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        // The start time is read after the pidfd is held: from here on the pid cannot change hands unseen.
        if !self.is_alive() {
            return Ok(None);
        }
        // SAFETY: the descriptor is owned by the result, which neither closes nor replaces it before its own end.
        Ok(Some(PidFd(unsafe { AsyncFd::register(fd) }?)))
    }
}

/// Field 22 of /proc/PID/stat; the command name before it may itself hold spaces and parentheses.
fn start_ticks(stat: &str) -> Option<u64> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Code(i32),
    Signal(i32),
    /// Not our child: somebody else reaped it.
    Unknown,
}

/// A process that can be waited for and signalled without a race on its pid.
pub struct PidFd(AsyncFd<OwnedFd>);

impl PidFd {
    /// Returns when the process has ended, and reaps it if it is our child.
    pub async fn ended(&self) -> io::Result<Ending> {
        let _guard = self.0.readable().await?;
        Ok(self.reap())
    }

    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let fd = self.0.get_ref().as_raw_fd();
        // SAFETY: a null siginfo asks the kernel to fill one in as kill(2) does.
        let rc = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<libc::siginfo_t>(), 0)
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn reap(&self) -> Ending {
        // SAFETY: an all-zero siginfo_t is a valid value, and waitid writes only into it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let id = self.0.get_ref().as_raw_fd().unsigned_abs();
        // SAFETY: `info` outlives the call.
        let rc = unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED | libc::WNOHANG) };
        if rc != 0 || info.si_signo == 0 {
            return Ending::Unknown;
        }
        // SAFETY: waitid succeeded, so the child fields of the union are set.
        let status = unsafe { info.si_status() };
        if info.si_code == libc::CLD_EXITED { Ending::Code(status) } else { Ending::Signal(status) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_read_past_an_awkward_command_name() {
        let stat = "42 (a ) b) S 1 42 42 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 987654 1 1";
        assert_eq!(start_ticks(stat), Some(987_654));
        assert_eq!(start_ticks("42 (x) S 1"), None);
    }

    #[test]
    fn another_start_time_is_another_process() {
        let own = ProcessId::own().expect("own stat is readable");
        assert!(own.is_alive());
        assert!(!ProcessId { start_ticks: own.start_ticks + 1, ..own }.is_alive());
    }

    #[tokio::test]
    async fn the_end_of_a_child_is_seen_with_its_code() {
        let mut child =
            std::process::Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().expect("sh starts");
        let id = ProcessId::of(child.id() as i32).expect("child not yet reaped");
        let pidfd = id.open().expect("pidfd").expect("child not yet reaped");
        assert_eq!(pidfd.ended().await.expect("wait"), Ending::Code(7));
        assert!(id.open().expect("pidfd").is_none());
        assert!(child.wait().is_err(), "it was reaped");
    }
}
