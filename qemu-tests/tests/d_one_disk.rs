//! A machine with one disk, as one that was flashed: the pool takes what is left of it. A second zone beside the tests' own, so only with
//! `cargo appliance test --full`.
#![allow(clippy::panic, clippy::unwrap_used)]

use qemu_tests::full;
use qemu_tests::second::Zone;

#[test]
fn the_pool_takes_the_rest_of_the_only_disk_and_is_there_again_after_a_restart() {
    if !full("two boots of its own") {
        return;
    }
    let zone = Zone::new("one-disk");
    let run = ["run", "--no-build", "--fresh", "--detach", "--memory", "2G", "--one-disk", "--disk", "20"];
    let _ = zone.appliance(&run).ok();
    let inside = |script: &str| zone.inside(script).ok();
    let disks = inside("ls -d /sys/block/vd* | wc -l");
    assert_eq!(disks.trim(), "1", "there is another disk");
    let pool_bytes = || -> u64 { inside("zpool list -Hpo size zone").trim().parse().unwrap() };
    // 20 GiB without the slots, the state and what ZFS keeps for itself.
    let first = pool_bytes();
    assert!(first > 14 << 30, "the pool has {first} bytes");
    assert!(inside("zpool list -vHP zone").contains("/dev/mapper/kraud-pool"));
    inside("echo kept > /zone/images/proof; sync");
    let _ = zone.appliance(&["stop"]).ok();
    let _ = zone.appliance(&["start", "--detach"]).ok();
    assert_eq!(pool_bytes(), first);
    assert_eq!(inside("cat /zone/images/proof; rm /zone/images/proof"), "kept\n");
}
