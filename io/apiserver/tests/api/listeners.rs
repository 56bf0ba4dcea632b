//! Listening inside other network namespaces, as every node of a fabric needs.

use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use weft_apiserver::{Error, NamespaceListener, start};
use weft_pki::Ca;

use crate::skip::skip;
use crate::support::{Fixture, config};

/// A network namespace that lives as long as its thread, which connects on demand.
struct Namespace {
    path: PathBuf,
    connect: mpsc::Sender<(std::net::SocketAddr, mpsc::Sender<std::io::Result<std::net::TcpStream>>)>,
}

impl Namespace {
    /// `None` when this machine does not let us make one.
    fn create() -> Option<Self> {
        let (ready, made) = mpsc::channel();
        let (connect, requests) = mpsc::channel::<(_, mpsc::Sender<_>)>();
        std::thread::spawn(move || {
            if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
                return;
            }
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            let thread = std::fs::read_link("/proc/thread-self").unwrap();
            ready.send(up.is_ok_and(|status| status.success()).then_some(thread)).unwrap();
            while let Ok((address, reply)) = requests.recv() {
                reply.send(std::net::TcpStream::connect(address)).unwrap();
            }
        });
        let thread = made.recv().ok().flatten()?;
        Some(Self { path: PathBuf::from("/proc").join(thread).join("ns/net"), connect })
    }

    fn connect(&self, address: std::net::SocketAddr) -> std::io::Result<std::net::TcpStream> {
        let (reply, stream) = mpsc::channel();
        self.connect.send((address, reply)).unwrap();
        stream.recv().unwrap()
    }
}

#[tokio::test]
async fn one_server_answers_in_several_namespaces() {
    let Some(inside) = Namespace::create() else {
        return skip(
            "one_server_answers_in_several_namespaces",
            "cannot make a network namespace with its lo up",
        );
    };
    let address = "127.0.0.1:6443".parse().unwrap();
    let place = NamespaceListener { namespace: inside.path.clone(), address };
    let fixture = Fixture::start_with(|config| config.namespace_listeners = vec![place]).await;
    assert_eq!(fixture.anonymous().get("/healthz").await.code, 200, "here");
    let stream = inside.connect(address).unwrap();
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::TcpStream::from_std(stream).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = fixture.admin().connector("http/1.1").connect(name, stream).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("/api/v1/namespaces").header("host", "localhost");
    let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200, "there");
}

#[tokio::test]
async fn what_cannot_be_listened_on_is_named() {
    let (dir, ca) = (tempfile::tempdir().unwrap(), Ca::create().unwrap());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut busy = config(&ca, dir.path());
    busy.listen = taken.local_addr().unwrap();
    let refused = start(busy).await.err().map(|error| error.to_string()).unwrap();
    assert!(refused.contains(&format!("cannot listen on {}", taken.local_addr().unwrap())), "{refused}");
    let mut nowhere = config(&ca, dir.path());
    let namespace = PathBuf::from("/run/netns/weft-no-such-namespace");
    nowhere.namespace_listeners =
        vec![NamespaceListener { namespace, address: "127.0.0.1:6443".parse().unwrap() }];
    let attempt = tokio::time::timeout(Duration::from_secs(20), start(nowhere)).await.unwrap();
    let Err(Error::Listen { place, .. }) = attempt else { panic!("it started") };
    assert_eq!(place, "127.0.0.1:6443 in /run/netns/weft-no-such-namespace");
    let mut mixed = config(&ca, dir.path());
    mixed.service_ranges = vec!["10.96.0.0/16".parse().unwrap(), "10.97.0.0/16".parse().unwrap()];
    let refused = start(mixed).await.err().map(|error| error.to_string()).unwrap();
    assert_eq!(refused, "service ranges: two ranges must be of different families");
}
