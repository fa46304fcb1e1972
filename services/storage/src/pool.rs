//! The pool: imported when there is one, made at the first boot on a device that is empty.
//!
//! Must never: write to a device that holds anything. A device is taken only when `blkid -p` finds no signature, it has no
//! partition, and its first and last mebibyte are zeroes.

use crate::argv;
use crate::run::{Cause, RunError, Runner};
use crate::zfs;
use anyhow::{Context as _, bail};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The encrypted device that the machine sets aside for the pool; `kraud-disks pool` opens it before this service starts.
const OWN: &str = "/dev/mapper/kraud-pool";
/// A pool on less is of no use.
const MIN_BYTES: u64 = 1 << 30;

/// Where the pool is and shall be.
#[derive(Clone, Debug)]
pub struct PoolPlace {
    /// The pool's name.
    pub name: String,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// The device to make it on; none = find one.
    pub device: Option<PathBuf>,
}

/// Where the kernel tells of each pool that is imported.
const IMPORTED: &str = "/proc/spl/kstat/zfs";

/// Imports or makes the pool; it need not be mounted then.
///
/// # Errors
/// When there is neither a pool nor a device for one.
pub async fn ensure(runner: &Runner, place: &PoolPlace) -> anyhow::Result<()> {
    if Path::new(IMPORTED).join(&place.name).exists() {
        return Ok(());
    }
    // Each program costs a part of a second at a boot: a device that was made just now needs none to be known as empty.
    if place.device.is_none() && own_is_new().await {
        return make(runner, place, Path::new(OWN)).await;
    }
    if import(runner, &place.name).await? { Ok(()) } else { create(runner, place).await }
}

/// Whether the device that the machine set aside is there with nothing on it: a pool has labels at both ends.
async fn own_is_new() -> bool {
    let looked = tokio::task::spawn_blocking(|| ends_are_zero(Path::new(OWN))).await;
    // What cannot be read is looked at again by whoever reports it.
    matches!(looked, Ok(Ok(true)))
}

