//! `/exec` and `/attach`: a command in a container, or the container's own streams, over WebSocket channels.
use std::io;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use nix::fcntl::OFlag;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::channels::{self, Output, Said};
use super::query::Query;
use super::websocket::{Socket, upgrade};
use super::{Body, Refusal};
use crate::kubelet::bundle::{AttemptDir, Terminal};
use crate::kubelet::enter::{Entry, SessionKill, exit_code};
use crate::kubelet::monitor::connect_in;
use crate::kubelet::sandbox::PodDir;
use crate::kubelet::shared::{PodSnapshot, Shared};
use crate::kubelet::streams::{Descriptor, Frame, open_terminal};

/// What a command left running in the background may still say after the command itself has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Which streams the client wants.
#[derive(Clone, Copy)]
struct Wanted {
    stdin: bool,
    terminal: Terminal,
}

impl Wanted {
    fn of(query: &Query) -> Self {
        let terminal = if query.is_set(&["tty"]) { Terminal::Pty } else { Terminal::None };
        Self { stdin: query.is_set(&["input", "stdin"]), terminal }
    }
}

fn running_attempt(shared: &Shared, pod: &PodSnapshot, name: &str) -> Result<AttemptDir, Refusal> {
    let meta = &pod.pod.metadata;
    let pod_name = meta.name.as_deref().unwrap_or_default();
    let container = pod.containers.iter().find(|container| container.name == name);
    let container =
        container.ok_or_else(|| Refusal::missing(format!("container {name} not found in pod {pod_name}")))?;
    if !container.is_running() {
        return Err(Refusal::bad(format!("container {name} of pod {pod_name} is not running")));
    }
    let dir = PodDir::new(&shared.sandboxes.pods_dir, meta.uid.as_deref().unwrap_or_default());
    Ok(dir.attempt(name, container.attempt))
}

pub fn exec(
    shared: &Shared,
    pod: &PodSnapshot,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let entry = Entry::of(&running_attempt(shared, pod, container)?).map_err(Refusal::internal)?;
    let command: Vec<_> = query.all("command").map(str::to_owned).collect();
    if command.is_empty() {
        return Err(Refusal::bad("you must specify at least 1 command"));
    }
    let wanted = Wanted::of(query);
    upgrade(request, &channels::VERSIONS, move |(), socket| async move {
        talk_to_command(&entry, &command, wanted, socket).await;
    })
}

async fn talk_to_command(entry: &Entry, argv: &[String], wanted: Wanted, socket: Socket) {
    let (hears, says) = channels::split(socket);
    let started = entry.command(argv, wanted.terminal).and_then(|command| Running::start(command, wanted));
    let ended = match started {
        Ok(running) => running.converse(hears, says).await,
        Err(error) => {
            let message = format!("error executing command in container: {:?}: {error}", argv.join(" "));
            hears.end(&channels::failed(&message)).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("exec: {error}");
    }
}

/// A command that runs, with our ends of its streams.
struct Running {
    child: Child,
    session: Option<SessionKill>,
    stdin: Option<Descriptor>,
    /// With a terminal: for its size.
    terminal: Option<Descriptor>,
    outputs: mpsc::Receiver<Output>,
}

impl Running {
    fn start(command: std::process::Command, wanted: Wanted) -> io::Result<Self> {
        match wanted.terminal {
            Terminal::Pty => Self::start_on_terminal(command, wanted),
            Terminal::None => Self::start_on_pipes(command, wanted),
        }
    }

    fn start_on_terminal(mut command: std::process::Command, wanted: Wanted) -> io::Result<Self> {
        let (master, slave) = open_terminal()?;
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        command.env("TERM", "xterm");
        let (child, session) = spawn(command)?;
        let (sender, outputs) = mpsc::channel(16);
        let stdin = wanted.stdin.then(|| master.try_clone()).transpose()?.map(Descriptor::new).transpose()?;
        let terminal = Some(Descriptor::new(master.try_clone()?)?);
        tokio::spawn(copy(Descriptor::new(master)?, sender, Output::Stdout));
        Ok(Self { child, session, stdin, terminal, outputs })
    }

    fn start_on_pipes(mut command: std::process::Command, wanted: Wanted) -> io::Result<Self> {
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from);
        let ((stdout, to_stdout), (stderr, to_stderr)) = (pipe()?, pipe()?);
        command.stdout(to_stdout).stderr(to_stderr).stdin(Stdio::null());
        let mut stdin: Option<OwnedFd> = None;
        if wanted.stdin {
            let (from_stdin, ours) = pipe()?;
            command.stdin(from_stdin);
            stdin = Some(ours);
        }
        let (child, session) = spawn(command)?;
        let (sender, outputs) = mpsc::channel(16);
        tokio::spawn(copy(Descriptor::new(stdout)?, sender.clone(), Output::Stdout));
        tokio::spawn(copy(Descriptor::new(stderr)?, sender, Output::Stderr));
        Ok(Self { child, session, stdin: stdin.map(Descriptor::new).transpose()?, terminal: None, outputs })
    }

    async fn converse(
        mut self,
        mut hears: channels::Hears,
        says: channels::Says,
    ) -> Result<(), tokio_tungstenite::tungstenite::Error> {
        // Input has a task of its own: a command that does not read must not keep its output from the client.
        let mut input = tokio::spawn(take_input(says, self.stdin.take(), self.terminal.take()));
        let code = loop {
            tokio::select! {
                Some(output) = self.outputs.recv() => hears.output(output).await?,
                status = self.child.wait() => break status.map_or(128, exit_code),
                // Nobody is left to see what the command does: it ends with its session.
                _ = &mut input => return Ok(()),
            }
        };
        input.abort();
        let rest = async {
            while let Some(output) = self.outputs.recv().await {
                hears.output(output).await?;
            }
            Ok::<_, tokio_tungstenite::tungstenite::Error>(())
        };
        // Running out of time only means that something in the background keeps the stream open.
        tokio::time::timeout(LAST_WORDS, rest).await.unwrap_or(Ok(()))?;
        // The command has ended by itself: what it put in the background may stay.
        std::mem::forget(self.session.take());
        hears.end(&channels::exited(code)).await
    }
}

