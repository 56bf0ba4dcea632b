//! The server as it runs on a node: it answers in the node's network namespace, on an address that comes later,
//! and asks upstream servers from its own.

#[path = "../../../tests/skip.rs"]
mod skip;
mod support;

use std::fs::File;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;
use nix::sched::{CloneFlags, setns};
use support::{Behaviour, Running, UpstreamServer, plan, question, rows};
use weft_dns::{Config, Settings};

/// A named network namespace that goes with the test.
struct Netns(String);

impl Netns {
    fn create() -> Self {
        let name = format!("weft-dns-test-{}", std::process::id());
        ip(&["netns", "add", &name]);
        let netns = Self(name);
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.0], arguments].concat());
    }

    fn path(&self) -> std::path::PathBuf {
        format!("/run/netns/{}", self.0).into()
    }

    /// One question asked by a thread inside the namespace, on a socket connected to the server: the kernel
    /// gives it only responses that come from the address asked.
    fn ask(&self, server: IpAddr, name: &str) -> Message {
        let path = self.path();
        let query = question(name, RecordType::A).to_vec().unwrap();
        let asking = std::thread::spawn(move || {
            setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = std::net::UdpSocket::bind(any).unwrap();
            socket.connect((server, 53)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            socket.send(&query).unwrap();
            let mut buffer = [0; 4096];
            let length = socket.recv(&mut buffer).expect("a response from the address asked");
            Message::from_vec(&buffer[..length]).unwrap()
        });
        asking.join().unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        ip(&["netns", "delete", &self.0]);
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("ip (iproute2) is installed");
    assert!(status.success(), "ip {arguments:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_in_the_nodes_namespace_and_forwards_from_its_own() {
    if !nix::unistd::geteuid().is_root() {
        return skip::skip(
            "it_answers_in_the_nodes_namespace_and_forwards_from_its_own",
            "making network namespaces needs root",
        );
    }
    let netns = Netns::create();
    let dir = tempfile::tempdir().unwrap();
    // The upstream server is on loopback of the namespace the test runs in; the node's has none there.
    let upstream = UpstreamServer::start(Behaviour::Answers).await;
    let addresses: [IpAddr; 3] =
        ["10.96.0.10", "169.254.20.10", "fd00:10:96::a"].map(|text| text.parse().unwrap());
    let mut config = Config::new(
        "node1",
        addresses.to_vec(),
        dir.path().join("names.json"),
        dir.path().join("proxy.sock"),
    );
    config.netns = Some(netns.path());
    config.settings = Settings::with_servers(vec![upstream.address]);
    let server = Running::start_with(config.clone()).await;
    netns.ip(&["address", "add", "10.96.0.10/32", "dev", "lo"]);
    netns.ip(&["address", "add", "169.254.20.10/32", "dev", "lo"]);
    netns.ip(&["address", "add", "fd00:10:96::a/128", "dev", "lo", "nodad"]);
    assert_eq!(server.put_plan(&plan(1)).await, 204);
    for address in addresses {
        let reply = netns.ask(address, "web.shop.svc.cluster.local.");
        assert_eq!(rows(&reply), ["web.shop.svc.cluster.local. 10.96.0.5"], "{address}");
        assert_eq!(rows(&netns.ask(address, "a.example.test.")), ["a.example.test. 192.0.2.1"], "{address}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_namespace_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let listen = vec!["127.0.0.1".parse().unwrap()];
    let mut config =
        Config::new("node1", listen, dir.path().join("names.json"), dir.path().join("proxy.sock"));
    config.netns = Some("/run/netns/nowhere".into());
    let error = weft_dns::run_until(config, std::future::pending()).await.unwrap_err();
    assert!(error.to_string().contains("/run/netns/nowhere"), "{error}");
}

#[tokio::test]
async fn a_taken_port_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = vec!["127.0.0.1".parse().unwrap()];
    let mut config =
        Config::new("node1", listen, dir.path().join("names.json"), dir.path().join("proxy.sock"));
    config.port = taken.local_addr().unwrap().port();
    let error = weft_dns::run_until(config, std::future::pending()).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:") && error.contains("another name server"), "{error}");
}
