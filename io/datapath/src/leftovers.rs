//! What agents before left in the node's namespace and this one has no use for: the nftables table that masqueraded pods'
//! traffic until programs did. Told to the kernel without a tool, which need not be there any more.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const TABLE: &[u8] = b"weft\0";

// linux/netfilter/nfnetlink.h and nf_tables.h.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
const TABLE_NAME: u16 = 1;
const FAMILY_INET: u8 = 1;
const HEADER: usize = 16;

/// The table `inet weft`, if it is there.
pub(crate) fn remove_table() -> io::Result<()> {
    // SAFETY: a plain system call; the descriptor is ours when it is one.
    let socket = unsafe {
        match libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER) {
            -1 => return absent(io::Error::last_os_error()),
            socket => OwnedFd::from_raw_fd(socket),
        }
    };
    let request = request();
    // SAFETY: the buffer is as long as it says. Without an address the kernel is meant.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return absent(io::Error::last_os_error());
    }
    let mut answer = [0u8; 256];
    // SAFETY: as above.
    let length = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    match answer.get(HEADER..HEADER + 4).filter(|_| length >= (HEADER + 4) as isize) {
        None => Err(io::Error::last_os_error()),
        Some(code) => match i32::from_ne_bytes([code[0], code[1], code[2], code[3]]) {
            0 => Ok(()),
            code => absent(io::Error::from_raw_os_error(-code)),
        },
    }
}

/// A kernel without such tables has none of ours.
fn absent(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL) => {
            Ok(())
        }
        _ => Err(error),
    }
}

fn request() -> Vec<u8> {
    let batch = [0, 0, 0, SUBSYSTEM as u8];
    let mut table = vec![FAMILY_INET, 0, 0, 0];
    table.extend((4 + TABLE.len() as u16).to_ne_bytes());
    table.extend(TABLE_NAME.to_ne_bytes());
    table.extend(TABLE);
    let acknowledged = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut request = message(BATCH_BEGIN, libc::NLM_F_REQUEST as u16, &batch);
    request.extend(message(DELETE_TABLE, acknowledged, &table));
    request.extend(message(BATCH_END, libc::NLM_F_REQUEST as u16, &batch));
    request
}

fn message(kind: u16, flags: u16, content: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(((HEADER + content.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(content);
    message.resize(message.len().next_multiple_of(4), 0);
    message
}
