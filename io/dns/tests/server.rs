//! The server over real sockets on loopback: cluster names, control socket, upstream servers and their faults.

#[path = "../../../tests/skip.rs"]
mod skip;
mod support;

use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use support::{Behaviour, Running, UpstreamServer, message, plan, question, rows};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_dns::{Config, Settings};
use weft_plan::NamePlan;

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_plan_cluster_names_fail_and_others_are_forwarded() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = UpstreamServer::start(Behaviour::Answers).await;
    let server = Running::start(dir.path(), vec![upstream.address]).await;
    for (name, kind) in [
        ("web.shop.svc.cluster.local.", RecordType::A),
        ("cluster.local.", RecordType::SOA),
        ("5.0.96.10.in-addr.arpa.", RecordType::PTR),
    ] {
        let reply = server.ask(name, kind).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "{name}");
    }
    assert_eq!(upstream.asked(), 0, "a cluster name was asked upstream");
    assert_eq!(server.status().await["ready"], false);
    assert_eq!(rows(&server.ask("a.example.test.", RecordType::A).await), ["a.example.test. 192.0.2.1"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_names_are_answered_as_the_specification_says() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(dir.path(), vec![]).await;
    assert_eq!(server.put_plan(&plan(3)).await, 204);
    let reply = server.ask("wEb.ShOp.sVc.cluster.LOCAL.", RecordType::A).await;
    assert_eq!(rows(&reply), ["wEb.ShOp.sVc.cluster.LOCAL. 10.96.0.5"], "the case is the client's");
    assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
    let srv = server.ask("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV).await;
    assert_eq!(rows(&srv), ["_http._tcp.web.shop.svc.cluster.local. 0 100 80 web.shop.svc.cluster.local."]);
    assert_eq!(srv.additionals.len(), 1);
    let pointer = server.ask("5.0.96.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(rows(&pointer), ["5.0.96.10.in-addr.arpa. web.shop.svc.cluster.local."]);
    let version = server.ask("dns-version.cluster.local.", RecordType::TXT).await;
    assert_eq!(rows(&version), ["dns-version.cluster.local. 1.1.0"]);
    for (name, kind, code) in [
        ("web.shop.svc.cluster.local.", RecordType::AAAA, ResponseCode::NoError),
        ("_tcp.web.shop.svc.cluster.local.", RecordType::SRV, ResponseCode::NoError),
        ("shop.svc.cluster.local.", RecordType::A, ResponseCode::NoError),
        ("wep.shop.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
        ("9.9.96.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
    ] {
        let reply = server.ask(name, kind).await;
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (code, 0), "{name} {kind}");
        let soa: Vec<_> = reply.authorities.iter().map(|record| record.record_type()).collect();
        assert_eq!(soa, [RecordType::SOA], "{name} {kind}: negative answers carry the SOA");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_good_plan_outlives_bad_ones_and_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(dir.path(), vec![]).await;
    assert_eq!(server.put_plan(&plan(3)).await, 204);
    for bad in [&b"{"[..], b"[]", &message(&NamePlan::default())] {
        let (code, reason) = server.http("PUT", "/plan", bad).await;
        assert_eq!(code, 400);
        assert!(reason.starts_with("not a plan of names"), "{reason}");
    }
    assert_eq!(server.http("GET", "/nothing", b"").await.0, 404);
    assert_eq!(server.http("DELETE", "/plan", b"").await.0, 405);
    assert_eq!(server.counter("plans.refused").await, 3);
    server.stop().await;
    let next = Running::start(dir.path(), vec![]).await;
    assert_eq!(next.status().await["plan"]["source"], "disk");
    assert_eq!(rows(&next.ask("web.shop.svc.cluster.local.", RecordType::A).await).len(), 1);
    let (_, metrics) = next.http("GET", "/metrics", b"").await;
    assert!(
        metrics.contains("weft_dns_ready 1\n") && metrics.contains("{transport=\"udp\",type=\"A\"} 1\n"),
        "{metrics}"
    );
    next.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_over_udp_comes_whole_over_tcp() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(dir.path(), vec![]).await;
    server.put_plan(&plan(200)).await;
    let cut = server.ask("many.shop.svc.cluster.local.", RecordType::A).await;
    assert!(cut.metadata.truncation && !cut.answers.is_empty() && cut.answers.len() < 200);
    let mut tcp = server.tcp().await;
    tcp.send(&[question("many.shop.svc.cluster.local.", RecordType::A)]).await;
    let whole = tcp.receive().await;
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 200));
    assert_eq!(server.counter("problems.truncated").await, 1);
    server.stop().await;
}

/// Proves RFC 7766: Questions on one connection are answered as their answers come.
#[tokio::test(flavor = "multi_thread")]
async fn pipelined_questions_do_not_wait_for_slow_ones() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = UpstreamServer::start(Behaviour::Answers).await;
    let server = Running::start(dir.path(), vec![upstream.address]).await;
    server.put_plan(&plan(1)).await;
    let mut tcp = server.tcp().await;
    let slow = question("slow.example.test.", RecordType::A);
    let quick = question("web.shop.svc.cluster.local.", RecordType::A);
    tcp.send(&[slow.clone(), quick.clone()]).await;
    assert_eq!(tcp.receive().await.metadata.id, quick.metadata.id);
    assert_eq!(tcp.receive().await.metadata.id, slow.metadata.id);
    server.stop().await;
}

/// More answers than wait for one client at a time, and the client has said that no more questions come.
#[tokio::test(flavor = "multi_thread")]
async fn questions_that_come_in_one_burst_are_all_answered() {
    const QUESTIONS: usize = 2000;
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(dir.path(), vec![]).await;
    server.put_plan(&plan(90)).await;
    let message = question("many.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    let mut burst = Vec::new();
    for _ in 0..QUESTIONS {
        burst.extend((message.len() as u16).to_be_bytes());
        burst.extend(&message);
    }
    let (mut read, mut write) = server.tcp().await.0.into_split();
    let asking = tokio::spawn(async move {
        write.write_all(&burst).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut answers = Vec::new();
    let all = read.read_to_end(&mut answers);
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("the connection stands still").unwrap();
    let mut rest = &answers[..];
    let mut count = 0;
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        rest = &after[u16::from_be_bytes(*length).into()..];
        count += 1;
    }
    assert_eq!(count, QUESTIONS);
    drop(asking.await.unwrap());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_optional_and_cannot_be_had_leaves_cluster_names_alone() {
    let dir = tempfile::tempdir().unwrap();
    // Without SO_REUSEPORT: nobody else can have it.
    let taken = std::net::UdpSocket::bind("127.0.0.2:0").unwrap();
    let listen = vec!["127.0.0.1".parse().unwrap(), "127.0.0.2".parse().unwrap()];
    let mut config = Config::new("node1", listen, dir.path().join("names"), dir.path().join("proxy.sock"));
    config.optional = vec!["127.0.0.2".parse().unwrap()];
    config.port = taken.local_addr().unwrap().port();
    let missing = "forward: [{zones: [.], servers: [{address: 192.0.2.1, transport: tls, serverName: dns.example, \
                   caFile: /nowhere/ca.pem}]}]";
    config.settings = Settings::parse(missing).unwrap();
    let server = Running::start_with(config).await;
    server.put_plan(&plan(1)).await;
    assert_eq!(rows(&server.ask("web.shop.svc.cluster.local.", RecordType::A).await).len(), 1);
    let status = server.status().await;
    assert_eq!(status["listen"].as_array().unwrap().len(), 1);
    let problem = status["settings"]["problem"].as_str().unwrap();
    assert!(problem.contains("/nowhere/ca.pem"), "{problem}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_answers_are_kept_shared_and_cleaned() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = UpstreamServer::start(Behaviour::Answers).await;
    let server = Running::start(dir.path(), vec![upstream.address]).await;
    server.put_plan(&plan(1)).await;
    let asks = (0..10).map(|_| server.ask("slow.example.test.", RecordType::A));
    for reply in futures_join(asks).await {
        assert_eq!(rows(&reply), ["slow.example.test. 192.0.2.1"], "nothing of other names");
    }
    assert_eq!(upstream.asked(), 1, "equal questions under way share one");
    let again = server.ask("SLOW.example.test.", RecordType::A).await;
    assert_eq!((upstream.asked(), rows(&again)), (1, vec!["SLOW.example.test. 192.0.2.1".to_owned()]));
    let alias = server.ask("out.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(rows(&alias), ["out.shop.svc.cluster.local. a.example.test.", "a.example.test. 192.0.2.1"]);
    let missing = server.ask("no.example.test.", RecordType::A).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    server.stop().await;
}

async fn futures_join<T>(asks: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut asks: Vec<_> = asks.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = asks.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (ask, done) in asks.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            if let std::task::Poll::Ready(value) = ask.as_mut().poll(context) {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_are_ignored_and_truncation_is_followed_over_tcp() {
    for (behaviour, counter) in [(Behaviour::LiesFirst, "mismatches"), (Behaviour::Truncates, "tcp")] {
        let dir = tempfile::tempdir().unwrap();
        let upstream = UpstreamServer::start(behaviour).await;
        let server = Running::start(dir.path(), vec![upstream.address]).await;
        assert_eq!(rows(&server.ask("a.example.test.", RecordType::A).await), ["a.example.test. 192.0.2.1"]);
        assert!(server.status().await["upstreams"][0][counter].as_u64().unwrap() > 0);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_upstream_is_asked_when_one_fails_and_failure_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let refusing = UpstreamServer::start(Behaviour::Refuses).await;
    let good = UpstreamServer::start(Behaviour::Answers).await;
    let server = Running::start(dir.path(), vec![refusing.address, good.address]).await;
    assert_eq!(rows(&server.ask("a.example.test.", RecordType::A).await).len(), 1);
    server.stop().await;
    let silent = UpstreamServer::start(Behaviour::Silent).await;
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(dir.path(), vec![silent.address]).await;
    let bytes = server.ask_bytes(&question("a.example.test.", RecordType::A).to_vec().unwrap()).await;
    assert_eq!(bytes[3] & 0x0f, ResponseCode::ServFail.low());
    let text = b"no upstream name server answered";
    assert!(bytes.windows(text.len()).any(|window| window == text), "an extended error says why");
    assert_eq!(server.status().await["upstreams"][0]["health"], "down");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_outside_are_refused_without_recursion() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = UpstreamServer::start(Behaviour::Answers).await;
    let server = Running::start(dir.path(), vec![upstream.address]).await;
    let mut query = question("a.example.test.", RecordType::A);
    query.metadata.recursion_desired = false;
    let bytes = server.ask_bytes(&query.to_vec().unwrap()).await;
    assert_eq!((bytes[3] & 0x0f, upstream.asked()), (ResponseCode::Refused.low(), 0));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_watches_sees_each_question_with_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let upstream = UpstreamServer::start(Behaviour::Answers).await;
    let server = Running::start(dir.path(), vec![upstream.address]).await;
    assert_eq!(server.http("GET", "/ready", b"").await.0, 503);
    server.put_plan(&plan(1)).await;
    assert_eq!(server.http("GET", "/ready", b"").await.0, 200);
    let mut rows = server.watch().await;
    for (name, kind, code, source) in [
        ("wEb.shop.svc.cluster.local.", RecordType::A, "No Error", "plan"),
        ("web.shop.svc.cluster.local.", RecordType::A, "No Error", "plan"),
        ("nobody.shop.svc.cluster.local.", RecordType::AAAA, "Non-Existent Domain", "plan"),
        ("a.example.test.", RecordType::A, "No Error", "upstream"),
        ("a.example.test.", RecordType::A, "No Error", "cache"),
    ] {
        server.ask(name, kind).await;
        let row = rows.next().await;
        let text = |field: &str| row[field].as_str().unwrap().to_owned();
        assert_eq!((text("name"), text("type")), (name.to_owned(), kind.to_string()));
        assert_eq!((text("code"), text("source")), (code.to_owned(), source.to_owned()));
        assert_eq!((text("client"), text("transport")), ("127.0.0.1".to_owned(), "udp".to_owned()));
    }
    drop(rows);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_does_not_keep_others_from_their_answers() {
    let dir = tempfile::tempdir().unwrap();
    let server = Running::start(dir.path(), vec![]).await;
    server.put_plan(&plan(1)).await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let good = question("web.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    let mut state = 1u64;
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = (state >> 24) as u8;
        }
        bytes.truncate(1 + (state >> 40) as usize % bytes.len());
        socket.send_to(&bytes, server.address).await.unwrap();
    }
    assert_eq!(rows(&server.ask("web.shop.svc.cluster.local.", RecordType::A).await).len(), 1);
    let mut tcp = server.tcp().await;
    tokio::io::AsyncWriteExt::write_all(&mut tcp.0, &[0, 3, 1, 2, 3]).await.unwrap();
    tcp.send(&[question("web.shop.svc.cluster.local.", RecordType::A)]).await;
    assert_eq!(tcp.receive().await.answers.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_agrees() {
    let dir = tempfile::tempdir().unwrap();
    if std::process::Command::new("dig").arg("-v").output().is_err() {
        return skip::skip("dig_agrees", "dig is not installed (Debian: bind9-dnsutils)");
    }
    let server = Running::start(dir.path(), vec![]).await;
    server.put_plan(&plan(200)).await;
    let port = server.address.port().to_string();
    let dig = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("dig");
        command.args(["@127.0.0.1", "-p", &port, "+timeout=5", "+tries=1"]).args(arguments);
        let output = tokio::time::timeout(Duration::from_secs(20), command.output()).await.unwrap().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(dig(&["+short", "web.shop.svc.cluster.local"]).await, "10.96.0.5\n");
    assert_eq!(dig(&["+short", "-x", "10.96.0.5"]).await, "web.shop.svc.cluster.local.\n");
    let many = dig(&["+short", "many.shop.svc.cluster.local"]).await;
    assert_eq!(many.lines().filter(|line| !line.starts_with(';')).count(), 200, "truncated, then TCP");
    for (arguments, expected) in [
        (&["nothing.shop.svc.cluster.local"][..], "status: NXDOMAIN"),
        (&["web.shop.svc.cluster.local", "AAAA"], "status: NOERROR"),
        (&["web.shop.svc.cluster.local", "+opcode=update"], "status: NOTIMP"),
        (&["web.shop.svc.cluster.local", "+edns=1", "+noednsnegotiation"], "status: BADVERS"),
        (&["version.bind", "CH", "TXT"], "status: REFUSED"),
        (&["cluster.local", "AXFR"], "Transfer failed."),
        (&["a.example.test"], "this node has no upstream name servers"),
    ] {
        let text = dig(arguments).await;
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    server.stop().await;
}
