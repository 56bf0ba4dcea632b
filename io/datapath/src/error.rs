//! What can go wrong between Weft and the kernel, worded for the operator.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
#[error("netlink: {action}: {source}")]
pub struct NetlinkError {
    /// What was asked, with the object: `add route 10.244.1.7/32 dev wf0123456789ab`.
    pub action: String,
    pub source: io::Error,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "the kernel has no type information ({path}): build it with CONFIG_DEBUG_INFO_BTF=y, or boot a kernel that has it (Debian's do)"
    )]
    NoBtf { path: PathBuf },
    #[error("kernel {release} has no tcx hooks: Weft needs Linux 6.6 or newer")]
    NoTcx { release: String },
    #[error(
        "not permitted to load BPF programs: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN"
    )]
    NotPermitted,
    #[error(
        "{path} is not on a bpf file system: mount one (mount -t bpf bpf {path}) or name a directory inside one"
    )]
    NotBpffs { path: PathBuf },
    #[error("{path} is not a cgroup v2 directory: socket hooks need one")]
    NotCgroup { path: PathBuf },
    #[error("uplink {name:?}: there is no such network device in this namespace")]
    NoUplink { name: String },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("BPF program or map {object}: {action}: {source}")]
    Bpf { object: String, action: &'static str, source: io::Error },
    #[error("the kernel refused the BPF programs: {message}")]
    Load { message: String },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(
        "the nftables table \"inet weft\" of an older Weft cannot be removed: {0}; nft delete table inet weft does so"
    )]
    Leftover(io::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(
        "kernel table {table} is full ({limit} entries): {object} and {more} more entries are not in force"
    )]
    Full { table: &'static str, limit: u32, object: String, more: usize },
    #[error("kernel table {table}: {action} {object}: {source}")]
    Table { table: &'static str, action: &'static str, object: String, source: io::Error },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Open(#[from] OpenError),
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("kernel table {table}: {source}")]
    Table { table: &'static str, source: io::Error },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error("network namespace {path}: {source}")]
    Namespace { path: PathBuf, source: io::Error },
    #[error("container {container}: {message}")]
    Wrong { container: String, message: String },
    #[error("container {container}: {source}")]
    Netlink { container: String, source: NetlinkError },
    #[error("container {container}: {source}")]
    Open { container: String, source: OpenError },
}

/// libbpf's errors as the kernel's.
pub(crate) fn io_error(error: libbpf_rs::Error) -> io::Error {
    let kind = error.kind();
    match kind {
        libbpf_rs::ErrorKind::NotFound => io::Error::from_raw_os_error(libc::ENOENT),
        libbpf_rs::ErrorKind::PermissionDenied => io::Error::from_raw_os_error(libc::EPERM),
        libbpf_rs::ErrorKind::AlreadyExists => io::Error::from_raw_os_error(libc::EEXIST),
        _ => io::Error::other(format!("{error:#}")),
    }
}
