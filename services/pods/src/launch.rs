//! Starts one run of a pod: bundle, file servers, monitor.

use crate::plan::{AGENT, CONTROL, Places, Plan};
use crate::shared::Shared;
use crate::unit::{self, MonitorUnit, Served};
use crate::{beneath, disk};
use anyhow::{Context as _, bail};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::{self, OpenOptions, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::Path;
use zone::PodId;
use zone::bundle::BUNDLE_FILE;
use zone::control::CONTROL_SOCKET;
use zone::guest::GuestMount;
use zone::pod::CpuLimits;

/// Starts everything; systemd has the units when this returns.
///
/// # Errors
/// What could not be made or started. What was made by then stays for the clean-up.
pub async fn launch(shared: &Shared, pod: &PodId, uid: u32, plan: &Plan, cpu: CpuLimits) -> anyhow::Result<()> {
    if let Err((volume, holder)) = shared.claim(pod, plan.blocks.iter()) {
        bail!(
            "volume {volume} is a block device for one container at a time, and {} uses it: stop that first",
            holder.short()
        );
    }
    shared.admit(pod, plan.bundle.memory_mib).map_err(anyhow::Error::msg)?;
    let places = shared.places(pod);
    let mut plan = plan.clone();
    let parts = open_parts(&mut plan).await?;
    let complaints = shared.templates.give(&mut plan.bundle, &mut plan.files, &shared.systemd, &shared.config);
    let group = shared.config.disks.group;
    write_bundle(&places, group, &plan)?;
    let agent = listen(&places.run.join("agent.sock"), SocketType::STREAM, 64, group)?;
    let control = listen(&places.run.join(CONTROL_SOCKET), SocketType::SEQPACKET, 8, None)?;
    for ((index, dir), part) in plan.dirs.iter().enumerate().zip(parts) {
        let socket = listen(&dir.socket, SocketType::STREAM, 1, None)?;
        let served = Served { dir: &dir.dir, part, read_only: dir.read_only };
        let properties = unit::file_server(pod, &shared.config.virtiofsd, served, socket);
        shared.systemd.start(&unit::fs_unit(pod, index), properties).await?;
    }
    let kcradle = places.cradle.join("kcradle");
    let properties = unit::monitor(MonitorUnit {
        pod,
        uid,
        setpriv: &shared.config.setpriv,
        kcradle: &kcradle,
        memory_mib: plan.bundle.memory_mib,
        cpu,
        expendable: plan.expendable(),
        files: plan.files.clone(),
        sockets: [(agent, AGENT), (control, CONTROL)].into_iter().chain(complaints).collect(),
    });
    shared.systemd.start(&unit::pod_unit(pod), properties).await?;
    Ok(())
}

/// Opens the parts of directories that are shared, in their order; the guest is told the name where one is a file.
async fn open_parts(plan: &mut Plan) -> anyhow::Result<Vec<Option<OwnedFd>>> {
    let mut parts = Vec::new();
    for (share, dir) in plan.bundle.shares.iter().zip(&plan.dirs) {
        let Some(part) = dir.part.clone() else {
            parts.push(None);
            continue;
        };
        let root = dir.dir.clone();
        let opened = tokio::task::spawn_blocking(move || beneath::open(&root, &part.path, part.create)).await??;
        for mount in plan.guest.containers.iter_mut().flat_map(|c| &mut c.mounts) {
            if let GuestMount::Share { tag, subpath, .. } = mount
                && *tag == share.tag
            {
                *subpath = opened.file.clone().unwrap_or_default();
            }
        }
        parts.push(Some(opened.folder));
    }
    Ok(parts)
}

/// Root's alone but for the agent's socket: the monitor gets what is in it as descriptors.
fn write_bundle(places: &Places, group: Option<u32>, plan: &Plan) -> anyhow::Result<()> {
    let run = &places.run;
    disk::remove_dir(run)?;
    disk::make_dir(run, 0o750)?;
    write_json(&run.join(BUNDLE_FILE), &plan.bundle)?;
    write_json(&places.spec(), &plan.guest)?;
    if places.console {
        let path = places.console_file();
        OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o640)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
    }
    if let Some(group) = group {
        chown(run, None, Some(group)).with_context(|| format!("cannot give {} to the zone", run.display()))?;
        fs::set_permissions(run, Permissions::from_mode(0o750))
            .with_context(|| format!("cannot set the mode of {}", run.display()))?;
    }
    Ok(())
}

/// Writes a new file that only root can read.
///
/// # Errors
/// When it is there, or cannot be written.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    let file = file.with_context(|| format!("cannot make {}", path.display()))?;
    serde_json::to_writer(std::io::BufWriter::new(&file), value)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A socket that listens before its server runs, so that nobody needs to wait for the server. For `group`, or root alone.
fn listen(path: &Path, kind: SocketType, backlog: i32, group: Option<u32>) -> anyhow::Result<OwnedFd> {
    let make = || -> std::io::Result<OwnedFd> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, Permissions::from_mode(if group.is_some() { 0o660 } else { 0o600 }))?;
        if group.is_some() {
            chown(path, None, group)?;
        }
        rustix::net::listen(&socket, backlog)?;
        Ok(socket)
    };
    make().with_context(|| format!("cannot listen on {}", path.display()))
}
