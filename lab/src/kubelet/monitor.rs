//! The monitor of one container (`weft lab run DIR`): starts the program, keeps its log, serves attach, records
//! how it ended. It outlives the kubelet, so that a restarted kubelet finds its containers and their ends.
use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::ForkResult;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;

use super::bundle::{
    AttemptDir, Bundle, Exit, Handshake, Program, Started, Stdin, Terminal, at, read_json, write_json,
};
use super::isolate::{self, ChildStreams, Report};
use super::logs::{LogWriter, Stream};
use super::process::{Ending, ProcessId};
use super::streams::{Descriptor, Frame, open_terminal};

/// Runs the container whose files are in the directory given as the only argument.
///
/// Must be called before the process has a second thread: it forks.
pub fn main(args: &[String]) -> ExitCode {
    let [dir] = args else {
        eprintln!("usage: weft lab run DIR");
        return ExitCode::from(2);
    };
    let dir = AttemptDir(dir.into());
    match run(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report_failure(&dir, &error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// What the monitor keeps of the container's streams.
struct OwnStreams {
    /// Absent when the container has no stdin.
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    /// Absent with a terminal, which has one output only.
    stderr: Option<OwnedFd>,
}

fn run(dir: &AttemptDir) -> io::Result<()> {
    leave_the_kubelets_fate();
    let bundle: Bundle = read_json(&dir.bundle())?
        .ok_or_else(|| at(&dir.bundle(), io::Error::from(io::ErrorKind::NotFound)))?;
    isolate::join_cgroup(&bundle.monitor_cgroup)?;
    let scratch = dir.0.join("root");
    std::fs::create_dir_all(&scratch).map_err(|error| at(&scratch, error))?;
    let (own, child) = open_streams(bundle.stdin, bundle.terminal)?;
    let (ready, child_ready) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (report, child_report) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread, so the child may do anything.
    let pid = match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => isolate::become_container(&bundle, &scratch, child, child_ready, child_report),
        ForkResult::Parent { child: pid } => pid.as_raw(),
    };
    drop((child, child_ready, child_report));
    let started =
        Started { process: ProcessId::of(pid)?, monitor: ProcessId::own()?, started_at: Timestamp::now() };
    write_json(&dir.started(), &started)?;
    await_exec(report)?;
    if let Program::StandIn { .. } = bundle.program {
        await_end(&ready)?;
    }
    tell_kubelet(&Handshake::Started(started.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, watch(dir, &bundle, own, &started))
}

fn leave_the_kubelets_fate() {
    // Fails only for a process group leader, which is already on its own.
    let _ = nix::unistd::setsid();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: SIG_IGN installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

fn open_streams(stdin: Stdin, terminal: Terminal) -> io::Result<(OwnStreams, ChildStreams)> {
    if terminal == Terminal::Pty {
        let (master, slave) = open_terminal()?;
        let child = ChildStreams { stdin: slave.try_clone()?, stdout: slave.try_clone()?, stderr: slave };
        let stdin = (stdin != Stdin::Closed).then(|| master.try_clone()).transpose()?;
        return Ok((OwnStreams { stdin, stdout: master, stderr: None }, child));
    }
    let (stdout, child_stdout) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, child_stderr) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (stdin, child_stdin) = if stdin == Stdin::Closed {
        (None, open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
    } else {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        (Some(write), read)
    };
    let own = OwnStreams { stdin, stdout, stderr: Some(stderr) };
    Ok((own, ChildStreams { stdin: child_stdin, stdout: child_stdout, stderr: child_stderr }))
}

/// Waits until the child's exec has closed the pipe. Warnings go to the kubelet's log, a failure is the error.
fn await_exec(report: OwnedFd) -> io::Result<()> {
    for line in BufReader::new(std::fs::File::from(report)).lines() {
        match Report::parse(&line?) {
            Some(Report::Warning(text)) => tell_kubelet(&Handshake::Warning(text.to_owned())),
            Some(Report::Failure(text)) => return Err(io::Error::other(text.to_owned())),
            None => {}
        }
    }
    Ok(())
}

fn await_end(pipe: &OwnedFd) -> io::Result<()> {
    let mut byte = [0];
    while nix::unistd::read(pipe.as_fd(), &mut byte)? > 0 {}
    Ok(())
}

/// One line on stdout. The kubelet may be gone: the files say the same to the next one.
fn tell_kubelet(handshake: &Handshake) {
    if let Ok(text) = serde_json::to_string(handshake) {
        let _ = writeln!(io::stdout(), "{text}");
    }
}

fn report_failure(dir: &AttemptDir, message: &str) {
    let exit = Exit {
        code: 128,
        signal: None,
        reason: "StartError".into(),
        message: Some(message.to_owned()),
        started_at: None,
        finished_at: Timestamp::now(),
    };
    if let Err(error) = write_json(&dir.exit(), &exit) {
        eprintln!("{error}");
    }
    tell_kubelet(&Handshake::Failed(exit));
}

/// Follows the container to its end and records it.
async fn watch(dir: &AttemptDir, bundle: &Bundle, own: OwnStreams, started: &Started) -> io::Result<()> {
    let outputs = Outputs::new(LogWriter::open(&dir.log())?);
    let mut readers = vec![tokio::task::spawn_local(copy_out(own.stdout, Stream::Stdout, outputs.clone()))];
    if let Some(stderr) = own.stderr {
        readers.push(tokio::task::spawn_local(copy_out(stderr, Stream::Stderr, outputs.clone())));
    }
    let stdin = own.stdin.map(Descriptor::new).transpose()?;
    let attach = tokio::task::spawn_local(serve_attach(dir.0.clone(), bundle.stdin, stdin, outputs.clone()));
    close_stdout();
    let ending = match started.process.open()? {
        Some(pidfd) => pidfd.ended().await?,
        None => Ending::Unknown,
    };
    // As with the first process of a pid namespace: whatever it left behind goes with it.
    kill_cgroup(&bundle.cgroup)?;
    for reader in readers {
        // A reader that failed has nothing more to log; the end is recorded all the same.
        let _ = reader.await;
    }
    attach.abort();
    outputs.log.borrow_mut().finish(Timestamp::now())?;
    write_json(&dir.exit(), &exit_of(ending, started.started_at))
}

/// The kubelet reads the handshake to its end.
fn close_stdout() {
    if let Ok(null) = open("/dev/null", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        let _ = nix::unistd::dup2_stdout(&null);
    }
}

/// Kills every process of a v2 cgroup at once.
pub fn kill_cgroup(cgroup: &Path) -> io::Result<()> {
    let kill = cgroup.join("cgroup.kill");
    match std::fs::write(&kill, "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&kill, error)),
        _ => Ok(()),
    }
}

fn exit_of(ending: Ending, started_at: Timestamp) -> Exit {
    let (code, signal) = match ending {
        Ending::Code(code) => (code, None),
        Ending::Signal(signal) => (128 + signal, Some(signal)),
        Ending::Unknown => (137, None),
    };
    let reason = if code == 0 { "Completed" } else { "Error" };
    Exit {
        code,
        signal,
        reason: reason.into(),
        message: None,
        started_at: Some(started_at),
        finished_at: Timestamp::now(),
    }
}

/// Where the container's output goes: its log, and whoever is attached.
#[derive(Clone)]
struct Outputs {
    log: Rc<RefCell<LogWriter>>,
    attached: broadcast::Sender<Frame>,
}

impl Outputs {
    fn new(log: LogWriter) -> Self {
        Self { log: Rc::new(RefCell::new(log)), attached: broadcast::channel(256).0 }
    }
}

async fn copy_out(fd: OwnedFd, stream: Stream, outputs: Outputs) -> io::Result<()> {
    let fd = Descriptor::new(fd)?;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let length = fd.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        outputs.log.borrow_mut().write(stream, &buffer[..length], Timestamp::now())?;
        let bytes = Bytes::copy_from_slice(&buffer[..length]);
        let frame = if stream == Stream::Stdout { Frame::Stdout(bytes) } else { Frame::Stderr(bytes) };
        // An error only says that nobody is attached.
        let _ = outputs.attached.send(frame);
    }
}

type SharedStdin = Arc<tokio::sync::Mutex<Option<Descriptor>>>;

async fn serve_attach(
    dir: std::path::PathBuf,
    mode: Stdin,
    stdin: Option<Descriptor>,
    outputs: Outputs,
) -> io::Result<()> {
    let listener = bind_in(&dir)?;
    let stdin: SharedStdin = Arc::new(tokio::sync::Mutex::new(stdin));
    loop {
        let (client, _) = listener.accept().await?;
        let (stdin, output) = (stdin.clone(), outputs.attached.subscribe());
        tokio::task::spawn_local(async move {
            let (from, to) = client.into_split();
            let out = tokio::task::spawn_local(send_output(output, to));
            // A client that breaks off is as good as one that ends.
            let _ = take_input(from, mode, &stdin).await;
            if mode == Stdin::OpenOnce {
                stdin.lock().await.take();
            }
            out.abort();
        });
    }
}

/// Binds below /proc/self/fd, because the directory's own name may be too long for a socket address.
fn bind_in(dir: &Path) -> io::Result<UnixListener> {
    let fd = open(dir, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    UnixListener::bind(format!("/proc/self/fd/{}/{}", fd.as_raw_fd(), AttemptDir::ATTACH))
}

/// Connects to the attach socket in `dir`.
pub async fn connect_in(dir: &Path) -> io::Result<UnixStream> {
    let fd = open(dir, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    UnixStream::connect(format!("/proc/self/fd/{}/{}", fd.as_raw_fd(), AttemptDir::ATTACH)).await
}

async fn send_output(
    mut output: broadcast::Receiver<Frame>,
    mut to: tokio::net::unix::OwnedWriteHalf,
) -> io::Result<()> {
    loop {
        match output.recv().await {
            Ok(frame) => frame.write(&mut to).await?,
            // A reader that is too slow loses the middle, never the container's progress.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        }
    }
}

async fn take_input(
    mut from: tokio::net::unix::OwnedReadHalf,
    mode: Stdin,
    stdin: &SharedStdin,
) -> io::Result<()> {
    while let Some(frame) = Frame::read(&mut from).await? {
        let mut stdin = stdin.lock().await;
        match (frame, stdin.as_ref()) {
            (Frame::Stdin(bytes), Some(fd)) => fd.write_all(&bytes).await?,
            (Frame::Resize(size), Some(fd)) => fd.resize(size)?,
            // An input that is open for more than one client has no end: the next may go on.
            (Frame::StdinEnd, Some(_)) if mode == Stdin::OpenOnce => drop(stdin.take()),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_a_shell_would() {
        let now = Timestamp::UNIX_EPOCH;
        let told = |ending| {
            let exit = exit_of(ending, now);
            (exit.code, exit.signal, exit.reason)
        };
        assert_eq!(told(Ending::Code(0)), (0, None, "Completed".to_owned()));
        assert_eq!(told(Ending::Code(3)), (3, None, "Error".to_owned()));
        assert_eq!(told(Ending::Signal(9)), (137, Some(9), "Error".to_owned()));
    }
}
