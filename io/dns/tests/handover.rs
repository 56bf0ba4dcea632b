//! One name server process after the other on the same sockets, while clients ask.

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use support::{Behaviour, Running, UpstreamServer, plan, question, rows};
use weft_dns::{Config, Settings};

const QUESTIONS: usize = 12_000;
/// Asked and not answered at one time: as many answers fit into a socket of usual size.
const WINDOW: usize = 80;

/// Asks as fast as answers come, every so often a name that the upstream server takes its time for.
fn ask_all(server: SocketAddr, progress: &AtomicUsize) -> BTreeSet<u16> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answered = BTreeSet::new();
    let mut buffer = [0; 4096];
    let mut receive = |answered: &mut BTreeSet<u16>| {
        let missing = |answered: &BTreeSet<u16>| {
            let sent = progress.load(Ordering::SeqCst) as u16;
            (0..=sent).filter(|id| !answered.contains(id)).collect::<Vec<_>>()
        };
        let length =
            socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{error}: {:?}", missing(answered)));
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 1));
        assert!(answered.insert(reply.metadata.id), "one answer for each question");
    };
    for number in 0..QUESTIONS {
        let name = match number % 400 {
            0 => format!("slow{number}.example.test."),
            _ => "web.shop.svc.cluster.local.".to_owned(),
        };
        let mut message = question(&name, RecordType::A);
        message.metadata.id = number as u16;
        socket.send(&message.to_vec().unwrap()).unwrap();
        progress.store(number, Ordering::SeqCst);
        if number % 5 == 0 {
            // About 5,000 in a second.
            std::thread::sleep(Duration::from_millis(1));
        }
        while number + 1 - answered.len() > WINDOW {
            receive(&mut answered);
        }
    }
    while answered.len() < QUESTIONS {
        receive(&mut answered);
    }
    answered
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_loses_no_question() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = UpstreamServer::start(Behaviour::Answers).await;
    let listen = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    let mut config = Config::new("node1", listen, dir.path().join("names"), dir.path().join("proxy.sock"));
    config.port = 0;
    config.settings = Settings::with_servers(vec![upstream.address]);
    let mut running = Running::start_with(config.clone()).await;
    running.put_plan(&plan(3)).await;
    let address = running.address;
    let progress = Arc::new(AtomicUsize::new(0));
    let asking = {
        let progress = progress.clone();
        tokio::task::spawn_blocking(move || ask_all(address, &progress))
    };
    for upgrade in 1..=3 {
        while progress.load(Ordering::SeqCst) < upgrade * QUESTIONS / 5 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // A connection finishes what it has begun with the process that took it.
        let mut tcp = running.tcp().await;
        tcp.send(&[question(&format!("slow-tcp{upgrade}.example.test."), RecordType::A)]).await;
        while running.counter("queries.tcp").await == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let successor = Running::start_with(config.clone()).await;
        assert_eq!(tcp.receive().await.answers.len(), 1);
        running.ended().await;
        running = successor;
        assert_eq!(running.status().await["plan"]["source"], "disk");
    }
    assert_eq!(asking.await.unwrap().len(), QUESTIONS);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_successor_of_nobody_listens_and_what_is_left_of_a_killed_one_is_no_hindrance() {
    let dir = tempfile::tempdir().unwrap();
    for left in ["proxy.sock", "proxy.sock.handover"] {
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(left)).unwrap());
    }
    let server = Running::start(dir.path(), vec![]).await;
    server.put_plan(&plan(1)).await;
    assert_eq!(rows(&server.ask("web.shop.svc.cluster.local.", RecordType::A).await).len(), 1);
    server.stop().await;
    assert!(!dir.path().join("proxy.sock.handover").exists());
}
