//! `kraud-macro`: the zone's state engine. Typed resources with a spec and a status, compare-and-swap, watch from a
//! revision without gaps; durable before it answers.
//!
//! Owns the database under its state folder and the socket. Knows nothing of what the resources mean: every kind of
//! resource is JSON to it.
//!
//! ```text
//! http.rs ── transaction ──> writer.rs (one thread, group commit) ── checks ──> engine.rs (memory)
//!    │                              └── persists ──> store.rs (trait) ── sqlite.rs
//!    └── list, get, watch ──> engine.rs: read only what is persisted
//! ```
#![forbid(unsafe_code)]

mod engine;
mod http;
mod sqlite;
mod store;
mod writer;

use anyhow::Context as _;
use clap::Parser;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// The state engine of a kraud zone.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The unix socket to listen on.
    #[arg(long, default_value = zone::paths::MACRO_SOCKET)]
    socket: PathBuf,
    /// The folder of the database.
    #[arg(long, default_value = zone::paths::MACRO_STATE)]
    state: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    std::fs::create_dir_all(&arguments.state)
        .with_context(|| format!("create the state folder {}", arguments.state.display()))?;
    let store = sqlite::SqliteStore::open(&arguments.state.join("macro.sqlite"))?;
    let writer = writer::start(Box::new(store))?;
    let listener = listen(&arguments.socket)?;
    zone::notify::ready();
    tracing::info!(socket = %arguments.socket.display(), revision = writer.shared().revision(), "state engine answers");
    let mut term = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        served = axum::serve(listener, http::router(writer)) => served.context("serve the socket"),
        _ = term.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

fn listen(socket: &PathBuf) -> anyhow::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("remove the old socket {}", socket.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("set the mode of {}", socket.display()))?;
    Ok(listener)
}
