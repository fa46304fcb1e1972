//! Runs the zone's pods: each pod is one transient unit of systemd with a monitor in it.
//!
//! Owns: the pods' uids, writable layers, log files, bundles and units; the status of the resource `pod`.
//! Must not: touch networks, volumes or images; speak with anybody but the state engine, systemd and, to stop a pod, its agent.
//! Invariants: it holds no state of its own. Killed at any time, it finds everything again in the state engine, in
//! systemd's list of units and in the pods' logs; running pods do not notice.

#![forbid(unsafe_code)]

mod admission;
mod agent;
mod artefacts;
mod belongs;
mod beneath;
mod disk;
mod follow;
mod launch;
mod machine;
mod manager;
mod nets;
mod plan;
mod pod;
mod remove;
mod runlog;
mod shared;
mod shutdown;
mod systemd;
mod templates;
mod unit;
mod world;

use anyhow::Context as _;
use clap::Parser;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use zone::client::Client;
use zone::paths;

/// Runs the zone's pods.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The state engine's socket.
    #[arg(long, default_value = paths::MACRO_SOCKET)]
    macro_socket: PathBuf,
    /// The bus that systemd is on, as a D-Bus address; the system's bus when absent.
    #[arg(long)]
    bus: Option<String>,
    /// Where bundles lie.
    #[arg(long, default_value = "/run/kraud/pods")]
    run: PathBuf,
    /// Where writable layers and logs lie.
    #[arg(long, default_value = paths::PODS)]
    data: PathBuf,
    /// A directory with kcradle, vmlinux and initramfs.cpio, used as it is instead of the signed image.
    #[arg(long)]
    cradle: Option<PathBuf>,
    /// The signed image of the monitor, the agent and the guest's kernel.
    #[arg(long, default_value = "/usr/lib/kraud/services/cradle.tar.gz")]
    cradle_image: PathBuf,
    /// Where that image is unpacked.
    #[arg(long, default_value = paths::CRADLE)]
    cradle_dir: PathBuf,
    /// Keys that the image may be signed with.
    #[arg(long, default_value = paths::KEYS)]
    keys: PathBuf,
    /// The file server, on the host.
    #[arg(long, default_value = "/usr/libexec/virtiofsd")]
    virtiofsd: PathBuf,
    /// setpriv(1), on the host.
    #[arg(long, default_value = "/usr/bin/setpriv")]
    setpriv: PathBuf,
    /// mkfs.ext4, as this service sees it.
    #[arg(long, default_value = "/usr/sbin/mkfs.ext4")]
    mkfs: PathBuf,
    /// The number of the group that may read logs and reach agents; the group of the bundles' directory when absent.
    #[arg(long)]
    group: Option<u32>,
    /// Keep every guest's serial console in its bundle's directory. It has no bound: for debugging only.
    #[arg(long)]
    console: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    daemon::start_log();
    let args = Args::parse();
    let config = configure(&args)?;
    let systemd = systemd::Systemd::connect(args.bus.as_deref()).await?;
    let mut ends = systemd.ends().await?;
    let follower = follow::Follower::start().context("cannot watch files")?;
    let client = Client::new(&args.macro_socket);
    let shared = Arc::new(shared::Shared::new(client, systemd, follower, config));
    zone::notify::ready();
    let terminated = daemon::terminated()?;
    tokio::select! {
        result = manager::run(shared.clone(), &mut ends) => return result,
        () = terminated => {}
    }
    // Pods outlive this process, but not the machine.
    if shutdown::is_coming(&shared).await {
        shutdown::run(&shared, &mut ends).await;
    }
    Ok(())
}

fn configure(args: &Args) -> anyhow::Result<shared::Config> {
    // Pods' own directories are below: everyone may pass, only the group may look.
    for dir in [&args.run, &args.data, &args.cradle_dir] {
        disk::make_dir(dir, 0o755)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot set the mode of {}", dir.display()))?;
    }
    let cradle = match &args.cradle {
        Some(dir) => artefacts::locate(dir)?,
        None => artefacts::unpack(&args.cradle_image, &args.keys, &args.cradle_dir)?,
    };
    let group = args.group.or_else(|| std::fs::metadata(&args.run).ok().map(|m| m.gid()).filter(|g| *g != 0));
    let shipped = cradle.join("rw.ext4");
    // The name changes with how it is made; an earlier version's is of no use any more.
    let _ = std::fs::remove_file(args.data.join(".layer.ext4"));
    let template = if shipped.exists() { shipped } else { args.data.join(".layer-2.ext4") };
    let disks = disk::Disks {
        template,
        mkfs: args.mkfs.clone(),
        group: group.filter(|_| rustix::process::geteuid().is_root()),
    };
    disks.make_template().context("cannot make the template of writable layers")?;
    Ok(shared::Config {
        run: args.run.clone(),
        data: args.data.clone(),
        cradle,
        virtiofsd: args.virtiofsd.clone(),
        setpriv: args.setpriv.clone(),
        console: args.console,
        disks,
    })
}
