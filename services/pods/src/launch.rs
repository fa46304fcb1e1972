//! Starts one run of a pod: bundle, file servers, monitor.

use crate::plan::Plan;
use crate::shared::Shared;
use crate::unit::{self, MonitorUnit, NamedFile, Served};
use crate::{beneath, disk};
use anyhow::{Context as _, bail};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::{self, OpenOptions, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::Path;
use zone::PodId;
use zone::bundle::BUNDLE_FILE;
use zone::guest::GuestMount;

/// Starts everything; systemd has the units when this returns.
///
/// # Errors
/// What could not be made or started. What was made by then stays for the clean-up.
pub async fn launch(shared: &Shared, pod: &PodId, uid: u32, plan: &Plan) -> anyhow::Result<()> {
    if let Err((volume, holder)) = shared.claim(pod, plan.blocks.iter().map(|b| &b.volume)) {
        bail!(
            "volume {volume} is a block device for one container at a time, and {} uses it: stop that first",
            holder.short()
        );
    }
    let places = shared.places(pod);
    let mut plan = plan.clone();
    let parts = open_parts(&mut plan).await?;
    write_bundle(&places.run, uid, shared.config.disks.group, &plan)?;
    let files = plan.blocks.iter().map(|b| NamedFile { name: b.fd.clone(), path: b.device.clone() }).collect();
    for ((index, dir), part) in plan.dirs.iter().enumerate().zip(parts) {
        let socket = listen(&dir.socket, uid, shared.config.disks.group.is_some())?;
        let served = Served { dir: &dir.dir, part, read_only: dir.read_only };
        let properties = unit::file_server(pod, &shared.config.virtiofsd, served, socket);
        shared.systemd.start(&unit::fs_unit(pod, index), properties).await?;
    }
    let kcradle = places.cradle.join("kcradle");
    let properties = unit::monitor(MonitorUnit {
        pod,
        uid,
        groups: &shared.config.groups,
        setpriv: &shared.config.setpriv,
        kcradle: &kcradle,
        bundle: &places.run,
        writable: vec![places.run.clone(), places.data.clone()],
        memory_mib: plan.bundle.memory_mib,
        files,
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

/// The directory is the pod's; what the monitor makes in it, its sockets above all, gets the group `kraud`.
fn write_bundle(run: &Path, uid: u32, group: Option<u32>, plan: &Plan) -> anyhow::Result<()> {
    disk::remove_dir(run)?;
    disk::make_dir(run, 0o750)?;
    write_json(&run.join(BUNDLE_FILE), &plan.bundle, uid, group)?;
    write_json(&plan.bundle.guest_spec, &plan.guest, uid, group)?;
    if let Some(group) = group {
        chown(run, Some(uid), Some(group)).with_context(|| format!("cannot give {} to {uid}", run.display()))?;
        fs::set_permissions(run, Permissions::from_mode(0o2750))
            .with_context(|| format!("cannot set the mode of {}", run.display()))?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &impl serde::Serialize, uid: u32, group: Option<u32>) -> anyhow::Result<()> {
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    let file = file.with_context(|| format!("cannot make {}", path.display()))?;
    serde_json::to_writer(std::io::BufWriter::new(&file), value)
        .with_context(|| format!("cannot write {}", path.display()))?;
    if group.is_some() {
        chown(path, Some(uid), Some(uid)).with_context(|| format!("cannot give {} to {uid}", path.display()))?;
    }
    Ok(())
}

/// A socket that listens before its server runs, so that nobody needs to wait for the server.
fn listen(path: &Path, uid: u32, give: bool) -> anyhow::Result<OwnedFd> {
    let make = || -> std::io::Result<OwnedFd> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        if give {
            chown(path, Some(uid), Some(uid))?;
        }
        rustix::net::listen(&socket, 1)?;
        Ok(socket)
    };
    make().with_context(|| format!("cannot listen on {}", path.display()))
}