/// Imports the pool, also when the machine was not shut down or got another host id: it is this machine's only pool.
async fn import(runner: &Runner, name: &str) -> Result<bool, RunError> {
    let mut argv = argv!["zpool", "import", "-N", "-f", "-o", "cachefile=none"];
    for place in ["/dev/mapper", "/dev", "/dev/disk/by-id"] {
        if Path::new(place).is_dir() {
            argv.extend(argv!["-d", place]);
        }
        if Path::new(OWN).exists() {
            break;
        }
    }
    argv.push(name.to_owned());
    match runner.run(&argv).await {
        Ok(_) => {
            tracing::info!(pool = name, "imported the pool");
            Ok(true)
        }
        Err(error) if error.cause() == Cause::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

async fn create(runner: &Runner, place: &PoolPlace) -> anyhow::Result<()> {
    let device = match &place.device {
        Some(device) => device.clone(),
        None if Path::new(OWN).exists() => PathBuf::from(OWN),
        None => first_empty_disk(runner).await?,
    };
    refuse_unless_empty(runner, &device).await?;
    make(runner, place, &device).await
}

async fn make(runner: &Runner, place: &PoolPlace, device: &Path) -> anyhow::Result<()> {
    let mount = place.mount.display().to_string();
    runner
        .run(&zfs::create_pool(&place.name, &mount, &device.display().to_string()))
        .await
        .with_context(|| format!("cannot make the pool on {}", device.display()))?;
    tracing::info!(pool = place.name, device = %device.display(), "made the pool");
    Ok(())
}

/// Refuses a device that holds anything.
async fn refuse_unless_empty(runner: &Runner, device: &Path) -> anyhow::Result<()> {
    let name = device.display();
    if has_signature(runner, device).await? {
        bail!(
            "{name} holds a partition table or file system; it is left alone. Name an empty device with --pool-device"
        );
    }
    let path = device.to_owned();
    let empty = tokio::task::spawn_blocking(move || ends_are_zero(&path))
        .await?
        .with_context(|| format!("cannot read {name}"))?;
    if !empty {
        bail!(
            "{name} is not empty: its first or last mebibyte is not zero, or it is smaller than {MIN_BYTES} bytes; it is left alone"
        );
    }
    Ok(())
}

/// Whether blkid(8) finds anything on a device; it exits with 2 when there is nothing.
///
/// # Errors
/// When the device cannot be read.
pub async fn has_signature(runner: &Runner, device: &Path) -> Result<bool, RunError> {
    match runner.run(&argv!["blkid", "-p", "-o", "export", device.display().to_string()]).await {
        Ok(output) => Ok(is_signature(&String::from_utf8_lossy(&output))),
        Err(RunError::Failed { status, .. }) if status.ends_with(": 2") => Ok(false),
        Err(error) => Err(error),
    }
}

/// A partition is described by blkid even when it is empty (`PART_ENTRY_…`).
fn is_signature(export: &str) -> bool {
    export.lines().any(|l| ["TYPE=", "PTTYPE=", "USAGE=", "UUID=", "AMBIVALENT="].iter().any(|k| l.starts_with(k)))
}

fn ends_are_zero(device: &Path) -> std::io::Result<bool> {
    let mut file = File::open(device)?;
    let length = file.seek(SeekFrom::End(0))?;
    if length < MIN_BYTES {
        return Ok(false);
    }
    let mut part = vec![0; 1 << 20];
    for at in [0, length - (1 << 20)] {
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut part)?;
        if part.iter().any(|b| *b != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The first whole disk that nothing uses and that is empty.
async fn first_empty_disk(runner: &Runner) -> anyhow::Result<PathBuf> {
    let json = runner.json(&argv!["lsblk", "-J", "-b", "-o", "PATH,TYPE,RO,RM,SIZE,FSTYPE,PTTYPE,MOUNTPOINTS"]).await?;
    for device in candidates(&json) {
        match refuse_unless_empty(runner, &device).await {
            Ok(()) => return Ok(device),
            Err(error) => tracing::info!(device = %device.display(), reason = %error, "not taken for the pool"),
        }
    }
    bail!("there is no pool, no device kraud-pool and no empty disk: add an empty disk, or name one with --pool-device")
}

/// Whole disks without partitions, holders, signatures or mounts, that are fixed and writable.
fn candidates(lsblk: &serde_json::Value) -> Vec<PathBuf> {
    let free = |d: &&serde_json::Value| {
        let flag = |name: &str| d[name].as_bool().unwrap_or(true);
        let none = |name: &str| d[name].is_null() || d[name].as_str() == Some("");
        let unmounted = d["mountpoints"].as_array().is_none_or(|m| m.iter().all(serde_json::Value::is_null));
        d["type"] == "disk"
            && !flag("ro")
            && !flag("rm")
            && d["size"].as_u64().is_some_and(|s| s >= MIN_BYTES)
            && none("fstype")
            && none("pttype")
            && unmounted
            && d["children"].as_array().is_none_or(Vec::is_empty)
    };
    let disks = lsblk["blockdevices"].as_array().into_iter().flatten().filter(free);
    let mut paths: Vec<PathBuf> = disks.filter_map(|d| d["path"].as_str()).map(PathBuf::from).collect();
    // zram, nbd and loop devices are "disks" too, but nothing to keep data on.
    paths.retain(|p| {
        !["/dev/zram", "/dev/nbd", "/dev/loop", "/dev/ram", "/dev/zd", "/dev/fd"]
            .iter()
            .any(|s| p.to_string_lossy().starts_with(s))
    });
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_whole_empty_fixed_disks_are_candidates() {
        let disk = |path: &str| {
            json!({"path": path, "type": "disk", "ro": false, "rm": false, "size": 5_u64 << 30, "fstype": null,
            "pttype": null, "mountpoints": [null]})
        };
        let with = |path: &str, key: &str, value: serde_json::Value| {
            let mut d = disk(path);
            d[key] = value;
            d
        };
        let json = json!({"blockdevices": [
            with("/dev/vda", "children", json!([{"path": "/dev/vda1"}])),
            with("/dev/vdb", "fstype", json!("ext4")),
            with("/dev/vdc", "pttype", json!("gpt")),
            with("/dev/vdd", "mountpoints", json!(["/mnt"])),
            with("/dev/vde", "ro", json!(true)),
            with("/dev/vdf", "rm", json!(true)),
            with("/dev/vdg", "size", json!(1000)),
            with("/dev/vdh", "type", json!("rom")),
            disk("/dev/zram0"), disk("/dev/vdz"), disk("/dev/vdy"),
        ]});
        assert_eq!(candidates(&json), [PathBuf::from("/dev/vdy"), PathBuf::from("/dev/vdz")]);
    }

    #[test]
    fn an_empty_partition_is_no_signature_but_a_file_system_is() {
        assert!(!is_signature(
            "PART_ENTRY_SCHEME=gpt\nPART_ENTRY_NAME=kraud-pool\nPART_ENTRY_UUID=x\nPART_ENTRY_TYPE=y\n"
        ));
        assert!(is_signature("DEVNAME=/dev/vda1\nUUID=1\nTYPE=ext4\n"));
        assert!(is_signature("PTUUID=1\nPTTYPE=gpt\n"));
        assert!(!is_signature(""));
    }

    #[test]
    fn a_device_with_anything_at_its_ends_is_not_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create(&path).unwrap();
        file.set_len(MIN_BYTES).unwrap();
        assert!(ends_are_zero(&path).unwrap());
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", MIN_BYTES - 100).unwrap();
        assert!(!ends_are_zero(&path).unwrap());
        file.set_len(1000).unwrap();
        assert!(!ends_are_zero(&path).unwrap());
    }
}
