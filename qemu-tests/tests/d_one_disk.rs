//! A machine with one disk, as one that was flashed: the pool takes what is left of it. A second zone beside the tests' own, so only with
//! `cargo appliance test --full`.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::{folder, full, variable};
use std::path::Path;
use std::process::{Command, Stdio};

/// `cargo appliance …` for the zone whose state is in `home`.
fn appliance(home: &Path, args: &[&str]) -> String {
    let mut command = Command::new(variable("KRAUD_APPLIANCE"));
    let output = command.args(args).env("XDG_STATE_HOME", home).stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {out}{err}");
    out.into_owned()
}

/// Stops the second zone and removes its disks, however the test ends.
struct Zone(std::path::PathBuf);

impl Drop for Zone {
    fn drop(&mut self) {
        let mut command = Command::new(variable("KRAUD_APPLIANCE"));
        let _ = command.arg("kill").env("XDG_STATE_HOME", &self.0).stdin(Stdio::null()).output();
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_pool_takes_the_rest_of_the_only_disk_and_is_there_again_after_a_restart() {
    if !full("two boots of its own") {
        return;
    }
    let zone = Zone(folder("one-disk"));
    let (from, to) = (variable("KRAUD_STATE"), zone.0.join("kraudbox/zone"));
    std::fs::create_dir_all(&to).unwrap();
    for name in ["base.img", "plan.json", "disks.json"] {
        let (from, to) = (Path::new(&from).join(name), to.join(name));
        // The state of the tests may lie on another file system.
        std::fs::hard_link(&from, &to).or_else(|_| std::fs::copy(&from, &to).map(drop)).unwrap();
    }
    appliance(&zone.0, &["run", "--no-build", "--fresh", "--detach", "--memory", "2G", "--one-disk", "--disk", "20"]);
    let inside = |script: &str| appliance(&zone.0, &["exec", "--", "sh", "-c", script]);
    let disks = inside("ls -d /sys/block/vd* | wc -l");
    assert_eq!(disks.trim(), "1", "there is another disk");
    let pool_bytes = || -> u64 { inside("zpool list -Hpo size zone").trim().parse().unwrap() };
    // 20 GiB without the slots, the state and what ZFS keeps for itself.
    let first = pool_bytes();
    assert!(first > 14 << 30, "the pool has {first} bytes");
    assert!(inside("zpool list -vHP zone").contains("/dev/mapper/kraud-pool"));
    inside("echo kept > /zone/images/proof; sync");
    appliance(&zone.0, &["stop"]);
    appliance(&zone.0, &["start", "--detach"]);
    assert_eq!(pool_bytes(), first);
    assert_eq!(inside("cat /zone/images/proof; rm /zone/images/proof"), "kept\n");
}
