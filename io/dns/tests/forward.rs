//! Forwarding over real sockets on loopback: upstream servers that lie, close, encrypt, lead back, and Debian's own.

#[path = "../../../tests/skip.rs"]
mod skip;
mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use support::{Behaviour, Running, UpstreamServer, plan, question, rows};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use weft_dns::{Config, Settings, SettingsFile};

fn response(query: &Message) -> Message {
    let mut reply = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    let asked = query.queries[0].clone();
    let address = RData::A(A(Ipv4Addr::new(192, 0, 2, 7)));
    reply.add_answer(Record::from_rdata(asked.name().clone(), 60, address));
    reply.add_query(asked);
    reply
}

/// A UDP server that answers with what `reply` makes of each query, and a TCP listener on its port.
async fn server(
    reply: impl Fn(Message) -> Vec<Vec<u8>> + Send + 'static,
) -> (SocketAddr, TcpListener, Arc<AtomicUsize>) {
    let (udp, tcp) = loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            break (udp, tcp);
        }
    };
    let (address, asked) = (udp.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
            counter.fetch_add(1, Ordering::SeqCst);
            for bytes in reply(Message::from_vec(&buffer[..length]).unwrap()) {
                udp.send_to(&bytes, client).await.unwrap();
            }
        }
    });
    (address, tcp, asked)
}

/// Answers all questions of one connection.
async fn serve_stream(mut stream: impl AsyncRead + AsyncWrite + Unpin, change: fn(&mut Message)) {
    while let Ok(length) = stream.read_u16().await {
        let mut bytes = vec![0; length.into()];
        stream.read_exact(&mut bytes).await.unwrap();
        let mut reply = response(&Message::from_vec(&bytes).unwrap());
        change(&mut reply);
        let reply = reply.to_vec().unwrap();
        let mut framed = (reply.len() as u16).to_be_bytes().to_vec();
        framed.extend(reply);
        stream.write_all(&framed).await.unwrap();
        stream.flush().await.unwrap();
    }
}

fn truncated(query: Message) -> Vec<Vec<u8>> {
    let mut reply = response(&query);
    reply.answers.clear();
    reply.metadata.truncation = true;
    vec![reply.to_vec().unwrap()]
}

fn lower(reply: &mut Message) {
    let name = reply.queries[0].name().to_lowercase();
    reply.queries[0].set_name(name.clone());
    reply.answers.iter_mut().for_each(|record| record.name = name.clone());
}

async fn start(dir: &Path, settings: &str) -> Running {
    let mut config = Config::new(
        "node1",
        vec![Ipv4Addr::LOCALHOST.into()],
        dir.join("names.json"),
        dir.join("proxy.sock"),
    );
    config.port = 0;
    config.settings = Settings::parse(settings).unwrap();
    let running = Running::start_with(config).await;
    assert_eq!(running.put_plan(&plan(1)).await, 204);
    running
}

fn sequential(servers: &[SocketAddr]) -> String {
    let servers: Vec<_> = servers.iter().map(|server| format!("{{address: '{server}'}}")).collect();
    format!("forward: [{{zones: [.], policy: sequential, servers: [{}]}}]", servers.join(", "))
}

async fn upstream(running: &Running, index: usize) -> serde_json::Value {
    running.status().await["upstreams"][index].clone()
}

