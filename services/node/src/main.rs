//! This machine: its certificate authority and pairing code, its name and addresses, the state of its services.
//!
//! Owns: the directories `pki` and `tls`, the resources `node` and `service`.
//! Must not: hand out the authority's key, or a client's certificate without the pairing code.

#![forbid(unsafe_code)]

mod files;
mod http;
mod machine;
mod pairing;
mod pki;
mod resources;
mod services;
mod uplink;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use pki::{Authority, Identity};
use resources::Writer;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use zone::client::Client;
use zone::paths;

/// How often the server's certificate is looked at when no address changes.
const CERTIFICATE_EVERY: Duration = Duration::from_secs(3600);
/// How long to wait before systemd is asked again.
const AGAIN: Duration = Duration::from_secs(5);

/// This machine's keeper of certificates, names and states.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The unix socket to listen on.
    #[arg(long, default_value = paths::NODE_SOCKET)]
    socket: PathBuf,
    /// The state engine's socket.
    #[arg(long, default_value = paths::MACRO_SOCKET)]
    macro_socket: PathBuf,
    /// Where the certificate authority is kept.
    #[arg(long, default_value = paths::PKI)]
    pki: PathBuf,
    /// Where the server's certificate is put for the services that speak TLS.
    #[arg(long, default_value = paths::TLS)]
    tls: PathBuf,
    /// What `storage` says of the pool.
    #[arg(long, default_value = "/run/kraud/storage/pool.json")]
    pool: PathBuf,
    /// What was noted of the firmware at the boot's beginning.
    #[arg(long, default_value = "/run/kraud/boot/firmware.json")]
    firmware: PathBuf,
    /// os-release(5), with the image's version and variant.
    #[arg(long, default_value = "/usr/lib/os-release")]
    os_release: PathBuf,
    /// The signed images of services.
    #[arg(long, default_value = paths::SERVICES)]
    services: PathBuf,
    /// The bus that systemd is on, as a D-Bus address; the system's bus when absent.
    #[arg(long)]
    bus: Option<String>,
    /// Where the address and the pairing code are shown to people; standard output when absent.
    #[arg(long)]
    console: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    daemon::start_log();
    let args = Args::parse();
    let authority = Authority::load(&args.pki, zone::time::believable_now_s())?;
    let pairing = pairing::Pairing::load(&args.pki.join("pairing-code"))?;
    let code = pairing.code().to_owned();
    authority.provide_client(zone::time::believable_now_s())?;
    let addresses = match uplink::follow().await {
        Ok(addresses) => addresses,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "the uplink's addresses are not known");
            watch::channel(Vec::new()).1
        }
    };
    files::make_dir(&args.tls, 0o750)?;
    let first = addresses.borrow().clone();
    authority.provide_server(&args.tls, &Identity::of(&machine::hostname(), &first), zone::time::believable_now_s())?;
    let door = Arc::new(http::Door { pairing, authority });
    let listener = daemon::listen(&args.socket)?;
    let app = http::router(door.clone()).into_make_service_with_connect_info::<http::Peer>();
    zone::notify::ready();
    let client = Client::new(&args.macro_socket);
    let places = machine::Places {
        pool: args.pool.clone(),
        os_release: args.os_release.clone(),
        firmware: args.firmware.clone(),
    };
    tokio::spawn(machine::run(places, addresses.clone(), Writer::new(client.clone())));
    tokio::spawn(follow_services(args.bus.clone(), args.services.clone(), client));
    tokio::select! {
        served = async { axum::serve(listener, app).await } => served.context("cannot serve the socket"),
        () = renew(&door.authority, &args, addresses, &code) => bail!("certificates are renewed no more"),
    }
}

async fn follow_services(bus: Option<String>, images: PathBuf, client: Client) {
    loop {
        if let Err(error) = services::run(bus.as_deref(), images.clone(), Writer::new(client.clone())).await {
            tracing::warn!(error = format!("{error:#}"), "the services' states are not known");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Keeps the server's certificate right, and tells people where the zone is.
async fn renew(authority: &Authority, args: &Args, mut addresses: watch::Receiver<Vec<IpAddr>>, code: &str) {
    let mut told: Option<Vec<IpAddr>> = None;
    loop {
        let now = addresses.borrow_and_update().clone();
        let identity = Identity::of(&machine::hostname(), &now);
        match authority.provide_server(&args.tls, &identity, zone::time::believable_now_s()) {
            Ok(false) => {}
            Ok(true) => tracing::info!(addresses = ?now, "the server has a new certificate"),
            Err(error) => tracing::error!(error = format!("{error:#}"), "cannot renew the server's certificate"),
        }
        if told.as_ref() != Some(&now) {
            tell(args.console.as_deref(), &now, code);
            told = Some(now);
        }
        let change = tokio::time::timeout(CERTIFICATE_EVERY, addresses.changed()).await;
        if matches!(change, Ok(Err(_))) {
            // Nobody tells of addresses: only time passes.
            tokio::time::sleep(CERTIFICATE_EVERY).await;
        }
    }
}

/// Shows address and pairing code on the machine's own screen.
fn tell(console: Option<&Path>, addresses: &[IpAddr], code: &str) {
    use std::io::Write as _;
    let mut text = String::from("\n");
    for address in addresses {
        let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        text.push_str(&format!("kraudbox: https://{host}\n"));
    }
    text.push_str(&format!("kraudbox: pairing code {code}\n"));
    let result = match console {
        None => std::io::stdout().write_all(text.as_bytes()),
        Some(path) => {
            std::fs::OpenOptions::new().append(true).open(path).and_then(|mut f| f.write_all(text.as_bytes()))
        }
    };
    if let Err(error) = result {
        tracing::warn!(%error, "cannot show the pairing code");
    }
}
