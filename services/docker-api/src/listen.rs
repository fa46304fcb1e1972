//! The door for the network: TLS with client certificates.

use crate::serve::Doors;
use anyhow::{Context, Result};
use daemon::tls::{Clients, TlsListener};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Serves TLS on `address` once the certificates are in `dir`, without end.
///
/// # Errors
/// When the port cannot be had.
pub async fn tls(address: SocketAddr, dir: PathBuf, doors: Arc<Doors>) -> Result<()> {
    let mut bound = TcpListener::bind(address).await;
    if bound.is_err() && address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED) {
        // A machine without IPv6.
        bound = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
    }
    let tcp = bound.with_context(|| format!("cannot listen on {address}"))?;
    tracing::info!(%address, "listening");
    doors.tls(TlsListener::start(tcp, dir, Clients::OfTheZone).await?).await;
    Ok(())
}