/// Polls until the status of a name server is as it should be.
async fn until(running: &Running, what: &str, holds: impl Fn(&serde_json::Value) -> bool) {
    for _ in 0..400 {
        if holds(&running.status().await) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: {:#}", running.status().await);
}

const ADDRESS: &str = "192.0.2.7";

async fn assert_answered(running: &Running, name: &str) {
    let reply = running.ask(name, RecordType::A).await;
    assert_eq!(rows(&reply), [format!("{name} {ADDRESS}")], "{:#}", running.status().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_keep_the_spelling_is_believed_over_tcp_and_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let (address, tcp, _) = server(|query| {
        let mut reply = response(&query);
        lower(&mut reply);
        vec![reply.to_vec().unwrap()]
    })
    .await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            tokio::spawn(serve_stream(stream, lower));
        }
    });
    let running = start(dir.path(), &sequential(&[address])).await;
    for name in ["first.of.many.example.", "second.of.many.example.", "third.of.many.example."] {
        assert_answered(&running, name).await;
    }
    // The question that looks for loops may have been the one to learn it.
    let status = upstream(&running, 0).await;
    let (tcp, mismatches) = (status["tcp"].as_u64().unwrap(), status["mismatches"].as_u64().unwrap());
    assert!((1..=2).contains(&tcp) && tcp == mismatches, "{status}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_guesses_moves_the_question_to_a_connection() {
    let dir = tempfile::tempdir().unwrap();
    let (address, tcp, _) = server(|query| {
        let mut lie = response(&query);
        lie.answers[0].data = RData::A(A(Ipv4Addr::new(6, 6, 6, 6)));
        let guess = |add: u16| {
            lie.metadata.id = query.metadata.id.wrapping_add(add);
            lie.to_vec().unwrap()
        };
        (1..=20).map(guess).collect()
    })
    .await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            tokio::spawn(serve_stream(stream, |_| ()));
        }
    });
    let running = start(dir.path(), &sequential(&[address])).await;
    assert_answered(&running, "a.example.").await;
    assert!(upstream(&running, 0).await["mismatches"].as_u64().unwrap() >= 16);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_carries_all_that_does_not_fit_and_a_broken_one_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let (breaks, tcp, _) = server(truncated).await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let length = stream.read_u16().await.unwrap();
            stream.read_exact(&mut vec![0; length.into()]).await.unwrap();
            // Half an answer, then nothing.
            stream.write_all(&[0x01, 0x00, 0xab, 0xcd, 0x81]).await.unwrap();
        }
    });
    let (whole, tcp, _) = server(truncated).await;
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = tcp.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve_stream(stream, |_| ()));
        }
    });
    let running = start(dir.path(), &sequential(&[breaks, whole])).await;
    for number in 0..8 {
        assert_answered(&running, &format!("n{number}.example.")).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let broken = upstream(&running, 0).await;
    assert_eq!(broken["health"], "down", "{broken}");
    assert!(broken["problem"].as_str().unwrap().contains("the connection was closed"), "{broken}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_know_edns_is_asked_without() {
    let dir = tempfile::tempdir().unwrap();
    let (address, _tcp, asked) = server(|query| {
        let mut reply = response(&query);
        if query.edns.is_some() {
            reply.answers.clear();
            reply.metadata.response_code = ResponseCode::FormErr;
        }
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let running = start(dir.path(), &sequential(&[address])).await;
    assert_answered(&running, "a.example.").await;
    let before = asked.load(Ordering::SeqCst);
    assert_answered(&running, "b.example.").await;
    assert_eq!(asked.load(Ordering::SeqCst), before + 1, "it is known by now");
    running.stop().await;
}

/// A server for DNS over TLS with a certificate for `dns.example`, and who signed it.
async fn tls_server(dir: &Path) -> (SocketAddr, Arc<AtomicUsize>) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    std::fs::write(dir.join("ca.pem"), authority.pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["dns.example".to_owned()]).unwrap();
    let certificate = leaf.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let private = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    config.alpn_protocols = vec![b"dot".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counter = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, counter) = (acceptor.clone(), counter.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                counter.fetch_add(1, Ordering::SeqCst);
                serve_stream(stream, |reply| reply.metadata.authentic_data = true).await;
            });
        }
    });
    (address, connections)
}

