//! Sockets and TLS: accept connections here or in other network namespaces, learn who the client is, serve HTTP.

use std::fs::File;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::reply::Reply;
use crate::Error;

/// A client that says nothing for so long is not going to.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

const ADDRESS_LIMIT: Duration = Duration::from_secs(4);

/// The client's certificate, when it showed one that our authority signed.
#[derive(Clone, Debug)]
pub struct Peer {
    pub certificate: Option<CertificateDer<'static>>,
    pub address: SocketAddr,
}

/// A listener to open inside another network namespace.
#[derive(Clone, Debug)]
pub struct NamespaceListener {
    /// For instance `/run/netns/weft-demo-node1`.
    pub namespace: PathBuf,
    pub address: SocketAddr,
}

/// Builds the TLS side: our certificate, and client certificates asked for but not required.
pub fn tls(cert_pem: &str, key_pem: &str, client_ca_pem: &str) -> Result<TlsAcceptor, Error> {
    let failed = |what: &str, reason: String| Error::Tls { what: what.to_owned(), reason };
    let chain = certificates(cert_pem).map_err(|e| failed("server certificate", e))?;
    let key =
        PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| failed("server key", e.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(client_ca_pem).map_err(|e| failed("client CA", e))? {
        roots.add(certificate).map_err(|e| failed("client CA", e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|e| failed("client CA", e.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| failed("protocol versions", e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| failed("server certificate", e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| e.to_string())?;
    if found.is_empty() { Err("no certificate in the PEM text".into()) } else { Ok(found) }
}

pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Listen { place: address.to_string(), source })
}

/// Opens the socket in another namespace: a socket stays where it was made, wherever it is used.
pub async fn bind_in_namespace(place: &NamespaceListener) -> Result<TcpListener, Error> {
    let NamespaceListener { namespace, address } = place.clone();
    let failed = |source| Error::Listen { place: format!("{address} in {}", namespace.display()), source };
    let path = namespace.clone();
    // The thread is not returned to any pool after changing its namespace.
    let (done, opened) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = done.send(listen_after_entering(&path, address));
    });
    let listener = opened.await.map_err(|_| failed(std::io::Error::other("the binding thread died")))?;
    let listener = listener.map_err(failed)?;
    TcpListener::from_std(listener).map_err(failed)
}

fn listen_after_entering(namespace: &Path, address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let handle = File::open(namespace)?;
    nix::sched::setns(&handle, nix::sched::CloneFlags::CLONE_NEWNET)?;
    let listener = bind_patiently(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A fresh IPv6 address cannot be bound until the kernel has looked for duplicates of it.
fn bind_patiently(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let deadline = std::time::Instant::now() + ADDRESS_LIMIT;
    loop {
        match std::net::TcpListener::bind(address) {
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrNotAvailable
                    && std::time::Instant::now() < deadline =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

/// Accepts connections for ever and answers each request with `handle`.
pub async fn serve<H, F>(listener: TcpListener, tls: TlsAcceptor, handle: H)
where
    H: Fn(Request<Incoming>, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    // Connections end with their listener, so that a stopped server lets go of everything.
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                connections.spawn(connection(stream, address, tls.clone(), handle.clone()));
            }
            Err(error) => {
                // Out of file descriptors, mostly: leave the others time to close some.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn connection<H, F>(stream: TcpStream, address: SocketAddr, tls: TlsAcceptor, handle: H)
where
    H: Fn(Request<Incoming>, Arc<Peer>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    // Small writes of a watch must not wait for the peer's delayed acknowledgements.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%address, "TLS handshake took too long");
            return;
        }
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first().cloned());
    let peer = Arc::new(Peer { certificate: certificate.map(CertificateDer::into_owned), address });
    let service = service_fn(move |request| {
        let reply = handle(request, Arc::clone(&peer));
        async move { Ok::<_, std::convert::Infallible>(reply.await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(1000);
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(%address, %error, "connection ended early");
    }
}
