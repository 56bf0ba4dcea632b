//! Whether the kernel has SCTP (RFC 9260). Loading a module for it is the kernel's own business.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// An error is one that says nothing about it, such as a lack of descriptors.
pub fn kernel_has_sctp() -> io::Result<bool> {
    // SAFETY: a plain system call; the descriptor is owned by nobody else.
    let opened = unsafe {
        let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        match libc::socket(libc::AF_INET, flags, libc::IPPROTO_SCTP) {
            fd if fd < 0 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    };
    match opened {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::ESOCKTNOSUPPORT)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that was built with it, or has loaded it, lists it.
    #[test]
    fn it_agrees_with_what_the_kernel_lists() {
        let has = kernel_has_sctp().unwrap();
        let listed = std::fs::read_to_string("/proc/net/protocols").unwrap();
        assert_eq!(listed.lines().any(|line| line.starts_with("SCTP ")), has);
    }
}