fn over_tls(address: SocketAddr, name: &str, ca: &Path) -> String {
    let server =
        format!("address: '{address}', transport: tls, serverName: {name}, caFile: {}", ca.display());
    format!("forward: [{{zones: [.], servers: [{{{server}}}]}}]")
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_over_tls_share_a_connection_and_a_certificate_for_another_name_is_not_believed() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (address, connections) = tls_server(dir.path()).await;
    let running =
        Arc::new(start(dir.path(), &over_tls(address, "dns.example", &dir.path().join("ca.pem"))).await);
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..20 {
        let running = running.clone();
        asking.spawn(async move { assert_answered(&running, &format!("n{number}.example.")).await });
    }
    asking.join_all().await;
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let running = Arc::into_inner(running).unwrap();
    running.stop().await;
    let wrong = start(other.path(), &over_tls(address, "other.example", &dir.path().join("ca.pem"))).await;
    let reply = wrong.ask("a.example.", RecordType::A).await;
    assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::ServFail, 0));
    let problem = upstream(&wrong, 0).await["problem"].as_str().unwrap_or_default().to_owned();
    assert!(problem.contains("certificate not valid for name"), "{problem}");
    assert_eq!(connections.load(Ordering::SeqCst), 1, "no question was sent");
    wrong.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_asks_us_back_is_found_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let relay = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let running = start(dir.path(), &sequential(&[relay.local_addr().unwrap()])).await;
    let (relay, back) = (Arc::new(relay), running.address);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = relay.recv_from(&mut buffer).await {
            let (query, relay) = (buffer[..length].to_vec(), relay.clone());
            tokio::spawn(async move {
                let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                socket.send_to(&query, back).await.unwrap();
                let mut reply = [0; 4096];
                if let Ok(Ok(length)) =
                    tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut reply)).await
                {
                    let _ = relay.send_to(&reply[..length], client).await;
                }
            });
        }
    });
    until(&running, "the loop was not found", |status| status["upstreams"][0]["health"] == "loop").await;
    let reply = running.ask("a.example.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    let (_, metrics) = running.http("GET", "/metrics", b"").await;
    assert!(metrics.contains("weft_dns_upstream_up{zone=\".\",") && metrics.contains("\"} 0\n"), "{metrics}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_settings_are_taken_up_and_wrong_ones_leave_the_last_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _tcp, _) = server(|query| vec![response(&query).to_vec().unwrap()]).await;
    let second = UpstreamServer::start(Behaviour::Answers).await;
    let path = dir.path().join("names.yaml");
    std::fs::write(&path, sequential(&[first])).unwrap();
    let config = || {
        let (file, settings) = SettingsFile::open(path.clone(), dir.path().join("kept.yaml"));
        let mut config = Config::new(
            "node1",
            vec![Ipv4Addr::LOCALHOST.into()],
            dir.path().join("names.json"),
            dir.path().join("proxy.sock"),
        );
        (config.port, config.settings, config.settings_file) = (0, settings, Arc::new(file));
        config
    };
    let running = Running::start_with(config()).await;
    assert_answered(&running, "a.example.").await;
    std::fs::write(&path, "forward: [{zones: [.], server: x}]").unwrap();
    until(&running, "the wrong settings were not said", |status| {
        status["settings"]["problem"].as_str().is_some_and(|problem| problem.contains("server"))
    })
    .await;
    assert_answered(&running, "b.example.").await;
    running.stop().await;
    // Also a new process starts with the last that could be used.
    let running = Running::start_with(config()).await;
    assert_answered(&running, "c.example.").await;
    let stub = format!(
        "{}\n- {{zones: [stub.example], servers: [{{address: '{}'}}]}}",
        sequential(&[first]).replace("forward: [", "forward:\n- ").trim_end_matches(']'),
        second.address
    );
    std::fs::write(&path, &stub).unwrap();
    until(&running, "the new settings were not taken up", |status| {
        status["upstreams"].as_array().unwrap().len() == 2 && status["settings"]["problem"].is_null()
    })
    .await;
    assert_eq!(rows(&running.ask("x.stub.example.", RecordType::A).await), ["x.stub.example. 192.0.2.1"]);
    assert_answered(&running, "d.example.").await;
    running.stop().await;
}

/// Ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// On a port that is free; where somebody else took it meanwhile, the daemon ends, and another port is looked for.
async fn start_daemon(command: impl Fn(u16) -> Command) -> (Daemon, SocketAddr) {
    let query = question("host.lab.example.", RecordType::A).to_vec().unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut buffer = [0; 512];
    for _ in 0..20 {
        let port = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let child = command(port).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut daemon = Daemon(child.unwrap());
        for _ in 0..400 {
            let _ = client.send_to(&query, address).await;
            let answer =
                tokio::time::timeout(Duration::from_millis(100), client.recv_from(&mut buffer)).await;
            if matches!(answer, Ok(Ok((_, from))) if from == address) {
                return (daemon, address);
            }
            if daemon.0.try_wait().unwrap().is_some() {
                break;
            }
        }
    }
    panic!("the daemon does not answer");
}

/// Asks a program of Debian's, on a port that it is told.
async fn ask_daemon(test: &str, program: &str, command: impl Fn(&Path, u16) -> Command) {
    if !Path::new(program).exists() {
        return skip::skip(test, format!("{program} is not installed"));
    }
    let dir = tempfile::tempdir().unwrap();
    let (_daemon, address) = start_daemon(|port| command(dir.path(), port)).await;
    let running = start(dir.path(), &sequential(&[address])).await;
    let reply = running.ask("HOST.lab.example.", RecordType::A).await;
    assert_eq!(rows(&reply), ["HOST.lab.example. 192.0.2.33"]);
    let none = running.ask("none.lab.example.", RecordType::A).await;
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
    let status = upstream(&running, 0).await;
    assert_eq!((&status["health"], &status["mismatches"]), (&"up".into(), &0.into()), "{status}");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unbound_is_asked() {
    ask_daemon("unbound_is_asked", "/usr/sbin/unbound", |dir, port| {
        let file = dir.join("unbound.conf");
        let text = format!(
            "server:\n interface: 127.0.0.1@{port}\n port: {port}\n do-daemonize: no\n use-syslog: no\n username: \"\"\n \
             chroot: \"\"\n pidfile: \"\"\n directory: {}\n module-config: iterator\n local-zone: lab.example. static\n \
             local-data: \"lab.example. SOA a. b. 1 1 1 1 60\"\n local-data: \"host.lab.example. A 192.0.2.33\"\n\
             remote-control:\n control-enable: no\n",
            dir.display()
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new("/usr/sbin/unbound");
        command.args(["-d", "-p", "-c"]).arg(file);
        command
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dnsmasq_is_asked() {
    ask_daemon("dnsmasq_is_asked", "/usr/sbin/dnsmasq", |_, port| {
        let mut command = Command::new("/usr/sbin/dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--no-daemon",
        ]);
        command
            .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--pid-file="])
            .arg(format!("--port={port}"));
        command.args(["--local=/lab.example/", "--host-record=host.lab.example,192.0.2.33"]);
        command
    })
    .await;
}
