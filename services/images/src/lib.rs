//! The content store of a zone: takes images in (load, pull, import), turns their layers into file systems once, and gives
//! them out (save, push). Writes the `image` resources.
//!
//! Must not: trust what it is sent, run anything of an image, or mount anything.
//!
//! Public is [`main`], and what takes a stranger's bytes: the fuzz targets are its only other user.

#![forbid(unsafe_code)]

pub mod archive;
pub mod build;
mod collect;
mod commit;
mod compress;
pub mod digest;
pub mod fail;
mod headers;
pub mod import;
mod ingest;
pub mod layer;
mod lookup;
pub mod manifest;
mod mkfs;
pub mod oldtar;
mod progress;
pub mod query;
pub mod reference;
pub mod registry;
mod save;
mod server;
mod store;
mod worker;

use anyhow::Context as _;
use clap::Parser;
use std::path::PathBuf;
use std::sync::Arc;

/// Images: load, save, pull, push.
#[derive(Debug, Parser)]
struct Args {
    /// Where to listen.
    #[arg(long, default_value = zone::paths::IMAGES_SOCKET)]
    socket: PathBuf,
    /// The state engine's socket.
    #[arg(long = "macro", default_value = zone::paths::MACRO_SOCKET)]
    macro_socket: PathBuf,
    /// The content store's directory.
    #[arg(long, default_value = zone::paths::IMAGES)]
    root: PathBuf,
    /// The program that makes EROFS file systems (erofs-utils 1.8).
    #[arg(long, default_value = "/usr/bin/mkfs.erofs")]
    mkfs_erofs: PathBuf,
    /// The zone's Docker API, which runs the steps of builds.
    #[arg(long, default_value = zone::paths::DOCKER_SOCKET)]
    docker_socket: PathBuf,
    /// Certificate authorities of registries.
    #[arg(long, default_value = "/etc/ssl/certs/ca-certificates.crt")]
    ca_file: PathBuf,
    /// Asked before Docker's registry for images without a host: http://HOST:PORT or https://HOST.
    #[arg(long, value_name = "URL")]
    registry_mirror: Vec<String>,
    /// What the zone's owner says of registries (insecure-registries, registry-mirrors, certificate-authorities); registries.json
    /// in the content store unless named.
    #[arg(long, value_name = "FILE")]
    registries: Option<PathBuf>,
    /// A registry that is spoken to in plain HTTP: HOST, HOST:PORT or a network, 10.0.0.0/8.
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
}

/// The program.
///
/// # Errors
/// When it cannot be started, or cannot go on.
pub fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == worker::NAME) {
        return worker::run(args);
    }
    serve()
}

#[tokio::main]
async fn serve() -> anyhow::Result<()> {
    daemon::start_log();
    let args = Args::parse();
    let context = ingest::Context {
        store: Arc::new(store::Store::open(&args.root)?),
        mkfs: mkfs::Mkfs { program: args.mkfs_erofs },
        zone: zone::client::Client::new(&args.macro_socket),
    };
    let fixed = registry::Settings {
        insecure_registries: args.insecure_registry,
        registry_mirrors: args.registry_mirror,
        ..registry::Settings::default()
    };
    let settings_file = args.registries.unwrap_or_else(|| args.root.join("registries.json"));
    let registries = registry::Registries::new(&args.ca_file, settings_file, fixed)?;
    let listener = daemon::listen(&args.socket)?;
    tokio::spawn(collect::run(context.clone()));
    zone::notify::ready();
    tracing::info!(socket = %args.socket.display(), "ready");
    axum::serve(listener, server::router(context, registries, build::Docker::new(&args.docker_socket)))
        .with_graceful_shutdown(daemon::terminated()?)
        .await
        .context("cannot serve")
}
