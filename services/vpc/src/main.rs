//! The service `vpc`: needs CAP_NET_ADMIN and CAP_NET_BIND_SERVICE, /dev/net/tun, and the host's `nft`.
#![forbid(unsafe_code)]

use clap::Parser;
use std::path::PathBuf;
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
    daemon::start_log();
    let terminated = daemon::terminated()?;
    let reconciler = Reconciler::new(&cli.macro_socket, &cli.resolv_conf, cli.dns_port)?;
    tokio::select! {
        result = reconciler.run(zone::notify::ready) => result,
        // Taps, routes and rules stay: pods go on without us.
        () = terminated => Ok(()),
    }
}
