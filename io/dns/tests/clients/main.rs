//! Real clients in a pod's network ask the name server on its node: dig, kdig, and the resolvers of glibc, musl, Go and Java with
//! the search list of the pod's resolv.conf.

#[path = "../../../../tests/skip.rs"]
mod skip;
#[path = "../support/mod.rs"]
mod support;
mod world;

use world::{World, addresses, compile, has};

const WEB: &str = "web.shop.svc.cluster.local";

/// Proves client.dig: Every type of record, negative answers, codes, sizes and TCP, as dig asks.
#[tokio::test(flavor = "multi_thread")]
async fn dig_is_answered() {
    let test = "dig_is_answered";
    if !has(test, "dig", "bind9-dnsutils") {
        return;
    }
    let Some(world) = World::start(test).await else { return };
    let short = async |question: &str| world.dig("dig", &format!("+short {question}")).await.out;
    assert_eq!(short(WEB).await, "10.96.0.5\n");
    assert_eq!(short("dual.shop.svc.cluster.local AAAA").await, "fd00:10:96::7\n");
    assert_eq!(short(&format!("_http._tcp.{WEB} SRV")).await, format!("0 100 80 {WEB}.\n"));
    assert_eq!(short("-x 10.96.0.5").await, format!("{WEB}.\n"));
    assert_eq!(short("dns-version.cluster.local TXT").await, "\"1.1.0\"\n");
    assert_eq!(short("out.shop.svc.cluster.local").await, "a.example.test.\n192.0.2.1\n");
    assert!(short("cluster.local SOA").await.starts_with("ns.dns.cluster.local. hostmaster.cluster.local. "));
    let says = async |question: &str, expected: &[&str]| {
        let said = world.dig("dig", question).await.all;
        for part in expected {
            assert!(said.contains(part), "{question}: no {part:?} in\n{said}");
        }
    };
    says(
        &format!("{WEB} AAAA"),
        &["status: NOERROR", "ANSWER: 0, AUTHORITY: 1", "SOA", "flags: qr aa rd ra"],
    )
    .await;
    says("wep.shop.svc.cluster.local", &["status: NXDOMAIN", "cluster.local.", "SOA"]).await;
    says("web.shop.svc.clusterset.local", &["status: NXDOMAIN", "clusterset.local.", "SOA"]).await;
    says(&format!("{WEB} TYPE65400"), &["status: NOERROR", "ANSWER: 0"]).await;
    says(&format!("+notcp {WEB} ANY"), &["status: NOERROR", "ANSWER: 1"]).await;
    says(&format!("-c CH {WEB} TXT"), &["status: REFUSED"]).await;
    says(&format!("+opcode=update {WEB}"), &["status: NOTIMP"]).await;
    says(&format!("+edns=1 +noednsnegotiation {WEB}"), &["status: BADVERS"]).await;
    says("+noedns +ignore many.shop.svc.cluster.local", &["tc", "MSG SIZE  rcvd: "]).await;
    says("+noedns many.shop.svc.cluster.local", &["Truncated, retrying in TCP mode", "ANSWER: 40"]).await;
    says(&format!("+tcp +keepopen {WEB} dual.shop.svc.cluster.local"), &["10.96.0.5", "10.96.0.7"]).await;
    says("WeB.shop.SVC.cluster.local", &["WeB.shop.SVC.cluster.local."]).await;
    says("+cookie +nsid +subnet=192.0.2.0/24 web.shop.svc.cluster.local", &["status: NOERROR", "10.96.0.5"])
        .await;
    world.server.stop().await;
}

/// Proves client.kdig: The same over UDP and TCP, with its own EDNS options.
#[tokio::test(flavor = "multi_thread")]
async fn kdig_is_answered() {
    let test = "kdig_is_answered";
    if !has(test, "kdig", "knot-dnsutils") {
        return;
    }
    let Some(world) = World::start(test).await else { return };
    for question in
        [WEB.to_owned(), format!("+tcp {WEB}"), format!("+dnssec +nsid {WEB}"), format!("+noedns {WEB}")]
    {
        let said = world.dig("kdig", &format!("+short {question}")).await;
        assert_eq!(said.out, "10.96.0.5\n", "{question}");
    }
    let many = world.dig("kdig", "many.shop.svc.cluster.local").await.all;
    assert!(many.contains("ANSWER: 40"), "{many}");
    let missing = world.dig("kdig", "+padding=128 wep.shop.svc.cluster.local").await.all;
    assert!(missing.contains("status: NXDOMAIN") && missing.contains("SOA"), "{missing}");
    world.server.stop().await;
}

