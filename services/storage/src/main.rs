//! The storage of a zone: the ZFS pool, its datasets, volumes and their snapshots. The one service that opens /dev/zfs.
//!
//! Writes the statuses of `volume` and `snapshot` resources, creates the snapshots of its schedule, and tells the pool's
//! size and health in a file. Must not: read what is in a volume, or destroy what it did not make.

#![forbid(unsafe_code)]

mod options;
mod places;
mod pool;
mod recover;
mod rollback;
mod run;
mod schedule;
mod scrub;
mod snapshots;
mod volumes;
mod zfs;

use anyhow::Context as _;
use clap::Parser;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use zone::client::Client;

/// How often sizes and the pool's health are read again.
const REFRESH: Duration = Duration::from_secs(300);
/// How soon something that failed is tried again.
const RETRY: Duration = Duration::from_secs(3);

/// Storage: pool, volumes, snapshots.
#[derive(Debug, Parser)]
struct Args {
    /// The state engine's socket.
    #[arg(long = "macro", default_value = zone::paths::MACRO_SOCKET)]
    macro_socket: PathBuf,
    /// The pool's name.
    #[arg(long, default_value = zone::paths::POOL)]
    pool: String,
    /// Where the pool is mounted.
    #[arg(long, default_value = zone::paths::POOL_MOUNT)]
    mount: PathBuf,
    /// The empty device to make the pool on at the first boot; else /dev/mapper/kraud-pool, else the first empty disk.
    #[arg(long)]
    pool_device: Option<PathBuf>,
    /// Where to tell the pool's size and health.
    #[arg(long, default_value = "/run/kraud/storage/pool.json")]
    pool_status: PathBuf,
    /// Where block devices of volumes appear.
    #[arg(long, default_value = "/dev/zvol")]
    devices: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    daemon::start_log();
    let args = Args::parse();
    let runner = run::Runner;
    let place =
        pool::PoolPlace { name: args.pool.clone(), mount: args.mount.clone(), device: args.pool_device.clone() };
    pool::ensure(&runner, &place).await?;
    places::ensure(&runner, &args.pool, &args.mount).await?;
    zone::notify::ready();
    tracing::info!(pool = args.pool, mount = %args.mount.display(), "ready");
    let terminated = daemon::terminated()?;
    tokio::select! {
        () = reconcile(runner, args) => {}
        () = terminated => {}
    }
    Ok(())
}

/// Goes over everything at start, after each change, when a snapshot is due and each few minutes, for ever.
async fn reconcile(runner: run::Runner, args: Args) {
    let zone = Client::new(&args.macro_socket);
    let volumes = volumes::Volumes {
        runner: runner.clone(),
        zone: zone.clone(),
        parent: format!("{}/volumes", args.pool),
        mount: args.mount.join("volumes"),
        devices: args.devices.clone(),
    };
    let snapshots = snapshots::Snapshots { runner: runner.clone(), zone: zone.clone() };
    let changed = Arc::new(Notify::new());
    tokio::spawn(watch(zone.clone(), changed.clone()));
    let mut refreshed: Option<tokio::time::Instant> = None;
    let mut schedule = schedule::Schedule::default();
    loop {
        let began = tokio::time::Instant::now();
        let refresh = refreshed.is_none_or(|at| began - at >= REFRESH);
        let pass = async {
            recover::ensure(&runner, &zone, &volumes.parent, &volumes.mount).await?;
            let mut found = volumes.reconcile(refresh).await?;
            let due = schedule.due(&found.intervals, now_s());
            if !due.is_empty() {
                snapshots.schedule(&found, &due, now_s()).await?;
            }
            found.again |= snapshots.reconcile(&found, refresh || !due.is_empty()).await?;
            if refresh {
                scrub::when_due(&runner, &args.pool, now_s()).await;
                write_pool_status(&runner, &args).await?;
            }
            anyhow::Ok(found.again)
        };
        let again = pass.await.unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "cannot go over the volumes");
            true
        });
        if refresh {
            refreshed = Some(began);
        }
        let next = if again { RETRY } else { REFRESH.min(schedule.until_next(now_s())) };
        tokio::select! {
            () = changed.notified() => {}
            () = tokio::time::sleep_until(began + next) => {}
        }
    }
}

/// Tells of every change of a volume or snapshot; after a gap it tells once, since it may have missed some.
async fn watch(zone: Client, changed: Arc<Notify>) {
    loop {
        let watched = async {
            let from = zone.list::<zone::volume::Volume>().await?.revision;
            changed.notify_one();
            let mut watch = zone.watch(&["volume", "snapshot"], from).await?;
            while let Some(changes) = watch.next().await? {
                if !changes.events.is_empty() {
                    changed.notify_one();
                }
            }
            Ok::<_, zone::ApiError>(())
        };
        if let Err(error) = watched.await {
            tracing::debug!(%error, "a watch ended");
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn now_s() -> u64 {
    zone::time::now_ns() / 1_000_000_000
}

/// `{"pool_bytes":…,"pool_free_bytes":…,"health":"ONLINE","troubles":[]}`, for whoever wants to show it.
async fn write_pool_status(runner: &run::Runner, args: &Args) -> anyhow::Result<()> {
    let json = runner.json(&zfs::list_pool(&args.pool)).await?;
    let mut pool =
        zfs::parse_pool(&json, &args.pool).with_context(|| format!("zpool list says nothing of {}", args.pool))?;
    pool.troubles = scrub::troubles(runner, &args.pool).await?;
    let path = &args.pool_status;
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut temp =
        tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).tempfile_in(dir)?;
    serde_json::to_writer(&mut temp, &pool)?;
    temp.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
