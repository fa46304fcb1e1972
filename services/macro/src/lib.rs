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
//! Public is [`main`], and what takes a stranger's bytes: the fuzz targets are its only other user.
#![forbid(unsafe_code)]

pub mod engine;
mod http;
mod sqlite;
mod store;
mod writer;

use anyhow::Context as _;
use clap::Parser;
use std::path::PathBuf;

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

/// The program.
///
/// # Errors
/// When it cannot be started, or cannot go on.
#[tokio::main]
pub async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    daemon::start_log();
    std::fs::create_dir_all(&arguments.state)
        .with_context(|| format!("create the state folder {}", arguments.state.display()))?;
    let store = sqlite::SqliteStore::open(&arguments.state.join("macro.sqlite"))?;
    let writer = writer::start(Box::new(store))?;
    let listener = daemon::listen(&arguments.socket)?;
    zone::notify::ready();
    tracing::info!(socket = %arguments.socket.display(), revision = writer.shared().revision(), "state engine answers");
    let terminated = daemon::terminated()?;
    tokio::select! {
        served = axum::serve(listener, http::router(writer)) => served.context("serve the socket"),
        () = terminated => Ok(()),
    }
}
