//! The sockets of a stand-in: listening on both families, connections served to their end after SIGTERM.
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::FromRawFd;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::answers::{self, Ends};
use super::options::Options;

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("port {port}/{protocol} cannot be opened: {error}")]
    Port { port: u16, protocol: &'static str, error: io::Error },
    #[error(transparent)]
    Runtime(#[from] io::Error),
}

/// Serves until SIGTERM and then until what was begun is done.
pub fn run(options: Options) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(Arc::new(options)))
}

/// Told to every task: the stop, and (by being held) that it is still at work.
#[derive(Clone)]
struct Work {
    stop: watch::Receiver<bool>,
    _busy: mpsc::Sender<()>,
}

async fn serve(options: Arc<Options>) -> Result<(), ServeError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let (stop, stopped) = watch::channel(false);
    let (busy, mut idle) = mpsc::channel(1);
    let work = Work { stop: stopped, _busy: busy };
    for &port in &options.tcp {
        let listener = listen(port).await?;
        tokio::spawn(accept(listener, options.clone(), work.clone()));
    }
    for &port in &options.udp {
        let socket = bind_udp(port).await?;
        tokio::spawn(answer_datagrams(socket, options.clone(), work.clone()));
    }
    drop(work);
    say_ready(&options);
    terminate.recv().await;
    println!("SIGTERM: finishing what was begun");
    // Nobody listens when there are no ports.
    let _ = stop.send(true);
    idle.recv().await;
    Ok(())
}

fn say_ready(options: &Options) {
    println!("listening on tcp {:?} udp {:?}", options.tcp, options.udp);
    if let Some(fd) = options.ready_fd {
        // SAFETY: whoever started us handed over this descriptor for just this, and nothing else here owns it.
        drop(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) });
    }
}

/// Both families on one socket; IPv4 alone where the kernel has no IPv6.
async fn listen(port: u16) -> Result<TcpListener, ServeError> {
    let opened = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if no_ipv6(&error) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await,
        opened => opened,
    };
    opened.map_err(|error| ServeError::Port { port, protocol: "tcp", error })
}

async fn bind_udp(port: u16) -> Result<UdpSocket, ServeError> {
    let opened = match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if no_ipv6(&error) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await,
        opened => opened,
    };
    opened.map_err(|error| ServeError::Port { port, protocol: "udp", error })
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

async fn accept(listener: TcpListener, options: Arc<Options>, mut work: Work) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = work.stop.changed() => return,
        };
        match accepted {
            Ok((stream, client)) => {
                tokio::spawn(connection(stream, client, options.clone(), work.clone()));
            }
            // Out of descriptors, or the client is gone already: the next one may do better.
            Err(error) => {
                eprintln!("accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, client: SocketAddr, options: Arc<Options>, mut work: Work) {
    let Ok(local) = stream.local_addr() else { return };
    // Without it a small answer may wait for the client's delayed acknowledgement; failing to set it harms nothing.
    let _ = stream.set_nodelay(true);
    let ends = Ends::new(client, local);
    let service = service_fn(move |request| {
        let options = options.clone();
        async move { Ok::<_, std::convert::Infallible>(answers::request(&options, ends, request).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    // A client that breaks off, or only tests the port as TCP probes do, is no news.
    let _ = tokio::select! {
        served = connection.as_mut() => served,
        _ = work.stop.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
}

async fn answer_datagrams(socket: UdpSocket, options: Arc<Options>, mut work: Work) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            _ = work.stop.changed() => return,
        };
        // An ICMP error of an earlier answer shows here; it concerns only that client.
        let (Ok((length, client)), Ok(local)) = (received, socket.local_addr()) else { continue };
        let answer = answers::datagram(&options, Ends::new(client, local), length);
        if let Err(error) = socket.send_to(&answer, client).await {
            eprintln!("{client}: {error}");
        }
    }
}
