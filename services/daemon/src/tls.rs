//! TLS with the zone's certificates: docker clients show one of their own, browsers do not.
//!
//! Owns loading the certificates and shaking hands. Handshakes run beside each other, a bounded number of them and each
//! for a bounded time, so that a slow client holds nobody up. The files are read again when they change, so that a
//! renewed certificate counts for the next connection.

use anyhow::{Context as _, Result, anyhow, ensure};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How often to look whether the certificates are there at last, at the first boot.
const LOOK: Duration = Duration::from_millis(200);
/// How long a client may take for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How many handshakes may be under way.
const HANDSHAKES: usize = 256;

/// Who may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Everyone; who it is, is found out later.
    Any,
    /// Who has a certificate of the zone's authority; others get no further than the handshake.
    OfTheZone,
}

impl Clients {
    /// The files that it takes.
    const fn files(self) -> &'static [&'static str] {
        match self {
            Self::Any => &["server.pem", "server-key.pem"],
            Self::OfTheZone => &["server.pem", "server-key.pem", "ca.pem"],
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| anyhow!("{e}"))
        .with_context(|| format!("cannot read certificates from {}", path.display()))?;
    ensure!(!found.is_empty(), "{} holds no certificate", path.display());
    Ok(found)
}

/// Loads the server's side of TLS from `folder`.
///
/// # Errors
/// When a file is missing or wrong.
pub fn load(folder: &Path, clients: Clients) -> Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match clients {
        Clients::Any => builder.with_no_client_auth(),
        Clients::OfTheZone => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in certificates(&folder.join("ca.pem"))? {
                roots.add(certificate).context("ca.pem holds a certificate that cannot be an authority's")?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = folder.join("server-key.pem");
    let key = PrivateKeyDer::from_pem_file(&key)
        .map_err(|e| anyhow!("{e}"))
        .with_context(|| format!("cannot read the key {}", key.display()))?;
    let mut config = builder
        .with_single_cert(certificates(&folder.join("server.pem"))?, key)
        .with_context(|| format!("cannot use the certificate in {}", folder.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn changed(folder: &Path, clients: Clients) -> Option<Vec<SystemTime>> {
    clients.files().iter().map(|f| std::fs::metadata(folder.join(f)).and_then(|m| m.modified()).ok()).collect()
}

/// Accepts TLS connections.
#[derive(Debug)]
pub struct TlsListener {
    accepted: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl TlsListener {
    /// Waits until the certificates are in `folder` and can be read, then accepts on `tcp`.
    ///
    /// # Errors
    /// When `tcp` has no address.
    pub async fn start(tcp: TcpListener, folder: PathBuf, clients: Clients) -> Result<Self> {
        let address = tcp.local_addr().context("cannot read the address that is listened on")?;
        let acceptor = wait_for(&folder, clients).await;
        let times = changed(&folder, clients);
        let (sender, accepted) = mpsc::channel(64);
        tokio::spawn(accept(tcp, Loaded { folder, clients, times, acceptor }, sender));
        Ok(Self { accepted, address })
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

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        Self::accept(self).await
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn wait_for(folder: &Path, clients: Clients) -> TlsAcceptor {
    let mut told = false;
    loop {
        match load(folder, clients) {
            Ok(config) => return TlsAcceptor::from(Arc::new(config)),
            Err(error) if !told => {
                tracing::info!(error = format!("{error:#}"), "waiting for the zone's certificates");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The certificates in use, and of when their files are.
struct Loaded {
    folder: PathBuf,
    clients: Clients,
    times: Option<Vec<SystemTime>>,
    acceptor: TlsAcceptor,
}

impl Loaded {
    /// Reads the files again when they have changed since. Asked at each connection: no clock wakes an idle service.
    fn refresh(&mut self) {
        let now = changed(&self.folder, self.clients);
        if now.is_none() || now == self.times {
            return;
        }
        match load(&self.folder, self.clients) {
            Ok(fresh) => {
                tracing::info!("the zone's certificates have changed");
                self.acceptor = TlsAcceptor::from(Arc::new(fresh));
                self.times = now;
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "cannot read the changed certificates; the old ones stay");
            }
        }
    }
}

async fn accept(tcp: TcpListener, mut loaded: Loaded, sender: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>) {
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
        loaded.refresh();
        let (acceptor, sender) = (loaded.acceptor.clone(), sender.clone());
        tokio::spawn(async move {
            // Frames are small and interactive.
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => drop(sender.send((stream, peer)).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "handshake failed"),
                Err(_) => tracing::debug!(%peer, "handshake timed out"),
            }
            drop(slot);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use tokio_rustls::TlsConnector;

    /// Writes a certificate for `name` into `folder`, and gives it.
    fn write(folder: &Path, name: &str) -> CertificateDer<'static> {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.join("server.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.join("server-key.pem"), key.serialize_pem()).unwrap();
        certificate.der().clone()
    }

    /// Whether a client that trusts only `certificate` gets in.
    async fn gets_in(address: SocketAddr, certificate: CertificateDer<'static>) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(address).await.unwrap();
        TlsConnector::from(Arc::new(client)).connect("zone".try_into().unwrap(), tcp).await.is_ok()
    }

    #[tokio::test]
    async fn a_renewed_certificate_counts_for_the_next_connection_and_a_broken_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let first = write(folder.path(), "zone");
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let mut listener = TlsListener::start(tcp, folder.path().to_owned(), Clients::Any).await.unwrap();
        tokio::spawn(async move {
            loop {
                drop(listener.accept().await);
            }
        });
        assert!(gets_in(address, first.clone()).await);
        let second = write(folder.path(), "zone");
        assert!(gets_in(address, second.clone()).await);
        assert!(!gets_in(address, first).await);
        std::fs::write(folder.path().join("server.pem"), "nothing").unwrap();
        assert!(gets_in(address, second).await);
    }

    #[tokio::test]
    async fn a_folder_without_certificates_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let start = TlsListener::start(tcp, folder.path().to_owned(), Clients::Any);
        let written = async {
            tokio::task::yield_now().await;
            write(folder.path(), "zone");
        };
        tokio::join!(start, written).0.unwrap();
        assert!(load(folder.path(), Clients::OfTheZone).unwrap_err().to_string().contains("ca.pem"));
    }
}