/// Passes on what the client says until it is gone.
async fn take_input(mut says: channels::Says, mut stdin: Option<Descriptor>, terminal: Option<Descriptor>) {
    while let Some(said) = says.next().await {
        let taken = match (said, &stdin, &terminal) {
            (Said::Stdin(bytes), Some(stdin), _) => stdin.write_all(&bytes).await,
            (Said::Resize(size), _, Some(terminal)) => terminal.resize(size),
            // A terminal is told its end by the character for it.
            (Said::StdinEnd, Some(stdin), Some(_)) => stdin.write_all(&[4]).await,
            (Said::StdinEnd, _, None) => {
                stdin = None;
                Ok(())
            }
            _ => Ok(()),
        };
        if taken.is_err() {
            // The command no longer reads; its end will tell the client.
            stdin = None;
        }
    }
}

fn spawn(command: std::process::Command) -> io::Result<(Child, Option<SessionKill>)> {
    let child = Command::from(command).kill_on_drop(true).spawn()?;
    let session = child.id().map(SessionKill);
    Ok((child, session))
}

async fn copy(from: Descriptor, to: mpsc::Sender<Output>, wrap: fn(Bytes) -> Output) {
    let mut buffer = vec![0; 32 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.send(wrap(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
            return;
        }
    }
}

pub async fn attach(
    shared: &Shared,
    pod: &PodSnapshot,
    container: &str,
    query: &Query,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let dir = running_attempt(shared, pod, container)?;
    let monitor = connect_in(&dir.0).await.map_err(|error| Refusal::internal(format!("attach: {error}")))?;
    let wanted = Wanted::of(query);
    upgrade(request, &channels::VERSIONS, move |(), socket| async move {
        if let Err(error) = talk_to_monitor(monitor, wanted, socket).await {
            tracing::debug!("attach: {error}");
        }
    })
}

async fn talk_to_monitor(monitor: UnixStream, wanted: Wanted, socket: Socket) -> io::Result<()> {
    let (mut hears, says) = channels::split(socket);
    let (mut from, to) = monitor.into_split();
    let mut input = tokio::spawn(pass_input(says, wanted, to));
    let output = async {
        while let Some(frame) = Frame::read(&mut from).await? {
            let output = match frame {
                Frame::Stdout(bytes) => Output::Stdout(bytes),
                Frame::Stderr(bytes) => Output::Stderr(bytes),
                _ => continue,
            };
            hears.output(output).await.map_err(io::Error::other)?;
        }
        Ok::<_, io::Error>(())
    };
    let client_left = tokio::select! {
        ended = output => ended.map(|()| false),
        _ = &mut input => Ok(true),
    };
    input.abort();
    if client_left? {
        return Ok(());
    }
    hears.end(&channels::success()).await.map_err(io::Error::other)
}

async fn pass_input(
    mut says: channels::Says,
    wanted: Wanted,
    mut to: tokio::net::unix::OwnedWriteHalf,
) -> io::Result<()> {
    while let Some(said) = says.next().await {
        let frame = match said {
            Said::Stdin(bytes) if wanted.stdin => Frame::Stdin(bytes),
            Said::StdinEnd if wanted.stdin => Frame::StdinEnd,
            Said::Resize(size) => Frame::Resize(size),
            _ => continue,
        };
        frame.write(&mut to).await?;
    }
    Ok(())
}