/// What the resolver of a C library finds for a name as a program writes it.
async fn walks_as_the_pod_does(world: &World, program: &str, arguments: &[&str], most: usize) {
    let found = async |name: &str| {
        let said = world.run(program, arguments.iter().copied().chain([name])).await;
        (said.success, addresses(&said.out))
    };
    let one = |address: &str| (true, vec![address.to_owned()]);
    for name in ["web", "web.shop", "web.shop.svc", WEB, "web.shop.svc.cluster.local."] {
        assert_eq!(found(name).await, one("10.96.0.5"), "{name}");
    }
    assert_eq!(found("dual").await, (true, vec!["10.96.0.7".into(), "fd00:10:96::7".into()]));
    assert_eq!(found("many").await.1.len(), most);
    assert_eq!(found("out").await, one("192.0.2.1"));
    for name in ["nothing", "nothing.shop", "web.nowhere.svc.cluster.local", "nothing.example.test"] {
        assert!(!found(name).await.0, "{name}");
    }
    let before = world.upstream.asked();
    assert_eq!(found("www.example.test").await, one("192.0.2.1"));
    // A and AAAA of the last name of the walk, and of no other.
    assert_eq!(world.upstream.asked() - before, 2);
}

/// Proves client.glibc: The pod's whole search list, A and AAAA at once, TCP for long answers; an outside name costs one
/// upstream question for each type.
#[tokio::test(flavor = "multi_thread")]
async fn glibc_walks_the_search_list() {
    let Some(world) = World::start("glibc_walks_the_search_list").await else { return };
    // What does not fit over UDP is asked over TCP.
    walks_as_the_pod_does(&world, "getent", &["ahosts"], 40).await;
    world.server.stop().await;
}

const LOOK_UP: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list, *one;
    int code = getaddrinfo(argv[1], 0, &hints, &list);
    if (code) return fprintf(stderr, "%s\n", gai_strerror(code)), 2;
    for (one = list; one; one = one->ai_next) {
        char text[64];
        const void *address = one->ai_family == AF_INET
            ? (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr
            : (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
        puts(inet_ntop(one->ai_family, address, text, sizeof text));
    }
}
"#;

/// Proves client.musl: The same walk, whose resolver ends it at a name without the type, and asks both types from one socket.
#[tokio::test(flavor = "multi_thread")]
async fn musl_walks_the_search_list() {
    let test = "musl_walks_the_search_list";
    if !has(test, "musl-gcc", "musl-tools") {
        return;
    }
    let Some(world) = World::start(test).await else { return };
    let program = world.path("look-up");
    compile(&world.write("look-up.c", LOOK_UP), &program);
    // Up to its version 1.2.3 musl takes what fits over UDP; later ones ask over TCP.
    let all = addresses(&world.run(program.to_str().unwrap(), ["many"]).await.out).len();
    assert!(all == 40 || (25..30).contains(&all), "{all}");
    walks_as_the_pod_does(&world, program.to_str().unwrap(), &[], all).await;
    world.server.stop().await;
}

/// Proves client.go: kubectl, whose resolver is Go's own, finds the same with EDNS, both types at once and ndots.
#[tokio::test(flavor = "multi_thread")]
async fn gos_resolver_walks_the_search_list() {
    let test = "gos_resolver_walks_the_search_list";
    if !has(test, "kubectl", "kubernetes-client") {
        return;
    }
    let Some(world) = World::start(test).await else { return };
    // Nothing is reached from the pod, so what was tried is in the error.
    for (name, address) in [
        ("web", "10.96.0.5"),
        ("web.shop.svc", "10.96.0.5"),
        (WEB, "10.96.0.5"),
        ("www.example.test", "192.0.2.1"),
    ] {
        let server = format!("--server=http://{name}:8080");
        let said = world
            .run("env", ["NO_PROXY=*", "GODEBUG=netdns=go", "kubectl", &server, "get", "--raw", "/"])
            .await;
        assert!(said.all.contains(&format!("dial tcp {address}:8080")), "{name}: {}", said.all);
    }
    let said = world
        .run(
            "env",
            [
                "NO_PROXY=*",
                "GODEBUG=netdns=go",
                "kubectl",
                "--server=http://nobody:8080",
                "get",
                "--raw",
                "/",
            ],
        )
        .await;
    assert!(said.all.contains("no such host"), "{}", said.all);
    world.server.stop().await;
}

const LOOK_UP_IN_JAVA: &str = r#"
public class LookUp {
    public static void main(String[] arguments) throws Exception {
        for (var address : java.net.InetAddress.getAllByName(arguments[0])) System.out.println(address.getHostAddress());
    }
}
"#;

/// Proves client.java: InetAddress finds what the C library under it finds.
#[tokio::test(flavor = "multi_thread")]
async fn java_walks_the_search_list() {
    let test = "java_walks_the_search_list";
    if !has(test, "java", "default-jdk-headless") {
        return;
    }
    let Some(world) = World::start(test).await else { return };
    let program = world.write("LookUp.java", LOOK_UP_IN_JAVA);
    for (name, address) in [("web.shop", "10.96.0.5"), ("www.example.test", "192.0.2.1")] {
        let said = world.run("java", [program.to_str().unwrap(), name]).await;
        if said.all.contains("jdk.compiler") {
            skip::skip(test, "this Java cannot compile (Debian: default-jdk-headless)");
            break;
        }
        assert_eq!(addresses(&said.out), [address], "{}", said.all);
    }
    world.server.stop().await;
}
