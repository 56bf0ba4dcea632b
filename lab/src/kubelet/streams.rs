//! Asynchronous reading and writing of raw descriptors (pipes, terminals) and the frames that a monitor and the
//! kubelet exchange over an attach socket. No policy about who reads what.
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use bytes::Bytes;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A descriptor in non-blocking mode, driven by the runtime.
pub struct Descriptor(AsyncFd<OwnedFd>);

impl Descriptor {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: the descriptor is owned by the result, which neither closes nor replaces it before its own end.
        Ok(Self(unsafe { AsyncFd::register(fd) }?))
    }

    /// Reads some bytes; 0 at the end. A terminal whose other side is closed is at its end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.0.readable().await?;
            match guard.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), buffer)?)) {
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut guard = self.0.writable().await?;
            match guard.try_io(|fd| Ok(nix::unistd::write(fd.get_ref(), bytes)?)) {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: `size` outlives the call; on a descriptor that is no terminal the kernel answers ENOTTY.
        let rc = unsafe { libc::ioctl(self.0.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// A new terminal: the side we hold and the side a program gets.
pub fn open_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: both integers outlive the call; null asks for no name, modes or size.
    let rc = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: openpty just gave us both descriptors and nothing else owns them.
    let pair = unsafe { (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    for fd in [&pair.0, &pair.1] {
        fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    Ok(pair)
}

/// What travels over an attach socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    Stdin(Bytes),
    Stdout(Bytes),
    Stderr(Bytes),
    StdinEnd,
    Resize(TerminalSize),
}

/// More than this in one frame is refused rather than believed.
const LARGEST_FRAME: usize = 1 << 20;

impl Frame {
    pub async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let size;
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Stdin(bytes) => (0, bytes),
            Self::Stdout(bytes) => (1, bytes),
            Self::Stderr(bytes) => (2, bytes),
            Self::StdinEnd => (3, &[]),
            Self::Resize(TerminalSize { columns, rows }) => {
                size = [columns.to_be_bytes(), rows.to_be_bytes()].concat();
                (4, &size)
            }
        };
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut whole = Vec::with_capacity(5 + payload.len());
        whole.push(kind);
        whole.extend_from_slice(&length.to_be_bytes());
        whole.extend_from_slice(payload);
        to.write_all(&whole).await
    }

    /// Reads one frame; `None` at a clean end.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut head = [0; 5];
        if from.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        from.read_exact(&mut head[1..]).await?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > LARGEST_FRAME {
            return Err(io::Error::other(format!("attach frame of {length} bytes")));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).await?;
        Self::from_parts(head[0], payload).map(Some)
    }

    fn from_parts(kind: u8, payload: Vec<u8>) -> io::Result<Self> {
        match (kind, payload.as_slice()) {
            (0, _) => Ok(Self::Stdin(payload.into())),
            (1, _) => Ok(Self::Stdout(payload.into())),
            (2, _) => Ok(Self::Stderr(payload.into())),
            (3, []) => Ok(Self::StdinEnd),
            (4, &[c1, c2, r1, r2]) => Ok(Self::Resize(TerminalSize {
                columns: u16::from_be_bytes([c1, c2]),
                rows: u16::from_be_bytes([r1, r2]),
            })),
            _ => Err(io::Error::other(format!("attach frame of unknown kind {kind}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_back_as_they_were_sent() {
        let frames = [
            Frame::Stdin(Bytes::from_static(b"in")),
            Frame::Stdout(Bytes::new()),
            Frame::Stderr(Bytes::from_static(b"\0\xff")),
            Frame::StdinEnd,
            Frame::Resize(TerminalSize { columns: 300, rows: 7 }),
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            frame.write(&mut wire).await.expect("a vector takes it");
        }
        let mut wire = wire.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut wire).await.expect("well-formed"), Some(frame));
        }
        assert_eq!(Frame::read(&mut wire).await.expect("clean end"), None);
    }

    #[tokio::test]
    async fn a_frame_that_claims_too_much_is_refused() {
        assert!(Frame::read(&mut [1, 255, 255, 255, 255].as_slice()).await.is_err());
        assert!(Frame::read(&mut [9, 0, 0, 0, 0].as_slice()).await.is_err());
    }
}
