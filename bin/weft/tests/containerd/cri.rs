//! The part of the Container Runtime Interface (runtime.v1) that a kubelet uses to run a pod: gRPC over containerd's
//! socket. Field numbers are those of k8s.io/cri-api's api.proto; fields that are not needed are left out.

use std::collections::HashMap;
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    pub hostname: String,
    #[prost(string, tag = "3")]
    pub log_directory: String,
    #[prost(map = "string, string", tag = "6")]
    pub labels: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    pub linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub namespace: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    pub cgroup_parent: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    pub metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    pub image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    pub command: Vec<String>,
    #[prost(string, tag = "11")]
    pub log_path: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerMetadata {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    #[prost(string, tag = "1")]
    pub image: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxStatus {
    /// 0: ready.
    #[prost(int32, tag = "3")]
    pub state: i32,
    #[prost(message, optional, tag = "5")]
    pub network: Option<PodSandboxNetworkStatus>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodSandboxNetworkStatus {
    #[prost(string, tag = "1")]
    pub ip: String,
    #[prost(message, repeated, tag = "2")]
    pub additional_ips: Vec<PodIp>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodIp {
    #[prost(string, tag = "1")]
    pub ip: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExecOutcome {
    #[prost(bytes = "vec", tag = "1")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    pub exit_code: i32,
}

/// Most requests name one object, and most answers too.
#[derive(Clone, PartialEq, Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Nothing {}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxStatusResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<PodSandboxStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    pod_sandbox_id: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ExecSyncRequest {
    #[prost(string, tag = "1")]
    container_id: String,
    #[prost(string, repeated, tag = "2")]
    cmd: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct ImageStatusResponse {
    #[prost(message, optional, tag = "1")]
    image: Option<Id>,
}

pub struct Cri(SendRequest<Full<Bytes>>);

impl Cri {
    pub async fn connect(socket: &Path) -> Self {
        let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub async fn has_image(&mut self, image: &str) -> bool {
        let request = ImageStatusRequest { image: Some(ImageSpec { image: image.to_owned() }) };
        let answer: ImageStatusResponse = self.call("ImageService/ImageStatus", &request).await.unwrap();
        answer.image.is_some()
    }

    pub async fn run_sandbox(&mut self, config: &PodSandboxConfig) -> Result<String, String> {
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        self.call("RuntimeService/RunPodSandbox", &request).await.map(|answer: Id| answer.id)
    }

    pub async fn sandbox_status(&mut self, sandbox: &str) -> PodSandboxStatus {
        let answer: PodSandboxStatusResponse =
            self.call("RuntimeService/PodSandboxStatus", &id(sandbox)).await.unwrap();
        answer.status.expect("a status")
    }

    pub async fn start_container(
        &mut self,
        sandbox: &str,
        sandbox_config: &PodSandboxConfig,
        config: ContainerConfig,
    ) -> String {
        let request = CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config.clone()),
        };
        let container: Id = self.call("RuntimeService/CreateContainer", &request).await.unwrap();
        let _: Nothing = self.call("RuntimeService/StartContainer", &container).await.unwrap();
        container.id
    }

    /// Runs a command in a running container; containerd ends it after `seconds`, which is an error.
    pub async fn exec(
        &mut self,
        container: &str,
        command: &[&str],
        seconds: i64,
    ) -> Result<ExecOutcome, String> {
        let cmd = command.iter().map(ToString::to_string).collect();
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: seconds };
        self.call("RuntimeService/ExecSync", &request).await
    }

    pub async fn remove_sandbox(&mut self, sandbox: &str) {
        let _: Nothing = self.call("RuntimeService/StopPodSandbox", &id(sandbox)).await.unwrap();
        let _: Nothing = self.call("RuntimeService/RemovePodSandbox", &id(sandbox)).await.unwrap();
    }

    /// One unary call; the error is what the server says.
    async fn call<A: Message + Default>(
        &mut self,
        method: &str,
        request: &impl Message,
    ) -> Result<A, String> {
        let mut body = BytesMut::new();
        body.put_u8(0); // not compressed
        body.put_u32(request.encoded_len() as u32);
        request.encode(&mut body).unwrap();
        let request = hyper::Request::post(format!("http://localhost/runtime.v1.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(body.freeze()))
            .unwrap();
        let response = self.0.send_request(request).await.map_err(|error| error.to_string())?;
        // An error without a body puts its status into the headers.
        let mut statuses = vec![response.headers().clone()];
        let collected = response.into_body().collect().await.map_err(|error| error.to_string())?;
        statuses.extend(collected.trailers().cloned());
        let told = |name: &str| statuses.iter().find_map(|headers| headers.get(name)?.to_str().ok());
        if told("grpc-status") != Some("0") {
            return Err(told("grpc-message").unwrap_or("no message").to_owned());
        }
        let body = collected.to_bytes();
        A::decode(body.get(5..).unwrap_or_default()).map_err(|error| error.to_string())
    }
}

fn id(id: &str) -> Id {
    Id { id: id.to_owned() }
}
