//! Asks a container's probes, from the node's own network, and runs its hooks. What answers mean is probe.rs.
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;

use super::bundle::AttemptDir;
use super::containers::{Runner, resolve_port, runner_of};
use super::enter::Entry;
use super::probe::Outcome;

/// The container that is asked.
#[derive(Clone, Debug)]
pub struct Target {
    pub container: Container,
    pub address: IpAddr,
    pub dir: AttemptDir,
}

/// An answer, and whether the question could not really be put to a stand-in.
#[derive(Debug)]
pub struct Answer {
    pub outcome: Outcome,
    pub assumed: Option<String>,
}

impl Answer {
    fn of(result: Result<(), String>) -> Self {
        let outcome = match result {
            Ok(()) => Outcome::Success,
            Err(message) => Outcome::Failure(message),
        };
        Self { outcome, assumed: None }
    }
}

/// Puts a probe's question once.
pub async fn ask(target: &Target, probe: &Probe, timeout: Duration) -> Answer {
    if let Some(exec) = &probe.exec {
        return ask_exec(target, exec, timeout).await;
    }
    let asked = async {
        if let Some(action) = &probe.http_get {
            http_get(target, action, "kube-probe/1.32").await
        } else if let Some(action) = &probe.tcp_socket {
            connect(target, action).await.map(drop)
        } else if let Some(action) = &probe.grpc {
            grpc(target, action).await
        } else {
            Err("the probe asks nothing".to_owned())
        }
    };
    let late = |_| Err(format!("no answer within {} s", timeout.as_secs()));
    Answer::of(tokio::time::timeout(timeout, asked).await.unwrap_or_else(late))
}

/// Runs a hook to its end; the caller bounds its time.
pub async fn run_hook(target: &Target, hook: &LifecycleHandler, limit: Duration) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.try_into().unwrap_or_default())).await;
        return Ok(());
    }
    if let Some(exec) = &hook.exec {
        return match ask_exec(target, exec, limit).await.outcome {
            Outcome::Success => Ok(()),
            Outcome::Failure(message) => Err(message),
        };
    }
    if let Some(action) = &hook.http_get {
        return http_get(target, action, "kube-lifecycle/1.32").await;
    }
    if let Some(action) = &hook.tcp_socket {
        return connect(target, action).await.map(drop);
    }
    Ok(())
}

async fn ask_exec(target: &Target, exec: &ExecAction, timeout: Duration) -> Answer {
    let command = exec.command.clone().unwrap_or_default();
    let stand_in = runner_of(target.container.image.as_deref()) == Runner::StandIn;
    let ran = match Entry::of(&target.dir) {
        Ok(entry) => entry.run(&command, timeout).await,
        Err(error) => Err(error),
    };
    let missing = || Answer {
        outcome: Outcome::Success,
        assumed: Some(format!(
            "{:?} is not on the host: assumed to succeed in the stand-in",
            command.join(" ")
        )),
    };
    match ran {
        Ok(output) if output.code == 0 => Answer::of(Ok(())),
        // What a shell answers for a command it cannot find or run.
        Ok(output) if stand_in && matches!(output.code, 126 | 127) => missing(),
        Ok(output) => Answer::of(Err(format!("exit code {}: {}", output.code, output.text))),
        Err(error) if stand_in && error.kind() == std::io::ErrorKind::NotFound => missing(),
        Err(error) => Answer::of(Err(error.to_string())),
    }
}

fn address(target: &Target, host: Option<&String>, port: &IntOrString) -> Result<(String, u16), String> {
    let port =
        resolve_port(&target.container, port).ok_or_else(|| format!("the container has no port {port:?}"))?;
    let host = host.filter(|host| !host.is_empty()).cloned().unwrap_or_else(|| target.address.to_string());
    Ok((host, port))
}

async fn open(host: &str, port: u16) -> Result<TcpStream, String> {
    let opened = match host.parse::<IpAddr>() {
        Ok(ip) => TcpStream::connect(SocketAddr::new(ip, port)).await,
        Err(_) => TcpStream::connect((host, port)).await,
    };
    opened.map_err(|error| format!("dial tcp {}: {error}", host_port(host, port)))
}

fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

async fn connect(target: &Target, action: &TCPSocketAction) -> Result<TcpStream, String> {
    let (host, port) = address(target, action.host.as_ref(), &action.port)?;
    open(&host, port).await
}

async fn http_get(target: &Target, action: &HTTPGetAction, agent: &'static str) -> Result<(), String> {
    let (host, port) = address(target, action.host.as_ref(), &action.port)?;
    let stream = open(&host, port).await?;
    let secure = action.scheme.as_deref() == Some("HTTPS");
    if secure && runner_of(target.container.image.as_deref()) == Runner::StandIn {
        // A stand-in has no certificate: that it listens must do.
        return Ok(());
    }
    let request = http_request(action, &host_port(&host, port), agent)?;
    let status = if secure {
        let stream = super::insecure_tls::connect(stream, &host).await.map_err(|error| error.to_string())?;
        send_http1(TokioIo::new(stream), request).await?
    } else {
        send_http1(TokioIo::new(stream), request).await?
    };
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }
}

fn http_request(
    action: &HTTPGetAction,
    authority: &str,
    agent: &'static str,
) -> Result<Request<Full<Bytes>>, String> {
    let path = action.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let uri: Uri = path.parse().map_err(|error| format!("path {path:?}: {error}"))?;
    let mut request = Request::new(Full::default());
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, HeaderValue::from_static(agent));
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    for given in action.http_headers.iter().flatten() {
        let name =
            HeaderName::try_from(&given.name).map_err(|error| format!("header {:?}: {error}", given.name))?;
        let value = HeaderValue::try_from(&given.value).map_err(|error| format!("header {name}: {error}"))?;
        headers.insert(name, value);
    }
    if !headers.contains_key(header::HOST) {
        let host =
            HeaderValue::try_from(authority).map_err(|error| format!("host {authority:?}: {error}"))?;
        headers.insert(header::HOST, host);
    }
    Ok(request)
}

async fn send_http1<T>(io: T, request: Request<Full<Bytes>>) -> Result<u16, String>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("Get {:?}: {error}", "probe");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.map_err(failed)?;
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(failed);
    driver.abort();
    Ok(answer?.status().as_u16())
}

/// Asks the standard gRPC health service.
async fn grpc(target: &Target, action: &GRPCAction) -> Result<(), String> {
    let (host, port) = address(target, None, &IntOrString::Int(action.port))?;
    let stream = open(&host, port).await?;
    let failed = |error: hyper::Error| format!("gRPC health check: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(failed)?;
    let driver = tokio::spawn(connection);
    let request = Request::post(format!("http://{}/grpc.health.v1.Health/Check", host_port(&host, port)))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::USER_AGENT, "kube-probe/1.32")
        .header(header::TE, "trailers")
        .body(Full::new(health_request(action.service.as_deref().unwrap_or_default())))
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(failed)?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, 64 << 10)
        .collect()
        .await
        .map_err(|error| format!("gRPC health check: {error}"))?;
    driver.abort();
    let status =
        body.trailers().and_then(|trailers| trailers.get("grpc-status")).or(head.headers.get("grpc-status"));
    match status.map(|status| status.as_bytes().to_vec()) {
        Some(status) if status == b"0" => {}
        Some(status) => {
            return Err(format!("gRPC health check: status {}", String::from_utf8_lossy(&status)));
        }
        None => return Err(format!("gRPC health check: no gRPC answer, HTTP status {}", head.status)),
    }
    // After the frame's five bytes: field 1 of the answer, 1 for SERVING.
    match body.to_bytes().get(5..) {
        Some([0x08, 1, ..]) => Ok(()),
        other => Err(format!("gRPC health check: not serving ({other:?})")),
    }
}

fn health_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if let Ok(length) = u8::try_from(service.len())
        && (1..128).contains(&length)
    {
        message.extend([0x0a, length]);
        message.extend(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or_default();
    let mut frame = vec![0];
    frame.extend(length.to_be_bytes());
    frame.extend(message);
    frame.into()
}
