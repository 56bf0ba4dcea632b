//! A container runtime's side (exec of the plugin) and an agent with a network of plain veth pairs or of nothing at all.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use weft_cni::{
    Attached, Attachment, CniError, CniService, MacAddr, PodNetwork, ServiceConfig, bind_socket, handle,
};
use weft_model::{Cidr, Family};

pub const PLUGIN: &str = env!("CARGO_BIN_EXE_weft-cni-plugin");
/// A namespace that exists and outlives the test.
pub const OWN_NETNS: &str = "/proc/self/ns/net";

/// A node's directory, with an agent that can be started and killed.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub pod_cidrs: Vec<Cidr>,
}

pub struct Agent<N> {
    pub service: Arc<CniService<N>>,
    pub network: Arc<N>,
    /// One permit for each connection that ended.
    pub ended: Arc<Semaphore>,
    server: tokio::task::JoinHandle<()>,
}

impl Node {
    pub fn new() -> Self {
        Self::with_pods(&["10.244.1.0/24", "fd00:10:244:1::/64"])
    }

    pub fn with_pods(pod_cidrs: &[&str]) -> Self {
        let pod_cidrs = pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        Self { dir: tempfile::tempdir().unwrap(), pod_cidrs }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub fn queued(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("agent/cni-deletions")).map_or(0, Iterator::count)
    }

    pub fn conf(&self) -> Value {
        json!({"cniVersion": "1.1.0", "name": "weft", "type": "weft", "agentSocket": self.socket()})
    }

    pub async fn agent<N: PodNetwork>(&self, network: Arc<N>) -> Agent<N> {
        let config = ServiceConfig {
            state_dir: self.dir.path().join("agent"),
            node: "node1".into(),
            pod_cidrs: self.pod_cidrs.clone(),
        };
        let service = CniService::open(config, Arc::clone(&network)).unwrap();
        let listener = bind_socket(&self.socket()).unwrap();
        let ended = Arc::new(Semaphore::new(0));
        let server = tokio::spawn(serve(listener, Arc::clone(&service), Arc::clone(&ended)));
        Agent { service, network, ended, server }
    }
}

impl<N> Agent<N> {
    /// Nobody listens any more; what was under way is not awaited.
    pub async fn kill(self) -> Arc<N> {
        self.server.abort();
        assert!(self.server.await.unwrap_err().is_cancelled());
        self.network
    }
}

async fn serve<N: PodNetwork>(
    listener: tokio::net::UnixListener,
    service: Arc<CniService<N>>,
    ended: Arc<Semaphore>,
) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (service, ended) = (Arc::clone(&service), Arc::clone(&ended));
        connections.spawn(async move {
            let answer = hyper::service::service_fn(move |request| {
                let service = Arc::clone(&service);
                async move {
                    let answer = handle(&service, request).await;
                    Ok::<_, Infallible>(answer.unwrap_or_else(|_| {
                        Response::builder()
                            .status(StatusCode::NOT_FOUND)
                            .body(Full::new(Bytes::from_static(b"no such path")))
                            .unwrap()
                    }))
                }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            ended.add_permits(1);
        });
    }
}

/// One call of the plugin, as a runtime words it.
#[derive(Clone)]
pub struct Call {
    pub env: BTreeMap<String, String>,
    pub conf: Value,
}

impl Call {
    pub fn new(verb: &str, container: &str, conf: &Value) -> Self {
        let mut env = BTreeMap::from([
            ("CNI_COMMAND".to_owned(), verb.to_owned()),
            ("CNI_PATH".to_owned(), "/nowhere".to_owned()),
        ]);
        if !container.is_empty() {
            env.insert("CNI_CONTAINERID".to_owned(), container.to_owned());
            env.insert("CNI_IFNAME".to_owned(), "eth0".to_owned());
            env.insert("CNI_NETNS".to_owned(), OWN_NETNS.to_owned());
            env.insert(
                "CNI_ARGS".to_owned(),
                format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={container};K8S_POD_UID=u-{container}"),
            );
        }
        Self { env, conf: conf.clone() }
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn conf(mut self, key: &str, value: Value) -> Self {
        self.conf[key] = value;
        self
    }

    pub async fn spawn(&self, program: &Path) -> Child {
        let mut child = Command::new(program)
            .env_clear()
            .envs(&self.env)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(self.conf.to_string().as_bytes()).await.unwrap();
        child
    }

    pub async fn run_with(&self, program: &Path) -> Answer {
        let output = self.spawn(program).await.wait_with_output().await.unwrap();
        Answer::of(&output)
    }

    pub async fn run(&self) -> Answer {
        self.run_with(Path::new(PLUGIN)).await
    }
}

#[derive(Debug)]
pub struct Answer {
    pub exit: i32,
    /// Null when nothing was printed.
    pub output: Value,
}

impl Answer {
    fn of(output: &Output) -> Self {
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let exit = output.status.code().expect("the plugin ends by itself");
        let output = if output.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&output.stdout).expect("the plugin prints JSON")
        };
        Self { exit, output }
    }

    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.exit, 0, "{:#}", self.output);
        self.output
    }

    /// The error's code and message; checks the form every error has.
    #[track_caller]
    pub fn error(self) -> (u64, String) {
        assert_eq!(self.exit, 1, "{:#}", self.output);
        assert!(self.output["cniVersion"].is_string(), "{:#}", self.output);
        (self.output["code"].as_u64().unwrap(), self.output["msg"].as_str().unwrap().to_owned())
    }
}

