//! The Docker Engine API of a zone: what `docker` talks to.
//!
//! A front end without state of its own: it writes specs to the state engine and reads statuses from it; streams and
//! signals go straight to the agent in the pod; images go through the content store. It may be killed at any moment.
//!
//! ```text
//! docker ──unix, TLS──> version ──> one handler per endpoint ──writes──> state engine
//!                                        │    └─reads── state (a copy kept by a watch)
//!                                        ├──> agent (attach, exec, archive, stats…)
//!                                        ├──> log files (logs, attach's output)
//!                                        └──> content store (pull, push, load, save)
//! ```
//! Public is [`main`], and what takes a stranger's bytes: the fuzz targets are its only other user.
#![forbid(unsafe_code)]
#![recursion_limit = "256"]

mod access;
mod agent;
mod area;
mod audit;
mod body;
mod certificate;
pub mod containers;
pub mod errors;
mod events;
mod fields;
pub mod filters;
mod images;
mod listen;
pub mod names;
mod networks;
mod pod_door;
mod project;
mod proxy;
mod serve;
mod state;
mod streams;
mod system;
pub mod version;
mod volumes;

use anyhow::Result;
use axum::Router;
use clap::Parser;
use state::{Container, Store};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use zone::paths;

/// The Docker Engine API of a zone.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Config {
    /// The unix socket to serve.
    #[arg(long, default_value = paths::DOCKER_SOCKET)]
    pub socket: PathBuf,
    /// Where to serve TLS; `none` to serve the unix socket only.
    #[arg(long, default_value = "[::]:2376")]
    pub listen: String,
    /// The zone's certificates: server.pem, server-key.pem, ca.pem.
    #[arg(long, default_value = paths::TLS)]
    pub tls: PathBuf,
    /// The state engine's socket.
    #[arg(long, default_value = paths::MACRO_SOCKET)]
    pub macro_socket: PathBuf,
    /// The content store's socket.
    #[arg(long, default_value = paths::IMAGES_SOCKET)]
    pub images_socket: PathBuf,
    /// Where the pods' sockets are, one folder per pod.
    #[arg(long, default_value = "/run/kraud/pods")]
    pub pods_run: PathBuf,
    /// Where the pods' log files are, one folder per pod.
    #[arg(long, default_value = paths::PODS)]
    pub pods_data: PathBuf,
    /// Where file volumes are, to look for bind sources.
    #[arg(long, default_value = paths::VOLUMES)]
    pub volumes: PathBuf,
}

/// What every handler has.
#[derive(Debug)]
pub struct App {
    /// The command line.
    pub config: Config,
    /// The state engine and the copy of what it keeps.
    pub store: Store,
    /// The stream of events.
    pub events: Arc<events::Events>,
    /// Which container an exec is in; agents can be asked again.
    pub execs: Arc<Mutex<HashMap<String, containers::KnownExec>>>,
    /// What the client may see and do.
    pub scope: access::Scope,
}

impl App {
    /// The socket of the agent in the container's pod.
    #[must_use]
    pub fn agent_socket(&self, container: &Container) -> PathBuf {
        self.config.pods_run.join(&container.pod.meta.name).join("agent.sock")
    }

    /// The same zone for a client that may see and do `scope`.
    #[must_use]
    pub fn scoped(&self, scope: access::Scope) -> Self {
        Self {
            config: self.config.clone(),
            store: self.store.scoped(scope.project()),
            events: self.events.clone(),
            execs: self.execs.clone(),
            scope,
        }
    }

    /// The container's log files.
    #[must_use]
    pub fn log_files(&self, container: &Container) -> [PathBuf; 2] {
        let dir = self.config.pods_data.join(&container.pod.meta.name);
        [dir.join("log.0"), dir.join("log.1")]
    }
}

fn router(app: Arc<App>) -> Router {
    let routes = Router::new()
        .merge(system::routes())
        .merge(containers::routes(&app))
        .merge(images::routes())
        .merge(volumes::routes())
        .merge(networks::routes())
        .fallback(async |body: axum::body::Bytes| {
            drop(body);
            errors::Failure::no_route()
        })
        .with_state(app.clone());
    // The version has to be off the path before a route is looked for, so the routes lie behind a router that has none.
    Router::new()
        .fallback_service(routes)
        .layer(axum::middleware::from_fn_with_state(app, serve::guard))
        .layer(axum::middleware::from_fn(version::negotiate))
}

/// Threads that may read log files at once; the unit bounds the tasks of the service.
const BLOCKING_THREADS: usize = 64;

/// The program.
///
/// # Errors
/// When it cannot be started, or cannot go on.
pub fn main() -> Result<()> {
    daemon::start_log();
    let config = Config::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<()> {
    let store = Store::new(zone::client::Client::new(&config.macro_socket));
    let app = Arc::new(App {
        config: config.clone(),
        store,
        events: Arc::default(),
        execs: Arc::default(),
        scope: access::Scope::default(),
    });
    let doors = Arc::new(serve::Doors::new(app.clone()));
    let listener = daemon::listen(&config.socket)?;
    tokio::spawn({
        let app = app.clone();
        async move { app.store.run(&app.events).await }
    });
    // An answer read from an empty copy would be wrong, so wait for the first list.
    app.store.wait(None, |world| world.loaded.then_some(())).await;
    if config.listen != "none" {
        let address: SocketAddr = config.listen.parse()?;
        let (dir, doors) = (config.tls.clone(), doors.clone());
        tokio::spawn(async move {
            if let Err(error) = listen::tls(address, dir, doors).await {
                tracing::error!(error = format!("{error:#}"), "the network's door is closed");
                std::process::exit(1);
            }
        });
    }
    zone::notify::ready();
    tracing::info!(socket = %config.socket.display(), "ready");
    tokio::spawn(pod_door::run(doors.clone()));
    doors.unix(listener).await;
    Ok(())
}

#[cfg(test)]
mod endpoints;

#[cfg(test)]
mod tests {
    use super::*;

    /// An app that knows nothing and talks to nobody.
    pub fn app() -> App {
        let config = Config::parse_from(["docker-api"]);
        App {
            store: Store::new(zone::client::Client::new("/nonexistent")),
            config,
            events: Arc::default(),
            execs: Arc::default(),
            scope: access::Scope::default(),
        }
    }
}
