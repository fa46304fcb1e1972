//! The whole service on a real pool. Needs root, the ZFS module and `KRAUD_TEST_DISK`, an empty block device whose content may
//! be lost; without them the test says so and is skipped. `KRAUD_BIN` names the folder with `storage` and `kraud-macro` when
//! they are not where cargo puts them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use zone::client::Client;
use zone::volume::{Snapshot, SnapshotSpec, Volume, VolumeAccess, VolumeSpec};
use zone::{Resource, VolumeName};

/// An emulated machine is slow.
const DEADLINE: Duration = Duration::from_secs(120);
const POOL: &str = "kraudtest";

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "{what} did not happen within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn output(argv: &[&str]) -> String {
    let output = Command::new(argv[0]).args(&argv[1..]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{argv:?}: {}", String::from_utf8_lossy(&output.stderr));
    text
}

struct Service {
    dir: tempfile::TempDir,
    bin: PathBuf,
    disk: String,
    client: Client,
}

impl Service {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn macro_engine(&self) -> Running {
        let child = Command::new(self.bin.join("kraud-macro"))
            .arg("--socket")
            .arg(self.path("macro.sock"))
            .arg("--state")
            .arg(self.path("state"))
            .spawn();
        let running = Running(child.unwrap());
        until("the state engine's start", || self.path("macro.sock").exists());
        running
    }

    fn storage(&self) -> Running {
        let status = self.path("pool.json");
        let _ = std::fs::remove_file(&status);
        let child = Command::new(self.bin.join("storage"))
            .arg("--macro")
            .arg(self.path("macro.sock"))
            .args(["--pool", POOL, "--pool-device", &self.disk])
            .arg("--mount")
            .arg(self.path("zone"))
            .arg("--pool-status")
            .arg(&status)
            .spawn();
        let running = Running(child.unwrap());
        until("the pool's readiness", || status.exists());
        running
    }

    async fn volume(&self, name: &str, what: &str, holds: impl Fn(&Resource<Volume>) -> bool) -> Resource<Volume> {
        let began = Instant::now();
        loop {
            let volume = self.client.get::<Volume>(name).await.unwrap();
            if holds(&volume) {
                return volume;
            }
            assert!(began.elapsed() < DEADLINE, "{what}: {:?}", volume.status);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn create(&self, name: &str, driver: &str, size: &str) -> Resource<Volume> {
        let options =
            if size.is_empty() { BTreeMap::new() } else { BTreeMap::from([("size".to_owned(), size.to_owned())]) };
        let spec = VolumeSpec { driver: driver.into(), options, ..VolumeSpec::default() };
        self.client.create::<Volume>(name, &spec).await.unwrap();
        self.volume(name, "the volume's readiness", |v| {
            v.status.ready || v.status.error.as_ref().is_some_and(|e| !e.contains("not there"))
        })
        .await
    }
}

fn service() -> Option<Service> {
    let Ok(disk) = std::env::var("KRAUD_TEST_DISK") else {
        eprintln!("skipped: KRAUD_TEST_DISK names no empty disk");
        return None;
    };
    if !Path::new("/dev/zfs").exists() {
        eprintln!("skipped: this kernel has no ZFS");
        return None;
    }
    let beside = Path::new(env!("CARGO_BIN_EXE_storage")).parent().unwrap().to_owned();
    let bin = std::env::var_os("KRAUD_BIN").map_or(beside, PathBuf::from);
    let dir = tempfile::tempdir().unwrap();
    let client = Client::new(dir.path().join("macro.sock"));
    Some(Service { dir, bin, disk, client })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_made_once_and_volumes_and_snapshots_follow_their_resources() {
    let Some(service) = service() else { return };
    let _engine = service.macro_engine();
    let storage = service.storage();
    for (name, mode) in [("images", 0o755), ("pods", 0o750), ("volumes", 0o755)] {
        let path = service.path("zone").join(name);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, mode, "{name}");
        assert_eq!(output(&["zfs", "get", "-H", "-o", "value", "mounted", &format!("{POOL}/{name}")]), "yes");
    }
    let status: serde_json::Value = serde_json::from_slice(&std::fs::read(service.path("pool.json")).unwrap()).unwrap();
    assert_eq!(status["health"], "ONLINE");
    assert!(status["pool_bytes"].as_u64().unwrap() > 1 << 29, "{status}");

    // Files with a quota.
    let files = service.create("files", "local", "64M").await;
    let dir = service.path("zone/volumes/files");
    assert_eq!(files.status.access, Some(VolumeAccess::Directory { path: dir.clone() }));
    assert_eq!(
        output(&["zfs", "get", "-Hp", "-o", "value", "refquota", &format!("{POOL}/volumes/files")]),
        (64 << 20).to_string()
    );
    std::fs::write(dir.join("kept"), b"first").unwrap();

    // A block device comes with ext4, and is formatted once.
    let block = service.create("block", "lv2", "128M").await;
    let Some(VolumeAccess::Block { device }) = block.status.access else { panic!("{:?}", block.status) };
    assert_eq!(output(&["blkid", "-p", "-o", "value", "-s", "TYPE", device.to_str().unwrap()]), "ext4");
    let uuid = output(&["blkid", "-p", "-o", "value", "-s", "UUID", device.to_str().unwrap()]);

    // What cannot be is said.
    assert!(service.create("odd", "ceph", "").await.status.error.unwrap().contains("no volume driver"));
    output(&["zfs", "create", &format!("{POOL}/volumes/stranger")]);

    // A snapshot on demand.
    let spec = SnapshotSpec { volume: VolumeName::new("files"), automatic: false };
    service.client.create::<Snapshot>("files@before", &spec).await.unwrap();
    let began = Instant::now();
    while !service.client.get::<Snapshot>("files@before").await.unwrap().status.ready {
        assert!(began.elapsed() < DEADLINE, "the snapshot was not taken");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    std::fs::write(dir.join("kept"), b"second").unwrap();
    assert_eq!(std::fs::read(dir.join(".zfs/snapshot/before/kept")).unwrap(), b"first");

    // Killed, and the pool exported as if the machine had restarted: everything is there again.
    drop(storage);
    output(&["zpool", "export", POOL]);
    let storage = service.storage();
    service.volume("files", "readiness after a restart", |v| v.status.ready).await;
    until("the volume's mount", || dir.join("kept").exists());
    assert_eq!(std::fs::read(dir.join("kept")).unwrap(), b"second");
    until("the block device", || device.exists());
    assert_eq!(output(&["blkid", "-p", "-o", "value", "-s", "UUID", device.to_str().unwrap()]), uuid);

    // Deleting resources removes what they stood for, and nothing else.
    service.client.delete::<Snapshot>("files@before").await.unwrap();
    until("the snapshot's end", || {
        output(&["zfs", "list", "-H", "-o", "name", "-t", "snapshot", "-r", POOL]).is_empty()
    });
    for name in ["files", "block", "odd"] {
        service.client.delete::<Volume>(name).await.unwrap();
    }
    let below = || output(&["zfs", "list", "-H", "-o", "name", "-d", "1", &format!("{POOL}/volumes")]);
    until("the volumes' end", || below() == format!("{POOL}/volumes\n{POOL}/volumes/stranger"));
    until("the mount point's end", || !dir.exists());
    drop(storage);
    output(&["zpool", "destroy", POOL]);
}
