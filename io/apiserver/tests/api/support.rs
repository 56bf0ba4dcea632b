//! A server on a free port with its own CA, and clients for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use std::sync::Arc;
use tempfile::TempDir;
use weft_apiserver::{Config, Server, start};
use weft_pki::{Ca, Kubeconfig, Pair, signing_key};

pub struct Fixture {
    pub server: Option<Server>,
    pub address: SocketAddr,
    pub ca: Ca,
    pub dir: TempDir,
}

/// The configuration of a test server that keeps everything under `dir`.
pub fn config(ca: &Ca, dir: &Path) -> Config {
    let certificate = ca.server_cert(&["localhost"], &["127.0.0.1".parse().unwrap()]).unwrap();
    let keys =
        match (std::fs::read_to_string(dir.join("sa.key")), std::fs::read_to_string(dir.join("sa.pub"))) {
            (Ok(private), Ok(public)) => (private, public),
            _ => {
                let keys = signing_key().unwrap();
                std::fs::write(dir.join("sa.key"), keys.private.as_str()).unwrap();
                std::fs::write(dir.join("sa.pub"), &keys.public).unwrap();
                (keys.private.as_str().to_owned(), keys.public)
            }
        };
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        namespace_listeners: Vec::new(),
        data_dir: dir.join("api"),
        tls_cert: certificate.cert,
        tls_key: certificate.key.as_str().to_owned(),
        client_ca: ca.cert_pem().to_owned(),
        service_account_key: keys.0,
        service_account_public: keys.1,
        service_ranges: vec!["10.96.0.0/16".parse().unwrap(), "fd00:10:96::/112".parse().unwrap()],
        node_ports: weft_apiserver::DEFAULT_NODE_PORTS,
        cluster_domain: "cluster.local".into(),
        kubelet_socket: dir.join("{node}.sock").display().to_string(),
        kubernetes_endpoints: vec!["172.30.0.11:6443".parse().unwrap()],
        bootstrap_manifests: Vec::new(),
        history: 1000,
    }
}

impl Fixture {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let (dir, ca) = (TempDir::new().unwrap(), Ca::create().unwrap());
        let mut config = config(&ca, dir.path());
        change(&mut config);
        let server = start(config).await.unwrap();
        Self { address: server.address(), server: Some(server), ca, dir }
    }

    /// Stops the server and starts another on the same store and address.
    pub async fn restart(&mut self) {
        self.restart_with(|_| {}).await;
    }

    pub async fn restart_with(&mut self, change: impl FnOnce(&mut Config)) {
        self.server = None;
        let mut config = config(&self.ca, self.dir.path());
        config.listen = self.address;
        change(&mut config);
        let mut last = None;
        for _ in 0..500 {
            match start(config.clone()).await {
                Ok(server) => {
                    self.server = Some(server);
                    return;
                }
                // The old writer thread may still hold the file.
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{last:?}");
    }

    pub fn admin(&self) -> Client {
        self.client("kubernetes-admin", Some("system:masters"))
    }

    pub fn client(&self, user: &str, group: Option<&str>) -> Client {
        let pair = self.ca.client_cert(user, group).unwrap();
        Client {
            address: self.address,
            ca: self.ca.cert_pem().to_owned(),
            pair: Some(pair),
            headers: Vec::new(),
        }
    }

    pub fn anonymous(&self) -> Client {
        Client { address: self.address, ca: self.ca.cert_pem().to_owned(), pair: None, headers: Vec::new() }
    }

    pub fn write_kubeconfig(&self) -> PathBuf {
        let path = self.dir.path().join("kubeconfig");
        let client = self.ca.client_cert("kubernetes-admin", Some("system:masters")).unwrap();
        let server = format!("https://{}", self.address);
        Kubeconfig {
            cluster: "test",
            server: &server,
            ca_cert: self.ca.cert_pem(),
            user: "admin",
            client: &client,
        }
        .write(&path)
        .unwrap();
        path
    }

    pub async fn kube(&self) -> kube::Client {
        let text = std::fs::read_to_string(self.write_kubeconfig()).unwrap();
        let parsed = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let config = kube::Config::from_custom_kubeconfig(parsed, &Default::default()).await.unwrap();
        kube::Client::try_from(config).unwrap()
    }
}

/// A raw HTTP/2 client: one connection per request, nothing hidden.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    pub ca: String,
    pub pair: Option<Pair>,
    pub headers: Vec<(String, String)>,
}

#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Answer {
    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.body);
        self.body
    }
}

impl Client {
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, "", Vec::new()).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, "application/json", body.to_string().into_bytes()).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, "application/json", body.to_string().into_bytes()).await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: Value) -> Answer {
        let content_type = match kind {
            "apply" => "application/apply-patch+yaml".to_owned(),
            "strategic" => "application/strategic-merge-patch+json".to_owned(),
            other => format!("application/{other}-patch+json"),
        };
        self.send(Method::PATCH, path, &content_type, body.to_string().into_bytes()).await
    }

    pub async fn delete(&self, path: &str, options: Value) -> Answer {
        self.send(Method::DELETE, path, "application/json", options.to_string().into_bytes()).await
    }

    pub async fn send(&self, method: Method, path: &str, content_type: &str, body: Vec<u8>) -> Answer {
        let response = self.open(method, path, content_type, body).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { code: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub async fn open(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> http::Response<hyper::body::Incoming> {
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = self.connector("h2").connect(name, stream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://localhost{path}"))
            .header("user-agent", "weft-test/1");
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        sender.send_request(request.body(Full::new(bytes::Bytes::from(body))).unwrap()).await.unwrap()
    }

    /// Opens a stream of another protocol over HTTP/1.1.
    pub async fn upgrade(&self, path: &str, protocol: &str) -> TokioIo<hyper::upgrade::Upgraded> {
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = self.connector("http/1.1").connect(name, stream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let request = Request::builder()
            .uri(path)
            .header("host", "localhost")
            .header("connection", "upgrade")
            .header("upgrade", protocol)
            .body(Full::<bytes::Bytes>::default())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 101);
        TokioIo::new(hyper::upgrade::on(response).await.unwrap())
    }

    pub fn connector(&self, protocol: &str) -> tokio_rustls::TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let cert = CertificateDer::from_pem_slice(pair.cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_str().as_bytes()).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        tokio_rustls::TlsConnector::from(Arc::new(config))
    }
}

pub fn config_map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

pub fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "nginx"}]},
    })
}

/// Asks until the answer satisfies, or fails after ten seconds.
pub async fn eventually(client: &Client, path: &str, satisfied: impl Fn(&Answer) -> bool) -> Answer {
    let mut answer = client.get(path).await;
    for _ in 0..500 {
        if satisfied(&answer) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer = client.get(path).await;
    }
    panic!("{path} never came to be as expected: {answer:?}");
}
