//! Health checks as a load balancer asks for them, from plan to answer, over a restart.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use weft_model::{Port, ServiceKey};
use weft_plan::HealthCheck;
use weft_proxy::{Config, ProxyPlan, run};

const PATIENCE: Duration = Duration::from_secs(10);

fn exchange(mut stream: impl Read + Write, request: &str) -> std::io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// `None`: nobody listens, or stopped to while the connection waited, which the kernel resets.
fn get(address: SocketAddr) -> Option<String> {
    let stream = TcpStream::connect(address).ok()?;
    exchange(stream, "GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()
}

fn control(socket: &Path, method: &str, path: &str, body: &str) -> String {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: weft\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    exchange(UnixStream::connect(socket).unwrap(), &request).unwrap()
}

fn until<T>(mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "it does not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One that nobody has now, so that tests of several checkouts may run at once.
fn free_port() -> u16 {
    std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

fn plan(port: u16, local_endpoints: usize) -> String {
    let check = HealthCheck { service: ServiceKey::new("shop", "web"), local_endpoints };
    serde_json::to_string(&ProxyPlan { health_checks: [(Port(port), check)].into() }).unwrap()
}

#[test]
fn answers_follow_the_plan_and_outlive_who_gave_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        netns: None,
        plan_file: dir.path().join("plan.json"),
        socket: dir.path().join("proxy.sock"),
    };
    let start = || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.spawn(run(config.clone()));
        until(|| UnixStream::connect(&config.socket).ok());
        runtime
    };
    let first = start();
    let port = free_port();
    let (v4, v6) =
        (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
    assert!(get(v4).is_none());
    assert!(control(&config.socket, "PUT", "/plan", "{\"healthChecks\": 7}").starts_with("HTTP/1.1 400"));
    assert!(control(&config.socket, "PUT", "/plan", &plan(port, 2)).starts_with("HTTP/1.1 204"));
    let answer = until(|| get(v4));
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nx-load-balancing-endpoint-weight: 2\r\n"), "{answer}");
    let body: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let expected = serde_json::json!({
        "service": {"namespace": "shop", "name": "web"}, "localEndpoints": 2, "serviceProxyHealthy": true,
    });
    assert_eq!(body, expected);
    control(&config.socket, "PUT", "/plan", &plan(port, 0));
    until(|| get(v6).filter(|answer| answer.starts_with("HTTP/1.1 503 ")));
    assert!(control(&config.socket, "GET", "/status", "").contains("\"source\":\"agent\""));
    drop(first);
    let _second = start();
    until(|| get(v4).filter(|answer| answer.starts_with("HTTP/1.1 503 ")));
    assert!(control(&config.socket, "GET", "/status", "").contains("\"source\":\"disk\""));
    control(&config.socket, "PUT", "/plan", "{}");
    until(|| get(v4).is_none().then_some(()));
}

/// A balancer that keeps its connection must not go on hearing about a service that is gone.
#[test]
fn a_kept_connection_ends_with_its_service() {
    let dir = tempfile::tempdir().unwrap();
    let (plan_file, socket) = (dir.path().join("plan.json"), dir.path().join("proxy.sock"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.spawn(run(Config { netns: None, plan_file, socket: socket.clone() }));
    until(|| UnixStream::connect(&socket).ok());
    let port = free_port();
    control(&socket, "PUT", "/plan", &plan(port, 1));
    let mut stream = until(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut ask = |expected: &str| {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
        let mut answer = String::new();
        while !answer.ends_with('}') {
            let mut part = [0; 512];
            let length = stream.read(&mut part).unwrap();
            assert!(length > 0, "{answer}");
            answer += std::str::from_utf8(&part[..length]).unwrap();
        }
        assert!(answer.starts_with(expected), "{answer}");
    };
    ask("HTTP/1.1 200 ");
    ask("HTTP/1.1 200 ");
    // What changes is told on the same connection; what goes ends it.
    control(&socket, "PUT", "/plan", &plan(port, 0));
    until(|| get((Ipv4Addr::LOCALHOST, port).into()).filter(|answer| answer.starts_with("HTTP/1.1 503 ")));
    ask("HTTP/1.1 503 ");
    control(&socket, "PUT", "/plan", "{}");
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "closed, not only silent");
}
