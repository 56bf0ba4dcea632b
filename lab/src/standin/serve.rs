//! The sockets of a stand-in: listening on both families, and ending without failing anybody's request.
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Version;
use http::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::answers::{self, Ends};
use super::options::Options;

/// A client that keeps an HTTP/1 connection open may be sending the next request just when it is told to stop using
/// it. So the answer to that request tells it; who sends none in this time is taken to be idle.
const LAST_REQUEST: Duration = Duration::from_secs(3);

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
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let stopped = async {
            terminate.recv().await;
            println!("SIGTERM: finishing what was begun");
        };
        serve(Arc::new(options), stopped).await
    })
}

/// Told to every task: the stop, and (by being held) that it is still at work.
#[derive(Clone)]
struct Work {
    stop: watch::Receiver<bool>,
    _busy: mpsc::Sender<()>,
}

async fn serve(options: Arc<Options>, until: impl Future<Output = ()>) -> Result<(), ServeError> {
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
    until.await;
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
            biased;
            accepted = listener.accept() => accepted,
            // Only now: whoever the kernel has let in by then is served.
            _ = work.stop.wait_for(|stop| *stop) => return,
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
    let multiplexed = Arc::new(AtomicBool::new(false));
    let (seen, stop) = (multiplexed.clone(), work.stop.clone());
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (options, stop) = (options.clone(), stop.clone());
        let version = request.version();
        seen.store(version == Version::HTTP_2, Ordering::Relaxed);
        async move {
            let mut response = answers::request(&options, ends, request).await;
            if *stop.borrow() && version < Version::HTTP_2 {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    // A client that breaks off, or only tests the port as TCP probes do, is no news.
    let _ = tokio::select! {
        served = connection.as_mut() => served,
        () = idle(&mut work.stop, &multiplexed) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
}

/// Returns when a connection may be closed between two requests: HTTP/2 has a word for that (GOAWAY), HTTP/1 has not.
async fn idle(stop: &mut watch::Receiver<bool>, multiplexed: &AtomicBool) {
    // The sender outlives every connection.
    let _ = stop.wait_for(|stop| *stop).await;
    if !multiplexed.load(Ordering::Relaxed) {
        tokio::time::sleep(LAST_REQUEST).await;
    }
}

async fn answer_datagrams(socket: UdpSocket, options: Arc<Options>, mut work: Work) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let received = tokio::select! {
            biased;
            received = socket.recv_from(&mut buffer) => received,
            _ = work.stop.wait_for(|stop| *stop) => return,
        };
        // An ICMP error of an earlier answer shows here; it concerns only that client.
        let (Ok((length, client)), Ok(local)) = (received, socket.local_addr()) else { continue };
        let answer = answers::datagram(&options, Ends::new(client, local), length);
        if let Err(error) = socket.send_to(&answer, client).await {
            eprintln!("{client}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: standin\r\n\r\n";

    /// A stand-in on a free port, and what tells it to stop.
    async fn start() -> (u16, oneshot::Sender<()>, tokio::task::JoinHandle<Result<(), ServeError>>) {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let options = Options { tcp: vec![port], udp: vec![port], ..Options::default() };
        let (stop, stopped) = oneshot::channel();
        let until = async {
            let _ = stopped.await;
        };
        let serving = tokio::spawn(serve(Arc::new(options), until));
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::task::yield_now().await;
        }
        (port, stop, serving)
    }

    /// One answer, whole: headers and as much as they announce.
    async fn answer(stream: &mut TcpStream) -> String {
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        loop {
            let whole = text.split_once("\r\n\r\n").and_then(|(head, body)| {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
                (body.len() >= length.parse().ok()?).then_some(())
            });
            if whole.is_some() {
                return text;
            }
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the connection ended within an answer: {text:?}");
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }

    #[tokio::test]
    async fn connections_that_are_kept_open_get_a_last_answer_that_says_so() {
        let (port, stop, serving) = start().await;
        let mut kept = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        kept.write_all(REQUEST).await.unwrap();
        assert!(!answer(&mut kept).await.contains("connection: close"));
        stop.send(()).unwrap();
        while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            tokio::task::yield_now().await;
        }
        kept.write_all(REQUEST).await.unwrap();
        let last = answer(&mut kept).await;
        assert!(last.starts_with("HTTP/1.1 200") && last.contains("connection: close"), "{last}");
        assert_eq!(kept.read(&mut [0; 16]).await.unwrap(), 0, "then it ends");
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn http2_connections_are_told_to_go_and_requests_under_way_finish() {
        let (port, stop, serving) = start().await;
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http2::handshake::<
            _,
            _,
            http_body_util::Empty<bytes::Bytes>,
        >(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
        let connection = tokio::spawn(connection);
        let request = |path: &str| {
            http::Request::get(format!("http://standin{path}")).body(http_body_util::Empty::new()).unwrap()
        };
        assert_eq!(sender.send_request(request("/")).await.unwrap().status(), 200);
        let slow = sender.send_request(request("/delay?ms=100"));
        let slow = tokio::spawn(slow);
        // The answer to a later request shows that the slow one is under way.
        assert_eq!(sender.send_request(request("/")).await.unwrap().status(), 200);
        stop.send(()).unwrap();
        assert_eq!(slow.await.unwrap().unwrap().status(), 200);
        connection.await.unwrap().unwrap();
        serving.await.unwrap().unwrap();
    }
}
