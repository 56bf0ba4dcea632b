//! Ending connected datagram sockets whose backend is gone, by the iterator program. Which are ended lives in
//! bpf/end_sockets.bpf.c.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;

use crate::datapath::Datapath;
use crate::error::OpenError;
use crate::programs::bpf_error;

const PROGRAM: &str = "end_sockets";

impl Datapath {
    /// Among the sockets of the calling thread's network namespace.
    pub(crate) fn end_sockets(&self) -> Result<(), OpenError> {
        let program = self.programs().program(PROGRAM)?;
        // SAFETY: the descriptor is valid for the call, and no options are passed.
        let link = unsafe {
            libbpf_sys::bpf_link_create(program.as_raw_fd(), 0, libbpf_sys::BPF_TRACE_ITER, std::ptr::null())
        };
        let link = owned(link).map_err(|source| bpf_error(PROGRAM, "attach", source))?;
        // SAFETY: the descriptor is valid for the call.
        let run = unsafe { libbpf_sys::bpf_iter_create(link.as_raw_fd()) };
        let run = owned(run).map_err(|source| bpf_error(PROGRAM, "create", source))?;
        let mut output = Vec::new();
        File::from(run).read_to_end(&mut output).map_err(|source| bpf_error(PROGRAM, "run", source))?;
        Ok(())
    }
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
