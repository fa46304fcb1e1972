//! TLS for the page: handshakes run beside each other, so that a client that is slow at it holds nobody up.

use anyhow::Context as _;
use axum::serve::Listener;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many handshakes may be under way.
const HANDSHAKES: usize = 64;
/// How often the certificate's file is looked for at start.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Accepts TLS connections.
#[derive(Debug)]
pub struct TlsListener {
    connections: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    /// Waits until `node` has written the certificate, then starts to accept.
    ///
    /// # Errors
    /// When the certificate or key cannot be used.
    pub async fn start(listener: TcpListener, folder: &Path) -> anyhow::Result<Self> {
        while !folder.join("server-key.pem").exists() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let acceptor = TlsAcceptor::from(Arc::new(config(folder)?));
        let address = listener.local_addr().context("read the listener's address")?;
        let (sender, connections) = mpsc::channel(HANDSHAKES);
        tokio::spawn(accept(listener, acceptor, sender));
        Ok(Self { connections, address })
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
        };
        let (acceptor, sender) = (acceptor.clone(), sender.clone());
        tokio::spawn(async move {
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                // The receiver is gone only when the service ends.
                let _ = sender.send((stream, peer)).await;
            }
            drop(permit);
        });
    }
}

fn config(folder: &Path) -> anyhow::Result<ServerConfig> {
    let (certificate, key) = (folder.join("server.pem"), folder.join("server-key.pem"));
    let chain = CertificateDer::pem_file_iter(&certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("read the certificate {}", certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(&key).with_context(|| format!("read the key {}", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choose TLS versions")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("use the server's certificate")
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.connections.recv().await {
            Some(connection) => connection,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}
