//! The service `vpc`: needs CAP_NET_ADMIN and CAP_NET_BIND_SERVICE, /dev/net/tun, and the host's `nft`.
#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use vpc::reconcile::Reconciler;

/// The networks of a zone.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The state engine's socket
    #[arg(long, default_value = zone::paths::MACRO_SOCKET)]
    macro_socket: PathBuf,
    /// Which name servers other names are asked of
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// The port of the name servers on the gateways
    #[arg(long, default_value_t = 53)]
    dns_port: u16,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    let mut term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let reconciler = Reconciler::new(&cli.macro_socket, &cli.resolv_conf, cli.dns_port)?;
    tokio::select! {
        result = reconciler.run(zone::notify::ready) => result,
        // Taps, routes and rules stay: pods go on without us.
        _ = term.recv() => Ok(()),
    }
}
