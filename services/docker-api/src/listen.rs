//! The doors: a unix socket for this machine, TLS for the network.

use crate::serve::Doors;
use crate::tls::{self, TlsListener};
use anyhow::{Context, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};

/// Listens on a unix socket that owner and group may use; a socket that a former process left is replaced.
///
/// # Errors
/// When the socket cannot be made.
pub fn unix(path: &Path) -> Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot replace {}", path.display())),
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok(listener)
}

/// Serves TLS on `address` once the certificates are in `dir`, without end.
///
/// # Errors
/// When the port cannot be had.
pub async fn tls(address: SocketAddr, dir: PathBuf, doors: Arc<Doors>) -> Result<()> {
    let config = tls::wait_for(&dir).await;
    let mut bound = TcpListener::bind(address).await;
    if bound.is_err() && address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED) {
        // A machine without IPv6.
        bound = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
    }
    let tcp = bound.with_context(|| format!("cannot listen on {address}"))?;
    tracing::info!(%address, "listening");
    doors.tls(TlsListener::new(tcp, dir, config)).await;
    Ok(())
}
