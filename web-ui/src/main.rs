//! `web-ui`: the zone's web page. One page, live: pods, images, volumes, networks and services of this zone.
//!
//! Owns sessions, whose hashes are kept over its own restarts but not over a boot. Reads the state engine through watch caches
//! and never the things themselves, but for the ends of logs; writes two things, the wish to roll a volume back and which certificates were taken back. Asks `node` for the pairing code and client bundles. Has no privilege: it parses
//! what strangers send.
#![forbid(unsafe_code)]

mod access;
mod live;
mod logs;
mod node;
mod pages;
mod session;
mod view;
mod volume;

use anyhow::Context as _;
use clap::Parser;
use daemon::tls::{Clients, TlsListener};
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::net::TcpListener;

/// The web page of a kraud zone.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The address to listen on.
    #[arg(long, default_value = "[::]:443")]
    listen: SocketAddr,
    /// Serve without TLS; only for tests on loopback.
    #[arg(long)]
    plain: bool,
    /// The folder with server.pem and server-key.pem.
    #[arg(long, default_value = zone::paths::TLS)]
    tls: PathBuf,
    /// The state engine's socket.
    #[arg(long = "macro", default_value = zone::paths::MACRO_SOCKET)]
    macro_socket: PathBuf,
    /// The socket of `node`.
    #[arg(long, default_value = zone::paths::NODE_SOCKET)]
    node: PathBuf,
    /// The pods' folder, where their logs are
    #[arg(long, default_value = zone::paths::PODS)]
    logs: PathBuf,
    /// The file that keeps sessions over a restart
    #[arg(long, default_value = "/run/kraud/web-ui/sessions.json")]
    sessions: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    daemon::start_log();
    anyhow::ensure!(
        !arguments.plain || arguments.listen.ip().is_loopback(),
        "--plain needs a loopback address, not {}: without TLS everyone on the network could read the session",
        arguments.listen
    );
    let client = zone::client::Client::new(&arguments.macro_socket);
    let (node, sessions) = (node::Node::new(&arguments.node), session::Sessions::kept_in(arguments.sessions));
    let site = pages::Site::new(client, node, arguments.logs, sessions, !arguments.plain);
    let router = pages::router(site);
    let listener =
        TcpListener::bind(arguments.listen).await.with_context(|| format!("listen on {}", arguments.listen))?;
    let terminated = daemon::terminated()?;
    let serve = async {
        if arguments.plain {
            zone::notify::ready();
            axum::serve(listener, router).await.context("serve")
        } else {
            let listener = TlsListener::start(listener, arguments.tls, Clients::Any).await?;
            zone::notify::ready();
            axum::serve(listener, router).await.context("serve")
        }
    };
    tokio::select! {
        served = serve => served,
        () = terminated => Ok(()),
    }
}
