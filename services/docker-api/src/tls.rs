//! TLS with client certificates: the door for docker clients on the network.
//!
//! Owns loading the zone's certificates and shaking hands. A client without a certificate of the zone's authority gets
//! no further than the handshake. The files are read again when they change, so that a renewed certificate counts for
//! the next connection.

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How often to look whether the certificates have changed, or are there at last.
const LOOK: Duration = Duration::from_secs(2);
/// How long a client may take for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many handshakes may be under way.
const HANDSHAKES: usize = 256;

const FILES: [&str; 3] = ["server.pem", "server-key.pem", "ca.pem"];

/// Loads the server's side of TLS from `dir`.
///
/// # Errors
/// When a file is missing or wrong.
pub fn load(dir: &Path) -> Result<ServerConfig> {
    let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>> {
        let path = dir.join(name);
        let found = CertificateDer::pem_file_iter(&path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|e| anyhow::anyhow!("{e}"))
            .with_context(|| format!("cannot read certificates from {}", path.display()))?;
        anyhow::ensure!(!found.is_empty(), "{} holds no certificate", path.display());
        Ok(found)
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates("ca.pem")? {
        roots.add(certificate).context("ca.pem holds a certificate that cannot be an authority's")?;
    }
    let key = PrivateKeyDer::from_pem_file(dir.join("server-key.pem"))
        .map_err(|e| anyhow::anyhow!("{e}"))
        .with_context(|| format!("cannot read the key {}", dir.join("server-key.pem").display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates("server.pem")?, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn changed(dir: &Path) -> Option<[SystemTime; 3]> {
    let time = |name: &str| std::fs::metadata(dir.join(name)).and_then(|m| m.modified()).ok();
    Some([time(FILES[0])?, time(FILES[1])?, time(FILES[2])?])
}

/// Waits until the certificates are there and can be read.
pub async fn wait_for(dir: &Path) -> ServerConfig {
    let mut told = false;
    loop {
        match load(dir) {
            Ok(config) => return config,
            Err(error) if !told => {
                tracing::info!(error = format!("{error:#}"), "waiting for the zone's certificates");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Accepts TLS connections; a slow handshake holds nobody up.
pub struct TlsListener {
    accepted: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
}

impl TlsListener {
    /// Starts accepting on `tcp` with the certificates in `dir`.
    #[must_use]
    pub fn new(tcp: TcpListener, dir: PathBuf, config: ServerConfig) -> Self {
        let config = Arc::new(RwLock::new(Arc::new(config)));
        let (sender, accepted) = mpsc::channel(64);
        tokio::spawn(reload(dir, config.clone()));
        tokio::spawn(accept(tcp, config, sender));
        Self { accepted }
    }

    /// The next connection after its handshake.
    pub async fn accept(&mut self) -> (TlsStream<TcpStream>, SocketAddr) {
        match self.accepted.recv().await {
            Some(accepted) => accepted,
            // The task that accepts runs as long as the process.
            None => std::future::pending().await,
        }
    }
}

async fn reload(dir: PathBuf, config: Arc<RwLock<Arc<ServerConfig>>>) {
    let mut known = changed(&dir);
    loop {
        tokio::time::sleep(LOOK).await;
        let now = changed(&dir);
        if now.is_none() || now == known {
            continue;
        }
        match load(&dir) {
            Ok(fresh) => {
                tracing::info!("the zone's certificates have changed");
                *config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                known = now;
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "cannot read the changed certificates; the old ones stay");
            }
        }
    }
}

async fn accept(
    tcp: TcpListener,
    config: Arc<RwLock<Arc<ServerConfig>>>,
    sender: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (stream, peer) = match tcp.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let acceptor = TlsAcceptor::from(config.read().unwrap_or_else(PoisonError::into_inner).clone());
        let sender = sender.clone();
        tokio::spawn(async move {
            let _slot = slot;
            // Frames are small and interactive.
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(sender.send((stream, peer)).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "handshake failed"),
                Err(_) => tracing::debug!(%peer, "handshake timed out"),
            }
        });
    }
}
