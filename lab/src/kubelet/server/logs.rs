//! `/containerLogs`: a container's log, once or followed to the container's end.
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::query::Query;
use super::{Body, Refusal};
use crate::kubelet::bundle::AttemptDir;
use crate::kubelet::lifecycle::State;
use crate::kubelet::logs::{LogQuery, LogSelector, Timestamps};
use crate::kubelet::sandbox::PodDir;
use crate::kubelet::shared::{PodSnapshot, Shared};
use crate::kubelet::streams::Descriptor;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Once,
    Followed,
}

pub async fn answer(
    shared: &Shared,
    pod: &PodSnapshot,
    container: &str,
    query: &Query,
) -> Result<Response<Body>, Refusal> {
    let dir = attempt_dir(shared, pod, container, query)?;
    let selector = LogSelector::new(selection(query)?);
    let extent = if query.is_set(&["follow"]) { Extent::Followed } else { Extent::Once };
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        if let Err(error) = send(dir, selector, extent, &sender).await {
            // A reader that went away is no longer interested in why.
            let _ = sender.send(Err(error)).await;
        }
    });
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        let chunk: io::Result<Vec<u8>> = receiver.recv().await?;
        Some((chunk.map(|bytes| Frame::data(Bytes::from(bytes))), receiver))
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(stream)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    Ok(response)
}

/// Where the attempt that is asked for has its files; refused when there was none.
fn attempt_dir(shared: &Shared, pod: &PodSnapshot, name: &str, query: &Query) -> Result<AttemptDir, Refusal> {
    let meta = &pod.pod.metadata;
    let pod_name = meta.name.as_deref().unwrap_or_default();
    let container = pod.containers.iter().find(|container| container.name == name);
    let container =
        container.ok_or_else(|| Refusal::bad(format!("container {name} is not valid for pod {pod_name}")))?;
    let dir = PodDir::new(&shared.sandboxes.pods_dir, meta.uid.as_deref().unwrap_or_default());
    if query.is_set(&["previous"]) {
        let none = || format!("previous terminated container {name:?} in pod {pod_name:?} not found");
        let previous = container.attempt.checked_sub(1).filter(|attempt| *attempt > 0);
        return Ok(dir.attempt(name, previous.ok_or_else(|| Refusal::bad(none()))?));
    }
    let reason = match &container.state {
        State::Blocked { reason, .. } => reason,
        _ => "ContainerCreating",
    };
    if container.attempt == 0 {
        let text = format!("container {name:?} in pod {pod_name:?} is waiting to start: {reason}");
        return Err(Refusal::bad(text));
    }
    Ok(dir.attempt(name, container.attempt))
}

fn selection(query: &Query) -> Result<LogQuery, Refusal> {
    let seconds = query.number::<u64>("sinceSeconds")?;
    let since = match seconds {
        Some(seconds) => Some(Timestamp::now() - Duration::from_secs(seconds)),
        None => query.number("sinceTime")?,
    };
    Ok(LogQuery {
        since,
        tail: query.number("tailLines")?,
        limit_bytes: query.number("limitBytes")?,
        timestamps: if query.is_set(&["timestamps"]) { Timestamps::Shown } else { Timestamps::Hidden },
    })
}

type Chunks = mpsc::Sender<io::Result<Vec<u8>>>;

async fn send(dir: AttemptDir, mut selector: LogSelector, extent: Extent, chunks: &Chunks) -> io::Result<()> {
    // Watched before the first read, so that nothing between the two is missed.
    let changes = DirChanges::watch(&dir.0)?;
    let mut log = LogFile::open(dir.log());
    let first = log.new_lines()?;
    let mut out = selector.first(&first);
    loop {
        if !out.is_empty() && chunks.send(Ok(out)).await.is_err() {
            return Ok(());
        }
        if extent == Extent::Once || selector.is_exhausted() {
            return Ok(());
        }
        let has_ended = dir.exit().exists() || !dir.0.exists();
        out = selector.next(&log.new_lines()?);
        if !out.is_empty() {
            continue;
        }
        if has_ended {
            return Ok(());
        }
        tokio::select! {
            changed = changes.wait() => changed?,
            () = chunks.closed() => return Ok(()),
        }
        out = selector.next(&log.new_lines()?);
    }
}

/// Reads whole lines as they come, across the log's being set aside.
struct LogFile {
    path: PathBuf,
    open: Option<(File, u64)>,
    partial: Vec<u8>,
}

impl LogFile {
    fn open(path: PathBuf) -> Self {
        Self { path, open: None, partial: Vec::new() }
    }

    fn new_lines(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = std::mem::take(&mut self.partial);
        self.read_rest(&mut bytes)?;
        if self.was_replaced() {
            self.open = None;
            self.read_rest(&mut bytes)?;
        }
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.partial = bytes.split_off(whole);
        Ok(bytes)
    }

    fn read_rest(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        if self.open.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.open = Some((file, 0)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if let Some((file, offset)) = &mut self.open {
            file.seek(SeekFrom::Start(*offset))?;
            *offset += file.read_to_end(bytes)? as u64;
        }
        Ok(())
    }

    fn was_replaced(&self) -> bool {
        let Some((file, _)) = &self.open else { return false };
        match (file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(held), Ok(named)) => held.ino() != named.ino(),
            _ => false,
        }
    }
}

/// Tells when anything in a directory changes.
struct DirChanges(Descriptor);

impl DirChanges {
    fn watch(dir: &Path) -> io::Result<Self> {
        let path = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes())?;
        // SAFETY: inotify_init1 takes flags and returns a new descriptor or -1.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this descriptor and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mask = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_DELETE_SELF;
        // SAFETY: the path is a NUL-terminated string that outlives the call.
        if unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(Descriptor::new(fd)?))
    }

    async fn wait(&self) -> io::Result<()> {
        let mut buffer = vec![0; 4096];
        self.0.read(&mut buffer).await.map(drop)
    }
}
