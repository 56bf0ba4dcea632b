//! Waiting for descriptors, and waking who waits: the few calls of epoll and eventfd that serving threads need.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

const EVENTS: usize = 64;

pub struct Poll {
    epoll: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// What a descriptor is watched for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    pub const READ: Self = Self { read: true, write: false };

    fn events(self) -> u32 {
        let mut events = 0;
        if self.read {
            events |= libc::EPOLLIN;
        }
        if self.write {
            events |= libc::EPOLLOUT;
        }
        events as u32
    }
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers; what it returns is checked.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self { epoll, events: Vec::with_capacity(EVENTS) })
    }

    pub fn add(&self, descriptor: &impl AsRawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, descriptor, token, interest)
    }

    pub fn change(&self, descriptor: &impl AsRawFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, descriptor, token, interest)
    }

    pub fn remove(&self, descriptor: &impl AsRawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_DEL, descriptor, 0, Interest::default())
    }

    fn control(
        &self,
        operation: libc::c_int,
        descriptor: &impl AsRawFd,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.events(), u64: token };
        // SAFETY: both descriptors are open, and the event lives through the call.
        let result = unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), operation, descriptor.as_raw_fd(), &raw mut event)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Tokens of descriptors that are ready or broken; none when the time is over.
    pub fn wait(&mut self, time: Duration, tokens: &mut Vec<u64>) -> io::Result<()> {
        tokens.clear();
        let millis = libc::c_int::try_from(time.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the buffer has room for EVENTS events; as many as the kernel says were written are then valid.
        let count = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), self.events.as_mut_ptr(), EVENTS as libc::c_int, millis)
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        };
        // SAFETY: see above.
        unsafe { self.events.set_len(count.min(EVENTS)) };
        tokens.extend(self.events.iter().map(|event| event.u64));
        Ok(())
    }
}

/// Wakes a thread from another one.
pub struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers; what it returns is checked.
        owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).map(Self)
    }

    pub fn ring(&self) {
        // A bell that has rung as often as it can count rings already.
        let _ = nix::unistd::write(&self.0, &1u64.to_ne_bytes());
    }

    pub fn silence(&self) {
        let _ = nix::unistd::read(&self.0, &mut [0; 8]);
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

fn owned(descriptor: libc::c_int) -> io::Result<OwnedFd> {
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened it for this process, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
