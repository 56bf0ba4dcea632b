//! Pinned BPF links: made once, their program replaced ever after, so that no packet passes unseen.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libbpf_rs::libbpf_sys;

use crate::error::OpenError;
use crate::programs::{bpf_error, raw};

/// Where a program is attached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    TcxIngress { ifindex: u32 },
    TcxEgress { ifindex: u32 },
    Cgroup { directory: BorrowedFd<'a>, kind: libbpf_sys::bpf_attach_type },
}

/// The program runs at `place` when this returns; the link is pinned at `pin`.
pub(crate) fn ensure(pin: &Path, program: BorrowedFd<'_>, place: Place<'_>) -> Result<(), OpenError> {
    let name = pin.to_string_lossy().into_owned();
    match replace(pin, program, place) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if is_dead(&error) => unpin(pin)?,
        Err(source) => return Err(bpf_error(&name, "replace the program of the link", source)),
    }
    let link = create(program, place).map_err(|source| bpf_error(&name, "attach", source))?;
    let path = c_path(pin)?;
    // SAFETY: both arguments are valid for the call.
    match unsafe { libbpf_sys::bpf_obj_pin(link.as_raw_fd(), path.as_ptr()) } {
        0 => Ok(()),
        error => Err(bpf_error(&name, "pin the link", io::Error::from_raw_os_error(-error))),
    }
}

/// The link's target went away: the kernel answers ENOLINK, or the link names another target than asked.
fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ESTALE))
}

fn replace(pin: &Path, program: BorrowedFd<'_>, place: Place<'_>) -> io::Result<()> {
    let path = c_path(pin).map_err(io::Error::other)?;
    // SAFETY: the path is a valid C string.
    let fd = unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just given us this descriptor.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    if let Place::TcxIngress { ifindex } | Place::TcxEgress { ifindex } = place
        && target_ifindex(&link)? != ifindex
    {
        return Err(io::Error::from_raw_os_error(libc::ESTALE));
    }
    // SAFETY: both descriptors are open.
    match unsafe { libbpf_sys::bpf_link_update(link.as_raw_fd(), raw(program), std::ptr::null()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error)),
    }
}

/// 0: the device is gone.
fn target_ifindex(link: &OwnedFd) -> io::Result<u32> {
    // SAFETY: all-zero is a valid value of this plain C structure.
    let mut info: libbpf_sys::bpf_link_info = unsafe { std::mem::zeroed() };
    let mut size = size_of::<libbpf_sys::bpf_link_info>() as u32;
    // SAFETY: `info` is as large as `size` says.
    let result = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(link.as_raw_fd(), (&raw mut info).cast(), &raw mut size)
    };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: tcx links fill this member; for others the number read is not used.
    Ok(unsafe { info.__bindgen_anon_1.tcx.ifindex })
}

fn create(program: BorrowedFd<'_>, place: Place<'_>) -> io::Result<OwnedFd> {
    let (target, kind) = match place {
        Place::TcxIngress { ifindex } => (ifindex as i32, libbpf_sys::BPF_TCX_INGRESS),
        Place::TcxEgress { ifindex } => (ifindex as i32, libbpf_sys::BPF_TCX_EGRESS),
        Place::Cgroup { directory, kind } => (raw(directory), kind),
    };
    // SAFETY: the program's descriptor is open; no options.
    let fd = unsafe { libbpf_sys::bpf_link_create(raw(program), target, kind, std::ptr::null()) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the pinned link still has a device; for tcx links only.
pub(crate) fn is_attached(pin: &Path) -> bool {
    let Ok(path) = c_path(pin) else { return false };
    // SAFETY: the path is a valid C string.
    let fd = unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) };
    if fd < 0 {
        return false;
    }
    // SAFETY: the kernel has just given us this descriptor.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    target_ifindex(&link).is_ok_and(|ifindex| ifindex != 0)
}

/// Detaches: a pinned link without its pin and without holders is gone.
pub(crate) fn unpin(pin: &Path) -> Result<(), OpenError> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::File { path: pin.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Removes a directory of pins and all in it.
pub(crate) fn unpin_all(directory: &Path) -> Result<(), OpenError> {
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::File { path: directory.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn c_path(path: &Path) -> Result<CString, OpenError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| OpenError::File { path: path.to_owned(), source: io::Error::other(error) })
}