fn attached(attachment: &Attachment) -> Attached {
    let gateways = attachment.addresses.iter().map(|addr| match addr.family() {
        Family::V4 => "169.254.1.1".parse().unwrap(),
        Family::V6 => "fe80::1".parse().unwrap(),
    });
    Attached {
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        host_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        mtu: 1500,
        gateways: gateways.collect(),
    }
}

/// Links are entries of a map; each step can be held or made to fail.
pub struct FakeNetwork {
    pub links: Mutex<BTreeMap<String, Attachment>>,
    /// How many attaches may pass; taken away to hold them.
    pub gate: Semaphore,
    pub waiting: Semaphore,
    pub fail_attach: AtomicBool,
    pub fail_detach: AtomicBool,
    pub detached: Semaphore,
    /// Calls for one owner that ran at once.
    pub overlaps: AtomicU32,
    busy: Mutex<BTreeMap<String, u32>>,
}

impl FakeNetwork {
    pub fn new() -> Arc<Self> {
        Self::with_gate(Semaphore::MAX_PERMITS / 2)
    }

    /// Lets `permits` attaches pass, then holds them.
    pub fn with_gate(permits: usize) -> Arc<Self> {
        Arc::new(Self {
            links: Mutex::default(),
            gate: Semaphore::new(permits),
            waiting: Semaphore::new(0),
            fail_attach: AtomicBool::new(false),
            fail_detach: AtomicBool::new(false),
            detached: Semaphore::new(0),
            overlaps: AtomicU32::new(0),
            busy: Mutex::default(),
        })
    }

    pub fn count(&self) -> usize {
        self.links.lock().unwrap().len()
    }

    fn enter(&self, device: &str) {
        let mut busy = self.busy.lock().unwrap();
        let count = busy.entry(device.to_owned()).or_default();
        *count += 1;
        if *count > 1 {
            self.overlaps.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn leave(&self, device: &str) {
        *self.busy.lock().unwrap().get_mut(device).unwrap() -= 1;
    }
}

impl PodNetwork for FakeNetwork {
    async fn attach(&self, attachment: &Attachment) -> Result<Attached, CniError> {
        self.enter(&attachment.device);
        self.links.lock().unwrap().insert(attachment.device.clone(), attachment.clone());
        self.waiting.add_permits(1);
        self.gate.acquire().await.unwrap().forget();
        self.leave(&attachment.device);
        if self.fail_attach.load(Ordering::SeqCst) {
            return Err(CniError::failed("attach was made to fail"));
        }
        Ok(attached(attachment))
    }

    async fn detach(&self, attachment: &Attachment) -> Result<(), CniError> {
        if self.fail_detach.load(Ordering::SeqCst) {
            return Err(CniError::failed("detach was made to fail"));
        }
        self.enter(&attachment.device);
        self.links.lock().unwrap().remove(&attachment.device);
        tokio::task::yield_now().await;
        self.leave(&attachment.device);
        self.detached.add_permits(1);
        Ok(())
    }

    async fn check(&self, attachment: &Attachment) -> Result<(), CniError> {
        match self.links.lock().unwrap().get(&attachment.device) {
            Some(link) if link.addresses == attachment.addresses => Ok(()),
            _ => Err(CniError::check_failed(format!("device {} is not there", attachment.device))),
        }
    }

    async fn status(&self) -> Result<(), CniError> {
        Ok(())
    }
}
